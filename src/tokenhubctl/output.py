"""A view as text: table, wide, json, jsonl, yaml, csv or name, after an optional JMESPath query.

Every form keeps control and direction characters from the terminal: JSON and YAML by their own
escapes (the value stays the same), the others as ``visible`` text.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from tokenhubctl import cells, table
from tokenhubctl.errors import UsageFault
from tokenhubctl.view import Nothing, generic

if TYPE_CHECKING:
    import re

    from tokenhubctl.view import View

FORMS = ("table", "wide", "json", "jsonl", "yaml", "csv", "name")


def show(view: View, form: str | None, *, query: str | None = None, headings: bool = True) -> None:
    """Print a view on stdout; the notice that a list is empty goes to stderr."""
    try:
        text = render(view, form, query=query, headings=headings)
    except Nothing as notice:
        print(notice, file=sys.stderr)
        return
    sys.stdout.write(text)
    sys.stdout.flush()


def render(view: View, form: str | None, *, query: str | None = None, headings: bool = True) -> str:
    """A view as text. A query makes its result the data; a single string then prints bare."""
    form = form or view.form
    if query is None and form in {"table", "wide"}:
        return view.text(form == "wide", headings)
    data = in_utc(view.data)
    if query is not None:
        data = _query(query, data)
    if form in {"table", "wide"}:
        return generic(data, headings=headings) if data is not None else ""
    return serialise(data, form, key=view.key, headings=headings)


def in_utc(data: Any) -> Any:
    """Data with every moment that is a number of milliseconds written as RFC 3339."""
    if isinstance(data, list):
        return [in_utc(item) for item in data]
    if not isinstance(data, dict):
        return data
    return {
        name: cells.rfc3339(value) if cells.is_moment(name, value) else in_utc(value)
        for name, value in data.items()
    }


def serialise(data: Any, form: str, *, key: str = "id", headings: bool = True) -> str:
    """JSON-able data in one of the machine forms."""
    if form == "json":
        return as_json(data, indent=2) + "\n"
    if form == "jsonl":
        items = data if isinstance(data, list) else [data]
        return "".join(as_json(item) + "\n" for item in items)
    if form == "yaml":
        return _yaml(data)
    return _csv(data, headings=headings) if form == "csv" else _names(data, key)


def as_json(data: Any, *, indent: int | None = None) -> str:
    """JSON in which every unsafe character is a Unicode escape; text otherwise readable."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(data, indent=indent, ensure_ascii=False, separators=separators)
    # Outside of strings JSON has no unsafe character but the line breaks of the indentation.
    return text if text.isascii() and "\x7f" not in text else table.UNSAFE.sub(_json_escape, text)


def _json_escape(match: re.Match[str]) -> str:
    return (
        match[0]
        if match[0] == "\n"
        else json.dumps(match[0])[1:-1]
        if match[0] != "\x7f"
        else "\\u007f"
    )


def _query(expression: str, data: Any) -> Any:
    import jmespath  # noqa: PLC0415  (11 ms, and only --query needs it)
    from jmespath.exceptions import JMESPathError  # noqa: PLC0415

    try:
        return jmespath.search(expression, data)
    except JMESPathError as error:
        raise UsageFault(
            f"--query is not a valid JMESPath expression: {error}",
            hint="An example: --query '[].id'. The data is what -o json prints.",
        ) from error


def _yaml(data: Any) -> str:
    import yaml  # noqa: PLC0415  (33 ms)

    class Dumper(yaml.SafeDumper):
        """Quotes text that needs escapes, so that they can be written in place."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = '"' if table.UNSAFE.search(value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    dumped: str = yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return table.UNSAFE.sub(lambda m: m[0] if m[0] == "\n" else table.escape(m), dumped)


def _csv(data: Any, *, headings: bool) -> str:
    import csv  # noqa: PLC0415
    import io  # noqa: PLC0415

    items = data if isinstance(data, list) else [data]
    lines = [item if isinstance(item, dict) else {"value": item} for item in items]
    names = list(dict.fromkeys(name for line in lines for name in line))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if headings and names:
        writer.writerow([table.visible(name) for name in names])
    for line in lines:
        writer.writerow([_field(line.get(name)) for name in names])
    return buffer.getvalue()


def _field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return table.visible(value)
    return as_json(value)


def _names(data: Any, key: str) -> str:
    items = data if isinstance(data, list) else [data]
    values = [item.get(key) if isinstance(item, dict) else item for item in items]
    return "".join(table.visible(cells.text(value)) + "\n" for value in values if value is not None)
