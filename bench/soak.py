"""make bench-soak: half a million requests with nobody watching; what is left over?

    bench/soak.py [--requests 500000] [--round 10000] [--connections 32]

Rounds of whole answers (one key without a budget, one with) and streams come from the load
generator; meanwhile one client leaves in the middle of streams (1 % of all requests) and asks for
a model whose provider fails in five ways (1 %). After each round, with nothing under way, memory,
file descriptors, threads, open holds and rows that wait are read. At the end: the slope of the
memory with its 95 % interval (statistics of the last five minutes and hour fill up meanwhile, so
what counts is the second half), the growth of the file against what the rows must take, and whether
the money adds up to the nano-dollar.

The exit code is 1 when holds or file descriptors are left over, memory certainly grows by more
than a megabyte in 100,000 requests, rows are missing, or a sum is off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import uvloop
from loads import PATH
from machine import BenchError, describe
from scenarios import Bench
from subjects import HERE, LOAD_CORE, Hub, build_tools

ANSWER_NANO = 120 * 1_000 + 64 * 2_000  # what the mock's answer costs at the bench's prices
WARM_REQUESTS = 50_000
FD_SLACK = 16  # connections to providers that are kept open vary by a few
SLOPE_LIMIT_MB = 1.0
RARE = 100  # one request in so many leaves, and one fails
SHARES = {"plain": 0.48, "budgeted": 0.25, "stream": 0.25}
AT_ONCE = 20
_METRIC = re.compile(r"^(tokenhub_\w+)(?:\{[^}]*\})? ([-+.e\d]+)$", re.MULTILINE)


class Failing:
    """A provider that answers well half the time, and else fails in five ways by turns."""

    def __init__(self) -> None:
        self.port = 0
        self._turn = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, RuntimeError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                if head.startswith(b"GET"):
                    writer.write(_answer(b"200 OK", b'{"data":[]}'))
                elif not self._answer_chat(writer):
                    break
        writer.close()

    def _answer_chat(self, writer: asyncio.StreamWriter) -> bool:
        """False = now the connection breaks."""
        self._turn += 1
        if self._turn % 2:
            message = {"role": "assistant", "content": "well"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
            body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
            text = json.dumps({**body, "choices": [choice], "usage": usage}).encode()
            writer.write(_answer(b"200 OK", text))
            return True
        error = b'{"error":{"message":"no","type":"server_error"}}'
        way = self._turn // 2 % 5
        if way == 0:
            writer.write(_answer(b"500 Internal Server Error", error))
        elif way == 1:
            writer.write(_answer(b"429 Too Many Requests", error))
        elif way == 2:
            writer.write(_answer(b"200 OK", b"<html>not what was asked for</html>"))
        elif way == 3:
            writer.write(_answer(b"400 Bad Request", error))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{")
        return way != 4


def _answer(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


@dataclass
class Sample:
    """What the hub holds after a round, with nothing under way."""

    requests: int
    rss_mb: float
    fds: int
    threads: int
    holds: float
    pending: float


@dataclass
class Soak:
    """The subjects of one run and what was counted."""

    hub: Hub
    bodies: dict[str, Path]
    keys: dict[str, str]
    connections: int
    draw: random.Random = field(default_factory=lambda: random.Random("soak"))
    sent: int = 0
    budgeted: int = 0
    left: int = 0
    failed: int = 0
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    async def round(self, requests: int) -> None:
        """So many requests, then a sample."""
        rare = asyncio.create_task(self._rare(max(1, requests // RARE)))
        for name, share in SHARES.items():
            await self._load(name, int(requests * share))
        await rare
        self.samples.append(await self._settled())

    async def _load(self, name: str, count: int) -> None:
        words = [self.hub.port, self.connections, 600, 0, PATH, self.bodies[name], 0, count]
        process = await asyncio.create_subprocess_exec(
            "taskset", "--cpu-list", str(LOAD_CORE), HERE / "build" / "lg", *map(str, words),
            env=os.environ | {"BEARER": self.keys[name]},
            stdout=subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
        figures = json.loads(output)
        if figures["non200"] or figures["errors"]:
            self.problems.append(f"{name}: answers that are not 200, or broke: {figures}")
        self.sent += figures["done"]
        if name == "budgeted":
            self.budgeted += figures["done"]

    async def _rare(self, count: int) -> None:
        for first in range(0, count, AT_ONCE):
            together = min(AT_ONCE, count - first)
            await asyncio.gather(*[self._leave() for _ in range(together)])
            await asyncio.gather(*[self._fail() for _ in range(together)])

    async def _leave(self) -> None:
        """Ask for a stream of 1.3 s and hang up before the answer, or in the middle of it."""
        reader, writer = await self._ask("leaver", "slow-model", stream=True)
        await asyncio.sleep(self.draw.random() / 4)
        if self.draw.random() < 0.5:
            writer.transport.abort()
        writer.close()
        del reader
        self.sent += 1
        self.left += 1

    async def _fail(self) -> None:
        reader, writer = await self._ask("leaver", "failing-model", stream=False)
        answer = await reader.read()
        self.failed += not answer.startswith(b"HTTP/1.1 200")
        writer.close()
        self.sent += 1

    async def _ask(
        self, key: str, model: str, *, stream: bool
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.hub.port)
        request = {"model": model, "max_tokens": 64, "stream": stream}
        request["messages"] = [{"role": "user", "content": "hello"}]
        body = json.dumps(request).encode()
        writer.write(
            b"POST %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            b"content-type: application/json\r\nauthorization: Bearer %b\r\n"
            b"content-length: %d\r\n\r\n%b"
            % (PATH.encode(), self.keys[key].encode(), len(body), body)
        )
        return reader, writer

    async def metrics(self) -> dict[str, float]:
        """The exporter's numbers, summed over labels."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.hub.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        found: dict[str, float] = {}
        for name, value in _METRIC.findall(text):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    async def _settled(self, seconds: float = 10) -> Sample:
        """Wait until nothing is under way; what is left after that has leaked."""
        deadline = time.monotonic() + seconds
        while True:
            await asyncio.sleep(0.3)
            numbers = await self.metrics()
            holds = numbers["tokenhub_ledger_open_holds"]
            pending = numbers["tokenhub_journal_pending"] + numbers["tokenhub_series_pending"]
            if (not holds and not pending) or time.monotonic() > deadline:
                break
        proc = Path(f"/proc/{self.hub.process.pid}")
        return Sample(
            self.sent,
            self.hub.process.rss_mb(),
            len(list(proc.joinpath("fd").iterdir())),
            len(list(proc.joinpath("task").iterdir())),
            holds,
            pending,
        )


