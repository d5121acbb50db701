"""Any bytes, cut anywhere: no crash, no hang, the same reading as llhttp and as uncut.

TOKENHUB_FUZZ=1000000 gives the number of inputs; the default takes a few seconds.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from itertools import pairwise

import httptools
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenhub.core.clock import SystemClock
from tokenhub.web.connection import CLOSING, RUNNING, Connection
from tokenhub.web.http import Response
from tokenhub.web.http1 import HttpServer, Limits

COUNT = int(os.environ.get("TOKENHUB_FUZZ", "0"))
# More inputs than a sample get more than the two minutes that every test has.
pytestmark = pytest.mark.timeout(120 + COUNT // 100)

PIECES = [
    b"GET / HTTP/1.1\r\n", b"POST /a%2Fb?c HTTP/1.1\r\n", b"HEAD / HTTP/1.0\r\n", b"GET ",
    b"OPTIONS * HTTP/1.1\r\n", b"Host: h\r\n", b"Host: h:80\r\n", b"\r\n", b"\r\n\r\n", b"\n",
    b" ", b"\t", b":", b"\0", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"abc", b"3",
    b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", b"a\r\n0123456789\r\n", b"0\r\n\r\n",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n",
    b"X: y\r\n", b"X:\r\n", b"X: \xff \t\r\n", b"Upgrade: h2c\r\n", b"X-Request-Id: 1\r\n", b";",
    b"\r", b" HTTP/",
]  # fmt: skip
HOST = b" HTTP/1.1\r\nHost: h\r\n"
WHOLE = [
    b"GET /1" + HOST + b"X: y\r\n\r\n",
    b"POST /2" + HOST + b"Content-Length: 11\r\n\r\nhello world",
    b"POST /3" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n02\r\nde\r\n0\r\n\r\n",
    b"POST /4" + HOST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"HEAD /5" + HOST + b"\r\n",
]
ANSWER = re.compile(
    rb"HTTP/1\.1 (?P<status>[2-5]\d\d) [A-Za-z ]+\r\n(?:[A-Z][A-Za-z-]+: [^\r\n]*\r\n)*?"
    rb"Content-Length: (?P<length>\d+)\r\n(?:[A-Z][A-Za-z-]+: [^\r\n]*\r\n)*\r\n"
)


class Wire(asyncio.Transport):
    """The socket's side, in memory."""

    def __init__(self):
        super().__init__()
        self.sent = b""
        self.closed = False
        self.ended = False
        self.paused = False

    def write(self, data):
        assert not self.closed
        assert not self.ended
        self.sent += data

    def write_eof(self):
        self.ended = True

    def close(self):
        self.closed = True

    abort = close

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        assert not self.paused
        self.paused = True

    def resume_reading(self):
        assert self.paused
        self.paused = False

    def get_write_buffer_size(self):
        return 0


class Room:
    """One server and its loop; ``read`` plays one connection."""

    def __init__(self):
        self.loop = uvloop.new_event_loop()
        self.seen = []
        limits = Limits(read_ahead=64, small_chunks=4)
        self.server = HttpServer(
            self.handle, SystemClock(), limits=limits, body_limit=lambda _: 1000
        )
        self.loop.run_until_complete(self.server.start("127.0.0.1", 0))

    async def handle(self, request):
        self.seen.append((request.method.encode(), request.target, request.headers, request.body))
        if len(self.seen) % 2:
            await asyncio.sleep(0)
        return Response(200, b"ok")

    def read(self, pieces):
        return self.loop.run_until_complete(self._read(pieces))

    async def _read(self, pieces):
        self.seen = []
        wire = Wire()
        connection = Connection(self.server)
        connection.connection_made(wire)
        for piece in pieces:
            await self._settle(connection, wire)
            if wire.closed:
                break
            connection.data_received(piece)
        await self._settle(connection, wire)
        self.server.outbox.flush()
        refused = wire.ended
        assert (connection.state == CLOSING) == (wire.closed or wire.ended)
        # What never came whole waits in the buffer, within the limits of a head.
        assert len(connection._buffer) <= 32_768
        wire.closed = True
        connection.connection_lost(None)
        assert not self.server.connections
        return self.seen, refused, wire.sent

    async def _settle(self, connection, wire):
        for _ in range(1000):
            if connection.state != RUNNING:
                assert not wire.paused or wire.closed
                return
            await asyncio.sleep(0)
        raise AssertionError("it hangs")


