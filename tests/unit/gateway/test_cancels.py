"""A client that leaves, at each wait of its request: no money stays reserved, the log is right."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from tests.unit.gateway.stage import DONE, Stream, broken, grant, stage, whole, word

from tokenhub.access.bookkeeper import Bookkeeper
from tokenhub.core.errors import FailureClass, HubError, TransportError
from tokenhub.gateway.hedge import Hedging

BUDGET = 100 * 10**9


class Left:
    """Awaits a coroutine; its task is cancelled at one of the waits.

    ``late``: when what is waited for has come, and before the coroutine hears of it.
    """

    def __init__(self, coroutine, at, *, late):
        self.waits = 0
        self._coroutine = coroutine
        self._at = at
        self._late = late

    def __await__(self):
        inner = self._coroutine.__await__()
        step = partial(next, inner)
        while True:
            try:
                future = step()
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits == self._at:
                self._leave(future)
            try:
                yield future
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is for the inner one
                step = partial(inner.throw, error)
            else:
                step = partial(next, inner)

    def _leave(self, future):
        task = asyncio.current_task()
        if self._late and future is not None:
            future.add_done_callback(lambda _: task.cancel())
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


async def answers():
    await asyncio.sleep(0)
    return whole("Hello")


async def breaks():
    await asyncio.sleep(0)
    return broken()


async def refuses():
    await asyncio.sleep(0)
    return TransportError(FailureClass.CONNECT, "nobody there", sent=False)


async def streams(*, cut=False):
    stream = Stream()
    later = asyncio.get_running_loop().call_later
    later(0.001, stream.push, word("Hel"))
    later(0.002, stream.push, word("lo", "stop"), *(() if cut else (DONE,)))
    later(0.003, *((stream.fail, broken()) if cut else (stream.end,)))
    return stream


LIVES = {
    "answer": ({"a": [answers]}, {}),
    "stream": ({"a": [streams]}, {"stream": True}),
    "broken stream": ({"a": [partial(streams, cut=True)]}, {"stream": True}),
    "failover": ({"a": [refuses], "b": [breaks], "c": [answers]}, {"model": "auto"}),
    "failover of a stream": ({"a": [breaks], "b": [streams]}, {"model": "auto", "stream": True}),
    "nobody": ({"a": [breaks], "b": [breaks]}, {"model": "auto"}),
    "hedged": ({"a": [None], "b": [answers]}, {"model": "auto"}),
    "hedged stream": ({"a": [None], "b": [streams]}, {"model": "auto", "stream": True}),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("budget", [BUDGET, None])
@pytest.mark.parametrize("life", LIVES)
async def test_wherever_it_leaves_the_books_are_closed(tmp_path, life, budget, late):
    scripts, fields = LIVES[life]
    hedging = Hedging(0.001, 2) if "hedged" in life else None
    async with stage(tmp_path, scripts, hedging=hedging, spooled=True) as on:
        books = Bookkeeper(on.db, on.clock, on.ledger)
        at, left = 0, True
        while left:
            at += 1
            key = grant(key_id=f"k{at}", monthly_budget=budget)
            one = Left(on.pipeline.chat(on.client(**fields), key), at, late=late)
            try:
                await one
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()
            except HubError:
                pass
            left = one.waits >= at
            assert on.ledger.open_holds == 0
            assert on.pipeline._limits.running(key.key_id) == 0
            await on.ledger.flush()
            accounts = on.ledger.accounts(key.key_id).values()
            call = on.calls[-1]
            assert {account.reserved for account in accounts} <= {0}
            assert {account.spent for account in accounts} <= {call.cost}
            assert len(on.calls) == at
            assert [one.kind for one in call.attempts if one.cost is None] == []
            assert (call.status == 499) == left
        assert at > (1 if budget is None else 3)
        assert await books.verify() == []
    again = [path.name for path in tmp_path.iterdir() if "spool" in path.name]
    assert again == []
