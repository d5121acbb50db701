"""Passwords are tried one at a time, and slowly after a few wrong ones."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from tokenhub.core.errors import RateLimited, Unauthorized
from tokenhub.vault.envelope import WrongPassword

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tokenhub.core.clock import Clock

MAX_WAITING = 4  # password checks waiting for the one that runs
FREE_GUESSES = 3  # wrong passwords before each next one has to wait
LONGEST_WAIT = 60.0  # seconds


class Guesses:
    """Passwords are tried one at a time, and slowly after a few wrong ones."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._gate = asyncio.Lock()
        self._inside = 0
        self._wrong = 0
        self._not_before = -math.inf

    async def one_at_a_time(self, attempt: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run an attempt when its turn comes, to its end even if the caller is cancelled."""
        if self._inside > MAX_WAITING:
            raise RateLimited(
                "Too many passwords are being checked.",
                code="vault_busy",
                headers=((b"retry-after", b"1"),),
            )
        self._require_patience()
        self._inside += 1
        task = asyncio.ensure_future(self._in_turn(attempt))
        # Looked at even where a cancelled caller no longer does.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    async def _in_turn(self, attempt: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            async with self._gate:
                self._require_patience()
                try:
                    await attempt()
                except WrongPassword:
                    self._note_wrong()
                    raise Unauthorized(
                        "The vault password is wrong; nothing was changed.",
                        code="wrong_password",
                        hint="Try again; wrong passwords make the next try wait.",
                    ) from None
                self._wrong = 0
        finally:
            self._inside -= 1

    def _note_wrong(self) -> None:
        self._wrong += 1
        if self._wrong >= FREE_GUESSES:
            wait = min(2.0 ** min(self._wrong - FREE_GUESSES, 10), LONGEST_WAIT)
            self._not_before = self._clock.monotonic() + wait

    def _require_patience(self) -> None:
        left = self._not_before - self._clock.monotonic()
        if left > 0:
            seconds = math.ceil(left)
            raise RateLimited(
                f"Too many wrong vault passwords; wait {seconds} s.",
                code="vault_throttled",
                headers=((b"retry-after", b"%d" % seconds),),
            )
