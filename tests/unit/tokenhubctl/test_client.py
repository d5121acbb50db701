"""The client on real sockets: framing, errors, credentials, limits, proxies, TLS."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import threading
import time

import pytest
from tests.unit.tokenhubctl.peer import TOKEN

from tokenhubctl import address
from tokenhubctl.client import Client
from tokenhubctl.config import Found
from tokenhubctl.errors import ApiError, CliError, NoCredential, Unreachable

TARGET = "/admin/v1/info"


def client(url, *tokens, **options):
    found = [Found(token, f"place {number}") for number, token in enumerate(tokens, 1)]
    return Client(address.split(url)[0], found, **options)


@pytest.fixture
def raw():
    """A server that reads one request's head and writes given pieces, for one connection each."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []
    threads: list[threading.Thread] = []

    def serve(pieces, pause, connections):
        for _ in range(connections):
            connection, _ = listener.accept()
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65_536)
                seen.append(head)
                with contextlib.suppress(OSError):  # the client may have had enough
                    for piece in pieces:
                        connection.sendall(piece)
                        time.sleep(pause)

    def start(*pieces, pause=0.0, connections=1):
        thread = threading.Thread(target=serve, args=(pieces, pause, connections))
        thread.start()
        threads.append(thread)
        return f"http://127.0.0.1:{listener.getsockname()[1]}", seen

    yield start
    for thread in threads:
        thread.join(5)
    listener.close()


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b'Content-Length: 8\r\n\r\n{"a": 1}trailing',
        HEAD + b'Connection: close\r\n\r\n{"a": 1}',
        CHUNKED + b'3\r\n{"a\r\n005;x=y\r\n": 1}\r\n0\r\nT: 1\r\n\r\n',
        HEAD + b'transfer-encoding:  Chunked\nX: y\n\n8\n{"a": 1}\n0\n\n',
        b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\ncontent-length:8\r\n\r\n{"a": 1}',
    ],
)  # fmt: skip
def test_every_framing_in_any_chunking(raw, answer):
    url, _ = raw(answer)
    assert client(url).call("GET", TARGET) == {"a": 1}
    url, _ = raw(*(bytes([byte]) for byte in answer))
    assert client(url).call("GET", TARGET) == {"a": 1}


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"HTTP/1.1 200", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nX: y",
        HEAD + b"Content-Length: 9\r\n\r\n{}", HEAD + b"Content-Length: nine\r\n\r\n{}",
        CHUNKED + b"5\r\n{}", HEAD + b"X: y\r\n" * 300 + b"\r\n",
        CHUNKED + b"xx\r\n", b"HTTP/1.1 " + b"2" * 70_000,
        HEAD + b"Content-Length: -1\r\n\r\n{}", CHUNKED + b"-2\r\n",
    ],
)  # fmt: skip
def test_a_broken_answer_is_unreachable_and_not_a_crash(raw, answer):
    url, _ = raw(answer)
    with pytest.raises(Unreachable):
        client(url).call("GET", TARGET)


def test_the_request_as_it_stands_on_the_wire(raw):
    url, seen = raw(HEAD + b"Content-Length: 2\r\n\r\n{}")
    client(url + "/base//", "t").call("GET", "/admin/v1/models/a%2Fb")
    lines = seen[0].decode().split("\r\n")
    assert lines[0] == "GET /base/admin/v1/models/a%2Fb HTTP/1.1"
    assert f"Host: {url.removeprefix('http://')}" in lines
    assert "Authorization: Bearer t" in lines
    assert "Accept-Encoding: identity" in lines
    assert not [line for line in lines if line.startswith("Content-")]


@pytest.mark.parametrize("token", ["a\r\nX-Evil: 1", "a\nb", "a\0b", "schlüssel-模"])
def test_a_token_cannot_break_out_of_its_header(peer, token):
    with pytest.raises(CliError) as caught:
        client(peer.url, token).call("GET", TARGET)
    assert caught.value.code == "bad_header"
    assert token not in caught.value.message
    assert peer.calls == []


def test_a_refused_connection_is_unreachable_with_a_next_step():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable, match=f"127.0.0.1:{port}: Connection refused") as caught:
        client(f"http://127.0.0.1:{port}").call("GET", TARGET)
    assert "doctor" in caught.value.hint


def test_a_silent_server_is_given_up(raw):
    url, _ = raw(HEAD, pause=0.5)
    started = time.monotonic()
    with pytest.raises(Unreachable, match=r"0\.1 s") as caught:
        client(url, read_seconds=0.1).call("GET", TARGET)
    assert time.monotonic() - started < 0.45
    assert caught.value.code == "timeout"


