"""What a start costs: user and system CPU of the whole process, best of several."""

from __future__ import annotations

import os

import pytest
from tests.e2e.server import BIN


def cpu_ms(env, *args) -> float:
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(BIN / "tokenhubctl", ["tokenhubctl", *args], env, file_actions=quiet)
    _, status, used = os.wait4(pid, 0)
    assert status == 0
    return (used.ru_utime + used.ru_stime) * 1000


@pytest.mark.parametrize(
    ("args", "limit"), [(["version"], 40), (["--help"], 75), (["model", "list"], 110)]
)
def test_cpu_of_a_start(hub, args, limit):
    env = {"PATH": os.environ["PATH"], "HOME": str(hub.home), "TOKENHUB_URL": hub.url}
    assert min(cpu_ms(env, *args) for _ in range(8)) <= limit
