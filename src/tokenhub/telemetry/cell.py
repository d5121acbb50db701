"""Cell: what the requests of one label came to in one span of time; what roll-ups are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from tokenhub.telemetry.sketch import Sketch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenhub.storage.database import Row
    from tokenhub.telemetry.journal import Entry

PAIR, KEY, MODE = "pair", "key", "mode"
OTHER = "other"
MOST = {PAIR: 200, KEY: 200, MODE: 16}
"""How many labels of each kind are told apart at a time; the rest counts as ``other``."""

MOST_CLASSES = 64
CANCELLED = 499

_FlatSketch = tuple[int, int, int, int, list[int]]

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(tuple[list[int], _FlatSketch, _FlatSketch, dict[str, int]]).decode
_decode_classes = msgspec.json.Decoder(dict[str, int]).decode


class Label(NamedTuple):
    """Whom a cell is about: a model at a provider (``PAIR``), an API key's id, or a mode.

    ``name`` and ``provider`` are "" for requests that reached no model.
    """

    kind: str
    name: str
    provider: str = ""


def pair_of(entry: Entry) -> tuple[str, str]:
    """Model and provider that answered, or that failed last; "" when none was asked."""
    if entry.model_id or not entry.attempts:
        return entry.model_id, entry.provider_id
    last = entry.attempts[-1]
    return last.model_id, last.provider_id


class Group:
    """Requests that are over, and what cells and counters take of them, added up once.

    Attributes:
        latencies: their times in milliseconds; ``ttfts`` are those to a first token.
        cost: nano-dollars of those whose cost is known; ``unpriced``: how many others.
        input, output: tokens.
    """

    __slots__ = ("cost", "entries", "input", "latencies", "output", "ttfts", "unpriced")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.latencies = [one.latency_ms for one in entries]
        self.ttfts = [one.ttft_ms for one in entries if one.ttft_ms is not None]
        costs = [one.cost for one in entries if one.cost is not None]
        self.unpriced = len(entries) - len(costs)
        self.cost = sum(costs)
        self.input = sum([one.prompt for one in entries])
        self.output = sum([one.completion for one in entries])


COLUMNS = (
    "requests", "errors", "cancelled", "unpriced", "cost", "input", "output",
    "latency_count", "latency_total", "latency_low", "latency_high", "latency",
    "ttft_count", "ttft_total", "ttft_low", "ttft_high", "ttft", "classes",
)  # fmt: skip
"""The columns of ``row``."""


class Cell:
    """Counts, sums and two sketches. Every number is an integer, so merging is exact.

    Attributes:
        requests: all of them.
        errors: those that ended in an error other than the client's leaving.
        cancelled: those whose client left first.
        unpriced: those whose cost is not known.
        cost: nano-dollars.
        input, output: tokens.
        latency, ttft: whole requests; streams to their first token.
        classes: errors by class.
    """

    __slots__ = (
        "cancelled", "classes", "cost", "errors", "input", "latency", "output", "requests", "ttft",
        "unpriced",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.cancelled = 0
        self.unpriced = 0
        self.cost = 0
        self.input = 0
        self.output = 0
        self.latency = Sketch()
        self.ttft = Sketch()
        self.classes: dict[str, int] = {}

    def add(self, group: Group) -> None:
        """Count some requests, one at least."""
        self.requests += len(group.entries)
        self.latency.add(group.latencies)
        if group.ttfts:
            self.ttft.add(group.ttfts)
        self.unpriced += group.unpriced
        self.cost += group.cost
        self.input += group.input
        self.output += group.output
        for one in [one for one in group.entries if one.error_class]:
            self._failed(one)

    def _failed(self, one: Entry) -> None:
        if one.status == CANCELLED:
            self.cancelled += 1
            return
        self.errors += 1
        classes, name = self.classes, one.error_class
        if name not in classes and len(classes) >= MOST_CLASSES:
            name = OTHER
        classes[name] = classes.get(name, 0) + 1

    def merge(self, other: Cell) -> None:
        """Take in another cell."""
        self.requests += other.requests
        self.errors += other.errors
        self.cancelled += other.cancelled
        self.unpriced += other.unpriced
        self.cost += other.cost
        self.input += other.input
        self.output += other.output
        self.latency.merge(other.latency)
        self.ttft.merge(other.ttft)
        for name, count in other.classes.items():
            self.classes[name] = self.classes.get(name, 0) + count

    def subtract(self, other: Cell) -> None:
        """Take out a cell that was merged before."""
        self.requests -= other.requests
        self.errors -= other.errors
        self.cancelled -= other.cancelled
        self.unpriced -= other.unpriced
        self.cost -= other.cost
        self.input -= other.input
        self.output -= other.output
        self.latency.subtract(other.latency)
        self.ttft.subtract(other.ttft)
        for name, count in other.classes.items():
            if left := self.classes[name] - count:
                self.classes[name] = left
            else:
                del self.classes[name]

    def copy(self) -> Cell:
        """The same, for changes that this one is not to see."""
        copy = Cell()
        copy.merge(self)
        return copy

    def pack(self) -> bytes:
        """All of it in some 100 to 1000 bytes; a cell as it stands may need twenty times that."""
        counts = (
            self.requests, self.errors, self.cancelled, self.unpriced, self.cost, self.input,
            self.output,
        )  # fmt: skip
        sketches = [
            (one.count, one.total, one.low, one.high, one.flat())
            for one in (self.latency, self.ttft)
        ]
        return _encode((counts, *sketches, self.classes))

    @classmethod
    def unpack(cls, data: bytes) -> Cell:
        """A cell from what ``pack`` made of it."""
        cell = cls()
        counts, latency, ttft, cell.classes = _decode(data)
        (
            cell.requests, cell.errors, cell.cancelled, cell.unpriced, cell.cost, cell.input,
            cell.output,
        ) = counts  # fmt: skip
        cell.latency, cell.ttft = Sketch.of_flat(*latency), Sketch.of_flat(*ttft)
        return cell

    def row(self) -> tuple[Any, ...]:
        """The values of ``COLUMNS``."""
        latency, ttft = self.latency, self.ttft
        return (
            self.requests, self.errors, self.cancelled, self.unpriced, self.cost, self.input,
            self.output,
            latency.count, latency.total, latency.low, latency.high, latency.pack(),
            ttft.count, ttft.total, ttft.low, ttft.high, ttft.pack(),
            msgspec.json.encode(self.classes).decode() if self.classes else "",
        )  # fmt: skip

    @classmethod
    def of_row(cls, row: Row) -> Cell:
        """A cell from the values of ``COLUMNS``."""
        cell = cls()
        (
            cell.requests, cell.errors, cell.cancelled, cell.unpriced, cell.cost, cell.input,
            cell.output,
        ) = row[:7]  # fmt: skip
        cell.latency = Sketch.unpack(*row[7:12])
        cell.ttft = Sketch.unpack(*row[12:17])
        if row[17]:
            cell.classes = _decode_classes(row[17])
        return cell


Cells = dict[Label, Cell]


def merge_into(cells: Cells, label: Label, cell: Cell) -> None:
    """Merge a cell into the one of its label."""
    if (found := cells.get(label)) is None:
        found = cells[label] = Cell()
    found.merge(cell)


class Totals:
    """Cells by label whose readers may take their time: they see them as they were.

    A cell that a reader may hold is copied before it changes, so adding costs more while somebody
    reads, and nothing else does.
    """

    __slots__ = ("_cells", "_lent", "_shared")

    def __init__(self) -> None:
        self._cells: Cells = {}
        self._lent = False
        self._shared: set[Label] = set()  # whose cells a reader may hold

    def __len__(self) -> int:
        return len(self._cells)

    def __iter__(self) -> Iterator[Label]:
        return iter(self._cells)

    def lend(self) -> Cells:
        """The cells as they are now. They change no more: nobody may change them."""
        self._lent = True
        self._shared = set(self._cells)
        return self._cells

    def merge(self, label: Label, cell: Cell) -> None:
        """Merge a cell into the one of its label."""
        merge_into(self._own(label), label, cell)

    def subtract(self, label: Label, cell: Cell) -> None:
        """Take out a cell that was merged before; a label without requests goes."""
        cells = self._own(label)
        total = cells[label]
        total.subtract(cell)
        if not total.requests:
            del cells[label]

    def _own(self, label: Label) -> Cells:
        if self._lent:
            self._lent = False
            self._cells = dict(self._cells)
        if label in self._shared:
            self._shared.discard(label)
            self._cells[label] = self._cells[label].copy()
        return self._cells


class Line:
    """Where requests of one kind are counted: its labels, and its cell of the running second.

    Requests that have key, model, provider and mode in common share a line, so that each is counted
    once; the line's cell goes into the cells of its labels when the second is over.
    """

    __slots__ = ("cell", "labels")

    def __init__(self, *labels: Label) -> None:
        self.labels = labels
        self.cell: Cell | None = None
