from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import socket
import struct
import traceback

import msgspec
import pytest
import uvloop
from tests.authority import Authority
from tests.unit.providers.scripted import Wire, always, answer, chunked, once, upstream

from tokenhub.core.errors import FailureClass, TransportError
from tokenhub.core.members import Spliced
from tokenhub.core.outbox import Outbox
from tokenhub.providers import connection as connection_module
from tokenhub.providers import stream as stream_module
from tokenhub.providers.connection import Connection
from tokenhub.providers.egress import EgressPolicy, parse_base_url
from tokenhub.providers.stream import StreamAnswer
from tokenhub.providers.transport import (
    Heading,
    HttpTransport,
    Proxy,
    Timeouts,
    UpstreamRequest,
)

QUICK = Timeouts(connect=2.0, first_byte=2.0, idle=2.0)


# Limits so long that nothing but what the test does can end a request.
PATIENT = Timeouts(first_byte=60.0, idle=60.0)


@pytest.fixture(autouse=True)
async def nothing_escapes():
    """No exception may end in the event loop's hands, where nobody would see it."""
    escaped = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
    yield
    assert escaped == []


@pytest.fixture
async def transport():
    transport = HttpTransport(sweep_seconds=0.02)
    yield transport
    transport.close()


def post(body=b"{}", target=b"/v1/chat/completions", headers=(), shared=()):
    heading = Heading(b"POST", target, [(b"content-type", b"application/json"), *shared])
    return UpstreamRequest(heading, body, headers)


async def fails(transport, origin, *, request=None, timeouts=QUICK, stream=False):
    with pytest.raises(TransportError) as caught:
        await transport.send(origin, request or post(), timeouts, stream=stream)
    return caught.value


def alive(kind):
    return sum(type(one) is kind for one in gc.get_objects())


async def until(condition):
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass within 4 s")


class TestOneRequest:
    async def test_whole_answer(self, transport):
        reply = answer(
            b'{"a":1}', headers=b"X-Request-ID: r1\r\nContent-Type: application/json\r\n"
        )
        async with upstream(always(reply)) as server:
            got = await transport.send(server.origin, post(b"hello"), QUICK, stream=False)
        assert (got.status, got.body) == (200, b'{"a":1}')
        assert got.headers[b"x-request-id"] == b"r1"
        assert await got.read() == b'{"a":1}'

    async def test_request_is_written_as_promised(self, transport):
        async with upstream(always(answer())) as server:
            request = post(b"hello", headers=[(b"authorization", b"Bearer k")])
            await transport.send(server.origin, request, QUICK, stream=False)
            (head, body), *_ = server.requests
        assert (
            head
            == (
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                b"Accept-Encoding: identity\r\nContent-Length: 5\r\n"
                b"content-type: application/json\r\nauthorization: Bearer k\r\n\r\n"
            )
            % server.port
        )
        assert body == b"hello"

    async def test_a_heading_serves_many_requests_and_hosts(self, transport):
        heading = Heading(b"POST", b"/v1/x", [(b"accept", b"*/*")])
        async with upstream(always(answer())) as one, upstream(always(answer())) as two:
            for server, body, key in [(one, b"a", b"k1"), (two, b"bcd", b"k2"), (one, b"", b"")]:
                more = [(b"authorization", key)] if key else []
                request = UpstreamRequest(heading, body, more)
                await transport.send(server.origin, request, QUICK, stream=False)
            heads = [one.requests[0][0], two.requests[0][0], one.requests[1][0]]
        start = b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: identity\r\n"
        assert heads == [
            start % one.port + b"Content-Length: 1\r\naccept: */*\r\nauthorization: k1\r\n\r\n",
            start % two.port + b"Content-Length: 3\r\naccept: */*\r\nauthorization: k2\r\n\r\n",
            start % one.port + b"Content-Length: 0\r\naccept: */*\r\n\r\n",
        ]

    async def test_a_credential_stands_where_its_heading_says(self, transport):
        plain = Heading(b"POST", b"/v1/x", [(b"accept", b"*/*")])
        named = Heading(b"POST", b"/v1/x", (), b"x-api-key: ")
        more = [(b"traceparent", b"00-1")]
        async with upstream(always(answer())) as server:
            for request in (
                UpstreamRequest(plain, b"a", more, b"k1"),
                UpstreamRequest(named, b"b" * 100_000, (), b"k2"),
                UpstreamRequest(plain, b"c"),
            ):
                await transport.send(server.origin, request, QUICK, stream=False)
        heads = [head.partition(b"\r\nContent-Length: ")[2] for head, _ in server.requests]
        assert heads == [
            b"1\r\naccept: */*\r\nauthorization: Bearer k1\r\ntraceparent: 00-1\r\n\r\n",
            b"100000\r\nx-api-key: k2\r\n\r\n",
            b"1\r\naccept: */*\r\n\r\n",
        ]
        assert [body for _, body in server.requests] == [b"a", b"b" * 100_000, b"c"]

    async def test_a_body_in_parts(self, transport):
        text = bytes(range(256)) * 20_000
        body = Spliced(b'{"a":"', memoryview(text)[5:], b'"}')
        async with upstream(always(answer())) as server:
            for _ in range(2):
                await transport.send(server.origin, post(body), QUICK, stream=False)
        assert [sent for _, sent in server.requests] == [b'{"a":"' + text[5:] + b'"}'] * 2
        assert server.accepts == 1

    async def test_large_bodies_both_ways(self, transport):
        body = bytes(range(256)) * 20_000

        async def echo(peer):
            while (request := await peer.request()) is not None:
                await peer.send(answer(request[1]))

        async with upstream(echo) as server:
            for _ in range(2):
                got = await transport.send(server.origin, post(body), QUICK, stream=False)
                assert got.body == body
        assert server.accepts == 1

    @pytest.mark.parametrize(
        "reply",
        [
            chunked(b"ab", b"c"),
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + answer(b"abc"),
            chunked(b"abc", end=False) + b"0\r\nTrailer: dropped\r\n\r\n",
            chunked(end=False) + b"3;ext=1\r\nabc\r\n0\r\n\r\n",
            answer(b"abc", headers=b"Content-Encoding: Identity\r\n"),
        ],
    )
    async def test_forms_of_the_same_answer_keep_the_connection(self, transport, reply):
        async with upstream(always(reply)) as server:
            for stream in (False, True, False):
                got = await transport.send(server.origin, post(), QUICK, stream=stream)
                assert await got.read() == b"abc"
                assert b"trailer" not in got.headers
                assert b"link" not in got.headers
        assert server.accepts == 1

    @pytest.mark.parametrize(
        "reply", [b"HTTP/1.1 200 OK\r\n\r\nabc", b"HTTP/1.0 200 OK\r\n\r\nabc"]
    )
    @pytest.mark.parametrize("stream", [False, True])
    async def test_without_a_length_the_close_is_the_end(self, transport, reply, stream):
        async with upstream(once(reply)) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=stream)
            assert await got.read() == b"abc"

    async def test_redirect_is_an_answer(self, transport):
        async with upstream(always(answer())) as trap:
            location = b"Location: http://127.0.0.1:%d/\r\n" % trap.port
            reply = answer(b"", status=b"307 Temporary Redirect", headers=location)
            async with upstream(always(reply)) as server:
                got = await transport.send(server.origin, post(), QUICK, stream=False)
        assert got.status == 307
        assert trap.accepts == 0

    async def test_repeated_headers_are_joined(self, transport):
        reply = answer(headers=b"X-A: 1\r\nx-a: 2\r\n")
        async with upstream(always(reply)) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=False)
        assert got.headers[b"x-a"] == b"1, 2"

    @pytest.mark.parametrize(
        "request_",
        [
            post(headers=[(b"authorization", b"Bearer a\r\nX-Evil: 1")]),
            post(headers=[(b"authorization", b"Bearer a\nX-Evil: 1")]),
            post(headers=[(b"authorization", b"a\rb")]),
            post(headers=[(b"a\r\nb", b"c")]),
            post(headers=[(b"authorization", b"a\0b")]),
            UpstreamRequest(Heading(b"POST", b"/", ()), b"", (), b"a\r\nX-Evil: 1"),
            UpstreamRequest(Heading(b"POST", b"/", ()), b"", (), b"a\r"),
            UpstreamRequest(Heading(b"POST", b"/", ()), b"", (), b"a\nb"),
            UpstreamRequest(Heading(b"POST", b"/", ()), b"", (), b"a\0b"),
            UpstreamRequest(Heading(b"POST", b"/", (), b"x\r\ny: "), b"", (), b"a"),
            post(shared=[(b"version", b"1\r\nX-Evil: 1")]),
            post(shared=[(b"version", b"1\r")]),
            post(shared=[(b"ver\0sion", b"1")]),
            post(target=b"/v1/x HTTP/1.1\r\nHost: evil\r\n\r\n"),
            post(target=b"/v1/a b"),
        ],
    )
    async def test_nothing_breaks_out_of_its_line(self, transport, request_):
        async with upstream(always(answer())) as server:
            error = await fails(transport, server.origin, request=request_)
        assert (error.kind, error.sent, server.accepts) == (FailureClass.CLIENT, False, 0)

    def test_repr_shows_no_secret(self):
        request = post(b"prompt", headers=[(b"authorization", b"Bearer secret")])
        assert "secret" not in repr(request)
        assert "prompt" not in repr(request)
        assert "hidden" not in repr(Proxy.parse("http://me:hidden@proxy:3128"))


