"""The comparison with other gateways: pinned, configured as described, and never a must."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from tests.packaging.project import ROOT

LOCKS = ROOT / "requirements"


@pytest.fixture
def bench(monkeypatch):
    """The modules of bench/, which import each other as top-level ones."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "bench")
    import compare
    import machine
    import peers

    yield SimpleNamespace(compare=compare, machine=machine, peers=peers)
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_without_words_all_peers_are_measured(bench):
    options = bench.compare.parse([])
    assert options.peers == ["sglang-router", "portkey", "litellm"]
    assert (options.only, options.rounds) == (None, 3)
    assert bench.compare.parse(["litellm", "--only", "json"]).peers == ["litellm"]


@pytest.mark.parametrize("words", [["vllm"], ["litellm", "--only", "images"], ["--rounds", "x"]])
def test_what_is_not_understood_is_named(bench, words, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.compare.parse(words)
    assert ended.value.code == 2
    assert words[-1] in capsys.readouterr().err


def test_litellm_is_given_one_worker_the_mock_and_a_key(bench, tmp_path):
    words = bench.peers.PEERS["litellm"].command(tmp_path / "home", tmp_path, 8001, 9001)
    assert words[0] == tmp_path / "home" / "bin" / "litellm"
    assert words[words.index("--num_workers") + 1] == "1"
    config = yaml.safe_load(words[words.index("--config") + 1].read_text())
    [model] = config["model_list"]
    assert model["model_name"] == bench.peers.MODEL
    assert model["litellm_params"]["api_base"] == "http://127.0.0.1:9001/v1"
    assert config["general_settings"]["master_key"] == bench.peers.KEY
    assert config["litellm_settings"]["num_retries"] == 0


def test_each_peer_is_told_its_port_and_where_the_mock_is(bench, tmp_path):
    for name, peer in bench.peers.PEERS.items():
        words = " ".join(map(str, peer.command(tmp_path, tmp_path, 8001, 9001)))
        files = " ".join(file.read_text() for file in tmp_path.glob("*.yaml"))
        told = f"{words} {files} {' '.join(peer.headers(9001))}"
        assert re.search(r"--port[ =]8001\b", words), name
        assert "http://127.0.0.1:9001" in told, name


def test_every_version_is_pinned_and_no_host_is_named(bench):
    wanted = json.loads((LOCKS / "portkey" / "package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", one) for one in wanted.values())
    packages = json.loads((LOCKS / "portkey" / "package-lock.json").read_text())["packages"]
    # A second copy beside the pinned one would be the one that is used.
    assert [name for name in packages if name.endswith("@hono/node-server")] == [
        "node_modules/@hono/node-server"
    ]
    for name, one in packages.items():
        assert not name or ("integrity" in one and "resolved" not in one)
    for name, peer in bench.peers.PEERS.items():
        assert re.match(r"\d+\.\d+", bench.peers.version(name))
        if peer.lock.endswith(".txt"):
            text = (LOCKS / peer.lock).read_text()
            assert "://" not in text
            for line in text.splitlines():
                assert re.match(r"\S+==\S+ |    --hash=sha256:", line)


def test_a_peer_that_cannot_be_installed_is_said_and_left_out(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.peers, "CACHE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm, no node
    started = bench.compare.start_peers(SimpleNamespace(folder=tmp_path), ["portkey"], 9001)
    assert started == {}
    assert "portkey is left out: Node.js with npm is needed" in capsys.readouterr().out


def test_what_an_installer_says_last_is_passed_on(bench):
    program = "import sys; sys.exit('first\\nno matching distribution')"
    with pytest.raises(bench.machine.BenchError, match="failed: first no matching distribution"):
        bench.peers._run([sys.executable, "-c", program])
    with pytest.raises(bench.machine.BenchError, match="No such file"):
        bench.peers._run([ROOT / "no-such-program"])


def test_an_installed_peer_is_installed_anew_when_its_lock_changes(bench, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(bench.peers, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(bench.peers, "LOCKS", tmp_path)
    monkeypatch.setattr(bench.peers, "_run", made.append)
    lock = tmp_path / "peer-litellm.txt"
    lock.write_text("litellm==1\n")
    home = bench.peers.install("litellm")
    assert home == tmp_path / "cache" / "litellm"
    assert len(made) == 2
    bench.peers.install("litellm")
    assert len(made) == 2
    lock.write_text("litellm==2\n")
    bench.peers.install("litellm")
    assert len(made) == 4
    assert bench.peers.version("litellm") == "2"


def test_the_program_lists_its_peers():
    program = [sys.executable, ROOT / "bench" / "compare.py", "--help"]
    answer = subprocess.run(program, capture_output=True, check=True, text=True)
    assert "sglang-router, portkey, litellm" in answer.stdout
