"""health, provider-status: what the router knows about each provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tokenhubctl import address, cells, table
from tokenhubctl.command import pass_session, verb
from tokenhubctl.completion import ids
from tokenhubctl.errors import NOT_FOUND, CliError
from tokenhubctl.view import Column, Layout, View, record, rows

if TYPE_CHECKING:
    from tokenhubctl.session import Session

MAX_ERROR = 60


def _short(value: Any) -> str:
    return table.cut(table.visible(cells.text(value)), MAX_ERROR)


def _latency(value: Any) -> str:
    """The server's 0 means that nothing was measured."""
    return cells.duration(value or None)


def last_error(state: dict[str, Any]) -> tuple[str, str]:
    """When and what: of a request or of a background probe, whichever came later."""
    found = [
        (str(state.get("last_error_time") or ""), str(state.get("last_error") or "")),
        (str(state.get("last_probe_at") or ""), str(state.get("last_probe_error") or "")),
    ]
    return max((one for one in found if one[1]), default=("", ""))


PROVIDERS = Layout(
    (
        Column("PROVIDER", "provider_id"),
        Column("STATE", "state"),
        Column("CONSEC_ERR", "consec_errors", cells.number),
        Column("AVG LATENCY", "avg_latency_ms", _latency),
        Column("LAST SUCCESS", "last_success_at", cells.time),
        Column("REQUESTS", "total_requests", cells.number, wide=True),
        Column("ERRORS", "total_errors", cells.number, wide=True),
        Column("COOLDOWN UNTIL", "cooldown_until", cells.time, wide=True),
        Column("LAST ERROR", lambda state: last_error(state)[1], _short),
    ),
    key="provider_id",
    empty="No provider has been called or probed yet.",
)


@verb("health", watch=True)
@pass_session
def health(session: Session) -> View:
    """Provider health."""
    return rows(_states(session), PROVIDERS)


@verb("provider-status", watch=True)
@click.argument("provider_id", metavar="ID", shell_complete=ids("provider"))
@pass_session
def provider_status(session: Session, provider_id: str) -> View:
    """Health of one provider."""
    states = {str(state["provider_id"]): state for state in _states(session)}
    state = states.get(provider_id)
    if state is None:
        known = ", ".join(states) or "none"
        error = CliError(
            f"No health data for provider {provider_id!r}.",
            hint=f"Known: {known}. `tokenhubctl provider list` shows the configured ones.",
            code="not_found",
        )
        error.exit_code = NOT_FOUND
        raise error
    return record(state, _pairs(state), key="provider_id")


def _states(session: Session) -> list[dict[str, Any]]:
    found = session.listed(address.path("health"), "providers")
    return sorted(found, key=lambda state: str(state.get("provider_id")))


def _pairs(state: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [
        ("Provider", cells.text(state.get("provider_id"))),
        ("State", cells.text(state.get("state"))),
        ("Total requests", cells.number(state.get("total_requests"))),
        ("Total errors", cells.number(state.get("total_errors"))),
        ("Consec errors", cells.number(state.get("consec_errors"))),
        ("Avg latency", _latency(state.get("avg_latency_ms"))),
        ("Last success", cells.never(state.get("last_success_at"))),
    ]
    at, error = last_error(state)
    if error:
        pairs += [("Last error", error), ("Last error at", cells.time(at))]
    until = cells.time(state.get("cooldown_until"))
    return pairs if until == cells.MISSING else [*pairs, ("Cooldown until", until)]