def slope(samples: list[Sample]) -> tuple[float, float]:
    """MB per 100,000 requests by least squares, and half its 95 % interval (Student's t)."""
    x = [one.requests / 100_000 for one in samples]
    y = [one.rss_mb for one in samples]
    if len(x) < 3:
        return 0.0, math.inf
    fit = statistics.linear_regression(x, y)
    free = len(x) - 2
    rest = sum((b - fit.slope * a - fit.intercept) ** 2 for a, b in zip(x, y, strict=True))
    spread = math.sqrt(rest / free / sum((a - statistics.mean(x)) ** 2 for a in x))
    z = 1.959964  # Abramowitz and Stegun 26.7.5 turns it into Student's
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return fit.slope, student * spread


def second_half(soak: Soak) -> list[Sample]:
    """The samples of the second half of the requests."""
    return [one for one in soak.samples if one.requests > soak.sent / 2]


def computed_bytes(connection: apsw.Connection) -> dict[str, tuple[int, int]]:
    """Rows and bytes by table, indices included, were every page full.

    SQLite's record format: a byte of header per column, integers in as many bytes as they need,
    text as it is, some 12 bytes for the cell; an index holds its columns and the row's number.
    """
    found = {}
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    for (table,) in tables:
        columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
        groups = [columns]
        for index in connection.execute(f'PRAGMA index_list("{table}")').fetchall():
            of_index = connection.execute(f'PRAGMA index_info("{index[1]}")').fetchall()
            groups.append([row[2] for row in of_index if row[2]])
        size = " + ".join(
            f"""CASE typeof("{name}") WHEN 'integer' THEN CASE
                WHEN "{name}" IN (0, 1) THEN 1 WHEN abs("{name}") < 128 THEN 2
                WHEN abs("{name}") < 32768 THEN 3 WHEN abs("{name}") < 8388608 THEN 4
                WHEN abs("{name}") < 2147483648 THEN 5 WHEN abs("{name}") < 140737488355328 THEN 7
                ELSE 9 END
            WHEN 'real' THEN 9 WHEN 'null' THEN 1
            ELSE length(CAST("{name}" AS BLOB)) + 1 + (length("{name}") > 57) END"""
            for group in groups
            for name in group
        )
        sql = f'SELECT COUNT(*), COALESCE(SUM({size}), 0) FROM "{table}"'
        rows, total = (int(str(value)) for value in connection.execute(sql).fetchall()[0])
        found[str(table)] = rows, total + 12 * rows * len(groups)
    return found


