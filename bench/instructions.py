"""make bench-instructions: machine instructions the gateway needs for one request.

    bench/instructions.py [--stream] [--budgeted] [--padding BYTES] [--models N]
                          [--seconds 6] [--top 40]

Runs the hub inside valgrind's callgrind, so the figure is nearly the same on a busy machine and on
a quiet one (within 2 %), which no clock can offer: what to compare two versions by. It says nothing
of the kernel's work. Everything is some fifty times slower in there, so what happens once per group
of requests (a commit, a timer) is shared by fewer of them and weighs more than in life.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from loads import Load, run
from machine import BenchError
from scenarios import Bench
from subjects import MODEL_COUNT, Hub, build_tools

_COST = re.compile(r"^\s*([\d,]+) \(\s*[\d.]+%\)\s+(?:.*?:)?(\S+)(?: \[(.*)\])?\s*$")


def _callgrind(*arguments: str) -> str:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise BenchError("valgrind is needed (apt install valgrind)") from None
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{' '.join(arguments)}: {error.stderr[-500:]}") from None
    return done.stdout


class CountedHub(Hub):
    """The hub inside callgrind; nothing is counted until ``count``."""

    patience_s = 180.0

    def count(self, *, on: bool) -> None:
        """Begin or end counting."""
        _callgrind("callgrind_control", "--instr=on" if on else "--instr=off", str(self.pid))

    @property
    def pid(self) -> int:
        """The process inside taskset, which replaces itself."""
        return self.process.pid


def measure(folder: Path, options: argparse.Namespace) -> tuple[int, Path]:
    """How many requests were counted, and callgrind's file."""
    output = folder / "callgrind.out"
    flags = ("--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={output}")
    CountedHub.launcher = ("valgrind", "--quiet", *flags)
    bench = Bench(folder, options.seconds, 1, with_hub=True)
    try:
        mock = bench.mock("instant")
        hub = CountedHub(folder, f"http://127.0.0.1:{mock.port}", models=options.models)
        bench.processes.append(hub.process)
        key = hub.budgeted_key if options.budgeted else hub.key
        body = bench.body(hub.routed_model(), stream=options.stream, padding=options.padding)
        load = Load(hub.port, body, hub.process, key=key, connections=16, warm=0)
        run(load, options.seconds)
        hub.count(on=True)
        done: int = run(load, options.seconds).lg["done"]
        hub.count(on=False)
    finally:
        bench.stop()
    return done, output


def by_function(output: Path) -> dict[str, int]:
    """Instructions by C function; the frames of one recursion are joined."""
    costs: dict[str, int] = {}
    for line in _callgrind("callgrind_annotate", "--threshold=100", str(output)).splitlines():
        found = _COST.match(line)
        if found and found[2] not in {"PROGRAM", "TOTALS"}:
            name = found[2].split("'")[0]
            costs[name] = costs.get(name, 0) + int(found[1].replace(",", ""))
    return costs


def main() -> int:
    """Print the figure, and the dearest C functions when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stream", action="store_true", help="64 chunks instead of one answer")
    parser.add_argument("--budgeted", action="store_true", help="with a key that has a budget")
    parser.add_argument("--padding", type=int, default=0, help="bytes more of prompt")
    parser.add_argument("--models", type=int, default=MODEL_COUNT, help="to choose from")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--top", type=int, default=0, help="name so many C functions")
    options = parser.parse_args()
    try:
        build_tools()
        with tempfile.TemporaryDirectory(prefix="bench-instructions-") as folder:
            done, output = measure(Path(folder), options)
            costs = by_function(output)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    total = sum(costs.values())
    print(f"{total / done:,.0f} instructions for one request ({done} requests counted)")
    for name, cost in sorted(costs.items(), key=lambda pair: -pair[1])[: options.top]:
        print(f"{cost / done:12,.0f} {100 * cost / total:5.1f} %  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
