from __future__ import annotations

import json

import msgspec
import pytest
from tests.unit.gateway.stage import DONE, HELLO, Client, grant, stage, whole, word

from tokenhub.core.errors import InvalidRequest, Unprocessable
from tokenhub.gateway.native import native_intent
from tokenhub.providers.upstream import Answer


def read(body, **fields):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return native_intent(raw, grant(**fields))


def envelope(request=None, **members):
    return {"request": {"messages": HELLO} | (request or {})} | members


def test_a_full_envelope():
    chat, found = read(
        envelope(
            {
                "id": "mine", "model_hint": "auto:cheap", "estimated_input_tokens": 700,
                "parameters": {"temperature": 0, "max_tokens": 9}, "meta": {"team": "x"},
            },
            policy={
                "mode": "planning", "max_budget_usd": 0.02, "max_latency_ms": 0, "min_weight": 3,
                "allow_fallback": True,
            },
            output_format={"type": "json"},
            capabilities={"anything": True},
        )
    )  # fmt: skip
    assert found.mode == "planning"
    assert found.limits.max_budget == 20_000_000
    assert found.limits.max_latency_ms == 0  # said, unlike a member left out
    assert found.limits.min_weight == 3
    assert found.allow_fallback
    assert found.input_tokens == 700
    assert chat.model == "auto:cheap"
    assert chat.max_tokens == 9
    sent = json.loads(chat.body)
    assert sent == {
        "model": "auto:cheap", "messages": HELLO, "temperature": 0, "max_tokens": 9
    }  # fmt: skip


def test_what_is_left_out_is_left_to_the_defaults():
    _, found = read(envelope())
    assert (found.mode, found.allow_fallback, found.input_tokens) == ("", False, 0)
    assert found.limits.max_budget is found.limits.max_latency_ms is found.limits.min_weight is None


BAD = [
    (b"", None),
    (b"[]", None),
    (b"{", None),
    ({}, "request"),
    ({"request": {}}, "messages"),
    ({"request": 3}, "request"),
    (envelope({"messages": []}), "messages"),
    (envelope({"messages": "hi"}), "messages"),
    (envelope({"colour": 1}), "colour"),
    (envelope({"id": 3}), "id"),
    (envelope({"model_hint": 3}), "model_hint"),
    (envelope({"model_hint": "x" * 300}), "model"),
    (envelope({"estimated_input_tokens": -1}), "estimated_input_tokens"),
    (envelope({"estimated_input_tokens": "many"}), "estimated_input_tokens"),
    (envelope({"parameters": []}), "parameters"),
    (envelope({"parameters": {"model": "x"}}), "parameters"),
    (envelope({"parameters": {"messages": []}}), "parameters"),
    (envelope({"parameters": {"stream": True}}), "parameters"),
    (envelope({"parameters": {"max_tokens": 0}}), "max_tokens"),
    (envelope({"parameters": {"n": 0}}), "n"),
    (envelope({"stream": "yes"}), "stream"),
    (envelope({"meta": 3}), "meta"),
    (envelope(colour=1), "colour"),
    (envelope(policy=3), "policy"),
    (envelope(policy={"mode": "warp"}), "mode"),
    (envelope(policy={"colour": 1}), "colour"),
    (envelope(policy={"max_budget_usd": -1}), "max_budget_usd"),
    (envelope(policy={"max_budget_usd": 101}), "max_budget_usd"),
    (envelope(policy={"max_budget_usd": "NaN"}), "max_budget_usd"),
    (envelope(policy={"max_budget_usd": True}), "max_budget_usd"),
    (envelope(policy={"max_latency_ms": -1}), "max_latency_ms"),
    (envelope(policy={"max_latency_ms": 300_001}), "max_latency_ms"),
    (envelope(policy={"max_latency_ms": 1.5}), "max_latency_ms"),
    (envelope(policy={"min_weight": -1}), "min_weight"),
    (envelope(policy={"min_weight": 11}), "min_weight"),
    (envelope(policy={"allow_fallback": "yes"}), "allow_fallback"),
    (envelope(output_format={"type": "pdf"}), "type"),
    (envelope(output_format={"type": "json", "colour": 1}), "colour"),
    (envelope(output_format={"max_tokens": "x"}), "max_tokens"),
    (envelope(output_format={"schema": {"type": "nonsense"}}), "output_format.schema"),
    (envelope(output_schema=3), "output_schema"),
    (envelope({"output_schema": "x"}), "request.output_schema"),
    (envelope({"stream": True}, output_schema={}), "stream"),
    (envelope({"stream": True}, output_format={"type": "text"}), "stream"),
]


@pytest.mark.parametrize(("body", "param"), BAD)
def test_every_bad_member_is_named(body, param):
    with pytest.raises(InvalidRequest) as caught:
        read(body)
    error = caught.value
    assert error.status == 400
    if param is not None:
        assert param in f"{error.param} {error.message}"
        assert error.param


def test_a_member_that_appears_twice_is_not_read_in_two_ways():
    twice = b'{"request":{"messages":[{}]},"request":{"messages":[{}]}}'
    with pytest.raises(InvalidRequest):
        read(twice)


async def native(it, **members):
    return await it.pipeline.native(Client(envelope({"model_hint": "a"}, **members)), grant())


async def test_the_answer_is_wrapped(tmp_path):
    async with stage(tmp_path, {"a": [whole("Hi")]}) as it:
        answer = await native(it)
        body = msgspec.json.decode(answer.body)
        assert body["negotiated_model"] == "a"
        assert body["routing_reason"] == "routed-hint-exact"
        assert body["estimated_cost_usd"] == pytest.approx(0.000012)
        assert body["response"]["choices"][0]["message"]["content"] == "Hi"
        assert dict(answer.headers)[b"x-tokenhub-model"] == b"a"


async def test_a_format_changes_the_text(tmp_path):
    async with stage(tmp_path, {"a": [whole("<think>x</think>**Hi**")]}) as it:
        answer = await native(it, output_format={"type": "text", "strip_think": True})
        body = msgspec.json.decode(answer.body)
        assert body["response"]["choices"][0]["message"]["content"] == "Hi"


async def test_an_answer_that_does_not_fit_is_a_422_and_is_paid(tmp_path):
    schema = {"type": "object", "required": ["name"]}
    async with stage(tmp_path, {"a": [whole('{"nom":"Ada"}')]}) as it:
        with pytest.raises(Unprocessable) as caught:
            await native(it, output_schema=schema)
        assert caught.value.extra["faults"][0]["rule"] == "required"
        [call] = it.calls
        assert call.status == 422
        assert call.cost > 0


async def test_a_stream_goes_out_as_it_is(tmp_path):
    events = word("Hi", "stop") + DONE
    async with stage(tmp_path, {"a": [Answer(200, {}, events)]}) as it:
        client = Client(envelope({"model_hint": "a", "stream": True}))
        assert await it.pipeline.native(client, grant()) is None
        assert client.text == events
