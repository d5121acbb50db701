from __future__ import annotations

import os
import subprocess
import time

import pytest
from tests.e2e.server import BIN, Hub
from tests.ports import free_port


@pytest.fixture
def hub(tmp_path):
    server = Hub(tmp_path).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def upstream(tmp_path_factory):
    """The demo provider as a separate HTTP server; the base URL."""
    port = free_port()
    log = tmp_path_factory.mktemp("upstream") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [BIN / "tokenhub", "demo-provider", "--port", str(port)],
            env={"PATH": os.environ["PATH"]},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    for _ in range(500):
        if "listening" in log.read_text():
            break
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)
