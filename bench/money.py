"""make bench-money: does the money add up, with a thousand clients at it and under kill -9?

    bench/money.py [--clients 1000] [--requests 4000] [--kills 50] [--folder DIR]

1. The ledger alone, in this process: what a reservation and its settlement cost and how long
   they take on this disk.
2. A real server before an upstream that keeps its own books: streams and whole answers, some
   clients that leave, a budget for about --requests answers. Every client goes on until it is
   refused with nothing in flight anywhere.
3. The same load, and kill -9 every now and then; after each restart the sums must hold.

Prints a table. The exit code is 1 when money was lost, made or left reserved.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from machine import BenchError, Process, describe, free_port, wait_for_port

from tokenhub.access.ledger import Ledger
from tokenhub.core.bounds import Measure
from tokenhub.core.catalog import Model, Prices
from tokenhub.core.chat import Usage
from tokenhub.core.clock import SystemClock
from tokenhub.storage.spool import FileSpool
from tokenhub.storage.sqlite import SqliteDatabase

HERE = Path(__file__).parent
TOKEN = "bench-money-admin-token"
NANO_PER_TOKEN = 1_000_000  # $1 per 1000 tokens: sums are easy to read
WORDS = 24  # tokens an answer has at most
PATIENCE = 600  # seconds until the crowd must have spent its budget
ROOM = 25.0  # dollars that each life of a killed server may spend
_TOTAL = re.compile(rb'"total_tokens": ?(\d+)[,}]')


class Key:
    """What the ledger alone is measured with."""

    revision = 0
    daily_budget = None
    total_budget = None

    def __init__(self, key_id: str, monthly_budget: int | None) -> None:
        self.key_id = key_id
        self.monthly_budget = monthly_budget


class Upstream:
    """An OpenAI-compatible server that notes what it would bill.

    Attributes:
        reported: tokens it told the client's side of, in whole answers and complete streams.
        produced: tokens it made, also for those who left.
        open: answers under way.
    """

    def __init__(self) -> None:
        self.reported = 0
        self.produced = 0
        self.answers = 0
        self.open = 0
        self.port = 0
        self._draw = random.Random("upstream")

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # RuntimeError: uvloop's word for a connection that the other side has closed.
        with contextlib.suppress(OSError, RuntimeError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"POST"):  # somebody asks for the models, or for health
                    writer.write(_head(b"application/json", 11) + b'{"data":[]}')
                    continue
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.open += 1
                try:
                    await self._answer(body, writer)
                finally:
                    self.open -= 1
        writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        prompt = self._draw.randrange(1, 40)
        completion = self._draw.randrange(1, min(body.get("max_tokens", WORDS), WORDS) + 1)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        await asyncio.sleep(self._draw.random() / 50)
        self.answers += 1
        if body.get("stream"):
            await self._stream(usage, writer)
            return
        message = {"role": "assistant", "content": "word " * completion}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
        text = json.dumps({**answer, "choices": [choice], "usage": usage}).encode()
        self.produced += prompt + completion
        writer.write(_head(b"application/json", len(text)) + text)
        await writer.drain()
        self.reported += prompt + completion

    async def _stream(self, usage: dict[str, int], writer: asyncio.StreamWriter) -> None:
        self.produced += usage["prompt_tokens"]
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(usage["completion_tokens"]):
            self.produced += 1
            _send_event(writer, [{"index": 0, "delta": {"content": "word "}}])
            await writer.drain()
            if self._draw.random() < 0.2:
                await asyncio.sleep(0.002)
        _send_event(writer, [{"index": 0, "delta": {}, "finish_reason": "stop"}])
        _send_event(writer, [], usage=usage)
        done = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done))
        await writer.drain()
        self.reported += usage["total_tokens"]


def _head(kind: bytes, length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, length)


def _send_event(writer: asyncio.StreamWriter, choices: list[Any], **more: object) -> None:
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    text = b"data: " + json.dumps({**head, "choices": choices, **more}).encode() + b"\n\n"
    writer.write(b"%x\r\n%b\r\n" % (len(text), text))


class Hub:
    """A server on a data directory that outlives it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lives = 0
        self.port = free_port()
        self.process: Process
        self.start()

    def start(self) -> None:
        self._lives += 1
        kept = {
            name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ
        }
        self.process = Process(
            [sys.executable, "-m", "tokenhub"],
            core=0,
            log=self._folder / f"hub-{self._lives}.log",
            environment=kept
            | {
                "HOME": str(self._folder),
                "TOKENHUB_LISTEN_ADDR": f"127.0.0.1:{self.port}",
                "TOKENHUB_DATA_DIR": str(self._folder / "data"),
                "TOKENHUB_ADMIN_TOKEN": TOKEN,
                "TOKENHUB_VAULT_PASSWORD": "bench-vault-password",
                "TOKENHUB_RATE_LIMIT_RPS": "0",
                "TOKENHUB_ADMIN_RATE_LIMIT_RPS": "0",
            },
        )
        wait_for_port(self.process, self.port)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.stop()

    def admin(self, method: str, path: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        connection.request(method, f"/admin/v1{path}", json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status != 200:
            raise BenchError(f"{method} {path}: {answer.status} {text[:500]}")
        return json.loads(text)

    def month(self, key_id: str) -> dict[str, Any]:
        """The running month of a key."""
        accounts = self.admin("GET", f"/budget/{key_id}")["accounts"]
        found: dict[str, Any] = next(one for one in accounts if one["period"] == "month")
        return found

    def problems(self) -> list[str]:
        """What `budget verify` finds."""
        found: list[str] = self.admin("POST", "/budget/verify")["problems"]
        return found


class Crowd:
    """Clients of one key. ``answered`` counts what complete answers were told they used."""

    def __init__(self, hub: Hub, key: str, *, leavers: float) -> None:
        self._port = hub.port
        self._key = key.encode()
        self._leavers = leavers
        self._draw = random.Random("crowd")
        self.rounds = 0
        self.admitted = 0
        self.refused = 0
        self.left = 0
        self.failed = 0
        self.answered = 0
        self.stop = False

    async def run(self, clients: int) -> None:
        """Everyone asks until refused; again, until a whole round gets nothing more.

        A round ends with nothing in flight, so what the last one is refused is really spent.
        """
        admitted = -1
        while admitted < self.admitted and not self.stop:
            admitted = self.admitted
            self.rounds += 1
            await asyncio.gather(*[self._client() for _ in range(clients)])

    async def go_on(self, clients: int) -> None:
        """The same until ``stop``: the budget grows meanwhile."""
        while not self.stop:
            await self.run(clients)
            await asyncio.sleep(0.02)

    async def _client(self) -> None:
        while not self.stop:
            stream = self._draw.random() < 0.5
            leave = self._draw.random() < self._leavers
            try:
                status = await self._ask(stream=stream, leave=leave)
            except (OSError, asyncio.IncompleteReadError, ValueError):
                self.failed += 1
                await asyncio.sleep(0.05)
                continue
            if status == 429:
                self.refused += 1
                return

    async def _ask(self, *, stream: bool, leave: bool) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            request = {"model": "m", "max_tokens": WORDS, "stream": stream}
            request["messages"] = [{"role": "user", "content": "hello"}]
            if stream:
                request["stream_options"] = {"include_usage": True}
            body = json.dumps(request).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
                b"content-type: application/json\r\nauthorization: Bearer %b\r\n"
                b"content-length: %d\r\n\r\n%b" % (self._key, len(body), body)
            )
            if leave:
                await asyncio.sleep(self._draw.random() / 25)
                self.left += 1
                return 0
            answer = await reader.read()
            status = int(answer.split(b" ", 2)[1]) if answer else 0
            if status == 200:
                tokens = _total_tokens(answer)
                self.admitted += tokens is not None
                self.failed += tokens is None
                self.answered += tokens or 0
            elif status == 429 and b"insufficient_quota" not in answer:
                raise ValueError(answer)
            elif status != 429:
                self.failed += 1
            return status
        finally:
            writer.close()


def _total_tokens(answer: bytes) -> int | None:
    """What a complete answer says it used; None for one that was cut."""
    found = _TOTAL.search(answer)
    whole = b"[DONE]" in answer or b"content-length" in answer.partition(b"\r\n\r\n")[0].lower()
    return int(found[1]) if found and whole else None


async def ledger_alone(folder: Path) -> list[tuple[str, str]]:
    """CPU per reserve and settle, and how long a reservation waits for this disk."""
    rows = []
    at_the_end_of_the_turn = asyncio.get_running_loop().call_soon
    model = Model(id="m", provider_id="p", prices=Prices(input=75_000_000, output=300_000_000))
    for name, budget in (("budgeted", 10**17), ("unbudgeted", None)):
        for clients, pairs in ((1, 300), (64, 20_000), (512, 60_000)):
            where = folder / f"{name}-{clients}.sqlite"
            db = await SqliteDatabase.open(where, SystemClock())
            ledger = await Ledger.open(db, SystemClock(), FileSpool(where))
            waits: list[float] = []
            key = Key(name, budget)

            async def client(
                count: int, ledger: Ledger = ledger, key: Key = key, waits: list[float] = waits
            ) -> None:
                for number in range(count):
                    limit = ledger.bound(key, model, Measure(text=900), max_tokens=100)
                    begun = time.perf_counter()
                    async with ledger.spend(key, f"r-{number}", 1, model, limit) as hold:
                        waits.append(time.perf_counter() - begun)
                        hold.note(sent=True)
                        await asyncio.sleep(0)
                        await hold.settle(Usage(prompt=210, completion=88))
                        at_the_end_of_the_turn(ledger.put_down)

            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*[client(pairs // clients) for _ in range(clients)])
            await ledger.flush()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            waits.sort()
            p50, p99 = waits[len(waits) // 2] * 1000, waits[len(waits) * 99 // 100] * 1000
            speed = f"{cpu / pairs * 1e6:.1f} us CPU a pair, {pairs / wall:,.0f} pairs/s durable"
            delay = f"reserve p50 {p50:.2f} ms p99 {p99:.2f} ms"
            rows.append((f"{name}, {clients} at once", f"{speed}, {delay}"))
            await ledger.close()
            await db.close()
    return rows


async def set_up(hub: Hub, upstream: Upstream) -> None:
    """A provider, a model at $1 per 1000 tokens."""
    base_url = f"http://127.0.0.1:{upstream.port}"
    provider = {"id": "bench", "type": "openai", "base_url": base_url, "api_key": "sk-bench"}
    model = {"id": "m", "provider_id": "bench", "input_per_1k": 1, "output_per_1k": 1}
    await asyncio.to_thread(hub.admin, "POST", "/providers", provider)
    await asyncio.to_thread(hub.admin, "POST", "/models", model)


def make_key(hub: Hub, name: str, budget: float) -> tuple[str, str]:
    """(id, secret) of a new key."""
    fields = {"name": name, "scopes": ["chat"], "monthly_budget_usd": budget}
    made = hub.admin("POST", "/apikeys", fields)
    return made["id"], made["key"]


async def crowd_at_a_budget(
    hub: Hub, upstream: Upstream, clients: int, requests: int
) -> tuple[list[tuple[str, str]], bool]:
    """Everyone until the budget is spent."""
    budget = round(requests * 0.030, 2)
    key_id, key = await asyncio.to_thread(make_key, hub, "crowd", budget)
    crowd = Crowd(hub, key, leavers=0.1)
    before, begun = upstream.produced, time.perf_counter()
    async with asyncio.timeout(PATIENCE):
        await crowd.run(clients)
    seconds = time.perf_counter() - begun
    await asyncio.sleep(0.5)
    month = await asyncio.to_thread(hub.month, key_id)
    problems = await asyncio.to_thread(hub.problems)
    billed = (upstream.produced - before) * NANO_PER_TOKEN / 1e9
    spent, leaked = month["spent_usd"], month["reserved_usd"]
    over = max(0.0, spent - budget)
    rows = [
        ("clients, budget", f"{clients}, ${budget:.2f}"),
        ("admitted / refused", f"{crowd.admitted} / {crowd.refused} in {seconds:.1f} s"),
        ("rounds until all were refused", str(crowd.rounds)),
        ("left early / failed", f"{crowd.left} / {crowd.failed}"),
        ("overshoot", f"${over:.9f}"),
        ("leaked holds", f"${leaked:.9f}"),
        ("usable share of the budget", f"{spent / budget:.2%}"),
        ("answers' own usage / booked", f"${crowd.answered / 1000:.3f} / ${spent:.3f}"),
        ("upstream made", f"${billed:.3f}, with what nobody waited for"),
        ("verify", "; ".join(problems) or "every account equals its rows"),
    ]
    right = not over and not leaked and not problems and spent >= 0.95 * budget
    return rows, right and crowd.answered / 1000 <= spent + 1e-9


async def under_kill(
    hub: Hub, upstream: Upstream, clients: int, kills: int
) -> tuple[list[tuple[str, str]], bool]:
    """kill -9 under load; what complete answers said must be booked, exactly or at the bound."""
    key_id, key = await asyncio.to_thread(make_key, hub, "killed", ROOM)
    draw = random.Random("kill")
    crowd = Crowd(hub, key, leavers=0.05)
    load = asyncio.create_task(crowd.go_on(min(clients, 200)))
    wrong: list[str] = []
    ready = []
    limit = ROOM
    for _ in range(kills):
        await asyncio.sleep(draw.uniform(0.2, 0.7))
        begun = time.perf_counter()
        await asyncio.to_thread(hub.kill)
        await asyncio.to_thread(hub.start)
        ready.append(time.perf_counter() - begun)
        wrong += await asyncio.to_thread(hub.problems)
        spent = (await asyncio.to_thread(hub.month, key_id))["spent_usd"]
        if spent > limit + 1e-9:
            wrong.append(f"${spent} spent of ${limit}")
        limit = round(spent + ROOM, 2)
        change = {"monthly_budget_usd": limit}
        await asyncio.to_thread(hub.admin, "PATCH", f"/apikeys/{key_id}", change)
    crowd.stop = True
    await load
    while upstream.open:  # noqa: ASYNC110  # no one tells
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    wrong += await asyncio.to_thread(hub.problems)
    month = await asyncio.to_thread(hub.month, key_id)
    spent = month["spent_usd"]
    over = max(0.0, spent - limit)
    rows = [
        ("kill -9", f"{kills}, ready again in at most {max(ready, default=0):.2f} s"),
        ("complete answers / refused", f"{crowd.admitted} / {crowd.refused}"),
        ("answers' own usage / booked", f"${crowd.answered / 1000:.3f} / ${spent:.3f}"),
        ("overshoot", f"${over:.9f}, with ${ROOM:g} more to spend after each start"),
        ("left reserved", f"${month['reserved_usd']:.9f}"),
        ("verify, after each start", "; ".join(wrong[:3]) or "every account equals its rows"),
    ]
    right = not wrong and not over and not month["reserved_usd"]
    return rows, right and crowd.answered / 1000 <= spent + 1e-9


def disk_of(folder: Path) -> str:
    """The device and file system that a folder is on."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, mount, kind, *_ = line.split()
        if str(folder.resolve()).startswith(mount) and len(mount) >= len(best[0]):
            best = (mount, f"{device} ({kind})")
    return best[1]


def show(title: str, rows: list[tuple[str, str]]) -> None:
    print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:32} {value}")


async def measure(options: argparse.Namespace, folder: Path) -> bool:
    machine = describe()
    print(f"{machine['cpu']}, Python {machine['python']}, {machine['commit']}, {machine['date']}")
    print(f"disk: {disk_of(folder)}")
    show("The ledger alone", await ledger_alone(folder))
    upstream = Upstream()
    await upstream.start()
    hub = await asyncio.to_thread(Hub, folder)
    try:
        await set_up(hub, upstream)
        rows, fair = await crowd_at_a_budget(hub, upstream, options.clients, options.requests)
        show("A crowd at a budget", rows)
        rows, safe = await under_kill(hub, upstream, options.clients, options.kills)
        show("Under kill -9", rows)
    finally:
        hub.process.stop()
    return fair and safe


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=4000, help="answers the budget is for")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (a temporary one)")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
    with tempfile.TemporaryDirectory(prefix="bench-money-", dir=options.folder) as folder:
        right = uvloop.run(measure(options, Path(folder)))
    print("\n" + ("the money adds up" if right else "THE MONEY DOES NOT ADD UP"))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
