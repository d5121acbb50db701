"""Upstreams that do exactly what a test says, on real sockets."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager

from tokenhub.providers.egress import parse_base_url

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


def answer(body=b"{}", *, status=b"200 OK", headers=b""):
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)


def chunked(*chunks, headers=b"", end=True):
    head = b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % headers
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + body + (b"0\r\n\r\n" if end else b"")


class Peer:
    """The server's end of one connection."""

    def __init__(self, server, reader, writer, number):
        self.server = server
        self.reader = reader
        self.writer = writer
        self.number = number

    async def request(self):
        """The next request as (head, body); None when the client is gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            found = _LENGTH.search(head)
            body = await self.reader.readexactly(int(found[1])) if found else b""
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self.server.requests.append((head, body))
        return head, body

    async def send(self, data):
        if self.writer.is_closing():  # uvloop raises a RuntimeError there
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def until_closed(self):
        """Wait for the client to hang up."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def reset(self):
        self.writer.transport.abort()


class Server:
    def __init__(self, script):
        self._script = script
        self.accepts = 0
        self.now_open = 0
        self.most_open = 0
        self.closes = asyncio.Semaphore(0)
        self.requests = []
        self.errors = []
        self.tasks = set()

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        self.accepts += 1
        self.now_open += 1
        self.most_open = max(self.most_open, self.now_open)
        try:
            await self._script(Peer(self, reader, writer, self.accepts))
        except (ConnectionError, asyncio.CancelledError):
            pass
        except Exception as error:  # noqa: BLE001 - shown by upstream()
            self.errors.append(error)
        finally:
            self.now_open -= 1
            self.closes.release()
            writer.transport.abort()


@asynccontextmanager
async def upstream(script, *, tls=None, host="127.0.0.1"):
    """A server that runs ``script(peer)`` for each connection; gives it with its origin."""
    server = Server(script)
    listener = await asyncio.start_server(server.serve, host, 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server.port = port
    server.origin = parse_base_url(f"{'https' if tls else 'http'}://{host}:{port}")
    try:
        yield server
    finally:
        listener.close()
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
    assert server.errors == []


def always(data):
    """A script that gives each request the same answer and keeps the connection."""

    async def script(peer):
        while await peer.request() is not None:
            await peer.send(data)

    return script


def once(data, *, then="close"):
    """A script that answers the first request with ``data``, then closes, resets or hangs."""

    async def script(peer):
        await peer.request()
        await peer.send(data)
        if then == "hang":
            await peer.until_closed()
        elif then == "reset":
            peer.reset()

    return script


class Wire(asyncio.Transport):
    """The socket's place for tests that decide where each read is cut."""

    def __init__(self):
        super().__init__()
        self.written = []
        self.closed = False
        self.reading = True

    def write(self, data):
        self.written.append(data)

    def abort(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


def mutated(data, mutations):
    """``data`` with bytes put in: where, which, and how many they replace."""
    for place, news, gone in mutations:
        at = place % (len(data) + 1)
        data = data[:at] + news + data[at + gone :]
    return data
