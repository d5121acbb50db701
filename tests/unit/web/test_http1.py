"""The HTTP/1.1 server on real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct

import pytest

from tokenhub.core.errors import NotFound
from tokenhub.core.members import LONG
from tokenhub.web import connection
from tokenhub.web.body import ChunkedBody, SizedBody
from tokenhub.web.http import ClientStream, Request, Response

H = b"Host: h\r\n"


def get(path=b"/", extra=b"", method=b"GET"):
    return method + b" " + path + b" HTTP/1.1\r\n" + H + extra + b"\r\n"


def post(body, path=b"/", extra=b""):
    length = b"Content-Length: %d\r\n" % len(body)
    return get(path, length + extra, b"POST") + body


def chunked(body, size, path=b"/", extra=b""):
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return get(path, b"Transfer-Encoding: chunked\r\n" + extra, b"POST") + framed + b"0\r\n\r\n"


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the server offers no event for it
            await asyncio.sleep(0.001)


class Running:
    """A handler that waits until it is told to go on, and says how it ended."""

    def __init__(self):
        self.started = 0
        self.ended = []
        self.go = asyncio.Event()

    async def __call__(self, request):
        self.started += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("done")
        return Response(200, request.path.encode())


class TestRequests:
    async def test_what_the_handler_sees(self, http, echo):
        await http.serve(echo)
        client = await http.connect()
        client.send(
            get(
                b"/v1/models/a%2Fb?x=1&y=%20",
                b"X-List: a\r\nx-list:  b \t\r\nCookie: a=1\r\nCookie: b=2\r\nEmpty:\r\n"
                b"X-Request-Id: my.id:1\r\nContent-Length: 3\r\n",
                b"POST",
            )
            + b"abc"
        )
        answer = await client.answer()
        (request,) = echo.seen
        assert request.method == "POST"
        assert request.target == b"/v1/models/a%2Fb?x=1&y=%20"
        assert (request.path, request.query) == ("/v1/models/a%2Fb", "x=1&y=%20")
        assert request.headers[b"x-list"] == b"a, b"
        assert request.headers[b"cookie"] == b"a=1; b=2"
        assert request.headers[b"empty"] == b""
        assert request.body == b"abc"
        assert request.peer == "127.0.0.1"
        assert request.client_id == "my.id:1"
        assert answer.headers[b"x-request-id"] == request.id.encode()
        assert answer.headers[b"content-type"] == b"application/json"
        assert b"connection" not in answer.headers

    @pytest.mark.parametrize("bad", [b"", b"a b", b"a" * 129, b"\xe9", b"<script>", b"a,b"])
    async def test_a_client_id_of_another_shape_is_ignored(self, http, echo, bad):
        await http.serve(echo)
        client = await http.connect()
        client.send(get(extra=b"X-Request-Id: " + bad + b"\r\n"))
        assert (await client.answer()).status == 200
        assert echo.seen[0].client_id == ""

    async def test_options_star(self, http, echo):
        await http.serve(echo)
        client = await http.connect()
        client.send(get(b"*", method=b"OPTIONS"))
        assert (await client.answer()).body == b"OPTIONS * "

    @pytest.mark.parametrize("size", [1, 2, 7, 1000, 100_000])
    async def test_a_chunked_body(self, http, echo, size):
        await http.serve(echo)
        client = await http.connect()
        body = bytes(range(256)) * 40
        client.send(chunked(body, size) + get(b"/next"))
        assert (await client.answer()).body == b"POST / " + body
        assert (await client.answer()).body == b"GET /next "

    async def test_a_large_body_in_many_reads(self, http, echo):
        await http.serve(echo)
        client = await http.connect()
        body = bytes(range(256)) * 20_000
        client.send(post(body) + get(b"/next"))
        assert (await client.answer()).body == b"POST / " + body
        assert (await client.answer()).body == b"GET /next "

    @pytest.mark.parametrize("size", [LONG - 1, LONG, 60_000])
    async def test_a_long_body_is_no_more_than_its_own_bytes(self, http, size):
        bodies = []

        async def handler(request):
            bodies.append(request.body)
            return Response(200, bytes(request.body))

        await http.serve(handler)
        client = await http.connect()
        sent = [b"ab" * size, b"c" * size, b"d"]
        for body in sent:
            client.send(post(body[:size], b"/" + body[:1]))
        assert [(await client.answer()).body for _ in sent] == [body[:size] for body in sent]
        assert [bytes(body) for body in bodies] == [body[:size] for body in sent]

    async def test_an_equal_head_with_another_length_is_known_again(self, http, echo, monkeypatch):
        await http.serve(echo)
        client = await http.connect()
        extra = b"X-Request-Id: mine\r\nX: y\r\n"
        client.send(post(b"abc", b"/a?b", extra))
        assert (await client.answer()).body == b"POST /a?b abc"
        monkeypatch.setattr(connection, "parse_head", None)
        for body in (b"", b"x" * 12_345, b"abc", b"abcd"):
            client.send(post(body, b"/a?b", extra))
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"POST /a?b " + body)
        assert len({request.id for request in echo.seen}) == 5
        for request in echo.seen:
            assert (request.path, request.query, request.client_id) == ("/a", "b", "mine")
            assert request.headers[b"content-length"] == b"%d" % len(request.body)
            assert request.headers[b"x"] == b"y"

    @pytest.mark.parametrize(
        "other",
        [
            post(b"abcd", b"/b"),
            post(b"abcd", extra=b"X: z\r\n"),
            post(b"abcd", extra=b"X: yy\r\n"),
            post(b"abcd", extra=b"X: y\r\nAuthorization: Bearer other\r\n"),
            post(b"abcd"),
            get(extra=b"X: y\r\n"),
            chunked(b"abcd", 2, extra=b"X: y\r\n"),
            post(b"abcd", extra=b"X: y\r\nConnection: close\r\n"),
        ],
    )
    @pytest.mark.parametrize("cut", [False, True])
    async def test_another_head_is_read_anew(self, http, echo, other, cut):
        await http.serve(echo)
        client = await http.connect()
        client.send(post(b"abc", extra=b"X: y\r\n"))
        await client.answer()
        if cut:
            client.send(other[:40])
            await asyncio.sleep(0.02)
        client.send(other[40:] if cut else other)
        behind = await client.answer()
        alone = await http.connect()
        alone.send(other)
        assert (await alone.answer()).body == behind.body
        _, one, two = echo.seen
        assert one.headers == two.headers
        assert (one.method, one.path, one.body) == (two.method, two.path, two.body)

    @pytest.mark.parametrize("at", [10, 30, 50, 60])
    async def test_an_equal_head_may_come_in_pieces(self, http, echo, at):
        await http.serve(echo)
        client = await http.connect()
        raw = post(b"abcdef", extra=b"X: y\r\n")
        client.send(post(b"abc", extra=b"X: y\r\n") + raw[:at])
        await client.answer()
        await asyncio.sleep(0.02)
        client.send(raw[at:])
        assert (await client.answer()).body == b"POST / abcdef"

    async def test_equal_heads_of_connections_are_kept_once(self, http, echo):
        server = await http.serve(echo)
        mine = b"Authorization: Bearer mine\r\n"
        first, second, third = [await http.connect() for _ in range(3)]
        first.send(post(b"abc", extra=mine))
        await first.answer()
        second.send(post(b"abcd", extra=mine))
        assert (await second.answer()).body == b"POST / abcd"
        one, two = echo.seen
        assert two.headers == one.headers | {b"content-length": b"4"}
        assert two.head is one.head
        third.send(post(b"abc", extra=b"Authorization: Bearer other\r\n"))
        await third.answer()
        assert echo.seen[2].headers[b"authorization"] == b"Bearer other"
        first.close()
        await until(lambda: len(server.connections) == 2)
        second.send(post(b"x", extra=mine))
        await second.answer()
        assert echo.seen[3].head is one.head

    async def test_no_head_is_kept_when_its_connections_are_gone(self, http, echo):
        server = await http.serve(echo)
        for _ in range(2):
            client = await http.connect()
            client.send(post(b"abc"))
            await client.answer()
        assert len(server.known) == 1
        http.clients[0].close()
        await until(lambda: len(server.connections) == 1)
        assert server.known
        client.close()
        await until(lambda: not server.connections)
        assert not server.known

    async def test_an_equal_head_is_not_let_over_the_limit(self, http, echo):
        first = post(b"abc")
        await http.serve(echo, limits={"head": len(first) - 3})
        client = await http.connect()
        client.send(first)
        assert (await client.answer()).status == 200
        client.send(post(b"x" * 10))
        assert (await client.answer()).status == 431

    async def test_a_client_of_ever_new_heads_is_not_remembered_for_ever(self, http, echo):
        server = await http.serve(echo)
        client = await http.connect()
        for number in range(6):
            client.send(post(b"abc", b"/%d" % number))
            await client.answer()
        (kept,) = server.connections
        assert kept._known.head.path == "/2"
        client.close()
        await until(lambda: not server.connections)
        assert kept._known is kept._last is None

    @pytest.mark.parametrize(
        "raw",
        [
            get(b"/a?b=c", b"X: y\r\n"),
            post(b"hello", b"/p", b"Expect: 100-continue\r\n"),
            chunked(b"hello world", 4),
            get(b"/1") + post(b"x" * 20, b"/2") + chunked(b"abc", 2, b"/3") + get(b"/4"),
        ],
    )
    async def test_cut_anywhere_the_result_is_the_same(self, http, echo, raw):
        await http.serve(echo)
        last = get(b"/last", b"Connection: close\r\n")

        async def result(*pieces):
            client = await http.connect(limit=2**20)
            client.writer.transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )
            echo.seen.clear()
            for piece in pieces:
                client.send(piece)
                await asyncio.sleep(0)
                await asyncio.sleep(0.0005)
            client.send(last)
            received = (await client.rest()).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
            bodies = [part for part in received.split(b"\r\n") if part.count(b" ") == 2]
            return bodies, [(r.method, r.target, r.headers, r.body) for r in echo.seen]

        whole = await result(raw)
        assert len(whole[1]) >= 2
        for cut in range(1, len(raw)):
            assert await result(raw[:cut], raw[cut:]) == whole, cut

    async def test_one_byte_at_a_time(self, http, echo):
        await http.serve(echo)
        client = await http.connect()
        for byte in post(b"hello", b"/p") + chunked(b"abcdef", 3):
            client.send(bytes([byte]))
            await asyncio.sleep(0.0002)
        assert (await client.answer()).body == b"POST /p hello"
        assert (await client.answer()).body == b"POST / abcdef"


class TestAnswers:
    async def test_pipelined_requests_are_answered_in_order(self, http):
        running = 0

        async def handler(request):
            nonlocal running
            running += 1
            assert running == 1
            # The first ones take longest.
            await asyncio.sleep(0.01 if int(request.path[1:]) < 3 else 0)
            running -= 1
            return Response(200, request.path.encode())

        await http.serve(handler)
        client = await http.connect()
        client.send(b"".join(get(b"/%d" % number) for number in range(200)))
        for number in range(200):
            assert (await client.answer()).body == b"/%d" % number

    async def test_reading_stops_while_pipelined_bytes_wait(self, http):
        most = 0
        go = asyncio.Event()

        async def handler(request):
            nonlocal most
            (connection,) = server.connections
            await (go.wait() if request.path == "/first" else asyncio.sleep(0))
            most = max(most, len(connection._buffer))
            return Response(200)

        server = await http.serve(handler)
        client = await http.connect()
        client.send(get(b"/first") + get(b"/x" * 1000) * 2000)
        await until(lambda: server.connections and not next(iter(server.connections))._reading)
        await asyncio.sleep(0.02)
        go.set()
        for _ in range(2001):
            assert (await client.answer()).status == 200
        assert most < 2**19  # read_ahead and one read of the loop

    async def test_64_distinct_echoes_at_once_are_never_mixed(self, http):
        async def handler(request):
            await asyncio.sleep(int(request.query) % 7 / 5000)
            return Response(200, request.body)

        await http.serve(handler)

        async def talk(number):
            client = await http.connect()
            for turn in range(20):
                body = b"%d-%d-" % (number, turn) * (1 + number * turn)
                client.send(post(body, b"/?%d" % (number + turn)))
                assert (await client.answer()).body == body

        await asyncio.gather(*(talk(number) for number in range(64)))

    async def test_head_has_the_length_of_get_but_no_body(self, http, echo):
        await http.serve(echo)
        client = await http.connect()
        client.send(get(b"/a", method=b"HEAD") + get(b"/b"))
        answer = await client.answer("HEAD")
        assert answer.headers[b"content-length"] == b"8"
        assert (await client.answer()).body == b"GET /b "

    @pytest.mark.parametrize("status", [204, 304])
    async def test_no_body_where_none_may_be(self, http, status):
        async def handler(request):
            return Response(status, b"ignored")

        await http.serve(handler)
        client = await http.connect()
        client.send(get() + get())
        for _ in range(2):
            answer = await client.answer()
            assert answer.status == status
            assert b"content-length" not in answer.headers

    @pytest.mark.parametrize("status", [200, 299, 402, 529])
    async def test_any_final_status(self, http, status):
        async def handler(request):
            return Response(status, b"{}")

        await http.serve(handler)
        client = await http.connect()
        client.send(get())
        assert (await client.answer()).status == status

    async def test_http10_is_closed_after_the_answer(self, http, echo):
        await http.serve(echo)
        got = await http.exchange(b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + get())
        assert b"Connection: close\r\n" in got
        assert got.endswith(b"GET /old ")

    @pytest.mark.parametrize("value", [b"close", b"Close", b"keep-alive, close", b"x,close"])
    async def test_connection_close_is_obeyed(self, http, echo, value):
        await http.serve(echo)
        got = await http.exchange(get(extra=b"Connection: " + value + b"\r\n") + get(b"/second"))
        assert b"Connection: close\r\n" in got
        assert got.endswith(b"GET / ")
        assert len(echo.seen) == 1

    @pytest.mark.parametrize(
        "forged",
        [
            (b"X", b"a\r\nSet-Cookie: b"),
            (b"X", b"a\nb"),
            (b"X", b"a\rb"),
            (b"X", b"a\0b"),
            (b"X: a\r\nY", b"b"),
            (b"X Y", b"b"),
            (b"", b"b"),
            (b"Content-Length", b"1"),
            (b"transfer-encoding", b"chunked"),
            (b"Connection", b"close"),
        ],
    )
    async def test_a_header_cannot_forge_lines_or_framing(self, http, forged):
        async def handler(request):
            if request.path == "/stream":
                request.open_stream(200, [forged])
            return Response(200, b"secret", [forged])

        await http.serve(handler)
        client = await http.connect()
        for path in (b"/", b"/stream"):
            client.send(get(path))
            answer = await client.answer()
            assert answer.status == 500
            assert json.loads(answer.body)["error"]["code"] == "internal_error"
            assert b"set-cookie" not in answer.headers

    async def test_a_content_type_cannot_forge_lines(self, http):
        async def handler(request):
            return Response(200, b"", content_type=b"a\r\nSet-Cookie: b")

        await http.serve(handler)
        client = await http.connect()
        client.send(get())
        assert (await client.answer()).status == 500

    @pytest.mark.parametrize("status", [0, 100, 101, 199, 600])
    async def test_an_answer_must_be_final(self, http, status):
        async def handler(request):
            return Response(status)

        await http.serve(handler)
        client = await http.connect()
        client.send(get())
        assert (await client.answer()).status == 500

    async def test_an_unexpected_error_is_a_500_without_its_text(self, http):
        async def handler(request):
            raise RuntimeError("password sesame")

        await http.serve(handler)
        client = await http.connect()
        client.send(get() + get())
        for _ in range(2):
            answer = await client.answer()
            assert answer.status == 500
            assert b"sesame" not in answer.body

    async def test_no_answer_at_all_is_a_500(self, http):
        async def handler(request):
            return None

        await http.serve(handler)
        client = await http.connect()
        client.send(get())
        assert (await client.answer()).status == 500

    async def test_errors_go_through_the_callback(self, http):
        seen = []

        def render(request, error):
            seen.append((request and request.path, type(error).__name__))
            return Response(error.status, b'"rendered"')

        async def handler(request):
            raise NotFound("nothing here")

        await http.serve(handler, render=render)
        client = await http.connect()
        client.send(get(b"/lost"))
        assert (await client.answer()).body == b'"rendered"'
        assert b'"rendered"' in await http.exchange(b"nonsense\r\n\r\n")
        assert seen == [("/lost", "NotFound"), (None, "Refused")]

    async def test_a_broken_callback_is_still_a_500(self, http):
        def render(request, error):
            raise error

        async def handler(request):
            raise RuntimeError

        await http.serve(handler, render=render)
        client = await http.connect()
        client.send(get())
        assert (await client.answer()).status == 500

    async def test_a_callback_that_answers_nonsense_is_still_a_500(self, http):
        def render(request, error):
            return Response(99, b"oops", [(b"X", b"a\r\nb")])

        async def handler(request):
            raise RuntimeError

        await http.serve(handler, render=render)
        client = await http.connect()
        client.send(get())
        answer = await client.answer()
        assert (answer.status, answer.body) == (500, b"oops")

    @pytest.mark.parametrize(
        ("extra", "status", "header"),
        [
            (b"Content-Encoding: gzip\r\nContent-Length: 1\r\n", 415, b"accept-encoding"),
            (b"Content-Encoding: identity, br\r\n", 415, b"accept-encoding"),
            (b"Content-Encoding: Identity\r\n", 200, None),
            (b"Expect: something\r\n", 417, None),
            (b"Upgrade: websocket\r\n", 400, None),
            (b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", 200, None),
        ],
    )
    async def test_what_is_not_done_here_has_its_own_status(
        self, http, echo, extra, status, header
    ):
        await http.serve(echo)
        client = await http.connect()
        client.send(get(extra=extra))
        answer = await client.answer()
        assert answer.status == status
        assert header is None or answer.headers[header] == b"identity"

    async def test_every_answer_has_its_own_id_and_a_date(self, http, echo):
        await http.serve(echo)
        client = await http.connect()
        client.send(get() * 5)
        answers = [await client.answer() for _ in range(5)]
        assert len({answer.headers[b"x-request-id"] for answer in answers}) == 5
        assert all(answer.headers[b"date"].endswith(b" GMT") for answer in answers)


class TestBodyLimit:
    @staticmethod
    def limit(request):
        if request.path == "/nowhere":
            raise NotFound("There is no such path.")
        return 100

    async def test_too_long_is_refused_before_the_body(self, http, echo):
        await http.serve(echo, body_limit=self.limit)
        client = await http.connect()
        client.send(get(extra=b"Content-Length: 101\r\nExpect: 100-continue\r\n", method=b"POST"))
        answer = await client.answer()
        assert answer.status == 413
        assert json.loads(answer.body)["error"]["code"] == "request_too_large"
        assert await client.rest() == b""
        assert not echo.seen

    async def test_a_client_that_sends_on_still_reads_the_answer(self, http, echo):
        await http.serve(echo, body_limit=self.limit)
        client = await http.connect()
        client.send(post(b"x" * 5_000_000))
        assert (await client.answer()).status == 413

    async def test_the_limit_itself_is_allowed(self, http, echo):
        await http.serve(echo, body_limit=self.limit)
        client = await http.connect()
        client.send(post(b"x" * 100) + chunked(b"y" * 100, 30))
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 200

    @pytest.mark.parametrize("size", [1, 60, 200])
    async def test_a_chunked_body_is_cut_off_at_the_limit(self, http, echo, size):
        await http.serve(echo, body_limit=self.limit)
        assert (await http.exchange(chunked(b"x" * 101, size))).startswith(b"HTTP/1.1 413 ")
        assert not echo.seen

    async def test_the_callback_may_refuse_by_itself(self, http, echo):
        await http.serve(echo, body_limit=self.limit)
        got = await http.exchange(post(b"x", b"/nowhere") + get(b"/second"))
        assert got.startswith(b"HTTP/1.1 404 ")
        assert not echo.seen

    async def test_a_broken_callback_is_a_500(self, http, echo):
        await http.serve(echo, body_limit=lambda request: 1 // 0)
        assert (await http.exchange(post(b"x"))).startswith(b"HTTP/1.1 500 ")

    async def test_continue_is_sent_once_the_head_is_accepted(self, http, echo):
        await http.serve(echo, body_limit=self.limit)
        client = await http.connect()
        client.send(get(extra=b"Content-Length: 5\r\nExpect: 100-Continue\r\n", method=b"POST"))
        assert (await client.answer()).status == 100
        assert not echo.seen
        client.send(b"hello")
        assert (await client.answer()).body == b"POST / hello"

    async def test_too_many_small_chunks_are_refused(self, http, echo):
        await http.serve(echo, limits={"small_chunks": 50})
        client = await http.connect()
        client.send(chunked(b"x" * 49, 1))
        assert (await client.answer()).status == 200
        assert (await http.exchange(chunked(b"x" * 51, 1))).startswith(b"HTTP/1.1 400 ")


class TestHeadLimits:
    @pytest.mark.parametrize(
        ("raw", "status"),
        [
            (get(extra=b"".join(b"X-%d: y\r\n" % n for n in range(99))), 200),
            (get(extra=b"".join(b"X-%d: y\r\n" % n for n in range(100))), 431),
            (get(extra=b"X: y\r\n" * 100), 431),
            (get(extra=b"X: " + b"y" * (32_768 - 32) + b"\r\n"), 200),
            (get(extra=b"X: " + b"y" * (32_768 - 31) + b"\r\n"), 431),
            (get(extra=b"X: " + b"y" * 100_000 + b"\r\n"), 431),
            (get(extra=b"X" * 40_000 + b": y\r\n"), 431),
            (get(b"/" + b"a" * (8192 - 14)), 200),
            (get(b"/" + b"a" * (8192 - 13)), 414),
            (get(b"/" + b"a" * 40_000), 414),
            (b"A" * 9000, 414),
            (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 6000, 431),
        ],
    )
    async def test_at_and_over(self, http, echo, raw, status):
        await http.serve(echo)
        client = await http.connect()
        client.send(raw)
        assert (await client.answer()).status == status
        assert len(echo.seen) == (status == 200)
        if status != 200:
            assert await client.rest() == b""

    async def test_a_bare_lf_is_refused_before_the_head_is_complete(self, http, echo):
        await http.serve(echo)
        client = await http.connect()
        client.send(b"GET / HTTP/1.1\nHost: h\n")
        assert (await client.answer()).status == 400


class TestTimeLimits:
    async def test_a_slow_head(self, http, echo):
        await http.serve(echo, limits={"head_seconds": 0.1})
        client = await http.connect()
        loop = asyncio.get_running_loop()
        started = loop.time()
        sender = asyncio.create_task(self.drip(client, get(b"/" + b"a" * 1000)))
        assert (await client.answer()).status == 408
        sender.cancel()
        assert 0.09 < loop.time() - started < 3
        assert not echo.seen

    @staticmethod
    async def drip(client, data):
        for byte in data:
            client.send(bytes([byte]))
            await asyncio.sleep(0.01)

    async def test_a_silent_connection_is_closed_without_a_word(self, http, echo):
        await http.serve(echo, limits={"head_seconds": 0.05})
        client = await http.connect()
        assert await client.rest() == b""

    async def test_an_idle_connection_is_closed_without_a_word(self, http, echo):
        await http.serve(echo, limits={"keep_alive_seconds": 0.05})
        client = await http.connect()
        client.send(get())
        await client.answer()
        assert await client.rest() == b""

    @pytest.mark.parametrize("start", [post(b"xxxxx")[:-3], chunked(b"xxxxxxxxx", 5)[:-12]])
    async def test_a_body_that_stops(self, http, echo, start):
        await http.serve(echo, limits={"body_idle_seconds": 0.05})
        client = await http.connect()
        client.send(start)
        assert (await client.answer()).status == 408
        assert not echo.seen

    async def test_a_body_that_drips(self, http, echo):
        limits = {"body_idle_seconds": 0.4, "body_slow_seconds": 0.2, "body_min_rate": 1024}
        await http.serve(echo, limits=limits)
        client = await http.connect()
        sender = asyncio.create_task(self.drip(client, post(b"x" * 5000)[-5060:]))
        client.send(post(b"x" * 5000)[:-5000])
        assert (await client.answer()).status == 408
        sender.cancel()

    async def test_a_running_request_has_no_limit_of_the_edge(self, http):
        handler = Running()
        await http.serve(handler, limits={"head_seconds": 0.02, "keep_alive_seconds": 0.02})
        client = await http.connect()
        client.send(get())
        await asyncio.sleep(0.2)
        handler.go.set()
        assert (await client.answer()).status == 200

    async def test_a_client_that_never_reads_is_cut_off(self, http):
        async def handler(request):
            return Response(200, b"x" * 30_000_000)

        server = await http.serve(handler, limits={"write_stall_seconds": 0.1})
        client = await http.connect()
        client.writer.transport.pause_reading()
        client.send(get())
        await until(lambda: server.connections)
        await until(lambda: not server.connections)

    async def test_a_client_that_reads_slowly_is_not_cut_off(self, http):
        async def handler(request):
            return Response(200, b"x" * 12_000_000)

        await http.serve(handler, limits={"write_stall_seconds": 0.2})
        client = await http.connect(limit=65_536)
        client.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536
        )
        client.send(get())
        await client.reader.readuntil(b"\r\n\r\n")
        left = 12_000_000
        while left:
            left -= len(await client.reader.read(min(left, 100_000)))
            await asyncio.sleep(0.004)

    async def test_a_refused_client_that_does_not_close_is_cut_off(self, http, echo):
        server = await http.serve(echo, limits={"linger_seconds": 0.05})
        client = await http.connect()
        client.send(b"nonsense\r\n\r\n")
        assert (await client.answer()).status == 400
        await until(lambda: not server.connections)


class TestConnectionLimits:
    @pytest.mark.parametrize("limits", [{"connections": 2}, {"connections_per_ip": 2}])
    async def test_over_the_limit_is_a_503_and_room_comes_back(self, http, echo, limits):
        server = await http.serve(echo, limits=limits)
        first, second = await http.connect(), await http.connect()
        await until(lambda: len(server.connections) == 2)
        third = await http.connect()
        assert (await third.answer()).status == 503
        assert await third.rest() == b""
        first.close()
        await until(lambda: len(server.connections) == 1)
        fourth = await http.connect()
        for client in (second, fourth):
            client.send(get())
            assert (await client.answer()).status == 200
        assert server._per_ip == {"127.0.0.1": 2}
        second.close()
        fourth.close()
        await until(lambda: not server.connections)
        assert not server._per_ip


class TestClientGone:
    LEAVE = ("close", "reset", "half-close")

    @staticmethod
    def leave(client, how):
        if how == "close":
            client.close()
        elif how == "reset":
            sock = client.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.writer.transport.abort()
        else:
            client.writer.write_eof()

    @pytest.mark.parametrize("how", LEAVE)
    @pytest.mark.parametrize("raw", [get(), post(b"x" * 10), get() * 3])
    async def test_the_handler_is_cancelled_at_once(self, http, how, raw):
        handler = Running()
        server = await http.serve(handler)
        client = await http.connect()
        client.send(raw)
        await until(lambda: handler.started)
        self.leave(client, how)
        await until(lambda: handler.ended == ["cancelled"])
        await until(lambda: not server.connections)
        assert handler.started == 1

    @pytest.mark.parametrize("how", LEAVE)
    async def test_a_stream_is_cancelled_at_once(self, http, how):
        ended = []
        streams = []

        async def handler(request):
            stream = request.open_stream(200, [(b"Content-Type", b"text/event-stream")])
            streams.append(stream)
            stream.write(b"data: 1\n\n")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        server = await http.serve(handler)
        client = await http.connect()
        client.send(get())
        await client.reader.readuntil(b"data: 1\n\n")
        self.leave(client, how)
        await until(lambda: ended)
        await until(lambda: not server.connections)
        assert not streams[0].open
        streams[0].write(b"late")
        streams[0].end()
        assert not streams[0].ended

    @pytest.mark.parametrize("how", LEAVE)
    async def test_a_stream_that_waits_for_room_is_cancelled_at_once(self, http, how):
        ended = []
        paused = asyncio.Event()

        async def handler(request):
            stream = request.open_stream(200, [])
            try:
                while True:
                    stream.write(b"x" * 50_000)
                    if stream.paused:
                        paused.set()
                    await stream.drain()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        server = await http.serve(handler)
        client = await http.connect()
        client.writer.transport.pause_reading()
        client.send(get())
        await paused.wait()
        self.leave(client, how)
        await until(lambda: ended == ["cancelled"])
        await until(lambda: not server.connections)

    @pytest.mark.parametrize("how", LEAVE)
    @pytest.mark.parametrize("raw", [b"", b"GET / HT", post(b"xx")[:-1], chunked(b"xxx", 2)[:-9]])
    async def test_before_the_request_is_whole_nothing_runs(self, http, echo, how, raw):
        server = await http.serve(echo)
        client = await http.connect()
        client.send(raw)
        await until(lambda: server.connections)
        await asyncio.sleep(0.005)
        self.leave(client, how)
        await until(lambda: not server.connections)
        assert not echo.seen

    async def test_clean_up_of_a_cancelled_handler_is_not_cancelled_again(self, http):
        cleaned = []

        async def handler(request):
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)
                cleaned.append(True)

        server = await http.serve(handler)
        client = await http.connect()
        client.send(get())
        await asyncio.sleep(0.02)
        client.close()
        await until(lambda: not server.connections)
        await server.close()
        assert cleaned == [True]

    async def test_work_after_the_end_of_a_stream_is_not_cancelled(self, http):
        settled = []

        async def handler(request):
            stream = request.open_stream(200, [])
            stream.write(b"x")
            stream.end()
            await asyncio.sleep(0.05)
            settled.append(True)

        await http.serve(handler)
        client = await http.connect()
        client.send(get())
        assert (await client.answer()).body == b"x"
        client.close()
        await until(lambda: settled)


class TestStreams:
    async def test_pieces_come_at_once_and_the_connection_lives_on(self, http):
        go = asyncio.Event()

        async def handler(request):
            stream = request.open_stream(200, [(b"Content-Type", b"text/event-stream")])
            stream.write(b"one")
            await go.wait()
            stream.write(b"")
            stream.write(b"two")
            stream.end(b"three")

        await http.serve(handler)
        client = await http.connect()
        client.send(get())
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked\r\n" in head
        assert b"X-Request-Id: " in head
        assert await client.reader.readexactly(8) == b"3\r\none\r\n"
        go.set()
        rest = b"3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"
        assert await client.reader.readexactly(len(rest)) == rest
        client.send(get())
        assert (await client.answer()).body == b"onetwothree"

    async def test_the_head_goes_out_without_a_piece(self, http):
        handler = Running()

        async def streaming(request):
            stream = request.open_stream(200, [])
            await handler(request)
            stream.end()

        await http.serve(streaming)
        client = await http.connect()
        client.send(get())
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"\r\n\r\n")
        handler.go.set()
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"

    async def test_http10_gets_a_body_that_ends_with_the_connection(self, http):
        async def handler(request):
            stream = request.open_stream(200, [])
            stream.write(b"one")
            stream.end(b"two")

        await http.serve(handler)
        got = await http.exchange(b"GET / HTTP/1.0\r\n\r\n")
        assert b"Transfer-Encoding" not in got
        assert got.endswith(b"\r\n\r\nonetwo")

    async def test_head_gets_no_piece(self, http):
        async def handler(request):
            stream = request.open_stream(200, [])
            stream.write(b"one")
            stream.end()

        await http.serve(handler)
        client = await http.connect()
        client.send(get(method=b"HEAD") + get())
        await client.answer("HEAD")
        assert (await client.answer()).body == b"one"

    @pytest.mark.parametrize("fault", ["abort", "raise", "forget", "answer"])
    async def test_a_broken_stream_never_looks_complete(self, http, fault):
        async def handler(request):
            stream = request.open_stream(200, [])
            stream.write(b"one")
            await asyncio.sleep(0.01)
            if fault == "abort":
                stream.write(b"two")
                stream.abort()
            elif fault == "raise":
                raise RuntimeError
            return Response(200) if fault == "answer" else None

        await http.serve(handler)
        got = await http.exchange(get() + get(b"/second"))
        assert b"one" in got
        assert (b"two" in got) == (fault == "abort")
        assert not got.endswith(b"0\r\n\r\n")
        assert got.count(b"HTTP/1.1 ") == 1

    async def test_a_broken_http10_stream_is_reset(self, http):
        async def handler(request):
            stream = request.open_stream(200, [])
            stream.write(b"one")
            await asyncio.sleep(0.05)
            stream.abort()

        await http.serve(handler)
        client = await http.connect()
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await client.rest()

    async def test_work_after_an_abort_is_not_cancelled(self, http):
        settled = []

        async def handler(request):
            stream = request.open_stream(200, [])
            stream.abort()
            await asyncio.sleep(0.02)
            settled.append(True)

        await http.serve(handler)
        await http.exchange(get())
        await until(lambda: settled)

    async def test_only_one_answer(self, http):
        async def handler(request):
            request.open_stream(200, []).end()
            request.open_stream(200, [])

        await http.serve(handler)
        client = await http.connect()
        client.send(get() + get())
        assert (await client.answer()).body == b""
        assert (await client.answer()).body == b""

    async def test_a_stalled_reader_pauses_the_producer(self, http):
        written = 0
        events = []
        paused = asyncio.Event()
        total = 200_000_000

        async def handler(request):
            nonlocal written
            stream = request.open_stream(200, [])
            stream.on_pause = lambda: (events.append("pause"), paused.set())
            stream.on_resume = lambda: events.append("resume")
            piece = b"x" * 65_536
            while written < total:
                stream.write(piece)
                written += len(piece)
                await stream.drain()
            stream.end()

        server = await http.serve(handler)
        client = await http.connect(limit=65_536)
        client.writer.transport.pause_reading()
        client.send(get())
        await paused.wait()
        await asyncio.sleep(0.1)
        stopped_at = written
        assert stopped_at < 20_000_000  # kernel buffers, not ours
        (connection,) = server.connections
        assert connection._transport.get_write_buffer_size() < 500_000
        client.writer.transport.resume_reading()
        await client.reader.readuntil(b"\r\n\r\n")
        received = 0
        while received < 20_000_000:
            received += len(await client.reader.read(65_536))
        assert written > stopped_at
        assert events[:2] == ["pause", "resume"]

    async def test_a_stream_behind_a_stuck_answer_is_paused_from_the_start(self, http):
        paused = []

        async def handler(request):
            stream = request.open_stream(200, [])
            paused.append(stream.paused)
            # Its head has left, so that only the end of this turn shows that the rest is too much.
            await asyncio.sleep(0)
            await stream.drain()
            stream.end(b"x" * 20_000_000 if request.path == "/long" else b"short")

        await http.serve(handler)
        client = await http.connect(limit=65_536)
        client.writer.transport.pause_reading()
        client.send(get(b"/long") + get(b"/short"))
        await until(lambda: len(paused) == 2)
        assert paused == [False, True]
        client.writer.transport.resume_reading()
        assert len((await client.answer()).body) == 20_000_000
        assert (await client.answer()).body == b"short"

    async def test_a_stalled_stream_is_cut_off_and_cancelled(self, http):
        ended = []

        async def handler(request):
            stream = request.open_stream(200, [])
            try:
                while True:
                    stream.write(b"x" * 65_536)
                    await stream.drain()
            finally:
                ended.append(True)

        server = await http.serve(handler, limits={"write_stall_seconds": 0.1})
        client = await http.connect()
        client.writer.transport.pause_reading()
        client.send(get())
        await until(lambda: ended)
        await until(lambda: not server.connections)

    async def test_no_further_request_runs_while_an_answer_is_stuck(self, http):
        started = 0

        async def handler(request):
            nonlocal started
            started += 1
            return Response(200, b"x" * 1_000_000)

        await http.serve(handler)
        client = await http.connect(limit=65_536)
        client.writer.transport.pause_reading()
        for _ in range(50):
            client.send(get() * 2)
            await asyncio.sleep(0.003)
        assert started < 30
        client.writer.transport.resume_reading()
        for _ in range(100):
            assert len((await client.answer()).body) == 1_000_000
        assert started == 100


class TestDrain:
    async def test_idle_ones_are_closed_and_running_ones_answered(self, http):
        handler = Running()
        server = await http.serve(handler)
        idle, busy = await http.connect(), await http.connect()
        busy.send(get(b"/busy"))
        await until(lambda: handler.started and len(server.connections) == 2)
        draining = asyncio.create_task(server.drain(10))
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await http.connect()
        assert not draining.done()
        handler.go.set()
        answer = await busy.answer()
        assert answer.body == b"/busy"
        assert answer.headers[b"connection"] == b"close"
        assert await busy.rest() == b""
        assert await draining == 0

    async def test_a_request_that_has_just_arrived_is_answered(self, http, echo):
        server = await http.serve(echo)
        client = await http.connect()
        client.send(get())
        await client.answer()
        client.send(get(b"/last"))
        # Nothing has run since: the bytes are in the kernel, the connection looks idle.
        assert await server.drain(10) == 0
        assert (await client.answer()).body == b"GET /last "

    async def test_an_answer_given_in_the_turn_of_the_end_is_sent(self, http):
        async def handler(request):
            ending.append(asyncio.create_task(server.close()))
            return Response(200, b"whole")

        ending = []
        server = await http.serve(handler)
        client = await http.connect()
        client.send(get())
        assert (await client.answer()).body == b"whole"
        await ending[0]

    async def test_a_half_read_request_is_still_answered(self, http, echo):
        server = await http.serve(echo)
        client = await http.connect()
        raw = post(b"hello")
        client.send(raw[:-2])
        await asyncio.sleep(0.02)
        draining = asyncio.create_task(server.drain(10))
        await asyncio.sleep(0.02)
        client.send(raw[-2:])
        assert (await client.answer()).body == b"POST / hello"
        assert await draining == 0

    async def test_a_running_stream_may_end(self, http):
        go = asyncio.Event()

        async def handler(request):
            stream = request.open_stream(200, [])
            stream.write(b"one")
            await go.wait()
            stream.end(b"two")

        server = await http.serve(handler)
        client = await http.connect()
        client.send(get())
        await client.reader.readuntil(b"\r\n\r\n")
        draining = asyncio.create_task(server.drain(10))
        await asyncio.sleep(0.02)
        go.set()
        assert await client.rest() == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        assert await draining == 0

    async def test_after_the_time_what_runs_is_cut_off_and_cleaned_up(self, http):
        handler = Running()
        server = await http.serve(handler)
        clients = [await http.connect() for _ in range(3)]
        for client in clients:
            client.send(get())
        await until(lambda: handler.started == 3)
        assert await server.drain(0.05) == 3
        assert handler.ended == ["cancelled"] * 3
        assert not server.connections

    async def test_a_handler_that_will_not_end_does_not_hold_the_server(self, http):
        started = asyncio.Event()
        go = asyncio.Event()

        async def handler(request):
            try:
                started.set()
                await asyncio.sleep(60)
            finally:
                await go.wait()

        server = await http.serve(handler)
        client = await http.connect()
        client.send(get())
        await started.wait()
        await server.close(0.05)
        assert not server.connections
        assert len(server._orphans) == 1
        go.set()

    async def test_no_answer_is_lost_under_load(self, http):
        handled = answered = 0

        async def handler(request):
            nonlocal handled
            handled += 1
            await asyncio.sleep(0.002)
            return Response(200, b"y" * 20_000)

        server = await http.serve(handler)

        async def talk():
            nonlocal answered
            client = await http.connect()
            while True:
                client.send(get())
                try:
                    first = await client.reader.read(1)
                except ConnectionResetError:
                    return  # as below, but the next request was in the server's kernel already
                if not first:
                    return  # closed between two requests: nothing was begun
                await client.reader.readuntil(b"\r\n\r\n")
                assert len(await client.reader.readexactly(20_000)) == 20_000
                answered += 1

        talks = [asyncio.create_task(talk()) for _ in range(30)]
        await until(lambda: handled > answered > 200)
        assert await server.drain(10) == 0
        await asyncio.gather(*talks, return_exceptions=False)
        assert answered == handled


async def test_nothing_grows_over_many_requests_and_disconnects(http, echo):
    server = await http.serve(echo)

    async def rounds(count):
        for number in range(count):
            client = await http.connect()
            client.send(get() * 5)
            if number % 2:
                await client.answer()
            client.reset()
            http.clients.clear()
        await until(lambda: not server.connections and not server._orphans)

    await rounds(200)
    assert not server._per_ip
    assert len(asyncio.all_tasks()) == 1


async def test_a_client_that_leaves_a_stream_leaves_no_circle_behind(http):
    """Else thousands of finished requests stay in memory until the cycle collector comes."""
    begun = asyncio.Event()

    async def handler(request):
        request.open_stream(200, [(b"content-type", b"text/plain")]).write(b"a word")
        begun.set()
        await asyncio.Event().wait()

    server = await http.serve(handler)
    gc.collect()
    gc.disable()
    try:
        client = await http.connect()
        client.send(get())
        await begun.wait()
        client.reset()
        await until(lambda: not server.connections and not server._orphans)
        assert not [one for one in gc.get_objects() if type(one) in {Request, ClientStream}]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("sent", "refused"),
    [
        (b"Content-Length: 100000\r\n\r\nhalf", False),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", False),
        (b"Content-Length: 99999999\r\n\r\n", True),
    ],
    ids=["sized", "chunked", "refused"],
)
async def test_a_client_that_leaves_with_half_a_body_leaves_no_circle_behind(
    http, echo, sent, refused
):
    """Else the bodies of thousands of such clients stay in memory until the collector comes."""
    server = await http.serve(echo)
    gc.collect()
    gc.disable()
    try:
        client = await http.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + sent)
        if refused:
            assert (await client.answer()).status == 413
        else:
            await until(lambda: any(one.state == connection.BODY for one in server.connections))
        client.reset()
        await until(lambda: not server.connections)
        kinds = {Request, SizedBody, ChunkedBody}
        assert not [one for one in gc.get_objects() if type(one) in kinds]
    finally:
        gc.enable()
