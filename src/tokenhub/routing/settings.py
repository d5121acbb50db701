"""The stored routing settings: what an admin set, over what the environment set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.errors import InvalidRequest
from tokenhub.core.money import format_usd, parse_usd, usd
from tokenhub.routing.hints import check_mode
from tokenhub.routing.rules import RoutingSettings

if TYPE_CHECKING:
    from tokenhub.storage.database import Also, Database, Transaction

KEY = "routing"
MAX_BUDGET_USD = 100
MAX_LATENCY_MS = 300_000
MAX_TEMPERATURE = 100.0

_READ = "SELECT value FROM settings WHERE key = :key"
_WRITE = """
INSERT INTO settings (key, value) VALUES (:key, :value)
ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""

Number = int | float | str


class SettingsFields(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A change: what is not named stays, null goes back to the environment's value."""

    default_mode: str | msgspec.UnsetType | None = msgspec.UNSET
    default_max_budget_usd: Number | msgspec.UnsetType | None = msgspec.UNSET
    default_max_latency_ms: int | msgspec.UnsetType | None = msgspec.UNSET
    exploration_temp: float | msgspec.UnsetType | None = msgspec.UNSET


class Stored(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the database holds; None = nothing was set."""

    default_mode: str | None = None
    default_max_budget_usd: str | None = None  # decimal text, so that no digit is lost
    default_max_latency_ms: int | None = None
    exploration_temp: float | None = None


class SettingsStore:
    """Reads and changes them.

    Attributes:
        effective: what requests are routed by.
        stored: what was set, over the environment's values.
    """

    def __init__(self, db: Database, base: RoutingSettings) -> None:
        self._db = db
        self._base = base
        self.stored = Stored()
        self.effective = base

    @classmethod
    async def open(cls, db: Database, base: RoutingSettings) -> SettingsStore:
        """Read what is stored; ``base`` is what the environment says."""
        store = cls(db, base)
        if rows := await db.read(_READ, {"key": KEY}):
            store._adopt(msgspec.json.decode(rows[0][0], type=Stored))
        return store

    def _adopt(self, stored: Stored) -> None:
        self.stored = stored
        base = self._base
        budget = stored.default_max_budget_usd
        latency = stored.default_max_latency_ms
        temperature = stored.exploration_temp
        self.effective = RoutingSettings(
            default_mode=stored.default_mode or base.default_mode,
            default_max_budget=(
                base.default_max_budget if budget is None else parse_usd(budget, "budget")
            ),
            default_max_latency_ms=base.default_max_latency_ms if latency is None else latency,
            exploration_temp=base.exploration_temp if temperature is None else temperature,
        )

    async def change(self, fields: SettingsFields, *, also: Also | None = None) -> RoutingSettings:
        """Change what is named; the new effective settings.

        Raises:
            InvalidRequest: naming the field.
        """
        named = msgspec.structs.asdict(fields).items()
        changes = {name: value for name, value in named if value is not msgspec.UNSET}
        stored = msgspec.structs.replace(self.stored, **_checked(changes))
        before = self.stored

        def save(tx: Transaction) -> None:
            tx.execute(_WRITE, {"key": KEY, "value": msgspec.json.encode(stored).decode()})
            if also:
                also(tx, msgspec.to_builtins(before), msgspec.to_builtins(stored))

        await self._db.write(save)
        self._adopt(stored)
        return self.effective

    def describe(self) -> dict[str, Any]:
        """Effective values at top level, the stored ones under ``stored`` (null = not set)."""
        budget = self.stored.default_max_budget_usd
        return {
            "default_mode": self.effective.default_mode,
            "default_max_budget_usd": usd(self.effective.default_max_budget),
            "default_max_latency_ms": self.effective.default_max_latency_ms,
            "exploration_temp": self.effective.exploration_temp,
            "stored": {
                "default_mode": self.stored.default_mode,
                "default_max_budget_usd": None if budget is None else float(budget),
                "default_max_latency_ms": self.stored.default_max_latency_ms,
                "exploration_temp": self.stored.exploration_temp,
            },
        }


def _checked(changes: dict[str, Any]) -> dict[str, Any]:
    checked = dict(changes)
    if mode := changes.get("default_mode"):
        check_mode(mode, param="default_mode")
    elif mode is not None:
        raise InvalidRequest("`default_mode` is empty; null unsets it.", param="default_mode")
    if (budget := changes.get("default_max_budget_usd")) is not None:
        checked["default_max_budget_usd"] = budget_text(budget, "default_max_budget_usd")
    if (latency := changes.get("default_max_latency_ms")) is not None:
        check_latency(latency, "default_max_latency_ms")
    temperature = changes.get("exploration_temp")
    # NaN compares false with everything, so the range is asked for, not its opposite.
    if temperature is not None and not 0.0 <= temperature <= MAX_TEMPERATURE:
        raise InvalidRequest(
            "`exploration_temp` must be between 0 and 100.", param="exploration_temp"
        )
    return checked


def budget_nano(value: Number, name: str) -> int:
    """A request's budget in nano-dollars.

    Raises:
        InvalidRequest: not a dollar amount from 0 to 100.
    """
    nano = parse_usd(value, name)
    if nano > MAX_BUDGET_USD * 1_000_000_000:
        raise InvalidRequest(f"`{name}` must be between 0 and {MAX_BUDGET_USD}.", param=name)
    return nano


def budget_text(value: Number, name: str) -> str:
    """The same as plain decimal text."""
    return format_usd(budget_nano(value, name))


def check_latency(value: int, name: str) -> int:
    """A latency limit in milliseconds.

    Raises:
        InvalidRequest: not from 0 to 300000.
    """
    if not 0 <= value <= MAX_LATENCY_MS:
        raise InvalidRequest(f"`{name}` must be between 0 and {MAX_LATENCY_MS}.", param=name)
    return value


def check_weight(value: int, name: str) -> int:
    """A weight floor.

    Raises:
        InvalidRequest: not from 0 to 10.
    """
    if not 0 <= value <= 10:
        raise InvalidRequest(f"`{name}` must be between 0 and 10.", param=name)
    return value
