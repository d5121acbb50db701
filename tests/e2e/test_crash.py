"""kill -9 under admin writes and chats: what was acknowledged is there, the file is whole."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import threading
import time

import apsw
from tests.e2e.server import Hub

CYCLES = int(os.environ.get("TOKENHUB_CRASH_CYCLES", "4"))


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
