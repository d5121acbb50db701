"""How much work a JSON Schema can make: a few lines of references can stand for 2^40 checks.

The schema is followed through its references as a validator would, but each part only once.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

MAX_PARTS = 10_000
MAX_REPEATS = 100_000

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_ANCHORS = ("$anchor", "$dynamicAnchor")


class Expansion:
    """A schema with its references written out.

    Attributes:
        parts: how many subschemas that would be, where one that holds itself is not entered again.
        cycles: how many references lead back into what holds them.

    Raises:
        ValueError: a reference leads out of the schema, to nothing, or there is too much.
    """

    def __init__(self, schema: Any) -> None:
        self._root = schema
        self._anchors: dict[str, Any] = {}
        self._known: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()
        self._find_anchors(schema)
        self.parts, self.cycles = self._size(schema)
        if self.parts > MAX_PARTS:
            raise ValueError(f"its references stand for more than {MAX_PARTS} parts")

    def bears(self, value: Any) -> bool:
        """Whether a value can be checked in reasonable time: each level may repeat the cycles."""
        return self.cycles < 2 or self.cycles ** _depth(value) <= MAX_REPEATS

    def _find_anchors(self, node: Any, *, inner: bool = False) -> None:
        if isinstance(node, dict):
            if inner and isinstance(node.get("$id"), str):
                raise ValueError("`$id` is only allowed at the top")
            for name in _ANCHORS:
                if isinstance(anchor := node.get(name), str):
                    self._anchors[anchor] = node
        for child in _children(node):
            self._find_anchors(child, inner=True)

    def _size(self, node: Any) -> tuple[int, int]:
        if not isinstance(node, dict | list):
            return 0, 0
        if id(node) in self._open:
            return 1, 1
        if id(node) not in self._known:
            self._open.add(id(node))
            below = [*_children(node), *self._targets(node)]
            sizes = [self._size(child) for child in below]
            self._open.remove(id(node))
            parts, cycles = (sum(one[which] for one in sizes) for which in (0, 1))
            self._known[id(node)] = parts + isinstance(node, dict), cycles
        return self._known[id(node)]

    def _targets(self, node: Any) -> list[Any]:
        if not isinstance(node, dict):
            return []
        names = [node[name] for name in _REFERENCES if isinstance(node.get(name), str)]
        return [self._target(name) for name in names]

    def _target(self, reference: str) -> Any:
        if not reference.startswith("#"):
            raise ValueError(f"the reference `{reference[:100]}` leads out of it")
        pointer = unquote(reference[1:])
        if pointer and not pointer.startswith("/"):
            if pointer not in self._anchors:
                raise ValueError(f"the reference `{reference[:100]}` leads to nothing")
            return self._anchors[pointer]
        node = self._root
        for raw in pointer.split("/")[1:]:
            part = raw.replace("~1", "/").replace("~0", "~")
            try:
                node = node[int(part)] if isinstance(node, list) else node[part]
            except (KeyError, IndexError, TypeError, ValueError):
                message = f"the reference `{reference[:100]}` leads to nothing"
                raise ValueError(message) from None
        return node


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [child for node in level for child in _children(node)]:
        depth += 1
    return depth
