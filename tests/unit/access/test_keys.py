"""API keys: shown once, hashed, checked in memory, changed at once."""

from __future__ import annotations

import asyncio
import re

import pytest

from tokenhub.access.key_fields import KeyFields
from tokenhub.access.key_rows import DAY_MS
from tokenhub.access.keys import Keys, load_pepper
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import InvalidRequest, NotFound, Unauthorized
from tokenhub.storage.database import StorageRefused
from tokenhub.storage.files import DataDir
from tokenhub.storage.sqlite import SqliteDatabase


class MovedClock(SystemClock):
    def __init__(self):
        super().__init__()
        self.ms = 1_800_000_000_000

    def now_ms(self):
        return self.ms


@pytest.fixture
def clock():
    return MovedClock()


@pytest.fixture
def data(tmp_path):
    directory = DataDir(tmp_path / "hub")
    yield directory
    directory.close()


@pytest.fixture
async def db(data):
    database = await SqliteDatabase.open(data.path / "tokenhub.sqlite", SystemClock())
    yield database
    await database.close()


@pytest.fixture
async def keys(db, clock, data):
    return await Keys.open(db, clock, load_pepper(data))


async def made(keys, **fields):
    key, row = await keys.create(KeyFields(**({"name": "app"} | fields)))
    return key, row.id


def accepted(keys, key):
    try:
        return keys.authenticate(b"Bearer " + key.encode(), None)
    except Unauthorized:
        return None


async def test_a_key_is_256_random_bits_and_its_id_says_nothing_of_it(keys):
    key, row = await keys.create(KeyFields(name="app"))
    assert re.fullmatch(r"tokenhub_[0-9a-f]{64}", key)
    assert row.key_prefix == key[:17]
    assert row.id not in key
    assert (await keys.create(KeyFields(name="app")))[0] != key


async def test_what_a_new_key_may_do_by_default(keys):
    key, key_id = await made(keys)
    grant = accepted(keys, key)
    assert (grant.key_id, grant.name, grant.scopes) == (key_id, "app", {"chat", "plan"})
    assert grant.enabled
    assert grant.monthly_budget is grant.expires_at is None
    assert not grant.allow_fallback
    assert not grant.allow_directives
    assert grant.models == ()


async def test_no_scopes_mean_none(keys):
    key, _ = await made(keys, scopes="[]")
    assert accepted(keys, key).scopes == frozenset()


async def test_every_field_survives_a_restart(keys, db, clock, data):
    key, _ = await made(
        keys,
        scopes=["embeddings"],
        expires_in="30d",
        rotation_days=7,
        monthly_budget_usd="12.5",
        daily_budget_usd="1",
        total_budget_usd="100",
        rate_limit_rps=-1,
        max_concurrent=4,
        models=["a/b", "c"],
        mode="cheap",
        allow_fallback=True,
        allow_directives=True,
    )
    again = await Keys.open(db, clock, load_pepper(data))
    assert accepted(again, key) == accepted(keys, key)
    assert again.list() == keys.list()
    [shown] = again.list()
    assert shown["monthly_budget_usd"] == 12.5
    assert shown["scopes"] == ["embeddings"]
    assert shown["created_at"] == "2027-01-15T08:00:00.000Z"


@pytest.mark.parametrize(
    ("authorization", "x_api_key"),
    [
        ("Bearer {}", None),
        ("bearer {}", None),
        ("BEARER   {} ", None),
        (None, "{}"),
        (None, " {} "),
        ("Bearer {}", "{}"),
        ("Basic dXNlcjpwYXNz", "{}"),
    ],
)
async def test_both_headers_are_read(keys, authorization, x_api_key):
    key, key_id = await made(keys)
    headers = [one and one.format(key).encode() for one in (authorization, x_api_key)]
    assert keys.authenticate(*headers).key_id == key_id


async def test_two_different_keys_are_refused_as_unclear(keys):
    one, _ = await made(keys)
    two, _ = await made(keys)
    with pytest.raises(InvalidRequest):
        keys.authenticate(b"Bearer " + one.encode(), two.encode())


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic x",
        b"Bearer tokenhub_",
        b"\xff\xfe",
        b"Bearer \xff",
    ],
)
async def test_no_key_or_rubbish_is_unauthorized(keys, authorization):
    await made(keys)
    with pytest.raises(Unauthorized):
        keys.authenticate(authorization, None)


async def test_all_refusals_look_the_same(keys, clock):
    disabled, one = await made(keys)
    await keys.edit(one, KeyFields(enabled=False))
    expired, _ = await made(keys, expires_in="1h")
    overdue, _ = await made(keys, rotation_days=1)
    deleted, four = await made(keys)
    await keys.delete(four)
    clock.ms += 2 * DAY_MS
    answers = []
    for key in (disabled, expired, overdue, deleted, "tokenhub_" + "0" * 64):
        with pytest.raises(Unauthorized) as caught:
            keys.authenticate(b"Bearer " + key.encode(), None)
        answers.append(
            (caught.value.status, caught.value.code, caught.value.message, caught.value.hint)
        )
    assert len(set(answers)) == 1
    assert {one["status"] for one in keys.list()} == {"disabled", "expired", "rotation_overdue"}


