"""One function per row of the speed goals: it starts what it needs and returns its rows.

The gateway has one core, mock and load generator the other. The physical reference is nginx as a
plain reverse proxy in the same run. The figure for throughput is answers per CPU-second of the
gateway's processes, because wall figures on a shared machine say more about the neighbours.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loads import Figures, Load, alternate, closed_loop_ratio
from machine import BenchError, Process, children_cpu_ms, free_port, median, sync_ms
from report import Row
from subjects import (
    ADMIN_TOKEN,
    GATEWAY_CORE,
    LOAD_CORE,
    MODEL_COUNT,
    Hub,
    Mock,
    Nginx,
    make_certificate,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Bench:
    """A folder for one scenario, its settings, and the processes to stop afterwards."""

    folder: Path
    seconds: float
    rounds: int
    with_hub: bool
    log_rows: int = 1_000_000
    processes: list[Process] = field(default_factory=list)

    def mock(self, *mode: str) -> Mock:
        """A mock upstream."""
        mock = Mock(self.folder, *mode)
        self.processes.append(mock.process)
        return mock

    def nginx(self, upstream: Mock, *, tls: bool = False) -> Nginx:
        """A plain proxy on the gateway's core, or a TLS front for the mock on the mock's core."""
        certificate = make_certificate(self.folder) if tls else None
        core = LOAD_CORE if tls else GATEWAY_CORE
        nginx = Nginx(self.folder, upstream, core=core, certificate=certificate)
        self.processes.append(nginx.process)
        return nginx

    def hub(
        self,
        base_url: str,
        *,
        kind: str = "openai",
        trust: Path | None = None,
        models: int = MODEL_COUNT,
        seed: tuple[str, ...] = (),
        subscribed: bool = True,
    ) -> Hub:
        """The gateway, set up for one upstream."""
        hub = Hub(
            self.folder,
            base_url,
            kind=kind,
            trust=trust,
            models=models,
            seed=seed,
            subscribed=subscribed,
        )
        self.processes.append(hub.process)
        return hub

    def body(self, model: str, *, stream: bool = False, padding: int = 0) -> Path:
        """A request body in a file: about 900 bytes, and `padding` more."""
        system = "You are a careful assistant. Answer in plain words and keep it short. " * 6
        question = "What should one look at first when a service answers slowly? " * 6
        content: dict[str, object] = {
            "model": model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": question + "word " * (padding // 5)},
            ],
            "max_tokens": 64,
        }
        if stream:
            content["stream"] = True
        path = self.folder / f"body-{len(list(self.folder.glob('body-*')))}.json"
        path.write_text(json.dumps(content))
        return path

    def measure(self, loads: dict[str, Load]) -> dict[str, list[Figures]]:
        """All loads, in turn."""
        return alternate(loads, seconds=self.seconds, rounds=self.rounds)

    def stop(self) -> None:
        """End what was started, last first."""
        for process in reversed(self.processes):
            process.stop()


def _note(hub: Hub, results: list[Figures]) -> str:
    words = list(dict.fromkeys(hub.notes))
    if max(figures.other_cpu_share for figures in results) > 0.6:
        words.append("other programs used more than 60 % of a core meanwhile")
    return "; ".join(words)


def _throughput(
    bench: Bench, name: str, *, stream: bool, padding: int, targets: dict[str, float]
) -> list[Row]:
    mock = bench.mock("instant")
    nginx = bench.nginx(mock)
    plain_body = bench.body("bench-00", stream=stream, padding=padding)
    loads = {"nginx": Load(nginx.port, plain_body, nginx.process)}
    if bench.with_hub:
        hub = bench.hub(f"http://127.0.0.1:{mock.port}")
        body = bench.body(hub.routed_model(), stream=stream, padding=padding)
        keys = {"hub": hub.key, "hub, budgeted key": hub.budgeted_key}
        for subject in targets:
            loads[subject] = Load(hub.port, body, hub.process, key=keys[subject])
    results = bench.measure(loads)
    rows = []
    for subject, runs in results.items():
        values = [figures.per_cpu_second for figures in runs]
        ratio, target, note = None, None, ""
        if subject != "nginx":
            ratio = median(closed_loop_ratio(results, subject, "nginx"))
            target, note = targets[subject], _note(hub, runs)
        rows.append(Row(name, subject, "per CPU-second", values, ratio, at_least=target, note=note))
    return rows


def json_chats(bench: Bench) -> list[Row]:
    """Whole JSON chats, 64 connections, closed loop."""
    targets = {"hub": 0.33, "hub, budgeted key": 0.25}
    return _throughput(bench, "json", stream=False, padding=0, targets=targets)


def streams(bench: Bench) -> list[Row]:
    """Streams of 64 chunks that arrive in one burst."""
    return _throughput(bench, "stream", stream=True, padding=0, targets={"hub": 0.5})


def large_prompt(bench: Bench) -> list[Row]:
    """JSON chats with a 200 KB prompt."""
    return _throughput(bench, "prompt200k", stream=False, padding=200_000, targets={"hub": 0.5})


def latency(bench: Bench) -> list[Row]:
    """What the gateway adds to an answer at 1,000 requests a second, open loop."""
    mock = bench.mock("instant")
    body = bench.body("bench-00")
    nginx = bench.nginx(mock)
    loads = {
        "direct": Load(mock.port, body, None, rate=1000),
        "nginx": Load(nginx.port, body, nginx.process, rate=1000),
    }
    targets: dict[str, tuple[float | None, float | None]] = {"nginx": (None, None)}
    if bench.with_hub:
        hub = bench.hub(f"http://127.0.0.1:{mock.port}")
        routed = bench.body(hub.routed_model())
        loads["hub"] = Load(hub.port, routed, hub.process, key=hub.key, rate=1000)
        budgeted = Load(hub.port, routed, hub.process, key=hub.budgeted_key, rate=1000)
        loads["hub, budgeted key"] = budgeted
        targets |= {"hub": (0.3, 1.5), "hub, budgeted key": (1.0, 3.0)}
    disk = [sync_ms(bench.folder) for _ in range(2)]
    results = bench.measure(loads)
    disk.append(sync_ms(bench.folder))
    rows = []
    for quantile, rank in (("p50", 0.5), ("p99", 0.99)):
        values = [run[int(len(run) * rank)] for run in disk]
        rows.append(Row("latency", "disk", f"{quantile} of one fdatasync ms", values))
    for subject, limits in targets.items():
        note = _note(hub, results[subject]) if bench.with_hub and subject != "nginx" else ""
        for quantile, limit in zip(("p50", "p99"), limits, strict=True):
            added = [
                mine.lg[quantile] - direct.lg[quantile]
                for mine, direct in zip(results[subject], results["direct"], strict=True)
            ]
            row = Row("latency", subject, f"added {quantile} ms", added, at_most=limit, note=note)
            rows.append(row)
    return rows


def _slow_streams(
    bench: Bench, name: str, *, count: int, interval: int, limits: dict[str, float]
) -> list[Row]:
    mock = bench.mock("drip", str(interval), "100000")
    nginx = bench.nginx(mock)
    body = bench.body("bench-00", stream=True)
    loads = {"nginx": Load(nginx.port, body, nginx.process, connections=count, stagger_ms=2000)}
    if bench.with_hub:
        hub = bench.hub(f"http://127.0.0.1:{mock.port}")
        routed = bench.body(hub.routed_model(), stream=True)
        loads["hub"] = replace(
            loads["nginx"], port=hub.port, body=routed, process=hub.process, key=hub.key
        )
    results = bench.measure(loads)
    rows = []
    for subject, runs in results.items():
        own = limits if subject == "hub" else {}
        note = _note(hub, runs) if subject == "hub" else ""
        expected = count * 1000 / interval * bench.seconds
        figures = {
            "core share": [run.core_share for run in runs],
            "p99 chunk delay ms": [run.lg["cd99"] for run in runs],
            "RSS MB": [run.rss_mb for run in runs],
            "chunks that came": [run.lg["chunks"] / expected for run in runs],
        }
        for figure, values in figures.items():
            at_least = own.get("share of chunks") if figure == "chunks that came" else None
            limit = own.get(figure)
            row = Row(name, subject, figure, values, at_least=at_least, at_most=limit)
            rows.append(replace(row, note=note))
    return rows


def streams_500(bench: Bench) -> list[Row]:
    """500 streams at once, a chunk every 20 ms each."""
    limits = {"core share": 0.6, "p99 chunk delay ms": 3.0}
    return _slow_streams(bench, "streams500", count=500, interval=20, limits=limits)


def streams_2000(bench: Bench) -> list[Row]:
    """2,000 streams at once, a chunk every 100 ms each: nothing starved, memory small."""
    limits = {"RSS MB": 80.0, "share of chunks": 0.98}
    return _slow_streams(bench, "streams2000", count=2000, interval=100, limits=limits)


def _hub_pair(
    bench: Bench, name: str, subject: str, plain: Hub, other: Hub, targets: dict[bool, float]
) -> list[Row]:
    rows = []
    for stream, target in targets.items():
        shape = "stream" if stream else "JSON"
        loads = {}
        for label, hub in (("hub, plain", plain), (subject, other)):
            body = bench.body(hub.routed_model(), stream=stream)
            loads[label] = Load(hub.port, body, hub.process, key=hub.key)
        results = bench.measure(loads)
        ratio = median(closed_loop_ratio(results, subject, "hub, plain"))
        for label, runs in results.items():
            values = [figures.per_cpu_second for figures in runs]
            row = Row(name, label, f"{shape} per CPU-second", values)
            rows.append(replace(row, ratio=ratio, at_least=target) if label == subject else row)
    return rows


def tls_upstream(bench: Bench) -> list[Row]:
    """An upstream behind TLS against the same one without."""
    mock = bench.mock("instant")
    front = bench.nginx(mock, tls=True)
    certificate, _ = make_certificate(bench.folder)
    plain = bench.hub(f"http://127.0.0.1:{mock.port}")
    secure = bench.hub(f"https://localhost:{front.port}", trust=certificate)
    return _hub_pair(bench, "tls", "hub, TLS upstream", plain, secure, {False: 0.6})


def translated(bench: Bench) -> list[Row]:
    """An OpenAI client before an Anthropic upstream against an OpenAI one."""
    mock = bench.mock("instant")
    plain = bench.hub(f"http://127.0.0.1:{mock.port}")
    other = bench.hub(f"http://127.0.0.1:{mock.port}", kind="anthropic")
    targets = {False: 0.5, True: 0.3}
    return _hub_pair(bench, "translated", "hub, Anthropic upstream", plain, other, targets)


def aged(bench: Bench) -> list[Row]:
    """A hub with a million log rows (--log-rows) and 1,000 models against a fresh one."""
    mock = bench.mock("instant")
    url = f"http://127.0.0.1:{mock.port}"
    seed = ("--log-rows", str(bench.log_rows), "--models", str(MODEL_COUNT))
    hubs = {
        "hub, fresh": bench.hub(url),
        "hub, log rows": bench.hub(url, seed=seed),
        "hub, log rows and 1,000 models": bench.hub(url, seed=seed, models=1000),
    }
    bodies = {name: bench.body(hub.routed_model()) for name, hub in hubs.items()}
    results = bench.measure(
        {name: Load(hub.port, bodies[name], hub.process, key=hub.key) for name, hub in hubs.items()}
    )
    rows = []
    for name, runs in results.items():
        values = [figures.per_cpu_second for figures in runs]
        row = Row("aged", name, "JSON per CPU-second", values)
        if name != "hub, fresh":
            note = f"{bench.log_rows:,} rows in the request log (--log-rows)"
            ratio = median(closed_loop_ratio(results, name, "hub, fresh"))
            row = replace(row, ratio=ratio, at_least=0.9, note=note)
        rows.append(row)
    return rows


def _first_answer_seconds(bench: Bench, number: int) -> tuple[float, float]:
    """Seconds from the start of the process to the first 200, and idle memory in MB."""
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(bench.folder),
        "TOKENHUB_LISTEN_ADDR": f"127.0.0.1:{port}",
        "TOKENHUB_DATA_DIR": str(bench.folder / f"start-{number}"),
        "TOKENHUB_ADMIN_TOKEN": ADMIN_TOKEN,
    }
    began = time.monotonic()
    process = Process(
        [sys.executable, "-m", "tokenhub"],
        core=GATEWAY_CORE,
        log=bench.folder / f"start-{number}.log",
        environment=environment,
    )
    bench.processes.append(process)
    while time.monotonic() < began + 15:
        process.check_running()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/livez")
            if connection.getresponse().status == 200:
                taken = time.monotonic() - began
                time.sleep(1)
                memory = process.rss_mb()
                process.stop()
                return taken, memory
        except OSError:
            time.sleep(0.002)
        finally:
            connection.close()
    raise BenchError("the hub did not answer /livez within 15 s")


def start(bench: Bench) -> list[Row]:
    """From the start of the process to the first 200, idle memory, time to import."""
    taken, memory, imports = [], [], []
    environment = {"PATH": os.environ["PATH"], "HOME": str(bench.folder)}
    for number in range(bench.rounds + 2):
        seconds, rss = _first_answer_seconds(bench, number)
        taken.append(seconds)
        memory.append(rss)
        bare = children_cpu_ms([sys.executable, "-c", "pass"], environment)
        whole = children_cpu_ms([sys.executable, "-c", "import tokenhub.app"], environment)
        imports.append((whole - bare) / 1000)
    return [
        Row("start", "hub", "s to the first 200", taken, at_most=0.4),
        Row("start", "hub", "idle RSS MB", memory, at_most=45),
        Row("start", "hub", "import CPU s", imports, at_most=0.15),
    ]


def command_line(bench: Bench) -> list[Row]:
    """CPU of whole commands, interpreter included."""
    mock = bench.mock("instant")
    hub = bench.hub(f"http://127.0.0.1:{mock.port}")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(bench.folder),
        "TOKENHUB_URL": f"http://127.0.0.1:{hub.port}",
        "TOKENHUB_ADMIN_TOKEN": ADMIN_TOKEN,
    }
    program = Path(sys.executable).with_name("tokenhubctl")
    rows = []
    for words, limit in (("version", 40.0), ("--help", 75.0), ("model list", 110.0)):
        command: list[str | Path] = [program, *words.split()]
        children_cpu_ms(command, environment)
        values = [children_cpu_ms(command, environment) for _ in range(bench.rounds * 3)]
        rows.append(Row("cli", f"tokenhubctl {words}", "CPU ms", values, at_most=limit))
    return rows


# Name → scenario and whether it says anything without the hub.
SCENARIOS: dict[str, tuple[Callable[[Bench], list[Row]], bool]] = {
    "json": (json_chats, True),
    "stream": (streams, True),
    "latency": (latency, True),
    "streams500": (streams_500, True),
    "streams2000": (streams_2000, True),
    "prompt200k": (large_prompt, True),
    "tls": (tls_upstream, False),
    "translated": (translated, False),
    "aged": (aged, False),
    "start": (start, False),
    "cli": (command_line, False),
}
