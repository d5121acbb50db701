"""What somebody who mistyped a name may have meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def similar(name: str, known: Iterable[str], *, count: int = 1, cutoff: float = 0.6) -> list[str]:
    """At most ``count`` of the known names that look like ``name``, best first."""
    import difflib  # noqa: PLC0415  # for errors only

    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)
