"""Hold: one attempt's money. Left without ``settle`` or ``release``, it settles itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

from tokenhub.core.bounds import counted

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

    from tokenhub.access.accounts import Books, Budgeted
    from tokenhub.core.bounds import Bound
    from tokenhub.core.catalog import Model
    from tokenhub.core.chat import Usage


class Keeper(Protocol):
    """What a hold asks of the ledger. None of these waits."""

    def reserve(self, hold: Hold) -> asyncio.Future[None] | None:
        """Reserve its bound; a future if it may not be spent before that is durable."""
        ...

    def settle(
        self, hold: Hold, usage: Usage, flag: str, *, wait: bool = True
    ) -> asyncio.Future[None] | None:
        """Close it at what its usage costs; a future if that must become durable first."""
        ...

    def release(self, hold: Hold) -> None:
        """Close it at nothing; a second time is allowed."""
        ...


class Hold:
    """One attempt's money, from the reservation to the settlement.

    ``async with`` is the safe way to use it. The way of a request, where every coroutine counts,
    does the same by hand and awaits only when something must be waited for::

        if (opening := hold.reserve()) is not None:
            await hold.opened(opening)
        try:
            ...
            if (closing := hold.book()) is not None:
                await closing
        finally:
            if not hold.closed:
                hold.leave()

    Attributes:
        bound, reserved: what is reserved and for which tokens.
        cost: what it came to, in nano-dollars; None while open and where the price is unknown.
        overrun: the part of ``cost`` that no budget could cover any more.
        sent: the request may have reached the provider (see ``note``).
        books, opening, opened_ms: the accounts it counts in, its row as a batch has opened it
            (None until one does), and when it was opened (the ledger's own).
    """

    __slots__ = (
        "_content_bytes",
        "_ledger",
        "_usage",
        "attempt",
        "books",
        "bound",
        "closed",
        "cost",
        "grant",
        "id",
        "model",
        "opened_ms",
        "opening",
        "overrun",
        "request_id",
        "reserved",
        "sent",
    )

    id: int
    books: Books
    opened_ms: int

    def __init__(
        self,
        ledger: Keeper,
        grant: Budgeted,
        request_id: str,
        attempt: int,
        model: Model,
        bound: Bound,
    ) -> None:
        self._ledger = ledger
        self.grant = grant
        self.request_id = request_id
        self.attempt = attempt
        self.model = model
        self.bound = bound
        self.reserved = bound.nano
        self.opening: tuple[Any, ...] | None = None
        self.closed = True
        self.cost: int | None = None
        self.overrun = 0
        self.sent = False
        self._content_bytes = 0
        self._usage: Usage | None = None

    async def __aenter__(self) -> Self:
        future = self._ledger.reserve(self)
        if future is not None:
            await self.opened(future)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.closed:
            self.leave()

    def reserve(self) -> asyncio.Future[None] | None:
        """Reserve the bound; what must be given to ``opened`` before any of it is spent.

        Raises:
            HubError: as ``Ledger.spend`` says.
        """
        return self._ledger.reserve(self)

    async def opened(self, future: asyncio.Future[None]) -> None:
        """Wait until the reservation is durable; it is given back when it cannot be."""
        try:
            await future
        except BaseException:
            self.release()
            raise

    def note(
        self, *, sent: bool = True, content_bytes: int | None = None, usage: Usage | None = None
    ) -> None:
        """What is known so far; counts if the attempt ends without ``settle``.

        Args:
            sent: the request may have reached the provider.
            content_bytes: UTF-8 bytes generated so far.
            usage: the provider's own count so far.
        """
        self.sent = sent
        if content_bytes is not None:
            self._content_bytes = content_bytes
        if usage is not None:
            self._usage = usage

    @property
    def usage(self) -> Usage:
        """The provider's count so far, else ours from what was noted."""
        return self._usage or counted(self.bound.measure, self._content_bytes)

    async def settle(self, usage: Usage | None = None, *, flag: str = "") -> None:
        """Book what the attempt cost; durable on return where the key has a budget.

        Else ``Ledger.put_down`` must be called before an answer leaves.

        Args:
            usage: the provider's count; None = it reported none: counted from what was noted.
            flag: a word for the books on how the attempt ended; "" = nothing special.
        """
        future = self._ledger.settle(self, usage or self.usage, flag)
        if future is not None:
            await future

    def book(self, flag: str = "") -> asyncio.Future[None] | None:
        """``settle`` as noted; what must be awaited before the last byte goes out, if anything."""
        return self._ledger.settle(self, self._usage or self.usage, flag)

    def release(self) -> None:
        """Book that the attempt cost nothing. No wait, no error."""
        self._ledger.release(self)

    def leave(self) -> None:
        """Close what was left open: as noted if anything was, at nothing if not. No wait."""
        if self.sent or self._content_bytes or self._usage is not None:
            self._ledger.settle(self, self.usage, "cut", wait=False)
        else:
            self._ledger.release(self)
