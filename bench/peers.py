"""Other gateways to measure beside the hub: how each is installed, configured and started.

Each lives in a folder of its own under .cache/peers/, from pinned versions: requirements/peer-*.txt
with hashes, requirements/portkey/package-lock.json with integrity sums. None is imported here, and
nothing of them gets into .venv.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from machine import BenchError, Process, free_port, wait_for_port
from subjects import GATEWAY_CORE

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
CACHE = ROOT / ".cache" / "peers"
KEY = "sk-bench-0123456789abcdef"
# A name that LiteLLM has a price for, so that it counts the cost as it would in use.
MODEL = "gpt-4o-mini"
PATIENCE_S = 60.0
CHUNKS = 64  # of the mock's streams

LITELLM_CONFIG = """
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: sk-upstream
general_settings:
  master_key: {key}
litellm_settings:
  telemetry: false
  num_retries: 0
router_settings:
  num_retries: 0
"""


@dataclass(frozen=True)
class Peer:
    """One other gateway.

    Attributes:
        lock: what pins its version; a requirements file, or a folder with package-lock.json.
        package: what the lock calls it.
        about: what is on and what is not, for whoever reads the figures.
        command: the program's words, from its home, a folder for its files, its port and the
            upstream's.
        headers: what a request needs besides the key, from the upstream's port.
        environment: variables it is started with.
    """

    lock: str
    package: str
    about: str
    command: Callable[[Path, Path, int, int], list[str | Path]]
    headers: Callable[[int], tuple[str, ...]] = lambda _: ()
    environment: tuple[tuple[str, str], ...] = ()


def _litellm(home: Path, folder: Path, port: int, upstream: int) -> list[str | Path]:
    config = folder / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(model=MODEL, upstream=upstream, key=KEY))
    return [
        *(home / "bin" / "litellm", "--config", config, "--host", "127.0.0.1"),
        *("--port", str(port), "--num_workers", "1"),
    ]


def _sglang_router(home: Path, _: Path, port: int, upstream: int) -> list[str | Path]:
    return [
        *(home / "bin" / "smg", "launch", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend", "openai", "--worker-urls", f"http://127.0.0.1:{upstream}"),
        *("--policy", "round_robin", "--log-level", "error", "--disable-health-check"),
        *("--prometheus-port", str(free_port())),
    ]


def _portkey(home: Path, _: Path, port: int, __: int) -> list[str | Path]:
    program = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return [shutil.which("node") or "node", program, f"--port={port}", "--headless"]


PEERS = {
    "sglang-router": Peer(
        "peer-sglang-router.txt",
        "sglang-router",
        "Rust; passes requests on in turn to one worker; no keys of clients, no budgets, no cost",
        _sglang_router,
    ),
    "portkey": Peer(
        "portkey",
        "@portkey-ai/gateway",
        "Node.js; provider and upstream are named by headers; no keys of clients, no budgets, "
        "no log",
        _portkey,
        headers=lambda upstream: (
            "x-portkey-provider: openai",
            f"x-portkey-custom-host: http://127.0.0.1:{upstream}/v1",
        ),
        environment=(("NODE_ENV", "production"), ("TRUSTED_CUSTOM_HOSTS", "127.0.0.1,localhost")),
    ),
    "litellm": Peer(
        "peer-litellm.txt",
        "litellm",
        "Python; one worker, uvloop and httptools; the master key is checked, cost is counted; "
        "no database, so no budgets; no retries, no telemetry",
        _litellm,
        environment=(
            ("LITELLM_MODE", "PRODUCTION"),
            ("LITELLM_LOG", "ERROR"),
            ("LITELLM_LOCAL_MODEL_COST_MAP", "True"),
        ),
    ),
}


def version(name: str) -> str:
    """The version that a peer's lock names."""
    peer = PEERS[name]
    lock = LOCKS / peer.lock
    if lock.is_dir():
        packages = json.loads((lock / "package-lock.json").read_text())["packages"]
        return str(packages[f"node_modules/{peer.package}"]["version"])
    start = f"{peer.package}=="
    lines = lock.read_text().splitlines()
    return next(line for line in lines if line.startswith(start))[len(start) :].split()[0]


def install(name: str) -> Path:
    """The home of a peer, with what its lock names, made when the lock has changed.

    Raises:
        BenchError: it cannot be installed here; the message has the installer's last words.
    """
    lock = LOCKS / PEERS[name].lock
    home = CACHE / name
    files = [lock] if lock.is_file() else sorted(lock.glob("*.json"))
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    stamp = home / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return home
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    if lock.is_file():
        uv = Path(sys.executable).with_name("uv")
        python = home / "bin" / "python"
        _run([sys.executable, "-m", "venv", "--without-pip", home])
        _run([uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", lock])
    else:
        npm = shutil.which("npm")
        if npm is None or shutil.which("node") is None:
            raise BenchError("Node.js with npm is needed")
        for file in files:
            shutil.copy(file, home)
        _run([npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", home])
    stamp.write_text(wanted)
    return home


def _run(command: list[str | Path]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise BenchError(f"{Path(command[0]).name} failed: {' '.join(words)[:500]}")


class Running:
    """A peer on the gateway's core, ready to answer."""

    def __init__(self, name: str, folder: Path, upstream: int) -> None:
        peer = PEERS[name]
        home = install(name)
        self.port = free_port()
        self.headers = peer.headers(upstream)
        own = folder / f"{name}-{self.port}"
        own.mkdir()
        kept = {word: os.environ[word] for word in ("PATH", "LANG") if word in os.environ}
        self.process = Process(
            peer.command(home, own, self.port, upstream),
            core=GATEWAY_CORE,
            log=own / "output.log",
            environment=kept | {"HOME": str(own)} | dict(peer.environment),
        )
        try:
            wait_for_port(self.process, self.port, PATIENCE_S)
            self._wait_for_an_answer()
        except BenchError:
            self.process.stop()
            raise

    def _wait_for_an_answer(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        said = "nothing"
        while time.monotonic() < deadline:
            self.process.check_running()
            try:
                status, body = self._chat(stream=False)
            except (OSError, http.client.HTTPException) as error:
                said = str(error)
            else:
                if status == 200:
                    return
                said = f"{status} {body[:300]!r}"
            time.sleep(0.2)
        raise BenchError(f"no chat was answered within {PATIENCE_S:g} s; last: {said}")

    def check_a_stream(self) -> None:
        """BenchError when a stream does not come as whole as the mock sent it."""
        status, body = self._chat(stream=True)
        if status != 200 or body.count(b"ts:") != CHUNKS or b"[DONE]" not in body:
            raise BenchError(f"a stream was answered with {status} {body[-300:]!r}")

    def _chat(self, *, stream: bool) -> tuple[int, bytes]:
        content = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        for line in self.headers:
            name, _, value = line.partition(": ")
            headers[name] = value
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            body = json.dumps(content | {"stream": stream})
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
