"""A hub that sells one model, with clients that can leave, and the upstream's own books."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.e2e.server import Hub

PATIENCE = 20.0
MESSAGES = [{"role": "user", "content": "Hello"}]


def books_of(url: str) -> dict[str, Any]:
    """What the demo provider at ``url`` would put on its invoice, by model."""
    host, _, port = url.removeprefix("http://").partition(":")
    address = host, int(port.partition("/")[0])
    with contextlib.closing(socket.create_connection(address, timeout=PATIENCE)) as sock:
        sock.sendall(b"GET /demo/books HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    return json.loads(data.partition(b"\r\n\r\n")[2])["models"]


class Shop:
    """A hub with one model at an upstream, and keys with budgets."""

    def __init__(self, hub: Hub, upstream: str) -> None:
        self.hub = hub
        self.name = f"demo-{secrets.token_hex(4)}"
        self.prices = {"input_per_1k": 0, "output_per_1k": 0.01}
        self.serve(upstream)
        self.key_id = self.key = ""

    def serve(self, upstream: str, **fields) -> None:
        row = {"id": "up", "type": "vllm", "base_url": upstream}
        self.hub.ok("POST", "/providers", row)
        model = {"id": "m", "provider_id": "up", "upstream_name": self.name}
        self.hub.ok("POST", "/models", model | self.prices | fields)

    def budget(self, dollars: float, **fields) -> None:
        made = self.hub.ok(
            "POST", "/apikeys", {"name": "app", "monthly_budget_usd": dollars} | fields
        )
        self.key, self.key_id = made["key"], made["id"]

    def ask(self, path="/v1/chat/completions", **members):
        body = {"model": "m", "messages": MESSAGES} | members
        headers = {"Authorization": f"Bearer {self.key}"}
        return self.hub.request("POST", path, body, headers=headers, timeout=60)

    def account(self) -> dict:
        rows = self.hub.ok("GET", f"/budget/{self.key_id}")["accounts"]
        return next((row for row in rows if row["period"] == "month"), {})

    def until(self, wanted) -> dict:
        """The key's month, as soon as ``wanted`` holds for it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            account = self.account()
            if account and wanted(account):
                return account
            assert time.monotonic() < deadline, account
            time.sleep(0.01)

    def books(self) -> dict:
        """What the upstream's own books say of our model."""
        url = self.hub.ok("GET", "/providers/up")["base_url"]
        return books_of(url).get(self.name, {})


class Client:
    """A client on a bare socket, which can leave at any moment."""

    def __init__(self, shop: Shop, **members: Any) -> None:
        body = json.dumps({"model": "m", "messages": MESSAGES} | members).encode()
        self.sock = socket.create_connection(("127.0.0.1", shop.hub.port), timeout=PATIENCE)
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {shop.key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.sock.sendall(head.encode() + body)

    def read_until(self, mark: bytes) -> bytes:
        data = b""
        while mark not in data:
            piece = self.sock.recv(65536)
            assert piece, data
            data += piece
        return data

    def leave(self) -> None:
        self.sock.close()
