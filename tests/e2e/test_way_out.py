"""Providers behind a company's proxy and under its own certificate authority."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading

import pytest
from tests.authority import Authority
from tests.e2e.server import Hub

HOST = "models.example.com"
ASK = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


class HttpProxy:
    """Opens tunnels to any name, all of which end at the port of one provider.

    Args:
        port: of the provider, which speaks plain HTTP.
        tls: what the tunnel's end is wrapped in; None = nothing.
    """

    def __init__(self, port, tls=None):
        self.heads = []
        self._port = port
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://me:p%40ss@127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with contextlib.suppress(OSError), client:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            self.heads.append(head)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            end = client if self._tls is None else self._tls.wrap_socket(client, server_side=True)
            with end, socket.create_connection(("127.0.0.1", self._port)) as provider:
                back = threading.Thread(target=pump, args=(provider, end), daemon=True)
                back.start()
                pump(end, provider)
                back.join()


def pump(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def through(tmp_path, upstream):
    """A hub whose providers are reached through a proxy; ``(hub, proxy)`` per call."""
    with contextlib.ExitStack() as stack:

        def start(tls=None, **env):
            proxy = HttpProxy(int(upstream.rpartition(":")[2]), tls)
            stack.callback(proxy.close)
            hub = Hub(tmp_path, TOKENHUB_PROVIDER_PROXY=proxy.url, **env).start()
            stack.callback(hub.stop)
            return hub, proxy

        yield start


def ask(hub, base_url):
    hub.ok("POST", "/providers", {"id": "far", "type": "vllm", "base_url": base_url})
    hub.ok("POST", "/models", {"id": "m", "provider_id": "far", "upstream_name": "demo"})
    key = hub.ok("POST", "/apikeys", {"name": "k"})["key"]
    return hub.chat(key, ASK)


def test_a_provider_behind_a_proxy(through):
    hub, proxy = through()
    assert ask(hub, f"http://{HOST}").status == 200
    head = proxy.heads[0]
    assert head.startswith(b"CONNECT %b:80 HTTP/1.1\r\n" % HOST.encode())
    assert b"Basic " + base64.b64encode(b"me:p@ss") in head
    for text in (hub.log.read_text(), str(hub.ok("GET", "/info"))):
        assert "p@ss" not in text
        assert "p%40ss" not in text


def test_under_an_authority_of_its_own(through, tmp_path):
    authority = Authority(tmp_path)
    hub, _ = through(authority.server(HOST), TOKENHUB_PROVIDER_CA_FILE=str(authority.ca_file))
    assert ask(hub, f"https://{HOST}").status == 200
    assert authority.asked[0] == HOST


def test_which_is_not_trusted_unless_it_is_named(through, tmp_path):
    hub, _ = through(Authority(tmp_path).server(HOST))
    reply = ask(hub, f"https://{HOST}")
    assert reply.status == 502
    assert "certificate" in hub.ctl("health").stdout + hub.ctl("logs", "-o", "json").stdout


def test_what_passes_by(through, upstream):
    hub, proxy = through()
    assert ask(hub, upstream).status == 200, "127.0.0.1 needs no proxy"
    assert proxy.heads == []


def test_plain_http_to_a_public_place_is_pointed_out(hub):
    public = {"id": "p", "type": "vllm", "base_url": f"http://{HOST}"}
    assert HOST in hub.ok("POST", "/providers", public)["warning"]
    added = hub.ctl("provider", "edit", "p", "{}")
    assert added.returncode == 0
    assert f"{HOST} unencrypted" in added.stderr
    assert "unencrypted" not in hub.ctl("provider", "edit", "p", '{"enabled": true}').stdout
    for base_url in (f"https://{HOST}", "http://127.0.0.1:9", "http://ollama:11434"):
        private = {"id": "q", "type": "vllm", "base_url": base_url}
        assert "warning" not in hub.ok("POST", "/providers", private)