class TestPool:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_as_many_connections_as_requests_at_once(self, transport, stream):
        async def one_after_another(origin):
            for _ in range(25):
                got = await transport.send(origin, post(), QUICK, stream=stream)
                assert await got.read() == b"{}"

        async with upstream(always(answer())) as server:
            await asyncio.gather(*(one_after_another(server.origin) for _ in range(8)))
            assert transport.connections() == (8, 8)
        assert server.accepts == 8
        assert len(server.requests) == 200

    async def test_64_distinct_echoes_are_never_mixed(self, transport):
        async def echo(peer):
            while (request := await peer.request()) is not None:
                body = request[1]
                await peer.send(b"HTTP/1.1 200 OK\r\nX-Echo: %b\r\n" % body)
                await asyncio.sleep(0)
                await peer.send(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

        async def client(number, origin):
            for turn in range(10):
                body = b"%d-%d" % (number, turn) * (1 + number)
                got = await transport.send(origin, post(body), QUICK, stream=bool(turn % 2))
                await asyncio.sleep(0)  # others use the connection before the answer is read
                assert got.headers[b"x-echo"] == body
                assert await got.read() == body

        async with upstream(echo) as server:
            await asyncio.gather(*(client(number, server.origin) for number in range(64)))
        assert server.accepts == 64

    async def test_an_answer_does_not_change_when_its_connection_serves_the_next(self, transport):
        counter = itertools.count()

        async def count(peer):
            while await peer.request() is not None:
                await peer.send(answer(b"%d" % next(counter)))

        async with upstream(count) as server:
            first = await transport.send(server.origin, post(), QUICK, stream=True)
            await until(lambda: transport.connections() == (1, 1))
            second = await transport.send(server.origin, post(), QUICK, stream=True)
            assert (await second.read(), await first.read()) == (b"1", b"0")

    async def test_idle_connections_expire_the_oldest_first(self):
        transport = HttpTransport(idle_seconds=0.3, sweep_seconds=0.02)
        async with upstream(always(answer())) as server:
            sends = (transport.send(server.origin, post(), QUICK, stream=False) for _ in range(4))
            await asyncio.gather(*sends)
            assert transport.connections()[0] == 4
            for _ in range(30):  # one connection stays in use
                await transport.send(server.origin, post(), QUICK, stream=False)
                await asyncio.sleep(0.02)
            assert transport.connections() == (1, 1)
            await until(lambda: transport.connections() == (0, 0))
            await until(lambda: not transport._pools)
            got = await transport.send(server.origin, post(), QUICK, stream=False)
            assert got.status == 200
        transport.close()

    async def test_the_cap_holds_and_everybody_is_served_in_order(self):
        transport = HttpTransport(max_connections=3, sweep_seconds=0.02)
        async with upstream(always(answer())) as server:
            order = []

            async def client(number):
                await transport.send(server.origin, post(), QUICK, stream=False)
                order.append(number)

            await asyncio.gather(*(client(number) for number in range(30)))
        assert server.most_open == server.accepts == 3
        assert sorted(order[:3]) == [0, 1, 2]
        assert order[3:] == sorted(order[3:]) or set(order) == set(range(30))
        transport.close()

    async def test_slots_of_closed_connections_are_used_again(self):
        transport = HttpTransport(max_connections=2, sweep_seconds=0.02)
        async with upstream(once(answer(headers=b"Connection: close\r\n"))) as server:
            sends = (transport.send(server.origin, post(), QUICK, stream=False) for _ in range(9))
            got = await asyncio.gather(*sends)
        assert {each.status for each in got} == {200}
        assert server.accepts == 9
        assert transport.connections() == (0, 0)
        transport.close()

    async def test_waiting_at_the_cap_ends_with_the_connect_limit(self):
        transport = HttpTransport(max_connections=1, sweep_seconds=0.02)
        async with upstream(once(b"", then="hang")) as server:
            busy = asyncio.create_task(transport.send(server.origin, post(), QUICK, stream=False))
            await until(lambda: server.requests)
            error = await fails(transport, server.origin, timeouts=Timeouts(connect=0.1))
            assert (error.kind, error.sent) == (FailureClass.CONNECT, False)
            waiting = asyncio.create_task(
                transport.send(server.origin, post(), QUICK, stream=False)
            )
            await asyncio.sleep(0.02)
            waiting.cancel()
            busy.cancel()
            await asyncio.wait([waiting, busy])
            assert waiting.cancelled()
            assert transport._pools[server.origin.origin].opening == 0
        transport.close()

    async def test_a_failed_connection_passes_its_slot_on(self):
        async def resolver(host, port):
            await asyncio.sleep(0.01)
            raise socket.gaierror(socket.EAI_NONAME, "no such name")

        transport = HttpTransport(resolver=resolver, max_connections=1, sweep_seconds=0.02)
        origin = parse_base_url("http://nowhere.test")
        sends = (transport.send(origin, post(), QUICK, stream=False) for _ in range(5))
        for error in await asyncio.gather(*sends, return_exceptions=True):
            assert "does not resolve" in error.message
        transport.close()

    async def test_a_slot_that_comes_with_the_cancelling_is_given_back(self):
        transport = HttpTransport(max_connections=1, sweep_seconds=0.02)
        async with upstream(once(b"", then="hang")) as server:
            busy = asyncio.create_task(transport.send(server.origin, post(), PATIENT, stream=False))
            await until(lambda: server.requests)
            waiting = asyncio.create_task(
                transport.send(server.origin, post(), PATIENT, stream=False)
            )
            pool = transport._pools[server.origin.origin]
            await until(lambda: pool._queue)
            next(iter(pool.open_ones)).close()  # hands its slot to the one who waits
            assert pool.opening == 1
            waiting.cancel()
            await asyncio.wait([busy, waiting])
            assert isinstance(busy.exception(), TransportError)
            assert waiting.cancelled()
            assert pool.opening == 0
        transport.close()

    async def test_closed_transport(self, transport):
        async with upstream(once(b"", then="hang")) as server:
            busy = asyncio.create_task(transport.send(server.origin, post(), QUICK, stream=False))
            await until(lambda: server.requests)
            transport.close()
            with pytest.raises(TransportError):
                await busy
            error = await fails(transport, server.origin)
        assert "shutting down" in error.message
        assert server.accepts == 1

    async def test_connections_are_freed_without_the_cycle_collector(self, transport):
        async with upstream(once(answer(headers=b"Connection: close\r\n"))) as server:
            gc.collect()
            gc.disable()
            try:
                before = alive(Connection)
                for stream in (False, True):
                    await transport.send(server.origin, post(), QUICK, stream=stream)
                await until(lambda: alive(Connection) == before)
            finally:
                gc.enable()

    @pytest.mark.parametrize(
        "script",
        [
            once(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
            once(b"nonsense\r\n\r\n"),
            once(b"", then="reset"),
        ],
        ids=["broken", "garbage", "reset"],
    )
    async def test_a_failure_leaves_no_circle_behind(self, transport, script):
        """A client that has its requests fail could fill the memory with them."""
        async with upstream(script) as server:
            await self._fail_without_a_circle(transport, server.origin)

    @pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
    async def test_a_failure_to_connect_leaves_no_circle_behind(self, addresses):
        async def resolver(host, port):
            return addresses

        with socket.socket() as nobody_listens:
            nobody_listens.bind(("0.0.0.0", 0))
            port = nobody_listens.getsockname()[1]
            transport = HttpTransport(resolver=resolver, sweep_seconds=60)
            await self._fail_without_a_circle(transport, parse_base_url(f"http://m.test:{port}"))
            transport.close()

    async def _fail_without_a_circle(self, transport, origin):
        gc.collect()
        gc.disable()
        try:
            before = alive(UpstreamRequest), alive(Connection)
            with contextlib.suppress(TransportError):
                await transport.send(origin, post(), QUICK, stream=False)
            await until(lambda: (alive(UpstreamRequest), alive(Connection)) == before)
        finally:
            gc.enable()


class TestStaleConnections:
    async def test_closed_while_idle(self, transport):
        async with upstream(once(answer())) as server:
            for _ in range(3):
                got = await transport.send(server.origin, post(), QUICK, stream=False)
                assert got.status == 200
        assert len(server.requests) == 3

    async def test_closed_under_the_request_is_sent_once_more(self, transport):
        async def script(peer):
            await peer.request()
            await peer.send(answer(b"%d" % peer.number))
            await peer.request()  # dies with it

        async with upstream(script) as server:
            assert (await transport.send(server.origin, post(), QUICK, stream=False)).body == b"1"
            assert (await transport.send(server.origin, post(), QUICK, stream=False)).body == b"2"
        assert (server.accepts, len(server.requests)) == (2, 3)

    async def test_sent_again_only_once(self, transport):
        async def script(peer):
            await peer.request()
            if peer.number == 1:
                await peer.send(answer())
                await peer.request()

        async with upstream(script) as server:
            await transport.send(server.origin, post(), QUICK, stream=False)
            error = await fails(transport, server.origin)
        assert (error.kind, error.sent) == (FailureClass.RESET, True)
        assert (server.accepts, len(server.requests)) == (2, 3)

    async def test_a_new_connection_that_dies_is_no_stale_one(self, transport):
        async with upstream(once(b"")) as server:
            error = await fails(transport, server.origin)
        assert (error.kind, error.sent, server.accepts) == (FailureClass.RESET, True, 1)

    async def test_not_sent_again_once_a_byte_came(self, transport):
        async def script(peer):
            await peer.request()
            await peer.send(answer())
            await peer.request()
            await peer.send(b"H")

        async with upstream(script) as server:
            await transport.send(server.origin, post(), QUICK, stream=False)
            error = await fails(transport, server.origin)
        assert (error.kind, server.accepts) == (FailureClass.RESET, 1)

    async def test_not_sent_again_when_the_provider_worked_for_a_while(
        self, transport, monkeypatch
    ):
        monkeypatch.setattr(connection_module, "STALE_SECONDS", 0.05)

        async def script(peer):
            await peer.request()
            await peer.send(answer())
            await peer.request()
            await asyncio.sleep(0.15)

        async with upstream(script) as server:
            await transport.send(server.origin, post(), QUICK, stream=False)
            error = await fails(transport, server.origin)
        assert (error.kind, server.accepts) == (FailureClass.RESET, 1)

    async def test_words_out_of_turn_cost_the_connection(self, transport):
        async def script(peer):
            await peer.request()
            await peer.send(answer(b"%d" % peer.number))
            await asyncio.sleep(0.02)
            await peer.send(answer(b"evil"))
            await peer.until_closed()

        async with upstream(script) as server:
            assert (await transport.send(server.origin, post(), QUICK, stream=False)).body == b"1"
            await until(lambda: transport.connections() == (0, 0))
            assert (await transport.send(server.origin, post(), QUICK, stream=False)).body == b"2"

    async def test_words_before_the_request_has_left_are_no_answer_to_it(self, transport):
        if not isinstance(asyncio.get_running_loop(), uvloop.Loop):
            pytest.skip("asyncio's own loop reads what there is only after the request has left")
        peers = []

        async def script(peer):
            peers.append(peer)
            await peer.request()
            await peer.send(answer(b"%d" % peer.number))
            await peer.until_closed()

        async with upstream(script) as server:
            assert (await transport.send(server.origin, post(), QUICK, stream=False)).body == b"1"
            # They are there when it is written, and it leaves at the end of this turn.
            os.write(peers[0].writer.get_extra_info("socket").fileno(), answer(b"evil"))
            assert (await transport.send(server.origin, post(), QUICK, stream=False)).body == b"2"
        assert (server.accepts, len(server.requests)) == (2, 2)

    async def test_a_request_that_has_not_left_was_not_sent(self):
        loop = asyncio.get_running_loop()
        for end in (Connection.eof_received, lambda spoken_to: spoken_to.data_received(answer())):
            connection = Connection(loop, Kept(), Outbox(loop))
            connection.connection_made(Wire())
            waiter = connection.exchange(b"request", PATIENT, stream=False)
            end(connection)
            with pytest.raises(TransportError) as caught:
                await waiter
            assert not caught.value.sent

    async def test_a_second_answer_in_the_same_read_is_dropped(self, transport):
        async with upstream(once(answer(b"1") + answer(b"2"), then="hang")) as server:
            for _ in range(2):
                got = await transport.send(server.origin, post(), QUICK, stream=False)
                assert got.body == b"1"
        assert server.accepts == 2

    async def test_an_answer_before_the_request_was_read(self, transport):
        async def script(peer):
            await peer.reader.readuntil(b"\r\n\r\n")
            await peer.send(answer(status=b"413 Too Large"))
            await asyncio.sleep(0.2)

        async with upstream(script) as server:
            request = post(b"x" * 30_000_000)
            got = await transport.send(server.origin, request, QUICK, stream=False)
            assert got.status == 413
            assert transport.connections() == (0, 0)


class TestLimits:
    async def test_each_request_has_limits_of_its_own(self):
        loop = asyncio.get_running_loop()
        owner, wire = Kept(), Wire()
        connection = Connection(loop, owner, Outbox(loop))
        connection.connection_made(wire)
        first = connection.exchange(b"", Timeouts(first_byte=5.0, idle=50.0), stream=True)
        connection._outbox.flush()
        connection.data_received(chunked(b"a", end=False))
        connection.check(loop.time() + 20.0)
        connection.check(loop.time() + 60.0)
        connection.data_received(b"0\r\n\r\n")
        assert await (await first).read() == b"a"
        second = connection.exchange(b"", Timeouts(first_byte=5.0, total=9.0), stream=False)
        connection._outbox.flush()
        connection.check(loop.time() + 4.0)
        assert not second.done()
        connection.check(loop.time() + 6.0)
        assert second.done()
        with pytest.raises(TransportError, match="sent no first byte"):
            await second
        assert owner.events == ["released", "lost"]

    async def test_refused(self, transport):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            origin = parse_base_url(f"http://127.0.0.1:{taken.getsockname()[1]}")
            error = await fails(transport, origin)
        assert (error.kind, error.sent) == (FailureClass.CONNECT, False)
        assert "refused" in error.message.lower()

    async def test_a_listener_that_does_not_accept(self, transport):
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            fillers = []
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
                fillers.append(filler)
            origin = parse_base_url(f"http://127.0.0.1:{full.getsockname()[1]}")
            error = await fails(transport, origin, timeouts=Timeouts(connect=0.15))
            for filler in fillers:
                filler.close()
        assert (error.kind, error.sent) == (FailureClass.CONNECT, False)
        assert "within 0.15 s" in error.message

    @pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", chunked(end=False)])
    @pytest.mark.parametrize("stream", [False, True])
    async def test_no_first_byte(self, transport, sent, stream):
        timeouts = Timeouts(first_byte=0.1, idle=30)
        async with upstream(once(sent, then="hang")) as server:
            with pytest.raises(TransportError) as caught:
                await (await transport.send(server.origin, post(), timeouts, stream=stream)).read()
            await server.closes.acquire()
        assert (caught.value.kind, caught.value.sent) == (FailureClass.TIMEOUT, True)
        assert "first byte" in caught.value.message

    async def test_dribbled_headers_do_not_prolong_the_first_byte(self, transport):
        async def script(peer):
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n")
            for byte in itertools.cycle(b"X: y\r\n"):
                await peer.send(bytes([byte]))
                await asyncio.sleep(0.01)

        async with upstream(script) as server:
            error = await fails(transport, server.origin, timeouts=Timeouts(first_byte=0.15))
        assert error.kind == FailureClass.TIMEOUT

    @pytest.mark.parametrize("stream", [False, True])
    async def test_silence_in_mid_answer(self, transport, stream):
        got = []
        async with upstream(once(chunked(b"abc", end=False), then="hang")) as server:
            with pytest.raises(TransportError) as caught:  # noqa: PT012 - either may raise it
                under_way = await transport.send(
                    server.origin, post(), Timeouts(idle=0.1), stream=stream
                )
                await under_way.relay(got.append)
            await server.closes.acquire()
        assert caught.value.kind == FailureClass.TIMEOUT
        assert "silent" in caught.value.message
        assert got == ([b"abc"] if stream else [])

    async def test_a_slow_stream_outlives_the_idle_limit_but_not_the_total(self, transport):
        async def script(peer):
            while await peer.request() is not None:
                await peer.send(chunked(end=False))
                for _ in range(20):
                    await peer.send(b"1\r\nx\r\n")
                    await asyncio.sleep(0.02)
                await peer.send(b"0\r\n\r\n")

        async with upstream(script) as server:
            timeouts = Timeouts(first_byte=0.15, idle=0.15)
            got = await transport.send(server.origin, post(), timeouts, stream=True)
            assert await got.read() == b"x" * 20
            timeouts = Timeouts(first_byte=0.15, idle=0.15, total=0.2)
            got = await transport.send(server.origin, post(), timeouts, stream=True)
            with pytest.raises(TransportError, match="whole request") as caught:
                await got.read()
        assert caught.value.kind == FailureClass.TIMEOUT

    async def test_silence_does_not_count_while_paused(self, transport):
        async with upstream(once(chunked(b"abc", end=False), then="hang")) as server:
            got = await transport.send(server.origin, post(), Timeouts(idle=0.1), stream=True)
            pieces = []
            got.pause()
            task = asyncio.create_task(got.relay(pieces.append))
            await asyncio.sleep(0.3)
            assert not task.done()
            got.resume()
            with pytest.raises(TransportError, match="silent"):
                await task

    async def test_a_stream_nobody_takes_is_given_up(self, transport):
        async with upstream(once(chunked(b"x" * 1_000_000, end=False), then="hang")) as server:
            got = await transport.send(server.origin, post(), Timeouts(idle=0.1), stream=True)
            await server.closes.acquire()
            with pytest.raises(TransportError):
                await got.read()

    @pytest.mark.parametrize("stream", [False, True])
    async def test_body_caps(self, transport, stream, monkeypatch):
        monkeypatch.setattr(connection_module, "MAX_WHOLE_BODY", 100_000)
        monkeypatch.setattr(connection_module, "MAX_STREAM_BODY", 200_000)
        limit = 200_000 if stream else 100_000
        size = 0

        def sink(data):
            nonlocal size
            size += len(data)

        async with upstream(always(answer(b"x" * limit))) as server:
            await (await transport.send(server.origin, post(), QUICK, stream=stream)).relay(sink)
        assert size == limit
        async with upstream(always(answer(b"x" * (limit + 1)))) as server:
            with pytest.raises(TransportError, match="too large") as caught:
                await (await transport.send(server.origin, post(), QUICK, stream=stream)).relay(
                    sink
                )
        assert caught.value.kind == FailureClass.GARBAGE

    async def test_read_of_a_stream_has_the_cap_of_whole_bodies(self, transport, monkeypatch):
        monkeypatch.setattr(stream_module, "MAX_WHOLE_BODY", 1000)
        reply = chunked(b"x" * 900, b"x" * 101, end=False)
        async with upstream(once(reply, then="hang")) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=True)
            with pytest.raises(TransportError, match="too large"):
                await got.read()
            await server.closes.acquire()


NO_HTTP = {
    "html": b"<html>hello</html>",
    "other protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "nearly": b"HTTQ/1.1 200 OK\r\n\r\n",
}
GARBAGE = {
    "another version": b"HTTP/3.1 200 OK\r\n\r\n",
    "gzip": answer(headers=b"Content-Encoding: gzip\r\n"),
    "nested encodings": answer(headers=b"Content-Encoding: identity\r\nContent-Encoding: br\r\n"),
    "gzip transfer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "transfer of unknown end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, x\r\n\r\nabc",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n" + chunked(b"abc")[17:],
    "two lengths": answer(b"abc", headers=b"Content-Length: 4\r\n"),
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "length too large": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "CR in a header": answer(headers=b"X: a\rSet-Cookie: b\r\n"),
    "LF in a header": answer(headers=b"X: a\nSet-Cookie: b\r\n"),
    "NUL in a header": answer(headers=b"X: a\0b\r\n"),
    "folded header": answer(headers=b"X: a\r\n b\r\n"),
    "space before the colon": answer(headers=b"X : a\r\n"),
    "header without a name": answer(headers=b": a\r\n"),
    "header without a colon": answer(headers=b"abc\r\n"),
    "negative chunk": chunked(end=False) + b"-1\r\nx\r\n",
    "huge chunk": chunked(end=False) + b"ffffffffffffffffff\r\nx\r\n",
    "control character in a chunk extension": chunked(end=False) + b"1;a=\x01\r\nx\r\n0\r\n\r\n",
    "LF after a chunk size": chunked(end=False) + b"1\nx\r\n0\r\n\r\n",
    "chunk longer than its size": chunked(end=False) + b"1\r\nxyz\r\n0\r\n\r\n",
    "status 99": b"HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n",
    "status 600": answer(status=b"600 No"),
    "switching protocols": b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "201 headers": answer(headers=b"".join(b"X-%d: y\r\n" % n for n in range(200))),
    "201 equal headers": answer(headers=b"X: y\r\n" * 200),
    "headers over 64 KiB": answer(headers=b"".join(b"X%d: %0700d\r\n" % (n, n) for n in range(99))),
    "one header over 64 KiB": answer(headers=b"X: " + b"y" * 66_000 + b"\r\n"),
    "endless interim answers": b"HTTP/1.1 100 Continue\r\nX: abcdefgh\r\n\r\n" * 3000,
    "long chunk extensions": chunked(end=False) + (b"1;" + b"a" * 3000 + b"\r\nx\r\n") * 100,
    "trailers without end": chunked(b"x", end=False) + b"0\r\n" + b"A: b\r\n" * 50_000,
}  # fmt: skip


class TestGarbage:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("reply", GARBAGE.values(), ids=GARBAGE.keys())
    async def test_is_refused_and_the_connection_closed(self, transport, reply, stream):
        async with upstream(once(reply, then="hang")) as server:
            with pytest.raises(TransportError) as caught:
                await (await transport.send(server.origin, post(), QUICK, stream=stream)).read()
            assert transport.connections() == (0, 0)
            await server.closes.acquire()
        assert (caught.value.kind, caught.value.sent) == (FailureClass.GARBAGE, True)

    @pytest.mark.parametrize("reply", NO_HTTP.values(), ids=NO_HTTP.keys())
    async def test_what_speaks_no_http_is_not_the_provider(self, transport, reply):
        async with upstream(once(reply, then="hang")) as server:
            with pytest.raises(TransportError, match="does not speak HTTP") as caught:
                await transport.send(server.origin, post(), QUICK, stream=False)
            assert transport.connections() == (0, 0)
            await server.closes.acquire()
        assert (caught.value.kind, caught.value.sent) == (FailureClass.MISDIRECTED, True)

    @pytest.mark.parametrize("reply", NO_HTTP.values(), ids=NO_HTTP.keys())
    async def test_it_is_when_it_has_answered_before(self, transport, reply):
        async def script(peer):
            for data in (answer(b"ok"), reply):
                await peer.request()
                await peer.send(data)
            await peer.until_closed()

        async with upstream(script) as server:
            await transport.send(server.origin, post(), QUICK, stream=False)
            with pytest.raises(TransportError, match="is not HTTP") as caught:
                await transport.send(server.origin, post(), QUICK, stream=False)
            await server.closes.acquire()
        assert caught.value.kind == FailureClass.GARBAGE

    async def test_200_headers_of_60_kib_pass(self, transport):
        headers = b"".join(b"X-%d: %b\r\n" % (n, b"y" * 300) for n in range(199))
        async with upstream(always(answer(b"x" * 100_000, headers=headers))) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=False)
        assert len(got.headers) == 200

    @pytest.mark.parametrize(
        "reply",
        [
            chunked(b"abc", end=False),
            chunked(end=False) + b"5\r\nab",
            chunked(b"abc", end=False) + b"0\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Le",
        ],
    )
    @pytest.mark.parametrize("then", ["close", "reset"])
    @pytest.mark.parametrize("stream", [False, True])
    async def test_truncated(self, transport, reply, then, stream):
        async with upstream(once(reply, then=then)) as server:
            with pytest.raises(TransportError) as caught:
                await (await transport.send(server.origin, post(), QUICK, stream=stream)).read()
        assert (caught.value.kind, caught.value.sent) == (FailureClass.RESET, True)

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_reset_is_no_end_of_an_answer_without_length(self, transport, stream):
        async def script(peer):
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
            await asyncio.sleep(0.05)
            # Linger of no time: the close is a reset.
            peer.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )

        async with upstream(script) as server:
            with pytest.raises(TransportError) as caught:
                await (await transport.send(server.origin, post(), QUICK, stream=stream)).read()
        assert caught.value.kind == FailureClass.RESET

    async def test_more_than_the_length_says(self, transport):
        reply = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef"
        async with upstream(once(reply, then="hang")) as server:
            for _ in range(2):
                got = await transport.send(server.origin, post(), QUICK, stream=False)
                assert got.body == b"abc"
        assert server.accepts == 2

    async def test_reset_at_every_byte(self, transport):
        reply = chunked(b"ab", b"c", headers=b"X: y\r\n")
        cut = len(reply)

        async def script(peer):
            await peer.request()
            await peer.send(reply[:cut])
            # An end and not a reset: a reset may overtake the bytes before it.
            peer.writer.write_eof()
            await peer.until_closed()

        async with upstream(script) as server:
            for cut in range(len(reply)):  # noqa: B007 - the script reads it
                error = await fails(transport, server.origin)
                assert error.kind == FailureClass.RESET
            cut = len(reply)
            got = await transport.send(server.origin, post(), QUICK, stream=False)
            assert got.body == b"abc"


