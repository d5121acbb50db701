"""From method and raw path to the route: literal parts, ``{name}`` and ``{name:path}``.

Matching looks at the path as it was sent, so an encoded slash never splits a segment; each
captured value is percent-decoded exactly once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import unquote

from tokenhub.core.errors import HubError, InvalidRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

_PLACE = re.compile(r"\{([a-z_]+)(:path)?\}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

T = TypeVar("T")


class MethodNotAllowed(HubError):
    """The path exists, but not for this method; ``Allow`` stands in the headers."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class _Pattern(Generic[T]):
    """One path with places, and its routes by method."""

    def __init__(self, path: str) -> None:
        parts = _PLACE.split(path)  # literal, name, ":path" or None, literal, ...
        self.names = parts[1::3]
        self.literal = len("".join(parts[0::3]))
        kinds = [r"(.+)" if kind else r"([^/]+)" for kind in parts[2::3]] + [""]
        regex = "".join(
            re.escape(text) + kind for text, kind in zip(parts[0::3], kinds, strict=True)
        )
        self.regex = re.compile(regex)
        self.wide = any(parts[2::3])
        self.routes: dict[str, T] = {}


class Matcher(Generic[T]):
    """A table of routes of any type.

    A path without places wins over one with; then a pattern whose places stay within a segment
    over one with ``:path``; then the one with more literal characters.
    """

    def __init__(self) -> None:
        self._literal: dict[str, dict[str, T]] = {}
        self._patterns: list[_Pattern[T]] = []
        self._later: dict[str, Callable[[], None]] = {}

    def later(self, prefix: str, enter: Callable[[], None]) -> None:
        """Have ``enter`` add the routes under a prefix when the first path there is asked for."""
        self._later[prefix] = enter

    def add(self, method: str, path: str, route: T) -> None:
        """Enter a route; ValueError when the same method and shape stand already."""
        routes = self._routes_of(path)
        if method in routes:
            raise ValueError(f"{method} {path} is there twice")
        routes[method] = route

    def _routes_of(self, path: str) -> dict[str, T]:
        if "{" not in path:
            return self._literal.setdefault(path, {})
        pattern: _Pattern[T] = _Pattern(path)
        for known in self._patterns:
            if known.regex.pattern == pattern.regex.pattern:
                if known.names != pattern.names:
                    raise ValueError(f"{path} names its places differently than an equal path")
                return known.routes
        self._patterns.append(pattern)
        self._patterns.sort(key=lambda each: (each.wide, -each.literal))
        return pattern.routes

    def match(self, method: str, path: str) -> tuple[T, dict[str, str]]:
        """The route and its captured values; HEAD takes the route of GET.

        Raises NotFound, MethodNotAllowed, or InvalidRequest for a value that does not decode.
        """
        literal = self._literal.get(path)
        if literal is not None and method in literal:
            return literal[method], {}
        for prefix, enter in self._later.items():
            if path.startswith(prefix):
                enter()
                del self._later[prefix]
                return self.match(method, path)
        allowed = set(literal or ())
        for pattern in self._patterns:
            found = pattern.regex.fullmatch(path)
            if found is None:
                continue
            if method in pattern.routes:
                values = zip(pattern.names, found.groups(), strict=True)
                params = {name: _decode(name, value) for name, value in values}
                return pattern.routes[method], params
            allowed.update(pattern.routes)
        return self._other_method(method, path, allowed)

    def _other_method(self, method: str, path: str, allowed: set[str]) -> tuple[T, dict[str, str]]:
        if method == "HEAD" and "GET" in allowed:
            return self.match("GET", path)
        if not allowed:
            raise NotFound(
                "There is no such path.",
                code="route_not_found",
                hint="See the API reference for the paths.",
            )
        names = ", ".join(sorted(allowed))
        raise MethodNotAllowed(
            f"This path does not take {method}.",
            hint=f"Use {names}.",
            headers=((b"Allow", names.encode()),),
        )


def _decode(name: str, value: str) -> str:
    if "%" not in value:
        return value
    try:
        # unquote leaves a broken escape as it is; "strict" is about the bytes behind it.
        decoded = unquote(_BAD_ESCAPE.sub("%ff", value), errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"The {name} in the path is not percent-encoded UTF-8.", code="invalid_path", param=name
        ) from None
    if _CONTROL.search(decoded):
        raise InvalidRequest(
            f"The {name} in the path has a control character.", code="invalid_path", param=name
        )
    return decoded