def llhttp(raw):
    """The requests that llhttp reads in ``raw``, and whether a method unknown to it ended that."""
    requests = []

    class Reader:
        def on_message_begin(self):
            self.target, self.headers, self.body = b"", {}, b""

        def on_url(self, url):
            self.target += url

        def on_header(self, name, value):
            name, value = name.lower(), value.rstrip(b" \t")
            known = self.headers.get(name)
            self.headers[name] = value if known is None else known + b", " + value

        def on_body(self, body):
            self.body += body

        def on_message_complete(self):
            requests.append((parser.get_method(), self.target, self.headers, self.body))

    parser = httptools.HttpRequestParser(Reader())
    unknown = False
    try:
        parser.feed_data(raw)
    except httptools.HttpParserInvalidMethodError:
        unknown = True
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        unknown = False
    return requests, unknown


def answers(sent, requests):
    """The statuses in ``sent``; fails when it is not a row of whole answers."""
    statuses = []
    while sent:
        if sent.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
            sent = sent[25:]
            continue
        found = ANSWER.match(sent)
        assert found, sent
        number = len(statuses)
        mute = number < len(requests) and requests[number][0] == b"HEAD"
        length = 0 if mute else int(found["length"])
        assert len(sent) >= found.end() + length or found["status"] != b"200"
        statuses.append(int(found["status"]))
        sent = sent[found.end() + length :]
    return statuses


def check(room, raw, cuts):
    seen, refused, sent = room.read([raw] if raw else [])
    statuses = answers(sent, seen)
    assert statuses[: len(seen)] == [200] * len(seen)
    assert len(statuses) == len(seen) + refused
    assert all(400 <= status < 500 for status in statuses[len(seen) :])
    judged, unknown = llhttp(raw)
    assert judged[: len(seen)] == (seen[: len(judged)] if unknown else seen)
    edges = [0, *sorted({cut % (len(raw) + 1) for cut in cuts}), len(raw)]
    pieces = [raw[a:b] for a, b in pairwise(edges) if a < b]
    again, refused_again, _ = room.read(pieces)
    assert (again, refused_again) == (seen, refused)
    return len(seen), refused


@pytest.fixture(scope="module")
def room():
    room = Room()
    yield room
    room.loop.run_until_complete(room.server.close())
    room.loop.close()


piece = st.sampled_from(PIECES) | st.sampled_from(WHOLE) | st.binary(max_size=4)
raws = st.lists(piece, max_size=14).map(b"".join)


@settings(
    max_examples=max(300, COUNT // 100),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(raw=raws, cuts=st.lists(st.integers(0, 2000), max_size=6))
def test_any_pieces(room, raw, cuts):
    check(room, raw, cuts)


def mutate(draw, raw):
    """Change, drop, double or insert a few bytes."""
    for _ in range(draw.randrange(4)):
        at, much = draw.randrange(len(raw) + 1), draw.randrange(1, 8)
        match draw.randrange(4):
            case 0:
                raw = raw[:at] + draw.randbytes(1) + raw[at + 1 :]
            case 1:
                raw = raw[:at] + raw[at + much :]
            case 2:
                raw = raw[:at] + raw[at : at + much] + raw[at:]
            case _:
                raw = raw[:at] + draw.choice(PIECES) + raw[at:]
    return raw


def test_real_requests_with_faults(room):
    draw = random.Random(os.environ.get("TOKENHUB_FUZZ_SEED", "edge"))
    handled = refusals = 0
    for _ in range(max(15_000, COUNT)):
        raw = b"".join(mutate(draw, draw.choice(WHOLE)) for _ in range(draw.randrange(1, 5)))
        cuts = [draw.randrange(len(raw) + 1) for _ in range(draw.randrange(6))]
        seen, refused = check(room, raw, cuts)
        handled += seen
        refusals += refused
    # Both sides of the line are well visited.
    assert handled > 1000
    assert refusals > 1000