class Kept:
    """An owner that notes what it is told."""

    def __init__(self):
        self.events = []

    def released(self, connection):
        self.events.append("released")

    def lost(self, connection):
        self.events.append("lost")


async def outcome(pieces, *, stream, eof=False):
    """What a caller sees of an answer that arrives in these pieces."""
    loop = asyncio.get_running_loop()
    owner, wire = Kept(), Wire()
    connection = Connection(loop, owner, Outbox(loop))
    connection.connection_made(wire)
    waiter = connection.exchange(b"", QUICK, stream=stream)
    connection._outbox.flush()
    for piece in pieces:
        if not wire.closed:
            connection.data_received(piece)
    if eof and not wire.closed:
        connection.eof_received()
    if not waiter.done():
        connection.close()
    seen = []
    try:
        got = await waiter
        seen += [got.status, got.headers]
        body = bytearray()
        if isinstance(got, StreamAnswer) and got._connection is not None:
            connection.close()
        try:
            await got.relay(body.extend)
        finally:
            seen.append(bytes(body))
    except TransportError as error:
        seen += [error.kind, error.message]
    connection.connection_lost(None)
    return seen, owner.events


class TestCuts:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("reply", "eof"),
        [
            (answer(b'{"a": 1}', headers=b"X-A: b\r\nX-Empty:\r\n"), False),
            (b"HTTP/1.1 100 Continue\r\n\r\n" + chunked(b"data: 1\n\n", b"data: 2\n\n"), False),
            (b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nabcdef", True),
            (chunked(b"abc", end=False) + b"zz\r\n", False),
            (chunked(b"abc", end=False), True),
            (answer(b"abc") + b"GARBAGE", False),
            (answer(headers=b"Content-Encoding: br\r\n"), False),
            (answer(b"", status=b"204 No Content"), False),
        ],
    )
    async def test_every_cut_gives_the_same(self, reply, eof, stream):
        whole = await outcome([reply], stream=stream, eof=eof)
        for cut in range(1, len(reply)):
            parts = await outcome([reply[:cut], reply[cut:]], stream=stream, eof=eof)
            assert parts[0] == whole[0], cut
        bytewise = await outcome(
            [reply[i : i + 1] for i in range(len(reply))], stream=stream, eof=eof
        )
        assert bytewise[0] == whole[0]

    async def test_dribbled_over_a_real_socket(self, transport):
        reply = chunked(b"data: 1\n\n", b"data: 2\n\n", headers=b"X: y\r\n")

        async def script(peer):
            while await peer.request() is not None:
                for byte in reply:
                    await peer.send(bytes([byte]))
                    await asyncio.sleep(0)

        async with upstream(script) as server:
            for stream in (False, True):
                got = await transport.send(server.origin, post(), QUICK, stream=stream)
                assert await got.read() == b"data: 1\n\ndata: 2\n\n"
        assert server.accepts == 1


