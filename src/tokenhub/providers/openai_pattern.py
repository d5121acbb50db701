"""Events that differ in their words alone, told apart from all others without being decoded.

Most of a stream is one event over and over, with other words in it:

    data: {"id":"c1","choices":[{"index":0,"delta":{"content":"     the head
    Hello                                                           the words
    "},"finish_reason":null}]}                                      the foot, with its blank line

One of them is decoded. From then on, what begins with the same head and ends with the same foot is
the same JSON, and says the same but for the words, if and only if the words are the inside of a
sound JSON string. That is checked for all words of a read in one call: some 0.15 us an event, where
decoding and reading one takes 1.5 us.

Providers that hide the length of what is said add a string of random letters to each event. It is
a second place that may differ; between the two stands the middle.
"""

from __future__ import annotations

import re
from io import BytesIO
from operator import itemgetter
from typing import TYPE_CHECKING

import msgspec

from tokenhub.providers.openai_events import Event, said

if TYPE_CHECKING:
    from collections.abc import Sequence

_BREAK = b"\n\n"
_PREFIX = b"data: "
# Words to learn from: not empty, as they are beside a role, and without escapes, so that they end
# at the next quote. Only a guess: what decides is how the event decodes.
_WORDS = re.compile(rb'"(?:content|reasoning_content|reasoning|refusal|arguments)": ?"([^"\\\n]+)"')
_PADDING = re.compile(rb'"(?:obfuscation|p)": ?"([0-9A-Za-z]*)"')
_LOOK = 4096  # bytes searched for them
_PROBE = b"<what was said>"
_PROBED = _PROBE.decode()

_event = msgspec.json.Decoder(Event)
_string = msgspec.json.Decoder(str)


class Pattern:
    """What surrounds the words in an event that holds content and nothing else.

    Args:
        head, foot: the bytes before the words, and those after them or after the padding.
        middle: the bytes between words and padding; b"" where there is no padding.
        choice: the index of the choice that speaks.
    """

    __slots__ = ("_foot", "_head", "_joint", "_least", "_middle", "_quoted", "_within", "choice")

    def __init__(self, head: bytes, middle: bytes, foot: bytes, choice: int) -> None:
        self._head = head
        self._middle = middle
        self._foot = foot
        self._least = len(head) + len(middle) + len(foot)
        self._quoted = slice(len(head) - 1, 1 - len(foot))
        self._joint = foot + head
        self._within = itemgetter(slice(len(head), -len(foot)))
        self.choice = choice

    def said(self, events: bytes) -> int:
        """UTF-8 bytes said in events that are all of this pattern; -1 when they are not."""
        size = len(events) - self._least
        if size < 0 or not events.startswith(self._head) or not events.endswith(self._foot):
            return -1
        if size >= self._least or self._middle:
            return self._size(self._within(events))
        # No room for a second event: one string, with the quotes that head and foot share with it.
        try:
            text: str = _string.decode(events[self._quoted])  # as _length, without its frame
        except (msgspec.DecodeError, UnicodeDecodeError):
            return -1
        return len(text) if text.isascii() else len(text.encode())

    def find(self, events: bytes, chunks: Sequence[bytes] = ()) -> tuple[int, int, int] | None:
        """Events of this pattern in a row: where it starts and ends, and the UTF-8 bytes said.

        None when there are none, or others among them. What stands before and after is not looked
        at: it is a row of whole events only when that proves to be whole events too.

        Args:
            events: to be searched.
            chunks: the same in pieces; it is quicker where each is an event.
        """
        if chunks and (row := self._find_chunks(events, chunks)) is not None:
            return row
        head, foot = self._head, self._foot
        start = events.find(head)
        if start < 0:
            return None
        end = events.find(foot, events.rfind(head) + len(head))
        if end < 0:
            # The last word comes with the reason of the end.
            end = events.rfind(foot)
        end += len(foot)
        if end - start < self._least:
            return None
        size = self._size(events[start + len(head) : end - len(foot)])
        return None if size < 0 else (start, end, size)

    def _find_chunks(self, events: bytes, chunks: Sequence[bytes]) -> tuple[int, int, int] | None:
        """What ``find`` says if each chunk of the row is an event."""
        head, foot = self._head, self._foot
        first, last = 0, len(chunks) - 1
        while not chunks[last].endswith(foot) or not chunks[last].startswith(head):
            last -= 1
            if last <= 0:
                return None
        while not chunks[first].startswith(head):
            first += 1
        start = sum(map(len, chunks[:first])) if first else 0
        pieces = list(map(self._within, chunks[first : last + 1]))
        row = self._joint.join(pieces)
        # Whether the pieces were cut in the right places shows here, whatever the chunks are.
        at = start + len(head)
        end = at + len(row)
        if not events.startswith(row, at) or not events.startswith(foot, end):
            return None
        size = self._said(pieces)
        return None if size < 0 else (start, end + len(foot), size)

    def _size(self, words: bytes) -> int:
        """What ``said`` says, of all that stands between the first head and the last foot."""
        if not self._middle and len(words) < self._least:
            return _length(b'"%b"' % words)
        return self._said(self._pieces(words))

    def _said(self, pieces: Sequence[bytes]) -> int:
        """UTF-8 bytes of what stands between head and foot in each event; -1 if it is unsound."""
        if self._middle and pieces:
            # Words and padding.
            cut = [piece.partition(self._middle) for piece in pieces]
            pieces, middles, paddings = zip(*cut, strict=True)
            padding = b"".join(paddings)
            if b"" in middles or not (padding.isalnum() or not padding):
                return -1
        more = len(pieces) - 1
        if more < 0:
            return -1
        # A blank after a cut escape makes it unsound: no piece can lean on its neighbour.
        size = _length(b'"%b"' % b" ".join(pieces))
        return -1 if size < 0 else size - more

    def _pieces(self, words: bytes) -> Sequence[bytes]:
        """The words of each event; empty when what is between them is not of the pattern."""
        pieces: Sequence[bytes]
        # Each event is a line and an empty one. Read as lines they come apart in a third of the
        # time that a split takes.
        first, *others = BytesIO(words).readlines()[::2]
        if others:
            head, foot = self._head, self._foot
            last = others.pop()[len(head) :]
            within = itemgetter(slice(len(head), 1 - len(foot)))
            pieces = [first[: 1 - len(foot)], *map(within, others), last]
            if self._joint.join(pieces) != words:
                return ()
        else:
            pieces = [first]
        return pieces


