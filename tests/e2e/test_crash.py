"""kill -9 under admin writes and chats: what was acknowledged is there, the file is whole."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import sys
import threading
import time

import apsw
import pytest
from tests.e2e.server import Hub

CYCLES = int(os.environ.get("TOKENHUB_CRASH_CYCLES", "4"))

# A server that dies by kill -9 as soon as the end of an answer has left.
SHORT_LIFE = """
import os, sys
from tokenhub.__main__ import main
from tokenhub.access import writer
from tokenhub.core.outbox import Outbox

writer.PACE = 60.0  # so that the row cannot be in the table already
flush = Outbox.flush

def last(self):
    ends = any(b'"total_tokens"' in data for data in self._pending.values())
    flush(self)
    if ends:
        os.kill(os.getpid(), 9)

Outbox.flush = last
sys.argv = ["tokenhub"]
sys.exit(main())
"""

# A server that dies by kill -9 as soon as the books say that a key was paid.
DIES_AS_PAID = """
import os, sys
from tokenhub.__main__ import main
from tokenhub.access.bookkeeper import Bookkeeper

mark_paid = Bookkeeper.mark_paid

async def last(self, *args, **options):
    await mark_paid(self, *args, **options)
    os.kill(os.getpid(), 9)

Bookkeeper.mark_paid = last
sys.argv = ["tokenhub"]
sys.exit(main())
"""


class Writer(threading.Thread):
    """Adds models and asks questions as fast as it can; remembers what was acknowledged."""

    def __init__(self, hub, key, number):
        super().__init__()
        self.hub, self.key, self.number = hub, key, number
        self.models: list[str] = []
        self.answers: list[str] = []

    def run(self):
        count = 0
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                count += 1
                model = f"m{self.number}-{count}-{random.randrange(10**9)}"
                row = {"id": model, "provider_id": "p", "upstream_name": "demo"}
                row |= {"input_per_1k": 0.001, "output_per_1k": 0.001}
                if self.hub.admin("POST", "/models", row).status == 200:
                    self.models.append(model)
                body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
                reply = self.hub.chat(self.key, body)
                if reply.status == 200:
                    self.answers.append(reply.headers["x-request-id"])


def test_nothing_acknowledged_is_lost(tmp_path):
    hub = Hub(tmp_path).start()
    try:
        hub.ok("POST", "/providers", {"id": "p", "type": "demo"})
        made = hub.ok("POST", "/apikeys", {"name": "app", "monthly_budget_usd": 1000})
        models: set[str] = set()
        answers: set[str] = set()
        for _ in range(CYCLES):
            writers = [Writer(hub, made["key"], number) for number in range(4)]
            for writer in writers:
                writer.start()
            time.sleep(random.uniform(0.3, 1.2))
            hub.stop(signal.SIGKILL)
            for writer in writers:
                writer.join(40)
                models.update(writer.models)
                answers.update(writer.answers)
            hub.start()
            stored = {one["id"] for one in hub.ok("GET", "/models")["items"]}
            assert models <= stored or len(stored) >= 1000
            assert hub.ok("POST", "/budget/verify", {}) == {"ok": True, "problems": []}
        assert answers
        hub.stop()
        with contextlib.closing(apsw.Connection(str(hub.data / "tokenhub.sqlite"))) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            settled = {
                row[0]
                for row in db.execute(
                    "SELECT request_id FROM ledger_attempts WHERE state='settled'"
                )
            }
            assert answers <= settled
            open_rows = db.execute("SELECT count(*) FROM ledger_attempts WHERE state='open'")
            assert open_rows.fetchall() == [(0,)]
            stored = {row[0] for row in db.execute("SELECT id FROM models")}
            assert models <= stored
    finally:
        hub.stop(signal.SIGKILL)


class Asker(threading.Thread):
    """Asks over one connection, with a key without a budget; remembers what came whole."""

    def __init__(self, hub, key, *, stream):
        super().__init__()
        self.hub, self.key, self.stream = hub, key, stream
        self.tokens: dict[str, int] = {}

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.hub.port, timeout=30)
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        cut = contextlib.suppress(OSError, http.client.HTTPException)
        with contextlib.closing(connection), cut:
            while True:
                text = json.dumps(body | {"max_tokens": random.randrange(16, 60)})
                connection.request("POST", "/v1/chat/completions", text, headers)
                reply = connection.getresponse()
                answer = reply.read()  # raises when it is cut
                assert reply.status == 200, answer
                if self.stream:
                    *_, last, done = answer.decode().strip().split("\n\n")
                    assert done == "data: [DONE]"
                    answer = last.removeprefix("data: ")
                usage = json.loads(answer)["usage"]
                self.tokens[reply.headers["x-request-id"]] = usage["total_tokens"]


def test_every_answer_without_a_budget_is_booked_at_its_price(tmp_path):
    """Such an answer does not wait for the disk, and still none is lost by kill -9."""
    hub = Hub(tmp_path).start()
    try:
        hub.ok("POST", "/providers", {"id": "p", "type": "demo"})
        price = {"input_per_1k": 0.001, "output_per_1k": 0.001}
        hub.ok("POST", "/models", {"id": "m", "provider_id": "p", "upstream_name": "demo"} | price)
        key = hub.ok("POST", "/apikeys", {"name": "app"})["key"]
        tokens: dict[str, int] = {}
        for _ in range(CYCLES):
            askers = [Asker(hub, key, stream=bool(number % 2)) for number in range(8)]
            for asker in askers:
                asker.start()
            time.sleep(random.uniform(0.3, 1.2))
            hub.stop(signal.SIGKILL)
            for asker in askers:
                asker.join(40)
                tokens |= asker.tokens
            hub.start()
            assert hub.ok("POST", "/budget/verify", {}) == {"ok": True, "problems": []}
        hub.stop()
        assert not list(hub.data.glob("*-spool-*"))
        with contextlib.closing(apsw.Connection(str(hub.data / "tokenhub.sqlite"))) as db:
            booked = {
                request: (settled, flag)
                for request, settled, flag in db.execute(
                    "SELECT request_id, settled, flag FROM ledger_attempts WHERE state='settled'"
                )
            }
        assert len(tokens) > 10 * CYCLES
        wrong = {
            request: (total, booked.get(request))
            for request, total in tokens.items()
            if booked.get(request) != (total * 1000, "")
        }
        assert not wrong
    finally:
        hub.stop(signal.SIGKILL)


@pytest.mark.parametrize("stream", [False, True])
def test_the_row_is_noted_before_the_answer_leaves(tmp_path, stream):
    hub = Hub(tmp_path).start()
    try:
        hub.ok("POST", "/providers", {"id": "p", "type": "demo"})
        price = {"input_per_1k": 0.001, "output_per_1k": 0.001}
        hub.ok("POST", "/models", {"id": "m", "provider_id": "p", "upstream_name": "demo"} | price)
        key = hub.ok("POST", "/apikeys", {"name": "app"})["key"]
        hub.stop()
        hub.start(command=[sys.executable, "-c", SHORT_LIFE])
        asker = Asker(hub, key, stream=stream)
        asker.start()
        asker.join(40)
        assert hub.stop(signal.SIGKILL) == -signal.SIGKILL
        [(request, total)] = asker.tokens.items()
        hub.start()
        assert hub.ok("POST", "/budget/verify", {}) == {"ok": True, "problems": []}
        hub.stop()
        with contextlib.closing(apsw.Connection(str(hub.data / "tokenhub.sqlite"))) as db:
            rows = db.execute("SELECT request_id, state, settled, flag FROM ledger_attempts")
            assert rows.fetchall() == [(request, "settled", total * 1000, "")]
        assert "What a killed process had settled was booked: 1." in hub.log.read_text()
    finally:
        hub.stop(signal.SIGKILL)


def test_a_key_is_paid_in_the_books_and_by_its_date_or_in_neither(tmp_path):
    hub = Hub(tmp_path).start()
    try:
        hub.ok("POST", "/providers", {"id": "p", "type": "demo"})
        price = {"input_per_1k": 0.001, "output_per_1k": 0.001}
        hub.ok("POST", "/models", {"id": "m", "provider_id": "p", "upstream_name": "demo"} | price)
        made = hub.ok("POST", "/apikeys", {"name": "app", "monthly_budget_usd": 5})
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        assert hub.chat(made["key"], body).status == 200
        hub.stop()
        hub.start(command=[sys.executable, "-c", DIES_AS_PAID])
        with pytest.raises((OSError, http.client.HTTPException)):
            hub.admin("POST", f"/apikeys/{made['id']}/paid", {})
        assert hub.stop(signal.SIGKILL) == -signal.SIGKILL
        hub.start()
        key = hub.ok("GET", f"/apikeys/{made['id']}")
        assert key["current_spend_usd"] == 0
        assert key["budget_reset_at"] is not None
        assert hub.ok("POST", "/budget/verify", {}) == {"ok": True, "problems": []}
    finally:
        hub.stop(signal.SIGKILL)
