"""In-band directives: ``@@tokenhub`` at the start of the last user message.

    @@tokenhub mode=cheap budget=0.01 latency=5000 min_weight=7
    @@tokenhub            one line, or a block closed by @@end
    budget=0.01
    @@end

Only for keys that allow them, because a pasted document must not steer the routing; and they only
narrow: a lower ceiling, a higher floor, a mode where the request names none.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from tokenhub.core.decision import MODES, Limits
from tokenhub.core.money import parse_usd

MARK = "@@tokenhub"
END = "@@end"
MAX_DIRECTIVE = 2048

_LINE = re.compile(r"@@tokenhub[ \t]+([^\n]*)(?:\n|\Z)")
_BLOCK = re.compile(r"@@tokenhub[ \t]*\n(.*?)^@@end[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_PAIR = re.compile(r"([a-z_]+)=(\S+)")


class Directives(msgspec.Struct, frozen=True):
    """What was found: a mode ("" = none) and limits."""

    mode: str
    limits: Limits


def take(messages: list[Any]) -> Directives | None:
    """Remove the directive from the last user message and return it; None if there is none.

    A value that makes no sense is ignored, as an unknown name is: the text is a prompt, not a
    form. The list is changed in place.
    """
    last = next((one for one in reversed(messages) if _is_user(one)), None)
    if last is None:
        return None
    head = last["content"][:MAX_DIRECTIVE]
    found = _BLOCK.match(head) or _LINE.match(head)
    if found is None:
        return None
    last["content"] = last["content"][found.end() :]
    pairs = dict(_PAIR.findall(found[1]))
    mode = pairs.get("mode", "")
    return Directives(
        mode=mode if mode in MODES else "",
        limits=Limits(
            max_budget=_budget(pairs.get("budget")),
            max_latency_ms=_whole(pairs.get("latency"), 1, 300_000),
            min_weight=_whole(pairs.get("min_weight"), 0, 10),
        ),
    )


def narrow(limits: Limits, said: Limits, defaults: Limits) -> Limits:
    """A policy's limits with those of a directive, which lift no default that the policy keeps."""
    both = limits.completed(defaults).narrowed(said)
    members = {
        name: getattr(limits if getattr(said, name) is None else both, name)
        for name in Limits.__struct_fields__
    }
    return Limits(**members)


def _is_user(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") == "user"
        and isinstance(message.get("content"), str)
    )


def _budget(text: str | None) -> int | None:
    try:
        value = Decimal(text or "")
    except InvalidOperation:
        return None
    if not value.is_finite() or not 0 < value <= 100:
        return None
    return parse_usd(round(value, 9), "budget") or None


def _whole(text: str | None, low: int, high: int) -> int | None:
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 10):
        return None
    return int(text) if low <= int(text) <= high else None
