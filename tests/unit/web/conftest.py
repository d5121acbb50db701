"""A real server on a real socket, and a client that sends exactly the bytes it is told."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest
import uvloop

from tokenhub.core.clock import SystemClock
from tokenhub.web.http import Response
from tokenhub.web.http1 import HttpServer, Limits

PATIENCE = 10.0


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Client:
    """One connection."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    def send(self, data):
        self.writer.write(data)

    async def answer(self, method="GET"):
        """The next whole answer; IncompleteReadError when the connection breaks within it."""
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            line, *lines = head[:-4].split(b"\r\n")
            status = int(line.split(b" ")[1])
            pairs = [each.split(b": ", 1) for each in lines]
            headers = {name.lower(): value for name, value in pairs}
            assert len(headers) == len(pairs), "a header was sent twice"
            if method == "HEAD" or status in {100, 204, 304}:
                body = b""
            elif b"content-length" in headers:
                body = await self.reader.readexactly(int(headers[b"content-length"]))
            elif headers.get(b"transfer-encoding") == b"chunked":
                body = await self._chunks()
            else:
                body = await self.reader.read()
            return Answer(status, headers, body)

    async def _chunks(self):
        body = b""
        while True:
            size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
            data = await self.reader.readexactly(size + 2)
            assert data[-2:] == b"\r\n"
            if not size:
                return body
            body += data[:-2]

    async def rest(self):
        """Everything until the server closes."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    def close(self):
        self.writer.close()

    def reset(self):
        self.writer.transport.abort()


class Harness:
    """Servers and clients of one test."""

    def __init__(self):
        self.servers = []
        self.clients = []
        self.loop_errors = []

    async def serve(self, handler, **options):
        limits = Limits(**options.pop("limits", {}))
        server = HttpServer(handler, SystemClock(), limits=limits, **options)
        self.port = await server.start("127.0.0.1", 0)
        self.servers.append(server)
        return server

    async def connect(self, **options):
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        self.clients.append(client)
        return client

    async def exchange(self, raw):
        """Send ``raw``, return all that comes until the server closes."""
        client = await self.connect()
        client.send(raw)
        return await client.rest()

    async def close(self):
        for client in self.clients:
            client.reset()
        for server in self.servers:
            await server.close()
        assert not self.loop_errors, self.loop_errors


def pytest_asyncio_loop_factories(config, item):
    """The edge's own tests run on both loops, the rest of this folder on uvloop."""
    both = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    if item.path.name in {"test_http1.py", "test_smuggling.py"}:
        return both
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def http():
    harness = Harness()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: harness.loop_errors.append(context))
    yield harness
    await harness.close()


@pytest.fixture
def echo():
    """A handler that answers with what it saw, and keeps the requests."""

    async def handler(request):
        handler.seen.append(request)
        return Response(200, request.method.encode() + b" " + request.target + b" " + request.body)

    handler.seen = []
    return handler
