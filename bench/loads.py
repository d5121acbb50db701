"""One measured load: what is sent to whom, and the figures that come back."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from machine import BenchError, Process, busy_seconds
from subjects import HERE, LOAD_CORE

if TYPE_CHECKING:
    from pathlib import Path

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Load:
    """Arguments of lg.c. `rate` 0 = closed loop; `requests` 0 = as many as the time allows."""

    port: int
    body: Path
    process: Process | None
    key: str = "sk-bench-0123456789abcdef"
    connections: int = 64
    rate: float = 0
    stagger_ms: int = 0
    warm: float = 1.0
    requests: int = 0
    headers: tuple[str, ...] = ()


@dataclass
class Figures:
    """What one run of a load gave. CPU figures are of the gateway's whole process tree."""

    lg: dict[str, Any]
    cpu_seconds: float
    wall_seconds: float
    other_cpu_share: float
    rss_mb: float

    @property
    def per_cpu_second(self) -> float:
        """Answers for each second of CPU that the gateway used."""
        done: int = self.lg["done"]
        return done / self.cpu_seconds if self.cpu_seconds else 0

    @property
    def core_share(self) -> float:
        """Part of one core that the gateway used."""
        return self.cpu_seconds / self.wall_seconds


def run(load: Load, seconds: float) -> Figures:
    """Warm up, then measure for `seconds`.

    The warm-up is a run of its own, so that CPU time and answers are counted over the same span.
    Streams that never end are the exception: their CPU time is read when they have all begun.
    """
    skipped = load.stagger_ms / 1000 + 0.5 if load.stagger_ms else 0.0
    if load.warm and not skipped:
        _finish(_start(load, load.warm, 0))
    generator = _start(load, seconds + skipped, skipped)
    time.sleep(skipped)
    machine_before = busy_seconds()
    before = load.process.cpu_seconds() if load.process else 0
    began = time.monotonic()
    lg = _finish(generator)
    wall = time.monotonic() - began
    cpu = load.process.cpu_seconds() - before if load.process else 0
    other = busy_seconds() - machine_before - cpu - lg["lg_cpu"]
    if lg["non200"] or lg["errors"] > 0.001 * lg["issued"]:
        raise BenchError(f"{lg['non200']} answers were not 200, {lg['errors']} broke: {lg}")
    memory = load.process.rss_mb() if load.process else 0
    return Figures(lg, cpu, wall, max(0, other / wall), memory)


def _start(load: Load, seconds: float, warm: float) -> subprocess.Popen[bytes]:
    command = [HERE / "build" / "lg", load.port, load.connections, seconds, load.rate]
    command += [PATH, load.body, load.stagger_ms, load.requests]
    words = [str(part) for part in command]
    lines = "".join(f"{line}\r\n" for line in load.headers)
    return subprocess.Popen(
        ["taskset", "--cpu-list", str(LOAD_CORE), *words],
        env=os.environ | {"BEARER": load.key, "WARM": str(warm), "XHDR": lines},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _finish(generator: subprocess.Popen[bytes]) -> dict[str, Any]:
    output, words = generator.communicate()
    if generator.returncode or not output:
        raise BenchError(f"the load generator failed: {words.decode()[:1000]}")
    result: dict[str, Any] = json.loads(output)
    result["words"] = words.decode()[:500]
    return result


def alternate(loads: dict[str, Load], *, seconds: float, rounds: int) -> dict[str, list[Figures]]:
    """Run the loads in turn (A B A B ...), so that a slow minute of the machine hits them all."""
    results: dict[str, list[Figures]] = {name: [] for name in loads}
    for _ in range(rounds):
        for name, load in loads.items():
            if load.process:
                load.process.check_running()
            results[name].append(run(load, seconds))
    return results


def closed_loop_ratio(results: dict[str, list[Figures]], name: str, reference: str) -> list[float]:
    """Per round, how many answers per CPU-second against the reference of the same round."""
    return [
        mine.per_cpu_second / theirs.per_cpu_second
        for mine, theirs in zip(results[name], results[reference], strict=True)
    ]
