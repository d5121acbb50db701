from __future__ import annotations

from types import SimpleNamespace

import pytest

from tokenhub.telemetry.audit import Audit

BY = SimpleNamespace(id="r-1", peer="127.0.0.1")


@pytest.fixture
def audit(db, clock):
    return Audit(db, clock)


async def change(db, entry, before=None, after=None):
    await db.write(lambda tx: entry(tx, before, after))


async def test_the_row_tells_who_what_and_how(db, audit):
    await change(db, audit.entry(BY, "model.patch", "m"), {"weight": 1}, {"weight": 2})
    [row] = await audit.list(10)
    assert (row["actor"], row["address"], row["action"]) == ("admin", "127.0.0.1", "model.patch")
    assert (bytes(row["before"]), bytes(row["after"])) == (b'{"weight":1}', b'{"weight":2}')
    assert (row["outcome"], row["request_id"]) == ("ok", "r-1")
    assert row["timestamp"] == "2023-11-14T22:13:20.000Z"


async def test_without_the_row_there_is_no_change(db, audit):
    await db.write(lambda tx: tx.execute("CREATE TABLE thing (x INTEGER)"))
    entry = audit.entry(BY, "thing", "t")

    def fail(tx):
        tx.execute("INSERT INTO thing VALUES (1)")
        entry(tx, None, None)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await db.write(fail)
    assert await db.read("SELECT * FROM thing") == []
    assert await audit.list(10) == []


async def test_the_chain_holds_over_everything_written(db, audit):
    for number in range(30):
        await change(db, audit.entry(BY, "a", str(number)), None, {"n": number})
        audit.note(BY, "login", "admin", "wrong")
    audit.own("vault.lock", "vault", "idle")
    await db.write(lambda _: None)
    assert await audit.verify() == (61, None)


@pytest.mark.parametrize(
    ("sql", "row"),
    [
        ("UPDATE audit_log SET after = '{\"n\":99}' WHERE seq = 3", 3),
        ("UPDATE audit_log SET actor = 'nobody' WHERE seq = 2", 2),
        ("UPDATE audit_log SET at_ms = at_ms + 1 WHERE seq = 4", 4),
        ("UPDATE audit_log SET digest = 'x' WHERE seq = 4", 4),
        ("DELETE FROM audit_log WHERE seq = 3", 4),
        ("DELETE FROM audit_log WHERE seq = 1", 2),
    ],
)
async def test_tampering_is_found_at_the_row(db, audit, sql, row):
    for number in range(5):
        await change(db, audit.entry(BY, "a", str(number)), None, {"n": number})
    await db.write(lambda tx: tx.execute(sql))
    _, broken = await audit.verify()
    assert broken is not None
    assert broken.seq == row


async def test_lists_are_narrowed_and_paged(db, audit):
    for number in range(4):
        await change(db, audit.entry(BY, "even" if number % 2 == 0 else "odd", str(number)))
    assert [row["resource"] for row in await audit.list(10, action="odd")] == ["3", "1"]
    assert [row["resource"] for row in await audit.list(2, 1)] == ["2", "1"]
