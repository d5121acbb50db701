from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.gateway.stage import grant

from tokenhub.core.decision import MODES, NO_LIMITS, Limits
from tokenhub.gateway.directives import MAX_DIRECTIVE, take
from tokenhub.gateway.native import native_intent


def user(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("text", "mode", "limits", "rest"),
    [
        ("@@tokenhub mode=cheap\nHi", "cheap", Limits(), "Hi"),
        ("@@tokenhub mode=cheap", "cheap", Limits(), ""),
        (
            "@@tokenhub budget=0.01 latency=5000 min_weight=7\nHi",
            "",
            Limits(max_budget=10_000_000, max_latency_ms=5000, min_weight=7),
            "Hi",
        ),
        (
            "@@tokenhub\nbudget=0.5\nmode=planning\n@@end\nHi",
            "planning",
            Limits(max_budget=5 * 10**8),
            "Hi",
        ),
        ("@@tokenhub\tmin_weight=0\nHi", "", Limits(min_weight=0), "Hi"),
        ("@@tokenhub colour=red\nHi", "", Limits(), "Hi"),
    ],
)
def test_what_is_read_and_removed(text, mode, limits, rest):
    messages = user(text)
    said = take(messages)
    assert (said.mode, said.limits) == (mode, limits)
    assert messages == user(rest)


@pytest.mark.parametrize(
    "text",
    [
        "Hi @@tokenhub mode=cheap",
        " @@tokenhub mode=cheap",
        "Hi\n@@tokenhub mode=cheap",
        "@@tokenhubmode=cheap",
        "@@tokenhub\nmode=cheap\nno end",
        "@@TOKENHUB mode=cheap",
        "",
    ],
)
def test_what_is_no_directive_stays_a_prompt(text):
    messages = user(text)
    assert take(messages) is None
    assert messages == user(text)


@pytest.mark.parametrize(
    "value",
    ["mode=warp", "budget=-1", "budget=0", "budget=nan", "budget=1e9", "latency=0", "latency=soon",
     "latency=99999999999", "min_weight=11", "min_weight=-1", "budget=٣"],
)  # fmt: skip
def test_a_value_that_makes_no_sense_changes_nothing(value):
    said = take(user(f"@@tokenhub {value}\nHi"))
    assert (said.mode, said.limits.max_latency_ms, said.limits.min_weight) == ("", None, None)
    assert said.limits.max_budget in {None, 3 * 10**9}  # Arabic digits are digits to Decimal


def test_only_the_last_message_of_the_user_is_looked_at():
    messages = [
        *user("@@tokenhub mode=cheap\nold"),
        {"role": "assistant", "content": "@@tokenhub mode=planning"},
        *user("new"),
    ]
    before = copy.deepcopy(messages)
    assert take(messages) is None
    assert messages == before


@pytest.mark.parametrize("content", [None, 3, [{"type": "text", "text": "@@tokenhub mode=cheap"}]])
def test_other_shapes_of_content_hold_none(content):
    assert take([{"role": "user", "content": content}]) is None
    assert take([3, None, "user"]) is None


def test_a_block_that_ends_too_late_is_none():
    assert take(user("@@tokenhub\n" + "x" * MAX_DIRECTIVE + "\n@@end\n")) is None


@given(st.text(max_size=300))
def test_no_text_makes_it_fail_or_slow(text):
    for lead in ("", "@@tokenhub ", "@@tokenhub\n"):
        take(user(lead + text))


@pytest.mark.timeout(30)  # a watchdog: it takes a moment, or minutes
def test_a_long_text_takes_no_time():
    for text in ("@@tokenhub\n" + "@@en" * 10**6, "@@tokenhub " + "a=" * 10**6):
        take(user(text))


def intent(text, policy=None, **fields):
    body = {"request": {"messages": user(text)}, "policy": policy or {}}
    return native_intent(json.dumps(body).encode(), grant(**fields))


def test_a_key_that_does_not_allow_them_sends_them_on_as_they_are():
    chat, plain = intent("@@tokenhub mode=cheap budget=0.01\nHi")
    assert (plain.mode, plain.limits) == ("", NO_LIMITS)
    assert b"@@tokenhub mode=cheap" in chat.body
    chat, taken = intent("@@tokenhub mode=cheap budget=0.01\nHi", allow_directives=True)
    assert (taken.mode, taken.limits.max_budget) == ("cheap", 10_000_000)
    assert b"@@tokenhub" not in chat.body


STORED = Limits(max_budget=20_000_000, max_latency_ms=2000, min_weight=0)


@pytest.mark.parametrize(
    ("said", "policy", "hint", "limits"),
    [
        ("budget=100 latency=9000", {}, "", Limits(max_budget=20_000_000, max_latency_ms=2000)),
        ("budget=100", {}, "auto:cheap", Limits(max_budget=20_000_000)),
        ("budget=0.01", {}, "*", Limits(max_budget=10_000_000)),
        ("budget=0.03", {"max_budget_usd": 0}, "", Limits(max_budget=30_000_000)),
        ("budget=0.03", {"max_budget_usd": 0.05}, "", Limits(max_budget=30_000_000)),
        ("budget=0.03", {}, "gpt", Limits(max_budget=30_000_000)),  # has no stored limits
        ("min_weight=3", {}, "", Limits(min_weight=3)),
    ],
)
def test_a_directive_lifts_no_stored_limit(said, policy, hint, limits):
    request = {"messages": user(f"@@tokenhub {said}\nHi"), "model_hint": hint}
    body = json.dumps({"request": request, "policy": policy}).encode()
    assert native_intent(body, grant(allow_directives=True), STORED)[1].limits == limits


budgets = st.none() | st.decimals(0, 100, places=3).map(str)
latencies = st.none() | st.integers(0, 300_000)
weights = st.none() | st.integers(0, 10)
modes = st.sampled_from(["", *MODES])


@given(budgets, latencies, weights, modes, budgets, latencies, weights, modes)
def test_a_directive_only_narrows(
    budget, latency, weight, mode, d_budget, d_latency, d_weight, d_mode
):
    policy = {"mode": mode}
    named = {"max_budget_usd": budget, "max_latency_ms": latency, "min_weight": weight}
    policy |= {
        name: float(value) if isinstance(value, str) else value
        for name, value in named.items()
        if value is not None
    }
    said = {"mode": d_mode, "budget": d_budget, "latency": d_latency, "min_weight": d_weight}
    line = " ".join(f"{name}={value}" for name, value in said.items() if value)
    chat, without = intent("Hi", policy)
    same, found = intent(f"@@tokenhub {line}\nHi", policy, allow_directives=True)
    for name in ("max_budget", "max_latency_ms"):
        before, after = getattr(without.limits, name), getattr(found.limits, name)
        if before:
            assert after is not None
            assert 0 < after <= before
    assert (found.limits.min_weight or 0) >= (without.limits.min_weight or 0)
    assert found.mode == (mode or d_mode)
    assert found.allow_fallback is False
    assert same.model == chat.model