class TestRelay:
    async def test_one_call_for_each_read(self, transport):
        more = asyncio.Event()

        async def script(peer):
            await peer.request()
            await peer.send(chunked(b"a", b"b", b"c", end=False))
            await more.wait()
            await peer.send(b"1\r\nd\r\n1\r\ne\r\n0\r\n\r\n")
            await peer.until_closed()

        async with upstream(script) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=True)
            assert got.body is None
            await asyncio.sleep(0.05)  # the first bytes are there before anybody takes them
            pieces = []
            task = asyncio.create_task(got.relay(pieces.append))
            await until(lambda: pieces)
            assert pieces == [b"abc"]
            more.set()
            await task
            assert pieces == [b"abc", b"de"]
            assert transport.connections() == (1, 1)

    async def test_backpressure_reaches_the_provider(self, transport):
        chunk = b"%x\r\n%b\r\n" % (65536, b"x" * 65536)
        sent = 0

        async def script(peer):
            nonlocal sent
            await peer.request()
            await peer.send(chunked(end=False))
            for _ in range(640):
                await peer.send(chunk)
                sent += 65536
            await peer.send(b"0\r\n\r\n")
            await peer.until_closed()

        async with upstream(script) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=True)
            size = 0

            def sink(data):
                nonlocal size
                if not size:
                    got.pause()
                size += len(data)

            task = asyncio.create_task(got.relay(sink))
            await until(lambda: size)
            await asyncio.sleep(0.2)
            held, was = sent, size
            await asyncio.sleep(0.2)
            assert (sent, size) == (held, was)
            assert held < 640 * 65536
            got.resume()
            await task
            assert size == 640 * 65536
            # The pause does not stick to the connection.
            assert transport.connections() == (1, 1)

    async def test_early_bytes_are_bounded(self, transport):
        chunk = b"%x\r\n%b\r\n" % (65536, b"x" * 65536)

        async def script(peer):
            await peer.request()
            await peer.send(chunked(end=False))
            for _ in range(320):
                await peer.send(chunk)
            await peer.send(b"0\r\n\r\n")
            await peer.until_closed()

        async with upstream(script) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=True)
            await asyncio.sleep(0.2)
            assert len(got._early) < 1_000_000
            assert await got.read() == b"x" * 320 * 65536

    async def test_a_pause_at_the_last_byte_does_not_stick(self, transport):
        async def script(peer):
            while await peer.request() is not None:
                await peer.send(chunked(b"abc", end=False))
                await asyncio.sleep(0.02)
                await peer.send(b"1\r\nd\r\n0\r\n\r\n")

        async with upstream(script) as server:
            for _ in range(3):
                got = await transport.send(server.origin, post(), QUICK, stream=True)
                assert got.body is None
                pieces = []

                def sink(data, got=got, pieces=pieces):
                    pieces.append(data)
                    if data == b"d":
                        got.pause()

                await got.relay(sink)
                assert pieces == [b"abc", b"d"]
        assert server.accepts == 1

    async def test_the_sinks_failure_is_the_callers(self, transport):
        class Gone(Exception):
            pass

        def sink(data):
            raise Gone

        async with upstream(once(chunked(b"abc", end=False), then="hang")) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=True)
            with pytest.raises(Gone):
                await got.relay(sink)
            await server.closes.acquire()

        async def late(peer):
            await peer.request()
            await peer.send(chunked(end=False))
            await asyncio.sleep(0.05)
            await peer.send(b"1\r\nx\r\n")
            await peer.until_closed()

        async with upstream(late) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=True)
            with pytest.raises(Gone):
                await got.relay(sink)
            await server.closes.acquire()
        assert transport.connections() == (0, 0)

    async def test_abort_out_of_the_sink(self, transport):
        async with upstream(once(chunked(b"abc", end=False), then="hang")) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=True)
            with pytest.raises(TransportError, match="this side"):
                await got.relay(lambda data: got.abort())
            await server.closes.acquire()

    async def test_bytes_before_the_break_come_first(self, transport):
        async with upstream(once(chunked(b"abc", end=False))) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=True)
            await asyncio.sleep(0.05)
            pieces = []
            with pytest.raises(TransportError):
                await got.relay(pieces.append)
        assert pieces == [b"abc"]


