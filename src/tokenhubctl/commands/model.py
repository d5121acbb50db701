"""model: what requests can be routed to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokenhubctl import address, cells
from tokenhubctl.arguments import json_object
from tokenhubctl.command import noun, pass_session
from tokenhubctl.completion import ids
from tokenhubctl.view import Column, Layout, Row, View, document, done, rows

if TYPE_CHECKING:
    from tokenhubctl.session import Session


def _price(field: str) -> Column:
    heading = {"input_per_1k": "IN $/1K", "output_per_1k": "OUT $/1K"}[field]

    def value(row: Row) -> object:
        # A 0 that nobody set is not a price.
        return None if row.get("pricing_source") == "unknown" else row.get(field)

    return Column(heading, value, cells.price)


MODELS = Layout(
    (
        Column("MODEL", "id"),
        Column("PROVIDER", "provider_id"),
        Column("WEIGHT", "weight", cells.number),
        Column("CONTEXT", "max_context_tokens", cells.number),
        _price("input_per_1k"),
        _price("output_per_1k"),
        Column("ENABLED", "enabled", cells.yes_no),
        Column("PRICES FROM", "pricing_source", wide=True),
        Column("SOURCE", "source", wide=True),
    ),
    key="id",
    empty="No models. Add one with: tokenhubctl model add '<json>'",
)


@noun("model", default="list")
def model() -> None:
    """Models: where they run, their weight, context size and prices."""


@model.command("list", watch=True)
@click.option("--stored", is_flag=True, help="Models of the store, not those of the engine.")
@pass_session
def list_(session: Session, *, stored: bool) -> View:
    """Models the engine routes to."""
    target = address.path("models") if stored else address.path("engine", "models")
    found = session.listed(target, "items" if stored else "models")
    return rows(sorted(found, key=lambda row: str(row.get("id"))), MODELS)


@model.command("get")
@click.argument("model_id", metavar="ID", shell_complete=ids("model"))
@pass_session
def get(session: Session, model_id: str) -> View:
    """One model."""
    return document(session.get(address.path("models", model_id)))


@model.command("add")
@click.argument("json_", metavar="JSON")
@pass_session
def add(session: Session, json_: str) -> View:
    """Add a model, or change one.

    JSON (or - for stdin, or @file): id, provider_id, weight (0-10), max_context_tokens,
    input_per_1k, output_per_1k, enabled.
    """
    body = json_object(json_, "model")
    return done(session.change("POST", address.path("models"), body), "Model saved.")


@model.command("edit")
@click.argument("model_id", metavar="ID", shell_complete=ids("model"))
@click.argument("json_", metavar="JSON")
@pass_session
def edit(session: Session, model_id: str, json_: str) -> View:
    """Change members of a model.

    Members that JSON does not name stay as they are.
    """
    body = json_object(json_, "change")
    answer = session.change("PATCH", address.path("models", model_id), body)
    return done(answer, "Model updated.")


@model.command("delete")
@click.argument("model_id", metavar="ID", shell_complete=ids("model"))
@pass_session
def delete(session: Session, model_id: str) -> View:
    """Delete a model."""
    return done(session.change("DELETE", address.path("models", model_id)), "Model deleted.")


@model.command("enable")
@click.argument("model_id", metavar="ID", shell_complete=ids("model"))
@pass_session
def enable(session: Session, model_id: str) -> View:
    """Let a model be chosen."""
    return _switch(session, model_id, enabled=True)


@model.command("disable")
@click.argument("model_id", metavar="ID", shell_complete=ids("model"))
@pass_session
def disable(session: Session, model_id: str) -> View:
    """Keep a model from being chosen."""
    return _switch(session, model_id, enabled=False)


def _switch(session: Session, model_id: str, *, enabled: bool) -> View:
    answer = session.change("PATCH", address.path("models", model_id), {"enabled": enabled})
    return done(answer, f"Model {model_id} {'enabled' if enabled else 'disabled'}.")
