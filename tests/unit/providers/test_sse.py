from __future__ import annotations

import itertools
import os
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenhub.providers.sse import (
    Event,
    EventReader,
    EventTooLarge,
    cut_events,
    encode_comment,
    encode_event,
)

FUZZ = int(os.environ.get("TOKENHUB_FUZZ", "300"))
# More inputs than a sample get more than the two minutes that every test has.
pytestmark = pytest.mark.timeout(120 + FUZZ // 100)


def read(stream):
    return EventReader().feed(stream)


def in_pieces(stream, cuts):
    """The events of a stream that arrives cut at these places."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    reader = EventReader()
    events = []
    for begin, end in itertools.pairwise(places):
        events += reader.feed(stream[begin:end])
    return events, reader.retry_ms


def by_the_book(stream):
    """The specification's algorithm, word for word and on the whole stream."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    lines = re.split(rb"\r\n|\r|\n", stream)
    lines.pop()  # the end of the file ends no line
    events, data, kind, last_id, retry = [], b"", b"", b"", None
    for line in lines:
        if line == b"":
            if data:
                events.append(Event(data.removesuffix(b"\n"), kind, last_id))
            data, kind = b"", b""
            continue
        if line.startswith(b":"):
            continue
        field, colon, value = line.partition(b":")
        if colon and value.startswith(b" "):
            value = value[1:]
        if field == b"event":
            kind = value
        elif field == b"data":
            data += value + b"\n"
        elif field == b"id" and b"\0" not in value:
            last_id = value
        elif field == b"retry" and re.fullmatch(rb"[0-9]{1,15}", value):
            retry = int(value)
    return events, retry


# The examples of WHATWG HTML section 9.2.6 and the corners of its grammar.
@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event(b"YHOO\n+2\n10")]),
        (b": test\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
         [Event(b"first event", b"", b"1"), Event(b"second event"), Event(b" third event")]),
        (b"data\n\ndata\ndata\n\ndata:\n", [Event(b""), Event(b"\n")]),
        (b"data:test\n\ndata: test\n\n", [Event(b"test"), Event(b"test")]),
        (b"event: add\ndata: 7\n\ndata: 8\n\n", [Event(b"7", b"add"), Event(b"8")]),
        (b"event: add\n\ndata: 8\n\n", [Event(b"8")]),
        (b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", [Event(b"a"), Event(b"b"), Event(b"c")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event(b"a")]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [Event(b"a")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: b\n\n", []),
        (b"id: 1\ndata: a\n\ndata: b\n\nid: 2\0\ndata: c\n\n",
         [Event(b"a", b"", b"1"), Event(b"b", b"", b"1"), Event(b"c", b"", b"1")]),
        (b"DATA: a\nDate: b\ndata : c\n\n", []),
        (b"data: a\n", []),
        (b"data: a", []),
        (b"\n\n\n", []),
        (b"", []),
        (b"data: a:b: c\n\n", [Event(b"a:b: c")]),
        (b"data: \xff\x00\xc3\n\n", [Event(b"\xff\x00\xc3")]),
        (b":\n:x\n: data: y\n\n", []),
    ],
)  # fmt: skip
def test_events_of(stream, events):
    assert read(stream) == events
    assert by_the_book(stream)[0] == events


def test_retry():
    reader = EventReader()
    reader.feed(b"retry: x\nretry: -1\nretry: \xb2\n\n")
    assert reader.retry_ms is None
    reader.feed(b"retry: 1500\n")
    assert reader.retry_ms == 1500


STREAM = (
    b"\xef\xbb\xbf: hi\r\n\r\nevent: a\rdata: 1\r\ndata: 2\n\r"
    b"data: 3\r\r\nid: 7\ndata:\n\ndata: \xc3\xa9\r\n\r\n"
)


def test_every_cut_gives_the_same():
    whole = read(STREAM)
    assert len(whole) == 4
    for first in range(len(STREAM) + 1):
        assert in_pieces(STREAM, [first])[0] == whole
        for second in range(first, len(STREAM) + 1):
            assert in_pieces(STREAM, [first, second])[0] == whole
    assert in_pieces(STREAM, range(len(STREAM)))[0] == whole