class TestCancelling:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_before_the_headers(self, transport, stream):
        async with upstream(once(b"", then="hang")) as server:
            task = asyncio.create_task(
                transport.send(server.origin, post(), PATIENT, stream=stream)
            )
            await until(lambda: server.requests)
            task.cancel()
            await server.closes.acquire()
            assert transport.connections() == (0, 0)
            with pytest.raises(asyncio.CancelledError):
                await task

    async def test_in_mid_stream(self, transport):
        async with upstream(once(chunked(b"abc", end=False), then="hang")) as server:
            got = await transport.send(server.origin, post(), PATIENT, stream=True)
            pieces = []
            task = asyncio.create_task(got.relay(pieces.append))
            await until(lambda: pieces)
            task.cancel()
            await server.closes.acquire()
            assert transport.connections() == (0, 0)

    async def test_leaves_no_circle_behind(self, transport):
        """Else all that led to the stream stays in memory until the cycle collector comes."""
        async with upstream(once(chunked(b"abc", end=False), then="hang")) as server:
            got = await transport.send(server.origin, post(), PATIENT, stream=True)
            pieces = []

            class Sink:
                def __init__(self, source):
                    self.source = source

                def take(self, data):
                    pieces.append(data)

            task = asyncio.create_task(got.relay(Sink(got).take))
            await until(lambda: pieces)
            gc.collect()
            gc.disable()
            try:
                task.cancel()
                await server.closes.acquire()
                await asyncio.wait([task])
                del got, task
                assert not [one for one in gc.get_objects() if type(one) is StreamAnswer]
            finally:
                gc.enable()

    async def test_leaves_no_circle_behind_while_connecting(self):
        asked = asyncio.Event()

        async def resolver(host, port):
            asked.set()
            await asyncio.Event().wait()

        transport = HttpTransport(resolver=resolver, sweep_seconds=60)
        origin = parse_base_url("http://model.test")
        gc.collect()
        gc.disable()
        try:
            before = alive(UpstreamRequest)
            task = asyncio.create_task(transport.send(origin, post(), PATIENT, stream=False))
            await asked.wait()
            task.cancel()
            await asyncio.wait([task])
            del task
            assert alive(UpstreamRequest) == before
        finally:
            gc.enable()
        transport.close()

    async def test_while_connecting(self):
        asked = asyncio.Event()

        async def resolver(host, port):
            asked.set()
            await asyncio.Event().wait()

        transport = HttpTransport(resolver=resolver, sweep_seconds=0.02)
        origin = parse_base_url("http://model.test")
        task = asyncio.create_task(transport.send(origin, post(), PATIENT, stream=False))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transport._pools[origin.origin].opening == 0
        transport.close()

    @pytest.mark.parametrize("stream", [False, True])
    async def test_in_the_very_turn_of_the_answer(self, stream):
        """The connection may already serve another request, which must not notice."""
        loop = asyncio.get_running_loop()
        owner, wire = Kept(), Wire()
        connection = Connection(loop, owner, Outbox(loop))
        connection.connection_made(wire)
        first = connection.exchange(b"", PATIENT, stream=stream)
        connection._outbox.flush()
        connection.data_received(answer(b"1"))
        second = connection.exchange(b"", PATIENT, stream=stream)
        connection._outbox.flush()
        connection.withdraw(first)
        assert not wire.closed
        connection.data_received(answer(b"2"))
        assert (await second).body == b"2"
        assert owner.events == ["released", "released"]

    async def test_a_stream_that_nobody_can_take_any_more_is_closed(self):
        loop = asyncio.get_running_loop()
        owner, wire = Kept(), Wire()
        connection = Connection(loop, owner, Outbox(loop))
        connection.connection_made(wire)
        waiter = connection.exchange(b"", PATIENT, stream=True)
        connection._outbox.flush()
        waiter.cancel()
        connection.data_received(chunked(b"abc", end=False))
        assert wire.closed
        connection.withdraw(waiter)
        assert owner.events == ["lost"]

    async def test_hundreds_at_random_leave_nothing_behind(self):
        transport = HttpTransport(max_connections=8, sweep_seconds=0.02)

        async def script(peer):
            while await peer.request() is not None:
                await asyncio.sleep(0.001)
                await peer.send(chunked(b"abc", end=False))
                await asyncio.sleep(0.001)
                await peer.send(b"0\r\n\r\n")

        async with upstream(script) as server:

            async def client(number):
                got = await transport.send(server.origin, post(), PATIENT, stream=bool(number % 2))
                pool = transport._pools[server.origin.origin]
                assert len(pool.open_ones) + pool.opening <= 8
                assert await got.read() == b"abc"

            tasks = [asyncio.create_task(client(number)) for number in range(300)]
            for number, task in enumerate(tasks):
                if number % 3:
                    asyncio.get_running_loop().call_later(number * 0.0003, task.cancel)
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert done[::3] == [None] * 100
            pool = transport._pools[server.origin.origin]
            assert (pool.opening, len(pool.open_ones)) == (0, len(pool.free))
        transport.close()


