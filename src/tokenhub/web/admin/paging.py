"""``limit`` and ``offset`` of lists, and query strings read strictly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from tokenhub.core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenhub.web.http import Request

MAX_LIMIT = 1000


def query_of(request: Request, *known: str) -> dict[str, str]:
    """The query parameters.

    Raises:
        InvalidRequest: an unknown or a repeated parameter, by name.
    """
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(request.query, keep_blank_values=True, max_num_fields=50, errors="strict")
    except ValueError:
        raise InvalidRequest("The query string cannot be read.") from None
    for name, value in pairs:
        if name not in known:
            raise InvalidRequest(
                f"Unknown parameter `{name[:64]}`.",
                param=name[:64],
                code="unknown_parameter",
                hint=f"Known here: {', '.join(known)}." if known else "None is known here.",
            )
        if name in found:
            raise InvalidRequest(
                f"The parameter `{name}` is given twice.", param=name, code="duplicate_parameter"
            )
        found[name] = value
    return found


def whole(query: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    """A whole number of the query, ``default`` when absent.

    Raises:
        InvalidRequest: not a whole number between ``low`` and ``high``.
    """
    text = query.get(name)
    if text is None:
        return default
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise InvalidRequest(f"`{name}` must be a whole number.", param=name, code="invalid_type")
    value = int(text)
    if not low <= value <= high:
        raise InvalidRequest(f"`{name}` must be between {low} and {high}.", param=name)
    return value


def page(
    request: Request, name: str, items: Sequence[Any], *, default: int = MAX_LIMIT
) -> dict[str, Any]:
    """One page of ``items`` under ``name``, with ``total``, ``limit`` and ``offset``."""
    query = query_of(request, "limit", "offset")
    limit = whole(query, "limit", default, 1, MAX_LIMIT)
    offset = whole(query, "offset", 0, 0, 10**9)
    return {
        name: items[offset : offset + limit],
        "total": len(items),
        "limit": limit,
        "offset": offset,
    }
