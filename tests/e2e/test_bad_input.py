"""Nonsense on every route: a clear error, the right status, nothing lost, never a traceback."""

from __future__ import annotations

import http.client
import json
import socket

import pytest
from tests.e2e.server import Hub

MESSAGES = [{"role": "user", "content": "Hello"}]

CHAT = [
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b'"text"', 400),
    (b"\xff\xfe", 400),
    (b'{"model":"demo"}', 400),
    (b'{"model":"demo","messages":[]}', 400),
    (b'{"model":"demo","messages":"hi"}', 400),
    (b'{"model":3,"messages":[{}]}', 400),
    (b'{"model":"demo","model":"other","messages":[{}]}', 400),
    (b'{ "model": "demo",\n"model" : "other", "messages": [{}]}', 400),
    (b'{"model":"demo","messages":[{}],"stream":"yes"}', 400),
    (b'{"model":"demo","messages":[{}],"max_tokens":-1}', 400),
    (b'{"model":"demo","messages":[{}],"max_tokens":1e999}', 400),
    (b'{"model":"demo","messages":[{}],"temperature":NaN}', 400),
    (b'{"model":"demo","messages":[{}],"n":0}', 400),
    (b'{"model":"demo","messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400),
    (b"[" * 10_000, 400),
    (b'{"model":"' + b"x" * 300 + b'","messages":[{}]}', 400),
    (
        b'{"model":"demo","messages":[{"content":[{"type":"image_url","url":"\xed\xa0\x80"}]}]}',
        400,
    ),
    (b'{"model":"\\u001b[2J","messages":[{}]}', 404),
    (b'{"model":"demo\' OR \'1\'=\'1","messages":[{}]}', 404),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    server = Hub(tmp_path_factory.mktemp("bad")).start()
    yield server
    assert "Traceback" not in server.log.read_text()
    server.stop()


@pytest.mark.parametrize(("body", "status"), CHAT)
def test_chat_bodies(hub, body, status):
    reply = hub.chat(hub.demo_key, body)
    assert reply.status == status, reply.body[:300]
    error = reply.json()["error"]
    assert error["message"]
    assert error["type"]
    assert "\x1b" not in reply.body.decode()


def test_a_50_mb_body_is_refused_before_it_is_read(hub):
    body = b'{"model":"demo","messages":[{"role":"user","content":"' + b"x" * 50_000_000 + b'"}]}'
    try:
        reply = hub.chat(hub.demo_key, body)
    except (BrokenPipeError, ConnectionResetError):
        return  # refused while we were still sending
    assert reply.status == 413
    assert reply.json()["error"]["code"]


@pytest.mark.parametrize(
    "key",
    ["", "x", "tokenhub_", "' OR '1'='1", "tokenhub_" + "0" * 64, "Bearer x", "\x7f", "ключ"],
)
def test_bad_keys_all_get_the_same_401(hub, key):
    headers = {"Authorization": f"Bearer {key}".encode().decode("latin-1")}
    reply = hub.request(
        "POST", "/v1/chat/completions", {"model": "demo", "messages": MESSAGES}, headers=headers
    )
    assert reply.status in {400, 401}
    if reply.status == 401:
        assert reply.json()["error"]["code"] == "invalid_api_key"


ADMIN = [
    ("POST", "/providers", {}, 400, "id"),
    ("POST", "/providers", {"id": "a b"}, 400, "id"),
    ("POST", "/providers", {"id": "\x1b[31mred"}, 400, "id"),
    ("POST", "/providers", {"id": "p", "type": "nonsense"}, 400, "type"),
    ("POST", "/providers", {"id": "p", "colour": "red"}, 400, "colour"),
    ("POST", "/providers", {"id": "p", "enabled": "yes"}, 400, "enabled"),
    ("POST", "/providers", {"id": "p", "base_url": "ftp://x"}, 400, "base_url"),
    ("POST", "/providers", {"id": "p", "base_url": "http://169.254.169.254/"}, 400, "base_url"),
    ("POST", "/providers", {"id": "p", "base_url": "http://u:p@host/"}, 400, "base_url"),
    ("POST", "/providers", {"id": "p", "type": "vllm"}, 400, "base_url"),
    ("PATCH", "/providers/nobody", {"enabled": True}, 404, None),
    ("DELETE", "/providers/nobody", None, 404, None),
    ("GET", "/providers/nobody/discover", None, 404, None),
    ("POST", "/models", {"id": "m"}, 400, "provider_id"),
    ("POST", "/models", {"id": "m", "provider_id": "nobody"}, 400, "provider_id"),
    ("POST", "/models", {"id": "m", "provider_id": "p", "weight": "9"}, 400, "weight"),
    ("PATCH", "/models/nobody", {"weight": 1}, 404, None),
    ("DELETE", "/models/nobody", None, 404, None),
    ("POST", "/apikeys", {}, 400, "name"),
    ("POST", "/apikeys", {"name": "k", "scopes": "chat"}, 400, "scopes"),
    ("POST", "/apikeys", {"name": "k", "scopes": ["root"]}, 400, "scopes"),
    ("POST", "/apikeys", {"name": "k", "monthly_budget_usd": -1}, 400, "monthly_budget_usd"),
    ("POST", "/apikeys", {"name": "k", "expires_in": "soon"}, 400, None),
    ("PATCH", "/apikeys/nobody", {"enabled": False}, 404, None),
    ("POST", "/apikeys/nobody/rotate", {}, 404, None),
    ("DELETE", "/apikeys/nobody", None, 404, None),
    ("POST", "/vault/unlock", {}, 400, "admin_password"),
    ("POST", "/vault/unlock", {"admin_password": "short"}, 401, None),
    ("POST", "/vault/unlock", {"admin_password": 12345678}, 400, "admin_password"),
    ("POST", "/admin-token/rotate", {"token": "short"}, 400, "token"),
    ("PUT", "/routing-config", {"default_mode": "warp"}, 400, "default_mode"),
    ("PUT", "/routing-config", {"default_max_budget_usd": -1}, 400, "default_max_budget_usd"),
    ("POST", "/routing/simulate", {"token_count": -5}, 400, "token_count"),
    ("POST", "/routing/simulate", {"modell": "x"}, 400, "modell"),
    ("PUT", "/aliases/a", {"variants": []}, 400, None),
    ("GET", "/decisions/nobody", None, 404, None),
    ("GET", "/logs?limit=many", None, 400, "limit"),
    ("GET", "/logs?limit=5000", None, 400, "limit"),
    ("GET", "/logs?colour=red", None, 400, "colour"),
    ("GET", "/models/%zz", None, 400, None),
    ("GET", "/nothing", None, 404, None),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "param"), ADMIN)
