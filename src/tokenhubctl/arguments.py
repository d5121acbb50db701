r"""Arguments with more than one source: ``-`` is stdin, ``@file`` a file, a leading ``\@`` an @.

Secrets may also come from the environment or a prompt that does not echo, so that they need not
stand in the process list or the shell's history.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenhubctl import table
from tokenhubctl.errors import UsageFault

if TYPE_CHECKING:
    from tokenhubctl.config import Found

MAX_INPUT = 64 * 1024 * 1024


class Secret:
    """A password, token or value from argv, stdin, a file, the environment or a prompt.

    Args:
        name: what it is, for prompts and messages.
        fallback: a setting to use when the argument is missing.
        twice: ask a second time at the prompt, for a new secret nobody can check otherwise.
    """

    def __init__(self, name: str, *, fallback: Found | None = None, twice: bool = False) -> None:
        self.name = name
        self.fallback = fallback
        self.twice = twice

    def resolve(self, given: str | None) -> str:
        """The secret. Raises UsageFault when there is none and nobody to ask."""
        if given is not None:
            return self._given(given)
        if self.fallback is not None:
            return self.fallback.value
        if not sys.stdin.isatty():
            raise UsageFault(
                f"The {self.name} is missing.",
                hint="Give it as an argument, as `-` (stdin) or as `@file`.",
            )
        return self._asked()

    def _given(self, given: str) -> str:
        source = _source(given)
        if source is None:
            if sys.stderr.isatty():
                print(
                    f"note: a {self.name} on the command line stays in the shell's history and "
                    "shows in the process list; `-`, `@file` or a prompt (leave it out) do not",
                    file=sys.stderr,
                )
            return given[1:] if given.startswith("\\@") else given
        secret = _read(source, self.name, _literal(source))
        # One line break at the end is the editor's or echo's, not the secret's.
        secret = secret.removesuffix("\n").removesuffix("\r")
        if not secret:
            raise UsageFault(f"The {self.name} read from {source} is empty.")
        return secret

    def _asked(self) -> str:
        from getpass import getpass  # noqa: PLC0415

        try:
            secret = getpass(f"{self.name.capitalize()}: ", stream=None)
            if self.twice and getpass(f"{self.name.capitalize()} again: ") != secret:
                raise UsageFault("The two entries differ; nothing was changed.")
        except EOFError as error:
            raise UsageFault(f"The {self.name} is missing.") from error
        if not secret:
            raise UsageFault(f"The {self.name} is empty.")
        return secret


def _source(given: str) -> str | None:
    """``stdin`` or a file name, None for a literal."""
    if given == "-":
        return "stdin"
    return given[1:] if given.startswith("@") and len(given) > 1 else None


def _literal(source: str) -> str:
    return f"Write \\@{source} if the text itself starts with @."


def read_file(path: str, name: str) -> str:
    """The text of a file, or of stdin for ``-``, where the argument can be nothing else."""
    return _read("stdin" if path == "-" else path, name)


def _read(source: str, name: str, hint: str | None = None) -> str:
    try:
        if source == "stdin":
            if sys.stdin.isatty():
                print(f"reading the {name} from the terminal; end with Ctrl-D", file=sys.stderr)
            data = sys.stdin.buffer.read(MAX_INPUT + 1)
        else:
            with Path(os.path.expanduser(source)).open("rb") as file:  # noqa: PTH111  (text first)
                data = file.read(MAX_INPUT + 1)
    except OSError as error:
        raise UsageFault(
            f"Cannot read the {name} from {source}: {error.strerror}.", hint=hint
        ) from error
    if len(data) > MAX_INPUT:
        raise UsageFault(f"The {name} in {source} is larger than 64 MiB.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageFault(f"The {name} in {source} is not UTF-8 text.") from error


def json_text(given: str, what: str) -> str:
    """The text of a JSON argument, from wherever it stands."""
    source = _source(given)
    if source is None:
        return given[1:] if given.startswith("\\@") else given
    return _read(source, what, _literal(source))


def json_value(given: str, what: str) -> tuple[bytes, Any]:
    """A JSON argument as the bytes to send, so that no number loses a digit, and its value."""
    text = json_text(given, what)
    value = parse_json(text, what)
    try:
        return text.encode(), value
    except UnicodeEncodeError as error:
        raise UsageFault(f"The {what} is not UTF-8 text.") from error


def json_object(given: str, what: str) -> bytes:
    """A JSON object checked here and sent byte for byte.

    Raises UsageFault with the place of the mistake.
    """
    raw, value = json_value(given, what)
    if not isinstance(value, dict):
        raise UsageFault(
            f"The {what} must be a JSON object, not {_kind(value)}.",
            hint="""Write it as '{"name": "value"}'.""",
        )
    return raw


def parse_json(text: str, what: str) -> Any:
    """A JSON value; a repeated member, NaN or Infinity is a mistake, not a guess."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise UsageFault(
            f"The {what} is not valid JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}: {_near(text, error.pos)}",
            hint="In a shell, put the JSON in single quotes; or use @file or - (stdin).",
        ) from error
    except RecursionError as error:
        raise UsageFault(f"The {what} is nested too deeply.") from error
    except ValueError as error:
        raise UsageFault(f"The {what} is not usable JSON: {error}.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the member {table.visible(twice)!r} stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _near(text: str, position: int) -> str:
    # Members before the mistake may be secrets; what follows it is shown only if it is short.
    return repr(text[position : position + 1]) if position < len(text) else "the end"


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
