"""routing: the defaults of every request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokenhubctl import address
from tokenhubctl.arguments import json_object
from tokenhubctl.command import noun, pass_session
from tokenhubctl.view import View, document, done

if TYPE_CHECKING:
    from tokenhubctl.session import Session


@noun("routing", default="get")
def routing() -> None:
    """The defaults of every request: mode, budget, latency."""


@routing.command("get")
@pass_session
def get(session: Session) -> View:
    """Routing defaults, effective and stored."""
    return document(session.get(address.path("routing-config")))


@routing.command("set")
@click.argument("json_", metavar="JSON")
@pass_session
def set_(session: Session, json_: str) -> View:
    """Change routing defaults.

    JSON (or - for stdin, or @file): default_mode, default_max_budget_usd, default_max_latency_ms.
    What it does not name stays; 0 means no limit.
    """
    body = json_object(json_, "routing defaults")
    answer = session.change("PUT", address.path("routing-config"), body)
    return done(answer, "Routing configuration saved.")
