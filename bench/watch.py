"""make bench-watch: does asking what happens hold up what happens?

    bench/watch.py [--seconds 10] [--rounds 5] [--log-rows 300000] [--models 8] [--query TEXT]

A hub with a year behind it (bench/seed.py) serves 300 chats a second, open loop. Quiet and watched
runs alternate; in a watched one `stats`, `logs?limit=100` and a year's `tsdb/query` are each asked
ten times a second by another process. Prints medians over the rounds: latency of the chats in both,
their difference (the goal: p99 moves by no more than 5 ms), CPU of the hub, and how long the
watchers waited. A missed goal is printed and never an exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from loads import Figures, Load, run
from machine import BenchError, describe
from report import Row, table, write_json
from scenarios import Bench
from subjects import ADMIN_TOKEN, HERE, LOAD_CORE, build_tools

CHATS = 300  # a second
ASKED = 10  # a second, each
GOAL_MS = 5.0
QUANTILES = ("p50", "p99", "p999")


def _paths(query: str) -> dict[str, str]:
    start = int((datetime.now(UTC) - timedelta(days=365)).timestamp())
    return {
        "stats": "/admin/v1/stats",
        "logs": "/admin/v1/logs?limit=100",
        "a year's tsdb query": f"/admin/v1/tsdb/query?{query}&start={start}",
    }


def _watched(
    load: Load, seconds: float, paths: dict[str, str]
) -> tuple[Figures, dict[str, list[float]]]:
    """The load while others ask. The watchers begin a little earlier and end a little later.

    They share a core with upstream and load generator and give way to them: else their own work
    would count as the hub's delay.
    """
    words = [str(load.port), str(seconds + 2), str(ASKED), *paths.values()]
    command = ["nice", "-n", "19", "taskset", "--cpu-list", str(LOAD_CORE)]
    watcher = subprocess.Popen(
        [*command, sys.executable, HERE / "watcher.py", *words],
        env=os.environ | {"TOKENHUB_ADMIN_TOKEN": ADMIN_TOKEN},
        stdout=subprocess.PIPE,
    )
    try:
        figures = run(load, seconds)
        output, _ = watcher.communicate(timeout=60)
    finally:
        watcher.kill()
    if watcher.returncode:
        raise BenchError("the watcher failed")
    times = json.loads(output)
    return figures, {name: times[path] for name, path in paths.items()}


def _rows(runs: dict[str, list[Figures]], waits: dict[str, list[list[float]]]) -> list[Row]:
    rows = [
        Row("watch", name, f"{quantile} ms", [one.lg[quantile] for one in figures])
        for name, figures in runs.items()
        for quantile in QUANTILES
    ]
    for quantile in QUANTILES:
        pairs = zip(runs["quiet"], runs["watched"], strict=True)
        moved = [watched.lg[quantile] - quiet.lg[quantile] for quiet, watched in pairs]
        limit = GOAL_MS if quantile == "p99" else None
        rows.append(Row("watch", "watched - quiet", f"{quantile} ms", moved, at_most=limit))
    rows += [
        Row("watch", name, "core share", [one.core_share for one in figures])
        for name, figures in runs.items()
    ]
    for name, found in waits.items():
        for share, label in ((0.5, "p50"), (0.99, "p99")):
            values = [times[int(share * (len(times) - 1))] for times in found]
            rows.append(Row("watch", name, f"{label} ms to its answer", values))
        rows.append(Row("watch", name, "asked", [float(len(times)) for times in found]))
    return rows


def measure(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Quiet, watched, quiet, watched, ..."""
    bench = Bench(folder, options.seconds, options.rounds, with_hub=True)
    runs: dict[str, list[Figures]] = {"quiet": [], "watched": []}
    try:
        mock = bench.mock("instant")
        seed = ("--log-rows", str(options.log_rows), "--models", str(options.models))
        hub = bench.hub(f"http://127.0.0.1:{mock.port}", seed=seed)
        paths = _paths(options.query)
        waits: dict[str, list[list[float]]] = {name: [] for name in paths}
        body = bench.body(hub.routed_model())
        load = Load(hub.port, body, hub.process, key=hub.key, rate=CHATS)
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds} ...", file=sys.stderr, flush=True)
            runs["quiet"].append(run(load, options.seconds))
            figures, times = _watched(load, options.seconds, paths)
            runs["watched"].append(figures)
            for name, found in times.items():
                waits[name].append(found)
    finally:
        bench.stop()
    return _rows(runs, waits)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--log-rows", type=int, default=300_000)
    parser.add_argument("--models", type=int, default=8, help="that have a year behind them")
    parser.add_argument("--query", default="metric=latency&agg=p99", help="of tsdb/query")
    options = parser.parse_args()
    machine = describe()
    try:
        build_tools()
        with tempfile.TemporaryDirectory(prefix="bench-watch-") as folder:
            rows = measure(options, Path(folder))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("; ".join(f"{key} {value}" for key, value in machine.items()))
    print(table(rows))
    stamp = machine["date"].replace(" ", "-").replace(":", "")
    write_json(HERE / "results" / f"{stamp}-watch-{machine['commit']}.json", machine, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
