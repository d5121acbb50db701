"""make bench: the hub with everything on against nginx as a plain proxy, on the same core.

    bench/run.py                       all scenarios
    bench/run.py json stream           some of them
    bench/run.py --reference           mock and nginx alone: what this machine can do
    bench/run.py --list                what there is

Prints a table (median, spread, ratio, target) and writes all values as JSON to bench/results/.
A missed target is printed and never an exit code: timing on a shared machine decides nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from machine import BenchError, describe
from report import Row, table, write_json
from scenarios import SCENARIOS, Bench
from subjects import HERE, build_tools


def run_scenario(name: str, options: argparse.Namespace) -> list[Row]:
    """One scenario in a folder of its own; what it started is stopped in any case."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
        bench = Bench(
            Path(folder), options.seconds, options.rounds, not options.reference, options.log_rows
        )
        try:
            return SCENARIOS[name][0](bench)
        finally:
            bench.stop()


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO")
    parser.add_argument("--seconds", type=float, default=2.5, help="of each measured run (2.5)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument(
        "--log-rows", type=int, default=1_000_000, help="of the scenario aged (1,000,000)"
    )
    parser.add_argument("--reference", action="store_true", help="without the hub")
    parser.add_argument("--json", type=Path, help="file to write (bench/results/<time>.json)")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    options = parser.parse_args()
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    return options


def main() -> int:
    """Exit code 1 only when something could not be measured."""
    options = arguments()
    if options.list:
        for name, (function, _) in SCENARIOS.items():
            print(f"{name:12} {function.__doc__}")
        return 0
    if len(os.sched_getaffinity(0)) < 2:
        print("error: two cores are needed, one for the gateway and one for the load")
        return 1
    wanted = options.scenarios or list(SCENARIOS)
    if options.reference:
        wanted = [name for name in wanted if SCENARIOS[name][1]]
    machine = describe()
    rows: list[Row] = []
    failed = False
    try:
        build_tools()
        for name in wanted:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                rows += run_scenario(name, options)
            except BenchError as error:
                failed = True
                print(f"{name}: {error}", file=sys.stderr)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("; ".join(f"{key} {value}" for key, value in machine.items()))
    print(table(rows))
    stamp = machine["date"].replace(" ", "-").replace(":", "")
    path = options.json or HERE / "results" / f"{stamp}-{machine['commit']}.json"
    write_json(path, machine, rows)
    print(f"\nall values: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
