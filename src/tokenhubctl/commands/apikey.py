"""apikey: the keys clients use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from tokenhubctl import address, cells
from tokenhubctl.arguments import json_object
from tokenhubctl.command import noun, pass_session
from tokenhubctl.completion import ids
from tokenhubctl.errors import CliError
from tokenhubctl.view import Column, Layout, Row, View, document, done, rows

if TYPE_CHECKING:
    from tokenhubctl.session import Session

REMINDER = "Save this key now: it will not be shown again."


def _scopes(row: Row) -> Any:
    scopes = row.get("scopes")
    if isinstance(scopes, str):
        try:
            return json.loads(scopes)
        except ValueError:
            return scopes
    return scopes


KEYS = Layout(
    (
        Column("ID", "id"),
        Column("NAME", "name"),
        Column("PREFIX", "key_prefix"),
        Column("SCOPES", _scopes),
        Column("ENABLED", "enabled", cells.yes_no),
        Column("CREATED", "created_at", cells.time),
        Column("LAST USED", "last_used_at", cells.never),
        Column("SPENT", "current_spend_usd", cells.money),
        Column("RESERVED", "reserved_usd", cells.money),
        Column("BUDGET", "monthly_budget_usd", cells.budget),
        Column("EXPIRES", "expires_at", cells.never, wide=True),
        Column("ROTATION DAYS", "rotation_days", cells.number, wide=True),
        Column("RPS", "rate_limit_rps", cells.number, wide=True),
        Column("BUDGET RESET", "budget_reset_at", cells.time, wide=True),
        Column("OVERRUN", "overrun_usd", cells.money, wide=True),
    ),
    key="id",
    empty="No API keys. Create one with: tokenhubctl apikey create '<json>'",
)


@noun("apikey", default="list")
def apikey() -> None:
    """The keys clients use, with their scopes and budgets."""


@apikey.command("list", watch=True)
@pass_session
def list_(session: Session) -> View:
    """API keys with spend and reserved amounts."""
    found = session.listed(address.path("apikeys"), "keys", "items")
    return rows(sorted(found, key=lambda row: (str(row.get("name")), str(row.get("id")))), KEYS)


@apikey.command("get")
@click.argument("key_id", metavar="ID", shell_complete=ids("apikey"))
@pass_session
def get(session: Session, key_id: str) -> View:
    """One API key; its text is never shown again."""
    return document(session.get(address.path("apikeys", key_id)))


@apikey.command("create")
@click.argument("json_", metavar="JSON")
@pass_session
def create(session: Session, json_: str) -> View:
    """Create a key; it is shown once.

    JSON (or - for stdin, or @file): name, scopes (chat, plan, embeddings), monthly_budget_usd,
    rate_limit_rps, expires_in, rotation_days.
    """
    answer = session.change("POST", address.path("apikeys"), json_object(json_, "API key"))
    return _with_key(answer, "API key created.", str(answer.get("id") or "-"))


@apikey.command("rotate")
@click.argument("key_id", metavar="ID", shell_complete=ids("apikey"))
@pass_session
def rotate(session: Session, key_id: str) -> View:
    """Give a key a new secret; the old one dies at once."""
    answer = session.change("POST", address.path("apikeys", key_id, "rotate"), {})
    return _with_key(answer, "API key rotated.", str(answer.get("id") or key_id))


def _with_key(answer: dict[str, Any], headline: str, key_id: str) -> View:
    key = answer.get("key")
    if not key:
        raise CliError(
            "The server did not return the new key.",
            hint=f"Get a fresh one with: tokenhubctl apikey rotate {key_id}",
        )
    lines = [headline, f"  ID:      {key_id}", f"  Key:     {key}"]
    lines += ["", str(answer.get("warning") or REMINDER), ""]
    return View(answer, lambda _wide, _headings: "\n".join(lines))


@apikey.command("edit")
@click.argument("key_id", metavar="ID", shell_complete=ids("apikey"))
@click.argument("json_", metavar="JSON")
@pass_session
def edit(session: Session, key_id: str, json_: str) -> View:
    """Change members of a key.

    Members that JSON does not name stay as they are. Effective from the next request on.
    """
    body = json_object(json_, "change")
    answer = session.change("PATCH", address.path("apikeys", key_id), body)
    return done(answer, "API key updated.")


@apikey.command("delete")
@click.argument("key_id", metavar="ID", shell_complete=ids("apikey"))
@pass_session
def delete(session: Session, key_id: str) -> View:
    """Revoke a key."""
    return done(session.change("DELETE", address.path("apikeys", key_id)), "API key deleted.")


@apikey.command("paid")
@click.argument("key_id", metavar="ID", shell_complete=ids("apikey"))
@pass_session
def paid(session: Session, key_id: str) -> View:
    """Start the key's budget period afresh."""
    answer = session.change("POST", address.path("apikeys", key_id, "paid"), {})
    amount = f" {cells.money(answer['paid_usd'])} booked as paid." if "paid_usd" in answer else ""
    return done(answer, f"Budget period started afresh.{amount}")
