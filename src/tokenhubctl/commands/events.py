"""events: the live stream, across restarts of the server."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from tokenhubctl import address, cells, output, table
from tokenhubctl.command import pass_session, verb
from tokenhubctl.errors import ApiError, Unreachable
from tokenhubctl.session import Session, explain_missing_route

if TYPE_CHECKING:
    from tokenhubctl.sse import Event

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
# Members of an event in the order a line shows them, with the word for each.
_SHOWN = (
    ("model_id", "model", cells.text),
    ("provider_id", "provider", cells.text),
    ("latency_ms", "latency", cells.duration),
    ("cost_usd", "cost", cells.cost),
    ("old_state", "from", cells.text),
    ("new_state", "to", cells.text),
    ("error_class", "class", cells.text),
    ("error_msg", "error", cells.text),
    ("reason", "reason", cells.text),
    ("api_key_name", "key", cells.text),
    ("request_id", "request", cells.text),
)


@verb("events")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only events of this type.")
@pass_session
def events(session: Session, *, types: tuple[str, ...]) -> None:
    """Live event stream (Ctrl-C to stop).

    Survives a restart of the server: it reconnects, goes on after the last event seen, and says
    so on stderr. --type may be repeated, and may be a comma list.
    """
    wanted = frozenset(name for item in types for name in item.split(",") if name)
    target = address.path("events")
    session.note(f"Streaming events from {session.config.endpoint.url} (Ctrl-C to stop)")
    last_id, pause, connected = "", FIRST_PAUSE, False
    while True:
        try:
            for event in session.client.events(target, last_id):
                last_id, pause, connected = event.id, FIRST_PAUSE, True
                _print(session, event, wanted)
            why = "the server ended the stream"
        except (ApiError, Unreachable) as error:
            if connected and session.renewed(error):
                continue
            if not (connected and error.retryable):
                if isinstance(error, ApiError):
                    explain_missing_route(error, "GET", target)
                raise
            why = error.message.rstrip(".")
        session.note(f"Stream interrupted ({why}); reconnecting in {pause:g} s")
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def _print(session: Session, event: Event, wanted: frozenset[str]) -> None:
    if wanted and event.type not in wanted:
        return
    data = _decoded(event)
    form = session.form
    if form in {None, "table", "wide"}:
        if event.type != "connected":
            print(line(event, data))
    elif form == "name":
        print(table.visible(event.type))
    else:
        shape = "jsonl" if form == "json" else form
        body = {"id": event.id or None, "type": event.type, **data}
        sys.stdout.write(output.serialise(body, shape or "jsonl", headings=False))
    sys.stdout.flush()


def _decoded(event: Event) -> dict[str, Any]:
    try:
        data = json.loads(event.data)
    except ValueError:
        data = event.data
    return data if isinstance(data, dict) else {"data": data}


def line(event: Event, data: dict[str, Any]) -> str:
    """One event as ``[HH:MM:SS] type  model=… provider=…``, in the server's time made local."""
    stamp = cells.time(data.get("timestamp"))
    clock = (
        stamp[-8:] if stamp != cells.MISSING else datetime.now().astimezone().strftime("%H:%M:%S")
    )
    known = {name for name, _, _ in _SHOWN} | {"type", "timestamp"}
    others = [(name, name, cells.text) for name in data if name not in known]
    parts = [
        f"{word}={cell(data[name])}"
        for name, word, cell in (*_SHOWN, *others)
        if data.get(name) not in (None, "")
    ]
    return table.visible(f"[{clock}] {event.type}  {' '.join(parts)}".rstrip())
