"""Price maps of other programs: LiteLLM's format."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from tokenhub.core.catalog import Prices
from tokenhub.core.errors import InvalidRequest
from tokenhub.providers.prices import tiered

KINDS = (
    "input",
    "output",
    "cached_read",
    "cached_write",
    "cached_write_1h",
    "reasoning",
    "audio_in",
    "audio_out",
    "image_in",
    "image_out",
    "request",
)


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """One model of an imported price map."""

    model: str
    provider: str
    prices: Prices
    max_context_tokens: int = 0
    max_output_tokens: int = 0


_LITELLM = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached_read",
    "cache_creation_input_token_cost": "cached_write",
    "cache_creation_input_token_cost_above_1hr": "cached_write_1h",
    "output_cost_per_reasoning_token": "reasoning",
    "input_cost_per_audio_token": "audio_in",
    "output_cost_per_audio_token": "audio_out",
    "input_cost_per_image_token": "image_in",
    "output_cost_per_image_token": "image_out",
    "input_cost_per_request": "request",
}
_ABOVE = re.compile(r"(.+)_above_(\d+)k_tokens\Z")


def read_litellm(text: bytes) -> list[Imported]:
    """The models of a price map in LiteLLM's format: {name: {"input_cost_per_token": 3e-06, ...}}.

    Models without a price per input token are left out. Prices are exact: the decimal text in the
    file counts, not its nearest binary fraction.

    Raises:
        InvalidRequest: not that format, or a price that is none; names the model.
    """
    try:
        # float_hook keeps the digits of the text.
        models = msgspec.json.Decoder(dict[str, Any], float_hook=str).decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"The price map is not a JSON object: {error}.", code="invalid_json"
        ) from None
    found = []
    for name, fields in models.items():
        if not isinstance(fields, dict) or name == "sample_spec":
            continue
        if fields.get("input_cost_per_token") is not None:
            found.append(_imported(name, fields))
    if not found:
        raise InvalidRequest(
            "The file holds no price.",
            hint="Expected LiteLLM's format: a model's name → `input_cost_per_token`.",
        )
    return found


def _imported(name: str, fields: dict[str, Any]) -> Imported:
    price: dict[str, Any] = {}
    tiers: dict[str, list[tuple[int, int]]] = {}
    for field, value in fields.items():
        if value is None:
            continue
        if kind := _LITELLM.get(field):
            price[kind] = _per_token(value, name, field)
        elif (above := _ABOVE.match(field)) and (kind := _LITELLM.get(above[1])):
            tiers.setdefault(kind, []).append(
                (int(above[2]) * 1000, _per_token(value, name, field))
            )
    for kind, steps in tiers.items():
        if kind in price:
            price[kind] = [price[kind], *sorted(steps)]
    return Imported(
        model=name,
        provider=str(fields.get("litellm_provider") or ""),
        prices=tiered(price, source="litellm", version=""),
        max_context_tokens=_whole(fields.get("max_input_tokens")),
        max_output_tokens=_whole(fields.get("max_output_tokens")),
    )


def _per_token(value: Any, name: str, field: str) -> int:
    try:
        dollars = Decimal(str(value))
    except InvalidOperation:
        dollars = Decimal(-1)
    if not dollars.is_finite() or not 0 <= dollars <= 1:
        raise InvalidRequest(f"`{field}` of `{name[:100]}` is no price.", param=name[:100])
    return int(dollars.scaleb(15).to_integral_value())


def _whole(value: Any) -> int:
    try:
        return max(0, int(value))
    except (TypeError, ValueError):
        return 0
