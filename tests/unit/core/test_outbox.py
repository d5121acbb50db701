"""What one turn of the loop sends: together, in order, and never past a broken connection."""

import asyncio
import logging

import pytest

from tokenhub.core.outbox import Outbox


class Wire:
    """A transport that notes what is written, in a list that several share."""

    def __init__(self, name, told):
        self.name = name
        self.told = told
        self.closing = self.broken = False

    def write(self, data):
        if self.broken:
            raise RuntimeError("broken")
        self.told.append((self.name, data))

    def is_closing(self):
        return self.closing

    def abort(self):
        self.closing = True


@pytest.fixture
def told():
    return []


@pytest.fixture
async def outbox():
    return Outbox(asyncio.get_running_loop())


async def test_leaves_at_the_end_of_the_turn_in_order_for_each(outbox, told):
    one, two = Wire("one", told), Wire("two", told)
    outbox.write(one, b"a")
    outbox.write(two, b"b")
    outbox.write(one, b"c")
    assert told == []
    await asyncio.sleep(0)
    assert told == [("one", b"ac"), ("two", b"b")]
    await asyncio.sleep(0)
    assert len(told) == 2


async def test_the_next_turn_is_one_of_its_own(outbox, told):
    one = Wire("one", told)
    for piece in (b"a", b"b"):
        outbox.write(one, piece)
        await asyncio.sleep(0)
    assert told == [("one", b"a"), ("one", b"b")]


async def test_what_is_written_while_it_sends_leaves_a_turn_later(outbox, told):
    class Answering(Wire):
        def write(self, data):
            super().write(data)
            if data == b"a":
                outbox.write(self, b"b")

    outbox.write(Answering("one", told), b"a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told == [("one", b"a"), ("one", b"b")]


async def test_much_for_one_leaves_at_once_so_that_it_can_pause_the_writer(outbox, told):
    one, two = Wire("one", told), Wire("two", told)
    outbox.write(two, b"b")
    for _ in range(3):
        outbox.write(one, bytes(30_000))
    assert [(name, len(data)) for name, data in told] == [("two", 1), ("one", 90_000)]


async def test_flush_sends_now_and_only_once(outbox, told):
    one = Wire("one", told)
    outbox.write(one, b"a")
    outbox.flush()
    assert told == [("one", b"a")]
    await asyncio.sleep(0)
    assert told == [("one", b"a")]


async def test_what_must_be_done_first_is_done_before_anything_leaves(outbox, told):
    outbox.first = lambda: told.append("first")
    outbox.flush()
    assert told == []
    outbox.write(Wire("one", told), b"a")
    outbox.write(Wire("two", told), b"b")
    outbox.flush()
    assert told == ["first", ("one", b"a"), ("two", b"b")]


async def test_nothing_is_sent_where_the_connection_is_closing(outbox, told):
    one, two = Wire("one", told), Wire("two", told)
    outbox.write(one, b"a")
    outbox.write(two, b"b")
    one.closing = True
    outbox.flush()
    assert told == [("two", b"b")]


async def test_a_broken_connection_does_not_keep_the_others_answers(outbox, told, caplog):
    one, two = Wire("one", told), Wire("two", told)
    one.broken = True
    outbox.write(one, b"a")
    outbox.write(two, b"b")
    with caplog.at_level(logging.ERROR):
        outbox.flush()
    assert told == [("two", b"b")]
    assert one.closing
    assert "could not be written" in caplog.text


async def test_what_nobody_waits_for_is_done_when_the_bytes_have_left(outbox, told, caplog):
    def broken(_):
        raise RuntimeError("broken")

    outbox.after(told.append, "one")
    outbox.after(broken, "two")
    outbox.write(Wire("wire", told), b"a")
    outbox.after(told.append, "three")
    outbox.flush()
    assert told == [("wire", b"a")]
    await asyncio.sleep(0)
    assert told == [("wire", b"a"), "one", "three"]
    assert "follows an answer" in caplog.text
    outbox.after(told.append, "four")
    await asyncio.sleep(0)
    assert told[-1] == "four"


async def test_a_turn_is_ended_once(outbox, told):
    one = Wire("one", told)
    for _ in range(3):
        outbox.write(one, b"a")
        outbox.flush()
        outbox.after(told.append, "after")
    await asyncio.sleep(0)
    assert told == [("one", b"a")] * 3 + ["after"] * 3
