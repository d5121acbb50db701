from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhub.core.errors import FailureClass as Kind
from tokenhub.core.errors import ProviderError
from tokenhub.providers.failures import MAX_MESSAGE, classify, classify_event, retry_after, shown

NOW = 1_795_000_000_000  # in November 2026


def kind_of(status, body, headers=None):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return classify(status, headers or {}, raw, now_ms=NOW).kind


def openai(message, code=None, kind="invalid_request_error"):
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic(message, kind="invalid_request_error"):
    return {"type": "error", "error": {"type": kind, "message": message}}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, openai("Rate limit reached", "rate_limit_exceeded"), Kind.RATE_LIMITED),
        (429, openai("You exceeded your current quota", "insufficient_quota"), Kind.QUOTA),
        (429, anthropic("slow down", "rate_limit_error"), Kind.RATE_LIMITED),
        (400, anthropic("Your credit balance is too low to access the API"), Kind.QUOTA),
        (402, {"error": {"message": "Insufficient credits", "code": 402}}, Kind.QUOTA),
        (402, b"", Kind.QUOTA),
        (403, anthropic("billing", "billing_error"), Kind.QUOTA),
        (401, openai("Incorrect API key provided: sk-proj-abc", "invalid_api_key"), Kind.AUTH),
        (403, anthropic("no", "permission_error"), Kind.AUTH),
        (401, b"<html>", Kind.AUTH),
        (529, anthropic("Overloaded", "overloaded_error"), Kind.OVERLOADED),
        (503, b"upstream connect error", Kind.OVERLOADED),
        (500, openai("The server had an error", kind="server_error"), Kind.SERVER),
        (502, b"<html>Bad gateway</html>", Kind.SERVER),
        (504, b"", Kind.SERVER),
        (
            400,
            openai("This model's maximum context length is 8192 tokens", "context_length_exceeded"),
            Kind.CONTEXT,
        ),
        (400, anthropic("prompt is too long: 210000 tokens > 200000 maximum"), Kind.CONTEXT),
        (
            400,
            anthropic("input length and `max_tokens` exceed context limit: 1 + 2 > 3, "
                      "decrease input length"),
            Kind.CONTEXT,
        ),
        (
            400,
            {"error": {"code": 400, "message": "the request exceeds the available context size",
                       "type": "exceed_context_size_error"}},
            Kind.CONTEXT,
        ),
        (413, anthropic("Request exceeds the maximum size", "request_too_large"), Kind.CONTEXT),
        (413, b"<html>413</html>", Kind.CONTEXT),
        (400, openai("max_tokens is too large: 9. This model supports at most 8"), Kind.CLIENT),
        (400, openai("The response was filtered", "content_filter"), Kind.CONTENT_FILTER),
        (400, openai("no", "content_policy_violation"), Kind.CONTENT_FILTER),
        (404, openai("The model does not exist", "model_not_found"), Kind.CLIENT),
        (422, {"detail": [{"loc": ["body", "stop"], "msg": "bad"}]}, Kind.CLIENT),
        (422, b"Failed to deserialize the JSON body", Kind.CLIENT),
        (400, {"object": "error", "message": "bad temperature", "code": 400}, Kind.CLIENT),
        (404, b"<html>Not Found</html>", Kind.MISDIRECTED),
        (400, b"", Kind.MISDIRECTED),
        (400, b"\xff\xfe\x00", Kind.MISDIRECTED),
        (408, b"", Kind.TIMEOUT),
        (301, b"", Kind.MISDIRECTED),
        (204, b"", Kind.MISDIRECTED),
    ],
)  # fmt: skip
def test_classes(status, body, kind):
    assert kind_of(status, body) == kind


@pytest.mark.parametrize("words", ["billing", "context_length_exceeded", "content_filter"])
def test_a_prompt_echoed_beside_the_error_does_not_choose_the_class(words):
    body = openai("Invalid value for temperature") | {"request": {"messages": words}}
    assert kind_of(400, body) == Kind.CLIENT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({b"retry-after": b"7"}, 7),
        ({b"retry-after": b"0"}, 0),
        ({b"retry-after": b"1.5"}, 1.5),
        ({b"retry-after": b" 3 "}, 3),
        ({b"retry-after-ms": b"250", b"retry-after": b"9"}, 0.25),
        ({b"retry-after": b"-3"}, None),
        ({b"retry-after": b"soon"}, None),
        ({b"retry-after": b"nan"}, None),
        ({b"retry-after": b"inf"}, None),
        ({b"retry-after": b"9" * 15}, 86_400),
        ({b"retry-after": b"9" * 5000}, None),
        ({b"retry-after": "٣".encode()}, None),
        ({b"retry-after": b"Wed, 99 Nov 2026 10:27:10 GMT"}, None),
        ({b"retry-after": b"Wed, 18 Nov 2020 10:27:10 GMT"}, 0),
        (
            {
                b"retry-after": b"Wed, 18 Nov 2026 12:00:30 GMT",
                b"date": b"Wed, 18 Nov 2026 12:00:00 GMT",
            },
            30,
        ),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers, now_ms=NOW) == seconds


