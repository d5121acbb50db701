"""api: any route of the server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tokenhubctl.arguments import json_value, parse_json
from tokenhubctl.command import pass_session, verb
from tokenhubctl.errors import UsageFault
from tokenhubctl.view import View, document

if TYPE_CHECKING:
    from tokenhubctl.session import Session

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")


@verb("api")
@click.argument("method", type=click.Choice(METHODS, case_sensitive=False), metavar="METHOD")
@click.argument("path")
@click.argument("body", required=False)
@pass_session
def api(session: Session, method: str, path: str, body: str | None) -> View | None:
    """Call any route of the server.

    PATH starts with / and is sent as it is. BODY is JSON (or - for stdin, or @file). An answer
    that is not JSON is printed as it came.
    """
    if not path.startswith("/") or any(ord(char) <= 32 or ord(char) > 126 for char in path):
        raise UsageFault(
            f"{path!r} is not a path: it must start with / and be percent-encoded.",
            hint="An example: tokenhubctl api GET /admin/v1/info",
        )
    sent = None if body is None else json_value(body, "body")[0]
    raw = session.client.raw(method.upper(), path, sent)
    try:
        return document(parse_json(raw.decode(), "answer")) if raw else None
    except (UsageFault, UnicodeDecodeError):
        if session.form in {None, "table", "wide"} and not sys.stdout.isatty():
            sys.stdout.buffer.write(raw)
            return None
        return document(raw.decode("utf-8", "replace"))
