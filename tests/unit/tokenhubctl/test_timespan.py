from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tokenhubctl.errors import UsageFault
from tokenhubctl.timespan import since

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", "2026-03-01T11:58:30Z"),
        ("15m", "2026-03-01T11:45:00Z"),
        ("1.5h", "2026-03-01T10:30:00Z"),
        ("7d", "2026-02-22T12:00:00Z"),
        ("2w", "2026-02-15T12:00:00Z"),
        ("2026-02-01", "2026-02-01T00:00:00Z"),
        ("2026-02-01T10:00:00+02:00", "2026-02-01T08:00:00Z"),
        ("2026-02-01T10:00:00Z", "2026-02-01T10:00:00Z"),
    ],
)
def test_moments(home, text, moment):
    assert since(text, NOW) == moment


@pytest.mark.parametrize(
    "text", ["", "m", "1y", "-1h", "soon", "99999999999999d", "2026-13-01", "²h"]
)
def test_nonsense(text):
    with pytest.raises(UsageFault, match="is not a time"):
        since(text, NOW)
