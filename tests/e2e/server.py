"""A real TokenHub process with a home of its own, and the plainest HTTP client to ask it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.ports import free_port

BIN = Path(sys.executable).parent


class Reply:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


def documented_codes() -> frozenset[str]:
    """The codes in docs/reference/errors.md."""
    page = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"
    return frozenset(re.findall(r"^\| `(\w+)` \| \d", page.read_text(), re.MULTILINE))


CODES = documented_codes()
REPORTS = ("/healthz", "/readyz")  # what they answer is no refusal


def check_refusal(path: str, reply: Reply) -> None:
    """Every refusal that any test sees names itself by a code that is documented."""
    value = reply.json()
    openai = isinstance(value["error"], dict)
    said = value["error"] if openai else value
    assert said["code"] in CODES, (path, reply.status, reply.body[:500])
    assert said["message"] if openai else value["error"]
    assert said.get("request_id") in {None, reply.headers["x-request-id"]}


class Hub:
    """``tokenhub`` on a free port of 127.0.0.1, data under ``home/.tokenhub``."""

    def __init__(self, home: Path, **env: str) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = home / ".tokenhub"
        self.env = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(home),
            "TOKENHUB_LISTEN_ADDR": f"127.0.0.1:{self.port}",
            "TOKENHUB_RATE_LIMIT_RPS": "0",
            "TOKENHUB_ADMIN_RATE_LIMIT_RPS": "0",
        } | env
        self.process: subprocess.Popen[str] | None = None
        self.log = home / "server.log"

    def start(self, *, wait: bool = True, command: list[str | Path] | None = None) -> Hub:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command or [BIN / "tokenhub"],
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        if wait:
            self.wait_alive()
        return self

    def wait_alive(self, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the server ended: {self.log.read_text()}")
            try:
                if self.request("GET", "/livez").status == 200:
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)
        raise AssertionError(f"the server is not alive: {self.log.read_text()}")

    def stop(self, sig: int = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(sig)
        code = self.process.wait(40)
        self.process = None
        return code

    @property
    def admin_token(self) -> str:
        return (self.data / ".admin-token").read_text().strip()

    @property
    def demo_key(self) -> str:
        return (self.data / ".demo-key").read_text().strip()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        timeout: float = 30,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            sent = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, data, sent | (headers or {}))
            answer = connection.getresponse()
            got = {name.lower(): value for name, value in answer.getheaders()}
            reply = Reply(answer.status, got, answer.read())
            if reply.status >= 400 and method != "HEAD" and path not in REPORTS:
                check_refusal(path, reply)
            return reply
        finally:
            connection.close()

    def admin(self, method: str, path: str, body: Any = None) -> Reply:
        headers = {"Authorization": f"Bearer {self.admin_token}"}
        return self.request(method, "/admin/v1" + path, body, headers=headers)

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        reply = self.admin(method, path, body)
        assert reply.status == 200, (reply.status, reply.body)
        return reply.json()

    def chat(self, key: str, body: Any, **options: Any) -> Reply:
        headers = {"Authorization": f"Bearer {key}"} | options.pop("headers", {})
        return self.request("POST", "/v1/chat/completions", body, headers=headers, **options)

    def ctl(
        self, *args: str, stdin: str | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        own = {"PATH": self.env["PATH"], "HOME": str(self.home), "TOKENHUB_URL": self.url}
        return subprocess.run(
            [BIN / "tokenhubctl", *args],
            env=own | (env or {}),
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
