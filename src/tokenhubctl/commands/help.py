"""help, commands: the manual within."""

from __future__ import annotations

import sys
from typing import Any

import click

from tokenhubctl import commands as listing
from tokenhubctl.command import COMMON, verb
from tokenhubctl.topics import TOPICS
from tokenhubctl.view import Column, Layout, View, rows

COMMANDS = Layout(
    (Column("COMMAND", "usage"), Column("DESCRIPTION", "help")), key="command", empty="No commands."
)


@verb("help")
@click.argument("topic", metavar="[TOPIC]", nargs=-1)
@click.pass_context
def help_(ctx: click.Context, topic: tuple[str, ...]) -> None:
    """This text, a command, or a topic."""
    if not topic:
        sys.stdout.write(listing.usage())
    elif topic in {(name,) for name in TOPICS}:
        sys.stdout.write(TOPICS[topic[0]])
    else:
        print(_command_help(ctx, topic))


def _command_help(ctx: click.Context, words: tuple[str, ...]) -> str:
    parent = ctx.find_root()
    command: click.Command = parent.command
    for word in words:
        found = command.get_command(parent, word) if isinstance(command, click.Group) else None
        if found is None:
            known = [*listing.NAMES, *TOPICS] if parent.parent is None else []
            raise click.NoSuchCommand(word, possibilities=known, ctx=parent)
        parent = click.Context(found, info_name=word, parent=parent, **found.context_settings)
        command = found
    return command.get_help(parent)


@verb("commands")
@click.pass_context
def commands(ctx: click.Context) -> View:
    """The whole command tree."""
    return rows(tree(ctx.find_root()), COMMANDS)


def tree(root: click.Context) -> list[dict[str, Any]]:
    """Every command with its arguments and options, in order of the help text."""
    group = root.command
    assert isinstance(group, click.Group)
    found: list[dict[str, Any]] = []
    for name in listing.NAMES:
        command = group.get_command(root, name)
        assert command is not None
        _collect(click.Context(command, info_name=name, parent=root), found)
    return found


def _collect(ctx: click.Context, into: list[dict[str, Any]]) -> None:
    command = ctx.command
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            _collect(click.Context(found, info_name=name, parent=ctx), into)
        return
    path = ctx.command_path.partition(" ")[2]
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    words = [argument.make_metavar(ctx) for argument in arguments]
    into.append(
        {
            "command": path,
            "usage": " ".join([path, *words]),
            "help": (command.help or "").partition("\n")[0].rstrip("."),
            "arguments": words,
            "options": [_described(param) for param in own_options(command)],
        }
    )


def own_options(command: click.Command) -> list[click.Option]:
    """The options of a command that not every command has."""
    return [
        param for param in command.params if isinstance(param, click.Option) and param not in COMMON
    ]


def _described(option: click.Option) -> dict[str, Any]:
    return {"names": option.opts, "help": option.help, "takes_value": not option.is_flag}
