"""The shipped catalogue: complete, dated, and equal to genai-prices' own calculator."""

from __future__ import annotations

import random
import subprocess
import sys
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices.data import providers

from tokenhub.core.chat import Usage
from tokenhub.core.money import cost
from tokenhub.providers.prices import PriceBook

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 11, 23, 20, tzinfo=UTC)


class At:
    """A clock at one moment."""

    def __init__(self, moment=NOW):
        self.moment = moment

    def now_ms(self):
        return int(self.moment.timestamp() * 1000)

    def monotonic(self):
        raise AssertionError

    def new_id(self):
        raise AssertionError


@pytest.fixture(scope="module")
def book():
    return PriceBook(At())


def test_the_catalogue_is_what_the_installed_package_exports():
    tool = ROOT / "tools" / "export_prices.py"
    done = subprocess.run([sys.executable, tool, "--check"], check=False, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_every_row_has_source_and_date(book):
    listed = list(book.listed())
    assert len(listed) > 2000
    assert {(row.prices.source, row.prices.version) for row in listed} == {
        ("catalogue", book.version)
    }
    assert book.source.startswith("genai-prices ")
    assert {row.provider for row in book.listed("anthropic")} == {"anthropic"}


def test_well_known_models(book):
    prices = book.find("openai", "gpt-4o")
    assert (prices.input, prices.output, prices.cached_read) == (
        2_500_000_000,
        10_000_000_000,
        1_250_000_000,
    )
    assert dict(prices.variants)["batch"].input == 1_250_000_000
    sonnet = book.find("anthropic", "claude-sonnet-4-5-20250929")
    assert sonnet.cached_write_1h == 2 * sonnet.input
    [(start, dearer)] = sonnet.tiers
    assert (start, dearer.input) == (200_000, 2 * sonnet.input)
    assert book.find("anthropic", "CLAUDE-SONNET-4-5") == sonnet


def test_what_is_not_known_has_no_price(book):
    assert book.find("openai", "my-own-model") is None
    assert book.find("vllm", "gpt-4o") is None
    assert book.find("openai", "whisper-1") is None  # priced by the minute
    assert book.find("demo", "demo") is None


def test_the_base_url_says_who_really_bills(book):
    cheap = book.find("vllm", "deepseek-chat", "https://api.deepseek.com/v1")
    assert cheap.input == 270_000_000  # the dearest hours of its day
    assert book.find("vllm", "gpt-4o", "http://127.0.0.1:8000") is None
    assert book.find("openai", "gpt-4o", "http://127.0.0.1:8000") == book.find("openai", "gpt-4o")


def test_compact_dates_are_understood(book):
    dashed = book.find("openai", "gpt-4o-2024-08-06")
    assert dashed is not None
    assert book.find("openai", "gpt-4o-20240806") == dashed


def test_a_price_changes_on_its_day():
    before = PriceBook(At(datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)))
    after = PriceBook(At(datetime(2026, 12, 1, tzinfo=UTC)))
    where = "vllm", "gemini-4-argon", "https://generativelanguage.googleapis.com/v1beta/openai"
    assert before.find(*where).input != after.find(*where).input


def theirs(usage, model, provider, context):
    """What genai-prices' calculator says, as nano-dollars."""
    reported = TheirUsage(
        input_tokens=usage.prompt,
        output_tokens=usage.completion,
        cache_read_tokens=usage.cached_read,
        cache_write_tokens=usage.cached_write,
        cache_write_1h_tokens=usage.cached_write_1h,
        input_audio_tokens=usage.audio_in,
        output_audio_tokens=usage.audio_out,
        input_image_tokens=usage.image_in,
        output_image_tokens=usage.image_out,
        output_reasoning_tokens=usage.reasoning,
        # Explicitly none: we take cached and audio tokens for disjoint.
        cache_audio_read_tokens=0,
        cache_image_read_tokens=0,
    )
    found = model.calc_price(reported, provider, genai_request_timestamp=NOW, price_context=context)
    return int((found.total_price * 10**9).to_integral_value(ROUND_HALF_UP))


def random_usage(draw):
    prompt = draw.choice([draw.randrange(3000), draw.randrange(150_000, 400_000)])
    read = draw.randrange(prompt // 3 + 1)
    write = draw.randrange(prompt // 3 + 1)
    audio = draw.choice([0, draw.randrange(prompt // 6 + 1)])
    completion = draw.randrange(8000)
    return Usage(
        prompt=prompt,
        cached_read=read,
        cached_write=write,
        cached_write_1h=draw.choice([0, write // 2, write]),
        audio_in=audio,
        image_in=draw.choice([0, draw.randrange(prompt // 6 + 1)]),
        completion=completion,
        reasoning=draw.choice([0, completion // 3]),
        audio_out=draw.choice([0, completion // 3]),
        image_out=draw.choice([0, completion // 4]),
    )


def comparable():
    """Catalogue models, with their provider, whose price does not depend on the hour."""
    for provider in providers:
        for model in provider.models:
            hourly = isinstance(model.prices, list) and any(
                hasattr(one.constraint, "start_time") for one in model.prices
            )
            price = model.get_prices(NOW)
            if price.input_mtok is not None and price.output_mtok is not None and not hourly:
                yield provider, model, price


def contexts(model):
    """Service tier → what genai-prices must be told for it."""
    found = {"": None}
    for variant in model.price_variants or ():
        found.setdefault(next(iter(variant.when.values())), variant.when)
    return found


def fine(price):
    """Whether a price is finer than a femto-dollar per token (a third of a cent per million)."""
    return any(isinstance(one, Decimal) and one.scaleb(9) % 1 for one in vars(price).values())


def test_costs_agree_with_the_package_to_the_nano_dollar(book):
    draw = random.Random("invoice")
    pairs = list(comparable())
    well_known = [pair for pair in pairs if pair[0].id in {"openai", "anthropic", "google", "x-ai"}]
    listed = {(row.provider, row.model): row.prices for row in book.listed()}
    compared, rounded, over_tier, varied = 0, 0, 0, 0
    for provider, model, price in draw.sample(well_known, 60) + draw.sample(pairs, 40):
        ours = listed[provider.id, model.id]
        told = contexts(model)
        for _ in range(5):
            usage = random_usage(draw)
            usage.tier = draw.choice(["", *(name for name, _ in ours.variants)])
            expected = theirs(usage, model, provider, told[usage.tier])
            found = cost(usage, ours)
            # A price finer than ours can hold is rounded by at most half a femto-dollar.
            slack = 1 if fine(price) else 0
            assert abs(found - expected) <= slack, (provider.id, model.id, usage)
            compared += 1
            rounded += slack
            over_tier += bool(ours.tiers) and usage.prompt > ours.tiers[0][0]
            varied += bool(usage.tier)
    assert compared == 500
    assert rounded < 25
    assert over_tier > 10
    assert varied > 50
