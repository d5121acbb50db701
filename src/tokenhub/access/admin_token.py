"""The one admin token: from the environment, else from its file, else random; kept in files.

The token file is the truth between restarts. ``rotate`` writes, in this order:

    1  .admin-token-state   digests of tokens that must not win again by the environment
    2  .admin-token         the new token: from here on the new one is valid after a restart
    3  memory               the old one is refused from here on
    4  env                  the same as a shell assignment, for the operator's scripts

A crash before 2 leaves the old token valid and in the file, after it the new one. The state may
then name the old token while the file still holds it: the file wins, so nobody is locked out. A
stale env file is mended by the next start.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.errors import InvalidRequest
from tokenhub.storage.database import StorageRefused

if TYPE_CHECKING:
    from tokenhub.storage.files import DataDir

TOKEN_FILE = ".admin-token"  # noqa: S105  # a file name
STATE_FILE = ".admin-token-state"
ENV_FILE = "env"

MIN_LENGTH = 16
MAX_LENGTH = 1024
KEPT_DIGESTS = 64
TOKEN_VARIABLE = "TOKENHUB_ADMIN_TOKEN"  # noqa: S105  # a variable's name

_LINE = re.compile(rb"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=")


class AdminToken:
    """The token that opens the admin API. Make it with ``load``."""

    def __init__(self, data_dir: DataDir, token: str, superseded: list[str]) -> None:
        self._data_dir = data_dir
        self._digest = _digest(token)
        self._superseded = superseded

    @classmethod
    def load(cls, data_dir: DataDir, env_token: str | None) -> AdminToken:
        """The token of this start; the files are brought in line with it.

        ``env_token`` (the variable's value, None or "" when unset) wins, unless a rotation has
        superseded it; then the file, then a fresh random token.

        Raises:
            InvalidRequest: ``env_token`` is too short or not printable ASCII.
        """
        superseded = _read_state(data_dir)
        token = _read_token(data_dir)
        if env_token:
            check_token(env_token)
            if token is None or _digest(env_token).hex() not in superseded:
                token = env_token
        token = token or secrets.token_hex(32)
        data_dir.write(TOKEN_FILE, token.encode() + b"\n")
        _write_env(data_dir, token)
        return cls(data_dir, token, superseded)

    def verify(self, presented: bytes) -> bool:
        """Whether this is the token; takes the same time whatever is presented."""
        return hmac.compare_digest(hashlib.sha256(presented).digest(), self._digest)

    def rotate(self, token: str | None = None) -> str:
        """Make ``token``, or a random one, the only valid one; durable before this returns.

        Raises:
            InvalidRequest: too short, not printable ASCII, or the one that is valid now.
            OSError: a file cannot be written; the token file holds the one that is valid.
        """
        new = secrets.token_hex(32) if token is None else token
        check_token(new)
        if self.verify(new.encode()):
            raise InvalidRequest("The new token is the one that is valid now.", param="token")
        old = self._digest.hex()
        superseded = [one for one in self._superseded if one not in {old, _digest(new).hex()}]
        superseded = [*superseded, old][-KEPT_DIGESTS:]
        self._data_dir.write(STATE_FILE, msgspec.json.encode({"superseded": superseded}))
        self._data_dir.write(TOKEN_FILE, new.encode() + b"\n")
        self._digest = _digest(new)
        self._superseded = superseded
        _write_env(self._data_dir, new)
        return new


def check_token(token: str) -> None:
    """Refuse a token that is too easy to guess or cannot travel in a header.

    Raises:
        InvalidRequest: not 16 to 1024 visible ASCII characters.
    """
    visible = token.isascii() and token.isprintable() and " " not in token
    if not MIN_LENGTH <= len(token) <= MAX_LENGTH or not visible:
        raise InvalidRequest(
            f"An admin token has {MIN_LENGTH} to {MAX_LENGTH} visible ASCII characters and no "
            "spaces.",
            param="token",
        )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _read_token(data_dir: DataDir) -> str | None:
    content = data_dir.read(TOKEN_FILE)
    if content is None:
        return None
    token = content.decode("latin-1").strip()
    try:
        check_token(token)
    except InvalidRequest:  # emptied or garbled: as good as none
        return None
    return token


def _read_state(data_dir: DataDir) -> list[str]:
    content = data_dir.read(STATE_FILE)
    if content is None:
        return []
    try:
        return msgspec.json.decode(content, type=dict[str, list[str]])["superseded"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        # Going on without it could make a rotated token valid again.
        raise StorageRefused(
            f"{data_dir.path / STATE_FILE} is damaged. Unset {TOKEN_VARIABLE} if it holds a token "
            "from before the last rotation, then remove the file."
        ) from None


def _write_env(data_dir: DataDir, token: str) -> None:
    """Set the variable in the env file; other lines stay."""
    kept = [
        line
        for line in (data_dir.read(ENV_FILE) or b"").splitlines()
        if (match := _LINE.match(line)) is None or match[1].decode() != TOKEN_VARIABLE
    ]
    lines = [f"{TOKEN_VARIABLE}={_shell_word(token)}".encode(), *kept]
    data_dir.write(ENV_FILE, b"\n".join(lines) + b"\n")


def _shell_word(token: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_./:@%+=,-]+", token):
        return token
    return "'" + token.replace("'", "'\\''") + "'"
