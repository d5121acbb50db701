"""Shell completion: Click's scripts, and ids asked from the live server.

Completion must never be slow or loud: the server gets 300 ms, answers are kept for 10 s, and any
failure completes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenhubctl import table
from tokenhubctl.errors import CliError
from tokenhubctl.session import Session, objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import click

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_TOKENHUBCTL_COMPLETE"
CACHE_SECONDS = 10.0
LIMIT_SECONDS = 0.3

# What to ask for each kind of id: route, member of the answer, member of an item.
_SOURCES = {
    "provider": ("/admin/v1/providers", "items", "id"),
    "model": ("/admin/v1/engine/models", "models", "id"),
    "apikey": ("/admin/v1/apikeys", "keys", "id"),
    "alias": ("/admin/v1/aliases", "items", "name"),
    "secret": ("/admin/v1/vault/secrets", "secrets", "id"),
    "request": ("/admin/v1/logs?limit=50", "logs", "request_id"),
}


def script(root: click.Command, shell: str) -> str:
    """The text that makes a shell complete tokenhubctl."""
    from click.shell_completion import ShellComplete, get_completion_class  # noqa: PLC0415

    kind = get_completion_class(shell)
    assert kind is not None
    # The base method: bash's own first starts a bash to look at its version.
    text = ShellComplete.source(kind(root, {}, "tokenhubctl", VARIABLE))
    return _with_colons(text) if shell == "bash" else text


# bash takes `llama3:8b` for three words, and replaces only what follows the last colon.
_JOINED = """\
    local words=() word before= i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $i -gt 1 && ( $word == :* || $before == *: ) ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
        fi
        before=$word
    done
    local cword=$(( ${#words[@]} - 1 ))
    local typed=${words[cword]%"${words[cword]##*:}"}
"""


def _with_colons(text: str) -> str:
    for old, new in (
        ("    local response\n", f"    local response\n{_JOINED}"),
        ('"${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD', '"${words[*]}" COMP_CWORD=$cword'),
        ("COMPREPLY+=($value)", 'COMPREPLY+=("${value#"$typed"}")'),
    ):
        assert text.count(old) == 1, "Click's script for bash has changed"
        text = text.replace(old, new)
    return text


def ids(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """A completer for the ids of a kind of thing."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        found = _cached(ctx.ensure_object(Session), kind)
        return [name for name in found if name.startswith(incomplete)]

    return complete


def _cached(session: Session, kind: str) -> list[str]:
    import hashlib  # noqa: PLC0415  (3 ms for every command that has an id)

    with contextlib.suppress(CliError, OSError, ValueError):
        url = hashlib.sha256(session.config.endpoint.url.encode()).hexdigest()[:16]
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        file = Path(root).expanduser() / "tokenhubctl" / f"{kind}-{url}.json"
        with contextlib.suppress(OSError, ValueError):
            if 0 <= time.time() - file.stat().st_mtime < CACHE_SECONDS:  # noqa: TID251  (file times)
                return [str(name) for name in json.loads(file.read_text("utf-8"))]
        found = _asked(session, kind)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(found), "utf-8")
        draft.replace(file)
        return found
    return []


def _asked(session: Session, kind: str) -> list[str]:
    target, member, name = _SOURCES[kind]
    with _silence(), _alarm(LIMIT_SECONDS):
        answer: Any = session.client.call("GET", target)
    found = [str(item.get(name)) for item in objects(answer, member)]
    # A name that could drive the terminal is left to be typed with care.
    return sorted({item for item in found if table.visible(item) == item})


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(_signal: int, _frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):
        yield
