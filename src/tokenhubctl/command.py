"""How commands are put together with Click: verbs, nouns, and a tree that loads a noun when named.

A verb is a function from its arguments to a View. Printing, watching and the options that all
verbs share are done here, once.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from tokenhubctl import output
from tokenhubctl.errors import OK, UsageFault
from tokenhubctl.session import Session
from tokenhubctl.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from click.shell_completion import CompletionItem

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        # An option given before the command must not be undone by its absence after it.
        if value is not None:
            setattr(ctx.ensure_object(Session).options, name, value)

    return store


def _option(*names: str, into: str, **settings: Any) -> click.Option:
    return click.Option(names, expose_value=False, callback=_set(into), **settings)


COMMON = (
    _option(
        "-o", "--output", into="form", type=click.Choice(output.FORMS), metavar="FORM",
        help=f"Output format: {', '.join(output.FORMS)}.",
    ),
    _option("--query", into="query", metavar="JMESPATH", help="Print this part of the data only."),
    _option(
        "--no-headers", into="headings", is_flag=True, flag_value=False, default=None,
        help="Leave out the column headings.",
    ),
    _option("--url", into="url", metavar="URL", help="Server to talk to, instead of TOKENHUB_URL."),
    _option(
        "--timeout", into="timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
        help="How long to wait for an answer.",
    ),
    _option(
        "--debug", into="debug", is_flag=True, flag_value=True, default=None,
        help="Show each request on stderr, without secrets.",
    ),
)  # fmt: skip
WATCH = (
    _option(
        "-w", "--watch", into="watch", is_flag=True, flag_value=True, default=None,
        help="Repeat until Ctrl-C; through a pipe one JSON line per item.",
    ),
    _option(
        "--interval", into="interval", type=click.FloatRange(min=0.1), metavar="SECONDS",
        help="Pause between repeats of --watch (2).",
    ),
)  # fmt: skip
SHARED = (*COMMON, *WATCH)


class Count(click.IntRange):
    """A whole number of at least one."""

    name = "whole number"

    def __init__(self) -> None:
        super().__init__(min=1)


class Verb(click.Command):
    """A command that returns a View, or None when it has done its own printing.

    ``watch`` adds --watch. ``literal`` is for commands whose arguments may start with ``-``
    (passwords, tokens): every word that is not one of the command's options is an argument.
    """

    def __init__(
        self, *args: Any, watch: bool = False, literal: bool = False, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self.literal = literal
        own = {name for param in self.params for name in param.opts}
        shared = SHARED if watch else COMMON
        self.params.extend(param for param in shared if not own.intersection(param.opts))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, after setting aside the arguments of a ``literal`` command."""
        return super().parse_args(ctx, self._set_aside(args) if self.literal else args)

    def _set_aside(self, args: Sequence[str]) -> list[str]:
        takes_value = {"-h": False, "--help": False}
        for param in self.params:
            if isinstance(param, click.Option):
                takes_value.update(dict.fromkeys(param.opts, not param.is_flag))
        options: list[str] = []
        words: list[str] = []
        rest = iter(args)
        for arg in rest:
            name = arg.partition("=")[0] if arg.startswith("--") else arg
            if arg == "--":
                words.extend(rest)
            elif name not in takes_value:
                words.append(arg)
            else:
                options.append(arg)
                if takes_value[name] and name == arg:
                    options.extend(word for word in [next(rest, None)] if word is not None)
        most = sum(isinstance(param, click.Argument) for param in self.params)
        if len(words) > most:
            # The words are secrets, so they are counted and not repeated.
            raise UsageFault(f"At most {most} argument(s) are taken here, {len(words)} were given.")
        return [*options, "--", *words]

    def invoke(self, ctx: click.Context) -> int:
        """Run the function and print what it returns. The result is the exit code."""
        session = ctx.ensure_object(Session)
        if session.options.watch:
            self._watch(ctx, session)
            return OK
        return _show(session, super().invoke(ctx), session.form)

    def _watch(self, ctx: click.Context, session: Session) -> None:
        terminal = sys.stdout.isatty()
        form = session.form if terminal or session.form is not None else "jsonl"
        for view in session.again(lambda: super(Verb, self).invoke(ctx)):
            if terminal:
                click.clear()
            _show(session, view, form)
            time.sleep(session.options.interval)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options first, those of all commands below."""
        shared = {id(param) for param in COMMON}
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            found = param.get_help_record(ctx)
            if found is not None and isinstance(param, click.Option):
                (common if id(param) in shared else own).append(found)
        for title, lines in (("Options", own), ("Options of every command", common)):
            with formatter.section(title):
                formatter.write_dl(lines)


def _show(session: Session, view: object, form: str | None) -> int:
    if not isinstance(view, View):
        return 0
    options = session.options
    output.show(view, form, query=options.query, headings=options.headings)
    return view.exit_code


class Noun(click.Group):
    """A group of verbs. Without a verb it runs ``default``, or explains itself if it has none."""

    command_class = Verb

    def __init__(self, *args: Any, default: str | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.default = default
        if default:
            self.epilog = f"Without a command: {default}, which has options of its own."

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The verbs in the order they are written."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with the default verb put in where none is named."""
        # A line that is being completed ends here because its next word is the verb.
        none_named = not args and not ctx.resilient_parsing
        option_first = bool(args) and args[0][:1] == "-" and args[0] not in {"-h", "--help"}
        if self.default and (none_named or option_first):
            args = [self.default, *args]
        elif none_named:
            raise UsageFault(
                f"{ctx.command_path} needs one of: {', '.join(self.list_commands(ctx))}.",
                hint=f"{ctx.command_path} --help",
            )
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The verbs; where an option is begun, those of the default verb."""
        if self.default and incomplete.startswith("-"):
            return self.commands[self.default].shell_complete(ctx, incomplete)
        return super().shell_complete(ctx, incomplete)


class LazyGroup(click.Group):
    """The root: it knows its commands by name and imports one when it is used.

    Args:
        lazy: command name to ``module:attribute``.
        usage: the whole help text; made without importing a single command.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, str], usage: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._lazy = lazy
        self._usage = usage
        self.params.extend(SHARED)
        self.context_settings = {**CONTEXT, **self.context_settings}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All names, in order of the help text."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of this name, imported now."""
        place = self._lazy.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As Click's, with suggestions out of the lazy names."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            raise click.NoSuchCommand(name, possibilities=self.list_commands(ctx), ctx=ctx)
        return name if command else None, command, args[1:]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names that fit, without importing the commands for it."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        from click.shell_completion import CompletionItem  # noqa: PLC0415

        return [CompletionItem(name) for name in self._lazy if name.startswith(incomplete)]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The usage text."""
        del ctx
        formatter.write(self._usage)


def noun(name: str, *, default: str | None = None) -> Callable[[Callable[..., None]], Noun]:
    """Decorator: a group of verbs from a function whose docstring describes it."""

    def make(function: Callable[..., None]) -> Noun:
        return Noun(name, callback=function, default=default, help=function.__doc__)

    return make


def verb(name: str, **settings: Any) -> Callable[[Callable[..., View | None]], Verb]:
    """Decorator: a command at the root from a function. Settings as of Verb."""
    return click.command(name, cls=Verb, **settings)


pass_session = click.make_pass_decorator(Session, ensure=True)
