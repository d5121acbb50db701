"""What takes part in a measurement: the mock upstream, nginx as plain proxy, and the hub."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from machine import BenchError, Process, free_port, wait_for_port

HERE = Path(__file__).parent
GATEWAY_CORE = 0
LOAD_CORE = 1
ADMIN_TOKEN = "bench-admin-token-0123456789"
VAULT_PASSWORD = "bench-vault-password"
MODEL_COUNT = 20

NGINX_CONF = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_body_buffer_size 1m;
  client_max_body_size 64m;
  keepalive_requests 1000000000;
  upstream mock {{ server 127.0.0.1:{upstream}; keepalive 4096; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port}{tls} backlog=4096;
    {certificate}
    location / {{
      proxy_pass http://mock;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def build_tools() -> None:
    """Compile the load generator and the mock when their sources are newer."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    (HERE / "build").mkdir(exist_ok=True)
    for name in ("lg", "mock"):
        source, target = HERE / f"{name}.c", HERE / "build" / name
        if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
            continue
        if not compiler:
            raise BenchError("a C compiler is needed (Debian, Ubuntu: apt install gcc libc6-dev)")
        subprocess.run([compiler, "-O2", "-Wall", "-o", target, source], check=True)


class Mock:
    """The upstream. Modes as in mock.c."""

    def __init__(self, folder: Path, *mode: str) -> None:
        self.port = free_port()
        self.process = Process(
            [HERE / "build" / "mock", str(self.port), *mode],
            core=LOAD_CORE,
            log=folder / f"mock-{self.port}.log",
        )
        wait_for_port(self.process, self.port)


class Nginx:
    """A plain reverse proxy before the mock; with `certificate`, one that speaks TLS."""

    def __init__(
        self, folder: Path, upstream: Mock, *, core: int, certificate: tuple[Path, Path] | None
    ) -> None:
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if not program:
            raise BenchError("nginx is the reference (Debian, Ubuntu: apt install nginx-light)")
        self.port = free_port()
        home = folder / f"nginx-{self.port}"
        home.mkdir()
        lines = ""
        if certificate:
            lines = f"ssl_certificate {certificate[0]}; ssl_certificate_key {certificate[1]};"
        config = NGINX_CONF.format(
            folder=home,
            upstream=upstream.port,
            port=self.port,
            tls=" ssl" if certificate else "",
            certificate=lines,
        )
        (home / "nginx.conf").write_text(config)
        self.process = Process(
            [program, "-p", home, "-c", home / "nginx.conf", "-e", home / "error.log"],
            core=core,
            log=home / "output.log",
        )
        wait_for_port(self.process, self.port)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    certificate, key = folder / "localhost.pem", folder / "localhost.key"
    if not certificate.exists():
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj"]
        command += ["/CN=localhost", "-addext", names]
        try:
            subprocess.run(
                [*command, "-keyout", key, "-out", certificate], check=True, capture_output=True
            )
        except FileNotFoundError:
            raise BenchError("openssl is needed for the TLS row (apt install openssl)") from None
    return certificate, key


class Hub:
    """The gateway with everything on: budget, routing over 20 models, log, events, metrics."""

    launcher: tuple[str, ...] = ()  # what the interpreter runs in
    program: tuple[str | Path, ...] = ("-m", "tokenhub")
    patience_s = 15.0
    kept: tuple[str, ...] = ("PATH", "LANG")  # of our own environment

    def __init__(
        self,
        folder: Path,
        base_url: str,
        *,
        kind: str = "openai",
        trust: Path | None = None,
        models: int = MODEL_COUNT,
        seed: tuple[str, ...] = (),
        subscribed: bool = True,
    ) -> None:
        """Start it. ``seed``: options of seed.py, for a database that is not new."""
        self.port = free_port()
        self.data = folder / f"hub-{self.port}"
        self._kind = kind
        self._models = models
        if seed:
            subprocess.run([sys.executable, HERE / "seed.py", self.data, *seed], check=True)
        self.started = time.monotonic()
        self.process = Process(
            [*self.launcher, sys.executable, *self.program],
            core=GATEWAY_CORE,
            log=folder / f"hub-{self.port}.log",
            environment=self._environment(trust),
        )
        wait_for_port(self.process, self.port, self.patience_s)
        self._set_up(base_url)
        self.notes: list[str] = []
        if subscribed and not self._subscribe():
            self.notes.append("no event stream to subscribe to")

    def _environment(self, trust: Path | None) -> dict[str, str]:
        kept = {name: os.environ[name] for name in self.kept if name in os.environ}
        return kept | {
            "HOME": str(self.data.parent),
            "TOKENHUB_LISTEN_ADDR": f"127.0.0.1:{self.port}",
            "TOKENHUB_DATA_DIR": str(self.data),
            "TOKENHUB_ADMIN_TOKEN": ADMIN_TOKEN,
            "TOKENHUB_VAULT_PASSWORD": VAULT_PASSWORD,
            "TOKENHUB_RATE_LIMIT_RPS": "0",
            "TOKENHUB_ADMIN_RATE_LIMIT_RPS": "0",
            **({"SSL_CERT_FILE": str(trust)} if trust else {}),
        }

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """One admin call; BenchError with the server's words when it is refused."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"}
        payload = None if body is None else json.dumps(body)
        connection.request(method, f"/admin/v1{path}", payload, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status != 200:
            raise BenchError(f"{method} {path}: {answer.status} {text[:500]}")
        return json.loads(text)

    def _set_up(self, base_url: str) -> None:
        provider = {"id": "bench", "type": self._kind, "base_url": base_url, "api_key": "sk-bench"}
        self.admin("POST", "/providers", provider)
        for number in range(self._models):
            model = {"id": f"bench-{number:02}", "provider_id": "bench", "weight": 5}
            model |= {"max_context_tokens": 400_000, "input_per_1k": 0.001, "output_per_1k": 0.002}
            self.admin("POST", "/models", model)
        scopes = {"scopes": '["chat"]'}
        self.key: str = self.admin("POST", "/apikeys", {"name": "plain", **scopes})["key"]
        budget = {"name": "budgeted", "monthly_budget_usd": 1_000_000.0, **scopes}
        self.budgeted_key: str = self.admin("POST", "/apikeys", budget)["key"]

    def _subscribe(self) -> bool:
        """Follow the event stream, as a dashboard would, for as long as the hub runs.

        False where the hub has no event stream; the rows then say so.
        """
        listener = socket.create_connection(("127.0.0.1", self.port), 30)
        listener.sendall(
            b"GET /admin/v1/events HTTP/1.1\r\nHost: localhost\r\n"
            b"Authorization: Bearer " + ADMIN_TOKEN.encode() + b"\r\n\r\n"
        )
        if not listener.recv(1 << 18).startswith(b"HTTP/1.1 200"):
            listener.close()
            return False
        listener.settimeout(None)

        def read() -> None:
            while listener.recv(1 << 18):
                pass

        threading.Thread(target=read, daemon=True).start()
        return True

    def routed_model(self) -> str:
        """The model to ask for: Thompson sampling over all, or one by name where it is not there.

        The second case is printed with the figures, for it measures less.
        """
        status, _ = self.chat("auto:thompson")
        if status == 200:
            return "auto:thompson"
        self.notes.append("asked for a model by name, no routing decision")
        return "bench-00"

    def chat(self, model: str) -> tuple[int, bytes]:
        """One whole chat, outside any measurement."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]})
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        result = answer.status, answer.read()
        connection.close()
        return result