def test_a_stream_may_be_silent_for_longer_than_the_limit(raw):
    head = HEAD + b"Content-Type: text/event-stream\r\n\r\n"
    url, _ = raw(head + b"id: 1\n", b"data: a\n\nda", b"ta: b\n\ndata: cut", pause=0.2)
    events = client(url, read_seconds=0.1).events("/admin/v1/events")
    assert [(event.id, event.data) for event in events] == [("1", "a"), ("1", "b")]


def test_a_stream_resumes_with_the_last_id(peer):
    seen = []

    def stream(handler):
        seen.append(handler.headers.get("Last-Event-ID"))
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.end_headers()
        handler.wfile.write(b"data: x\n\n")

    peer.answers["GET /admin/v1/events"] = stream
    one = client(peer.url, TOKEN)
    assert [event.id for event in one.events("/admin/v1/events")] == [""]
    assert [event.id for event in one.events("/admin/v1/events", "e-41")] == ["e-41"]
    assert seen == [None, "e-41"]


@pytest.mark.parametrize(
    ("body", "message", "code", "hint"),
    [
        ({"error": "text", "code": "c", "hint": "h", "request_id": "r"}, "text", "c", "h"),
        ({"error": "text"}, "text", "http_418", None),
        ({"error": {"message": "m", "code": "c", "hint": "h", "type": "t"}}, "m", "c", "h"),
        ({"error": {"type": "t"}}, '{"error": {"type": "t"}}', "http_418", None),
        (b"plain text\n", "plain text", "http_418", None),
        (b"", "HTTP status 418 without a message", "http_418", None),
        (b"[" * 100_000, "[" * 500 + "…", "http_418", None),
    ],
)
def test_every_shape_of_error(peer, body, message, code, hint):
    peer.answers[f"GET {TARGET}"] = (418, body)
    with pytest.raises(ApiError) as caught:
        client(peer.url, TOKEN).call("GET", TARGET)
    error = caught.value
    assert (error.message, error.code, error.hint, error.status) == (message, code, hint, 418)
    assert error.request_id in {"r", "req-7"}


@pytest.mark.parametrize("body", [b"<html>", b"{", b"\xff", b"[" * 100_000])
def test_a_success_that_is_not_json_is_an_error(peer, body):
    peer.answers[f"GET {TARGET}"] = (200, body)
    with pytest.raises(ApiError, match="not JSON"):
        client(peer.url, TOKEN).call("GET", TARGET)


def test_a_redirect_is_refused_with_its_target_and_the_token_stays_here(peer):
    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", "http://evil.example/")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    peer.answers[f"GET {TARGET}"] = redirect
    with pytest.raises(ApiError, match=r"evil\.example"):
        client(peer.url, TOKEN).call("GET", TARGET)
    assert len(peer.calls) == 1


def test_a_refused_token_is_named_and_the_next_one_tried(peer, capsys):
    peer.answers[f"GET {TARGET}"] = {"fine": True}
    one = client(peer.url, "stale", "older", TOKEN)
    assert one.call("GET", TARGET) == {"fine": True}
    assert one.call("GET", TARGET) == {"fine": True}
    assert len(peer.calls) == 4, "a refused token must not be sent again"
    err = capsys.readouterr().err
    assert "token from place 1; trying place 2" in err
    assert "stale" not in err


def test_the_last_refusal_names_the_place_and_not_the_token(peer):
    with pytest.raises(ApiError, match="from place 2") as caught:
        client(peer.url, "stale", "older").call("GET", TARGET)
    assert (caught.value.exit_code, caught.value.status) == (4, 401)
    assert "older" not in str(vars(caught.value))


def test_no_token_at_all(peer):
    with pytest.raises(NoCredential) as caught:
        client(peer.url).call("GET", TARGET)
    assert "tokenhubctl admin-token" in caught.value.hint


def test_a_wrong_vault_password_is_not_a_wrong_token(peer):
    answer = {"error": "The vault password is wrong.", "code": "wrong_password"}
    peer.answers["POST /admin/v1/vault/unlock"] = (401, answer)
    with pytest.raises(ApiError) as caught:
        client(peer.url, TOKEN, "other").call("POST", "/admin/v1/vault/unlock", {})
    assert caught.value.message == "The vault password is wrong."
    assert len(peer.calls) == 1


def test_a_large_body_that_is_refused_early_still_gets_its_answer(raw):
    answer = b'HTTP/1.1 413 Too Large\r\nContent-Length: 18\r\n\r\n{"error": "large"}'
    url, _ = raw(answer)
    with pytest.raises((ApiError, Unreachable)) as caught:
        client(url).call("POST", TARGET, b"x" * 30_000_000)
    assert caught.value.exit_code in {1, 6}


