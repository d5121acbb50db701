"""vault: the encrypted store of provider keys and other secrets."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tokenhubctl import address, cells, table
from tokenhubctl.arguments import Secret
from tokenhubctl.command import Noun, noun, pass_session
from tokenhubctl.completion import ids
from tokenhubctl.config import VAULT_PASSWORD
from tokenhubctl.errors import ApiError
from tokenhubctl.view import Column, Layout, View, bare, done, record, rows

if TYPE_CHECKING:
    from tokenhubctl.session import Session


@noun("vault")
def vault() -> None:
    """Open, close and re-key the secret store."""


@vault.command("unlock", literal=True)
@click.argument("password", required=False)
@pass_session
def unlock(session: Session, password: str | None) -> View:
    """Open the vault; the first time, create it.

    PASSWORD has at least 8 bytes, and may be - (stdin) or @file. Left out, it comes from
    TOKENHUB_VAULT_PASSWORD or from a prompt.
    """
    secret = Secret("vault password", fallback=session.config.find(VAULT_PASSWORD))
    body = {"admin_password": secret.resolve(password)}
    answer = session.change("POST", address.path("vault", "unlock"), body)
    if answer.get("created"):
        session.note("note: a new vault was created; nothing opens it but this password")
    return done(answer, "Vault unlocked.")


@vault.command("lock")
@pass_session
def lock(session: Session) -> View:
    """Close the vault."""
    answer = session.change("POST", address.path("vault", "lock"), {})
    already = answer.get("already_locked")
    return done(answer, "Vault was already locked." if already else "Vault locked.")


@vault.command("rotate", literal=True)
@click.argument("old", metavar="[OLD]", required=False)
@click.argument("new", metavar="[NEW]", required=False)
@pass_session
def rotate(session: Session, old: str | None, new: str | None) -> View:
    """Change the vault password.

    Both may be - (stdin: the old one on the first line, the new one on the second) or @file, or
    be left out and typed at a prompt.
    """
    if old == new == "-":
        old, new = _two_lines()
    fallback = session.config.find(VAULT_PASSWORD) if old is None else None
    body = {
        "old_password": Secret("old vault password", fallback=fallback).resolve(old),
        "new_password": Secret("new vault password", twice=True).resolve(new),
    }
    answer = session.change("POST", address.path("vault", "rotate"), body)
    return done(answer, "Vault password rotated.")


def _two_lines() -> tuple[str, str]:
    lines = Secret("vault passwords").resolve("-").split("\n")
    if len(lines) != 2:
        raise click.UsageError("stdin must hold two lines: the old password and the new one.")
    return lines[0].removesuffix("\r"), lines[1]


@vault.command("status")
@pass_session
def status(session: Session) -> View:
    """Whether the vault exists and is open."""
    try:
        answer = session.get(address.path("vault", "status"), "locked")
    except ApiError as error:
        if error.status not in {404, 405}:
            raise
        info = session.get(address.path("info"), "vault_locked", "vault_initialized")
        answer = {
            "locked": info.get("vault_locked"),
            "initialized": info.get("vault_initialized"),
        }
    pairs = [
        (name.replace("_", " ").capitalize(), cells.text(value)) for name, value in answer.items()
    ]
    return record(answer, pairs)


@vault.group("secret", cls=Noun)
def secret() -> None:
    """Read and write single secrets."""


NAMES = Layout((Column("NAME", "name"),), key="name", empty="(no secrets stored)")


@secret.command("list", watch=True)
@pass_session
def list_(session: Session) -> View:
    """Names of the stored secrets."""
    answer = session.listed(address.path("vault", "secrets"), "secrets", "items")
    names = sorted(str(item.get("id") or item.get("name") or item.get("key")) for item in answer)
    view = rows([{"name": name} for name in names], NAMES)
    # One bare name per line, as in a file of names; the heading would be one more name.
    text = view.text
    view.text = lambda wide, _headings: text(wide, False)
    return view


@secret.command("get")
@click.argument("key", shell_complete=ids("secret"))
@pass_session
def get(session: Session, key: str) -> View:
    """Print one secret."""
    answer = session.get(address.path("vault", "secrets", key), "value")
    value = str(answer["value"])
    if sys.stdout.isatty() and table.visible(value.replace("\n", "")) != value.replace("\n", ""):
        session.note("note: control characters are shown as escapes; through a pipe they are exact")
        value = table.visible(value)
    return bare(answer, value)


@secret.command("set", literal=True)
@click.argument("key", shell_complete=ids("secret"))
@click.argument("value", required=False)
@pass_session
def set_(session: Session, key: str, value: str | None) -> View:
    """Store a secret.

    VALUE may be - (stdin) or @file, or be left out and typed at a prompt.
    """
    body = {"value": Secret("secret", twice=True).resolve(value)}
    answer = session.change("PUT", address.path("vault", "secrets", key), body)
    return done(answer, f'Secret "{key}" saved.')


@secret.command("delete")
@click.argument("key", shell_complete=ids("secret"))
@pass_session
def delete(session: Session, key: str) -> View:
    """Delete a secret."""
    answer = session.change("DELETE", address.path("vault", "secrets", key))
    return done(answer, f'Secret "{key}" deleted.')
