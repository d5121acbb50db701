"""What stops a start says so in one sentence: no traceback, no secret, exit code 2 or 3."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from tests.e2e.server import BIN, Hub


def refused(hub: Hub, **env: str) -> tuple[int, str]:
    """Exit code and words of a start that must fail."""
    ran = subprocess.run(
        ["tokenhub"], env=hub.env | env, capture_output=True, text=True, check=False, timeout=30
    )
    said = ran.stdout + ran.stderr
    assert "Traceback" not in said
    assert "tokenhub: not started" in said
    return ran.returncode, said


def test_a_taken_port_is_named_with_the_way_out(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = refused(Hub(tmp_path), TOKENHUB_LISTEN_ADDR=where)
    assert code == 3
    assert said.count(where) == 1
    assert "Address already in use. Stop what listens there, or set TOKENHUB_LISTEN_ADDR." in said


@pytest.mark.parametrize("where", ["203.0.113.1:8080", "no-such-host.invalid:8080"])
def test_an_address_that_is_not_ours_is_not_called_taken(tmp_path, where):
    code, said = refused(Hub(tmp_path), TOKENHUB_LISTEN_ADDR=where)
    assert code == 3
    assert f"cannot listen on {where}: " in said
    assert "Stop what listens there" not in said


def test_every_malformed_setting_is_named_at_once(tmp_path):
    wrong = {
        "TOKENHUB_LISTEN_ADDR": "127.0.0.1:99999",
        "TOKENHUB_IDLE_TIMEOUT_SECS": "nan",
        "TOKENHUB_ADMIN_TOKEN": "too-short",
        "TOKENHUB_VAULT_PASSWORD": "hunter2",
        "TOKENHUB_DB_DSN": "postgres://user:hunter2@host/db",
    }
    without_dsn = {name: text for name, text in wrong.items() if not name.endswith("DSN")}
    code, said = refused(Hub(tmp_path), **without_dsn)
    assert code == 2
    assert [name for name in without_dsn if name not in said] == []
    code, dsn_said = refused(Hub(tmp_path), TOKENHUB_DB_DSN=wrong["TOKENHUB_DB_DSN"])
    assert code == 2
    assert "hunter2" not in said + dsn_said
    assert not (tmp_path / ".tokenhub").exists()


def test_a_data_directory_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / ".tokenhub").symlink_to(tmp_path / "real")
    assert refused(Hub(tmp_path))[0] == 3
    assert list((tmp_path / "real").iterdir()) == []


def test_a_terminal_that_closes_stops_the_server_in_order(tmp_path):
    hub = Hub(tmp_path).start()
    assert hub.stop(signal.SIGHUP) == 0


def test_nohup_outlives_its_terminal(tmp_path):
    hub = Hub(tmp_path).start(command=["nohup", BIN / "tokenhub"])
    hub.process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        hub.process.wait(0.5)
    assert hub.request("GET", "/livez").status == 200
    assert hub.stop() == 0


def test_an_ipv6_address_is_shown_as_urls_write_it(tmp_path):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
            where = f"[::1]:{taken.getsockname()[1]}"
            code, said = refused(Hub(tmp_path), TOKENHUB_LISTEN_ADDR=where)
    except OSError:
        pytest.skip("needs IPv6")
    assert code == 3
    assert f"cannot listen on {where}: " in said
    hub = Hub(tmp_path, TOKENHUB_LISTEN_ADDR=where)
    hub.start(wait=False)
    deadline = time.monotonic() + 20
    while "try it" not in hub.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert hub.stop() == 0
    assert f"http://{where}\n" in hub.log.read_text()
    assert f"curl -s http://{where}/v1/chat/completions" in hub.log.read_text()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_the_start_wherever_it_is(small_disk, tmp_path):
    hub, codes = Hub(tmp_path), set()
    for room in range(0, 1041, 40):  # KiB, of which the database takes most
        data, filler = small_disk / f"data-{room}", small_disk / "filler"
        left = shutil.disk_usage(small_disk).free - room * 1024
        filler.write_bytes(bytes(left))
        ran = subprocess.run(
            ["tokenhub", "--check"],
            env=hub.env | {"TOKENHUB_DATA_DIR": str(data)},
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert "Traceback" not in ran.stdout + ran.stderr, room
        assert ran.returncode == 0 or "Check " in ran.stderr, ran.stderr
        codes.add(ran.returncode)
        filler.unlink()
        shutil.rmtree(data, ignore_errors=True)
    assert codes == {0, 3}
