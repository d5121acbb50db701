"""audit: what admins did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokenhubctl import address, cells
from tokenhubctl.command import Count, noun, pass_session
from tokenhubctl.errors import FAILED
from tokenhubctl.view import Column, Layout, View, record, rows

if TYPE_CHECKING:
    from tokenhubctl.session import Session

AUDIT = Layout(
    (
        Column("TIME", "timestamp", cells.time),
        Column("ACTION", "action"),
        Column("RESOURCE", "resource"),
        Column("REQUEST ID", "request_id"),
        Column("ACTOR", "actor", wide=True),
        Column("ADDRESS", "address", wide=True),
        Column("OUTCOME", "outcome", wide=True),
        Column("BEFORE", "before", wide=True),
        Column("AFTER", "after", wide=True),
    ),
    key="id",
    empty="The audit trail is empty.",
)


@noun("audit", default="list")
def audit() -> None:
    """The audit trail."""


@audit.command("list", watch=True)
@click.option("--limit", type=Count(), default=50, metavar="N", help="At most N rows (50).")
@pass_session
def list_(session: Session, *, limit: int) -> View:
    """Audit trail, newest first."""
    target = address.path("audit") + address.query([("limit", limit)])
    return rows(session.listed(target, "logs", "items"), AUDIT)


@audit.command("verify")
@pass_session
def verify(session: Session) -> View:
    """Check the hash chain of the audit trail.

    Ends with 1 and names the first broken row when the trail was changed.
    """
    answer = session.get(address.path("audit", "verify"), "ok")
    pairs = [
        (name.replace("_", " ").capitalize(), cells.text(value)) for name, value in answer.items()
    ]
    return record(answer, pairs, exit_code=0 if answer.get("ok") is True else FAILED)
