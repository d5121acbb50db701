"""alias: a name for clients that stands for one or more models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tokenhubctl import address, cells
from tokenhubctl.arguments import json_object
from tokenhubctl.command import noun, pass_session
from tokenhubctl.completion import ids
from tokenhubctl.view import Column, Layout, View, document, done, rows

if TYPE_CHECKING:
    from tokenhubctl.session import Session


def _variants(value: Any) -> str:
    parts = [f"{item.get('model_id')}:{cells.number(item.get('weight'))}" for item in value or []]
    return " ".join(parts) or cells.MISSING


ALIASES = Layout(
    (
        Column("NAME", "name"),
        Column("VARIANTS", "variants", _variants),
        Column("ENABLED", "enabled", cells.yes_no),
        Column("STICKY BY", "sticky_by"),
        Column("CREATED", "created_at", cells.time, wide=True),
        Column("UPDATED", "updated_at", cells.time, wide=True),
    ),
    key="name",
    empty="No aliases.",
)


@noun("alias", default="list")
def alias() -> None:
    """Names for clients that stand for one or more weighted models."""


@alias.command("list", watch=True)
@pass_session
def list_(session: Session) -> View:
    """Model aliases."""
    found = session.listed(address.path("aliases"), "items", "aliases")
    return rows(sorted(found, key=lambda row: str(row.get("name"))), ALIASES)


@alias.command("get")
@click.argument("name", shell_complete=ids("alias"))
@pass_session
def get(session: Session, name: str) -> View:
    """One alias."""
    return document(session.get(address.path("aliases", name)), key="name")


@alias.command("set")
@click.argument("name", shell_complete=ids("alias"))
@click.argument("json_", metavar="JSON")
@pass_session
def set_(session: Session, name: str, json_: str) -> View:
    """Create or replace an alias.

    JSON (or - for stdin, or @file): variants ([{"model_id": ..., "weight": ...}]), enabled,
    sticky_by.
    """
    body = json_object(json_, "alias")
    answer = session.change("PUT", address.path("aliases", name), body, member="variants")
    return done(answer, f"Alias {name} saved.")


@alias.command("delete")
@click.argument("name", shell_complete=ids("alias"))
@pass_session
def delete(session: Session, name: str) -> View:
    """Delete an alias."""
    answer = session.change("DELETE", address.path("aliases", name))
    return done(answer, f"Alias {name} deleted.")
