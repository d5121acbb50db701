"""What a hub has after a year, put into its database before it starts.

    bench/seed.py DATA_DIR [--log-rows N] [--models N]

The schema and the cells of the time series are made by the store's own code; the rows go in with
SQL that fits migrations 0002 to 0011, in transactions of 100,000 rows without fsync or journal:

* request_log: N rows over the last 80 days (they are kept for 90), as many in ledger_attempts
  (kept for ever; in no account, so `budget verify` would complain), and a third as many in
  decision_log over the last 25 days (kept for 30), all under the same evidence;
* series_points of N models, four keys and one mode: a row per hour and per day of 365 days, and a
  row per minute of the last day, each with sketches of about 300 requests.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from tokenhub.core.clock import SystemClock
from tokenhub.storage.sqlite import SqliteDatabase
from tokenhub.telemetry.cell import COLUMNS, KEY, MODE, PAIR, Cell, Group, Label
from tokenhub.telemetry.series import DAY, HOUR, MINUTE

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG_DAYS = 80
DECISION_DAYS = 25
YEAR_DAYS = 365
IN_ONE_TRANSACTION = 100_000
CELLS = 64  # as many different ones; a row takes one of them
IN_A_CELL = 300  # requests

CACHE_KIB = 262_144  # of pages, so that indexes of ids stay in memory

_ATTEMPT = (
    '[{"number":1,"model_id":"bench-01","provider_id":"bench","at_ms":1700000000000,'
    '"latency_ms":812.334,"cost":248000,"propensity":0.05}]'
)
_RECORD = (
    '{"query":{"request_id":"r-0","model":"auto:thompson","input_tokens":184,"size":{"text":736},'
    '"max_tokens":64,"key_id":"key_0","features":{"version":2,"bytes":736,"messages":2}},'
    '"seed":248628535622687,"bucket":"small","choice":"bench-01","propensity":0.05}'
)
_NUMBERS = """
WITH RECURSIVE numbers (n) AS (VALUES (:first) UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)
"""
_LOG = f"""
INSERT INTO request_log (
    seq, request_id, client_id, session, at_ms, endpoint, key_id, asked, model_id, provider_id,
    mode, alias, reason, stream, status, error_class, error, finish_reason, latency_ms, ttft_ms,
    prompt, completion, cached_read, cached_write, reasoning, counted_by, cost, price_source,
    price_version, attempt_count, attempts)
{_NUMBERS}
SELECT n, printf('r-%012x-%x', n / 1000000 * 7919, n), '', '', :begin + n * :span / :rows,
    'chat', printf('key_%d', n % 4), 'auto:thompson', printf('bench-%02d', n % 20), 'bench',
    'thompson', '', '', n % 2, iif(n % 100, 200, 502), iif(n % 100, '', 'server'), '', 'stop',
    400.0 + n % 997, iif(n % 2, 90.0 + n % 101, NULL), 120, 64, 0, 0, 0, 'provider', 248000,
    'manual', '', 1, :attempts
FROM numbers
"""
_LEDGER = f"""
INSERT INTO ledger_attempts
{_NUMBERS}
SELECT n, printf('key_%d', n % 4), 202501, 20250101, printf('r-%012x-%x', n / 1000000 * 7919, n), 1,
    printf('bench-%02d', n % 20), 'bench', 'settled', 32910000, 248000, 0, 120, 64, 0, 0, 0, '',
    'manual', '', '', 1, :begin + n * :span / :rows, :begin + n * :span / :rows + 400
FROM numbers
"""
_DECISION = f"""
INSERT INTO decision_log
{_NUMBERS}
SELECT printf('r-%012x-%x', n / 1000000 * 7919, n), :begin + n * :span / :rows, 'thompson',
    'thompson', printf('bench-%02d', n % 20), printf('bench-%02d', n % 20), 'ok', 'seeded', :record,
    replace(replace(:attempts, 'bench-01', printf('bench-%02d', n % 20)), '1700000000000',
        :begin + n * :span / :rows), 'seeded', 20000, NULL
