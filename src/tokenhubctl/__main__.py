"""Start of tokenhubctl: the one place where errors become messages and exit codes."""

from __future__ import annotations

import io
import os
import sys

from tokenhubctl import __version__
from tokenhubctl.errors import FAILED, INTERRUPTED, OK, USAGE, CliError

# The shell's completion script starts this program with it, and without arguments.
COMPLETE = "_TOKENHUBCTL_COMPLETE"


def main() -> int:
    """Run the command line of this process; the result is its exit code."""
    _prepare_output()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, a pager) has had enough.
        _discard_output()
        return OK
    except OSError as error:
        # Files and sockets have messages of their own; what is left is a disk that is full.
        _discard_output()
        print(f"error: The output was not written: {error.strerror or error}.", file=sys.stderr)
        return FAILED
    return code


def _prepare_output() -> None:
    """UTF-8 whatever the locale, so that -o json is the same JSON everywhere."""
    if sys.stdout is None:  # started with `>&-`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  (to the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _discard_output() -> None:
    """Python must not fail again at its last flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(args: list[str]) -> int:
    """Run one command and say what it ended in. KeyboardInterrupt passes through."""
    if args in (["version"], ["-v"], ["--version"]):
        print(f"tokenhubctl {__version__}")
        return OK
    if COMPLETE in os.environ:
        return _run_command(args)
    from tokenhubctl.commands import usage  # noqa: PLC0415  (imports no Click: help is quick)

    if not args:
        sys.stderr.write(usage())
        return USAGE
    if args in (["help"], ["-h"], ["--help"]):
        sys.stdout.write(usage())
        sys.stdout.flush()
        return OK
    return _run_command(args)


def _run_command(args: list[str]) -> int:
    import click  # noqa: PLC0415  (45 ms that version and help do not need)

    from tokenhubctl.cli import root  # noqa: PLC0415
    from tokenhubctl.report import report  # noqa: PLC0415
    from tokenhubctl.session import Session  # noqa: PLC0415

    try:
        code = root.main(args, "tokenhubctl", standalone_mode=False, obj=Session())
    except click.Abort:
        raise KeyboardInterrupt from None
    except (CliError, click.ClickException) as error:
        sys.stdout.flush()
        return report(error, args)
    return code if isinstance(code, int) else OK


if __name__ == "__main__":
    sys.exit(main())
