"""stats: aggregates by window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhubctl import address
from tokenhubctl.command import pass_session, verb
from tokenhubctl.view import View, document

if TYPE_CHECKING:
    from tokenhubctl.session import Session


@verb("stats", watch=True)
@pass_session
def stats(session: Session) -> View:
    """Aggregated statistics."""
    return document(session.get(address.path("stats")))
