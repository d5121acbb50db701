from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import stat
import subprocess
import threading
import time

import openai
import pytest
from tests.e2e.server import BIN, Hub

ASK = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}


def events(body):
    return [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]


def test_the_printed_curl_line_answers(hub):
    lines = hub.log.read_text().splitlines()
    assert len(lines) == 6, lines
    for secret in (hub.admin_token, hub.demo_key):
        assert secret not in hub.log.read_text()
    command = next(line for line in lines if line.startswith("try it")).removeprefix("try it")
    command = command.strip().replace(f"localhost:{hub.port}", f"127.0.0.1:{hub.port}")
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True, timeout=30)
    answer = json.loads(done.stdout)
    assert "Hello" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["total_tokens"] > 0


def test_files_are_private_whatever_the_umask(tmp_path):
    hub = Hub(tmp_path)
    hub.start(command=["sh", "-c", 'umask 000; exec "$0"', BIN / "tokenhub"])
    try:
        assert hub.chat(hub.demo_key, ASK).status == 200
        assert stat.S_IMODE(hub.data.stat().st_mode) == 0o700
        modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in hub.data.iterdir()}
        assert set(modes.values()) == {0o600}, modes
    finally:
        hub.stop()


def test_a_second_server_on_the_same_data_refuses(hub):
    other = Hub(hub.home)
    other.start(wait=False)
    assert other.process.wait(20) == 3
    assert "TOKENHUB_DATA_DIR" in hub.log.read_text()
    assert hub.chat(hub.demo_key, ASK).status == 200


def test_a_malformed_setting_stops_the_start_and_names_itself(tmp_path):
    hub = Hub(tmp_path, TOKENHUB_RATE_LIMIT_RPS="many", TOKENHUB_LISTEN_ADDR="8080")
    hub.start(wait=False)
    assert hub.process.wait(20) == 2
    said = hub.log.read_text()
    assert "TOKENHUB_RATE_LIMIT_RPS must be a whole number" in said
    assert "TOKENHUB_LISTEN_ADDR must be host:port" in said
    assert not hub.data.exists()


def test_the_official_sdk_whole_and_streamed(hub):
    client = openai.OpenAI(base_url=f"{hub.url}/v1", api_key=hub.demo_key, max_retries=0)
    whole = client.chat.completions.create(**ASK)
    assert whole.usage.completion_tokens > 0
    stream = client.chat.completions.create(**ASK, stream=True)
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert all(chunk.usage is None for chunk in chunks)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options=options))
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "demo"


def test_a_broken_stream_never_looks_complete(hub):
    cut = ASK | {"stream": True, "demo": {"cut_after": 3}}
    client = openai.OpenAI(base_url=f"{hub.url}/v1", api_key=hub.demo_key, max_retries=0)
    stream = client.chat.completions.create(
        model="demo", messages=ASK["messages"], stream=True, extra_body={"demo": cut["demo"]}
    )
    with pytest.raises((openai.APIError, openai.APIConnectionError)):
        for _ in stream:
            pass


@pytest.mark.parametrize(
    ("demo", "status", "code"),
    [
        ({"status": 429, "retry_after": 2}, 429, "provider_rate_limited"),
        ({"status": 400}, 400, None),
        ({"status": 500}, 502, None),
        ({"garbage": True}, 502, None),
    ],
)
def test_a_provider_that_fails_gives_the_best_fitting_status(hub, demo, status, code):
    reply = hub.chat(hub.demo_key, ASK | {"demo": demo})
    error = reply.json()["error"]
    assert reply.status == status, reply.body
    if code:
        assert error["code"] == code
    assert error["attempts"], error
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["x-request-id"] == error["request_id"]


def test_names_are_exact(hub):
    reply = hub.chat(hub.demo_key, ASK | {"model": "demmo"})
    assert reply.status == 404
    assert reply.json()["error"]["code"] == "model_not_found"
    assert "demo" in reply.json()["error"]["hint"]


def test_the_demo_key_reaches_only_demo_and_demo_leaves(hub):
    hub.ok("POST", "/providers", {"id": "other", "type": "demo"})
    hub.ok(
        "POST", "/models", {"id": "other-model", "provider_id": "other", "upstream_name": "demo"}
    )
    assert hub.chat(hub.demo_key, ASK).status == 404
    assert hub.chat(hub.demo_key, ASK | {"model": "other-model"}).status in {403, 404}
    key = hub.ok("POST", "/apikeys", {"name": "app"})["key"]
    assert hub.chat(key, ASK | {"model": "other-model"}).status == 200


def test_sigterm_lets_running_streams_end(hub):
    slow = ASK | {"stream": True, "demo": {"tokens": 20, "chunk_ms": 60}}
    got = {}

    def ask():
        got["reply"] = hub.chat(hub.demo_key, slow)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    started = time.monotonic()
    assert hub.stop(signal.SIGTERM) == 0
    thread.join(30)
    assert time.monotonic() - started < 30
    assert events(got["reply"].body)[-1] == "[DONE]"


def test_a_stream_that_the_end_cuts_off_is_logged(tmp_path):
    hub = Hub(tmp_path, TOKENHUB_SHUTDOWN_DRAIN_SECS="0").start()
    slow = ASK | {"stream": True, "demo": {"tokens": 1000, "chunk_ms": 20}}
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=30)
    headers = {"Authorization": f"Bearer {hub.demo_key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(slow), headers)
    answer = connection.getresponse()
    assert answer.readline()
    assert hub.stop(signal.SIGTERM) == 0
    with contextlib.suppress(http.client.HTTPException, OSError):
        assert b"[DONE]" not in answer.read()
    connection.close()
    hub.start()
    try:
        (row,) = hub.ok("GET", "/logs")["logs"]
        assert row["request_id"] == answer.headers["x-request-id"]
        assert row["status_code"] == 499, row
    finally:
        hub.stop()


def test_readiness_says_what_is_missing(tmp_path):
    hub = Hub(tmp_path, TOKENHUB_DEMO="false").start()
    try:
        assert hub.request("GET", "/livez").status == 200
        assert hub.request("GET", "/healthz").json() == {
            "status": "unhealthy", "adapters": 0, "models": 0,
        }  # fmt: skip
        checks = hub.request("GET", "/readyz").json()["checks"]
        assert "provider add" in checks["providers"]
    finally:
        hub.stop()


def test_every_answer_carries_an_id_of_our_own(hub):
    mine = {"X-Request-Id": "mine-1"}
    for path in ("/livez", "/v1/models", "/nothing", "/admin/v1/info"):
        reply = hub.request("GET", path, headers=mine)
        assert re.fullmatch(r"r-[0-9a-f]{12}-[0-9a-f]+", reply.headers["x-request-id"])
