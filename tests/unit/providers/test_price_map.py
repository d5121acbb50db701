"""LiteLLM's price map: read exactly, refused with the model's name."""

from __future__ import annotations

import json

import pytest

from tokenhub.core.errors import InvalidRequest
from tokenhub.providers.price_map import read_litellm

MAP = b"""{
  "sample_spec": {"input_cost_per_token": 0.0},
  "claude-x": {
    "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05,
    "cache_read_input_token_cost": 3e-07, "cache_creation_input_token_cost": 3.75e-06,
    "cache_creation_input_token_cost_above_1hr": 6e-06,
    "input_cost_per_token_above_200k_tokens": 6e-06,
    "output_cost_per_token_above_200k_tokens": 2.25e-05,
    "litellm_provider": "anthropic", "max_input_tokens": 200000, "max_output_tokens": "64000",
    "mode": "chat", "supports_vision": true
  },
  "tiny": {"input_cost_per_token": 7.5e-08, "output_cost_per_token": 0, "max_tokens": null},
  "dall-e": {"output_cost_per_image": 0.04}
}"""


def test_every_digit_counts():
    claude, tiny = read_litellm(MAP)
    assert (claude.model, claude.provider) == ("claude-x", "anthropic")
    assert (claude.max_context_tokens, claude.max_output_tokens) == (200_000, 64_000)
    prices = claude.prices
    assert prices.input == 3_000_000_000
    assert prices.cached_write_1h == 6_000_000_000
    assert prices.source == "litellm"
    [(start, dearer)] = prices.tiers
    assert (start, dearer.input, dearer.output) == (200_000, 6_000_000_000, 22_500_000_000)
    assert dearer.cached_read == prices.cached_read
    assert (tiny.prices.input, tiny.prices.output) == (75_000_000, 0)


@pytest.mark.parametrize(
    "price", [-1e-06, "free", "NaN", "Infinity", 2, [], {"a": 1}, True, "1e999999999"]
)
def test_a_price_that_is_none_is_refused_with_the_model(price):
    text = json.dumps({"m-1": {"input_cost_per_token": price}}).encode()
    with pytest.raises(InvalidRequest) as refused:
        read_litellm(text)
    assert "`m-1`" in refused.value.message


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"null", b"\xff", b"[" * 5000, b"{}", b'{"a": 1}']
)
def test_what_is_no_price_map_is_refused(text):
    with pytest.raises(InvalidRequest):
        read_litellm(text)