class TestProxies:
    def test_plain_http_goes_through_in_absolute_form(self, raw, monkeypatch):
        url, seen = raw(HEAD + b"Content-Length: 2\r\n\r\n{}")
        monkeypatch.setenv("http_proxy", url)
        client("http://hub.example:8080/x").call("GET", TARGET)
        assert seen[0].startswith(b"GET http://hub.example:8080/x/admin/v1/info HTTP/1.1\r\n")

    def test_https_asks_for_a_tunnel_with_credentials(self, raw, monkeypatch):
        url, seen = raw(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        monkeypatch.setenv("HTTPS_PROXY", url.replace("//", "//me:pw@"))
        with pytest.raises(Unreachable, match="407 Proxy Authentication Required"):
            client("https://hub.example").call("GET", TARGET)
        assert seen[0].startswith(b"CONNECT hub.example:443 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic bWU6cHc=\r\n" in seen[0]

    def test_plain_http_too_shows_the_proxy_who_asks(self, raw, monkeypatch):
        url, seen = raw(HEAD + b"Content-Length: 2\r\n\r\n{}")
        monkeypatch.setenv("http_proxy", url.replace("//", "//me:p%40w@"))
        client("http://hub.example").call("GET", TARGET)
        assert b"\r\nProxy-Authorization: Basic bWU6cEB3\r\n" in seen[0]

    @pytest.mark.parametrize("excluded", ["hub.test", ".hub.test", "*.test", "x, TEST", "*"])
    def test_no_proxy(self, monkeypatch, excluded):
        from tokenhubctl.connect import proxy_for

        monkeypatch.setenv("http_proxy", "proxy:1")
        endpoint = address.split("http://a.hub.test")[0]
        assert proxy_for(endpoint) == "http://proxy:1"
        monkeypatch.setenv("NO_PROXY", excluded)
        assert proxy_for(endpoint) is None

    def test_never_for_this_machine(self, peer, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        peer.answers[f"GET {TARGET}"] = {}
        assert client(peer.url, TOKEN).call("GET", TARGET) == {}

    def test_upper_case_http_proxy_is_not_read(self, monkeypatch):
        from tokenhubctl.connect import proxy_for

        monkeypatch.delenv("http_proxy", raising=False)
        monkeypatch.setenv("HTTP_PROXY", "http://forged:1")
        assert proxy_for(address.split("http://hub.example")[0]) is None


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost and its authority's, as companies make them.

    Python 3.13's own settings refuse it, because it does not identify its authority's key; those
    of the versions before refuse it as an anchor, because it is not self-signed.
    """
    folder = tmp_path_factory.mktemp("tls")
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    authority = f"{new} -subj /CN=authority -keyout {folder}/ca.key -out {folder}/ca"
    server = (
        f"{new} -subj /CN=localhost -keyout {folder}/key -out {folder}/crt "
        f"-CA {folder}/ca -CAkey {folder}/ca.key -addext subjectAltName=DNS:localhost "
        "-addext basicConstraints=CA:false -addext authorityKeyIdentifier=none"
    )
    for command in (authority, server):
        subprocess.run(command.split(), check=True, capture_output=True)
    return folder


@pytest.fixture
def tls(peer, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "crt", certificate / "key")
    peer.server.socket = context.wrap_socket(peer.server.socket, server_side=True)
    peer.answers[f"GET {TARGET}"] = {"over": "tls"}
    return f"https://localhost:{peer.port}"


@pytest.mark.parametrize("trusted", ["ca", "crt"])
def test_tls_with_a_trusted_certificate(tls, certificate, monkeypatch, trusted):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / trusted))
    assert client(tls, TOKEN).call("GET", TARGET) == {"over": "tls"}


def test_a_certificate_nobody_vouches_for(tls, peer):
    with pytest.raises(Unreachable, match="not trusted") as caught:
        client(tls, TOKEN).call("GET", TARGET)
    assert "SSL_CERT_FILE" in caught.value.hint
    assert peer.calls == []


def test_a_certificate_of_another_name(tls, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "crt"))
    with pytest.raises(Unreachable, match="127"):
        client(tls.replace("localhost", "127.0.0.1"), TOKEN).call("GET", TARGET)


def test_https_to_a_plain_port(peer):
    with pytest.raises(Unreachable) as caught:
        client(peer.url.replace("http:", "https:"), TOKEN).call("GET", TARGET)
    assert "http://" in caught.value.hint


def test_an_answer_to_head_has_no_body_to_wait_for(raw):
    url, seen = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    assert client(url).raw("HEAD", TARGET) == b""
    assert seen[0].startswith(b"HEAD ")


def test_bodies_of_numbers_survive(peer):
    peer.answers[f"POST {TARGET}"] = {"ok": True}
    client(peer.url, TOKEN).call("POST", TARGET, {"x": "ä", "n": 0.1})
    assert peer.last.json == {"x": "ä", "n": 0.1}
    assert json.loads(peer.last.body) == {"x": "ä", "n": 0.1}
