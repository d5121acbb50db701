"""A small real HTTP server with fixed answers, and what is needed to run a program against it."""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

TOKEN = "admin-token-for-tests"
CTL = Path(sys.executable).with_name("tokenhubctl")


class Call(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Peer:
    """Fixed answers by ``METHOD target``; what was asked stands in ``calls``.

    An answer is JSON-able data, a ``(status, data)`` pair, or a function of the handler that
    writes its own bytes.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[Call] = []
        self.token: str | None = TOKEN
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                call = Call(self.command, self.path, headers, self.rfile.read(length))
                peer.calls.append(call)
                self.close_connection = True
                peer.serve(self, call)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def serve(self, handler: BaseHTTPRequestHandler, call: Call) -> None:
        authorised = call.headers.get("authorization") == f"Bearer {self.token}"
        if self.token and call.target.startswith("/admin/") and not authorised:
            refusal = {"error": "The admin token is not valid.", "code": "invalid_admin_token"}
            return reply(handler, 401, refusal)
        missing = (404, {"error": "There is no such path.", "code": "route_not_found"})
        answer = self.answers.get(f"{call.method} {call.target}", missing)
        if callable(answer):
            return answer(handler)
        status, data = answer if isinstance(answer, tuple) else (200, answer)
        return reply(handler, status, data)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def last(self) -> Call:
        return self.calls[-1]


def reply(handler: BaseHTTPRequestHandler, status: int, data: Any) -> None:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("X-Request-Id", "req-7")
    handler.end_headers()
    handler.wfile.write(body)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def environment(peer: Peer, home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TZ": "UTC",
        "TOKENHUB_URL": peer.url,
        "TOKENHUB_ADMIN_TOKEN": TOKEN,
    }
