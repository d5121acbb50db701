"""logs: what requests did."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import click

from tokenhubctl import address, cells, output, table
from tokenhubctl.command import Count, Verb, noun, pass_session
from tokenhubctl.completion import ids
from tokenhubctl.timespan import since as moment
from tokenhubctl.view import Column, Layout, Row, View, document, generic, rows

if TYPE_CHECKING:
    from tokenhubctl.session import Session

FOLLOW_SECONDS = 1.0
FOLLOW_PAGE = 200


def _cost(row: Row) -> str:
    if row.get("cost_source") in {"unknown", "unpriced"}:
        return "unpriced"
    amount = row.get("estimated_cost_usd")
    # A refused or failed request that cost nothing was not "free".
    failed = isinstance(row.get("status_code"), int) and row["status_code"] >= 400
    return cells.MISSING if failed and not amount else cells.cost(amount)


LOGS = Layout(
    (
        Column("TIME", "timestamp", cells.time),
        Column("MODEL", "model_id"),
        Column("PROVIDER", "provider_id"),
        Column("MODE", "mode"),
        Column("LATENCY", "latency_ms", cells.duration),
        Column("COST", _cost),
        Column("STATUS", "status_code", cells.number),
        Column("TTFT", "ttft_ms", cells.duration, wide=True),
        Column("IN", "input_tokens", cells.number, wide=True),
        Column("OUT", "output_tokens", cells.number, wide=True),
        Column("KEY", "api_key_id", wide=True),
        Column("ATTEMPTS", "attempt_count", cells.number, wide=True),
        Column("ERROR", "error_class", wide=True),
        Column("REQUEST ID", "request_id", wide=True),
    ),
    key="request_id",
    empty="No requests logged.",
)


@noun("logs", default="list")
def logs() -> None:
    """The request log."""


@logs.command("list", watch=True)
@click.option("--limit", type=Count(), default=50, metavar="N", help="At most N rows (50).")
@click.option("--since", metavar="TIME", help="Only from TIME on: 15m, 2h, 7d, or a date.")
@click.option("--model", metavar="ID", help="Only this model.")
@click.option("--provider", metavar="ID", help="Only this provider.")
@click.option("--status", metavar="STATUS", help="Only this status: 200, 429, 5xx, error.")
@click.option("--key", metavar="ID", help="Only this API key.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new rows until Ctrl-C.")
@pass_session
def list_(session: Session, /, *, limit: int, follow: bool, **wanted: str | None) -> View | None:
    """Request log, newest first."""
    filters = _filters(wanted)
    if follow:
        _follow(session, limit, filters)
    return rows(_page(session, limit, filters), LOGS)


def _filters(wanted: dict[str, str | None]) -> dict[str, str | None]:
    given = wanted.get("since")
    return {**wanted, "since": moment(given) if given else None}


def _page(session: Session, limit: int, filters: dict[str, str | None]) -> list[dict[str, Any]]:
    target = address.path("logs") + address.query([("limit", limit), *filters.items()])
    return session.listed(target, "logs", "items")


def _follow(session: Session, limit: int, filters: dict[str, str | None]) -> None:
    """Print the newest rows oldest first, then each new one as it appears."""
    seen: dict[str, None] = {}
    headings = session.options.headings
    sizes = itertools.chain([limit], itertools.repeat(FOLLOW_PAGE))
    for page in session.again(lambda: _page(session, next(sizes), filters)):
        fresh = [row for row in reversed(page) if str(row.get("request_id")) not in seen]
        if seen and len(fresh) == FOLLOW_PAGE:
            session.note(f"note: more than {FOLLOW_PAGE} requests at once; the oldest are left out")
        if fresh:
            _print_more(session, fresh, headings=headings)
            headings = False
        seen.update((str(row.get("request_id")), None) for row in fresh)
        for old in list(seen)[: -4 * FOLLOW_PAGE]:
            del seen[old]
        time.sleep(FOLLOW_SECONDS)


def _print_more(session: Session, fresh: list[dict[str, Any]], *, headings: bool) -> None:
    form = "jsonl" if session.form == "json" else session.form
    output.show(rows(fresh, LOGS), form, query=session.options.query, headings=headings)


@logs.command("show", cls=Verb)
@click.argument("request_id", metavar="REQUEST-ID", shell_complete=ids("request"))
@pass_session
def show(session: Session, request_id: str) -> View:
    """One request with its attempts."""
    found = session.get(address.path("logs", request_id), "request_id")
    view = document(found)
    view.form = "table"
    view.key = "request_id"
    view.text = lambda _wide, headings: _detail(found, headings=headings)
    return view


def _detail(found: dict[str, Any], *, headings: bool) -> str:
    plain = {name: value for name, value in found.items() if not isinstance(value, list | dict)}
    shown = [[f"{name}:", cells.named(name, value)] for name, value in plain.items()]
    text = table.render(shown)
    for name, value in found.items():
        if isinstance(value, list | dict) and value:
            text += f"\n{name}:\n" + generic(value, headings=headings)
    return text
