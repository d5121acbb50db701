"""Rows of figures: as a table for people, as JSON for comparing runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from machine import median

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure of one subject, with all the values it was measured as."""

    scenario: str
    subject: str
    figure: str
    values: list[float]
    ratio: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def judged(self) -> float:
        """What the target speaks of: the ratio where there is one, else the median."""
        return self.ratio if self.ratio is not None else median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the target holds; None where there is none."""
        if self.at_least is not None:
            return self.judged >= self.at_least
        if self.at_most is not None:
            return self.judged <= self.at_most
        return None


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value > 0.05 else f"{value:.2g}"


def _target(row: Row) -> str:
    if row.at_least is not None:
        return f">= {row.at_least:g}"
    return f"<= {row.at_most:g}" if row.at_most is not None else ""


def line(row: Row) -> list[str]:
    """The cells of one row."""
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    spread = f"{_number(min(row.values))} to {_number(max(row.values))}"
    ratio = "" if row.ratio is None else _ratio(row.ratio)
    middle = _number(median(row.values))
    return [row.scenario, row.subject, row.figure, middle, spread, ratio, _target(row), verdict]


def table(rows: list[Row]) -> str:
    """An aligned table, notes below."""
    heads = ["SCENARIO", "SUBJECT", "FIGURE", "MEDIAN", "SPREAD", "RATIO", "TARGET", ""]
    cells = [heads, *(line(row) for row in rows)]
    widths = [max(len(cell[column]) for cell in cells) for column in range(len(heads))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True)).rstrip()
        for cell in cells
    ]
    notes = [f"{row.scenario}, {row.subject}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *dict.fromkeys(notes)])


def write_json(path: Path, machine: dict[str, str], rows: list[Row]) -> None:
    """All values of a run, the machine they were measured on, the verdicts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"machine": machine}
    content["rows"] = [asdict(row) | {"median": median(row.values), "met": row.met} for row in rows]
    path.write_text(json.dumps(content, indent=1) + "\n")
