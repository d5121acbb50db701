"""Points in time as people write them: ``90s``, ``15m``, ``2h``, ``7d``, a date, or RFC 3339."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tokenhubctl.errors import UsageFault

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def since(text: str, now: datetime | None = None) -> str:
    """The moment meant, as RFC 3339 in UTC. A date without a zone is local time."""
    now = now or datetime.now(UTC)
    amount, unit = text[:-1], text[-1:]
    try:
        if unit in _UNITS and amount.replace(".", "", 1).isdigit():
            moment = now - timedelta(seconds=float(amount) * _UNITS[unit])
        else:
            moment = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageFault(
            f"{text!r} is not a time.",
            hint="Write how long ago (15m, 2h, 7d), a date (2026-03-01), or RFC 3339.",
        ) from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
