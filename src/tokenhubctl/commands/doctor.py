"""doctor: what is wrong, and the command that mends it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenhubctl import __version__, address
from tokenhubctl.client import Client
from tokenhubctl.command import pass_session, verb
from tokenhubctl.commands.health import last_error
from tokenhubctl.config import URL
from tokenhubctl.errors import FAILED, CliError, UsageFault
from tokenhubctl.session import Session, objects
from tokenhubctl.view import Column, Layout, View, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tokenhubctl.client import Reply

MAX_SKEW_SECONDS = 5.0
LOW_DISK_BYTES = 1 << 30

CHECKS = Layout(
    (
        Column("CHECK", "check"),
        Column("STATE", "state"),
        Column("FINDING", "finding"),
        Column("FIX", "fix"),
    ),
    key="check",
    empty="Nothing to check.",
)


class Finding(NamedTuple):
    """One line of the report. ``state`` is ok, warning or failed."""

    check: str
    state: str
    finding: str
    fix: str = ""


@verb("doctor")
@pass_session
def doctor(session: Session) -> View:
    """Check this machine and the server; each finding with its fix.

    Ends with 1 when a check failed; a warning does not count.
    """
    found = [*_address(session)]
    if all(item.state != "failed" for item in found):
        found += _server(session)
    found += [*_files(session.config.home), *_disk(session.config.home)]
    failed = any(item.state == "failed" for item in found)
    return rows([item._asdict() for item in found], CHECKS, exit_code=FAILED if failed else 0)


def _address(session: Session) -> Iterator[Finding]:
    found = session.config.url
    try:
        yield Finding("url", "ok", f"{session.config.endpoint.url} ({found.source})")
    except UsageFault as error:
        yield Finding("url", "failed", error.message, error.hint or "")


def _server(session: Session) -> list[Finding]:
    """All that needs a server; stops at the first thing the rest depends on."""
    client = Client(session.config.endpoint, [], read_seconds=session.options.timeout)
    try:
        reply = client.exchange("GET", "/healthz")
    except CliError as error:
        return [Finding("server", "failed", error.message, "Start it: tokenhub (or make start)")]
    if not _is_tokenhub(reply):
        finding = f"what answers there is no TokenHub (GET /healthz: {reply.status})"
        return [Finding("server", "failed", finding, f"Put its address into {URL}.")]
    found = [Finding("server", "ok", f"answers in {reply.seconds * 1000:.0f} ms")]
    found += _clock(reply.headers.get("date", ""))
    found += _token(session)
    if found[-1].state == "failed":
        return found
    info = session.get(address.path("info"))
    found += [*_version(info), *_vault(info)]
    for name, look in (("catalog", _catalog), ("provider health", _down)):
        found += _tolerant(name, look, session)
    return found


def _is_tokenhub(reply: Reply) -> bool:
    """Whether the answer to /healthz, 200 or 503, has the members that ours has."""
    try:
        body = json.loads(reply.body)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and {"status", "adapters", "models"} <= body.keys()


def _tolerant(
    name: str, look: Callable[[Session], Iterator[Finding]], session: Session
) -> list[Finding]:
    """A check that the server could not answer is a finding too."""
    try:
        return list(look(session))
    except CliError as error:
        return [Finding(name, "warning", error.message, error.hint or "")]


def _clock(date: str) -> Iterator[Finding]:
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return
    skew = abs(time.time() - theirs)  # noqa: TID251  (the wall clock is what is checked)
    if skew > MAX_SKEW_SECONDS:
        yield Finding(
            "clock", "warning", f"{skew:.0f} s apart from the server's", "Run an NTP client."
        )
    else:
        yield Finding("clock", "ok", "agrees with the server's")


def _token(session: Session) -> Iterator[Finding]:
    tokens = session.config.admin_tokens()
    fix = 'export TOKENHUB_ADMIN_TOKEN="$(tokenhubctl admin-token)"'
    if not tokens:
        fault = session.config.token_file_fault()
        yield Finding("admin token", "failed", f"none found; {fault}", fix)
    for number, token in enumerate(tokens, 1):
        client = session.client_with([token])
        try:
            client.call("GET", address.path("info"))
        except CliError as error:
            last = number == len(tokens)
            state = "failed" if last else "warning"
            finding = f"from {token.source}: {error.message}"
            yield Finding("admin token", state, finding, fix if last else "Remove the stale token.")
        else:
            yield Finding("admin token", "ok", f"from {token.source}")
            return


def _version(info: dict[str, Any]) -> Iterator[Finding]:
    theirs = info.get("version")
    if not theirs:
        return
    if theirs == __version__:
        yield Finding("version", "ok", str(theirs))
    else:
        finding = f"server {theirs}, tokenhubctl {__version__}"
        yield Finding("version", "warning", finding, "Install the same version: make install")


def _vault(info: dict[str, Any]) -> Iterator[Finding]:
    if "vault_initialized" not in info:
        yield Finding("vault", "warning", "the server does not say")
    elif not info["vault_initialized"]:
        fix = "tokenhubctl vault unlock (the first time creates it)"
        yield Finding("vault", "warning", "not created yet", fix)
    elif info.get("vault_locked"):
        yield Finding(
            "vault", "failed", "locked, so no provider key can be used", "tokenhubctl vault unlock"
        )
    else:
        yield Finding("vault", "ok", "unlocked")


def _catalog(session: Session) -> Iterator[Finding]:
    listed = session.listed(address.path("providers"), "items", "providers")
    built_in = ("demo", "runtime")
    providers = [row for row in listed if (row.get("type"), row.get("source")) != built_in]
    if providers:
        yield Finding("providers", "ok", f"{len(providers)} configured")
    else:
        fix = "tokenhubctl provider add '<json>'"
        yield Finding("providers", "warning", "none; only the demo model answers", fix)
    models = objects(session.get(address.path("engine", "models")), "models")
    enabled = sum(1 for model in models if model.get("enabled") is not False)
    if enabled:
        yield Finding("models", "ok", f"{enabled} enabled of {len(models)}")
    else:
        yield Finding("models", "failed", "none enabled", "tokenhubctl model enable ID")


def _down(session: Session) -> Iterator[Finding]:
    for state in session.listed(address.path("health"), "providers"):
        if state.get("state") == "down":
            name = str(state.get("provider_id"))
            finding = f"{name} is down: {last_error(state)[1] or 'no error recorded'}"
            yield Finding(
                "provider health", "warning", finding, f"tokenhubctl provider-status {name}"
            )


def _files(home: Path) -> Iterator[Finding]:
    try:
        files = sorted(home.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        finding = f"cannot look into {home} ({error.strerror})"
        yield Finding("file modes", "failed", finding, f"ls -ld {shlex.quote(str(home))}")
        return
    wrong = [(home, 0o700)] if _open_to_others(home) else []
    wrong += [(file, 0o600) for file in files if _open_to_others(file)]
    for path, mode in wrong:
        yield Finding(
            "file modes",
            "failed",
            f"others can read {path}",
            f"chmod {mode:o} {shlex.quote(str(path))}",
        )
    if not wrong:
        yield Finding("file modes", "ok", f"{home} is private")


def _open_to_others(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    # The mode of a link says nothing; nobody but its owner can be let into a private folder.
    return not stat.S_ISLNK(mode) and bool(stat.S_IMODE(mode) & 0o077)


def _disk(home: Path) -> Iterator[Finding]:
    # os.path, because Path.exists raises where a folder above may not be entered.
    nearest = next(path for path in (home, *home.parents) if os.path.exists(path))  # noqa: PTH110
    free = shutil.disk_usage(nearest).free
    text = f"{free / (1 << 30):.1f} GiB free at {nearest}"
    if free < LOW_DISK_BYTES:
        yield Finding("disk", "warning", text, "Free some space, or shorten the retention.")
    else:
        yield Finding("disk", "ok", text)
