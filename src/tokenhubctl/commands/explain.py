"""explain, replay: a past routing decision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tokenhubctl import address
from tokenhubctl.command import pass_session, verb
from tokenhubctl.completion import ids
from tokenhubctl.view import View, document

if TYPE_CHECKING:
    from tokenhubctl.session import Session


@verb("explain")
@click.argument("request_id", metavar="REQUEST-ID", shell_complete=ids("request"))
@pass_session
def explain(session: Session, request_id: str) -> View:
    """Why a past request went where it went."""
    return document(session.get(address.path("decisions", request_id)), key="request_id")


@verb("replay")
@click.argument("request_id", metavar="REQUEST-ID", shell_complete=ids("request"))
@pass_session
def replay(session: Session, request_id: str) -> View:
    """Decide a past request again from its record."""
    answer: Any = session.call("POST", address.path("decisions", request_id, "replay"), {})
    return document(answer, key="request_id")