async def test_expiry_and_rotation_are_exact_to_the_millisecond(keys, clock):
    expiring, _ = await made(keys, expires_in="1h")
    rotating, key_id = await made(keys, rotation_days=30)
    clock.ms += 3_600_000 - 1
    assert accepted(keys, expiring)
    clock.ms += 1
    assert not accepted(keys, expiring)
    clock.ms += 30 * DAY_MS - 3_600_000 - 1
    assert accepted(keys, rotating)
    clock.ms += 1
    assert not accepted(keys, rotating)
    rotated, _ = await keys.rotate(key_id)
    clock.ms += 30 * DAY_MS - 1
    assert accepted(keys, rotated)


async def test_a_change_is_effective_on_the_very_next_request(keys):
    key, key_id = await made(keys)
    await keys.edit(key_id, KeyFields(enabled=False))
    assert not accepted(keys, key)
    await keys.edit(key_id, KeyFields(enabled=True, scopes=["plan"], monthly_budget_usd="3"))
    grant = accepted(keys, key)
    assert (grant.scopes, grant.monthly_budget) == ({"plan"}, 3 * 10**9)
    new, row = await keys.rotate(key_id)
    assert not accepted(keys, key)
    assert accepted(keys, new).monthly_budget == 3 * 10**9
    assert row.id == key_id
    await keys.delete(key_id)
    assert not accepted(keys, new)
    assert keys.list() == []
    assert keys.grant_of(key_id) is None


async def test_a_grant_holds_until_its_key_changes_or_ends(keys, db, clock):
    key, key_id = await made(keys, expires_in="1h")
    other, _ = await made(keys)
    grant = accepted(keys, key)
    await keys.edit(key_id, KeyFields(name="renamed"))
    assert not keys.renew(grant, clock.ms)
    for change in (
        lambda: keys.edit(key_id, KeyFields(enabled=False)),
        lambda: keys.edit(key_id, KeyFields(enabled=True)),
        lambda: db.write(keys.paid(key_id)),
        lambda: keys.rotate(key_id),
        lambda: keys.delete(key_id),
    ):
        grant = keys.grant_of(key_id)
        assert keys.renew(grant, clock.ms) == grant.enabled
        await change()
        assert not keys.renew(grant, clock.ms)
        newer = keys.grant_of(key_id)
        assert newer is None or newer.revision > grant.revision
    grant = accepted(keys, other)
    clock.ms += 5
    assert keys.renew(grant, clock.ms)
    assert [row["last_used_at"] for row in keys.list()] == ["2027-01-15T08:00:00.005Z"]
    ending, _ = await made(keys, expires_in="1h")
    grant = accepted(keys, ending)
    clock.ms += 3_600_000 - 1
    assert keys.renew(grant, clock.ms)
    clock.ms += 1
    assert not keys.renew(grant, clock.ms)


async def test_an_edit_leaves_what_it_does_not_name(keys):
    _, key_id = await made(keys, expires_in="30d", models=["a"], monthly_budget_usd="5")
    before = keys.get(key_id)
    await keys.edit(key_id, KeyFields(name="other"))
    after = keys.get(key_id)
    assert {name for name in before if before[name] != after[name]} == {"name"}
    await keys.edit(key_id, KeyFields(expires_at=None, monthly_budget_usd=0))
    assert keys.get(key_id)["expires_at"] is None
    assert keys.grant_of(key_id).monthly_budget is None


async def test_edits_at_once_do_not_undo_each_other(keys, db, clock, data):
    key, key_id = await made(keys)
    await asyncio.gather(
        keys.edit(key_id, KeyFields(name="renamed")),
        keys.edit(key_id, KeyFields(enabled=False)),
        keys.edit(key_id, KeyFields(rate_limit_rps=7)),
        db.write(keys.paid(key_id)),
    )
    for one in (keys, await Keys.open(db, clock, load_pepper(data))):
        shown = one.get(key_id)
        assert (shown["name"], shown["enabled"], shown["rate_limit_rps"]) == ("renamed", False, 7)
        assert shown["budget_reset_at"] == "2027-01-15T08:00:00.000Z"
        assert not accepted(one, key)


