"""completion: scripts for the shells."""

from __future__ import annotations

import click

from tokenhubctl.command import verb
from tokenhubctl.completion import SHELLS, script


@verb("completion")
@click.argument("shell", type=click.Choice(SHELLS), metavar="SHELL")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Completion script for bash, zsh or fish.

    bash: eval "$(tokenhubctl completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc;
    fish: tokenhubctl completion fish > ~/.config/fish/completions/tokenhubctl.fish
    """
    print(script(ctx.find_root().command, shell))
