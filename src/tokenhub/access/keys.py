"""API keys: shown once, stored as a keyed hash, found by one look into a dict.

    presented key ──HMAC-SHA256(pepper)──► digest ──dict──► Grant

Keys carry 256 random bits, so a fast keyed hash is enough: there is nothing to guess, and the hash
is worth nothing without the pepper, which is a file of the data directory and not in the database.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.access.key_fields import KeyFields, checked
from tokenhub.access.key_rows import (
    INSERT,
    SELECT,
    UPDATE,
    Grant,
    KeyRow,
    from_columns,
    to_columns,
)
from tokenhub.core.errors import InvalidRequest, NotFound, Unauthorized
from tokenhub.storage.database import StorageRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Also, Database, Transaction
    from tokenhub.storage.files import DataDir

__all__ = ["Grant", "KeyRow", "Keys", "load_pepper"]

PREFIX = "tokenhub_"
KEY_BYTES = 32
KEY_LENGTH = len(PREFIX) + 2 * KEY_BYTES
SHOWN_LENGTH = 17

PEPPER_FILE = ".key-pepper"
DEMO_FILE = ".demo-key"
DEMO_MODELS = ("demo",)

_BEARER = b"bearer"
_DEMO_ID = "demo_key_id"
_PEPPER_MARK = "key_pepper_mark"

_log = logging.getLogger(__name__)


_USED = """
UPDATE api_keys SET last_used_at = :at
WHERE id = :id AND (last_used_at IS NULL OR last_used_at < :at)
"""
_SET_META = """
INSERT INTO meta (name, value) VALUES (:name, :value)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""


