"""top: a live view of the gateway, for a terminal of any size."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from tokenhubctl import address, cells, output, table
from tokenhubctl.command import Count, pass_session, verb
from tokenhubctl.commands.health import PROVIDERS
from tokenhubctl.commands.logs import LOGS
from tokenhubctl.errors import CliError
from tokenhubctl.view import rows

if TYPE_CHECKING:
    from tokenhubctl.session import Session

DECISIONS = 20
HOME_AND_CLEAR = "\x1b[H\x1b[J"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@verb("top")
@click.option(
    "--interval", type=click.FloatRange(min=0.2), default=2.0, metavar="SECONDS",
    help="Pause between two looks (2).",
)  # fmt: skip
@click.option("--count", type=Count(), metavar="N", help="Stop after N looks.")
@pass_session
def top(session: Session, *, interval: float, count: int | None) -> None:
    """Live view: requests, spend, latency, providers, last decisions.

    Redraws a terminal until Ctrl-C. Through a pipe each look is one JSON line.
    """
    live = sys.stdout.isatty() and session.form in {None, "table", "wide"}
    sys.stdout.write(HIDE_CURSOR if live else "")
    try:
        look = 0
        while count is None or look < count:
            if look:
                time.sleep(interval)
            _look(session, live=live, first=look == 0)
            look += 1
    finally:
        sys.stdout.write(SHOW_CURSOR if live else "")


def _look(session: Session, *, live: bool, first: bool) -> None:
    try:
        snapshot = _snapshot(session)
    except CliError as error:
        if first or not (error.retryable or session.renewed(error)):
            raise
        session.note(f"no answer: {error.message}")
        return
    if live:
        sys.stdout.write(HOME_AND_CLEAR + frame(snapshot, *shutil.get_terminal_size()))
    else:
        form = "jsonl" if session.form in {None, "table", "wide", "json"} else session.form
        sys.stdout.write(output.serialise(snapshot, form or "jsonl"))
    sys.stdout.flush()


def _snapshot(session: Session) -> dict[str, Any]:
    stats = session.get(address.path("stats"))
    target = address.path("logs") + address.query([("limit", DECISIONS)])
    return {
        "server": session.config.endpoint.url,
        "last_minute": _minute(stats),
        "providers": sorted(
            session.listed(address.path("health"), "providers"),
            key=lambda row: str(row.get("provider_id")),
        ),
        "decisions": session.listed(target, "logs", "items"),
    }


def _minute(stats: dict[str, Any]) -> dict[str, Any]:
    windows = stats.get("global") or []
    if isinstance(windows, dict):
        windows = [{"window": name, **value} for name, value in windows.items()]
    return next((window for window in windows if window.get("window") == "1m"), {})


def frame(snapshot: dict[str, Any], columns: int, lines: int) -> str:
    """The picture: rates of the last minute, providers, decisions; cut to the terminal."""
    minute = snapshot["last_minute"]
    requests = minute.get("request_count") or 0
    head = [
        f"TokenHub {snapshot['server']}   {time.strftime('%H:%M:%S')}",
        "   ".join(
            (
                f"requests/s {requests / 60:.2f}",
                f"errors {(minute.get('error_rate') or 0) * 100:.1f}%",
                f"spend/min {cells.money(minute.get('total_cost_usd') or 0)}",
                f"latency avg {cells.duration(minute.get('avg_latency_ms'))}",
                f"p95 {cells.duration(minute.get('p95_latency_ms'))}",
            )
        ),
        "",
    ]
    body = [*_table(snapshot["providers"], PROVIDERS), "", *_table(snapshot["decisions"], LOGS)]
    # The last line stays empty: writing it would scroll the terminal.
    shown = [*head, *body][: max(lines - 1, 1)]
    return "\n".join(table.cut(line, columns) for line in shown)


def _table(data: list[dict[str, Any]], layout: Any) -> list[str]:
    return rows(data, layout).text(False, True).splitlines() if data else [layout.empty]
