"""What may be said of an API key: the fields of create and edit, checked and made storable."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from tokenhub.core.decision import MODES
from tokenhub.core.errors import InvalidRequest
from tokenhub.core.money import parse_usd

SCOPES = ("chat", "plan", "embeddings")
DEFAULT_SCOPES = ("chat", "plan")

MAX_NAME = 128
MAX_MODELS = 1000
MAX_MODEL_NAME = 256
MAX_RATE = 1_000_000
MAX_DAYS = 36_500

_MS = {
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}
_PART = r"(?a)(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d|w)"
_SECONDS_END = 100_000_000_000  # above, a Unix time is in milliseconds (in seconds: year 5138)
_HORIZON_MS = 253_402_300_800_000  # year 10000


class KeyFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of create and edit; a field left out stays as it is (or takes its default)."""

    name: str | UnsetType = UNSET
    scopes: str | list[str] | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    expires_in: str | UnsetType | None = UNSET
    expires_at: str | int | UnsetType | None = UNSET
    rotation_days: int | UnsetType = UNSET
    monthly_budget_usd: Decimal | UnsetType | None = UNSET
    daily_budget_usd: Decimal | UnsetType | None = UNSET
    total_budget_usd: Decimal | UnsetType | None = UNSET
    rate_limit_rps: int | UnsetType = UNSET
    max_concurrent: int | UnsetType = UNSET
    models: list[str] | UnsetType = UNSET
    mode: str | UnsetType = UNSET
    allow_fallback: bool | UnsetType = UNSET
    allow_directives: bool | UnsetType = UNSET


def checked(fields: KeyFields, now_ms: int) -> dict[str, Any]:
    """The columns of ``api_keys`` that the given fields set.

    Raises:
        InvalidRequest: a value is not allowed; names the field and the reason.
    """
    columns: dict[str, Any] = {}
    if fields.name is not UNSET:
        columns["name"] = _name(fields.name)
    if fields.scopes is not UNSET:
        columns["scopes"] = parse_scopes(fields.scopes)
    if fields.expires_in is not UNSET or fields.expires_at is not UNSET:
        columns["expires_at"] = _expiry(fields, now_ms)
    for flag in ("enabled", "allow_fallback", "allow_directives"):
        if (value := getattr(fields, flag)) is not UNSET:
            columns[flag] = value
    for number, low, high in (
        ("rotation_days", 0, MAX_DAYS),
        ("rate_limit_rps", -1, MAX_RATE),
        ("max_concurrent", 0, MAX_RATE),
    ):
        if (value := getattr(fields, number)) is not UNSET:
            columns[number] = _between(value, number, low, high)
    for period in ("monthly", "daily", "total"):
        name = f"{period}_budget_usd"
        if (value := getattr(fields, name)) is not UNSET:
            # 0 means no limit, as in the store NULL does.
            columns[f"{period}_budget"] = (
                parse_usd(value, name) if value is not None else 0
            ) or None
    if fields.models is not UNSET:
        columns["models"] = _models(fields.models)
    if fields.mode is not UNSET:
        if fields.mode and fields.mode not in MODES:
            raise InvalidRequest(f"`mode` must be one of {', '.join(MODES)}.", param="mode")
        columns["mode"] = fields.mode
    return columns


def parse_scopes(value: str | list[str]) -> tuple[str, ...]:
    """Scopes from a list, or from a JSON list written as text; none at all is allowed.

    Raises:
        InvalidRequest: no list of known scopes.
    """
    scopes: object = value
    if isinstance(value, str):
        try:
            scopes = msgspec.json.decode(value, type=list[str]) if value.strip() else []
        except (msgspec.DecodeError, RecursionError):
            raise InvalidRequest(
                '`scopes` must be a JSON list, for example ["chat","plan"].', param="scopes"
            ) from None
    assert isinstance(scopes, list)
    for scope in scopes:
        if scope not in SCOPES:
            raise InvalidRequest(
                f"`scopes` has an unknown entry; known are {', '.join(SCOPES)}.", param="scopes"
            )
    return tuple(scope for scope in SCOPES if scope in scopes)


def parse_duration(text: str) -> int:
    """A duration like ``720h``, ``30d``, ``90m`` or ``1h30m`` in milliseconds.

    Raises:
        InvalidRequest: not such a duration, or not more than 0.
    """
    compact = text.strip()
    parts = list(re.finditer(_PART, compact))
    total = sum(Decimal(part[1]) * _MS[part[2]] for part in parts)
    if not parts or "".join(part[0] for part in parts) != compact or int(total) <= 0:
        raise InvalidRequest(
            "`expires_in` must be a duration like 720h, 30d or 90m.", param="expires_in"
        )
    return int(total)


def parse_moment(value: str | int) -> int:
    """A point in time as Unix milliseconds.

    ``value`` is an ISO 8601 date (its first instant) or date and time, UTC where it names no zone,
    or a Unix time in seconds or milliseconds.

    Raises:
        InvalidRequest: neither.
    """
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value.strip()[:20])
    if isinstance(value, int):
        return value * 1000 if abs(value) < _SECONDS_END else value
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        raise InvalidRequest(
            "`expires_at` must be a date like 2030-01-31, a date and time like "
            "2030-01-31T12:00:00Z, or a Unix time.",
            param="expires_at",
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _name(value: str) -> str:
    name = value.strip()
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise InvalidRequest(f"`name` must have 1 to {MAX_NAME} visible characters.", param="name")
    return name


def _expiry(fields: KeyFields, now_ms: int) -> int | None:
    if fields.expires_in is not UNSET and fields.expires_at is not UNSET:
        raise InvalidRequest("Give `expires_in` or `expires_at`, not both.", param="expires_at")
    if fields.expires_in is not UNSET:
        param = "expires_in"
        moment = now_ms + parse_duration(fields.expires_in) if fields.expires_in else None
    else:
        param = "expires_at"
        given = None if fields.expires_at is UNSET else fields.expires_at
        moment = None if given is None or given == "" else parse_moment(given)
    if moment is not None and not now_ms < moment < _HORIZON_MS:
        raise InvalidRequest(
            f"`{param}` must lie in the future, before the year 10000.",
            param=param,
            hint='To stop a key now, edit it with {"enabled":false}.',
        )
    return moment


def _between(value: int, param: str, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidRequest(f"`{param}` must be between {low} and {high}.", param=param)
    return value


def _models(names: list[str]) -> tuple[str, ...]:
    if len(names) > MAX_MODELS:
        raise InvalidRequest(f"`models` has more than {MAX_MODELS} entries.", param="models")
    for name in names:
        if not 0 < len(name) <= MAX_MODEL_NAME or not name.isprintable():
            raise InvalidRequest(
                f"Each of `models` must have 1 to {MAX_MODEL_NAME} visible characters.",
                param="models",
            )
    return tuple(dict.fromkeys(names))