class Keys:
    """All API keys, in the database and in memory. Make it with ``open``.

    A change takes effect with the next ``authenticate`` after its commit.
    """

    def __init__(self, db: Database, clock: Clock, pepper: bytes) -> None:
        self._db = db
        self._clock = clock
        self._pepper = pepper
        # Copied for each key: a new one costs four times as much.
        self._mac = hmac.new(pepper, digestmod="sha256")
        self._rows: dict[str, KeyRow] = {}
        self._grants: dict[bytes, Grant] = {}  # by digest
        self._current: dict[str, Grant] = {}  # the same by key id
        self._revision = 0
        self._used: dict[str, int] = {}
        self._unsaved: set[str] = set()

    @classmethod
    async def open(cls, db: Database, clock: Clock, pepper: bytes) -> Keys:
        """All keys as stored; ``pepper`` is that of ``load_pepper``."""
        keys = cls(db, clock, pepper)
        for row in await db.read(SELECT):
            keys._publish(from_columns(row))
        await keys._check_pepper()
        return keys

    def authenticate(self, authorization: bytes | None, x_api_key: bytes | None) -> Grant:
        """The grant of a presented key: ``Authorization: Bearer …`` or ``X-Api-Key: …``.

        Raises:
            Unauthorized: no key, or one that is unknown, disabled, expired or overdue for rotation
                (the caller is not told which).
            InvalidRequest: the two headers hold different keys.
        """
        presented = x_api_key
        if authorization is not None:
            scheme, _, token = authorization.partition(b" ")
            if scheme.lower() == _BEARER:
                token = token.strip()
                if x_api_key is not None and x_api_key.strip() != token:
                    raise InvalidRequest(
                        "`Authorization` and `X-Api-Key` hold different keys.",
                        hint="Send one of the two.",
                    )
                presented = token
        if presented is None:
            raise Unauthorized(
                "The API key is missing.", hint="Send it as `Authorization: Bearer tokenhub_…`."
            )
        grant = self._grants.get(self._digest(presented.strip()))
        if grant is None or not self.renew(grant, self._clock.now_ms()):
            raise _refused()
        return grant

    def renew(self, grant: Grant, now: int) -> bool:
        """Whether a grant from ``authenticate`` holds for one more use, which is noted.

        ``now`` in Unix milliseconds.

        False when the key was changed, rotated or deleted since, or its time is over.
        """
        key_id = grant.key_id
        if self._current.get(key_id) is not grant or not grant.enabled:
            return False
        if (grant.expires_at is not None and now >= grant.expires_at) or (
            grant.rotate_by is not None and now >= grant.rotate_by
        ):
            return False
        self._used[key_id] = now
        self._unsaved.add(key_id)
        return True

    def list(self) -> list[dict[str, Any]]:
        """All keys as the admin sees them, newest first."""
        rows = sorted(self._rows.values(), key=lambda row: (-row.created_at, row.id))
        return [self._public(row) for row in rows]

    def get(self, key_id: str) -> dict[str, Any]:
        """One key as the admin sees it.

        Raises:
            NotFound: no such key.
        """
        row = self._rows.get(key_id)
        if row is None:
            raise _unknown(key_id)
        return self._public(row)

    def grant_of(self, key_id: str) -> Grant | None:
        """What a key permits as it stands now, by its id; None when it is gone."""
        return self._current.get(key_id)

    def name_of(self, key_id: str) -> str:
        """The name of a key, "" when it is gone."""
        row = self._rows.get(key_id)
        return "" if row is None else row.name

    async def create(self, fields: KeyFields, *, also: Also | None = None) -> tuple[str, KeyRow]:
        """Make a key; its text is returned here and never again.

        Raises:
            InvalidRequest: naming the field.
        """
        now = self._clock.now_ms()
        columns = checked(fields, now)
        if "name" not in columns:
            raise InvalidRequest(
                "The field `name` is missing.", param="name", code="missing_required_parameter"
            )
        key = _new_key()
        row = KeyRow(
            id=secrets.token_hex(8),
            key_hash=self._digest(key.encode()).hex(),
            key_prefix=key[:SHOWN_LENGTH],
            created_at=now,
            updated_at=now,
            rotated_at=now,
            **columns,
        )

        def insert(tx: Transaction) -> KeyRow:
            tx.execute(INSERT, to_columns(row))
            if also is not None:
                also(tx, None, row.public(now, None))
            tx.on_commit(lambda: self._publish(row))
            return row

        return key, await self._db.write(insert)

    async def edit(self, key_id: str, fields: KeyFields, *, also: Also | None = None) -> KeyRow:
        """Change the fields that are given.

        Raises:
            InvalidRequest: naming the field.
            NotFound: no such key.
        """
        return await self._change(key_id, checked(fields, self._clock.now_ms()), also)

    async def rotate(self, key_id: str, *, also: Also | None = None) -> tuple[str, KeyRow]:
        """A new text for a key; the old one is dead when this returns.

        Raises:
            NotFound: no such key.
        """
        key = _new_key()
        columns = {
            "key_hash": self._digest(key.encode()).hex(),
            "key_prefix": key[:SHOWN_LENGTH],
            "rotated_at": self._clock.now_ms(),
        }
        return key, await self._change(key_id, columns, also)

    def paid(self, key_id: str) -> Callable[[Transaction], KeyRow]:
        """For the transaction of ``Bookkeeper.mark_paid``: ``budget_reset_at`` becomes now.

        It raises ``NotFound`` when there is no such key.
        """
        return self._update(key_id, {"budget_reset_at": self._clock.now_ms()})

    async def delete(self, key_id: str, *, also: Also | None = None) -> None:
        """Delete a key; what it spent stays in the books.

        Raises:
            NotFound: no such key.
        """
        now = self._clock.now_ms()

        def delete(tx: Transaction) -> None:
            before = _stored(tx, key_id)
            tx.execute("DELETE FROM api_keys WHERE id = :id", {"id": key_id})
            if also is not None:
                also(tx, before.public(now, before.last_used_at), None)
            tx.on_commit(lambda: self._withdraw(key_id))

        await self._db.write(delete)

    def save_used(self, done: Callable[[BaseException | None], None] | None = None) -> None:
        """Queue the last-used times noted since the last call; the application calls it by a timer.

        One statement for all keys that changes no other column.
        """
        if not self._unsaved:
            return
        rows = [{"id": key_id, "at": self._used[key_id]} for key_id in sorted(self._unsaved)]
        self._unsaved.clear()
        self._db.write_soon(lambda tx: tx.executemany(_USED, rows), done)

    async def ensure_demo_key(self, data_dir: DataDir) -> None:
        """Have a key that reaches only the demo model, its text in ``.demo-key``.

        The file's key is kept if the store knows it as such (even disabled: that was the admin's
        wish); else the earlier demo key gets a new text, or a new one is made.
        """
        content = data_dir.read(DEMO_FILE)
        if content is not None:
            found = self._grants.get(self._digest(content.strip()))
            if found is not None and found.models == DEMO_MODELS:
                return
        earlier = await self._meta(_DEMO_ID)
        row = self._rows.get(earlier) if earlier is not None else None
        if row is not None and row.models == DEMO_MODELS:
            key, _ = await self.rotate(row.id)
        else:
            fields = KeyFields(name="demo", scopes=["chat"], models=list(DEMO_MODELS))
            key, _ = await self.create(fields, also=_note_demo_id)
        data_dir.write(DEMO_FILE, key.encode() + b"\n")

    async def _change(self, key_id: str, columns: dict[str, Any], also: Also | None) -> KeyRow:
        return await self._db.write(self._update(key_id, columns, also))

    def _update(
        self, key_id: str, columns: dict[str, Any], also: Also | None = None
    ) -> Callable[[Transaction], KeyRow]:
        now = self._clock.now_ms()

        def update(tx: Transaction) -> KeyRow:
            before = _stored(tx, key_id)
            after = msgspec.structs.replace(before, **columns, updated_at=now)
            tx.execute(UPDATE, to_columns(after))
            if also is not None:
                used = before.last_used_at
                also(tx, before.public(now, used), after.public(now, used))
            tx.on_commit(lambda: self._publish(after))
            return after

        return update

    def _publish(self, row: KeyRow) -> None:
        self._withdraw_digest(row.id)
        self._rows[row.id] = row
        self._revision += 1
        grant = self._current[row.id] = row.grant(self._revision)
        self._grants[bytes.fromhex(row.key_hash)] = grant

    def _withdraw(self, key_id: str) -> None:
        self._withdraw_digest(key_id)
        self._rows.pop(key_id, None)
        self._used.pop(key_id, None)
        self._unsaved.discard(key_id)

    def _withdraw_digest(self, key_id: str) -> None:
        if (old := self._rows.get(key_id)) is not None:
            self._grants.pop(bytes.fromhex(old.key_hash), None)
            self._current.pop(key_id, None)

    def _public(self, row: KeyRow) -> dict[str, Any]:
        return row.public(self._clock.now_ms(), self._used.get(row.id, row.last_used_at))

    def _digest(self, key: bytes) -> bytes:
        mac = self._mac.copy()
        mac.update(key)
        return mac.digest()

    async def _check_pepper(self) -> None:
        mark = hmac.digest(self._pepper, b"tokenhub key pepper", "sha256").hex()
        stored = await self._meta(_PEPPER_MARK)
        if stored == mark:
            return
        if stored is not None and self._rows:
            _log.error(
                "The file %s is not the one the API keys were made with: all of them are refused. "
                "Restore it from a backup and restart, or rotate each key.",
                PEPPER_FILE,
            )
        entry = {"name": _PEPPER_MARK, "value": mark}
        await self._db.write(lambda tx: tx.execute(_SET_META, entry))

    async def _meta(self, name: str) -> str | None:
        found = await self._db.read("SELECT value FROM meta WHERE name = :name", {"name": name})
        return found[0][0] if found else None


