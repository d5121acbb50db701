"""Values as table cells. A missing value is ``-``; a price nobody knows is never ``free``."""

from __future__ import annotations

import math
from typing import Any

MISSING = "-"
FIRST_MOMENT = 10**11  # Unix ms of 1973: larger than any duration, smaller than any moment meant


def text(value: Any) -> str:
    """A value as it is; lists with commas, objects as JSON."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ",".join(str(item) for item in value) or MISSING
    if isinstance(value, dict | list):
        import json  # noqa: PLC0415

        return json.dumps(value, sort_keys=True, ensure_ascii=False) if value else MISSING
    return str(value)


def number(value: Any) -> str:
    """A whole number without a point, another with two decimals."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(value) if value is not None else MISSING
    whole = math.isfinite(value) and value == int(value)
    return str(int(value)) if whole else f"{value:.2f}"


def yes_no(value: Any) -> str:
    """``no`` only for a literal false."""
    return "no" if value is False else "yes"


def money(value: Any) -> str:
    """Dollars to four decimals, below one dollar to four significant digits; at least cents."""
    amount = _amount(value)
    if amount is None:
        return "unknown"
    size = abs(amount)
    places = 4 if size >= 1 or size == 0 else min(3 - math.floor(math.log10(size)), 18)
    whole, _, fraction = f"{size:.{places}f}".partition(".")
    sign = "-" if amount < 0 else ""
    return f"{sign}${whole}.{fraction.rstrip('0').ljust(2, '0')}"


def cost(value: Any) -> str:
    """What was paid: ``free`` for an explicit 0, ``unknown`` when nobody knows."""
    return "free" if _amount(value) == 0 else money(value)


def price(value: Any) -> str:
    """A list price: ``free`` for an explicit 0, ``unpriced`` when there is none."""
    return "unpriced" if _amount(value) is None else cost(value)


def budget(value: Any) -> str:
    """A limit in dollars, where 0 or nothing means no limit."""
    return money(value) if _amount(value) else "none"


def _amount(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        amount = float(value)
    except (TypeError, ValueError):
        return None
    return amount if math.isfinite(amount) else None


def duration(value: Any) -> str:
    """Milliseconds as ``850ms``, or ``1.5s`` from a second on."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(value)
    return f"{value:.0f}ms" if value < 999.5 else f"{value / 1000:.1f}s"


def time(value: Any) -> str:
    """RFC 3339 or Unix milliseconds as local ``YYYY-MM-DD HH:MM:SS``; other text as it is."""
    if value is None or value in ("", 0) or str(value).startswith("0001-01-01"):
        return MISSING
    from datetime import datetime  # noqa: PLC0415

    try:
        moment = datetime.fromisoformat(rfc3339(value))
        return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError):
        return str(value)


def rfc3339(value: Any) -> str:
    """Unix milliseconds as RFC 3339 in UTC; what is no number, or no date, as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    from datetime import UTC, datetime  # noqa: PLC0415

    try:
        moment = datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return str(value)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_moment(name: str, value: Any) -> bool:
    """Whether a member holds a point in time as Unix milliseconds, by its name and size."""
    named = name in {"at", "timestamp"} or name.endswith(("_at", "at_ms", "started_ms", "_time"))
    return named and isinstance(value, int | float) and value > FIRST_MOMENT


def named(name: str, value: Any) -> str:
    """A member shown as its name says: moments, dollars, durations, or as it is."""
    if name == "timestamp" or name.endswith("_at") or is_moment(name, value):
        return time(value)
    if name.endswith("cost_usd"):
        return cost(value)
    if name.endswith("_usd"):
        return MISSING if value is None else money(value)
    return duration(value) if name.endswith("_ms") else text(value)


def never(value: Any) -> str:
    """A time, or ``never`` when it has not happened."""
    shown = time(value)
    return "never" if shown == MISSING else shown