def _set_up(bench: Bench, failing_port: int) -> Soak:
    mock = bench.mock("instant")
    slow = bench.mock("drip", "20", "64")
    hub = bench.hub(f"http://127.0.0.1:{mock.port}", subscribed=False)
    for name, port in (("slow", slow.port), ("failing", failing_port)):
        provider = {"id": name, "type": "openai", "base_url": f"http://127.0.0.1:{port}"}
        hub.admin("POST", "/providers", provider)
        model = {"id": f"{name}-model", "provider_id": name}
        prices = {"input_per_1k": 0.001, "output_per_1k": 0.002}
        hub.admin("POST", "/models", model | prices)
    # One more budgeted key, so that what a leaver reserved is told apart.
    fields = {"name": "leaver", "monthly_budget_usd": 1_000_000.0, "scopes": '["chat"]'}
    leaver = hub.admin("POST", "/apikeys", fields)
    keys = {"plain": hub.key, "budgeted": hub.budgeted_key, "stream": hub.key}
    keys["leaver"] = leaver["key"]
    plain, stream = bench.body("bench-00"), bench.body("bench-01", stream=True)
    return Soak(hub, {"plain": plain, "budgeted": plain, "stream": stream}, keys, 32)


def _check_money(soak: Soak) -> list[str]:
    """What `budget verify` and `audit verify` say, and the accounts against what was answered."""
    hub, problems = soak.hub, list(soak.problems)
    problems += hub.admin("POST", "/budget/verify")["problems"]
    trail = hub.admin("GET", "/audit/verify")
    if not trail["ok"]:
        problems.append(f"the audit trail is broken: {trail}")
    names = {one["name"]: one["id"] for one in hub.admin("GET", "/apikeys")["keys"]}
    for name in ("budgeted", "leaver"):
        accounts = hub.admin("GET", f"/budget/{names[name]}")["accounts"]
        month = next(one for one in accounts if one["period"] == "month")
        if month["reserved_usd"]:
            problems.append(f"${month['reserved_usd']} of {name} are still reserved")
        if name == "budgeted":
            due = soak.budgeted * ANSWER_NANO
            booked = round(month["spent_usd"] * 1e9)
            if booked != due:
                problems.append(f"{booked} nano-dollars are booked where {due} were answered")
    return problems


def _check_samples(soak: Soak) -> list[str]:
    problems = []
    first, last = soak.samples[0], soak.samples[-1]
    if any(one.holds for one in soak.samples):
        problems.append(f"open holds after a round: {[one.holds for one in soak.samples]}")
    if last.fds > first.fds + FD_SLACK:
        problems.append(f"file descriptors grew from {first.fds} to {last.fds}")
    if last.threads > first.threads + 2:
        problems.append(f"threads grew from {first.threads} to {last.threads}")
    grows, half = slope(second_half(soak))
    if grows - half > SLOPE_LIMIT_MB:
        problems.append(f"memory grows by {grows:.2f} MB in 100,000 requests")
    return problems


