"""Who changed what: one hash-chained row per admin action, in the commit of the change itself."""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from tokenhub.core.clock import Clock
    from tokenhub.storage.database import Also, Database, Row, Transaction

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder(order="sorted", decimal_format="number").encode
_START = "0" * 64
_COLUMNS = (
    "seq, at_ms, actor, address, action, resource, outcome, request_id, before, after, previous, "
    "digest"
)
_INSERT = (
    f"INSERT INTO audit_log ({_COLUMNS}) VALUES (:seq, :at_ms, :actor, :address, :action, "  # noqa: S608
    ":resource, :outcome, :request_id, :before, :after, :previous, :digest)"
)
_VERIFY_PAGE = 1000


class Origin(Protocol):
    """Where an action came from: an admin request."""

    id: str
    peer: str


class ChainBreak(msgspec.Struct, frozen=True):
    """The first row that does not fit the chain, and why."""

    seq: int
    reason: str


class Audit:
    """Writes, reads and verifies the audit trail."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    def entry(self, request: Origin, action: str, resource: str) -> Also:
        """A row writer for the change's own transaction: without the row, no change."""
        return _writer(self._row("admin", request.peer, action, resource, request.id))

    def own_entry(self, action: str, resource: str) -> Also:
        """A row writer as of ``entry``, for what the server changes by itself."""
        return _writer(self._row("tokenhub", "", action, resource, ""))

    async def noted(self, request: Origin, action: str, resource: str, outcome: str) -> None:
        """A row as of ``note``, durable when this returns: what must not go unseen waits for it.

        Raises:
            StorageFailed, ConstraintViolated: there is no row, so it must not happen either.
        """
        row = self._row("admin", request.peer, action, resource, request.id)
        await self._db.write(lambda tx: _append(tx, row | {"outcome": outcome}))

    def note(self, request: Origin, action: str, resource: str, outcome: str) -> None:
        """A row for what has been refused anyway: a failed login. Does not wait."""
        row = self._row("admin", request.peer, action, resource, request.id)
        self._soon(row | {"outcome": outcome})

    def own(self, action: str, resource: str, reason: str) -> None:
        """A row for what the server did by itself: auto-lock, an unlock at start."""
        self._soon(
            self._row("tokenhub", "", action, resource, "") | {"after": _text({"reason": reason})}
        )

    async def list(self, limit: int, offset: int = 0, **equal: str) -> list[dict[str, Any]]:
        """Rows, newest first; ``equal`` narrows by action, resource or outcome."""
        where = " AND ".join(f"{name} = :{name}" for name in sorted(equal)) or "1 = 1"
        rows = await self._db.read(
            f"SELECT {_COLUMNS} FROM audit_log WHERE {where} "  # noqa: S608
            "ORDER BY seq DESC LIMIT :limit OFFSET :offset",
            {"limit": limit, "offset": offset, **equal},
        )
        return [_shown(row) for row in rows]

    async def verify(self) -> tuple[int, ChainBreak | None]:
        """How many rows there are, and the first that breaks the chain, None if none does."""
        previous, seen, last = _START, 0, 0
        while True:
            rows = await self._db.read(
                f"SELECT {_COLUMNS} FROM audit_log WHERE seq > :last "  # noqa: S608
                "ORDER BY seq LIMIT :page",
                {"last": last, "page": _VERIFY_PAGE},
            )
            if not rows:
                return seen, None
            for row in rows:
                if row[0] != last + 1:
                    return seen, ChainBreak(row[0], f"row {last + 1} is missing")
                if row[10] != previous:
                    return seen, ChainBreak(row[0], "it does not follow the row before it")
                if _digest(dict(zip(_NAMES, row, strict=True))) != row[11]:
                    return seen, ChainBreak(row[0], "its content was changed")
                previous, last, seen = row[11], row[0], seen + 1

    def _row(
        self, actor: str, address: str, action: str, resource: str, request_id: str
    ) -> dict[str, Any]:
        return {
            "at_ms": self._clock.now_ms(),
            "actor": actor,
            "address": address,
            "action": action,
            "resource": resource,
            "outcome": "ok",
            "request_id": request_id,
            "before": None,
            "after": None,
        }

    def _soon(self, row: dict[str, Any]) -> None:
        self._db.write_soon(lambda tx: _append(tx, row))


def _writer(row: dict[str, Any]) -> Also:
    def write(tx: Transaction, before: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
        _append(tx, row | {"before": _text(before), "after": _text(after)})

    return write


def _append(tx: Transaction, row: dict[str, Any]) -> None:
    last = tx.execute("SELECT seq, digest FROM audit_log ORDER BY seq DESC LIMIT 1")
    seq, previous = last[0] if last else (0, _START)
    full = row | {"seq": seq + 1, "previous": previous}
    tx.execute(_INSERT, full | {"digest": _digest(full)})


_NAMES = tuple(name.strip() for name in _COLUMNS.split(","))


def _digest(row: dict[str, Any]) -> str:
    covered = [row[name] for name in _NAMES if name != "digest"]
    return hashlib.sha256(_encode(covered)).hexdigest()


def _text(value: dict[str, Any] | None) -> str | None:
    return None if value is None else _encode(value).decode()


def _shown(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = dict(zip(_NAMES, row, strict=True))
    at = datetime.fromtimestamp(found["at_ms"] / 1000, UTC)
    shown = {
        "id": found["seq"],
        "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    for name in ("actor", "address", "action", "resource", "outcome", "request_id"):
        shown[name] = found[name]
    for side in ("before", "after"):
        shown[side] = None if found[side] is None else msgspec.Raw(found[side].encode())
    return shown | {"digest": found["digest"]}
