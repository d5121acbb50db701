from __future__ import annotations

import pytest

from tokenhubctl import cells


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "free"), (0.0, "free"), ("0", "free"), (None, "unknown"), ("", "unknown"),
        (0.0025, "$0.0025"), (50.0, "$50.00"), (1.5, "$1.50"), (12.34567, "$12.3457"),
        (0.000000123, "$0.000000123"), (0.00001234567, "$0.00001235"), ("0.0005", "$0.0005"),
        (1234567.891, "$1234567.891"), (-1.25, "-$1.25"), (float("nan"), "unknown"),
        (True, "unknown"), ("x", "unknown"), ({}, "unknown"),
    ],
)  # fmt: skip
def test_cost(value, shown):
    assert cells.cost(value) == shown


def test_a_price_nobody_knows_is_unpriced_and_never_free():
    assert cells.price(None) == "unpriced"
    assert cells.price("") == "unpriced"
    assert cells.price(0) == "free"


def test_a_budget_of_nothing_is_none():
    assert cells.budget(0) == cells.budget(None) == "none"
    assert cells.budget(50) == "$50.00"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0ms"), (12.4, "12ms"), (999.4, "999ms"), (999.6, "1.0s"), (1500, "1.5s")],
)
def test_duration(value, shown):
    assert cells.duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("2026-03-01T10:20:30Z", "2026-03-01 10:20:30"),
        ("2026-03-01T10:20:30.123456789Z", "2026-03-01 10:20:30"),
        ("2026-03-01T12:20:30+02:00", "2026-03-01 10:20:30"),
        (1_772_360_430_000, "2026-03-01 10:20:30"),
        ("0001-01-01T00:00:00Z", "-"), (None, "-"), ("", "-"), (0, "-"),
        ("yesterday", "yesterday"), (10**20, str(10**20)),
    ],
)  # fmt: skip
def test_time(value, shown, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    assert cells.time(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (5, "5"),
        (5.0, "5"),
        (2.5, "2.50"),
        ("x", "x"),
        (True, "yes"),
        (float("inf"), "inf"),
    ],
)
def test_number(value, shown):
    assert cells.number(value) == shown


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("started_ms", 1_772_360_430_000, "2026-03-01 10:20:30"),
        ("latency_ms", 1500, "1.5s"),
        ("ttft_ms", None, "-"),
        ("estimated_cost_usd", 0, "free"),
        ("cost_usd", None, "unknown"),
        ("limit_usd", None, "-"),
        ("spent_usd", 0, "$0.00"),
        ("seed", 1_772_360_430_000, "1772360430000"),
    ],
)
def test_members_by_their_name(name, value, shown, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    assert cells.named(name, value) == shown


def test_only_a_literal_false_is_no():
    assert [cells.yes_no(value) for value in (False, True, None, 0)] == ["no", "yes", "yes", "yes"]


def test_lists_and_objects():
    assert cells.text(["chat", "plan"]) == "chat,plan"
    assert cells.text([]) == "-"
    assert cells.text({"b": 1, "a": [2]}) == '{"a": [2], "b": 1}'
