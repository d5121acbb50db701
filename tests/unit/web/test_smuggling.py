"""Requests that two parsers could read differently: one 4xx, then the connection is closed."""

from __future__ import annotations

import re

import pytest

G = b"GET / HTTP/1.1\r\n"
P = b"POST / HTTP/1.1\r\nHost: h\r\n"
H = b"Host: h\r\n"
E = b"\r\n"

# After every case comes this request; it must never be answered or handled.
SECOND = b"GET /second HTTP/1.1\r\nHost: h\r\n\r\n"

STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d\d\d) ")

CASES = {
    # Two lengths.
    "cl-te": P + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "te-cl": P + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n",
    "cl-cl-different": P + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    "cl-cl-equal": P + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "cl-cl-case": P + b"Content-Length: 5\r\ncontent-length: 5\r\n\r\nabcde",
    "cl-list": P + b"Content-Length: 5, 5\r\n\r\nabcde",
    "te-te": P + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te-te-identity": P + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
    # A length that is no number.
    "cl-plus": P + b"Content-Length: +5\r\n\r\nabcde",
    "cl-minus": P + b"Content-Length: -1\r\n\r\n",
    "cl-hex": P + b"Content-Length: 0x5\r\n\r\nabcde",
    "cl-empty": P + b"Content-Length:\r\n\r\nabcde",
    "cl-inner-space": P + b"Content-Length: 5 5\r\n\r\nabcde",
    "cl-float": P + b"Content-Length: 5.0\r\n\r\nabcde",
    "cl-underscore": P + b"Content-Length: 1_0\r\n\r\nabcdefghij",
    "cl-letters": P + b"Content-Length: five\r\n\r\nabcde",
    "cl-overflow": P + b"Content-Length: 18446744073709551621\r\n\r\nabcde",
    "cl-arabic-digit": P + b"Content-Length: \xd9\xa5\r\n\r\nabcde",
    # A transfer coding that is not just chunked.
    "te-gzip-chunked": P + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "te-chunked-gzip": P + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "te-identity": P + b"Transfer-Encoding: identity\r\n\r\n",
    "te-xchunked": P + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "te-quoted": P + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "te-parameter": P + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "te-empty": P + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
    "te-comma": P + b"Transfer-Encoding: , chunked\r\n\r\n0\r\n\r\n",
    "te-vertical-tab": P + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "te-trailing-tab": P + b"Transfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
    "te-trailing-space": P + b"Transfer-Encoding: chunked \r\n\r\n0\r\n\r\n",
    "te-leading-tab": P + b"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n",
    "te-http10": b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    # Names and lines.
    "space-before-colon": P + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "tab-before-colon": P + b"Content-Length\t: 5\r\n\r\nabcde",
    "folded": G + H + b"X: a\r\n b\r\n\r\n",
    "folded-tab": G + H + b"X: a\r\n\tb\r\n\r\n",
    "folded-te": P + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "first-header-folded": G + b" Host: h\r\n\r\n",
    "no-colon": G + H + b"Broken\r\n\r\n",
    "no-name": G + H + b": value\r\n\r\n",
    "name-space": G + H + b"X Y: 1\r\n\r\n",
    "name-nul": G + H + b"X\x00Y: 1\r\n\r\n",
    "name-latin": G + H + b"X\xe9: 1\r\n\r\n",
    "name-parens": G + H + b"X(Y): 1\r\n\r\n",
    "value-nul": G + H + b"X: a\x00b\r\n\r\n",
    "value-cr": G + H + b"X: a\rb\r\n\r\n",
    "value-escape": G + H + b"X: a\x1b[0m\r\n\r\n",
    "value-delete": G + H + b"X: a\x7fb\r\n\r\n",
    # Line ends.
    "bare-lf-all": b"GET / HTTP/1.1\nHost: h\n\n",
    "bare-lf-request-line": b"GET / HTTP/1.1\nHost: h\r\n\r\n",
    "bare-lf-header": G + b"Host: h\nX: 1\r\n\r\n",
    "bare-lf-end": G + b"Host: h\r\n\n",
    "bare-cr-end": G + b"Host: h\r\r\n\r\n",
    "bare-cr-line": b"GET / HTTP/1.1\rHost: h\r\n\r\n",
    "leading-empty-line": E + G + H + E,
    "leading-space": b" " + G + H + E,
    # Request line.
    "http09": b"GET /\r\n\r\n",
    "http20": b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
    "http12": b"GET / HTTP/1.2\r\nHost: h\r\n\r\n",
    "http011": b"GET / HTTP/01.1\r\nHost: h\r\n\r\n",
    "http-lower": b"GET / http/1.1\r\nHost: h\r\n\r\n",
    "h2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two-spaces": b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
    "tab-separator": b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "space-in-target": b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
    "trailing-space": b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n",
    "method-lower": b"get / HTTP/1.1\r\nHost: h\r\n\r\n",
    "method-colon": b"GET: / HTTP/1.1\r\nHost: h\r\n\r\n",
    "no-method": b" / HTTP/1.1\r\nHost: h\r\n\r\n",
    "tls-hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    # Targets.
    "absolute": b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "absolute-other-host": b"GET http://evil/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "authority": b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n",
    "connect-path": b"CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n",
    "star-get": b"GET * HTTP/1.1\r\nHost: h\r\n\r\n",
    "relative": b"GET second HTTP/1.1\r\nHost: h\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n",
    "target-latin": b"GET /\xe9 HTTP/1.1\r\nHost: h\r\n\r\n",
    "target-nul": b"GET /\x00 HTTP/1.1\r\nHost: h\r\n\r\n",
    # Host.
    "host-missing": b"GET / HTTP/1.1\r\n\r\n",
    "host-twice": G + H + b"Host: other\r\n\r\n",
    "host-twice-equal": G + H + H + E,
    "host-empty": G + b"Host:\r\n\r\n",
    "host-list": G + b"Host: a, b\r\n\r\n",
    "host-path": G + b"Host: h/second\r\n\r\n",
    "host-user": G + b"Host: user@h\r\n\r\n",
    "host-port": G + b"Host: h:80:80\r\n\r\n",
    # Credentials and switches.
    "authorization-twice": G + H + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
    "x-api-key-twice": G + H + b"X-Api-Key: a\r\nx-api-key: b\r\n\r\n",
    "upgrade-websocket": G + H + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "expect-other": P + b"Expect: 200-ok\r\nContent-Length: 1\r\n\r\na",
    # Chunks.
    "chunk-size-letter": P + b"Transfer-Encoding: chunked\r\n\r\nG\r\n\r\n",
    "chunk-size-0x": P + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    "chunk-size-plus": P + b"Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
    "chunk-size-minus": P + b"Transfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
    "chunk-size-space": P + b"Transfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
    "chunk-size-empty": P + b"Transfer-Encoding: chunked\r\n\r\n\r\na\r\n0\r\n\r\n",
    "chunk-size-underscore": P + b"Transfer-Encoding: chunked\r\n\r\n1_0\r\naaaaaaaaaaaaaaaa\r\n",
    "chunk-size-huge": P + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\na\r\n",
    "chunk-size-over-cap": P + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\na\r\n",
    "chunk-extension": P + b"Transfer-Encoding: chunked\r\n\r\n1;a=b\r\na\r\n0\r\n\r\n",
    "chunk-extension-lf": P + b"Transfer-Encoding: chunked\r\n\r\n1;\na\r\n0\r\n\r\n",
    "chunk-bare-lf": P + b"Transfer-Encoding: chunked\r\n\r\n1\na\n0\n\n",
    "chunk-data-lf": P + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n",
    "chunk-too-long": P + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "chunk-trailer": P + b"Transfer-Encoding: chunked\r\n\r\n0\r\nHost: other\r\n\r\n",
    "chunk-end-lf": P + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\n",
    # Encodings.
    "gzip-body": P + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
}


