"""The top-level members of a JSON body, as raw slices: none stands twice, none is copied.

A body is scanned once, whatever its size: that costs more than all else done with a long one. So
in a long chat request the messages are taken out by position and only they are scanned as what
they are, while the short rest around them is read as an object of its own.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = 16_384
"""Bytes from which on a body is worth a detour that spares a scan or a copy."""


_NULL = msgspec.Raw(b"null")
_NO_MESSAGES = {"messages": _NULL}
_NO_MESSAGES_SPACED = b'"messages": null'


class _Name(str):
    """A name that equals only itself, so that a member that stands twice is kept twice."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Turn(msgspec.Struct, forbid_unknown_fields=True):
    """A message by its structure, in the members that hold nothing to look at or listen to.

    ``content`` alone may hold media, as a list of parts.
    """

    content: msgspec.Raw = _NULL
    role: msgspec.Raw = _NULL
    name: msgspec.Raw = _NULL
    tool_calls: msgspec.Raw = _NULL
    tool_call_id: msgspec.Raw = _NULL
    refusal: msgspec.Raw = _NULL
    reasoning_content: msgspec.Raw = _NULL


_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_pairs = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=str.__new__)
_turns = msgspec.json.Decoder(list[Turn])
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# What stands in for the messages in the rest of a body: a text that nobody sends, valid JSON. A
# byte is found some fifty times as fast as two.
_PLACE = b'"\x7f"'
_MARK = msgspec.Raw(b"\0")  # in a splice; in no valid JSON
_SHORT = 4_096  # bytes of a rest that cost less to write than to scan once more
_TAIL = 2_048  # bytes searched for the end of the messages
_FAR = 65_536  # the same where tools stand before or after them
_ENDS_TRIED = 4
_BEGIN = rb'"messages"[ \t\r\n]*:[ \t\r\n]*(?=\[)'
# Inside of a text a quote has a backslash before it, so this finds no text.
_END = rb'\](?=[ \t\r\n]*(?:\}[ \t\r\n]*\Z|,[ \t\r\n]*"))'


class Spliced:
    """A long body in parts, most of it a view of another one, so that it is sent uncopied."""

    __slots__ = ("parts",)

    def __init__(self, *parts: bytes | memoryview) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


def parse_members(body: bytes | memoryview) -> dict[str, msgspec.Raw]:
    """The top-level members of a JSON object, undecoded.

    Raises:
        InvalidRequest: not JSON, not an object, nested too deeply, or a duplicate member.
    """
    return read_object(body)[0]


def read_object(body: bytes | memoryview) -> tuple[dict[str, msgspec.Raw], bytes]:
    """The members of a JSON object, and a short object of them that has no messages.

    Raises:
        InvalidRequest: as ``parse_members``.
    """
    try:
        members = _members.decode(body)
        messages = members.get("messages", _NULL)
        around = msgspec.json.encode(members if messages is _NULL else members | _NO_MESSAGES)
        spare = len(body) - len(around) - len(messages) + 4
        if spare:
            if spare != 2 * len(members) - 1:
                str(body, "utf-8", "surrogatepass")
                _refuse_duplicates(body, members)
            elif not _roomless(spare, members) and not _is_spaced(body, around, messages):
                _refuse_duplicates(body, members)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
    except msgspec.ValidationError:
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    return members, around


def split_messages(
    body: bytes | memoryview,
) -> tuple[dict[str, msgspec.Raw], bytes, list[Turn]] | None:
    """The same of a long chat request, and its messages by structure, all in one scan.

    None if it is unusual in any way, right or wrong: ``read_object`` then has the answer.
    """
    begin = re.compile(_BEGIN).search(body, 0, _FAR)
    if begin is None:
        return None
    start = begin.end()
    for end in _ends(body, start):
        found = _around(body, start, end)
        if found is not None:
            members, around = found
            raw = memoryview(body)[start:end]
            members["messages"] = msgspec.Raw(raw)
            turns = read_turns(raw)
            return (members, around, turns) if turns else None
    return None


