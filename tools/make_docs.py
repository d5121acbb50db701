"""Writes docs/reference/ from the code: settings, routes, commands, events, error codes.

python tools/make_docs.py           write the pages
python tools/make_docs.py --check   only say which are stale (exit code 1)
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tokenhub
from tokenhub.core.errors import FailureClass, HubError, InvalidRequest, UpstreamFailed, VaultLocked
from tokenhub.routing.refusal import CODES, KINDS, VERDICTS, WORDS
from tokenhub.settings import PREFIX, VARIABLES
from tokenhub.telemetry.events import TYPES
from tokenhub.web.admin.budget import BudgetAdmin
from tokenhub.web.admin.keys import KeyAdmin
from tokenhub.web.admin.models import ModelAdmin
from tokenhub.web.admin.observe import ObserveAdmin
from tokenhub.web.admin.prices import PriceAdmin
from tokenhub.web.admin.providers import ProviderAdmin
from tokenhub.web.admin.routing import RoutingAdmin
from tokenhub.web.admin.series import SeriesAdmin
from tokenhub.web.admin.server import ServerAdmin
from tokenhub.web.admin.table import AdminHandlers, admin_routes
from tokenhub.web.admin.vault import VaultAdmin
from tokenhub.web.api.chat import ChatApi
from tokenhub.web.api.health import HealthApi
from tokenhub.web.api.metrics import MetricsApi
from tokenhub.web.api.models import ModelsApi
from tokenhub.web.head import Refused
from tokenhub.web.routes import Handlers, routes
from tokenhubctl.cli import root
from tokenhubctl.commands import SECTIONS
from tokenhubctl.commands.help import tree
from tokenhubctl.topics import TOPICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tokenhub.web.edge import Route

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "docs" / "reference"
SOURCE = ROOT / "src" / "tokenhub"
NOTE = "<!-- Written by `make docs`; a test fails when it is stale. -->\n"
MOST_MESSAGES = 3
UPSTREAM_STATUS = 502  # where none is given
WHO = {
    "public": "anybody",
    "admin": "admin token",
    "key": "any API key",
    "chat": "API key with scope `chat`",
    "plan": "API key with scope `plan`",
    "embeddings": "API key with scope `embeddings`",
}


def url_table() -> list[Route]:
    """The server's routes; their handlers are the functions themselves."""
    # A class stands where an object would: its attributes are the handlers' functions.
    handlers: dict[str, Any] = {
        "chat": ChatApi,
        "models_api": ModelsApi,
        "health": HealthApi,
        "metrics": MetricsApi,
    }
    admin: dict[str, Any] = {
        "server": ServerAdmin,
        "vault": VaultAdmin,
        "providers": ProviderAdmin,
        "models": ModelAdmin,
        "keys": KeyAdmin,
        "budget": BudgetAdmin,
        "prices": PriceAdmin,
        "routing": RoutingAdmin,
        "observe": ObserveAdmin,
        "series": SeriesAdmin,
    }
    return routes(Handlers(**handlers)) + admin_routes(AdminHandlers(**admin))


def table(headings: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(cell(one) for one in line) + " |\n" for line in lines)


