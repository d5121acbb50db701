from __future__ import annotations

import base64
import random

import pytest

from tokenhub.core.redaction import MARK, redact

KEY = "sk-proj-Zk3Jx81mPq"
OURS = "tokenhub_" + "0123456789abcdef" * 4

SECRETS = {
    f"refused {KEY}.": KEY,
    f"key {OURS} was used": OURS,
    "Authorization: Bearer abc.def-123": "abc.def-123",
    "authorization: basic dXNlcjpwdw==": "dXNlcjpwdw",
    "GET /x?key=hunter2&a=b": "hunter2",
    "TOKENHUB_ADMIN_TOKEN=short-one": "short-one",
    "token = 'two words'": "two words",
    '{"api_key": "plain", "id": "openai"}': "plain",
    "{'password': 'pass word'}": "pass word",
    "https://me:hunter2@example.org/v1": "hunter2",
    "AIzaSyA1234567890abcdefghijk": "SyA1234567890",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln": "eyJzdWIiOiIxIn0",
    "digest " + "0f" * 16: "0f" * 16,
}


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_does_not_pass(text):
    shown = redact(text)
    assert SECRETS[text] not in shown
    assert MARK in shown


def test_what_stands_around_a_secret_is_kept():
    assert redact('{"api_key": "x", "id": "openai"}') == '{"api_key": [redacted], "id": "openai"}'
    assert redact("GET /x?key=hunter2&a=b") == "GET /x?key=[redacted]&a=b"
    assert redact("https://me:pw@host/v1") == "https://[redacted]host/v1"


def test_random_base64_does_not_pass():
    source = random.Random(7)
    for length in (30, 32, 48, 64):
        for _ in range(200):
            data = source.randbytes(length)
            for text in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
                assert redact(f"got {text.decode()} here") == f"got {MARK} here", text


@pytest.mark.parametrize(
    "text",
    [
        "model meta-llama/Meta-Llama-3-70B-Instruct-Turbo at provider together-serverless-2",
        '  File "/usr/lib/python3/site/tokenhub/gateway/attempt/Something/else_more", line 12',
        "request r-3f9a0c1b2d4e-1a took 12.5 ms",
        "tokenhub_requests_total counts tokens: 12 in, 5 out",
        "the key of provider openai-compatible-endpoint-in-frankfurt is bound to another host",
        "https://api.example.org:8443/v1/models?limit=1000",
    ],
)
def test_ordinary_text_passes(text):
    assert redact(text) == text
