"""admin-token, rotate-admin-token: the credential of the admin API."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import click

from tokenhubctl import address
from tokenhubctl.arguments import Secret
from tokenhubctl.command import pass_session, verb
from tokenhubctl.config import ADMIN_TOKEN, Found
from tokenhubctl.errors import CliError, NoCredential
from tokenhubctl.view import View, bare

if TYPE_CHECKING:
    from tokenhubctl.session import Session

CONTAINERS = ("tokenhub-tokenhub-1", "tokenhub")
DOCKER_SECONDS = 10


@verb("admin-token")
@pass_session
def admin_token(session: Session) -> View:
    """Print the admin token (environment, file, or Docker).

    Looks at TOKENHUB_ADMIN_TOKEN, then at ~/.tokenhub/.admin-token, then asks the running
    container for /data/.admin-token, and last at ~/.tokenhub/env. Prints the token alone.
    """
    found = _environment(session) or session.config.token_file() or _container()
    found = found or session.config.find(ADMIN_TOKEN)
    if found is None:
        raise NoCredential(
            f"No admin token: {ADMIN_TOKEN} is not set, {session.config.token_file_fault()}, "
            "and no container gave one.",
            hint="Start the server on this machine, or copy the token from the server's.",
        )
    return bare({"token": found.value, "source": found.source}, found.value, key="token")


def _environment(session: Session) -> Found | None:
    found = session.config.find(ADMIN_TOKEN)
    return found if found and found.source.startswith("the environment") else None


def _container() -> Found | None:
    for name in CONTAINERS:
        command = ["docker", "exec", name, "cat", "/data/.admin-token"]
        try:
            ran = subprocess.run(  # noqa: S603  (a fixed command)
                command, capture_output=True, check=False, timeout=DOCKER_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        token = ran.stdout.decode("utf-8", "replace").strip()
        if ran.returncode == 0 and token:
            return Found(token, f"the container {name}")
    return None


@verb("rotate-admin-token", literal=True)
@click.argument("token", required=False)
@pass_session
def rotate_admin_token(session: Session, token: str | None) -> View:
    """Replace the admin token; random when none is given.

    TOKEN has at least 16 characters, and may be - (stdin) or @file. The old token is refused
    from the next request on.
    """
    body = {} if token is None else {"token": Secret("new admin token").resolve(token)}
    answer = session.change("POST", address.path("admin-token", "rotate"), body)
    new = answer.get("token")
    if not new:
        raise CliError("The server rotated the token but did not return the new one.")
    return View(
        answer,
        lambda _wide, _headings: (
            f"Admin token rotated.\n{new}\n\n"
            "Update TOKENHUB_ADMIN_TOKEN where you have set it, or run: make _write-env\n"
        ),
        key="token",
    )