def _show(soak: Soak, wall: float) -> None:
    print(f"\n{'REQUESTS':>9} {'RSS MB':>7} {'FDS':>5} {'THREADS':>7} {'HOLDS':>5} {'PENDING':>7}")
    step = max(1, len(soak.samples) // 20)
    shown = soak.samples[:-1:step] + soak.samples[-1:]
    for one in shown:
        print(
            f"{one.requests:9,} {one.rss_mb:7.1f} {one.fds:5} {one.threads:7} {one.holds:5.0f} "
            f"{one.pending:7.0f}"
        )
    print(
        f"\n{soak.sent:,} requests in {wall:.0f} s: {soak.budgeted:,} with a budget, "
        f"{soak.left:,} clients left, {soak.failed:,} answers were errors"
    )
    warm = [one for one in soak.samples if one.requests > WARM_REQUESTS]
    spans = {f"after the first {WARM_REQUESTS:,}": warm, "in the second half": second_half(soak)}
    for name, samples in spans.items():
        grows, half = slope(samples)
        print(
            f"memory {name}: {grows:+.2f} MB per 100,000 requests "
            f"(95 %: {grows - half:+.2f} to {grows + half:+.2f})"
        )


def _show_file(path: Path, before: int, sent: int) -> dict[str, tuple[int, int]]:
    connection = apsw.Connection(str(path))
    found = computed_bytes(connection)
    [(integrity,)] = connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
    grown = path.stat().st_size - before
    due = sum(size for _, size in found.values())
    print(
        f"file: {grown / sent:.0f} bytes a request, {grown / due:.2f} of what full pages would "
        f"take ({due / sent:.0f}); integrity {integrity}"
    )
    for table, (rows, size) in sorted(found.items(), key=lambda item: -item[1][1])[:6]:
        print(f"  {table:20} {rows:10,} rows {size / sent:8.1f} bytes a request")
    return found


async def soak_through(options: argparse.Namespace, folder: Path) -> list[str]:
    """All rounds; the problems found."""
    bench = Bench(folder, 0, 0, with_hub=True)
    failing = Failing()
    await failing.start()
    try:
        soak = await asyncio.to_thread(_set_up, bench, failing.port)
        soak.connections = options.connections
        database = soak.hub.data / "tokenhub.sqlite"
        before = database.stat().st_size
        began = time.monotonic()
        while soak.sent < options.requests:
            await soak.round(min(options.round, options.requests))
            print(f"{soak.sent:,} ...", file=sys.stderr, flush=True)
        wall = time.monotonic() - began
        numbers = await soak.metrics()
        problems = await asyncio.to_thread(_check_money, soak) + _check_samples(soak)
    finally:
        await asyncio.to_thread(bench.stop)
    _show(soak, wall)
    tables = _show_file(database, before, soak.sent)
    dropped = numbers["tokenhub_store_dropped_total"]
    logged = tables["request_log"][0]
    print(f"log: {logged:,} rows, {dropped:,.0f} dropped")
    # A client that hangs up before its request was read asked for nothing.
    if not soak.sent - soak.left <= logged + dropped <= soak.sent:
        problems.append(f"{soak.sent} requests were sent and {logged} logged")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=500_000)
    parser.add_argument("--round", type=int, default=10_000, help="requests between samples")
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    machine = describe()
    print("; ".join(f"{key} {value}" for key, value in machine.items()))
    try:
        build_tools()
        with tempfile.TemporaryDirectory(prefix="bench-soak-") as folder:
            problems = uvloop.run(soak_through(options, Path(folder)))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(f"PROBLEM: {problem}")
    print("nothing is left over" if not problems else "SOMETHING IS LEFT OVER")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
