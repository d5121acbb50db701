"""What a finished call tells the event stream, member by member and in which order."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tokenhub.core.catalog import EMPTY, Model
from tokenhub.core.decision import Attempt, Candidate, Decision, RouteQuery, encode_attempts
from tokenhub.gateway.call import Call
from tokenhub.gateway.settle import MAX_FINISH, entry_of, publish
from tokenhub.telemetry.events import EventBus
from tokenhub.telemetry.journal import Entry


class Clock:
    def now_ms(self):
        return 1_700_000_000_007


def attempt(number, kind=""):
    return Attempt(number=number, model_id=f"m{number}", provider_id="p", at_ms=1, kind=kind)


def entry(**changes):
    row = {
        "request_id": "r-1", "client_id": "", "session": "", "at_ms": 1000,
        "endpoint": "/v1/chat", "key_id": "k", "asked": "auto", "model_id": "m1",
        "provider_id": "p", "mode": "cheap", "alias": "", "reason": "why", "stream": False,
        "status": 200, "error_class": "", "error": "", "finish_reason": "stop",
        "latency_ms": 12.34567, "ttft_ms": None, "prompt": 3, "completion": 4, "cached_read": 0,
        "cached_write": 0, "reasoning": 0, "counted_by": "provider", "cost": 2500,
        "price_source": "manual", "price_version": "", "attempts": [attempt(1)],
    }  # fmt: skip
    row |= changes
    return Entry(**row, attempts_json=encode_attempts(row["attempts"]))


DECISION = Decision(
    query=RouteQuery(request_id="r-1"),
    chosen=Candidate(model=Model(id="m1", provider_id="p"), propensity=0.25),
    count=1,
    policy="weighted",
    reason="decided",
)


async def told(entry, decision):
    bus = EventBus(Clock())
    reader = bus.subscribe()
    publish(SimpleNamespace(grant=SimpleNamespace(name="ann"), decision=decision), entry, bus)
    blocks = (await reader.take()).decode().split("\n\n")[:-1]
    assert [block.split("\n")[0] for block in blocks] == [
        f"id: {bus.epoch}-{number}" for number in range(1, len(blocks) + 1)
    ]
    return [json.loads(block.split("\ndata: ")[1]) for block in blocks]


async def test_a_plain_answer_is_a_decision_and_a_success():
    decided, succeeded = await told(entry(), DECISION)
    assert list(decided.items()) == [
        ("type", "decision"), ("timestamp", "2023-11-14T22:13:20.007Z"), ("model_id", "m1"),
        ("provider_id", "p"), ("reason", "why"), ("policy", "weighted"), ("candidates", 1),
        ("propensity", 0.25), ("request_id", "r-1"), ("api_key_name", "ann"), ("mode", "cheap"),
    ]  # fmt: skip
    assert list(succeeded.items()) == [
        ("type", "route_success"), ("timestamp", "2023-11-14T22:13:20.007Z"),
        ("request_id", "r-1"), ("api_key_name", "ann"), ("mode", "cheap"), ("latency_ms", 12.346),
        ("model_id", "m1"), ("provider_id", "p"), ("reason", "why"), ("cost_usd", 2.5e-6),
        ("input_tokens", 3), ("output_tokens", 4), ("total_tokens", 7), ("ttft_ms", None),
    ]  # fmt: skip


async def test_each_failed_try_before_the_last_is_an_escalation():
    tries = [attempt(1, "timeout"), attempt(2, "server"), attempt(3)]
    kinds = await told(entry(attempts=tries, model_id="m3"), DECISION)
    assert [one["type"] for one in kinds] == [
        "decision", "escalation", "escalation", "route_success",
    ]  # fmt: skip
    assert (kinds[2]["model_id"], kinds[2]["error_class"]) == ("m2", "server")


async def test_of_a_hedge_whoever_was_given_up_for_a_later_try_is_an_escalation():
    first_won = [attempt(1), attempt(2, "cancelled")]
    kinds = await told(entry(attempts=first_won), DECISION)
    assert [one["type"] for one in kinds] == ["decision", "route_success"]
    second_won = [attempt(1, "cancelled"), attempt(2), attempt(3, "cancelled")]
    kinds = await told(entry(attempts=second_won, model_id="m2", reason="other"), DECISION)
    assert [one["type"] for one in kinds] == ["decision", "escalation", "route_success"]
    assert [one["model_id"] for one in kinds] == ["m1", "m1", "m2"]
    assert [one["reason"] for one in kinds] == [
        "decided", "attempt 1 was slow, the next one was made", "other",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "kinds"), [(402, ["budget", "route_error"]), (400, ["route_error"])]
)
async def test_a_refused_request_was_never_decided_and_has_no_mode(status, kinds):
    refused = entry(
        status=status, error_class="no", error="why not", reason="", mode="", model_id="",
        provider_id="", attempts=[], cost=0,
    )  # fmt: skip
    events = await told(refused, None)
    assert [one["type"] for one in events] == kinds
    assert all("mode" not in one for one in events)
    assert (events[-1]["error_msg"], events[-1]["status"]) == ("why not", status)


def test_of_a_finish_reason_no_more_is_kept_than_a_word():
    request = SimpleNamespace(id="r-1", client_id="", headers={})
    call = Call(request, SimpleNamespace(key_id="k"), "/v1/chat", 1000, 0.0)
    call.finish_reason = "stop" * 1000
    assert len(entry_of(call, EMPTY).finish_reason) == MAX_FINISH
