"""The latest answers, for feedback that comes after them."""

from __future__ import annotations

from collections import deque

REMEMBERED = 20_000
PAGE = 1_000

Answer = tuple[int, str, str, float]
"""What feedback would change: number of the attempt, model id, token bucket, assumed quality."""


class Answers:
    """At least the ``REMEMBERED`` latest answers by request id.

    They are forgotten page by page: an ordered dictionary would cost each request twice as much.

    Attributes:
        page: the latest ones; whoever adds one calls ``turn`` when there are ``PAGE``.
    """

    __slots__ = ("_earlier", "page")

    def __init__(self) -> None:
        self.page: dict[str, Answer] = {}
        self._earlier: deque[dict[str, Answer]] = deque(maxlen=REMEMBERED // PAGE)

    def __len__(self) -> int:
        return len(self.page) + sum(map(len, self._earlier))

    def turn(self) -> None:
        """Begin another page; the oldest one is forgotten."""
        self._earlier.append(self.page)
        self.page = {}

    def find(self, request_id: str) -> Answer | None:
        """The answer to a request, None when it is not remembered."""
        return self._page_of(request_id).get(request_id)

    def replace(self, request_id: str, answer: Answer) -> None:
        """Put another one in the place of one that is remembered."""
        self._page_of(request_id)[request_id] = answer

    def recall(self, request_id: str, answer: Answer) -> None:
        """Remember one that is older than all the others, if there is room for it."""
        earlier = self._earlier
        if self.find(request_id) is not None:
            return
        if not earlier or len(earlier[0]) >= PAGE:
            if len(earlier) == earlier.maxlen:
                return
            earlier.appendleft({})
        earlier[0][request_id] = answer

    def _page_of(self, request_id: str) -> dict[str, Answer]:
        if request_id not in self.page:
            for page in reversed(self._earlier):
                if request_id in page:
                    return page
        return self.page
