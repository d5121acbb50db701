"""The client parser against arbitrary bytes in arbitrary pieces.

``TOKENHUB_FUZZ=1000000`` runs that many inputs instead of a sample.
"""

from __future__ import annotations

import gc
import itertools
import os

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.providers.scripted import Wire, answer, chunked

from tokenhub.core.errors import FailureClass, TransportError
from tokenhub.core.outbox import Outbox
from tokenhub.providers.connection import MAX_HEADERS, Connection
from tokenhub.providers.transport import Timeouts

FUZZ = int(os.environ.get("TOKENHUB_FUZZ", "400"))
# More inputs than a sample get more than the two minutes that every test has.
pytestmark = pytest.mark.timeout(120 + FUZZ // 100)
SETTINGS = settings(max_examples=FUZZ, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SEEDS = [
    answer(b'{"id":"x","choices":[]}', headers=b"Content-Type: application/json\r\nX-A: b\r\n"),
    chunked(b"data: {}\n\n", b"data: [DONE]\n\n", headers=b"Cache-Control: no-cache\r\n"),
    b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"abc"),
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    chunked(b"abc", end=False) + b"0\r\nTrailer: x\r\n\r\n",
    answer(b"", status=b"204 No Content"),
    answer(b"{}", status=b"429 Slow Down", headers=b"Retry-After: 3\r\nConnection: close\r\n"),
]
TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b": ", b" ", b";a=b", b"0\r\n\r\n", b"ffffffff\r\n", b"-1\r\n",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n",
    b"Content-Encoding: gzip\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\n",
    b"Upgrade: h2c\r\n", b"HTTP/1.1 ", b"HTTP/1.0 200 OK\r\n", b"101", b"999", b"\x80\xff",
]  # fmt: skip


@pytest.fixture(scope="module")
def loop():
    """One loop for a million inputs."""
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


class Owner:
    def __init__(self):
        self.released_times = 0
        self.lost_times = 0

    def released(self, connection):
        self.released_times += 1

    def lost(self, connection):
        self.lost_times += 1


@st.composite
def mutated(draw):
    """A valid answer with pieces cut out, repeated, replaced or put in."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 8)))
        data[begin:end] = draw(
            st.one_of(
                st.sampled_from(TOKENS), st.binary(max_size=4), st.just(bytes(data[begin:end]) * 2)
            )
        )
    return bytes(data)


INPUTS = st.one_of(
    mutated(), mutated(), st.lists(st.sampled_from(TOKENS)).map(b"".join), st.binary()
)
CUTS = st.lists(st.integers(0, 400), max_size=6)


def pieces_of(data, cuts):
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def drive(loop, pieces, *, stream, eof):
    """Everything a caller can see of an answer in these pieces."""
    owner, wire = Owner(), Wire()
    outbox = Outbox(loop)
    connection = Connection(loop, owner, outbox)
    connection.connection_made(wire)
    waiter = connection.exchange(b"", Timeouts(), stream=stream)
    outbox.flush()
    for piece in pieces:
        if not wire.closed and not (waiter.done() and owner.released_times):
            connection.data_received(piece)
    ended = waiter.done() and owner.released_times + owner.lost_times
    if not wire.closed and not ended and eof:
        connection.eof_received()
    if not waiter.done():
        connection.close()
    seen, body = [], bytearray()

    async def take():
        got = await waiter
        seen.extend([got.status, tuple(got.headers.items())])
        if got.body is None and not (wire.closed or owner.released_times):
            connection.close()
        await got.relay(body.extend)

    try:
        loop.run_until_complete(take())
        seen.append("complete")
    except TransportError as error:
        seen.append(error.kind if error.sent else "said not to be sent")
    if seen[-1] == "complete" or stream:
        seen.append(bytes(body))
    connection.connection_lost(None)
    assert connection._waiter is connection._stream is None
    assert owner.lost_times == 1
    assert owner.released_times in {0, 1}
    return seen


def check_promises(seen):
    assert "said not to be sent" not in seen
    if isinstance(seen[0], int):
        status, headers, *_ = seen
        assert 200 <= status <= 599
        assert len(headers) <= MAX_HEADERS
        for name, value in headers:
            assert name == name.lower()
            assert not set(name + value) & set(b"\r\n\0")
        assert dict(headers).get(b"content-encoding", b"identity").lower() in {b"identity", b""}


@given(INPUTS, CUTS, st.booleans(), st.booleans())
@SETTINGS
def test_no_input_breaks_a_promise_and_no_cut_changes_the_outcome(loop, data, cuts, stream, eof):
    whole = drive(loop, [data] if data else [], stream=stream, eof=eof)
    check_promises(whole)
    parts = drive(loop, pieces_of(data, cuts), stream=stream, eof=eof)
    assert parts == whole


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=12), CUTS, st.booleans())
@SETTINGS
def test_every_chunking_of_a_body_is_decoded(loop, chunks, cuts, stream):
    seen = drive(loop, pieces_of(chunked(*chunks), cuts), stream=stream, eof=False)
    assert seen[-2:] == ["complete", b"".join(chunks)]


def test_many_connections_leave_nothing_behind(loop):
    for seed in SEEDS:
        drive(loop, [seed], stream=True, eof=True)
    gc.collect()
    before = len(gc.get_objects())
    for number in range(2000):
        seed = SEEDS[number % len(SEEDS)]
        drive(loop, pieces_of(seed, [number, number // 7]), stream=bool(number % 2), eof=True)
    gc.collect()
    assert len(gc.get_objects()) - before < 200


def test_kinds_are_the_documented_ones(loop):
    told = (b"x", b"HTTP/1.1 x", SEEDS[0][:-2])
    seen = {drive(loop, [data], stream=False, eof=True)[-1] for data in told}
    assert seen == {FailureClass.MISDIRECTED, FailureClass.GARBAGE, FailureClass.RESET}
