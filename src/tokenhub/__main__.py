"""Start the server: read the arguments and the environment, then run until a signal says stop."""

from __future__ import annotations

import gc
import os
import resource
import sys
from typing import TYPE_CHECKING

from tokenhub import __version__

if TYPE_CHECKING:
    from tokenhub.settings import Settings

_PR_SET_DUMPABLE = 4  # linux/prctl.h

HELP = """\
Usage: tokenhub [OPTION]
       tokenhub demo-provider [--port N]

Starts the TokenHub server. Everything is set by TOKENHUB_* environment variables.

Options:
  --check         read the settings and open the data, then exit (0 = it would start)
  --healthcheck   ask a running server's /livez on its listen address (0 = alive)
  --settings      list the environment variables with their defaults
  --version       print the version
  --help          print this text

demo-provider starts only the demo provider, as an HTTP server of its own on
127.0.0.1:8999: an OpenAI- and Anthropic-compatible upstream that answers offline,
and misbehaves on request, for trying things out and for tests.

The command line that manages a server is tokenhubctl.
"""


def main(argv: list[str] | None = None) -> int:
    """Run ``tokenhub``; the exit code."""
    args = sys.argv[1:] if argv is None else argv
    match args:
        case []:
            return _serve(check=False)
        case ["--check"]:
            return _serve(check=True)
        case ["--healthcheck" | "-healthcheck"]:
            return _healthcheck()
        case ["--settings"]:
            return _list_settings()
        case ["--version" | "-v" | "version"]:
            print(f"tokenhub {__version__}")
            return 0
        case ["--help" | "-h" | "help"]:
            print(HELP, end="")
            return 0
        case ["demo-provider"]:
            return _demo_provider(8999)
        case ["demo-provider", "--port", port] if port.isascii() and port.isdigit():
            return _demo_provider(int(port))
    print(f"tokenhub: cannot understand: {' '.join(args)}\n", file=sys.stderr)
    print(HELP, end="", file=sys.stderr)
    return 2


def _settings() -> Settings | None:
    from tokenhub.settings import SettingsError, from_environment  # noqa: PLC0415  # --version is fast

    try:
        return from_environment()
    except SettingsError as error:
        for line in str(error).splitlines():
            print(f"tokenhub: {line}", file=sys.stderr)
        print("tokenhub: not started; `tokenhub --settings` lists the variables.", file=sys.stderr)
        return None


def _serve(*, check: bool) -> int:
    settings = _settings()
    if settings is None:
        return 2
    _harden()
    # Nearly all that is made from here on stays: the server looks for cycles when it is up.
    gc.disable()
    from tokenhub.serve import run  # noqa: PLC0415  # nothing is loaded before the settings are right

    return run(settings, check=check)


def _harden() -> None:
    # A core file would hold provider keys, and another process of the same user could read them
    # out of the memory; files made from here on are the owner's only.
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415  # as above

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _demo_provider(port: int) -> int:
    from tokenhub.serve import run_demo_provider  # noqa: PLC0415  # as above

    return run_demo_provider(port)


def _healthcheck() -> int:
    import http.client  # noqa: PLC0415  # as above

    settings = _settings()
    if settings is None:
        return 2
    host = "localhost" if settings.listen_host in {"0.0.0.0", "::"} else settings.listen_host
    connection = http.client.HTTPConnection(host, settings.listen_port, timeout=5)
    try:
        connection.request("GET", "/livez")
        return 0 if connection.getresponse().status == 200 else 1
    except (OSError, http.client.HTTPException) as error:
        print(f"tokenhub: {host}:{settings.listen_port} does not answer: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()


def _list_settings() -> int:
    from tokenhub.settings import PREFIX, VARIABLES  # noqa: PLC0415  # as above

    width = max(len(PREFIX + variable.name) for variable in VARIABLES)
    for variable in VARIABLES:
        shown = variable.default or "-"
        print(f"{PREFIX + variable.name:<{width}}  {shown:<34}  {variable.meaning}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