def _length(quoted: bytes) -> int:
    """UTF-8 bytes that a JSON string says; -1 if it is none."""
    try:
        text: str = _string.decode(quoted)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return -1
    return len(text) if text.isascii() else len(text.encode())


def learn(events: bytes) -> Pattern | None:
    """The pattern of the first event that looks like one; None when it is none after all."""
    found = _WORDS.search(events, 0, _LOOK)
    if found is None:
        return None
    end = events.find(_BREAK, found.end()) + len(_BREAK)
    start = events.rfind(_BREAK, 0, found.start())
    start = 0 if start < 0 else start + len(_BREAK)
    head = events[start : found.start(1)]
    middle, foot = b"", events[found.end(1) : end]
    if (padding := _PADDING.search(foot)) is not None:
        middle, foot = foot[: padding.start(1)], foot[padding.end(1) :]
    if not head.startswith(_PREFIX) or _PROBE in events[start:end]:
        return None
    probe = head + _PROBE + (middle and middle + b"0") + foot
    if probe.count(b"\n") != len(_BREAK):
        return None
    try:
        probe.decode()
        event = _event.decode(probe[len(_PREFIX) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    choice = _only_speaker(event)
    return None if choice is None else Pattern(head, middle, foot, choice)


def _only_speaker(event: Event) -> int | None:
    """The choice of an event that says the probe and nothing else."""
    if event.error is not None or event.kind == "error" or event.usage is not None:
        return None
    if event.choices is None or len(event.choices) != 1:
        return None
    choice = event.choices[0]
    delta = choice.delta
    if choice.finish_reason is not None or delta is None:
        return None
    spoken = [delta.content, delta.reasoning_content, delta.reasoning, delta.refusal]
    spoken += [call.function.arguments for call in delta.tool_calls or () if call.function]
    # Of two forms of reasoning one counts, and which one depends on the words.
    if _PROBED not in spoken or (delta.reasoning_content and delta.reasoning):
        return None
    return choice.index if said(choice) == len(_PROBE) else None
