"""Run the server, or the demo provider alone, until a signal; tell the person who started it."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import shlex
import signal
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

import uvloop

from tokenhub import __version__
from tokenhub.access.keys import DEMO_FILE
from tokenhub.app import App
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import HubError
from tokenhub.storage.database import StorageRefused
from tokenhub.telemetry.logging import set_up
from tokenhub.web.http import Response
from tokenhub.web.http1 import HttpServer

if TYPE_CHECKING:
    from tokenhub.providers.demo import DemoProvider
    from tokenhub.settings import Settings
    from tokenhub.telemetry.log_sink import Sink
    from tokenhub.web.http import Request

log = logging.getLogger(__name__)


def run(settings: Settings, *, check: bool = False) -> int:
    """Run the server until a signal; the exit code."""
    sink = set_up(settings.log_level)
    for line in settings.warnings:
        log.warning("%s", line)
    return uvloop.run(_run(settings, sink, check=check))


async def _run(settings: Settings, sink: Sink, *, check: bool) -> int:
    try:
        app = await App.build(settings)
    except (StorageRefused, HubError) as error:
        hint = getattr(error, "hint", None)
        return _not_started(f"{error}{' ' + hint if hint else ''}")
    except OSError as error:
        return _not_started(
            f"{settings.data_dir} cannot be written: {_reason(error)}. Check its disk and owner."
        )
    if check:
        await app.close()
        print("tokenhub: the settings are right and the data can be opened.")
        return 0
    try:
        port = await app.start()
    except OSError as error:
        await app.close()
        where = _authority(settings.listen_host, settings.listen_port)
        taken = error.errno == errno.EADDRINUSE
        return _not_started(
            f"cannot listen on {where}: {_reason(error)}. "
            f"{'Stop what listens there, or set' if taken else 'Set'} TOKENHUB_LISTEN_ADDR."
        )
    stop = _stop_signal()
    _settle_memory()
    for line in first_lines(app, port):
        sink.say(line)
    await stop
    await app.stop()
    return 0


def _settle_memory() -> None:
    """Spare the cycle collector what stays for good, and look for the rest less often.

    A request leaves no cycles behind, so with the usual thresholds a sixth of its time would go
    into looking for some.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    gc.enable()


def _not_started(why: str) -> int:
    print(f"tokenhub: not started: {why}", file=sys.stderr)
    return 3


def _reason(error: OSError) -> str:
    # The loop puts a sentence of its own, with the address once more, into strerror; the errors
    # of name resolution have negative numbers and only a strerror.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error.strerror or error)


def _stop_signal() -> asyncio.Future[signal.Signals]:
    """Done when the process is asked to stop; from here on it does not simply die."""
    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def asked(number: signal.Signals) -> None:
        if not stop.done():
            stop.set_result(number)
        elif number != signal.SIGHUP:  # a terminal that closes may send it twice: no impatience
            raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
        loop.add_signal_handler(signal.SIGHUP, asked, signal.SIGHUP)
    return stop


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def first_lines(app: App, port: int) -> list[str]:
    """What a person needs to know at the start: six lines, no secret."""
    host = app.settings.listen_host
    shown = "localhost" if host in {"127.0.0.1", "0.0.0.0", "::"} else host
    url = f"http://{_authority(shown, port)}"
    data = app.data.path
    catalog = app.catalog.current
    if "demo" in catalog.models and catalog.models["demo"].source == "runtime":
        providers = 'none yet; the built-in demo provider answers (model "demo", offline, free)'
        key = f"$(cat {shlex.quote(str(data / DEMO_FILE))})"
        body = '{"model":"demo","messages":[{"role":"user","content":"Hello"}]}'
        attempt = (
            f'curl -s {url}/v1/chat/completions -H "Authorization: Bearer {key}" '
            f"-H 'Content-Type: application/json' -d '{body}'"
        )
    else:
        providers = f"{len(catalog.providers)} with {len(catalog.models)} models"
        attempt = 'tokenhubctl model list; a key: tokenhubctl apikey create \'{"name":"my-app"}\''
    vault = (
        "off"
        if not app.vault.enabled
        else "not created yet: tokenhubctl vault unlock"
        if not app.vault.initialized
        else "locked: tokenhubctl vault unlock"
        if app.vault.locked
        else "unlocked"
    )
    return [
        f"TokenHub {__version__}  {url}",
        f"data         {data}",
        f"admin token  {data / '.admin-token'}   (tokenhubctl admin-token)",
        f"vault        {vault}",
        f"providers    {providers}",
        f"try it       {attempt}",
    ]


def run_demo_provider(port: int) -> int:
    """Serve the demo provider alone, over HTTP on 127.0.0.1, until a signal."""
    return uvloop.run(_run_demo_provider(port))


async def _run_demo_provider(port: int) -> int:
    from tokenhub.providers.demo import DemoProvider  # noqa: PLC0415  # the server has its own way

    clock = SystemClock()
    demo = DemoProvider(clock)
    server = HttpServer(lambda request: _demo_answer(demo, request), clock)
    try:
        port = await server.start("127.0.0.1", port)
    except OSError as error:
        return _not_started(f"cannot listen on 127.0.0.1:{port}: {_reason(error)}.")
    stop = _stop_signal()
    print(f"demo provider listening on http://127.0.0.1:{port}", flush=True)
    await stop
    await server.drain(1)
    return 0


async def _demo_answer(demo: DemoProvider, request: Request) -> Response | None:
    status, headers, body, cut = await demo.answer(
        request.method, request.target, request.headers, bytes(request.body)
    )
    if isinstance(body, bytes) and not cut:
        rest = [pair for pair in headers if pair[0] != b"content-type"]
        kind = dict(headers).get(b"content-type", b"application/json")
        return Response(status, body, rest, kind)
    stream = request.open_stream(status, headers)
    pieces = iter([(0.0, body)]) if isinstance(body, bytes) else body
    try:
        for pause, piece in pieces:
            if pause:
                await asyncio.sleep(pause)
            stream.write(piece)
            await stream.drain()
    finally:
        if isinstance(pieces, Generator):
            pieces.close()  # a client that leaves early is charged for what it got
    if cut:
        stream.abort()
    else:
        stream.end()
    return None