def test_admin_bodies(hub, method, path, body, status, param):
    reply = hub.admin(method, path, body)
    assert reply.status == status, reply.body[:300]
    error = reply.json()
    assert isinstance(error["error"], str)
    assert error["request_id"] == reply.headers["x-request-id"]
    if param is not None:
        assert error["param"] == param, error
    assert "\x1b" not in reply.body.decode()


def test_broken_json_on_every_admin_route_that_takes_a_body(hub):
    for method, path in (
        ("POST", "/providers"),
        ("POST", "/models"),
        ("POST", "/apikeys"),
        ("POST", "/vault/unlock"),
        ("POST", "/vault/rotate"),
        ("PUT", "/routing-config"),
        ("POST", "/routing/simulate"),
        ("PUT", "/aliases/x"),
    ):
        for body in (b"{", b"[]", b'{"id":1,"id":2}', b"[" * 10_000, b"\xff"):
            reply = hub.admin(method, path, body)
            assert reply.status == 400, (path, body[:20], reply.body[:200])


def test_nothing_is_changed_by_what_was_refused(hub):
    before = hub.ok("GET", "/providers"), hub.ok("GET", "/models")
    hub.admin("POST", "/providers", {"id": "p", "type": "openai", "bogus": 1})
    assert (hub.ok("GET", "/providers"), hub.ok("GET", "/models")) == before


def test_no_credential_no_admin_route(hub):
    reply = hub.request("GET", "/admin/v1/providers")
    assert reply.status == 401
    wrong = {"Authorization": "Bearer " + "x" * 64}
    assert hub.request("GET", "/admin/v1/providers", headers=wrong).status == 401
    assert hub.request("GET", f"/admin/v1/info?token={hub.admin_token}").status == 401


def test_a_provider_that_answers_garbage_is_a_502(tmp_path):
    hub = Hub(tmp_path).start()
    try:
        for demo in ({"garbage": True}, {"status": 503}):
            body = {"model": "demo", "messages": MESSAGES, "demo": demo}
            reply = hub.chat(hub.demo_key, json.dumps(body).encode())
            assert reply.status in {502, 503}, reply.body
    finally:
        hub.stop()


def test_a_stranger_is_refused_before_the_body_is_read(hub):
    with socket.create_connection(("127.0.0.1", hub.port), 10) as sock:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n"
        sock.sendall((head + "Authorization: Bearer nobody\r\n\r\n").encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_each_route_answers_in_its_own_dialect(hub):
    headers = {"Authorization": "Bearer nobody"}
    openai = hub.request("POST", "/v1/chat/completions", {}, headers=headers).json()
    native = hub.request("POST", "/v1/chat", {}, headers=headers).json()
    assert openai["error"]["code"] == "invalid_api_key"
    assert (isinstance(native["error"], str), native["code"]) == (True, "invalid_api_key")


ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/chat"),
    ("GET", "/v1/models"),
    ("POST", "/admin/v1/providers"),
    ("PUT", "/admin/v1/vault/secrets/a"),
    ("GET", "/healthz"),
    ("POST", "/nowhere"),
]


@pytest.mark.parametrize("framing", ["Content-Length: 9000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "gzip, identity"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_compressed_body_is_refused_before_it_is_read(hub, method, path, coding, framing):
    key = hub.admin_token if path.startswith("/admin") else hub.demo_key
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    with socket.create_connection(("127.0.0.1", hub.port), 10) as sock:
        # No byte of the body is sent: the answer cannot have waited for it.
        sock.sendall(f"{head}Content-Encoding: {coding}\r\n{framing}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        body = json.loads(answer.read())
    assert (answer.status, answer.headers["accept-encoding"]) == (415, "identity")
    assert answer.headers["connection"] == "close"
    openai = path in {"/v1/chat/completions", "/v1/models"}
    said = body["error"] if openai else body
    assert said["code"] == "unsupported_encoding"
    assert "without Content-Encoding" in said["hint"]
    assert isinstance(body["error"], dict if openai else str)


@pytest.mark.parametrize("coding", ["identity", "Identity"])
def test_a_body_that_says_it_is_not_compressed_is_taken(hub, coding):
    body = json.dumps({"model": "demo", "messages": MESSAGES}).encode()
    reply = hub.chat(hub.demo_key, body, headers={"Content-Encoding": coding})
    assert reply.status == 200