def cell(text: object) -> str:
    """Text that stays inside its cell."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def sentence(function: object) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


def settings() -> str:
    """settings.md"""
    rows = [
        [f"`{PREFIX}{one.name}`", f"`{one.default}`" if one.default else "", one.meaning]
        for one in VARIABLES
    ]
    return (
        f"# Settings\n\n{NOTE}\n"
        "The server reads these environment variables at its start, and nothing else. A value that "
        "cannot be used stops the start and is named; an unknown `TOKENHUB_*` variable is warned "
        "of. `tokenhub --settings` prints this list, `tokenhub --check` tries the values.\n\n"
        + table(["Variable", "Default", "Meaning"], rows)
        + "\n" + TOPICS_FROM["environment"]
    )  # fmt: skip


TOPICS_FROM = {
    "environment": "## The command line\n\n```text\n" + TOPICS["environment"] + "```\n",
}


def route_page() -> str:
    """routes.md"""
    groups: dict[str, Callable[[str], bool]] = {
        "For clients": lambda path: path.startswith("/v1"),
        "For operators": lambda path: not path.startswith(("/v1", "/admin")),
        "Administration": lambda path: path.startswith("/admin"),
    }
    parts = [
        (
            f"# Routes\n\n{NOTE}\nEvery URL the server answers. `{{id:path}}` takes slashes. "
            "Administration wants `Authorization: Bearer <admin token>`; each of its routes has a "
            "[command](commands.md), and `tokenhubctl api METHOD PATH` calls any of them. Errors "
            "are described in [errors.md](errors.md).\n"
        )
    ]
    for title, belongs in groups.items():
        rows = [
            [f"`{one.method}`", f"`{one.path}`", WHO[one.access], sentence(one.handler)]
            for one in url_table()
            if belongs(one.path)
        ]
        parts.append(f"\n## {title}\n\n{table(['Method', 'Path', 'Who', 'What'], rows)}")
    return "".join(parts)


def commands() -> str:
    """commands.md"""
    found = tree(click.Context(root, info_name="tokenhubctl"))
    by_name = {item["command"]: item for item in found}
    parts = [
        (
            f"# Commands\n\n{NOTE}\n`tokenhubctl help` prints this list, "
            "`tokenhubctl COMMAND --help` the options of one. A noun without a verb runs "
            "`list`, `get` or `models`.\n"
        )
    ]
    left = dict(by_name)
    for title, lines in SECTIONS:
        rows = []
        for synopsis, summary in lines:
            name = max((n for n in by_name if f"{synopsis} ".startswith(f"{n} ")), key=len)
            if left.pop(name, None) is None:
                continue
            options = " ".join(f"`{'/'.join(one['names'])}`" for one in by_name[name]["options"])
            rows.append([f"`{by_name[name]['usage']}`", summary, options])
        parts.append(f"\n## {title}\n\n{table(['Command', 'What', 'Options of its own'], rows)}")
    assert not left, f"not in the help text: {sorted(left)}"
    for name in ("arguments", "output", "exit-codes"):
        title, _, text = TOPICS[name].partition("\n\n")
        parts.append(f"\n## {title}\n\n```text\n{text}```\n")
    return "".join(parts)


def events() -> str:
    """events.md"""
    rows = [
        [f"`{name}`", what, " ".join(f"`{field}`" for field in fields)]
        for name, (what, fields) in TYPES.items()
    ]
    return (
        f"# Events\n\n{NOTE}\n"
        "`GET /admin/v1/events` is a stream of server-sent events; `tokenhubctl events` reads it. "
        "Each has an `id`, the type as `event`, and one line of JSON with `type`, `timestamp` "
        "(RFC 3339) and the members below. `Last-Event-ID` resumes from the last 1024 events; "
        "what a slow reader missed is told by a `dropped` event with its `count`. The first event "
        "is `connected`. `?type=a,b` narrows the stream.\n\n"
        + table(["Type", "When", "Members"], rows)
    )


def errors() -> str:
    """errors.md"""
    classes = {one.__name__: one for one in _subclasses(HubError)}
    found: dict[tuple[str, int], list[str]] = {}
    for code, status, message in sorted(_codes(classes) | set(_of_routing())):
        found.setdefault((code, status), []).append(message)
    rows = [
        [f"`{code}`", status, " / ".join(dict.fromkeys(messages[:MOST_MESSAGES]))]
        for (code, status), messages in sorted(found.items())
    ]
    failures = re.findall(
        r'^    [A-Z_]+ = "(\w+)"(?:  # (.*))?$', inspect.getsource(FailureClass), re.MULTILINE
    )
    return (
        f"# Errors\n\n{NOTE}\n"
        "Under `/v1` an error is what OpenAI's SDKs expect: `{\"error\": {\"message\", \"type\", "
        '"param", "code", "hint", "request_id"}}`; everywhere else '
        '`{"error": "message", "code", "hint", "request_id"}`. Programs should look at '
        "`code`: messages may change. `hint` says what to do next. A budget refusal is 402, and "
        "429 under `/v1/chat/completions`, as the SDKs know it.\n\n"
        "Messages are shown with `…` for what varies; where a code has many, some of them.\n\n"
        + table(["Code", "Status", "Message"], rows)
        + "\n## Why an attempt failed\n\n`error_class` of an attempt in logs, events and metrics. "
        "When no provider answered, the request's own `code` says so and `attempts` has these.\n\n"
        + table(["Class", "Meaning"], [[f"`{name}`", what] for name, what in failures])
    )  # fmt: skip


def _subclasses(kind: type[HubError]) -> list[type[HubError]]:
    for module in pkgutil.walk_packages(tokenhub.__path__, "tokenhub."):
        if module.name not in {"tokenhub.__main__", "tokenhub.telemetry.tracing"}:
            importlib.import_module(module.name)
    found, waiting = [], [kind]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += one.__subclasses__()
    return found


def _template(node: ast.expr) -> str:
    """The text of a message, with … for what is put in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.IfExp):
        return f"{_template(node.body)} / {_template(node.orelse)}"
    return "…"


