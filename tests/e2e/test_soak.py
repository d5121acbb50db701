"""Clients that leave and providers that fail: afterwards nothing is held, open or unpaid."""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.e2e.peers import Peer, breaks, errs, garbage, refuses, resets, says
from tests.e2e.server import Hub

ROUNDS = 3
LEAVERS = 120
AT_ONCE = 30
FD_SLACK = 12
_HOLDS = re.compile(rb"^tokenhub_ledger_open_holds (\d+)$", re.MULTILINE)
_CANCELLED = re.compile(rb'^tokenhub_requests_total\{.*status="cancelled".*\} (\d+)$', re.MULTILINE)


def trickles(line):
    """A word every 20 ms, for as long as anybody listens."""
    line.head()
    for _ in range(200):
        line.word("word ")
        time.sleep(0.02)


def errs_or_refuses(line):
    """An error inside a stream, or instead of a whole answer."""
    if line.stream:
        errs(line)
    else:
        refuses("400 No")(line)


class Turns:
    """Another script for each request."""

    def __init__(self, *scripts):
        self._scripts = scripts
        self._lock = threading.Lock()
        self._next = 0

    def __call__(self, line):
        with self._lock:
            script = self._scripts[self._next % len(self._scripts)]
            self._next += 1
        script(line)


@pytest.fixture
def hub(tmp_path):
    slow = Peer(trickles)
    ways = says("well"), refuses("500 No"), garbage, resets, breaks, errs_or_refuses
    shaky = Peer(Turns(*ways))
    server = Hub(tmp_path).start()
    for name, peer in (("slow", slow), ("shaky", shaky)):
        server.ok("POST", "/providers", {"id": name, "type": "openai", "base_url": peer.url})
        model = {"id": name, "provider_id": name, "input_per_1k": 1, "output_per_1k": 1}
        server.ok("POST", "/models", model)
    yield server
    server.stop()
    slow.close()
    shaky.close()


def ask(hub, key, model, *, stream):
    sock = socket.create_connection(("127.0.0.1", hub.port), 10)
    body = {"model": model, "stream": stream, "max_tokens": 300}
    data = json.dumps(body | {"messages": [{"role": "user", "content": "Hello"}]}).encode()
    sock.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        b"authorization: Bearer %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        % (key.encode(), len(data))
        + data
    )
    return sock


def leave(hub, key, number):
    """Hang up before the answer, in its head or in the middle; politely or with a reset."""
    draw = random.Random(number)
    with ask(hub, key, "slow", stream=True) as sock:
        if number % 3:
            sock.recv(1 + draw.randrange(600))
        time.sleep(draw.random() / 10)
        if number % 2:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def fail(hub, key, number):
    with ask(hub, key, "shaky", stream=bool(number % 2)) as sock:
        while sock.recv(65536):
            pass


def scrape(hub, pattern):
    return sum(int(found) for found in pattern.findall(hub.request("GET", "/metrics").body))


def settled(hub, seconds=5):
    """Wait until no money is held; the file descriptors and threads that are open then."""
    deadline = time.monotonic() + seconds
    while (holds := scrape(hub, _HOLDS)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert holds == 0
    proc = Path(f"/proc/{hub.process.pid}")
    return [len(list((proc / what).iterdir())) for what in ("fd", "task")]


def test_nothing_is_left_of_clients_that_left_and_providers_that_failed(hub):
    made = hub.ok("POST", "/apikeys", {"name": "team", "monthly_budget_usd": 10_000})
    key, found = made["key"], []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(ROUNDS):
            list(pool.map(lambda number: leave(hub, key, number), range(LEAVERS)))
            list(pool.map(lambda number: fail(hub, key, number), range(LEAVERS // 4)))
            found.append(settled(hub))
    (fds, threads), (fds_then, threads_then) = found[0], found[-1]
    assert fds_then <= fds + FD_SLACK, found
    assert threads_then <= threads + 2, found
    assert scrape(hub, _CANCELLED) > ROUNDS * LEAVERS // 2
    for account in hub.ok("GET", f"/budget/{made['id']}")["accounts"]:
        assert account["reserved_usd"] == 0
    assert hub.ok("POST", "/budget/verify")["problems"] == []
    assert hub.ok("GET", "/audit/verify")["ok"] is True
