"""prices: what tokens cost, and who says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tokenhubctl import address, cells
from tokenhubctl.arguments import json_object, read_file
from tokenhubctl.command import noun, pass_session
from tokenhubctl.completion import ids
from tokenhubctl.errors import FAILED
from tokenhubctl.session import objects
from tokenhubctl.view import Column, Layout, View, document, done, rows

if TYPE_CHECKING:
    from tokenhubctl.session import Session


def _optional(value: Any) -> str:
    return cells.MISSING if value in (None, "") else cells.price(value)


PRICES = Layout(
    (
        Column("MODEL", "model_id"),
        Column("IN $/1K", "input_per_1k", cells.price),
        Column("OUT $/1K", "output_per_1k", cells.price),
        Column("CACHED READ", "cached_read_per_1k", _optional),
        Column("CACHED WRITE", "cached_write_per_1k", _optional),
        Column("SOURCE", "source"),
        Column("VERSION", "version"),
    ),
    key="model_id",
    empty="No models, so no prices.",
)
CHANGES = Layout(
    (
        Column("MODEL", "model_id"),
        Column("FIELD", "field"),
        Column("NOW", "old", cells.price),
        Column("NEW", "new", cells.price),
    ),
    key="model_id",
    empty="No price would change.",
)


@noun("prices", default="list")
def prices() -> None:
    """What tokens cost, and where each price comes from."""


@prices.command("list", watch=True)
@pass_session
def list_(session: Session) -> View:
    """Price of every model, with its source."""
    found = session.listed(address.path("prices"), "prices", "items")
    return rows(sorted(found, key=lambda row: str(row.get("model_id"))), PRICES)


@prices.command("show")
@click.argument("model", shell_complete=ids("model"))
@pass_session
def show(session: Session, model: str) -> View:
    """All prices of one model."""
    return document(session.get(address.path("prices", model)), key="model_id")


@prices.command("set")
@click.argument("model", shell_complete=ids("model"))
@click.argument("json_", metavar="JSON")
@pass_session
def set_(session: Session, model: str, json_: str) -> View:
    """Set the prices of a model.

    JSON (or - for stdin, or @file): dollars per 1000 tokens as input_per_1k, output_per_1k,
    cached_read_per_1k, cached_write_per_1k. An explicit 0 means free; null for input and output
    takes the shipped catalogue's prices again.
    """
    body = json_object(json_, "prices")
    answer = session.change("PUT", address.path("prices", model), body)
    return done(answer, f"Prices of {model} saved.")


OVERWRITE = click.option("--overwrite", is_flag=True, help="Also change prices set by hand.")


@prices.command("import")
@click.argument("file")
@OVERWRITE
@pass_session
def import_(session: Session, file: str, *, overwrite: bool) -> View:
    """Import a price list (also LiteLLM's format).

    FILE is a path, or - for stdin: what `prices list -o json` prints, or LiteLLM's price map.
    Registered models take over its prices; those set by hand stay. Nothing is downloaded.
    """
    answer = session.change("POST", _target(overwrite=overwrite), _price_list(file))
    _remark(session, answer)
    return done(answer, f"Prices imported: {answer.get('changed', 0)} changed.")


@prices.command("diff")
@click.argument("file")
@OVERWRITE
@pass_session
def diff(session: Session, file: str, *, overwrite: bool) -> View:
    """What an import would change.

    Ends with 0 when nothing would change, with 1 when something would.
    """
    target = _target(dry_run=True, overwrite=overwrite)
    answer = session.call("POST", target, _price_list(file), "changes")
    _remark(session, answer)
    changes = objects(answer, "changes")
    return rows(changes, CHANGES, exit_code=FAILED if changes else 0)


def _target(*, dry_run: bool = False, overwrite: bool = False) -> str:
    asked = [("dry_run", dry_run), ("overwrite", overwrite)]
    flags = [(name, "true") for name, flag in asked if flag]
    return address.path("prices", "import") + address.query(flags)


def _remark(session: Session, answer: dict[str, Any]) -> None:
    """What an import leaves as it is, or cannot keep: a person should know."""
    if kept := answer.get("kept"):
        names = ", ".join(map(str, kept))
        session.note(f"note: set by hand, so they stay (--overwrite changes them): {names}")
    if simplified := answer.get("simplified"):
        names = ", ".join(map(str, simplified))
        session.note(f"note: the list has further prices that are not kept (tiers, ...): {names}")


def _price_list(file: str) -> bytes:
    """The file as it is; the bare list that `prices list -o json` prints gets its name."""
    text = read_file(file if file == "-" else file.removeprefix("@"), "price list")
    if text.lstrip().startswith("["):
        text = f'{{"prices": {text}}}'
    return json_object(text, "price list")
