"""make bench-peers: other gateways, nginx and the hub, with the same load on the same core.

    bench/compare.py                       all peers that can be installed
    bench/compare.py portkey               some of them
    bench/compare.py --only stream         JSON chats or streams alone

All stand before the same mock and are measured in turn. A first run says how fast each is; then
each gets as many requests as take it about --seconds, and every one is waited for: with a slow
gateway, requests cut off at the end of a fixed time would cost it CPU and not count.

What cannot be installed or started is said and left out. Values go to bench/results/ as JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loads import Figures, Load, run
from machine import BenchError, Process, describe, median
from peers import KEY, MODEL, PEERS, Running, version
from report import Row, table, write_json
from scenarios import Bench
from subjects import HERE, build_tools

if TYPE_CHECKING:
    from collections.abc import Sequence

QUIET_S = 0.5  # how long a subject must be idle before it is measured
LONGEST_WAIT_S = 30.0
IDLE_SHARE = 0.05  # of a core; LiteLLM's background work takes one per cent


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="*", metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--only", choices=("json", "stream"), help="one shape of the two")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run, about (5)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument("--json", type=Path, help="file to write (bench/results/<time>.json)")
    options = parser.parse_args(words)
    unknown = [name for name in options.peers if name not in PEERS]
    if unknown:
        parser.error(f"no peer {', '.join(unknown)}; there are {', '.join(PEERS)}")
    options.peers = options.peers or list(PEERS)
    return options


def how_many(load: Load, seconds: float) -> int:
    """Requests that take a subject about this long, by a run of a second; two a connection."""
    done = run(replace(load, warm=1.0), 1.0).lg["done"]
    return max(2 * load.connections, int(done * seconds))


def settle(process: Process) -> None:
    """Wait until a subject is done with what earlier requests left behind."""
    deadline = time.monotonic() + LONGEST_WAIT_S
    while time.monotonic() < deadline:
        before = process.cpu_seconds()
        time.sleep(QUIET_S)
        if process.cpu_seconds() - before < QUIET_S * IDLE_SHARE:
            return


def measure(
    loads: dict[str, Load], counts: dict[str, int], *, seconds: float, rounds: int
) -> dict[str, list[Figures]]:
    """All subjects in turn, each with a number of requests of its own."""
    results: dict[str, list[Figures]] = {name: [] for name in counts}
    for _ in range(rounds):
        for name, count in counts.items():
            load = loads[name]
            assert load.process is not None
            load.process.check_running()
            settle(load.process)
            whole = replace(load, warm=0, requests=count)
            results[name].append(run(whole, 20 * seconds))
    return results


def rows_of(shape: str, results: dict[str, list[Figures]]) -> list[Row]:
    """Four figures of each subject; the first with its ratio to nginx."""
    rows = []
    for name, runs in results.items():
        pairs = zip(runs, results["nginx"], strict=True)
        ratios = [mine.per_cpu_second / theirs.per_cpu_second for mine, theirs in pairs]
        figures = {
            "per CPU-second": [one.per_cpu_second for one in runs],
            "p50 ms": [one.lg["p50"] for one in runs],
            "p99 ms": [one.lg["p99"] for one in runs],
            "RSS MB": [one.rss_mb for one in runs],
        }
        for figure, values in figures.items():
            ratio = median(ratios) if figure == "per CPU-second" else None
            rows.append(Row(shape, name, figure, values, ratio))
    return rows


def start_peers(bench: Bench, names: Sequence[str], upstream: int) -> dict[str, Running]:
    """Those that can be installed and answer here; of the others it is said why not."""
    running = {}
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            running[name] = Running(name, bench.folder, upstream)
        except BenchError as error:
            print(f"{name} is left out: {error}", flush=True)
        else:
            bench.processes.append(running[name].process)
    return running


def compare(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Start everything and measure it."""
    mock = bench.mock("instant")
    nginx = bench.nginx(mock)
    hub = bench.hub(f"http://127.0.0.1:{mock.port}")
    running = start_peers(bench, options.peers, mock.port)
    rows: list[Row] = []
    for shape in [options.only] if options.only else ["json", "stream"]:
        print(f"{shape} ...", file=sys.stderr, flush=True)
        stream = shape == "stream"
        plain, routed = (bench.body(name, stream=stream) for name in (MODEL, hub.routed_model()))
        loads = {
            "nginx": Load(nginx.port, plain, nginx.process),
            "hub": Load(hub.port, routed, hub.process, key=hub.key),
        }
        for name, peer in running.items():
            loads[name] = Load(peer.port, plain, peer.process, key=KEY, headers=peer.headers)
        counts = {}
        for name, load in loads.items():
            try:
                if name in running and stream:
                    running[name].check_a_stream()
                counts[name] = how_many(load, options.seconds)
            except BenchError as error:
                print(f"{shape}: {name} is left out: {error}", flush=True)
        results = measure(loads, counts, seconds=options.seconds, rounds=options.rounds)
        rows += rows_of(shape, results)
    return rows


def main() -> int:
    """Exit code 1 only when something could not be measured."""
    options = parse()
    if len(os.sched_getaffinity(0)) < 2:
        print("error: two cores are needed, one for the gateway and one for the load")
        return 1
    machine = describe() | {name: version(name) for name in options.peers}
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder:
        bench = Bench(Path(folder), options.seconds, options.rounds, with_hub=True)
        try:
            build_tools()
            rows = compare(bench, options)
        except BenchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            bench.stop()
    print("; ".join(f"{key} {value}" for key, value in machine.items()))
    print(table(rows))
    for name in dict.fromkeys(row.subject for row in rows if row.subject in PEERS):
        print(f"{name} {version(name)}: {PEERS[name].about}")
    stamp = machine["date"].replace(" ", "-").replace(":", "")
    path = options.json or HERE / "results" / f"peers-{stamp}-{machine['commit']}.json"
    write_json(path, machine, rows)
    print(f"\nall values: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
