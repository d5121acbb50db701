"""Text for a terminal: aligned columns, display width, and nothing that can drive the terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# C0, DEL, C1, line and paragraph separators, bidirectional controls, zero-width and tag
# characters, the byte order mark, lone surrogates.
UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def escape(match: re.Match[str]) -> str:
    r"""An unsafe character as ``\x1b``, ``\u202e`` or ``\U000e0041``."""
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str) -> str:
    """Text on one line with every control and direction character spelt out."""
    return UNSAFE.sub(escape, text)


def width(text: str) -> int:
    """Columns that text takes on a terminal; wide and combining characters counted as such."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width  # noqa: PLC0415  (2 ms, seldom needed)

    return sum(
        0 if combining(char) else 2 if east_asian_width(char) in {"W", "F"} else 1 for char in text
    )


def cut(text: str, most: int) -> str:
    """Text of at most ``most`` columns; what was cut shows as ``...``."""
    if width(text) <= most:
        return text
    kept = ""
    for char in text:
        if width(kept + char) > most - 3:
            break
        kept += char
    return kept + "..."


def render(rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns two spaces apart, the last one unpadded; one line per row."""
    lines = [[visible(cell) for cell in row] for row in rows]
    if not lines:
        return ""
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    return "".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell + " " * (most - width(cell) + 2)
        for cell, most in zip(cells[:-1], widths[:-1], strict=True)
    ]
    return "".join([*padded, cells[-1]]).rstrip(" ") + "\n"


def labels(pairs: Iterable[tuple[str, str]]) -> str:
    """``Label:  value`` lines, the values at the 19th column or one space after a longer label."""
    return "".join(
        f"{label + ':':<17} {visible(value)}".rstrip(" ") + "\n" for label, value in pairs
    )