def load_pepper(data_dir: DataDir) -> bytes:
    """The secret that keys are hashed with, made at the first start.

    Raises:
        StorageRefused: the file is damaged.
    """
    text = data_dir.read(PEPPER_FILE)
    if text is None:
        text = secrets.token_hex(KEY_BYTES).encode()
        data_dir.write(PEPPER_FILE, text + b"\n")
    try:
        pepper = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        pepper = b""
    if len(pepper) != KEY_BYTES:
        raise StorageRefused(
            f"{data_dir.path / PEPPER_FILE} is damaged: it must hold {2 * KEY_BYTES} hex digits. "
            "Restore it from a backup; without it no API key works. If there is none, remove it "
            "and rotate each key."
        )
    return pepper


def _new_key() -> str:
    return PREFIX + secrets.token_hex(KEY_BYTES)


def _note_demo_id(tx: Transaction, _: object, after: dict[str, Any] | None) -> None:
    assert after is not None
    tx.execute(_SET_META, {"name": _DEMO_ID, "value": after["id"]})


def _stored(tx: Transaction, key_id: str) -> KeyRow:
    found = tx.execute(SELECT + " WHERE id = :id", {"id": key_id})
    if not found:
        raise _unknown(key_id)
    return from_columns(found[0])


def _refused() -> Unauthorized:
    return Unauthorized("The API key is not valid.", hint="`tokenhubctl apikey list` shows keys.")


def _unknown(key_id: str) -> NotFound:
    shown = key_id[:64] if key_id.isprintable() else "with that id"
    return NotFound(f"There is no API key `{shown}`.", hint="`tokenhubctl apikey list` shows ids.")
