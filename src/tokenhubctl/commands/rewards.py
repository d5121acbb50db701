"""rewards: what the bandit has learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokenhubctl import address
from tokenhubctl.command import Count, pass_session, verb
from tokenhubctl.view import View, document

if TYPE_CHECKING:
    from tokenhubctl.session import Session


@verb("rewards", watch=True)
@click.option("--limit", type=Count(), default=50, metavar="N", help="At most N rows (50).")
@pass_session
def rewards(session: Session, *, limit: int) -> View:
    """Thompson sampling reward data."""
    target = address.path("rewards") + address.query([("limit", limit)])
    found = session.listed(target, "rewards", "items")
    if not found:
        session.note("No rewards recorded.")
    return document(found, key="request_id")
