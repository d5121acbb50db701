"""Both ends of the gateway: providers that follow a script, a client that notes what it gets."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager

import msgspec

from tokenhub.access.keys import Grant
from tokenhub.access.ledger import Ledger
from tokenhub.access.limits import KeyLimits
from tokenhub.core.catalog import Catalog, Model, Prices, Provider
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import FailureClass, TransportError
from tokenhub.gateway.lanes import Lanes
from tokenhub.gateway.pipeline import Pipeline
from tokenhub.providers import adapters
from tokenhub.providers.upstream import Answer, Timeouts
from tokenhub.routing.router import Router
from tokenhub.storage.spool import FileSpool
from tokenhub.storage.sqlite import SqliteDatabase

FOREVER = None
PRICES = Prices(input=1_000_000_000, output=1_000_000_000, source="manual")
HELLO = [{"role": "user", "content": "Hello"}]
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
DONE = b"data: [DONE]\n\n"


def word(text, finish=None):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n"


def whole(text):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "c", "model": "up", "choices": [choice], "usage": USAGE}).encode()


def broken(kind=FailureClass.RESET):
    return TransportError(kind, "the connection broke", sent=True)


class Stream(Answer):
    """An answer under way that a test feeds by ``push``, as a socket would: at any moment."""

    def __init__(self, status=200):
        super().__init__(status, {}, None)
        self.early = []
        self.sink = None
        self.over = asyncio.get_running_loop().create_future()
        self.reading = True
        self.aborted = False

    async def relay(self, sink):
        self.sink = sink
        early, self.early = self.early, []
        try:
            for data in early:
                sink(data)
            await self.over
        finally:
            self.abort()

    def push(self, *pieces):
        for data in pieces:
            if self.aborted:
                return
            if self.sink is None:
                self.early.append(data)
                continue
            try:
                self.sink(data)
            except Exception as error:  # noqa: BLE001  # as the port says, relay() raises it
                self.abort(error)

    def end(self):
        if not self.over.done():
            self.over.set_result(None)

    def fail(self, error):
        if not self.over.done():
            self.over.set_exception(error)

    def pause(self):
        self.reading = False

    def resume(self):
        self.reading = True

    def abort(self, error=None):
        self.aborted = True
        if self.sink is None:
            self.over.cancel()
        else:
            self.fail(error or broken())


class Upstream:
    """Answers by the host's script: an Answer (or what makes one), an error to raise, or FOREVER.

    Attributes:
        asked: hosts in the order they were asked.
        left: hosts whose request was cancelled before any answer.
    """

    def __init__(self, scripts):
        self.scripts = {host: list(script) for host, script in scripts.items()}
        self.asked = []
        self.bodies = []
        self.left = []

    async def send(self, origin, request, timeouts, stream):
        self.asked.append(origin.host)
        self.bodies.append(msgspec.json.decode(request.body))
        script = self.scripts[origin.host]
        step = script.pop(0) if len(script) > 1 else script[0]
        if step is FOREVER:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.left.append(origin.host)
        if callable(step):
            step = await step()
        if isinstance(step, Exception):
            raise step
        if isinstance(step, bytes):
            return Answer(200, {}, step)
        return step


class ClientStream:
    """The client's side; ``told`` is all that happened to it, in order."""

    def __init__(self, told):
        self.told = told
        self.paused = False
        self.on_pause = self.on_resume = None

    def write(self, data):
        if data:
            self.told.append(("write", data))

    def end(self, data=b""):
        self.told.append(("end", data))

    def abort(self):
        self.told.append(("abort", b""))


class Client:
    """A request and what its client gets."""

    def __init__(self, body, number=1):
        self.id = f"r-{number}"
        self.client_id = ""
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.at_ms = time.time_ns() // 1_000_000
        self.peer = "127.0.0.1"
        self.headers = {}
        self.heads = []
        self.told = []
        self.stream = None

    def open_stream(self, status, headers):
        self.heads.append((status, dict(headers)))
        self.stream = ClientStream(self.told)
        return self.stream

    @property
    def text(self):
        return b"".join(data for _, data in self.told)


def grant(**fields):
    """A key that may do everything; ``fields`` narrow it."""
    whole = Grant(
        key_id="k",
        revision=1,
        name="app",
        scopes=frozenset({"chat"}),
        enabled=True,
        expires_at=None,
        rotate_by=None,
        monthly_budget=None,
        daily_budget=None,
        total_budget=None,
        budget_reset_at=None,
        rate_limit_rps=-1,
        max_concurrent=0,
        models=(),
        mode="",
        allow_fallback=True,
        allow_directives=False,
    )
    return msgspec.structs.replace(whole, **fields)


class Stage:
    """A gateway over scripted providers; each has one model of the same name."""

    def __init__(self, clock, db, ledger, upstream, lanes, pipeline, router, calls):
        self.clock = clock
        self.db = db
        self.ledger = ledger
        self.upstream = upstream
        self.lanes = lanes
        self.pipeline = pipeline
        self.router = router
        self.calls = calls

    def client(self, model="a", **fields):
        return Client({"model": model, "messages": HELLO} | fields, len(self.calls) + 1)


@asynccontextmanager
async def stage(path, scripts, *, first_token_s=5.0, hedging=None, aliases=None, spooled=False):
    clock = SystemClock()
    file = path / "stage.sqlite"
    db = await SqliteDatabase.open(file, clock)
    ledger = await Ledger.open(db, clock, FileSpool(file) if spooled else None)
    catalog = Catalog(
        version=1,
        providers={
            name: Provider(id=name, type="openai", base_url=f"http://{name}") for name in scripts
        },
        models={name: Model(id=name, provider_id=name, prices=PRICES) for name in scripts},
    )
    router = Router(clock)
    router.update(catalog=catalog, aliases=aliases or {})
    upstream = Upstream(scripts)
    calls = []
    lanes = Lanes(
        lambda: catalog, adapters(clock), upstream, upstream, lambda _: None, lambda: False
    )
    pipeline = Pipeline(
        clock=clock,
        router=router,
        ledger=ledger,
        limits=KeyLimits(clock, default_rps=0, default_burst=1),
        lanes=lanes,
        timeouts=Timeouts(),
        deadline_s=30.0,
        first_token_s=first_token_s,
        hedging=hedging,
        observers=[calls.append],
    )
    try:
        yield Stage(clock, db, ledger, upstream, lanes, pipeline, router, calls)
        assert ledger.open_holds == 0
    finally:
        await ledger.close()
        await db.close()


async def until(ready, pause=0.0):
    """Let the loop turn until something has happened."""
    for _ in range(1000):
        if ready():
            return
        await asyncio.sleep(pause)
    raise AssertionError("it did not happen")