@pytest.mark.parametrize("name", CASES)
async def test_it_is_refused_and_nothing_after_it_is_read(name, http, echo):
    await http.serve(echo)
    got = await http.exchange(CASES[name] + SECOND)
    assert got.startswith(b"HTTP/1.1 4")
    assert len(STATUS_LINE.findall(got)) == 1
    assert b"\r\nConnection: close\r\n" in got
    assert b"\r\nX-Request-Id: " in got
    assert not echo.seen


@pytest.mark.parametrize("name", CASES)
async def test_it_is_refused_behind_a_head_that_begins_like_it(name, http, echo):
    await http.serve(echo)
    got = await http.exchange(P + b"Content-Length: 1\r\n\r\na" + CASES[name] + SECOND)
    first, second = STATUS_LINE.findall(got)
    assert (first, second[:1]) == (b"200", b"4")
    assert [request.body for request in echo.seen] == [b"a"]


async def test_a_refusal_says_why_without_repeating_the_bytes(http, echo):
    await http.serve(echo)
    got = await http.exchange(G + H + b"Authorization : Bearer sesame\r\n\r\n")
    assert b"Header line 2 is not 'Name: value'." in got
    assert b"sesame" not in got


async def test_a_refusal_behind_a_good_request_leaves_its_answer_alone(http, echo):
    await http.serve(echo)
    got = await http.exchange(G + H + E + CASES["cl-te"] + SECOND)
    assert got.startswith(b"HTTP/1.1 200 ")
    assert STATUS_LINE.findall(got) == [b"200", b"400"]
    assert [request.path for request in echo.seen] == ["/"]