def test_a_date_without_the_answers_own_counts_from_our_clock():
    found = retry_after({b"retry-after": b"Thu, 01 Jan 1970 00:01:40 GMT"}, now_ms=60_000)
    assert found == 40


def test_the_error_carries_status_and_wait():
    error = classify(429, {b"retry-after": b"2"}, b"{}", now_ms=NOW)
    assert (error.status, error.retry_after, error.sent) == (429, 2, True)


SECRETS = [
    "sk-proj-abc123DEF456ghi789",
    "sk-ant-api03-AbCdEf",
    "Bearer abcdef.123",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
    "AKIAIOSFODNN7EXAMPLE",
    "AIzaSyD-1234567890abcdefghij",
    "hf_abcdefghij",
    "gsk_abcdefghij",
    "tokenhub_0123456789abcdef",
    "0123456789abcdef0123456789abcdef01234567",
    "://user:hunter2@",
    "sk-proj-********************Xy9z",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_redacted(secret):
    body = openai(f"Bad value {secret} in the request.")
    message = classify(400, {}, json.dumps(body).encode(), now_ms=NOW).message
    assert secret not in message
    assert message.startswith("Bad value ")
    assert "[redacted]" in message


def test_what_the_provider_blames_in_the_request_is_kept():
    body = openai("Unsupported value", "unsupported_value")
    body["error"]["param"] = "messages[0].role"
    error = classify(400, {}, json.dumps(body).encode(), now_ms=NOW)
    assert (error.param, error.code) == ("messages[0].role", "unsupported_value")


def test_a_secret_in_the_details_is_redacted():
    body = openai("no", "sk-proj-abcdefgh12345678")
    body["error"]["param"] = "key sk-proj-abcdefgh12345678"
    error = classify(400, {}, json.dumps(body).encode(), now_ms=NOW)
    assert "abcdefgh" not in error.param + error.code


@pytest.mark.parametrize("status", [401, 402, 429, 500, 503])
def test_details_about_anything_but_the_request_are_not(status):
    body = openai("no", "acct_17")
    body["error"]["param"] = "organization"
    error = classify(status, {}, json.dumps(body).encode(), now_ms=NOW)
    assert (error.param, error.code) == ("", "")


@pytest.mark.parametrize("status", [401, 403, 402, 429])
def test_of_the_gateways_own_account_nothing_is_told(status):
    body = openai("Key of org-secretname is bad")
    assert "org-" not in classify(status, {}, json.dumps(body).encode(), now_ms=NOW).message


def test_ordinary_words_stay():
    words = "`messages.0.content.3.image.source.base64.data`: could not process image (claude-4)"
    assert shown(words) == words


@given(st.text(max_size=3000))
def test_what_is_shown_is_one_short_line(text):
    line = shown(text)
    assert len(line) <= MAX_MESSAGE
    assert not any(char in line for char in "\r\n\t\x00\x1b\x85\u2028")


@given(st.integers(201, 599), st.binary(max_size=300))
def test_any_body_is_classified(status, body):
    error = classify(status, {}, body, now_ms=NOW)
    assert isinstance(error, ProviderError)
    assert error.message


members = st.sampled_from(["error", "message", "type", "code", "detail"])
shapes = st.recursive(
    st.none() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(members, inner),
)


@given(shapes)
def test_any_shape_of_json_is_classified(value):
    raw = json.dumps(value).encode()
    assert classify(400, {}, raw, now_ms=NOW).status == 400
    assert classify_event(raw).message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "overloaded_error"}, Kind.OVERLOADED),
        ({"type": "rate_limit_error"}, Kind.RATE_LIMITED),
        ({"type": "api_error"}, Kind.SERVER),
        ({"code": 429}, Kind.RATE_LIMITED),
        ({"code": 503}, Kind.OVERLOADED),
        ({"code": "context_length_exceeded"}, Kind.CONTEXT),
        ({"type": "invalid_request_error", "message": "no"}, Kind.CLIENT),
        ({"code": "content_filter"}, Kind.CONTENT_FILTER),
        ({"type": "billing_error"}, Kind.QUOTA),
        ({}, Kind.SERVER),
    ],
)
def test_events_imply_a_status(error, kind):
    assert classify_event(json.dumps({"error": error}).encode()).kind == kind