LINES = st.one_of(
    st.sampled_from([b"", b"data: x", b"data", b"event: e", b"id: 1", b"retry: 5", b": c", b"x"]),
    st.binary(max_size=12),
)
STREAMS = st.lists(
    st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b""])), max_size=20
).map(lambda lines: b"".join(line + end for line, end in lines))


@given(st.sampled_from([b"", b"\xef\xbb\xbf", b"\xef\xbb"]), STREAMS, st.lists(st.integers(0, 400)))
@example(b"\xef\xbb", b"", [1])
@settings(max_examples=FUZZ * 2, deadline=None)
def test_any_stream_in_any_pieces_is_read_by_the_book(start, stream, cuts):
    # A CR at the very end: whether an LF follows is never known, and makes no difference.
    stream = start + stream
    assert in_pieces(stream, cuts) == by_the_book(stream)


WORDS = st.binary(max_size=20).filter(lambda word: not set(word) & set(b"\r\n\0"))


@given(
    st.lists(st.tuples(st.binary(max_size=60), WORDS, WORDS), max_size=8), st.lists(st.integers())
)
@settings(max_examples=FUZZ, deadline=None)
def test_what_is_written_is_read_again(written, cuts):
    stream = b"".join(encode_comment(b"beat") + encode_event(*each) for each in written)
    last = b""
    expected = []
    for data, event, id_ in written:
        last = id_ or last
        normal = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        expected.append(Event(normal, event, last))
    assert in_pieces(stream, cuts)[0] == expected


@pytest.mark.parametrize("bad", [b"a\nb", b"a\rb", b"a\0b"])
def test_the_writer_lets_nothing_out_of_its_line(bad):
    with pytest.raises(ValueError, match="event"):
        encode_event(b"x", event=bad)
    with pytest.raises(ValueError, match="id"):
        encode_event(b"x", id=bad)
    assert b"\ndata: evil" not in encode_comment(b"x\ndata: evil\n\n").replace(b"\n: ", b"")


def feed_all(reader, stream, step):
    for begin in range(0, len(stream), step):
        reader.feed(stream[begin : begin + step])


class TestCap:
    @pytest.mark.parametrize(
        "stream",
        [
            b"data: " + b"x" * 1100 + b"\n\n",
            b"data: " + b"x" * 1100,
            b"x" * 1100,
            b": " + b"x" * 1100,
            b"data: x\n" * 200,
            b"data: a\n\ndata: " + b"x" * 1100,
            b": c\n" * 400,
        ],
    )
    @pytest.mark.parametrize("step", [1, 7, 5000])
    def test_is_kept_whatever_the_cuts(self, stream, step):
        reader = EventReader(max_event=1000)
        with pytest.raises(EventTooLarge):
            feed_all(reader, stream, step)

    def test_counts_each_event_anew(self):
        reader = EventReader(max_event=1000)
        assert len(reader.feed((b"data: " + b"x" * 900 + b"\n\n") * 50)) == 50


@pytest.mark.timeout(30)  # a watchdog: it takes a moment, or minutes
def test_a_long_line_in_small_pieces_costs_linear_time():
    reader = EventReader()
    reader.feed(b"data: ")
    for _ in range(800_000):
        reader.feed(b"0123456789")
    assert len(reader.feed(b"\n\n")[0].data) == 8_000_000


PIECES = st.lists(st.sampled_from([b"\n", b"\n\n", b"a", b"data: b\n\n", b"c\n", b"dd"]))


@given(PIECES)
def test_cut_events_come_whole_and_in_order(pieces):
    tail, whole, fed = bytearray(), b"", b""
    for piece in pieces:
        out = cut_events(tail, piece)
        fed += piece
        whole += out
        assert not out or out.endswith(b"\n\n")
        assert whole + tail == fed
        assert b"\n\n" not in tail


@pytest.mark.timeout(30)  # a watchdog: it takes a moment, or minutes
def test_an_event_in_many_reads_is_kept_in_linear_time():
    tail = bytearray()
    for _ in range(800_000):
        assert not cut_events(tail, b"0123456789")
    assert len(cut_events(tail, b"\n\n")) == 8_000_002