class TestEgress:
    def serving(self, *answers, policy=None):
        """A transport whose resolver gives these answers one after the other."""
        turns = iter(answers)

        async def resolver(host, port):
            return next(turns)

        return HttpTransport(policy, resolver=resolver, sweep_seconds=0.02)

    async def test_each_connection_resolves_and_checks_anew(self):
        transport = self.serving(["127.0.0.1"], ["169.254.169.254"])
        async with upstream(once(answer(headers=b"Connection: close\r\n"))) as server:
            origin = parse_base_url(f"http://model.test:{server.port}")
            got = await transport.send(origin, post(), QUICK, stream=False)
            assert got.status == 200
            assert server.requests[0][0].split(b"\r\n")[1] == b"Host: model.test:%d" % server.port
            error = await fails(transport, origin)
        assert (error.kind, error.sent, server.accepts) == (FailureClass.CONNECT, False, 1)
        assert "link-local" in error.message
        transport.close()

    @pytest.mark.parametrize(
        "addresses",
        [
            ["127.0.0.1", "169.254.169.254"],
            ["fd00:ec2::254", "127.0.0.1"],
            ["::ffff:169.254.169.254", "127.0.0.1"],
            ["127.0.0.1"] * 20 + ["224.0.0.1"],
            ["fe80::1%eth0", "127.0.0.1"],
            [],
        ],
    )
    async def test_one_bad_address_refuses_the_name(self, addresses):
        transport = self.serving(addresses)
        async with upstream(always(answer())) as server:
            error = await fails(transport, parse_base_url(f"http://model.test:{server.port}"))
        assert (error.kind, error.sent, server.accepts) == (FailureClass.CONNECT, False, 0)
        transport.close()

    async def test_the_next_address_is_tried(self):
        transport = self.serving(["127.0.0.2", "127.0.0.1"])
        async with upstream(always(answer())) as server:
            origin = parse_base_url(f"http://model.test:{server.port}")
            assert (await transport.send(origin, post(), QUICK, stream=False)).status == 200
        transport.close()

    async def test_a_silent_address_does_not_use_up_the_limit(self):
        async with upstream(always(answer())) as server:
            with socket.socket() as full:
                full.bind(("127.0.0.2", server.port))
                full.listen(0)
                fillers = [socket.socket() for _ in range(4)]
                for filler in fillers:
                    filler.setblocking(False)
                    filler.connect_ex(full.getsockname())
                transport = self.serving(["127.0.0.2", "127.0.0.1"])
                origin = parse_base_url(f"http://model.test:{server.port}")
                got = await transport.send(origin, post(), Timeouts(connect=1.5), stream=False)
                assert got.status == 200
                transport.close()
                for filler in fillers:
                    filler.close()

    async def test_the_name_does_not_resolve(self):
        async def resolver(host, port):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        transport = HttpTransport(resolver=resolver, sweep_seconds=0.02)
        error = await fails(transport, parse_base_url("http://nowhere.test"))
        assert (error.kind, error.sent) == (FailureClass.CONNECT, False)
        assert "does not resolve" in error.message
        transport.close()

    async def test_localhost_through_the_systems_resolver(self, transport):
        async with upstream(always(answer())) as server:
            origin = parse_base_url(f"http://localhost:{server.port}")
            assert (await transport.send(origin, post(), QUICK, stream=False)).status == 200

    @pytest.mark.parametrize("wildcard", [False, True])
    async def test_our_own_listener(self, wildcard):
        async with upstream(always(answer())) as server:
            policy = EgressPolicy([("0.0.0.0" if wildcard else "127.0.0.1", server.port)])
            transport = HttpTransport(policy, sweep_seconds=0.02)
            error = await fails(transport, server.origin)
            transport.close()
        assert "own address" in error.message
        assert server.accepts == 0


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


