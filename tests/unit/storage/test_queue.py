"""Who goes first at the writer, and what shares a transaction."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tokenhub.core.clock import SystemClock
from tokenhub.storage.sqlite import SqliteDatabase


class Watched:
    """A database whose writer notes what it runs, and each commit as "|"."""

    def __init__(self, db):
        self.db = db
        self.ran = []
        self._begun, self._go_on = threading.Event(), threading.Event()
        db._writer._connection.set_commit_hook(lambda: bool(self.ran.append("|")))

    async def hold(self):
        """Keep the writer busy until ``let``."""

        def busy(tx):
            tx.execute("INSERT INTO jar (data) VALUES ('busy')")
            self._begun.set()
            self._go_on.wait(10)

        self.db.write_soon(busy)
        await asyncio.to_thread(self._begun.wait, 10)

    async def let(self, *waiting):
        """Let the writer go on; what it ran until ``waiting`` and all before were durable."""
        self._go_on.set()
        await asyncio.gather(*waiting, self.put("", patient=True))
        return "".join(self.ran).removeprefix("|")

    def put(self, name, *, patient=False, error=None):
        def fn(tx):
            self.ran.append(name)
            tx.execute("INSERT INTO jar (data) VALUES (?)", (name,))
            if error is not None:
                raise error

        return asyncio.ensure_future(self.db.write(fn, patient=patient))


@pytest.fixture
async def watched(tmp_path):
    db = await SqliteDatabase.open(tmp_path / "q.sqlite", SystemClock())
    await db.write(lambda tx: tx.execute("CREATE TABLE jar (n INTEGER PRIMARY KEY, data TEXT)"))
    yield Watched(db)
    await db.close()


async def put_all(watched, names):
    """Capitals wait, the others are patient."""
    found = [watched.put(name, patient=name.islower()) for name in names]
    await asyncio.sleep(0)
    return found


async def test_patient_writes_share_a_transaction_while_nobody_else_waits(watched):
    await watched.hold()
    assert await watched.let(*await put_all(watched, "abcde")) == "abcde|"


async def test_who_waits_overtakes_and_takes_one_patient_write_along(watched):
    await watched.hold()
    assert await watched.let(*await put_all(watched, "abcXY")) == "XYa|bc|"


async def test_who_comes_meanwhile_waits_for_one_patient_write_only(watched):
    await watched.hold()
    loop = asyncio.get_running_loop()
    came = threading.Event()

    def slow(tx):
        watched.ran.append("a")
        loop.call_soon_threadsafe(lambda: (watched.put("X"), loop.call_soon(came.set)))
        came.wait(10)

    first = asyncio.ensure_future(watched.db.write(slow, patient=True))
    await asyncio.sleep(0)
    assert await watched.let(first, *await put_all(watched, "bc")) == "a|Xb|c|"


@pytest.mark.parametrize("bad", [0, 1, 2])
async def test_what_fails_in_a_group_takes_nobody_along(watched, bad):
    await watched.hold()
    names = "XYZ"
    writes = [
        watched.put(name, error=KeyError(name) if place == bad else None)
        for place, name in enumerate(names)
    ]
    await asyncio.sleep(0)
    watched._go_on.set()
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [isinstance(one, KeyError) for one in results] == [n == bad for n in range(3)]
    kept = "".join(name for (name,) in await watched.db.read("SELECT data FROM jar ORDER BY n"))
    assert kept == "busy" + names.replace(names[bad], "")


async def test_closing_commits_the_patient_ones_too(watched, tmp_path):
    await watched.hold()
    await put_all(watched, "abX")
    watched._go_on.set()
    await watched.db.close()
    assert watched.db.read_now("SELECT count(*) FROM jar") == [(4,)]