FROM numbers
"""
_SHARED = """
INSERT INTO ledger_epochs VALUES (1, 0, 0, 0);
INSERT INTO decision_rules (digest, at, body) VALUES ('seeded', 0, '{}');
INSERT INTO decision_evidence (digest, at, body) VALUES ('seeded', 0, '{}');
"""
_POINT = f"""
INSERT INTO series_points (label, resolution, at, {", ".join(COLUMNS)})
VALUES (?, ?, ?{", ?" * len(COLUMNS)})
"""


class _Answered:
    """As much of a journal entry as a cell counts."""

    def __init__(self, draw: random.Random) -> None:
        self.latency_ms = draw.lognormvariate(6.5, 0.6)
        self.ttft_ms = draw.lognormvariate(4.5, 0.4) if draw.random() < 0.5 else None
        self.cost = 248_000
        self.prompt, self.completion = 120, 64
        self.status = 502 if draw.random() < 0.01 else 200
        self.error_class = "server" if self.status == 502 else ""


def _cells() -> list[tuple[Any, ...]]:
    draw = random.Random("a year")
    rows = []
    for _ in range(CELLS):
        cell = Cell()
        answered: list[Any] = [_Answered(draw) for _ in range(IN_A_CELL)]
        cell.add(Group(answered))
        rows.append(cell.row())
    return rows


def _points(labels: int, now_ms: int) -> Iterator[tuple[Any, ...]]:
    cells = _cells()
    spans = (
        (DAY, YEAR_DAYS),
        (HOUR, YEAR_DAYS * 24),
        (MINUTE, 24 * 60),
    )
    for label in range(1, labels + 1):
        for resolution, count in spans:
            end = now_ms - now_ms % resolution
            for back in range(count, 0, -1):
                cell = cells[(label * 31 + back) % CELLS]
                yield (label, resolution, end - back * resolution, *cell)


def _in_slices(connection: apsw.Connection, sql: str, rows: int, days: int, now_ms: int) -> None:
    common = {"begin": now_ms - days * DAY, "span": days * DAY, "rows": rows}
    for first in range(1, rows + 1, IN_ONE_TRANSACTION):
        last = min(first + IN_ONE_TRANSACTION - 1, rows)
        values = common | {"first": first, "last": last, "attempts": _ATTEMPT, "record": _RECORD}
        with connection:
            connection.execute(sql, values)


def seed_logs(connection: apsw.Connection, rows: int, now_ms: int) -> None:
    """The request log, the ledger, and a third as many decisions."""
    if rows:
        connection.execute(_SHARED)
        _in_slices(connection, _LOG, rows, LOG_DAYS, now_ms)
        _in_slices(connection, _LEDGER, rows, LOG_DAYS, now_ms)
        _in_slices(connection, _DECISION, max(1, rows // 3), DECISION_DAYS, now_ms)


def seed_series(connection: apsw.Connection, models: int, now_ms: int) -> None:
    """A year of hours and days, a day of minutes."""
    labels = [Label(PAIR, f"bench-{number:02}", "bench") for number in range(models)]
    labels += [Label(KEY, f"key_{number}") for number in range(4)]
    labels.append(Label(MODE, "thompson"))
    state = [now_ms - now_ms % span for span in (MINUTE, HOUR, DAY)]
    with connection:
        connection.executemany(
            "INSERT INTO series_labels (id, kind, name, provider) VALUES (?, ?, ?, ?)",
            [(number, *label) for number, label in enumerate(labels, 1)],
        )
        connection.executemany(_POINT, _points(len(labels), now_ms))
        connection.execute(
            "INSERT INTO series_state (id, minute, hour, day) VALUES (1, ?, ?, ?)", state
        )


async def _make_schema(path: Path) -> None:
    await (await SqliteDatabase.open(path, SystemClock())).close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--log-rows", type=int, default=0)
    parser.add_argument("--models", type=int, default=0)
    options = parser.parse_args()
    options.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = options.data_dir / "tokenhub.sqlite"
    asyncio.run(_make_schema(path))
    connection = apsw.Connection(str(path))
    for pragma in ("synchronous = OFF", "journal_mode = OFF", f"cache_size = -{CACHE_KIB}"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    now_ms = time.time_ns() // 1_000_000
    seed_logs(connection, options.log_rows, now_ms)
    if options.models:
        seed_series(connection, options.models, now_ms)
    connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
