"""simulate: route a what-if request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokenhubctl import address
from tokenhubctl.arguments import json_object
from tokenhubctl.command import pass_session, verb
from tokenhubctl.errors import FAILED
from tokenhubctl.view import View, document

if TYPE_CHECKING:
    from tokenhubctl.session import Session


@verb("simulate")
@click.argument("json_", metavar="JSON")
@pass_session
def simulate(session: Session, json_: str) -> View:
    """Route a what-if request without sending it.

    JSON (or - for stdin, or @file): mode, token_count, max_budget_usd, max_latency_ms,
    min_weight, model_hint, seed.
    """
    body = json_object(json_, "simulation")
    answer = session.call("POST", address.path("routing", "simulate"), body)
    return document(answer, exit_code=FAILED if answer.get("error") else 0)
