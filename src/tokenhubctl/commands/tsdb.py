"""tsdb: time series."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokenhubctl import address
from tokenhubctl.command import Count, noun, pass_session
from tokenhubctl.errors import UsageFault
from tokenhubctl.view import View, document, done

if TYPE_CHECKING:
    from tokenhubctl.session import Session

EXAMPLE = "tokenhubctl tsdb query 'metric=latency&model_id=gpt-4o&step_ms=60000'"


@noun("tsdb")
def tsdb() -> None:
    """Time series: latency, cost, tokens, errors."""


@tsdb.command("metrics")
@pass_session
def metrics(session: Session) -> View:
    """Names of the stored time series."""
    return document(session.get(address.path("tsdb", "metrics")))


@tsdb.command("query")
@click.argument("parameters", metavar="PARAMETER...", nargs=-1, required=True)
@pass_session
def query(session: Session, parameters: tuple[str, ...]) -> View:
    """Read a time series: 'metric=latency&step_ms=60000'.

    One quoted string, or one word for each parameter: metric (needed), model_id, provider_id,
    start, end (RFC 3339 or Unix ms), step_ms, agg.
    """
    pairs = parse(parameters)
    if [name for name, _ in pairs] == ["metric"]:
        session.note(
            "note: only `metric` arrived. A shell cuts the command at an unquoted &; did you mean "
            f"{EXAMPLE}"
        )
    return document(session.get(address.path("tsdb", "query") + address.query(pairs)))


def parse(parameters: tuple[str, ...]) -> list[tuple[str, str]]:
    """``a=b&c=d`` strings and ``a=b`` words as pairs; percent escapes in values are decoded."""
    pairs = []
    for part in (part for word in parameters for part in word.lstrip("?").split("&") if part):
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise UsageFault(f"{part!r} is not of the form name=value.", hint=EXAMPLE)
        pairs.append((name, _decoded(value)))
    return pairs


def _decoded(value: str) -> str:
    if "%" not in value:
        return value
    from urllib.parse import unquote  # noqa: PLC0415

    return unquote(value)


@tsdb.command("prune")
@pass_session
def prune(session: Session) -> View:
    """Delete points older than the retention."""
    return document(session.call("POST", address.path("tsdb", "prune"), {}))


@tsdb.command("retention")
@click.argument("days", type=Count())
@pass_session
def retention(session: Session, days: int) -> View:
    """Set how long points are kept."""
    answer = session.change("PUT", address.path("tsdb", "retention"), {"days": days})
    kept = answer.get("retention_days", days)
    return done(answer, f"Points are kept for {kept} days.")
