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
            Column("SPENT", "cost_usd", cells.cost),
        ),
        key=GROUPS[by],
        empty="Nothing was spent in this time.",
    )


def _group(row: Row, by: str) -> object:
    return row.get("api_key_name") or row.get("name") or row.get(GROUPS[by])


@verb("spend", watch=True)
@click.option("--by", type=click.Choice(list(GROUPS)), default="key", help="Group by this (key).")
@click.option("--since", metavar="TIME", help="Only from TIME on: 15m, 2h, 7d, or a date.")
@pass_session
def spend(session: Session, by: str, since: str | None) -> View:
    """Spend by key, model, provider or day."""
    start = moment(since) if since else None
    target = address.path("spend") + address.query([("by", by), ("since", start)])
    return rows(session.listed(target, "spend", "items"), _layout(by))
