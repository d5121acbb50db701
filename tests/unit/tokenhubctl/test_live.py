"""events, --watch, --follow, top and completion: programs that run on, and the live server."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time

import pytest
from tests.unit.tokenhubctl.answers import ANSWERS, LOGS
from tests.unit.tokenhubctl.peer import CTL, environment, reply
from tests.unit.tokenhubctl.terminal import Terminal

EVENTS = "GET /admin/v1/events"
FIRST = (
    b'event: connected\ndata: {"status":"ok"}\n\n'
    b'id: e-1\nevent: route_success\ndata: {"type":"route_success","timestamp":'
    b'"2026-03-01T10:20:30.5Z","model_id":"gpt-4o","provider_id":"openai","latency_ms":1500,'
    b'"cost_usd":0.0021,"reason":"routed-weight-8"}\n\n'
    b'event: heartbeat\ndata: {"type":"heartbeat","reason":"providers=1 models=2"}\n\n'
)
SECOND = (
    b'id: e-2\nevent: route_error\ndata: {"type":"route_error","timestamp":'
    b'"2026-03-01T10:20:31Z","error_class":"timeout","error_msg":"no \\u001b[31manswer"}\n\n'
    b'event: dropped\ndata: {"type":"dropped","count":3}\n\n'
)


class Program:
    """The command line in a process of its own, read line by line."""

    def __init__(self, peer, home, *args, **env):
        self.process = subprocess.Popen(
            [CTL, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment(peer, home) | env, text=True,
        )  # fmt: skip
        self.err = ""
        self.reader = threading.Thread(target=self._errors)
        self.reader.start()

    def _errors(self):
        self.err = "".join(self.process.stderr)

    def lines(self, count):
        return [self.process.stdout.readline().rstrip("\n") for _ in range(count)]

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self):
        code = self.process.wait(20)
        self.reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@pytest.fixture
def start(peer, home):
    started = []

    def run(*args, **env):
        started.append(Program(peer, home, *args, **env))
        return started[-1]

    yield run
    for program in started:
        if program.process.poll() is None:
            program.process.kill()
            program.end()


@pytest.fixture
def stream(peer):
    """Answers each connection to the event stream with the next piece; the last one stays open."""
    seen: list[str | None] = []
    pieces = [FIRST, SECOND]
    finished = threading.Event()

    def serve(handler):
        seen.append(handler.headers.get("Last-Event-ID"))
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.wfile.write(pieces[min(len(seen), 2) - 1])
        handler.wfile.flush()
        if len(seen) >= 2:
            finished.wait(20)

    peer.answers[EVENTS] = serve
    yield seen
    finished.set()


def test_events_go_on_after_a_restart_of_the_server_and_say_so(start, stream):
    program = start("events")
    lines = program.lines(4)
    assert lines[0] == (
        "[10:20:30] route_success  model=gpt-4o provider=openai latency=1.5s cost=$0.0021 "
        "reason=routed-weight-8"
    )
    assert re.fullmatch(r"\[\d\d:\d\d:\d\d\] heartbeat  reason=providers=1 models=2", lines[1])
    assert lines[2] == "[10:20:31] route_error  class=timeout error=no \\x1b[31manswer"
    assert lines[3].endswith("] dropped  count=3")
    assert program.interrupt() == 130
    assert stream == [None, "e-1"]
    assert "Streaming events" in program.err
    assert "reconnecting in 0.5 s" in program.err
    assert "Traceback" not in program.err


def test_events_as_json_lines_filtered_by_type(start, stream):
    program = start("events", "-o", "json", "--type", "route_success,route_error")
    first, second = (json.loads(line) for line in program.lines(2))
    assert (first["id"], first["model_id"]) == ("e-1", "gpt-4o")
    assert (second["id"], second["error_msg"]) == ("e-2", "no \x1b[31manswer")
    assert program.interrupt() == 130


def test_events_without_a_server_or_a_token_fail_at_once(ctl, peer):
    assert ctl("events", "--url", "http://127.0.0.1:9").code == 6
    peer.token = "another"
    assert ctl("events").code == 4
    peer.token = None
    ran = ctl("events")
    assert ran.code == 3
    assert "This server has no GET /admin/v1/events" in ran.err


def test_ctrl_c_ends_events_on_a_terminal(peer, home, stream):
    screen = Terminal([str(CTL), "events"], environment(peer, home))
    screen.until("route_error")
    screen.type("\x03")
    assert screen.end() == 130
    assert "Traceback" not in screen.seen


def test_events_of_something_that_has_none(ctl, peer):
    peer.answers[EVENTS] = (200, b"<h1>It works!</h1>")
    ran = ctl("events")
    assert (ran.code, ran.out) == (1, "")
    assert "no event stream but application/json" in ran.err


def hung_up(handler):
    """What a client sees of a server that is being restarted."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def in_turn(*answers):
    """One answer after the other, the last one again and again."""
    left = list(answers)

    def serve(handler):
        answer = left.pop(0) if len(left) > 1 else left[0]
        answer(handler) if callable(answer) else reply(handler, *answer)

    return serve


