"""budget: what keys may spend, have spent, and hold in reserve."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from tokenhubctl import address, cells
from tokenhubctl.command import noun, pass_session
from tokenhubctl.completion import ids
from tokenhubctl.errors import FAILED, UsageFault
from tokenhubctl.session import objects
from tokenhubctl.view import Column, Layout, Row, View, done, generic, record, rows

if TYPE_CHECKING:
    from tokenhubctl.session import Session


def _remaining(row: Row) -> str:
    if not row.get("limit_usd"):
        return "no limit"
    return cells.money(row.get("remaining_usd"))


ACCOUNTS = Layout(
    (
        Column("KEY", "key_id"),
        Column("NAME", "name"),
        Column("PERIOD", "period"),
        Column("LIMIT", "limit_usd", cells.budget),
        Column("SPENT", "spent_usd", cells.money),
        Column("RESERVED", "reserved_usd", cells.money),
        Column("REMAINING", _remaining),
        Column("OVERRUN", "overrun_usd", cells.money, wide=True),
        Column("RESETS", "resets_at", cells.time, wide=True),
    ),
    key="key_id",
    empty="No key has spent anything or has a budget.",
)
AMOUNT = re.compile(r"[+-]?(\d+(\.\d{1,9})?|\.\d{1,9})")


@noun("budget", default="show")
def budget() -> None:
    """What keys may spend, have spent, and hold in reserve."""


@budget.command("show", watch=True)
@click.argument("key", required=False, shell_complete=ids("apikey"))
@pass_session
def show(session: Session, key: str | None) -> View:
    """Limits, spent and reserved amounts."""
    target = address.path("budget") if key is None else address.path("budget", key)
    answer = session.get(target)
    found = objects(answer, "accounts", "items")
    order = sorted(found, key=lambda row: (str(row.get("name")), str(row.get("period"))))
    view = rows(order, ACCOUNTS)
    return view if key is None else _one_key(answer, view)


def _one_key(answer: dict[str, Any], accounts: View) -> View:
    """The accounts of a key, and below them past periods and what was booked by hand."""

    def text(wide: bool, headings: bool) -> str:  # noqa: FBT001
        booked = [
            f"{member}:\n" + generic(answer[member], headings=headings)
            for member in ("history", "entries")
            if answer.get(member)
        ]
        return "\n".join([accounts.text(wide, headings), *booked])

    return View(answer, text, key="key_id")


@budget.command("verify")
@pass_session
def verify(session: Session) -> View:
    """Recompute every account from its rows.

    Ends with 1 and lists each row that is off.
    """
    answer = session.call("POST", address.path("budget", "verify"), {}, "ok")
    problems = answer.get("problems") or []
    pairs = [
        (name.replace("_", " ").capitalize(), cells.text(value))
        for name, value in answer.items()
        if name != "problems"
    ]
    pairs += [(f"Problem {number}", cells.text(item)) for number, item in enumerate(problems, 1)]
    good = answer.get("ok") is True and not problems
    return record(answer, pairs, exit_code=0 if good else FAILED)


@budget.command("adjust", literal=True)
@click.argument("key", shell_complete=ids("apikey"))
@click.argument("amount")
@click.option("--reason", required=True, metavar="TEXT", help="Why; kept in the audit trail.")
@pass_session
def adjust(session: Session, key: str, amount: str, reason: str) -> View:
    """Correct what a key has spent, with a reason.

    AMOUNT is in dollars and is added to what the key has spent: -1.25 gives it 1.25 back.
    """
    if not AMOUNT.fullmatch(amount):
        raise UsageFault(
            f"{amount!r} is not an amount in dollars with at most nine decimals.",
            hint="""An example: tokenhubctl budget adjust KEY -1.25 --reason "billed twice\"""",
        )
    body = {"amount_usd": amount.removeprefix("+"), "reason": reason}
    answer = session.change("POST", address.path("budget", key, "adjust"), body)
    return done(answer, f"Spent amount of {key} adjusted by {amount} USD.")
