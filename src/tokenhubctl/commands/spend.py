"""spend: where the money went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokenhubctl import address, cells
from tokenhubctl.command import pass_session, verb
from tokenhubctl.timespan import since as moment
from tokenhubctl.view import Column, Layout, Row, View, rows

if TYPE_CHECKING:
    from tokenhubctl.session import Session

GROUPS = {"key": "api_key_id", "model": "model_id", "provider": "provider_id", "day": "day"}


def _layout(by: str) -> Layout:
    return Layout(
        (
            Column(by.upper(), lambda row: _group(row, by)),
            Column("REQUESTS", "requests", cells.number),
            Column("IN", "input_tokens", cells.number),
            Column("OUT", "output_tokens", cells.number),
            Column("SPENT", _cost),
            Column("CACHED READ", "cached_read_tokens", cells.number, wide=True),
            Column("CACHED WRITE", "cached_write_tokens", cells.number, wide=True),
            Column("REASONING", "reasoning_tokens", cells.number, wide=True),
            Column("RESERVED", "reserved_usd", cells.money, wide=True),
            Column("OVERRUN", "overrun_usd", cells.money, wide=True),
            Column("UNPRICED", "unpriced", cells.number, wide=True),
            Column("INEXACT", "inexact", cells.number, wide=True),
        ),
        key=GROUPS[by],
        empty="Nothing was spent in this time.",
    )


def _group(row: Row, by: str) -> object:
    return row.get("api_key_name") or row.get("name") or row.get(GROUPS[by])


def _cost(row: Row) -> str:
    # Requests to a model without a price cost something that nobody knows.
    amount = row.get("cost_usd")
    return "unpriced" if row.get("unpriced") and not amount else cells.cost(amount)


@verb("spend", watch=True)
@click.option("--by", type=click.Choice(list(GROUPS)), default="key", help="Group by this (key).")
@click.option("--since", metavar="TIME", help="Only from TIME on: 15m, 2h, 7d, or a date.")
@click.option("--until", metavar="TIME", help="Only up to TIME.")
@pass_session
def spend(session: Session, by: str, since: str | None, until: str | None) -> View:
    """Spend by key, model, provider or day."""
    bounds = [
        ("since", moment(since) if since else None),
        ("until", moment(until) if until else None),
    ]
    target = address.path("spend") + address.query([("by", by), *bounds])
    return rows(session.listed(target, "spend", "items"), _layout(by))
