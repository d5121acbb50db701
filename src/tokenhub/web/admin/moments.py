"""Points in time as every answer shows them: RFC 3339 in UTC with milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(unix_ms: int | None) -> str | None:
    """Unix milliseconds as text; 0 and None, which mean never, as None."""
    if not unix_ms:
        return None
    whole, ms = divmod(unix_ms, 1000)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{ms:03d}Z"