def _of_routing() -> Iterator[tuple[str, int, str]]:
    """(code, status, message) of the errors that stand in routing's tables."""
    for reason, words in WORDS.items():
        kind = VaultLocked if reason == "vault_locked" else KINDS.get(reason, InvalidRequest)
        status = UPSTREAM_STATUS if kind is UpstreamFailed else kind.status
        said = re.sub(r"\{\w+\}", "…", words)
        yield CODES.get(reason, reason), status, f"`…` cannot answer: {said}."
    for _, status, code in VERDICTS:
        yield code, status, "`…` at `…` failed…: …"


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _choices(node: ast.expr) -> list[str]:
    """The codes that are written in an expression."""
    if isinstance(node, ast.IfExp):
        return _choices(node.body) + _choices(node.orelse)
    written = _constant(node)
    return [written] if isinstance(written, str) else []


def _status(kind: type[HubError], node: ast.Call) -> int:
    """The status of an error, as far as it is written where the error is made."""
    given = [item.value for item in node.keywords if item.arg == "status"]
    given += node.args[:1] if kind is Refused else []
    written = _constant(given[0]) if given else None
    if isinstance(written, int):
        return written
    return UPSTREAM_STATUS if kind is UpstreamFailed else kind.status


def _codes(classes: Mapping[str, type[HubError]]) -> set[tuple[str, int, str]]:
    """(code, status, message) of every error that is made anywhere in the server."""
    found = set()
    for file in SOURCE.rglob("*.py"):
        if file.name == "app.py":  # its errors end a start, no request
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            kind = classes.get(node.func.id)
            if kind is None:
                continue
            given = [item.value for item in node.keywords if item.arg == "code"]
            words = node.args
            if kind is Refused:
                given, words = words[1:2], words[2:]
            codes = [code for value in given for code in _choices(value)]
            said = _template(words[0]) if words else sentence(kind)
            status = _status(kind, node)
            found |= {(code, status, said) for code in codes or [kind.default_code]}
    return found


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings,
    "routes.md": route_page,
    "commands.md": commands,
    "events.md": events,
    "errors.md": errors,
}


def main(argv: list[str]) -> int:
    """Write the pages, or say which are stale."""
    stale = []
    for name, make in PAGES.items():
        text, file = make(), PLACE / name
        if file.exists() and file.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in argv:
            file.write_text(text)
            print(f"wrote docs/reference/{name}")
    if "--check" in argv and stale:
        print(f"stale: {', '.join(stale)}; run make docs")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
