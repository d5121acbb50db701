"""Money as integers: amounts in nano-dollars (1e-9 $), prices in femto-dollars (1e-15 $) per token.

An amount is rounded once: the femto-dollars of all tokens of an attempt are added exactly, then
rounded to the nearest nano-dollar, halves up. Rounding is monotone, so what is bounded before it
is bounded after it.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from tokenhub.core.errors import InvalidRequest

if TYPE_CHECKING:
    from tokenhub.core.catalog import Prices
    from tokenhub.core.chat import Usage

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""

FEMTO_PER_NANO = 1_000_000

MAX_AMOUNT = 10**17
"""The highest amount anyone may set: $100 million."""

MAX_COST = 10**14
"""The highest cost of one attempt, $100,000; a provider that reports more is cut off here.

Without it one absurd usage report could overflow the 64-bit sums of the books.
"""

MAX_PRICE = 10**15
"""The highest price per token, $1."""

MAX_TOKENS = 10**12
"""The most tokens of a kind that one attempt can be said to have used."""

_HALF = FEMTO_PER_NANO // 2

Number = Decimal | int | float | str
"""How numbers arrive: decimal text, or what a JSON decoder made of it."""


def parse_usd(value: Number, name: str) -> int:
    """A dollar amount as nano-dollars, exact.

    Raises:
        InvalidRequest: not a number, negative, over $100 million, or finer than a nano-dollar;
            names ``name``.
    """
    return _scaled(value, name, exponent=9, most=MAX_AMOUNT, unit="nano-dollar")


def parse_signed_usd(value: Number, name: str) -> int:
    """The same for an amount that may be negative."""
    number = _decimal(value, name)
    amount = parse_usd(-number if number < 0 else number, name)
    return -amount if number < 0 else amount


def parse_per_1k(value: Number, name: str) -> int:
    """Dollars per 1000 tokens as femto-dollars per token, exact.

    Raises:
        InvalidRequest: as ``parse_usd``; the highest price is $1000 per 1000 tokens.
    """
    return _scaled(value, name, exponent=12, most=MAX_PRICE, unit="femto-dollar per token")


def format_usd(nano: int) -> str:
    """Nano-dollars as plain decimal text with at least two places: "0.0025", "-1.50"."""
    whole, rest = divmod(abs(nano), NANO)
    places = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}{whole}.{places}"


def usd(nano: int) -> float:
    """Nano-dollars as the nearest float, for JSON answers only."""
    return nano / NANO


def format_per_1k(femto: int) -> str:
    """Femto-dollars per token as dollars per 1000 tokens, shortest plain decimal text."""
    whole, rest = divmod(femto, 10**12)
    places = f"{rest:012d}".rstrip("0")
    return f"{whole}.{places}" if places else str(whole)


def cost(usage: Usage, prices: Prices) -> int | None:
    """What an attempt cost, in nano-dollars; None when the model has no known price.

    Each kind costs its own price or that of the kind it is part of (see ``Prices``). Kinds that
    overlap beyond their whole (a provider may count a token as cached and as audio) are each
    charged, and what is left of the whole is never less than nothing.
    """
    if usage.tier and prices.variants:
        prices = variant(prices, usage.tier)
    if prices.tiers:
        prices = at_prompt(prices, usage.prompt)
    plain = prices.input
    if plain is None:
        return None
    prompt, completion, reasoning = usage.prompt, usage.completion, usage.reasoning
    read, write = usage.cached_read, usage.cached_write
    if (
        usage.audio_in or usage.image_in or usage.audio_out or usage.image_out
        or usage.cached_write_1h or not (
            0 <= prompt <= MAX_TOKENS and 0 <= completion <= MAX_TOKENS and 0 <= read <= MAX_TOKENS
            and 0 <= write <= MAX_TOKENS and 0 <= reasoning <= MAX_TOKENS
        )
    ):  # fmt: skip
        femto = _prompt_femto(usage, prices, plain) + _completion_femto(usage, prices)
    else:  # nearly always: text of a sane length
        femto = 0
        if read and prices.cached_read is not None:
            femto += read * prices.cached_read
            prompt -= read
        if write and prices.cached_write is not None:
            femto += write * prices.cached_write
            prompt -= write
        if reasoning and prices.reasoning is not None:
            femto += reasoning * prices.reasoning
            completion -= reasoning
        if prompt > 0:
            femto += prompt * plain
        if completion > 0:
            femto += completion * (plain if prices.output is None else prices.output)
    nano = (femto + prices.request + _HALF) // FEMTO_PER_NANO
    return min(nano, MAX_COST)


def at_prompt(prices: Prices, prompt: int) -> Prices:
    """The prices that hold for a request with so many prompt tokens."""
    for start, tier in reversed(prices.tiers):
        if prompt > start:
            return tier
    return prices


def variant(prices: Prices, tier: str) -> Prices:
    """The prices of a service tier; the standard ones where it has none of its own."""
    for name, other in prices.variants:
        if name == tier:
            return other
    return prices


def output_price(prices: Prices) -> int:
    """Femto-dollars per output token, with the fallback to ``input``."""
    return (prices.input or 0) if prices.output is None else prices.output


def sane(tokens: int) -> int:
    """A count as a provider may honestly report it: what is below 0 or beyond reason is cut."""
    return 0 if tokens < 0 else min(tokens, MAX_TOKENS)


def _prompt_femto(usage: Usage, prices: Prices, plain: int) -> int:
    write, hour = usage.cached_write, usage.cached_write_1h
    if hour:
        hour = min(sane(hour), sane(write))
        write = sane(write) - hour
    kinds = (
        (usage.cached_read, prices.cached_read),
        (write, prices.cached_write),
        (hour, prices.cached_write if prices.cached_write_1h is None else prices.cached_write_1h),
        (usage.audio_in, prices.audio_in),
        (usage.image_in, prices.image_in),
    )
    return _mixed(usage.prompt, plain, kinds)


def _completion_femto(usage: Usage, prices: Prices) -> int:
    kinds = (
        (usage.reasoning, prices.reasoning),
        (usage.audio_out, prices.audio_out),
        (usage.image_out, prices.image_out),
    )
    return _mixed(usage.completion, output_price(prices), kinds)


def _mixed(whole: int, plain: int, kinds: tuple[tuple[int, int | None], ...]) -> int:
    femto = 0
    whole = sane(whole)
    for tokens, price in kinds:
        if tokens > 0 and price is not None:
            sure = min(tokens, MAX_TOKENS)
            femto += sure * price
            whole -= sure
    return femto + max(whole, 0) * plain


def _scaled(value: Number, name: str, *, exponent: int, most: int, unit: str) -> int:
    number = _decimal(value, name)
    if number < 0:
        raise InvalidRequest(f"`{name}` must not be negative.", param=name)
    scaled = number.scaleb(exponent)
    if scaled > most:
        highest = format(Decimal(most).scaleb(-exponent).normalize(), "f")
        raise InvalidRequest(f"`{name}` is over the highest value, {highest}.", param=name)
    whole = int(scaled)
    if whole != scaled:
        raise InvalidRequest(f"`{name}` is finer than a {unit}.", param=name)
    return whole


def _decimal(value: Number, name: str) -> Decimal:
    # repr() of a float is the shortest text that means it: the digits the client wrote.
    text = repr(value) if isinstance(value, float) else str(value).strip()
    if not isinstance(value, bool) and len(text) <= 64:
        try:
            number = Decimal(text)
        except InvalidOperation:
            number = Decimal("NaN")
        if number.is_finite() and abs(number.adjusted()) <= 64:
            return number
    raise InvalidRequest(f"`{name}` must be a plain decimal number.", param=name)
