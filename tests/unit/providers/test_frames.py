"""Known heads: an answer reads the same whether its head was known or parsed."""

from __future__ import annotations

import asyncio
import itertools
import os
import re

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.providers.scripted import Wire, answer, chunked, upstream

from tokenhub.core.errors import TransportError
from tokenhub.core.outbox import Outbox
from tokenhub.providers import connection as connection_module
from tokenhub.providers.connection import Connection
from tokenhub.providers.frames import MAX_KNOWN, Frames
from tokenhub.providers.transport import HttpTransport, Timeouts
from tokenhub.providers.upstream import Heading, UpstreamRequest

FUZZ = int(os.environ.get("TOKENHUB_FUZZ", "400"))
# More inputs than a sample get more than the two minutes that every test has.
pytestmark = pytest.mark.timeout(120 + FUZZ // 100)
SETTINGS = settings(max_examples=FUZZ, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# As a hosted provider behind a content network sends them; what stands in {} differs each time.
USUAL = b"".join(
    line + b"\r\n"
    for line in (
        b"Date: Mon, 23 Nov 2026 16:27:{n:02} GMT",
        b"Content-Type: application/json",
        b"Connection: keep-alive",
        b"access-control-expose-headers: X-Request-ID",
        b"openai-organization: user-abcdef",
        b"openai-processing-ms: {n}",
        b"openai-version: 2020-10-01",
        b"x-envoy-upstream-service-time: {n}",
        b"x-ratelimit-limit-requests: 10000",
        b"x-ratelimit-remaining-requests: {n}",
        b"x-ratelimit-remaining-tokens: {n}",
        b"x-ratelimit-reset-tokens: {n}ms",
        b"x-request-id: req_{n:032x}",
        b"strict-transport-security: max-age=31536000; includeSubDomains; preload",
        b"Set-Cookie: a={n}; path=/",
        b"Set-Cookie: b={n}; path=/",
        b"Server: cloudflare",
        b"CF-RAY: {n:016x}-FRA",
        b'alt-svc: h3=":443"; ma=86400',
    )
)


def usual(n):
    return re.sub(rb"{n:?([^}]*)}", lambda found: format(n, found[1].decode()).encode(), USUAL)


@pytest.fixture(scope="module")
def loop():
    """One loop for all inputs."""
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


class Blind(Frames):
    """Knows no head and learns none."""

    def __init__(self):
        super().__init__()
        self.curious = False


def knowing(*heads):
    frames = Frames()
    for head in heads:
        frames.learn(head)
    assert len(frames.known) == len(set(heads))
    return frames


class Owner:
    def __init__(self):
        self.events = []

    def released(self, connection):
        self.events.append("released")

    def lost(self, connection):
        self.events.append("lost")


def drive(loop, frames, exchanges, *, eof=False):
    """All that callers and the owner see of some answers on one connection.

    Each is the pieces it comes in, and whether it is asked for as a stream.
    """
    owner, wire = Owner(), Wire()
    connection = Connection(loop, owner, Outbox(loop), frames)
    connection.connection_made(wire)
    seen = []
    for pieces, stream in exchanges:
        if wire.closed:
            break
        loop.run_until_complete(exchange(connection, wire, owner, pieces, stream, eof, seen))
        seen.append(tuple(owner.events))
    connection.close()
    connection.connection_lost(None)
    return seen


async def exchange(connection, wire, owner, pieces, stream, eof, seen):
    waiter = connection.exchange(b"", Timeouts(), stream)
    connection._outbox.flush()
    body = bytearray()
    for piece in pieces:
        if not wire.closed:
            connection.data_received(piece)
            seen.append((waiter.done(), connection._size > 0, len(owner.events)))
    if eof and not wire.closed:
        connection.eof_received()
    if not waiter.done() or (stream and connection._stream is not None):
        connection.close()
    try:
        got = await waiter
        seen.append((got.status, tuple(got.headers.items())))
        await got.relay(body.extend)
        seen.append("complete")
    except TransportError as error:
        seen.append((type(error), error.kind, error.message, error.sent))
    seen.append(bytes(body))


def pieces_of(data, cuts):
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def parsed(monkeypatch):
    """Counts what is given to the parser."""
    fed = []

    class Parser(connection_module.HttpResponseParser):
        def feed_data(self, data):
            fed.append(bytes(data))
            super().feed_data(data)

    monkeypatch.setattr(connection_module, "HttpResponseParser", Parser)
    return fed


class TestWhatIsKnown:
    def test_a_head_like_the_last_one_is_not_parsed(self, loop, monkeypatch):
        fed = parsed(monkeypatch)
        answers = [answer(b'{"n":%d}' % n, headers=usual(n)) for n in range(12)]
        seen = drive(loop, Frames(), [([one], False) for one in answers])
        assert fed == answers[:1]
        assert seen == drive(loop, Blind(), [([one], False) for one in answers])

    @pytest.mark.parametrize(
        "length",
        [b"3 ", b"1 2", b" 3", b"\t3", b"3\t", b"+3", b"-3", b"3,3", b"3, 3", b"0x3", b"1_2",
         b"00012", b"3.0", b"", b"3;", b"\xb2", b"12", b"2", b"4", b"000000000003", b"9" * 20],
    )  # fmt: skip
    def test_a_length_is_read_as_the_parser_reads_it(self, loop, length):
        usual = answer(b"abc")
        raw = usual.replace(b"Content-Length: 3", b"Content-Length: " + length)
        for body in (b"abc", b"abcdefghijkl"):
            came = [([raw.removesuffix(b"abc") + body], False)]
            known = drive(loop, knowing(usual), came, eof=True)
            assert known == drive(loop, Blind(), came, eof=True)

    def test_of_a_stream_only_what_it_says_of_the_body_is_parsed(self, loop, monkeypatch):
        fed = parsed(monkeypatch)
        answers = [chunked(b"data: %d\n\n" % n, headers=usual(n)) for n in range(3)]
        drive(loop, Frames(), [([one], True) for one in answers])
        assert fed[0] == answers[0]
        short = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        bodies = [one.partition(b"\r\n\r\n")[2] for one in answers[1:]]
        assert fed[1:] == [short, bodies[0], short, bodies[1]]

    def test_several_frames_of_an_origin_are_known_side_by_side(self, loop, monkeypatch):
        fed = parsed(monkeypatch)
        heads = [answer(headers=b"X-%d: a\r\n" % n) for n in range(4)]
        drive(loop, knowing(*heads), [([one], False) for one in heads])
        assert not fed

    def test_the_newest_frames_stay(self, loop, monkeypatch):
        fed = parsed(monkeypatch)
        heads = [answer(headers=b"X-%d: a\r\n" % n) for n in range(6)]
        frames = Frames()
        for head in heads:
            frames.learn(head)
        drive(loop, frames, [([one], False) for one in heads])
        assert fed == heads[:2]

    def test_one_look_until_the_owner_allows_another(self, loop):
        frames = Frames()
        heads = [answer(headers=b"X-%d: a\r\n" % n) for n in range(3)]
        drive(loop, frames, [([one], False) for one in heads])
        assert len(frames.known) == 1
        frames.curious = True
        drive(loop, frames, [([one], False) for one in heads])
        assert len(frames.known) == 2

    @pytest.mark.parametrize(
        "raw",
        [
            answer(headers=b"Connection: close\r\n"),
            answer(headers=b"Proxy-Connection: close\r\n"),
            answer(headers=b"Connection: keep-alive, upgrade\r\nUpgrade: h2c\r\n"),
            answer(headers=b"Upgrade: h2c\r\n"),
            answer(headers=b"Content-Encoding: gzip\r\n"),
            answer(headers=b"Transfer-Encoding: chunked\r\n"),
            answer(headers=b"Content-Length: 2\r\n"),
            answer(headers=b"X: " + b"a" * MAX_KNOWN + b"\r\n"),
            answer(status=b"201 Created"),
            answer(status=b"429 Slow Down"),
            answer(b"", status=b"204 No Content"),
            answer().replace(b"1.1", b"1.0"),
            answer().replace(b": 2", b":  2"),
            answer().replace(b": 2", b": 2 "),
            answer()[:-3],
            b"HTTP/1.1 100 Continue\r\n\r\n" + answer(),
            b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        ],
    )
    def test_an_unusual_head_is_left_to_the_parser(self, raw):
        frames = Frames()
        frames.learn(raw)
        assert not frames.known

    def test_a_head_that_the_parser_refuses_is_not_learned(self, loop):
        frames = Frames()
        drive(loop, frames, [([answer(headers=b"Content-Encoding: br\r\n")], False)])
        assert frames.curious

    async def test_connections_of_an_origin_learn_from_each_other(self, monkeypatch):
        fed = parsed(monkeypatch)
        transport = HttpTransport(sweep_seconds=0.02)
        count = itertools.count(1)

        async def script(peer):
            while await peer.request() is not None:
                await peer.send(answer(b"[%d]" % next(count), headers=usual(count.__next__())))

        async def ask(origin):
            request = UpstreamRequest(Heading(b"POST", b"/", ()), b"{}")
            return await transport.send(origin, request, Timeouts(), False)

        async with upstream(script) as server, upstream(script) as other:
            await ask(server.origin)
            answers = await asyncio.gather(*(ask(server.origin) for _ in range(5)))
            assert server.accepts > 1
            assert len(fed) == 1
            assert [len(one.headers[b"x-request-id"]) for one in answers] == [36] * 5
            assert answers[0].headers[b"set-cookie"].count(b", b=") == 1
            await ask(other.origin)
            assert len(fed) == 2, "what one origin sends says nothing of another"
            frames = transport._pools[server.origin.origin]._frames
            assert not frames.curious or len(frames.known) == 1
            await asyncio.sleep(0.05)
            assert frames.curious
        transport.close()


KNOWN = knowing(
    answer(headers=usual(1)),
    chunked(b"abc", headers=usual(1)),
    answer(headers=b"Content-Type: application/json\r\n"),
)
SEEDS = [
    answer(b'{"id":"x","choices":[]}', headers=usual(2)),
    answer(b"", headers=usual(3)),
    chunked(b"data: {}\n\n", b"data: [DONE]\n\n", headers=usual(4)),
    chunked(b"abc", headers=usual(5), end=False) + b"0\r\nTrailer: x\r\n\r\n",
    answer(b"{}", headers=b"Content-Type: \t text/plain \t\r\n"),
]
TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b"\x0b", b"\x7f", b"\x80\xff", b"\t", b": ", b" ", b"\r\n ",
    b"0\r\n\r\n", b"0", b"-1", b"+", b"99999999999999999999", b"1000000000", b"0000000002",
    b"\r\nContent-Length: 5", b"\r\nTransfer-Encoding: chunked", b"\r\nTransfer-Encoding: gzip",
    b"\r\nContent-Encoding: gzip", b"\r\nConnection: close", b"\r\nConnection: upgrade",
    b"\r\nUpgrade: h2c", b"\r\nX: y", b"HTTP/1.1 ", b"close", b"gzip", b"keep-alive", b"identity",
]  # fmt: skip


@st.composite
def mutated(draw):
    """An answer whose head is known, with pieces cut out, repeated, replaced or put in."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 8)))
        data[begin:end] = draw(
            st.one_of(
                st.sampled_from(TOKENS), st.binary(max_size=2), st.just(bytes(data[begin:end]) * 2)
            )
        )
    return bytes(data)


CUTS = st.lists(st.integers(0, 1200), max_size=4)


@given(mutated(), CUTS, st.booleans(), mutated(), CUTS, st.booleans(), st.booleans())
@SETTINGS
def test_known_or_parsed_is_the_same(loop, one, cuts, stream, two, more_cuts, also, eof):
    """Whatever comes, wherever it is cut; also for the answer after it on the same connection."""
    exchanges = [(pieces_of(one, cuts), stream), (pieces_of(two, more_cuts), also)]
    KNOWN.curious = False
    assert drive(loop, KNOWN, exchanges, eof=eof) == drive(loop, Blind(), exchanges, eof=eof)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_byte_in_every_place_of_a_head(loop, seed, stream):
    """What the parser refuses is not accepted because its head is known."""
    KNOWN.curious = False
    head = seed.index(b"\r\n\r\n") + 4
    places = range(head) if FUZZ > 100_000 else range(7 * len(seed) % 11, head, 11)
    for place in places:
        for byte in (*range(0x21), 0x7F, 0x80, *b"0:;,xX"):
            data = seed[:place] + bytes([byte]) + seed[place + 1 :]
            exchanges = [([data], stream), ([seed], False)]
            assert drive(loop, KNOWN, exchanges) == drive(loop, Blind(), exchanges), data
