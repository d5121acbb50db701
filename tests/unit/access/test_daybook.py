"""What a kill may not take: settlements that no commit has yet, booked at the next start."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from pathlib import Path

import msgspec
import pytest
from tests.unit.access.money import PRICED, Key, StillClock, most, used

from tokenhub.access.bookkeeper import Bookkeeper
from tokenhub.access.daybook import RETRY
from tokenhub.access.ledger import Ledger
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import Unavailable
from tokenhub.storage.database import StorageFailed, StorageRefused
from tokenhub.storage.spool import FileSpool
from tokenhub.storage.sqlite import SqliteDatabase
from tokenhub.storage.syncer import SyncThread

ROWS = "SELECT request_id, state, reserved, settled, overrun, flag FROM ledger_attempts ORDER BY id"
FREE = Key(key_id="free")


class House:
    """A database, its spool and a ledger; ``kill`` leaves on the disk what kill -9 would."""

    def __init__(self, path):
        self.path = path
        self.clock = StillClock()

    async def start(self):
        self.db = await SqliteDatabase.open(self.path, SystemClock())
        self.spool = FileSpool(self.path)
        self.ledger = await Ledger.open(self.db, self.clock, self.spool)
        return self.ledger

    async def kill(self):
        await kill(self)

    async def stop(self):
        await self.ledger.close()
        await self.db.close()

    async def rows(self):
        await self.ledger.flush()
        return await self.db.read(ROWS)

    async def verify(self):
        return await Bookkeeper(self.db, self.clock, self.ledger).verify()

    def noted(self):
        """The records that another process would read."""
        with tempfile.TemporaryDirectory() as folder:
            for file in filter(Path.exists, self.files):
                shutil.copy(file, folder)
            spool = FileSpool(Path(folder) / self.path.name)
            found = spool.read()
            spool.close()
        return found

    @property
    def files(self):
        return [self.path.with_name(f"{self.path.name}-spool-{number}") for number in (0, 1)]


async def kill(house):
    ledger = house.ledger
    ledger._writer._write = lambda *_: None
    ledger._daybook.rows.clear()
    ledger._daybook._waiting.clear()
    ledger._daybook.sound = False
    house.spool.close()
    await house.db.close()


@pytest.fixture
async def house(tmp_path):
    made = House(tmp_path / "money.sqlite")
    await made.start()
    yield made
    await made.stop()


def begin(ledger, request, key=FREE, nano=10):
    hold = ledger.spend(key, request, 1, PRICED, most(nano))
    return hold, hold.reserve()


def answer(ledger, request, cost, key=FREE, nano=10):
    hold, opening = begin(ledger, request, key, nano)
    assert opening is None
    hold.note(usage=used(cost))
    assert hold.book() is None


async def test_an_answer_that_left_has_its_row_after_a_kill(house):
    answer(house.ledger, "answered", 7)
    house.ledger.put_down()
    answer(house.ledger, "not answered", 8)
    await house.kill()
    ledger = await house.start()
    assert await house.rows() == [("answered", "settled", 10, 7, 0, "")]
    assert ledger.crashed == 0
    assert await house.verify() == []
    for account in ledger.accounts("free").values():
        assert (account.settled, account.reserved, account.overrun) == (7, 0, 0)


async def test_what_is_noted_while_its_opening_is_on_its_way_is_whole(house):
    """Neither the commit that opens it nor the one that closes it arrives."""
    hold, _ = begin(house.ledger, "r")
    house.ledger._writer._write = lambda *_: None
    house.ledger._writer.hurry()
    await asyncio.sleep(0)
    hold.note(usage=used(6))
    assert hold.book() is None
    house.ledger.put_down()
    await house.kill()
    await house.start()
    assert await house.rows() == [("r", "settled", 10, 6, 0, "")]
    assert await house.verify() == []


async def test_a_row_that_stands_open_is_closed_as_told_and_only_the_rest_at_its_bound(house):
    told, _ = begin(house.ledger, "told", nano=50)
    released, _ = begin(house.ledger, "released", nano=20)
    open_, _ = begin(house.ledger, "open", nano=30)
    await house.ledger.flush()
    told.note(usage=used(12))
    told.book()
    released.release()
    house.ledger.put_down()
    await house.kill()
    ledger = await house.start()
    assert await house.rows() == [
        ("told", "settled", 50, 12, 0, ""),
        ("released", "released", 20, 0, 0, ""),
        ("open", "settled", 30, 30, 0, "crash"),
    ]
    assert ledger.crashed == 1
    assert await house.verify() == []
    assert ledger.accounts("free")["total"].settled == 42
    assert not open_.closed


async def test_every_column_is_the_one_that_was_settled(house):
    house.clock.ms += 5
    answer(house.ledger, "committed", 7)
    await house.ledger.flush()
    answer(house.ledger, "noted", 7)
    house.ledger.put_down()
    await house.kill()
    await house.start()
    one, other = await house.db.read("SELECT * FROM ledger_attempts ORDER BY id")
    names = [row[1] for row in await house.db.read("PRAGMA table_info(ledger_attempts)")]
    differ = [n for n, a, b in zip(names, one, other, strict=True) if a != b]
    assert differ == ["id", "request_id"]


@pytest.mark.parametrize("committed", [False, True])
async def test_booked_twice_counts_once(house, tmp_path, committed):
    """The process dies again, between the commit of what was noted and the end of the notes."""
    answer(house.ledger, "r", 7)
    house.ledger.put_down()
    if committed:
        await house.ledger.flush()
        answer(house.ledger, "s", 9)
        house.ledger.put_down()
    await house.kill()
    kept = tmp_path / "kept"
    kept.mkdir()
    for file in filter(Path.exists, house.files):
        shutil.copy(file, kept)
    await house.start()
    rows = await house.rows()
    await house.kill()
    for file in kept.iterdir():
        shutil.copy(file, house.path.parent)
    ledger = await house.start()
    assert await house.rows() == rows
    assert ledger.crashed == 0
    assert await house.verify() == []
    assert ledger.accounts("free")["month"].settled == sum(row[3] for row in rows)


async def test_a_row_committed_but_still_noted_counts_once(house, tmp_path):
    """The process dies between the commit and the end of its notes."""
    answer(house.ledger, "r", 7)
    house.spool.drop = lambda: None
    await house.ledger.flush()
    assert house.noted()
    await house.kill()
    await house.start()
    assert await house.rows() == [("r", "settled", 10, 7, 0, "")]
    assert await house.verify() == []


async def test_a_limit_lowered_before_cannot_stop_the_start(house):
    """The store has a ceiling of 5; what was noted since came under a lifted limit."""
    house.ledger.adopt(Key(key_id="free", monthly_budget=5))
    house.ledger.ensure("free")
    await house.ledger.flush()
    house.ledger.adopt(FREE)
    answer(house.ledger, "r", 70, nano=80)
    house.ledger.put_down()
    await house.kill()
    ledger = await house.start()
    assert await house.rows() == [("r", "settled", 80, 70, 0, "")]
    assert await house.verify() == []
    month = "SELECT settled, budget, ceiling FROM ledger_accounts WHERE kind = 'month'"
    assert await house.db.read(month) == [(70, 5, 70)]
    assert ledger.accounts("free")["month"].capped
    # The next batch brings it in line.
    ledger.adopt(Key(key_id="free", monthly_budget=100))
    await ledger.flush()
    assert await house.db.read(month) == [(70, 100, 100)]


async def test_an_overrun_is_kept(house):
    hold, _ = begin(house.ledger, "r", nano=10)
    house.ledger.adopt(Key(key_id="free", monthly_budget=15))
    hold.note(usage=used(40))
    hold.leave()
    house.ledger.put_down()
    await house.kill()
    ledger = await house.start()
    assert await house.rows() == [("r", "settled", 10, 15, 25, "cut")]
    assert ledger.accounts("free")["month"].overrun == 25
    assert await house.verify() == []


async def test_two_days_are_booked_where_they_belong(house):
    answer(house.ledger, "old", 3)
    house.ledger.put_down()
    house.clock.set("2026-12-01T00:00:00")
    answer(house.ledger, "new", 4)
    house.ledger.put_down()
    await house.kill()
    ledger = await house.start()
    assert await house.verify() == []
    sums = {kind: account.settled for kind, account in ledger.accounts("free").items()}
    assert sums == {"month": 4, "day": 4, "total": 7}


async def test_a_clock_set_back_over_a_month_that_has_a_limit_and_no_day(house):
    """Its account stands; a second one of the same month could never be stored."""
    key = Key(key_id="free", monthly_budget=100)
    answer(house.ledger, "earlier", 3)
    house.clock.set("2026-12-01T00:00:00")
    house.ledger.adopt(key)
    await house.stop()
    house.clock.set("2026-11-30T23:59:59")
    ledger = await house.start()
    house.clock.set("2026-12-01T00:00:01")
    hold, opening = begin(ledger, "later", key)
    await hold.opened(opening)
    hold.note(usage=used(4))
    await hold.book()
    await ledger.flush()
    accounts = ledger.accounts("free")
    assert {kind: account.period for kind, account in accounts.items()} == {
        "month": 202612,
        "day": 20261201,
        "total": 0,
    }
    assert await house.verify() == []


async def test_a_damaged_tail_loses_nothing_before_it(house, caplog):
    for number in range(3):
        answer(house.ledger, f"r{number}", number)
        house.ledger.put_down()
    await house.kill()
    file = house.files[0]
    file.write_bytes(file.read_bytes().rstrip(b"\0")[:-1])
    await house.start()
    assert [row[0] for row in await house.rows()] == ["r0", "r1"]
    assert await house.verify() == []
    assert "is torn" in caplog.text
    assert "was booked: 2." in caplog.text


async def test_notes_of_another_database_are_refused_and_kept(house, tmp_path):
    answer(house.ledger, "r", 7)
    house.ledger.put_down()
    await house.kill()
    (tmp_path / "elsewhere").mkdir()
    other = House(tmp_path / "elsewhere" / "money.sqlite")
    shutil.copy(house.files[0], other.path.parent)
    with pytest.raises(StorageRefused, match="another database"):
        await other.start()
    assert other.files[0].read_bytes() == house.files[0].read_bytes()
    await other.db.close()
    await house.start()


async def test_notes_of_another_release_are_refused_and_kept(house):
    house.spool.append(msgspec.msgpack.encode({"version": 2}))
    before = house.files[0].read_bytes()
    await house.kill()
    with pytest.raises(StorageRefused, match="another release"):
        await house.start()
    assert house.files[0].read_bytes() == before
    house.spool.clear()
    await house.db.close()
    await house.start()


class Disk:
    """What a stop of the machine would leave of the spool: what was synced, nothing else."""

    def __init__(self, monkeypatch):
        self.safe = {}
        self.error = None
        monkeypatch.setattr("tokenhub.storage.spool.open_syncer", SyncThread)
        monkeypatch.setattr("tokenhub.storage.syncer._fdatasync", self.sync)

    def sync(self, descriptor):
        if self.error is not None:
            raise self.error
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.safe[path] = path.read_bytes()

    async def power_cut(self, house):
        await house.kill()
        for file in house.files:
            file.write_bytes(self.safe.get(file, b""))


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


async def test_what_a_budget_pays_for_outlives_a_power_cut_in_every_state(disk, house):
    house.ledger._writer._write = lambda *_: None  # no batch arrives
    key = Key(monthly_budget=1000)
    holds = {}
    for name in ("open", "settled", "released"):
        holds[name], opening = begin(house.ledger, name, key)
        await holds[name].opened(opening)
    assert await house.db.read(ROWS) == []  # it waited for the notes, not for a commit
    holds["settled"].note(usage=used(4))
    closing = holds["settled"].book()
    house.ledger.put_down()
    assert not closing.done()
    await closing
    holds["released"].release()  # which nobody waits for
    await disk.power_cut(house)
    ledger = await house.start()
    assert await house.rows() == [
        ("open", "settled", 10, 10, 0, "crash"),
        ("settled", "settled", 10, 4, 0, ""),
        ("released", "settled", 10, 10, 0, "crash"),
    ]
    assert ledger.crashed == 2
    assert await house.verify() == []
    for account in ledger.accounts(key.key_id).values():
        assert (account.settled, account.reserved, account.overrun) == (24, 0, 0)


@pytest.mark.parametrize("committed", ["nothing", "opening", "both"])
async def test_a_note_says_the_same_as_the_commit_it_met(disk, house, committed):
    key = Key(monthly_budget=1000)
    hold, opening = begin(house.ledger, "r", key)
    await hold.opened(opening)
    if committed != "nothing":
        await house.ledger.flush()
    else:
        house.ledger._writer._write = lambda *_: None
    house.spool.drop = lambda: None  # its notes are there once more
    hold.note(usage=used(4))
    await hold.book()
    if committed == "both":
        await house.ledger.flush()
    await disk.power_cut(house)
    await house.start()
    assert await house.rows() == [("r", "settled", 10, 4, 0, "")]
    assert await house.verify() == []
    sums = {(a.settled, a.reserved) for a in house.ledger.accounts(key.key_id).values()}
    assert sums == {(4, 0)}


async def test_those_who_wait_at_once_share_a_sync(disk, house, monkeypatch):
    syncs = []
    sync = house.spool.sync
    monkeypatch.setattr(house.spool, "sync", lambda done: syncs.append(1) or sync(done))
    key = Key(monthly_budget=10_000)
    first = [begin(house.ledger, f"r{number}", key)[1] for number in range(50)]
    await asyncio.sleep(0)
    assert len(syncs) == 1
    second = [begin(house.ledger, f"s{number}", key)[1] for number in range(50)]
    await asyncio.gather(*first, *second)
    assert len(syncs) == 2


async def test_who_leaves_while_it_waits_holds_up_nobody(disk, house):
    key = Key(monthly_budget=1000)
    left, opening = begin(house.ledger, "left", key)
    stays, other = begin(house.ledger, "stays", key)
    waiting = asyncio.ensure_future(left.opened(opening))
    await asyncio.sleep(0)
    waiting.cancel()
    await stays.opened(other)
    assert left.closed
    assert house.ledger.room(key) == 990
    stays.release()
    assert [row[:3] for row in await house.rows()] == [
        ("left", "released", 10),
        ("stays", "released", 10),
    ]


async def test_after_a_sync_that_failed_who_waits_waits_for_the_commit(disk, house, caplog):
    key = Key(monthly_budget=1000)
    disk.error = OSError(5, "Input/output error")
    hold, opening = begin(house.ledger, "r", key)
    await hold.opened(opening)
    assert [row[:2] for row in await house.db.read(ROWS)] == [("r", "open")]
    assert "Input/output error" in caplog.text
    disk.error = None
    hold.note(usage=used(4))
    await hold.book()
    assert [row[:4] for row in await house.db.read(ROWS)] == [("r", "settled", 10, 4)]
    # What is noted behind a hole would not be found: both parts were emptied before it goes on.
    house.clock.ms += int(RETRY * 1000) + 1
    for number in range(3):
        assert house.noted() == []
        hold, opening = begin(house.ledger, f"s{number}", key)
        await hold.opened(opening)
        await house.ledger.flush()
        hold.release()
        await house.ledger.flush()
    hold, opening = begin(house.ledger, "last", key)
    await hold.opened(opening)
    assert house.noted()
    await disk.power_cut(house)
    await house.start()
    assert (await house.rows())[-1] == ("last", "settled", 10, 10, 0, "crash")


async def test_nothing_is_noted_behind_a_hole(disk, house):
    """A batch is on its way all the time for which notes are not tried again."""
    free = threading.Event()
    house.db.write_soon(lambda _: free.wait(), lambda _: None)
    answer(house.ledger, "on its way", 1)
    house.ledger._writer.hurry()
    await asyncio.sleep(0)
    disk.error = OSError(5, "Input/output error")
    _, opening = begin(house.ledger, "r", Key(monthly_budget=1000))
    async with asyncio.timeout(10):
        while house.ledger._daybook.sound:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    disk.error = None
    house.clock.ms += int(RETRY * 1000) + 1
    drop, sound = house.spool.drop, []
    house.spool.drop = lambda: sound.append(house.ledger._daybook.sound) or drop()
    free.set()
    await opening
    assert sound == [False, False]
    assert house.ledger._daybook.sound
    assert house.noted() == []


async def test_a_reservation_that_can_be_made_durable_nowhere_is_refused(disk, house, monkeypatch):
    monkeypatch.setattr("tokenhub.access.writer._RETRY_FIRST", 60)
    key = Key(monthly_budget=1000)
    disk.error = OSError(5, "Input/output error")
    await house.db.write(
        lambda tx: tx.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON ledger_attempts "
            "BEGIN SELECT RAISE(ABORT, 'broken'); END"
        )
    )
    hold, opening = begin(house.ledger, "r", key)
    with pytest.raises(Unavailable, match="cannot be written"):
        await hold.opened(opening)
    assert house.ledger.room(key) == 1000
    await house.db.write(lambda tx: tx.execute("DROP TRIGGER broken"))


async def test_without_a_spool_every_answer_waits_for_the_disk(ledger, db):
    hold, _ = begin(ledger, "r")
    await ledger.flush()
    hold.note(usage=used(4))
    await hold.book()
    assert await db.read(ROWS) == [("r", "settled", 10, 4, 0, "")]


async def test_nothing_stays_noted_that_is_committed(house):
    for number in range(50):
        answer(house.ledger, f"r{number}", 1)
        house.ledger.put_down()
        await asyncio.sleep(0.002)
    assert len(await house.db.read(ROWS)) > 10  # nobody waited, and it is committed all the same
    await house.ledger.flush()
    assert house.noted() == []
    await house.stop()
    assert not any(file.exists() for file in house.files)
    await house.start()


async def test_while_nothing_can_be_noted_answers_wait_for_the_disk(house, caplog):
    append, failing = house.spool.append, True

    def broken(record):
        if failing:
            raise StorageFailed("No space left.")
        append(record)

    house.spool.append = broken
    answer(house.ledger, "first", 7)  # it cannot know yet
    house.ledger.put_down()
    await asyncio.sleep(0)
    hold, _ = begin(house.ledger, "second")
    closing = hold.book()
    assert closing is not None
    house.ledger.put_down()
    await closing
    assert len(await house.db.read(ROWS)) == 2
    house.clock.ms += int(RETRY * 1000) + 1
    failing = False
    hold, _ = begin(house.ledger, "third")
    await hold.book()
    answer(house.ledger, "fourth", 9)
    house.ledger.put_down()
    await house.kill()
    await house.start()
    assert [row[3] for row in await house.rows()] == [7, 25, 25, 9]
    assert caplog.text.count("No space left") == 1
    assert "can be written again" in caplog.text


async def test_a_row_that_cannot_be_encoded_keeps_no_answer_back(house, caplog):
    house.ledger._daybook.rows.append((1 << 80,))
    house.ledger.put_down()
    assert "Answers wait for the database now" in caplog.text
    hold, _ = begin(house.ledger, "next")
    await hold.book()
    assert [row[0] for row in await house.db.read(ROWS)] == ["next"]


async def test_while_the_books_cannot_be_written_notes_still_are(house, monkeypatch):
    monkeypatch.setattr("tokenhub.access.writer._RETRY_FIRST", 60)
    await house.db.write(
        lambda tx: tx.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON ledger_attempts "
            "BEGIN SELECT RAISE(ABORT, 'broken'); END"
        )
    )
    answer(house.ledger, "first", 7)
    house.ledger.put_down()
    house.ledger._writer.hurry()
    async with asyncio.timeout(10):
        while not house.ledger.failing:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    answer(house.ledger, "second", 8)
    house.ledger.put_down()
    await house.db.write(lambda tx: tx.execute("DROP TRIGGER broken"))
    await house.kill()
    await house.start()
    assert [row[3] for row in await house.rows()] == [7, 8]
    assert await house.verify() == []