class TestTls:
    def transport(self, authority, *, trusted=True, proxy=None):
        async def resolver(host, port):
            return ["127.0.0.1"]

        return HttpTransport(
            ca_file=authority.ca_file if trusted else None,
            resolver=resolver,
            proxy=proxy,
            sweep_seconds=0.02,
        )

    async def test_name_checked_and_asked_for(self, authority):
        transport = self.transport(authority)
        context = authority.server("model.test")
        async with upstream(always(answer(b"x" * 300_000)), tls=context) as server:
            origin = parse_base_url(f"https://model.test:{server.port}")
            for stream in (False, True):
                got = await transport.send(origin, post(), QUICK, stream=stream)
                assert await got.read() == b"x" * 300_000
            transport.close()
            await server.closes.acquire()
        assert authority.asked == ["model.test"]
        assert server.accepts == 1

    async def test_the_certificate_itself_is_trusted(self, authority):
        context = authority.server("model.test")
        authority.ca_file = authority.folder / "server.pem"
        transport = self.transport(authority)
        async with upstream(always(answer()), tls=context) as server:
            origin = parse_base_url(f"https://model.test:{server.port}")
            assert (await transport.send(origin, post(), QUICK, stream=False)).status == 200
            transport.close()
            await server.closes.acquire()

    async def test_a_body_in_parts(self, authority):
        transport = self.transport(authority)
        body = Spliced(b'{"a":"', memoryview(b"x" * 300_000), b'"}')
        async with upstream(always(answer()), tls=authority.server("127.0.0.1")) as server:
            await transport.send(server.origin, post(body), QUICK, stream=False)
        assert server.requests[0][1] == bytes(body)

    async def test_an_address_in_the_certificate(self, authority):
        transport = self.transport(authority)
        async with upstream(always(answer()), tls=authority.server("127.0.0.1")) as server:
            got = await transport.send(server.origin, post(), QUICK, stream=False)
            assert got.status == 200
            transport.close()
            await server.closes.acquire()

    @pytest.mark.parametrize(
        ("names", "trusted", "why"),
        [(["other.test"], True, "not valid"), (["model.test"], False, "not valid")],
    )
    async def test_wrong_name_or_unknown_authority(self, authority, names, trusted, why):
        transport = self.transport(authority, trusted=trusted)
        async with upstream(always(answer()), tls=authority.server(*names)) as server:
            error = await fails(transport, parse_base_url(f"https://model.test:{server.port}"))
        assert (error.kind, error.sent) == (FailureClass.CONNECT, False)
        assert why in error.message
        assert server.requests == []
        transport.close()

    async def test_plain_text_where_tls_was_expected(self, authority):
        async def script(peer):
            await peer.send(answer())
            await peer.until_closed()

        transport = self.transport(authority)
        async with upstream(script) as server:
            error = await fails(transport, parse_base_url(f"https://model.test:{server.port}"))
        assert (error.kind, error.sent) == (FailureClass.CONNECT, False)
        transport.close()

    async def test_a_handshake_that_hangs(self, authority):
        async def script(peer):
            await peer.until_closed()

        transport = self.transport(authority)
        async with upstream(script) as server:
            origin = parse_base_url(f"https://model.test:{server.port}")
            error = await fails(transport, origin, timeouts=Timeouts(connect=0.5))
            await until(lambda: server.now_open == 0)
        assert (error.kind, error.sent) == (FailureClass.CONNECT, False)
        transport.close()

    async def test_a_tunnel_that_leads_to_no_tls(self, authority):
        async def script(peer):
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
            await peer.reader.read(100)
            await peer.send(b"this is no TLS")

        async with upstream(script) as middle:
            proxy = Proxy.parse(f"http://127.0.0.1:{middle.port}")
            transport = self.transport(authority, proxy=proxy)
            error = await fails(transport, parse_base_url("https://model.test"))
            transport.close()
        assert (error.kind, error.sent) == (FailureClass.CONNECT, False)

    async def test_cancelling_closes(self, authority):
        transport = self.transport(authority)
        async with upstream(once(b"", then="hang"), tls=authority.server("model.test")) as server:
            origin = parse_base_url(f"https://model.test:{server.port}")
            task = asyncio.create_task(transport.send(origin, post(), QUICK, stream=False))
            await until(lambda: server.requests)
            task.cancel()
            await server.closes.acquire()
        transport.close()

    @pytest.mark.parametrize("tls", [False, True])
    async def test_through_a_proxy(self, authority, tls):
        context = authority.server("model.test") if tls else None
        async with upstream(always(answer(b"far")), tls=context) as server:

            async def tunnel(peer):
                await peer.request()
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                await peer.send(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")

                async def pump(source, sink):
                    try:
                        while data := await source.read(65536):
                            sink.write(data)
                    except ConnectionError:
                        pass
                    sink.transport.abort()

                await asyncio.gather(pump(peer.reader, writer), pump(reader, peer.writer))

            async with upstream(tunnel) as middle:
                proxy = Proxy.parse(f"http://me:p%40ss@127.0.0.1:{middle.port}")
                transport = self.transport(authority, proxy=proxy)
                origin = parse_base_url(f"{'https' if tls else 'http'}://model.test:{server.port}")
                for _ in range(2):
                    got = await transport.send(origin, post(), QUICK, stream=False)
                    assert got.body == b"far"
                # What is local is not the proxy's business.
                if not tls:
                    assert (await transport.send(server.origin, post(), QUICK, stream=False)).body
                transport.close()
                await middle.closes.acquire()
        assert middle.accepts == 1
        head = middle.requests[0][0]
        assert head.startswith(b"CONNECT model.test:%d HTTP/1.1\r\n" % server.port)
        assert b"\r\nProxy-Authorization: Basic bWU6cEBzcw==\r\n" in head

    @pytest.mark.parametrize(
        ("host", "passes"),
        [
            ("model.test", False),
            ("gpu.corp.test", True),
            ("corp.test", True),
            ("notcorp.test", False),
            ("corp.test.example", False),
            ("ollama", True),
            ("gpu.local", True),
            ("127.0.0.1", True),
            ("203.0.114.7", False),
        ],
    )
    async def test_what_passes_the_proxy_by(self, host, passes):
        async def nowhere(name, port):
            raise OSError(0, "passed by")

        async with upstream(once(b"HTTP/1.1 403 No\r\n\r\n")) as middle:
            transport = HttpTransport(
                proxy=Proxy.parse(f"http://127.0.0.1:{middle.port}", ("corp.test", "other.test")),
                resolver=nowhere,
                sweep_seconds=0.02,
            )
            quick = Timeouts(connect=0.2)
            error = await fails(transport, parse_base_url(f"http://{host}"), timeouts=quick)
            transport.close()
        through = f"through the proxy 127.0.0.1:{middle.port}: the proxy answered 403"
        assert (through in error.message) is not passes
        assert middle.accepts == (0 if passes else 1)

    @pytest.mark.parametrize(
        ("reply", "why"),
        [
            (b"HTTP/1.1 407 No\r\n\r\n", "answered 407"),
            (b"HTTP/1.1 200 OK\r\n\r\nsmuggled", "HTTP/1.1"),
            (b"garbage\r\n\r\n", "HTTP/1.1"),
            (b"x" * 20_000, "HTTP/1.1"),
            (b"", "closed"),
        ],
    )
    async def test_a_proxy_that_refuses(self, authority, reply, why):
        async with upstream(once(reply)) as middle:
            proxy = Proxy.parse(f"http://127.0.0.1:{middle.port}")
            transport = self.transport(authority, proxy=proxy)
            error = await fails(transport, parse_base_url("https://model.test"))
            transport.close()
        assert (error.kind, error.sent) == (FailureClass.CONNECT, False)
        assert why in error.message

    @pytest.mark.parametrize(
        "url",
        [
            "https://p:1", "socks5://p:1", "p:3128", "http://", "http://p/x", "http://p?x", "http://p#x",
            "http://me:s3cret", "http://me:s3cret@p:99999", "http://[p",
        ],
    )  # fmt: skip
    def test_malformed_proxy(self, url):
        with pytest.raises(ValueError, match="must be like") as caught:
            Proxy.parse(url)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_timeouts_have_the_documented_defaults():
    assert msgspec.structs.asdict(Timeouts()) == {
        "connect": 3.0,
        "first_byte": 10.0,
        "idle": 30.0,
        "total": None,
    }
