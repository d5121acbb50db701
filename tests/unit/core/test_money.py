"""Amounts, prices and costs: exact, and nothing but numbers goes in."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhub.core.catalog import Prices
from tokenhub.core.chat import Usage
from tokenhub.core.errors import InvalidRequest
from tokenhub.core.money import (
    MAX_AMOUNT,
    cost,
    format_per_1k,
    format_usd,
    parse_per_1k,
    parse_signed_usd,
    parse_usd,
    usd,
)


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("50", 50_000_000_000),
        (50.0, 50_000_000_000),
        (0.1, 100_000_000),
        (Decimal("0.30"), 300_000_000),
        ("0.000000001", 1),
        ("1e-9", 1),
        (" 2.5 ", 2_500_000_000),
        (7, 7_000_000_000),
        (1e8, 10**17),
    ],
)
def test_dollars_are_read_exactly(text, nano):
    assert parse_usd(text, "x") == nano


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("-1", "negative"),
        (-0.5, "negative"),
        ("0.0000000001", "finer"),
        ("100000000.01", "highest value, 100000000"),
        ("1e400000000", "plain decimal"),
        ("1e-400000000", "plain decimal"),
        ("NaN", "plain decimal"),
        (float("nan"), "plain decimal"),
        (float("inf"), "plain decimal"),
        ("", "plain decimal"),
        ("1,5", "plain decimal"),
        ("$3", "plain decimal"),
        (True, "plain decimal"),
        ("9" * 65, "plain decimal"),
    ],
)
def test_what_is_no_amount_is_refused_with_its_name(value, why):
    with pytest.raises(InvalidRequest) as refused:
        parse_usd(value, "monthly_budget_usd")
    assert why in refused.value.message
    assert "`monthly_budget_usd`" in refused.value.message
    assert refused.value.param == "monthly_budget_usd"


def test_a_correction_may_be_negative():
    assert parse_signed_usd("-1.5", "x") == -1_500_000_000
    assert parse_signed_usd("1.5", "x") == 1_500_000_000
    with pytest.raises(InvalidRequest):
        parse_signed_usd("-1e9", "x")


@given(st.integers(0, MAX_AMOUNT))
def test_written_and_read_again(nano):
    text = format_usd(nano)
    assert parse_usd(text, "x") == nano
    assert Decimal(text) == Decimal(nano).scaleb(-9)
    assert format_usd(-nano) == ("-" if nano else "") + text
    assert usd(nano) == float(Decimal(text))


def test_prices_per_thousand():
    # $0.075 per million tokens.
    assert parse_per_1k("0.000075", "x") == 75_000_000
    assert format_per_1k(75_000_000) == "0.000075"
    assert format_per_1k(0) == "0"
    assert parse_per_1k("1000", "x") == 10**15
    with pytest.raises(InvalidRequest):
        parse_per_1k("1000.1", "x")


FULL = Prices(
    input=1_000_000,
    output=10_000_000,
    cached_read=100_000,
    cached_write=2_000_000,
    cached_write_1h=3_000_000,
    reasoning=20_000_000,
    audio_in=5_000_000,
    audio_out=50_000_000,
    image_in=4_000_000,
    image_out=40_000_000,
    request=7_000_000,
)
EVERYTHING = Usage(
    prompt=1000,
    cached_read=100,
    cached_write=50,
    cached_write_1h=20,
    audio_in=10,
    image_in=30,
    completion=500,
    reasoning=200,
    audio_out=20,
    image_out=30,
)


def test_every_kind_at_its_own_price():
    prompt = 100 * 0.1 + 30 * 2 + 20 * 3 + 10 * 5 + 30 * 4 + (1000 - 190) * 1
    completion = 200 * 20 + 20 * 50 + 30 * 40 + (500 - 250) * 10
    assert cost(EVERYTHING, FULL) == prompt + completion + 7


def test_kinds_without_a_price_cost_as_what_they_are_part_of():
    plain = Prices(input=1_000_000, output=10_000_000)
    assert cost(EVERYTHING, plain) == 1000 + 5000
    hourless = Prices(input=1_000_000, output=0, cached_write=2_000_000)
    assert cost(Usage(prompt=100, cached_write=100, cached_write_1h=60), hourless) == 200
    assert cost(Usage(prompt=3, completion=4), Prices(input=1_000_000)) == 7


def test_unknown_is_not_free_and_free_is_not_unknown():
    assert cost(EVERYTHING, Prices()) is None
    assert cost(EVERYTHING, Prices(output=5)) is None
    assert cost(EVERYTHING, Prices(input=0, output=0)) == 0


@pytest.mark.parametrize(
    ("prompt", "expected"), [(200, 200), (201, 402), (1000, 2000), (1001, 3003)]
)
def test_over_a_context_tier_all_tokens_cost_more(prompt, expected):
    tiers = ((200, Prices(input=2_000_000, output=0)), (1000, Prices(input=3_000_000, output=0)))
    assert cost(Usage(prompt=prompt), Prices(input=1_000_000, output=0, tiers=tiers)) == expected


def test_a_service_tier_has_its_own_prices():
    prices = Prices(input=1_000_000, variants=(("flex", Prices(input=500_000)),))
    assert cost(Usage(prompt=10), prices) == 10
    assert cost(Usage(prompt=10, tier="flex"), prices) == 5
    assert cost(Usage(prompt=10, tier="unheard-of"), prices) == 10


def test_one_rounding_to_the_nearest_halves_up():
    third = Prices(input=333_333, output=166_667)
    assert cost(Usage(prompt=1), third) == 0
    assert cost(Usage(prompt=1, completion=1), third) == 1  # exactly half a nano-dollar
    assert cost(Usage(prompt=3), third) == 1


def test_overlapping_kinds_never_make_a_negative_rest():
    # A provider that counts the same tokens as cached and as audio.
    prices = Prices(input=1_000_000, output=0, cached_read=500_000, audio_in=2_000_000)
    assert cost(Usage(prompt=10, cached_read=10, audio_in=10), prices) == 25


tokens = st.integers(0, 10**7)
rates = st.integers(0, 10**12)


@given(tokens, tokens, tokens, tokens, rates, rates, rates)
def test_more_tokens_never_cost_less(prompt, completion, more, cached, input_, output, read):
    prices = Prices(input=input_, output=output, cached_read=min(read, input_))
    usage = Usage(prompt=prompt, completion=completion, cached_read=min(cached, prompt))
    larger = Usage(
        prompt=prompt + more, completion=completion + more, cached_read=usage.cached_read
    )
    found = cost(usage, prices)
    assert found is not None
    assert 0 <= found <= cost(larger, prices)


@given(st.integers(), st.integers(), st.integers(), rates)
def test_no_report_makes_a_negative_or_endless_cost(prompt, completion, cached, rate):
    usage = Usage(prompt=prompt, completion=completion, cached_read=cached, reasoning=-prompt)
    prices = Prices(input=rate, output=rate, cached_read=rate // 2, reasoning=rate)
    assert 0 <= cost(usage, prices) <= 10**14
