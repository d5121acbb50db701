"""bench/seed.py writes rows by hand: they must fit the schema and the code of today."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from tests.packaging.project import ROOT

from tokenhub.core.clock import SystemClock
from tokenhub.routing.rewards import RewardLog
from tokenhub.storage.sqlite import SqliteDatabase

SEED = ROOT / "bench" / "seed.py"


async def test_what_the_bench_seeds_is_read_by_the_hub(tmp_path):
    command = [sys.executable, SEED, tmp_path / "data", "--log-rows", "30", "--models", "1"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    db = await SqliteDatabase.open(tmp_path / "data" / "tokenhub.sqlite", SystemClock())
    try:
        log = RewardLog(db, asyncio.get_running_loop().call_later)
        rows = await log.rewards(100)
        assert len(rows) == 10
        assert all(row["reward"] for row in rows)
        for table, count in (("request_log", 30), ("ledger_attempts", 30)):
            assert await db.read(f"SELECT count(*) FROM {table}") == [(count,)]
    finally:
        await db.close()
