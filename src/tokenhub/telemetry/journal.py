"""The request log: one row per request, written in batches off the hot path.

What must not be lost, money, stands in the ledger. So the queue here is bounded, and what does
not fit is dropped, counted and shown.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec.structs import astuple

from tokenhub.core.decision import Attempt
from tokenhub.core.errors import NotFound
from tokenhub.core.losses import Losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.storage.database import Database, Row, Transaction

MOST_PENDING = 20_000
FLUSH_S = 0.02  # more at once keeps the others from the writer, and from the core, for longer
PIECE = 64  # rows written at once: some 0.3 ms, for which others wait
PRUNE_SLICE = 2_000
_SLICE = 20  # rows shown before others get their turn on the loop: about 0.2 ms

_NAMES = (
    "seq", "request_id", "client_id", "session", "at_ms", "endpoint", "key_id", "asked",
    "model_id", "provider_id", "mode", "alias", "reason", "stream", "status", "error_class",
    "error", "finish_reason", "latency_ms", "ttft_ms", "prompt", "completion", "cached_read",
    "cached_write", "reasoning", "counted_by", "cost", "price_source", "price_version",
    "attempt_count", "attempts",
)  # fmt: skip
_COLUMNS = ", ".join(_NAMES)
# Without the columns' names: the text is looked up by its hash at every step.
_INSERT = f"INSERT INTO request_log VALUES ({','.join('?' * len(_NAMES))})"  # noqa: S608
_ONE = f"SELECT {_COLUMNS} FROM request_log WHERE request_id = :id ORDER BY seq DESC LIMIT 1"  # noqa: S608
_PRUNE = """
DELETE FROM request_log WHERE seq IN (
  SELECT seq FROM request_log WHERE at_ms < :before ORDER BY at_ms LIMIT :slice)
"""


class Entry(msgspec.Struct, gc=False):
    """A request that is over, in the order of the columns; see migration 0005.

    ``attempts`` stand where their number is stored; ``attempts_json`` is what they were.
    """

    request_id: str
    client_id: str
    session: str
    at_ms: int
    endpoint: str
    key_id: str
    asked: str
    model_id: str
    provider_id: str
    mode: str
    alias: str
    reason: str
    stream: bool
    status: int
    error_class: str
    error: str
    finish_reason: str
    latency_ms: float
    ttft_ms: float | None
    prompt: int
    completion: int
    cached_read: int
    cached_write: int
    reasoning: int
    counted_by: str
    cost: int | None
    price_source: str
    price_version: str
    attempts: list[Attempt]
    attempts_json: str

    def telling(self) -> Attempt:
        """The attempt that answered, at least in part; when none did, the last. There is one."""
        attempts = self.attempts
        own = (one for one in reversed(attempts) if one.model_id == self.model_id)
        return next(own, attempts[-1])


class Filter(NamedTuple):
    """Which rows to list; "" and 0 = any. ``status`` is 200, 5xx or error (400 and above)."""

    model: str = ""
    provider: str = ""
    key: str = ""
    status: str = ""
    since_ms: int = 0
    until_ms: int = 0


class Journal:
    """Takes entries, writes them, finds them again.

    Args:
        db: where they go.
        call_later: the loop's; a timer runs only while entries wait.
        key_name: an API key's name by its id, for reading.
    """

    def __init__(
        self,
        db: Database,
        call_later: Callable[[float, Callable[[], None]], object],
        key_name: Callable[[str], str],
    ) -> None:
        self._db = db
        self._call_later = call_later
        self._key_name = key_name
        self._pending: list[Entry] = []
        self._unwritten = 0  # queued for the writer
        self._waiting = False
        self._next = 1
        self.written = 0
        self.dropped = 0
        self._losses = Losses("request log")

    async def open(self) -> None:
        """Go on numbering where the last life ended."""
        [(last,)] = await self._db.read("SELECT COALESCE(MAX(seq), 0) FROM request_log")
        self._next = last + 1

    @property
    def pending(self) -> int:
        """Entries that are not stored yet."""
        return len(self._pending) + self._unwritten

    def append(self, entry: Entry) -> None:
        """Take an entry; never waits."""
        pending = self._pending
        if len(pending) + self._unwritten >= MOST_PENDING:
            self.dropped += 1
            return
        pending.append(entry)
        if not self._waiting:
            self._waiting = True
            self._call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Queue what waits for the writer, now."""
        self._waiting = False
        entries, self._pending = self._pending, []
        for start in range(0, len(entries), PIECE):
            self._save(entries[start : start + PIECE])

    def _save(self, entries: list[Entry]) -> None:
        first = self._next
        count = len(entries)
        self._next += count
        self._unwritten += count

        def save(tx: Transaction) -> None:
            tx.executemany(_INSERT, map(_row, range(first, first + count), entries))

        def done(error: BaseException | None) -> None:
            self._unwritten -= count
            if error is None:
                self.written += count
                self._losses.written()
            else:
                self.dropped += count
                self._losses.lost(count, error)

        self._db.write_soon(save, done, patient=True)

    async def settled(self) -> None:
        """Wait until everything taken so far can be read."""
        self.flush()
        await self._db.write(lambda _: None, patient=True)

    async def list(self, wanted: Filter, limit: int, offset: int = 0) -> list[dict[str, Any]]:
        """Rows, newest first."""
        await self.settled()
        where, values = _where(wanted)
        rows = await self._db.read(
            f"SELECT {_COLUMNS} FROM request_log {where} "  # noqa: S608  # columns are ours
            "ORDER BY seq DESC LIMIT :limit OFFSET :offset",
            {**values, "limit": limit, "offset": offset},
        )
        found: list[dict[str, Any]] = []
        for first in range(0, len(rows), _SLICE):
            found += map(self._shown, rows[first : first + _SLICE])
            await asyncio.sleep(0)
        return found

    async def get(self, request_id: str) -> dict[str, Any]:
        """One request with all its attempts.

        Raises:
            NotFound: it is not, or no longer, in the log.
        """
        await self.settled()
        rows = await self._db.read(_ONE, {"id": request_id})
        if not rows:
            raise NotFound(
                f"No request `{request_id[:64]}` is in the log.",
                code="request_not_found",
                hint="The id stands in the answer's X-Request-Id header and in `tokenhubctl logs`.",
            )
        shown = self._shown(rows[0])
        attempts = msgspec.json.decode(rows[0][-1], type=list[Attempt])
        shown["attempts"] = [_shown_attempt(one) for one in attempts]
        return shown

    async def prune(self, before_ms: int) -> int:
        """Delete rows older than a moment, in slices so that no lock is long; how many."""
        total = 0
        while True:
            deleted = await self._db.write(lambda tx: _delete(tx, before_ms))
            total += deleted
            if deleted < PRUNE_SLICE:
                return total
            await asyncio.sleep(0)

    def _shown(self, row: Row) -> dict[str, Any]:
        found = dict(zip(_NAMES, row, strict=True))
        at = datetime.fromtimestamp(found["at_ms"] / 1000, UTC)
        cost = found["cost"]
        prompt, completion = found["prompt"], found["completion"]
        return {
            "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "request_id": found["request_id"],
            "client_request_id": found["client_id"],
            "session": found["session"],
            "endpoint": found["endpoint"],
            "api_key_id": found["key_id"],
            "api_key_name": self._key_name(found["key_id"]),
            "model_asked": found["asked"],
            "model_id": found["model_id"],
            "provider_id": found["provider_id"],
            "mode": found["mode"],
            "alias_from": found["alias"],
            "reason": found["reason"],
            "stream": bool(found["stream"]),
            "status_code": found["status"],
            "error_class": found["error_class"],
            "error_msg": found["error"],
            "finish_reason": found["finish_reason"],
            "latency_ms": found["latency_ms"],
            "ttft_ms": found["ttft_ms"],
            "input_tokens": prompt,
            "output_tokens": completion,
            "total_tokens": prompt + completion,
            "cached_read_tokens": found["cached_read"],
            "cached_write_tokens": found["cached_write"],
            "reasoning_tokens": found["reasoning"],
            "counted_by": found["counted_by"],
            "estimated_cost_usd": None if cost is None else cost / 1e9,
            "cost_source": found["price_source"],
            "cost_version": found["price_version"],
            "attempt_count": found["attempt_count"],
        }


