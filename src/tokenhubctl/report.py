"""Errors as text: what happened, why, and the next command; or as JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from tokenhubctl import table
from tokenhubctl.errors import USAGE, CliError

if TYPE_CHECKING:
    from collections.abc import Sequence


def report(error: CliError | click.ClickException, args: Sequence[str]) -> int:
    """Write an error to stderr and give the exit code it stands for."""
    found = _from_click(error) if isinstance(error, click.ClickException) else error
    if wants_json(args):
        print(as_json(found), file=sys.stderr)
        return found.exit_code
    print(f"error: {table.visible(found.message)}", file=sys.stderr)
    if found.hint:
        print(f"hint: {table.visible(found.hint)}", file=sys.stderr)
    if found.request_id:
        print(f"request id: {table.visible(found.request_id)}", file=sys.stderr)
    return found.exit_code


def as_json(error: CliError) -> str:
    """``{"error": {...}}`` on one line."""
    body = {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "request_id": error.request_id or None,
        "retryable": error.retryable,
        "exit_code": error.exit_code,
    }
    return json.dumps({"error": body})


def wants_json(args: Sequence[str]) -> bool:
    """Whether errors are for a program. Looked up in the raw words: parsing may be what failed."""
    form = os.environ.get("TOKENHUB_OUTPUT", "")
    words = iter(args)
    for word in words:
        if word == "--":
            break
        if word in {"-o", "--output"}:
            form = next(words, form)
        elif word.startswith("--output="):
            form = word.partition("=")[2]
        elif word.startswith("-o") and not word.startswith("--"):
            form = word[2:]
    return form in {"json", "jsonl"}


def _from_click(error: click.ClickException) -> CliError:
    hint = None
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"{error.ctx.command_path} --help"
    found = CliError(error.format_message(), hint=hint, code="usage")
    found.exit_code = USAGE
    return found