DRAINING = (503, {"error": "The server is stopping.", "code": "draining"})


@pytest.mark.parametrize(
    "line",
    ["model list --watch -o name", "logs --follow --limit 200 -o name", "top"],
)
def test_a_restart_of_the_server_does_not_end_what_goes_on(start, peer, line):
    peer.answers.update(ANSWERS)
    models = peer.answers["GET /admin/v1/engine/models"]
    one, both = ({"logs": LOGS[2:]}, {"logs": LOGS[1:]})
    gone = (hung_up, hung_up, DRAINING)
    peer.answers["GET /admin/v1/engine/models"] = in_turn((200, models), *gone, (200, models))
    peer.answers["GET /admin/v1/logs?limit=200"] = in_turn((200, one), *gone, (200, both))
    peer.answers["GET /admin/v1/stats"] = in_turn((200, {}), *gone, (200, {}))
    program = start(*line.split(), "--interval", "0.2")
    count = {"model": 6, "logs": 2, "top": 2}[line.split()[0]]
    lines = program.lines(count)
    assert "" not in lines, program.err
    assert program.interrupt() == 130
    assert re.search("no answer", program.err, re.IGNORECASE)


@pytest.mark.parametrize("line", ["model list --watch -o name", "logs -f -o name", "events", "top"])
def test_a_token_that_is_rotated_meanwhile_is_read_anew(start, peer, home, line):
    peer.answers.update(ANSWERS)
    file = home / ".tokenhub" / ".admin-token"
    file.parent.mkdir()
    file.write_text("first")
    peer.token, serve, asked = "first", peer.serve, []

    def rotating(handler, call):
        asked.append(call.target)
        if len(asked) == {"top": 4}.get(line, 2):
            peer.token = "second"
            file.write_text("second")
        serve(handler, call)

    def stream(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.wfile.write(FIRST)

    peer.serve, peer.answers[EVENTS] = rotating, stream
    peer.answers["GET /admin/v1/logs?limit=50"] = {"logs": LOGS[2:]}
    peer.answers["GET /admin/v1/logs?limit=200"] = {"logs": LOGS}
    options = [] if line == "events" else ["--interval", "0.2"]
    program = start(*line.split(), *options, TOKENHUB_ADMIN_TOKEN="")
    count = {"model": 6, "logs": 3, "events": 4, "top": 3}[line.split()[0]]
    assert "" not in program.lines(count), program.err
    assert program.interrupt() == 130


def test_what_time_does_not_mend_ends_a_watch(start, peer):
    peer.answers.update(ANSWERS)
    models = peer.answers["GET /admin/v1/engine/models"]
    refused = (401, {"error": "The admin token is not valid.", "code": "invalid_admin_token"})
    peer.answers["GET /admin/v1/engine/models"] = in_turn((200, models), refused)
    program = start("model", "list", "--watch", "--interval", "0.1", "-o", "name")
    assert len(program.lines(3)) == 3
    assert program.end() == 4
    assert "TOKENHUB_ADMIN_TOKEN" in program.err


def test_what_a_watch_shows_is_said_to_be_old(peer, home):
    peer.answers.update(ANSWERS)
    models = peer.answers["GET /admin/v1/engine/models"]
    peer.answers["GET /admin/v1/engine/models"] = in_turn((200, models), hung_up)
    line = [str(CTL), "model", "list", "-w", "--interval", "0.1"]
    screen = Terminal(line, environment(peer, home) | {"TERM": "xterm"})
    seen = screen.until("asking again")
    assert re.search(r"gpt-4o[^$]+[\s\S]+No answer since \d\d:\d\d:\d\d \(", seen)
    screen.type("\x03")
    assert screen.end() == 130


def test_follow_says_when_it_cannot_keep_up(start, peer):
    many = [LOGS[0] | {"request_id": f"n{number}"} for number in range(200)]
    peer.answers["GET /admin/v1/logs?limit=5"] = {"logs": LOGS[:1]}
    peer.answers["GET /admin/v1/logs?limit=200"] = {"logs": many}
    program = start("logs", "--limit", "5", "-f", "-o", "name")
    assert len(program.lines(201)) == 201
    assert program.interrupt() == 130
    assert "more than 200 requests at once" in program.err


def test_watch_through_a_pipe_is_json_lines(start, peer):
    peer.answers.update(ANSWERS)
    program = start("model", "list", "--watch", "--interval", "0.1")
    names = [json.loads(line)["id"] for line in program.lines(6)]
    assert names == ["Qwen/Qwen2.5", "demo", "gpt-4o"] * 2
    assert program.interrupt() == 130


def test_watch_redraws_a_terminal(peer, home):
    peer.answers.update(ANSWERS)
    line = [str(CTL), "model", "list", "-w", "--interval", "0.1"]
    screen = Terminal(line, environment(peer, home) | {"TERM": "xterm"})
    screen.until("gpt-4o")
    screen.until("\x1b[2J")
    screen.type("\x03")
    assert screen.end() == 130


def test_follow_prints_each_request_once_oldest_first(start, peer):
    pages = [LOGS[1:], LOGS[1:], LOGS]
    asked = []

    def serve(handler):
        asked.append(handler.path)
        reply(handler, 200, {"logs": pages[min(len(asked), 3) - 1]})

    for limit in (5, 200):
        peer.answers[f"GET /admin/v1/logs?limit={limit}"] = serve
    program = start("logs", "--limit", "5", "--follow", "-o", "name")
    assert program.lines(3) == ["r0", "r1", "r2"]
    assert program.interrupt() == 130
    assert asked[:2] == ["/admin/v1/logs?limit=5", "/admin/v1/logs?limit=200"]


def test_top_through_a_pipe_is_one_json_line_per_look(ctl, peer):
    peer.answers.update(ANSWERS)
    lines = ctl("top", "--count", "2", "--interval", "0.2").out.splitlines()
    assert len(lines) == 2
    snapshot = json.loads(lines[0])
    assert snapshot["last_minute"]["request_count"] == 90
    assert [row["provider_id"] for row in snapshot["providers"]] == ["local", "openai"]


def test_top_on_a_terminal(peer, home):
    peer.answers.update(ANSWERS)
    screen = Terminal([str(CTL), "top", "--interval", "0.2"], environment(peer, home))
    screen.until("requests/s 1.50   errors 10.0%   spend/min $0.50   latency avg 100ms   p95 2.5s")
    screen.until("gpt-4o")
    screen.type("\x03")
    assert screen.end() == 130
    assert "\x1b[?25h" in screen.seen[-12:], "the cursor is shown again"


def complete(spawn, line, **env):
    words = line.split(" ")
    ran = spawn(
        COMP_WORDS=" ".join(words), COMP_CWORD=str(len(words) - 1),
        _TOKENHUBCTL_COMPLETE="bash_complete", **env,
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    return [found.partition(",")[2] for found in ran.out.split()]


def test_completion_of_commands_and_options(spawn):
    assert complete(spawn, "tokenhubctl mod") == ["model", "model-test", "models"]
    assert complete(spawn, "tokenhubctl vault s") == ["status", "secret"]
    assert complete(spawn, "tokenhubctl model e") == ["edit", "enable"]
    assert complete(spawn, "tokenhubctl routing ") == ["get", "set"]
    assert complete(spawn, "tokenhubctl logs --li") == ["--limit"]
    assert complete(spawn, "tokenhubctl logs --limit 5 --mo") == ["--model"]
    assert "--no-headers" in complete(spawn, "tokenhubctl model list --no")
    assert complete(spawn, "tokenhubctl model list -o js") == ["json", "jsonl"]


def test_completion_of_live_ids_asks_once_in_ten_seconds(spawn, peer, home):
    peer.answers.update(ANSWERS)
    cache = str(home / "cache")
    assert complete(spawn, "tokenhubctl model edit g", XDG_CACHE_HOME=cache) == ["gpt-4o"]
    assert complete(spawn, "tokenhubctl model get d", XDG_CACHE_HOME=cache) == ["demo"]
    assert len(peer.calls) == 1
    assert complete(spawn, "tokenhubctl provider get o", XDG_CACHE_HOME=cache) == ["openai"]
    assert complete(spawn, "tokenhubctl apikey delete k", XDG_CACHE_HOME=cache) == ["k1", "k2"]
    assert complete(spawn, "tokenhubctl vault secret get ", XDG_CACHE_HOME=cache) == ["a", "b"]
    assert complete(spawn, "tokenhubctl alias get ", XDG_CACHE_HOME=cache) == ["fast"]


def test_completion_is_silent_and_quick_when_the_server_is_not(spawn, peer):
    def hang(handler):
        time.sleep(1.5)

    peer.answers["GET /admin/v1/engine/models"] = hang
    started = time.monotonic()
    assert complete(spawn, "tokenhubctl model get ") == []
    assert time.monotonic() - started < 1.2
    assert complete(spawn, "tokenhubctl model get ", TOKENHUB_URL="http://127.0.0.1:9") == []
    assert complete(spawn, "tokenhubctl model get ", TOKENHUB_ADMIN_TOKEN="wrong") == []


def test_completion_never_offers_a_name_that_drives_the_terminal(spawn, peer):
    models = [{"id": "a\x1b[2J"}, {"id": "b\nc"}, {"id": "fine"}]
    peer.answers["GET /admin/v1/engine/models"] = {"models": models}
    assert complete(spawn, "tokenhubctl model get ") == ["fine"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(ctl, shell):
    ran = ctl("completion", shell)
    assert ran.code == 0
    assert f"_TOKENHUBCTL_COMPLETE={shell}_complete" in ran.out


def test_bash_loads_its_script(ctl, tmp_path):
    (tmp_path / "script").write_text(ctl("completion", "bash").out)
    command = f". {tmp_path}/script && complete -p tokenhubctl"
    done = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True, check=True)
    assert re.search(r"complete .*tokenhubctl", done.stdout)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tokenhubctl model get llama3", "llama3:70b llama3:8b"),
        ("tokenhubctl model get llama3 :", "70b 8b"),
        ("tokenhubctl model get llama3 : 7", "70b"),
        ("tokenhubctl model get a/b : c :", "d"),
        ("tokenhubctl model get gp", "gpt-4o"),
        ("tokenhubctl model en", "enable"),
    ],
)
def test_bash_completes_ids_with_colons(ctl, peer, home, words, offered):
    names = ["llama3:8b", "llama3:70b", "a/b:c:d", "gpt-4o"]
    peer.answers["GET /admin/v1/engine/models"] = {"models": [{"id": name} for name in names]}
    (home / "script").write_text(ctl("completion", "bash").out)
    line = (
        f". {home}/script; COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); "
        f'_tokenhubctl_completion {CTL}; echo "${{COMPREPLY[*]}}"'
    )
    done = subprocess.run(
        ["/bin/bash", "-c", line], capture_output=True, text=True, check=True, timeout=30,
        env=environment(peer, home),
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (offered.split(), "")
