"""make bench-profile: where the microseconds of one request go, stage by stage.

    bench/profile.py [--stream] [--budgeted] [--model NAME] [--seconds 4]

Starts mock and hub as the benchmark does and sends the same load, but this hub's stages carry a
clock: the time inside a function without that inside other stages. Printed is the median of a call
times the calls per request, so that a neighbour's time slice does not count; what the clocks cost
(about 0.4 us a stage) is in there. The rest, to the CPU time that /proc shows, is coroutines, the
event loop and its system calls.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loads import Load, run
from scenarios import Bench
from subjects import Hub, build_tools

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = 50_000  # of each stage
OUTPUT = "TOKENHUB_BENCH_PROFILE"

# Stage and the functions it is made of, in the order of the way of a request.
STAGES = {
    "client: read, head, body": ("web.connection:Connection.data_received",),
    "route and key": ("web.edge:Edge._admit",),
    "read the chat": ("gateway.pipeline:parse_chat", "gateway.pipeline:measure_chat"),
    "features": ("gateway.pipeline:features_of",),
    "decide": ("routing.router:Router.decide",),
    "plan of attempts": ("routing.router:Router.failover", "routing.retry:Failover.next"),
    "lane and credential": ("gateway.lanes:Lanes.to", "vault.vault:Vault.get"),
    "ledger: bound": ("access.ledger:Ledger.bound",),
    "ledger: reserve": ("access.ledger:Ledger.reserve",),
    "provider's request": ("providers.openai:OpenAIAdapter.request",),
    "provider: ask": ("providers.connection:Connection.exchange",),
    "provider: read": ("providers.connection:Connection.data_received",),
    "read the answer": ("providers.openai:OpenAIAdapter.reply",),
    "relay": ("providers.openai_stream:OpenAIRelay.feed",),
    "ledger: settle": ("access.ledger:Ledger.settle",),
    "learn": ("routing.retry:Failover.succeeded",),
    "log and events": ("routing.router:Router.finish", "app:App._observe"),
    "client: answer": ("web.connection:Connection._finish", "web.http:ClientStream.write"),
    "writes to sockets": ("core.outbox:Outbox.flush",),
    "statistics": ("telemetry.observer:Observer.fold",),
    "event stream": ("telemetry.events:EventBus.hand_out",),
    "ledger: notes": ("access.daybook:Daybook.put_down",),
    "ledger: batches": ("access.writer:Writer._send", "access.writer:Writer._landed"),
    "writer thread": ("storage.sqlite_threads:Writer._run_group",),
}


class Clocks:
    """Times of all stages; a stage inside another one stops the outer clock."""

    def __init__(self) -> None:
        self.samples: dict[str, list[int]] = defaultdict(list)
        self.calls: dict[str, int] = defaultdict(int)
        self._local = threading.local()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a clock."""
        samples, local, now = self.samples[stage], self._local, time.perf_counter_ns

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            inner: list[int] = local.__dict__.setdefault("inner", [])
            inner.append(0)
            began = now()
            try:
                return function(*args, **kwargs)
            finally:
                taken = now() - began
                own = taken - inner.pop()
                if inner:
                    inner[-1] += taken
                self.calls[stage] += 1
                if len(samples) < SAMPLES:
                    samples.append(own)

        return call

    def install(self) -> None:
        """Put a clock on every function of every stage."""
        for stage, functions in STAGES.items():
            for function in functions:
                module, _, name = function.partition(":")
                *owner, attribute = name.split(".")
                place: Any = importlib.import_module(f"tokenhub.{module}")
                for part in owner:
                    place = getattr(place, part)
                setattr(place, attribute, self.timed(stage, getattr(place, attribute)))

    def write(self, path: Path) -> None:
        """Median nanoseconds and number of calls by stage."""
        found = {
            stage: (statistics.median(values), self.calls[stage])
            for stage, values in self.samples.items()
            if values
        }
        path.write_text(json.dumps(found))


class ProfiledHub(Hub):
    """The hub with clocks: this file runs it."""

    program = (Path(__file__).resolve(),)
    kept = (*Hub.kept, OUTPUT)


def run_hub(output: Path) -> int:
    """Be the hub; write the times at its end."""
    from tokenhub.__main__ import main as serve  # noqa: PLC0415  # only the child imports it

    clocks = Clocks()
    clocks.install()
    sys.argv = ["tokenhub"]
    try:
        return serve()
    finally:
        clocks.write(output)


def measure(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], float, int]:
    """The stages' times, CPU microseconds per request, and how many requests there were."""
    output = folder / "stages.json"
    os.environ[OUTPUT] = str(output)
    bench = Bench(folder, options.seconds, 1, with_hub=True)
    try:
        mock = bench.mock("instant")
        hub = ProfiledHub(folder, f"http://127.0.0.1:{mock.port}")
        bench.processes.append(hub.process)
        key = hub.budgeted_key if options.budgeted else hub.key
        body = bench.body(options.model or hub.routed_model(), stream=options.stream)
        figures = run(Load(hub.port, body, hub.process, key=key, warm=0), options.seconds)
    finally:
        bench.stop()
    done = figures.lg["done"]
    return json.loads(output.read_text()), figures.cpu_seconds / done * 1e6, done


def main() -> int:
    """Print the table."""
    if output := os.environ.get(OUTPUT):
        return run_hub(Path(output))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stream", action="store_true", help="64 chunks instead of one answer")
    parser.add_argument("--budgeted", action="store_true", help="with a key that has a budget")
    parser.add_argument("--model", help="asked for (auto:thompson)")
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    build_tools()
    with tempfile.TemporaryDirectory(prefix="bench-profile-") as folder:
        stages, total, done = measure(Path(folder), options)
    known = 0.0
    print(f"{'STAGE':28}{'us/CALL':>9}{'CALLS':>8}{'us/REQUEST':>12}")
    for stage in STAGES:
        if stage in stages:
            median, calls = stages[stage]
            share = median * calls / done / 1000
            known += share
            print(f"{stage:28}{median / 1000:9.1f}{calls / done:8.2f}{share:12.1f}")
    print(f"{'coroutines, loop, kernel':28}{'':17}{total - known:12.1f}")
    print(f"{'all CPU of the process':28}{'':17}{total:12.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
