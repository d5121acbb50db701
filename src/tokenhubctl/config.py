"""Settings and where each came from.

    setting       real environment > ~/.tokenhub/env > default
    admin token   real environment > ~/.tokenhub/.admin-token (loopback only) > ~/.tokenhub/env

The token file outranks the env file because the server rewrites it at every start and rotation,
while the env file is a copy that may be stale.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tokenhubctl import address

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenhubctl.address import Endpoint

DEFAULT_URL = "http://localhost:8080"
URL = "TOKENHUB_URL"
ADMIN_TOKEN = "TOKENHUB_ADMIN_TOKEN"  # noqa: S105  (a variable's name)
API_KEY = "TOKENHUB_API_KEY"
VAULT_PASSWORD = "TOKENHUB_VAULT_PASSWORD"  # noqa: S105
OUTPUT = "TOKENHUB_OUTPUT"


class Found(NamedTuple):
    """A value and, in words for a message, where it stood."""

    value: str
    source: str


class Config:
    """The settings of one run.

    Args:
        environ: the process environment.
        home: the directory with ``env`` and ``.admin-token``.
        url: the --url option; outranks everything.
    """

    def __init__(self, environ: Mapping[str, str], home: Path, url: str | None = None) -> None:
        self.home = home
        self._environ = environ
        self._file = read_env_file(home / "env")
        self._url = url

    @classmethod
    def load(cls, url: str | None = None) -> Config:
        """The settings of this process and user."""
        return cls(os.environ, Path("~/.tokenhub").expanduser(), url)

    def find(self, name: str) -> Found | None:
        """A TOKENHUB_* setting; an empty one counts as unset."""
        if value := self._environ.get(name):
            return Found(value, f"the environment variable {name}")
        if value := self._file.get(name):
            return Found(value, f"{name} in {self.home / 'env'}")
        return None

    @property
    def url(self) -> Found:
        """The server's URL as it was given."""
        if self._url:
            return Found(self._url, "--url")
        return self.find(URL) or Found(DEFAULT_URL, "the default")

    @property
    def endpoint(self) -> Endpoint:
        """The server's address. Raises UsageFault for a malformed URL."""
        found = self.url
        setting = "--url" if found.source == "--url" else URL
        return address.split(found.value, setting=setting)[0]

    def admin_tokens(self) -> list[Found]:
        """The admin tokens to try, best first, none twice."""
        found: list[Found] = []
        if value := self._environ.get(ADMIN_TOKEN):
            found.append(Found(value, f"the environment variable {ADMIN_TOKEN}"))
        if address.is_loopback(self.endpoint.host) and (stored := self.token_file()):
            found.append(stored)
        if (value := self._file.get(ADMIN_TOKEN)) and self._env_file_is_for_this_server():
            found.append(Found(value, f"{ADMIN_TOKEN} in {self.home / 'env'}"))
        return list({item.value: item for item in reversed(found)}.values())[::-1]

    def token_file(self) -> Found | None:
        """The token the server on this machine wrote."""
        path = self.home / ".admin-token"
        try:
            value = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return Found(value, str(path)) if value else None

    def token_file_fault(self) -> str:
        """In words, why the token file gives no token; "" when it does."""
        path = self.home / ".admin-token"
        try:
            return "" if path.read_text("utf-8").strip() else f"{path} is empty"
        except FileNotFoundError:
            return f"{path} does not exist"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        except UnicodeDecodeError:
            return f"{path} is not UTF-8 text"

    def _env_file_is_for_this_server(self) -> bool:
        """A file that names a server holds the token of that server, and no other gets it."""
        named = self._file.get(URL)
        if not named:
            return True
        theirs, ours = address.split(named)[0], self.endpoint
        same_machine = address.is_loopback(theirs.host) and address.is_loopback(ours.host)
        return same_machine or theirs == ours


def read_env_file(path: Path) -> dict[str, str]:
    """The TOKENHUB_* settings of an env file; {} when it cannot be read."""
    try:
        return parse_env(path.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return {}


def parse_env(lines: Iterable[str]) -> dict[str, str]:
    """``NAME=value`` lines, also with ``export`` and quotes; other lines are skipped.

    As in a shell, a backslash in double quotes makes ``"``, ``$``, a backtick or a backslash
    literal, and single quotes take all as it is. Nothing is expanded.
    """
    settings: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.strip().partition("=")
        name = name.removeprefix("export ").strip()
        if equals and name.startswith("TOKENHUB_"):
            settings[name] = _unquoted(value.strip())
    return settings


def _unquoted(text: str) -> str:
    if text[:1] not in {"'", '"'}:
        return text.partition(" #")[0].rstrip()
    quote, value, rest = text[0], "", iter(text[1:])
    for char in rest:
        if char == quote:
            return value
        if char == "\\" and quote == '"':
            following = next(rest, "")
            value += following if following in '"\\$`' else char + following
        else:
            value += char
    return text  # never closed: the quote belongs to the value
