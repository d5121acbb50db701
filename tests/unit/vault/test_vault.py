"""The vault: locked and unlocked, the right password and the others, what an intruder changes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
from base64 import b64encode

import pytest

from tokenhub.core.errors import (
    Conflict,
    HubError,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unauthorized,
    VaultLocked,
)
from tokenhub.storage.sqlite import SqliteDatabase
from tokenhub.vault import session
from tokenhub.vault.changes import Secret
from tokenhub.vault.envelope import FLOOR, KdfParams, VaultTampered
from tokenhub.vault.session import unwrap
from tokenhub.vault.vault import Vault

PASSWORD = b"correct horse"
ORIGIN = "https://api.example.com:443"
HALF_HOUR = 1800


@pytest.fixture
async def vault(open_vault):
    made = await open_vault()
    await made.unlock(PASSWORD)
    return made


async def put_key(vault, value=b"sk-1", name="provider:p:api_key", **more):
    await vault.put(name, value, **({"kind": "provider", "owner": "p", "origin": ORIGIN} | more))


def get_key(vault, name="provider:p:api_key", **more):
    return vault.get(name, **({"kind": "provider", "owner": "p", "origin": ORIGIN} | more))


async def stored(db):
    header = await db.read("SELECT * FROM vault_header")
    return header, await db.read("SELECT * FROM vault_secrets ORDER BY name")


async def test_the_first_unlock_creates_the_vault(open_vault):
    vault = await open_vault()
    assert (vault.initialized, vault.locked) == (False, True)
    await vault.unlock(PASSWORD)
    assert (vault.initialized, vault.locked) == (True, False)


async def test_a_secret_comes_back_also_after_a_restart(vault, open_vault):
    await put_key(vault)
    assert get_key(vault) == b"sk-1"
    again = await open_vault()
    assert again.locked
    with pytest.raises(VaultLocked):
        get_key(again)
    await again.unlock(PASSWORD)
    assert get_key(again) == b"sk-1"


async def test_locked_means_nothing_is_read_listed_or_stored(vault):
    await put_key(vault)
    assert vault.lock()
    assert not vault.lock()
    for refused in (
        lambda: get_key(vault),
        lambda: vault.names("provider"),
        lambda: vault.changes().put("n", b"v", kind="secret"),
    ):
        with pytest.raises(VaultLocked):
            refused()
    with pytest.raises(VaultLocked):
        await put_key(vault)
    with pytest.raises(VaultLocked):
        await vault.delete("provider:p:api_key")


@pytest.mark.parametrize("guess", [b"correct horsf", b"correct horse ", b"x" * 1024])
async def test_a_wrong_password_changes_nothing(vault, db, guess):
    await put_key(vault)
    before = await stored(db)
    vault.lock()
    with pytest.raises(Unauthorized) as caught:
        await vault.unlock(guess)
    assert caught.value.code == "wrong_password"
    assert vault.locked
    assert await stored(db) == before
    await vault.unlock(PASSWORD)
    assert get_key(vault) == b"sk-1"


@pytest.mark.parametrize("short", [b"", b"1234567"])
async def test_a_short_password_neither_creates_nor_unlocks(open_vault, short):
    vault = await open_vault()
    with pytest.raises(Unauthorized):
        await vault.unlock(short)
    assert not vault.initialized
    with pytest.raises(InvalidRequest):
        await vault.unlock(b"x" * 1025)


async def test_unlocking_an_unlocked_vault_only_verifies(vault):
    await put_key(vault)
    with pytest.raises(Unauthorized):
        await vault.unlock(b"wrong password")
    assert get_key(vault) == b"sk-1"
    await vault.unlock(PASSWORD)
    assert get_key(vault) == b"sk-1"


async def test_a_credential_is_bound_to_its_origin(vault):
    await put_key(vault)
    with pytest.raises(Conflict) as caught:
        get_key(vault, origin="https://evil.example:443")
    assert caught.value.code == "credential_rebind_required"


@pytest.mark.parametrize("other", [{"kind": "secret"}, {"owner": "q"}, {"name": "nothing"}])
async def test_another_kind_owner_or_name_is_not_found(vault, other):
    await put_key(vault)
    with pytest.raises(NotFound):
        get_key(vault, **other)


async def test_names_are_listed_by_kind_in_order(vault):
    for name in ("b", "a"):
        await vault.put(f"secret:{name}", b"v", kind="secret")
    await put_key(vault)
    assert vault.names("secret") == ["secret:a", "secret:b"]


async def test_delete_and_put_again(vault):
    await put_key(vault)
    await vault.delete("provider:p:api_key")
    with pytest.raises(NotFound):
        get_key(vault)
    with pytest.raises(NotFound):
        await vault.delete("provider:p:api_key")
    await put_key(vault, b"sk-2")
    assert get_key(vault) == b"sk-2"


@pytest.mark.parametrize(
    ("name", "value"),
    [("", b"v"), ("n" * 257, b"v"), ("a\nb", b"v"), ("n", b""), ("n", b"x" * 65537)],
)
async def test_bad_names_and_values_are_refused(vault, name, value):
    with pytest.raises(InvalidRequest):
        await vault.put(name, value, kind="secret")


async def test_rotation_changes_the_password_and_nothing_else(vault, open_vault):
    await put_key(vault)
    await vault.rotate(PASSWORD, b"new password")
    assert get_key(vault) == b"sk-1"
    again = await open_vault()
    with pytest.raises(Unauthorized):
        await again.unlock(PASSWORD)
    await again.unlock(b"new password")
    assert get_key(again) == b"sk-1"


async def test_rotation_of_a_locked_vault_leaves_it_locked(vault):
    await put_key(vault)
    vault.lock()
    await vault.rotate(PASSWORD, b"new password")
    assert vault.locked
    await vault.unlock(b"new password")
    assert get_key(vault) == b"sk-1"


async def test_rotation_refuses_what_it_must(vault, db, open_vault):
    before = await stored(db)
    with pytest.raises(Unauthorized):
        await vault.rotate(b"not the one", b"new password")
    with pytest.raises(InvalidRequest):
        await vault.rotate(PASSWORD, b"short")
    with pytest.raises(InvalidRequest):
        await vault.rotate(PASSWORD, PASSWORD)
    assert await stored(db) == before
    await db.write(lambda tx: tx.execute("DELETE FROM vault_header"))
    with pytest.raises(Conflict):
        await (await open_vault()).rotate(PASSWORD, b"new password")


async def test_a_rotation_that_fails_leaves_the_old_password(vault, db, open_vault):
    def refuse(tx, before, after):
        raise RuntimeError("no audit row, no change")

    before = await stored(db)
    with pytest.raises(RuntimeError):
        await vault.rotate(PASSWORD, b"new password", also=refuse)
    assert await stored(db) == before
    await (await open_vault()).unlock(PASSWORD)


async def test_it_locks_itself_when_nobody_uses_it(vault, clock):
    reasons = []
    vault.on_change.append(lambda state, reason: reasons.append((state, reason)))
    await put_key(vault)
    clock.seconds += HALF_HOUR - 1
    assert vault.check_idle() == pytest.approx(1)
    get_key(vault)
    clock.seconds += HALF_HOUR - 1
    assert vault.check_idle() == pytest.approx(1)
    clock.seconds += 1
    assert vault.check_idle() == HALF_HOUR
    assert vault.locked
    assert reasons == [("locked", "idle")]


async def test_each_change_is_told_once_and_nothing_else_is(open_vault):
    vault, told = await open_vault(), []
    vault.on_change.append(lambda state, reason: told.append((state, reason)))
    assert not vault.lock()
    await vault.unlock(PASSWORD)
    await vault.unlock(PASSWORD)
    with pytest.raises(Unauthorized):
        await vault.rotate(b"a wrong password", b"new password")
    await vault.rotate(PASSWORD, b"new password")
    vault.lock()
    with pytest.raises(Unauthorized):
        await vault.unlock(PASSWORD)
    await vault.rotate(b"new password", PASSWORD)
    await vault.unlock(PASSWORD)
    assert told == [
        ("unlocked", "created"),
        ("unlocked", "rotated"),
        ("locked", "admin"),
        ("locked", "rotated"),
        ("unlocked", "admin"),
    ]


async def test_the_idle_time_holds_even_when_the_timer_is_late(vault, clock):
    await put_key(vault)
    clock.seconds += HALF_HOUR
    with pytest.raises(VaultLocked):
        get_key(vault)


async def test_without_auto_lock_it_stays_open(open_vault, clock):
    vault = await open_vault(auto_lock_ms=0)
    await vault.unlock(PASSWORD)
    clock.seconds += 10**9
    assert vault.check_idle() == math.inf
    assert not vault.locked


async def test_lock_overwrites_the_key_and_drops_the_cipher(vault):
    session = vault._session
    assert any(session._dek)
    vault.lock("admin")
    assert not any(session._dek)
    assert not hasattr(session, "cipher")


async def test_a_disabled_vault_is_never_locked_and_has_nothing(open_vault):
    vault = await open_vault(enabled=False)
    assert not vault.locked
    for refused in (
        lambda: vault.unlock(PASSWORD),
        lambda: vault.put("n", b"v", kind="secret"),
    ):
        with pytest.raises(Conflict) as caught:
            await refused()
        assert caught.value.code == "vault_disabled"


async def test_changes_go_with_the_transaction_of_the_caller(vault, db):
    def failing(tx):
        changes.apply(tx)
        raise ValueError("the provider's row is bad")

    with vault.changes() as changes:
        changes.put("n", b"v", kind="secret")
        with pytest.raises(ValueError):
            await db.write(failing)
    with pytest.raises(NotFound):
        vault.get("n", kind="secret")
    with vault.changes() as changes:
        changes.put("n", b"v", kind="secret")
        await db.write(changes.apply)
    assert vault.get("n", kind="secret") == b"v"


async def test_changes_survive_a_caller_that_is_cancelled(vault, db):
    async def save():
        with vault.changes() as changes:
            changes.put("n", b"v", kind="secret")
            await db.write(changes.apply)

    task = asyncio.ensure_future(save())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await db.write(lambda tx: None)
    assert vault.get("n", kind="secret") == b"v"


async def test_a_put_that_meets_a_lock_fails_whole(vault, db):
    with vault.changes() as changes:
        changes.put("n", b"v", kind="secret")
        vault.lock()
        with pytest.raises(VaultLocked):
            await db.write(changes.apply)
    await vault.unlock(PASSWORD)
    assert vault.names("secret") == []


async def test_a_locked_vault_can_forget_a_deleted_provider(vault, db):
    await put_key(vault)
    [row] = (await stored(db))[1]
    vault.lock()
    with vault.changes() as changes:
        changes.delete("provider:p:api_key")
        changes.delete("not there", missing_ok=True)
        with pytest.raises(NotFound):
            changes.delete("not there")
        await db.write(changes.apply)
    await vault.unlock(PASSWORD)
    with pytest.raises(NotFound):
        get_key(vault)
    vault.lock()
    await put_back(db, row)
    await vault.unlock(PASSWORD)
    with pytest.raises(VaultTampered):
        get_key(vault)


async def test_also_sees_before_and_after_without_the_secret(vault):
    seen = []
    also = lambda tx, before, after: seen.append((before, after))  # noqa: E731
    await put_key(vault, b"top-secret", also=also)
    await put_key(vault, b"top-secret", also=also)
    await vault.delete("provider:p:api_key", also=also)
    assert [(bool(b), bool(a)) for b, a in seen] == [(False, True), (True, True), (True, False)]
    assert "top-secret" not in repr(seen)


async def test_an_unlock_without_its_audit_row_does_not_unlock(vault):
    def refuse(tx, before, after):
        raise RuntimeError("no audit")

    vault.lock()
    with pytest.raises(RuntimeError):
        await vault.unlock(PASSWORD, also=refuse)
    assert vault.locked


async def put_back(db, row):
    names = ("name", "kind", "owner", "origin", "version", "sealed", "updated_at")
    marks = ", ".join(f":{name}" for name in names)
    sql = f"INSERT OR REPLACE INTO vault_secrets VALUES ({marks})"
    await db.write(lambda tx: tx.execute(sql, dict(zip(names, row, strict=True))))


async def test_every_swap_of_two_rows_is_refused(vault, db):
    for n in range(4):
        await vault.put(f"secret:{n}", b"v%d" % n, kind="secret")
    rows = (await stored(db))[1]
    for one, two in itertools.permutations(rows, 2):
        vault.lock()
        for column in (5, slice(4, 6)):  # the ciphertext; version and ciphertext
            forged = list(one)
            forged[column] = two[column]
            await put_back(db, tuple(forged))
            await vault.unlock(PASSWORD)
            assert vault.damaged == [one[0]]
            with pytest.raises(VaultTampered):
                vault.get(one[0], kind="secret")
            assert vault.get(two[0], kind="secret") == b"v" + two[0][-1:].encode()
            vault.lock()
        await put_back(db, one)


async def test_every_old_row_put_back_is_refused(vault, db):
    history = []
    for n in range(3):
        await put_key(vault, b"sk-%d" % n)
        history.append((await stored(db))[1][0])
    await vault.delete("provider:p:api_key")
    for old in history:
        vault.lock()
        await put_back(db, old)
        await vault.unlock(PASSWORD)
        with pytest.raises(VaultTampered):
            get_key(vault)
    await put_key(vault, b"healed")
    assert get_key(vault) == b"healed"
    assert vault.damaged == []


@pytest.mark.parametrize("column", ["kind", "owner", "origin", "version", "sealed"])
async def test_a_change_of_any_column_is_refused(vault, db, column, caplog):
    await put_key(vault)
    vault.lock()
    change = "version + 1" if column == "version" else f"'x' || {column}"
    await db.write(lambda tx: tx.execute(f"UPDATE vault_secrets SET {column} = {change}"))
    with caplog.at_level(logging.ERROR):
        await vault.unlock(PASSWORD)
    assert "provider:p:api_key" in caplog.text
    [(kind, owner, origin)] = await db.read("SELECT kind, owner, origin FROM vault_secrets")
    with pytest.raises(VaultTampered):
        get_key(vault, kind=kind, owner=owner, origin=origin)


async def test_a_changed_header_or_manifest_is_refused(vault, db):
    await put_key(vault)
    vault.lock()
    [(_, header, manifest)] = await db.read("SELECT * FROM vault_header")
    set_both = "UPDATE vault_header SET header = ?, manifest = ?"
    other_end = "1" if header[-3] == "0" else "0"
    other_start = "B" if manifest[0] == "A" else "A"
    for bad in (
        (header[:-3] + other_end + '"}', manifest),
        (header, other_start + manifest[1:]),
        (header, ""),
    ):
        await db.write(lambda tx, bad=bad: tx.execute(set_both, bad))
        with pytest.raises(VaultTampered):
            await vault.unlock(PASSWORD)
        assert vault.locked
    await db.write(lambda tx: tx.execute(set_both, (header, manifest)))
    await vault.unlock(PASSWORD)
    assert get_key(vault) == b"sk-1"


async def test_an_old_header_does_not_bring_the_old_password_back(vault, db):
    [(_, old, _)] = await db.read("SELECT * FROM vault_header")
    await vault.rotate(PASSWORD, b"new password")
    vault.lock()
    await db.write(lambda tx: tx.execute("UPDATE vault_header SET header = ?", (old,)))
    with pytest.raises(VaultTampered, match="old one"):
        await vault.unlock(PASSWORD)
    with pytest.raises(VaultTampered):
        await vault.rotate(PASSWORD, b"third password")


async def test_a_lost_header_is_told_from_a_new_vault(vault, db):
    vault.lock()
    await db.write(lambda tx: tx.execute("DELETE FROM vault_header"))
    with pytest.raises(VaultTampered, match="gone"):
        await vault.unlock(PASSWORD)


async def test_the_floor_is_on_by_default(db, clock):
    quick = KdfParams(memory_kib=8, iterations=1, lanes=1)
    with pytest.raises(ValueError):
        await Vault.open(db, clock, kdf=quick)
    await (await Vault.open(db, clock, kdf=quick, floor=quick)).unlock(PASSWORD)
    strict = await Vault.open(db, clock)
    assert strict._floor == strict._kdf == FLOOR
    with pytest.raises(VaultTampered, match="weaker"):
        await strict.unlock(PASSWORD)


async def test_guesses_become_slow_after_the_third_and_the_right_one_still_works(vault, clock):
    vault.lock()
    waits = []
    for guess in range(12):
        with pytest.raises(Unauthorized):
            await vault.unlock(b"guess %02d" % guess)
        if guess >= 2:
            with pytest.raises(RateLimited) as caught:
                await vault.unlock(b"too early")
            assert caught.value.code == "vault_throttled"
            waits.append(int(dict(caught.value.headers)[b"retry-after"]))
            clock.seconds += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    await vault.unlock(PASSWORD)
    assert not vault.locked
    vault.lock()
    with pytest.raises(Unauthorized):  # counted afresh
        await vault.unlock(b"another guess")
    await vault.unlock(PASSWORD)


async def test_the_right_password_has_to_wait_too_or_the_wait_would_tell(vault):
    for _ in range(3):
        with pytest.raises(Unauthorized):
            await vault.unlock(b"wrong password")
    with pytest.raises(RateLimited):
        await vault.unlock(PASSWORD)
    with pytest.raises(RateLimited):
        await vault.rotate(PASSWORD, b"new password")


async def test_two_hundred_unlocks_at_once_derive_one_at_a_time(vault, monkeypatch):
    running, peak, total, lock = 0, 0, 0, threading.Lock()

    def counted(header, password):
        nonlocal running, peak, total
        with lock:
            running += 1
            total += 1
            peak = max(peak, running)
        try:
            return unwrap(header, password)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(session, "unwrap", counted)
    vault.lock()
    results = await asyncio.gather(
        *(vault.unlock(b"wrong password") for _ in range(200)), return_exceptions=True
    )
    assert peak == 1
    assert total == 3  # the fourth and fifth waited in the queue and met the brake
    assert sum(isinstance(r, RateLimited) for r in results) == 197


async def test_a_cancelled_guess_is_counted_and_leaves_the_queue(vault):
    vault.lock()
    for _ in range(3):
        task = asyncio.ensure_future(vault.unlock(b"wrong password"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    assert vault._guesses._inside == 0
    with pytest.raises(RateLimited):
        await vault.unlock(PASSWORD)


async def test_full_price_takes_its_time_and_leaves_the_loop_free(db, clock):
    loop = asyncio.get_running_loop()
    vault = await Vault.open(db, clock)
    ticks = []

    async def tick():
        while True:
            ticks.append(loop.time())
            await asyncio.sleep(0.005)

    ticker = asyncio.ensure_future(tick())
    start = loop.time()
    await vault.unlock(PASSWORD)
    took = loop.time() - start
    ticker.cancel()
    assert took > 0.04
    assert len(ticks) > 3


async def test_no_secret_in_the_file_in_errors_or_in_repr(vault, db, tmp_path):
    canaries = [b"canary-provider-key", b"canary-generic-secret", PASSWORD, b"canary-new-password"]
    await put_key(vault, canaries[0])
    await vault.put("secret:s", canaries[1], kind="secret")
    await vault.rotate(PASSWORD, canaries[3])
    texts = [repr(vault), repr(Secret(canaries[0])), str(Secret(canaries[0]))]
    for refused in (
        lambda: get_key(vault, origin="https://other:1"),
        lambda: vault.get("secret:s", kind="provider"),
    ):
        with pytest.raises(HubError) as caught:
            refused()
        texts.append(repr(caught.value) + repr(vars(caught.value)))
    await db.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir()) + "".join(texts).encode()
    for canary in canaries:
        for form in (canary, canary.hex().encode(), b64encode(canary)[:-4], utf_16(canary)):
            assert form not in kept


def utf_16(text: bytes) -> bytes:
    return text.decode().encode("utf-16-le")


async def test_reads_from_a_reopened_database(vault, db, clock, tmp_path):
    await put_key(vault)
    await db.close()
    reopened = await SqliteDatabase.open(tmp_path / "vault.sqlite", clock)
    quick = KdfParams(memory_kib=8, iterations=1, lanes=1)
    again = await Vault.open(reopened, clock, kdf=quick, floor=quick)
    assert again.initialized
    await again.unlock(PASSWORD)
    assert get_key(again) == b"sk-1"
    await reopened.close()