async def test_a_caller_that_is_cancelled_leaves_memory_and_store_agreed(keys, db):
    key, key_id = await made(keys)
    task = asyncio.ensure_future(keys.edit(key_id, KeyFields(enabled=False)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await db.write(lambda tx: None)
    assert not accepted(keys, key)


async def test_unknown_ids_are_not_found(keys, db):
    for act in (
        lambda: keys.edit("nope", KeyFields(name="x")),
        lambda: keys.rotate("nope"),
        lambda: db.write(keys.paid("nope")),
        lambda: keys.delete("' OR '1'='1"),
    ):
        with pytest.raises(NotFound):
            await act()
    with pytest.raises(NotFound):
        keys.get("nope")


async def test_a_key_needs_a_name(keys):
    with pytest.raises(InvalidRequest) as caught:
        await keys.create(KeyFields())
    assert caught.value.param == "name"


async def test_also_is_part_of_the_change(keys):
    def refuse(tx, before, after):
        raise RuntimeError("no audit row")

    key, key_id = await made(keys)
    for act in (
        lambda: keys.create(KeyFields(name="x"), also=refuse),
        lambda: keys.edit(key_id, KeyFields(enabled=False), also=refuse),
        lambda: keys.rotate(key_id, also=refuse),
        lambda: keys.delete(key_id, also=refuse),
    ):
        with pytest.raises(RuntimeError):
            await act()
    assert accepted(keys, key)
    assert len(keys.list()) == 1


async def test_also_sees_no_key_and_no_hash(keys):
    seen = []
    also = lambda tx, before, after: seen.extend([before, after])  # noqa: E731
    key, row = await keys.create(KeyFields(name="app"), also=also)
    new, _ = await keys.rotate(row.id, also=also)
    await keys.delete(row.id, also=also)
    text = repr(seen)
    for secret in (key, new, row.key_hash):
        assert secret not in text
        assert secret[20:] not in text


async def test_the_last_use_is_saved_in_one_go_without_touching_the_rest(keys, db, clock, data):
    key, key_id = await made(keys)
    statements = []
    db._writer._connection.exec_trace = lambda _, sql, __: bool(statements.append(sql)) or True
    for _ in range(1000):
        accepted(keys, key)
        clock.ms += 1
    used = keys.get(key_id)["last_used_at"]
    assert used == "2027-01-15T08:00:00.999Z"
    edit = asyncio.ensure_future(keys.edit(key_id, KeyFields(enabled=False)))
    keys.save_used()
    keys.save_used()
    await edit
    db._writer._connection.exec_trace = None
    assert sum("last_used_at = :at" in sql for sql in statements) == 1
    again = await Keys.open(db, clock, load_pepper(data))
    assert again.get(key_id)["last_used_at"] == used
    assert again.get(key_id)["enabled"] is False


async def test_newest_first(keys, clock):
    for name in ("old", "new"):
        await keys.create(KeyFields(name=name))
        clock.ms += 1
    assert [one["name"] for one in keys.list()] == ["new", "old"]


async def test_nothing_in_the_data_dir_holds_a_key(keys, db, data):
    texts = [(await made(keys))[0] for _ in range(5)]
    await db.close()
    files = b"".join(path.read_bytes() for path in data.path.iterdir())
    for text in texts:
        assert text.encode() not in files
        assert bytes.fromhex(text.removeprefix("tokenhub_")) not in files


def test_the_pepper_is_made_once_and_must_be_whole(data):
    pepper = load_pepper(data)
    assert len(pepper) == 32
    assert load_pepper(data) == pepper
    data.write(".key-pepper", b"abc\n")
    with pytest.raises(StorageRefused, match="damaged"):
        load_pepper(data)


async def test_another_pepper_refuses_all_keys_and_says_so(keys, db, clock, data, caplog):
    key, _ = await made(keys)
    again = await Keys.open(db, clock, b"\0" * 32)
    assert not accepted(again, key)
    assert "rotate each key" in caplog.text


async def test_the_demo_key_reaches_only_the_demo_and_stays(keys, data):
    await keys.ensure_demo_key(data)
    text = data.read(".demo-key").decode().strip()
    grant = accepted(keys, text)
    assert (grant.models, grant.scopes) == (("demo",), {"chat"})
    await keys.ensure_demo_key(data)
    assert data.read(".demo-key").decode().strip() == text
    assert len(keys.list()) == 1


@pytest.mark.parametrize("content", [None, b"", b"tokenhub_stale\n", b"\xff\xfe"])
async def test_a_stale_demo_file_gets_a_new_text_for_the_same_key(keys, data, content):
    await keys.ensure_demo_key(data)
    old = data.read(".demo-key").decode().strip()
    data.remove(".demo-key")
    if content is not None:
        data.write(".demo-key", content)
    await keys.ensure_demo_key(data)
    new = data.read(".demo-key").decode().strip()
    assert new != old
    assert not accepted(keys, old)
    assert accepted(keys, new).models == ("demo",)
    assert len(keys.list()) == 1


async def test_a_deleted_demo_key_is_minted_again(keys, data):
    await keys.ensure_demo_key(data)
    await keys.delete(keys.list()[0]["id"])
    await keys.ensure_demo_key(data)
    assert accepted(keys, data.read(".demo-key").decode().strip())


async def test_a_demo_key_that_was_widened_is_replaced_in_the_file(keys, data):
    await keys.ensure_demo_key(data)
    wide = data.read(".demo-key").decode().strip()
    await keys.edit(keys.list()[0]["id"], KeyFields(models=[]))
    await keys.ensure_demo_key(data)
    text = data.read(".demo-key").decode().strip()
    assert text != wide
    assert accepted(keys, text).models == ("demo",)


async def test_a_demo_key_the_admin_disabled_stays_disabled(keys, data):
    await keys.ensure_demo_key(data)
    await keys.edit(keys.list()[0]["id"], KeyFields(enabled=False))
    await keys.ensure_demo_key(data)
    assert not accepted(keys, data.read(".demo-key").decode().strip())
