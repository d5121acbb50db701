"""Hedging: ask a second provider while the first is slow, and take whichever answers first.

Off unless configured, because a provider may bill a request that was given up: every attempt
reserves money for itself, and a loser pays for its prompt.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.errors import HubError, ProviderError
from tokenhub.routing.retry import FINAL

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tokenhub.gateway.attempt import Attempt
    from tokenhub.gateway.call import Answer

    Run = Callable[[Attempt], Coroutine[None, None, Answer | None]]


class Hedging(msgspec.Struct, frozen=True):
    """Ask one more provider after so many seconds without content; at most so many at once."""

    after_s: float
    most: int


class Lost(Exception):
    """Content of an attempt that comes after another's; it goes nowhere."""


async def race(first: Attempt, run: Run, hedging: Hedging) -> Answer | None:
    """Run an attempt, and others beside it while nothing has come; the first content wins.

    An attempt that fails leaves the others running. One that cannot be made at all (no money
    for it, a provider whose API cannot express the request) counts when no other is left.

    Args:
        first: the attempt to begin with.
        run: performs an attempt and reports it to its plan.
        hedging: when to start another, and how many.

    Raises:
        ProviderError, HubError: all have failed, or one in a way that nobody else would mend.
    """
    contest = _Race(run)
    contest.start(first)
    try:
        while contest.running:
            room = contest.open and len(contest.running) < hedging.most
            ended, _ = await asyncio.wait(
                contest.running,
                timeout=hedging.after_s if room else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in ended:
                if contest.answered(task):
                    return task.result()
            if not ended and contest.open:  # content may have come while this waited
                contest.start(first.beside())
        raise contest.verdict
    finally:
        await contest.end()


class _Race:
    """The attempts under way.

    Attributes:
        running: their tasks.
        open: whether another may be started.
        verdict: why there is no answer, once all have failed.
    """

    def __init__(self, run: Run) -> None:
        self.running: set[asyncio.Task[Answer | None]] = set()
        self._attempts: list[Attempt] = []
        self.open = True
        self.verdict: Exception = Lost()
        self._run = run
        self._decided = False
        self._winner: asyncio.Task[Answer | None] | None = None

    def start(self, attempt: Attempt | None) -> None:
        """Begin an attempt; None: there is nobody else to ask."""
        if attempt is None:
            self.open = False
            return
        task = asyncio.get_running_loop().create_task(self._run(attempt))
        attempt.on_content = partial(self._won, task)
        self._attempts.append(attempt)
        self.running.add(task)

    def answered(self, task: asyncio.Task[Answer | None]) -> bool:
        """Whether an attempt that ended is the answer; else its error is kept.

        Raises:
            ProviderError: nobody else would do better.
        """
        self.running.discard(task)
        error = None if task.cancelled() else task.exception()
        if self._decided and task is not self._winner:
            return False
        if error is None:
            return True
        if not isinstance(error, ProviderError | HubError):
            raise error
        if isinstance(error, ProviderError) and error.kind in FINAL:
            raise error
        # A failed attempt lets the plan go on, one that could not be made would end it.
        if not isinstance(self.verdict, ProviderError):
            self.verdict = error
        return False

    async def end(self) -> None:
        """Cancel whoever still runs, and wait until their books are closed."""
        self._decided = True
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        for attempt in self._attempts:
            attempt.given_up()  # a task that was cancelled before its first step reports nothing

    def _won(self, task: asyncio.Task[Answer | None]) -> None:
        """Content has come. Called once by each attempt, before the client gets any of it."""
        if self._decided:
            raise Lost
        self._decided = True
        self._winner = task
        self.open = False
        for other in self.running - {task}:
            other.cancel()