def _around(
    body: bytes | memoryview, start: int, end: int
) -> tuple[dict[str, msgspec.Raw], bytes] | None:
    """The members of ``body``, if it is a usual object whose messages stand at ``start:end``.

    The body is valid if it is with any value there, and what stands there is a value.
    """
    rest = b"".join((body[:start], _PLACE, body[end:]))
    if rest.find(_PLACE[1]) != rest.rfind(_PLACE[1]):
        return None
    try:
        members = _members.decode(rest)
        around = msgspec.json.encode(members)
        spare = len(rest) - len(around)
        if spare:
            if spare != 2 * len(members) - 1:
                return None
            if not _roomless(spare, members) and not _is_spaced(rest, around, _NULL):
                _refuse_duplicates(rest, members)
    except (*_UNREADABLE, InvalidRequest):
        return None
    return (members, around) if members.get("messages") == msgspec.Raw(_PLACE) else None


def read_turns(messages: memoryview | msgspec.Raw) -> list[Turn] | None:
    """The messages by structure; None when one has a member that a ``Turn`` has not."""
    try:
        return _turns.decode(messages)
    except _UNREADABLE:
        return None


def splice(members: dict[str, msgspec.Raw], changes: dict[str, msgspec.Raw]) -> bytes | Spliced:
    """The object of ``members`` with some replaced or added; all other values byte-exact."""
    changed = members | changes
    messages = changed.get("messages")
    if messages is None or len(messages) < LONG:
        return msgspec.json.encode(changed)
    changed["messages"] = _MARK
    head, _, tail = msgspec.json.encode(changed).partition(b"\0")
    return Spliced(head, memoryview(messages), tail)


def _ends(body: bytes | memoryview, start: int) -> Iterator[int]:
    """Where the messages may end, the likeliest first."""
    candidates = re.compile(_END).finditer(body, max(start, len(body) - _TAIL))
    for found in itertools.islice(candidates, _ENDS_TRIED):
        end = found.end()
        if body[end - 3 : end] == b"}}]":  # of tools, which stand after the messages
            near = bytes(body[max(start, end - _FAR) : end])
            before = near.rfind(b"]", 0, max(near.rfind(b'"tools":'), 0))
            if before >= 0:
                yield end - len(near) + before + 1
        yield end


def _roomless(spare: int, members: dict[str, msgspec.Raw]) -> bool:
    """Whether the bytes that the members do not need are too few for a duplicate.

    It needs its name and five bytes, `"":0,`. Where `model` would fit, nobody asks for the others.
    """
    # Three members with their spaces need no look at each name.
    return (spare < 6 and "" not in members) or (spare < 10 and spare < min(map(len, members)) + 5)


def _is_spaced(body: bytes | memoryview, around: bytes, messages: msgspec.Raw) -> bool:
    """Whether a body is, byte for byte, its members once each as a common JSON writer puts them.

    That is with a space after each comma and colon. ``around`` is the same without the messages.
    """
    if len(around) > _SHORT:
        return False
    # No text holds a quote of its own with `: null` after it, so what is put in here is a value
    # for a value: it adds no member to those of `around`, none of which stands twice.
    spaced = msgspec.json.format(around, indent=0)
    return spaced.replace(_NO_MESSAGES_SPACED, b'"messages": %b' % messages, 1) == body


def _refuse_duplicates(body: bytes | memoryview, members: dict[str, msgspec.Raw]) -> None:
    # A duplicate member would let us and the provider read different requests.
    names = list(_pairs.decode(body))
    if len(names) == len(members):
        return
    seen = set()
    for name in map(str, names):
        if name in seen:
            raise InvalidRequest(
                f"The member `{name[:64]}` appears twice.",
                param=name[:64],
                code="duplicate_parameter",
            )
        seen.add(name)
