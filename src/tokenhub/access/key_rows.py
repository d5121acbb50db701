"""API keys as stored, as shown to the admin, and as what they permit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.access.key_fields import DEFAULT_SCOPES
from tokenhub.core.money import usd

if TYPE_CHECKING:
    from tokenhub.storage.database import Row

DAY_MS = 86_400_000


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What an API key permits. Times are Unix ms, budgets nano-dollars; None = no limit.

    ``revision`` is higher than that of every earlier grant of this process.
    """

    key_id: str
    revision: int
    name: str
    scopes: frozenset[str]
    enabled: bool
    expires_at: int | None
    rotate_by: int | None
    monthly_budget: int | None
    daily_budget: int | None
    total_budget: int | None
    budget_reset_at: int | None
    rate_limit_rps: int  # 0 = the server's default, -1 = unlimited
    max_concurrent: int  # 0 = unlimited
    models: tuple[str, ...]  # () = all
    mode: str  # "" = the server's default
    allow_fallback: bool
    allow_directives: bool


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A stored key; the fields are the columns of ``api_keys``."""

    id: str
    key_hash: str
    key_prefix: str
    name: str
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    enabled: bool = True
    created_at: int
    updated_at: int
    last_used_at: int | None = None
    expires_at: int | None = None
    rotated_at: int
    rotation_days: int = 0
    monthly_budget: int | None = None
    daily_budget: int | None = None
    total_budget: int | None = None
    budget_reset_at: int | None = None
    rate_limit_rps: int = 0
    max_concurrent: int = 0
    models: tuple[str, ...] = ()
    mode: str = ""
    allow_fallback: bool = False
    allow_directives: bool = False

    @property
    def rotate_by(self) -> int | None:
        """When the key stops to be accepted unless it is rotated."""
        return self.rotated_at + self.rotation_days * DAY_MS if self.rotation_days else None

    def grant(self, revision: int) -> Grant:
        """What the key permits."""
        return Grant(
            key_id=self.id,
            revision=revision,
            name=self.name,
            scopes=frozenset(self.scopes),
            enabled=self.enabled,
            expires_at=self.expires_at,
            rotate_by=self.rotate_by,
            monthly_budget=self.monthly_budget,
            daily_budget=self.daily_budget,
            total_budget=self.total_budget,
            budget_reset_at=self.budget_reset_at,
            rate_limit_rps=self.rate_limit_rps,
            max_concurrent=self.max_concurrent,
            models=self.models,
            mode=self.mode,
            allow_fallback=self.allow_fallback,
            allow_directives=self.allow_directives,
        )

    def status(self, now_ms: int) -> str:
        """Whether the key is accepted, or why not: active, disabled, expired, rotation_overdue."""
        if not self.enabled:
            return "disabled"
        if self.expires_at is not None and now_ms >= self.expires_at:
            return "expired"
        if self.rotate_by is not None and now_ms >= self.rotate_by:
            return "rotation_overdue"
        return "active"

    def public(self, now_ms: int, last_used_at: int | None) -> dict[str, Any]:
        """What the admin sees, times as RFC 3339: everything but the hash."""
        return {
            "id": self.id,
            "key_prefix": self.key_prefix,
            "name": self.name,
            "scopes": list(self.scopes),
            "enabled": self.enabled,
            "status": self.status(now_ms),
            "created_at": _rfc3339(self.created_at),
            "last_used_at": _rfc3339(last_used_at),
            "expires_at": _rfc3339(self.expires_at),
            "rotated_at": _rfc3339(self.rotated_at),
            "rotation_days": self.rotation_days,
            "monthly_budget_usd": usd(self.monthly_budget or 0),
            "daily_budget_usd": usd(self.daily_budget or 0),
            "total_budget_usd": usd(self.total_budget or 0),
            "budget_reset_at": _rfc3339(self.budget_reset_at),
            "rate_limit_rps": self.rate_limit_rps,
            "max_concurrent": self.max_concurrent,
            "models": list(self.models),
            "mode": self.mode,
            "allow_fallback": self.allow_fallback,
            "allow_directives": self.allow_directives,
        }


# All but last_used_at, which only its own statement writes.
_WRITTEN = tuple(name for name in KeyRow.__struct_fields__ if name != "last_used_at")
_READ = ", ".join(KeyRow.__struct_fields__)
SELECT = f"SELECT {_READ} FROM api_keys"  # noqa: S608  # column names from the class
INSERT = (
    f"INSERT INTO api_keys ({', '.join(_WRITTEN)}) "  # noqa: S608
    f"VALUES ({', '.join(':' + name for name in _WRITTEN)})"
)
UPDATE = (
    f"UPDATE api_keys SET {', '.join(f'{name} = :{name}' for name in _WRITTEN)} "  # noqa: S608
    "WHERE id = :id"
)


def from_columns(row: Row) -> KeyRow:
    """A row of ``SELECT``."""
    columns = dict(zip(KeyRow.__struct_fields__, row, strict=True))
    for name in ("scopes", "models"):
        columns[name] = tuple(msgspec.json.decode(columns[name]))
    for name in ("enabled", "allow_fallback", "allow_directives"):
        columns[name] = bool(columns[name])
    return KeyRow(**columns)


def to_columns(row: KeyRow) -> dict[str, Any]:
    """The parameters of ``INSERT`` and ``UPDATE``."""
    columns = msgspec.structs.asdict(row)
    del columns["last_used_at"]
    for name in ("scopes", "models"):
        columns[name] = msgspec.json.encode(columns[name]).decode()
    for name in ("enabled", "allow_fallback", "allow_directives"):
        columns[name] = int(columns[name])
    return columns


def _rfc3339(ms: int | None) -> str | None:
    if ms is None:
        return None
    moment = datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
