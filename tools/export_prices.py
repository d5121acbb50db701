"""Export the price catalogue of the genai-prices package to src/tokenhub/providers/data.

    .venv/bin/python tools/export_prices.py [--date YYYY-MM-DD] [--check]

Prices become integers (femto-dollars per token), match clauses become short lists; both are read
by tokenhub/providers/prices.py. The date is kept while the content stays the same.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from decimal import ROUND_HALF_UP, Decimal
from importlib import metadata
from pathlib import Path
from typing import Any

from genai_prices import types as genai
from genai_prices.data import providers

TARGET = Path(__file__).parent.parent / "src/tokenhub/providers/data/prices.json"

Json = dict[str, Any]

# The catalogue's name of a price → ours, and the decimal exponent that makes it femto-dollars.
KINDS = {
    "input_mtok": ("input", 9),
    "output_mtok": ("output", 9),
    "cache_read_mtok": ("cached_read", 9),
    "cache_write_mtok": ("cached_write", 9),
    "cache_write_1h_mtok": ("cached_write_1h", 9),
    "output_reasoning_mtok": ("reasoning", 9),
    "input_audio_mtok": ("audio_in", 9),
    "output_audio_mtok": ("audio_out", 9),
    "input_image_mtok": ("image_in", 9),
    "output_image_mtok": ("image_out", 9),
    "requests_kcount": ("request", 12),
}
# What a usage report can name; other variants (a route, a kind of search) it cannot.
VARIANTS = {"processing", "service_tier", "speed"}

CLAUSES = {
    genai.ClauseStartsWith: ("^", "starts_with"),
    genai.ClauseEndsWith: ("$", "ends_with"),
    genai.ClauseContains: ("*", "contains"),
    genai.ClauseRegex: ("~", "regex"),
}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--date", default=dt.datetime.now(dt.UTC).date().isoformat())
    arguments.add_argument("--check", action="store_true", help="exit 1 if the file is not current")
    options = arguments.parse_args()
    before = json.loads(TARGET.read_text("utf-8")) if TARGET.exists() else {}
    after = {
        "source": f"genai-prices {metadata.version('genai-prices')}",
        "version": before.get("version", options.date),
        "providers": [exported for one in providers if (exported := provider(one))["models"]],
    }
    if after != before:
        if options.check:
            print(f"{TARGET} is not what this genai-prices exports: run make prices")
            return 1
        after["version"] = options.date
        TARGET.write_text(rendered(after), "utf-8")
    models = sum(len(one["models"]) for one in after["providers"])
    print(f"{after['version']}: {len(after['providers'])} providers, {models} models")
    return 0


def rendered(catalogue: Json) -> str:
    """JSON with one model per line, so that a new catalogue can be read as a diff."""
    head = {name: value for name, value in catalogue.items() if name != "providers"}
    lines = [compact(head)[:-1] + ',"providers":[']
    for number, one in enumerate(catalogue["providers"]):
        fields = {name: value for name, value in one.items() if name != "models"}
        lines.append(("," if number else "") + compact(fields)[:-1] + ',"models":[')
        lines.append(",\n".join(compact(model) for model in one["models"]))
        lines.append("]}")
    return "\n".join([*lines, "]}", ""])


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def provider(one: genai.Provider) -> Json:
    exported: Json = {"id": one.id, "url": one.api_pattern}
    if one.fallback_model_providers:
        exported["fallback"] = one.fallback_model_providers
    exported["models"] = [model(each) for each in one.models]
    return exported


def model(one: genai.ModelInfo) -> Json:
    exported: Json = {"id": one.id, "match": clause(one.match)}
    if one.context_window:
        exported["context"] = one.context_window
    if isinstance(one.prices, list):
        exported["prices"] = [
            {**when(each.constraint), "price": price(each.prices)} for each in one.prices
        ]
    else:
        exported["prices"] = [{"price": price(one.prices)}]
    variants = [
        {
            "name": next(iter(each.when.values())),
            **when(each.constraint),
            "price": price(each.prices),
        }
        for each in one.price_variants or ()
        if len(each.when) == 1 and each.when.keys() <= VARIANTS
    ]
    if variants:
        exported["variants"] = variants
    return exported


def when(constraint: object) -> Json:
    if isinstance(constraint, genai.StartDateConstraint):
        return {"since": constraint.start_date.isoformat()}
    return {} if constraint is None else {"daily": True}


def price(prices: genai.ModelPrice) -> Json:
    exported: Json = {}
    for name, (kind, exponent) in KINDS.items():
        value = getattr(prices, name)
        if isinstance(value, genai.TieredPrices):
            tiers = [[tier.start, femto(tier.price, exponent)] for tier in value.tiers]
            exported[kind] = [femto(value.base, exponent), *tiers]
        elif value is not None:
            exported[kind] = femto(value, exponent)
    return exported


def femto(value: Decimal, exponent: int) -> int:
    return int(value.scaleb(exponent).to_integral_value(ROUND_HALF_UP))


def clause(one: object) -> object:
    if isinstance(one, genai.ClauseEquals):
        return one.equals.lower()
    if isinstance(one, genai.ClauseOr):
        return ["|", *(clause(each) for each in one.or_)]
    if isinstance(one, genai.ClauseAnd):
        return ["&", *(clause(each) for each in one.and_)]
    sign, field = CLAUSES[type(one)]
    text = getattr(one, field)
    return [sign, text if sign == "~" else text.lower()]


if __name__ == "__main__":
    sys.exit(main())
