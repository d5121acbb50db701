"""What a command gives back: the data, and how a person sees it. ``output`` turns it into text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tokenhubctl import cells, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Cell = Callable[[Any], str]

Row = dict[str, Any]


class Column(NamedTuple):
    """A column: its heading, the member it shows, and how.

    ``field`` may be a function of the whole row. ``wide`` columns show with ``-o wide`` only.
    """

    heading: str
    field: str | Callable[[Row], Any]
    cell: Cell = cells.text
    wide: bool = False

    def show(self, row: Row) -> str:
        """The cell of this column for one row."""
        value = row.get(self.field) if isinstance(self.field, str) else self.field(row)
        return self.cell(value)


class Layout(NamedTuple):
    """How a kind of row is listed: columns, the member that names a row, the word for none."""

    columns: tuple[Column, ...]
    key: str
    empty: str


class View:
    """The outcome of a command.

    Args:
        data: the machine value, JSON types only.
        text: the human form; given whether it is wide and whether headings are wanted.
        key: the member that ``-o name`` prints.
        form: the output format when none was asked for, table or json.
        exit_code: what the process ends with although there is output (a failed check).
    """

    __slots__ = ("data", "exit_code", "form", "key", "text")

    def __init__(
        self,
        data: Any,
        text: Callable[[bool, bool], str],
        *,
        key: str = "id",
        form: str = "table",
        exit_code: int = 0,
    ) -> None:
        self.data = data
        self.text = text
        self.key = key
        self.form = form
        self.exit_code = exit_code


def rows(data: Sequence[Row], layout: Layout, *, exit_code: int = 0) -> View:
    """A list shown as a table. The empty notice is a message, so ``output`` sends it to stderr."""
    listed = list(data)

    def text(wide: bool, headings: bool) -> str:  # noqa: FBT001
        shown = [column for column in layout.columns if wide or not column.wide]
        lines = [[column.show(row) for column in shown] for row in listed]
        if not lines:
            raise Nothing(layout.empty)
        return table.render(([[column.heading for column in shown]] if headings else []) + lines)

    return View(listed, text, key=layout.key, exit_code=exit_code)


class Nothing(Exception):
    """There is nothing to list; the text says so to a person and stdout stays empty."""


def record(
    data: Row, pairs: Sequence[tuple[str, str]], *, key: str = "id", exit_code: int = 0
) -> View:
    """One object shown as label and value lines."""
    return View(data, lambda _wide, _headings: table.labels(pairs), key=key, exit_code=exit_code)


def document(data: Any, *, key: str = "id", exit_code: int = 0) -> View:
    """A value printed as JSON unless another format is asked for."""
    return View(
        data,
        lambda _wide, headings: generic(data, headings=headings),
        key=key,
        form="json",
        exit_code=exit_code,
    )


def done(data: Any, message: str) -> View:
    """A change that was made: one line for people, the server's answer for programs."""
    return View(data, lambda _wide, _headings: table.visible(message) + "\n")


def bare(data: Any, text: str, *, key: str = "value") -> View:
    """A value alone on its line, for ``$(...)``."""
    return View(data, lambda _wide, _headings: text + "\n", key=key)


def generic(data: Any, *, headings: bool = True) -> str:
    """Any JSON value as a table: a list of objects by columns, an object by lines."""
    if isinstance(data, list) and data and all(isinstance(item, dict) for item in data):
        names = list(dict.fromkeys(name for item in data for name in item))
        lines = [[cells.named(name, item.get(name)) for name in names] for item in data]
        return table.render(([[name.upper() for name in names]] if headings else []) + lines)
    if isinstance(data, dict):
        return table.render(
            [[f"{name}:", cells.named(name, value)] for name, value in data.items()]
        )
    items = data if isinstance(data, list) else [data]
    return "".join(table.visible(cells.text(item)) + "\n" for item in items)