def _row(seq: int, entry: Entry) -> list[Any]:
    row = [seq, *astuple(entry)]
    row[-2] = len(entry.attempts)
    return row


def _shown_attempt(one: Attempt) -> dict[str, Any]:
    return {
        "number": one.number,
        "model_id": one.model_id,
        "provider_id": one.provider_id,
        "error_class": one.kind,
        "status": one.status,
        "message": one.message,
        "started_ms": one.at_ms,
        "latency_ms": round(one.latency_ms, 3),
        "ttft_ms": None if one.ttft_ms is None else round(one.ttft_ms, 3),
        "cost_usd": None if one.cost is None else one.cost / 1e9,
    }


def _where(wanted: Filter) -> tuple[str, dict[str, Any]]:
    parts: list[str] = []
    values: dict[str, Any] = {}
    for name, column, value in (
        ("model", "model_id", wanted.model),
        ("provider", "provider_id", wanted.provider),
        ("key", "key_id", wanted.key),
    ):
        if value:
            parts.append(f"{column} = :{name}")
            values[name] = value
    if wanted.since_ms:
        parts.append("at_ms >= :since")
        values["since"] = wanted.since_ms
    if wanted.until_ms:
        parts.append("at_ms < :until")
        values["until"] = wanted.until_ms
    if wanted.status:
        low, high = status_range(wanted.status)
        parts.append("status >= :low AND status < :high")
        values |= {"low": low, "high": high}
    return ("WHERE " + " AND ".join(parts) if parts else ""), values


def status_range(text: str) -> tuple[int, int]:
    """The statuses meant by ``200``, ``5xx`` or ``error``: from, up to but without.

    Raises:
        ValueError: none of these.
    """
    if text == "error":
        return 400, 1000
    if len(text) == 3 and text[0] in "12345" and text[1:] == "xx":
        return int(text[0]) * 100, int(text[0]) * 100 + 100
    if len(text) == 3 and text.isascii() and text.isdigit():
        return int(text), int(text) + 1
    raise ValueError(text)


def _delete(tx: Transaction, before_ms: int) -> int:
    tx.execute(_PRUNE, {"before": before_ms, "slice": PRUNE_SLICE})
    return tx.changes()
