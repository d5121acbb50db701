"""Past attempts with their rewards, newest first, out of the rows of decisions.

Rows of ``reward_log`` are from before migration 0009: one per attempt, with the reward in it.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tokenhub.core.decision import Attempt
from tokenhub.routing.reward import QUALITY_SHARE, worth

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenhub.storage.database import Database, Row

# The one index on "at" of each table gives the order.
_PAGE = """
SELECT request_id, attempt, at, model_id, provider_id, mode, estimated_tokens, token_bucket,
    latency_budget_ms, latency_ms, ttft_ms, cost, error_class, reward, propensity, feedback,
    '' AS record, '' AS attempts
FROM reward_log WHERE at <= :at AND (at, request_id, attempt) < (:at, :request_id, :attempt)
UNION ALL
SELECT request_id, 0, at, '', '', mode, 0, '', latency_budget_ms, 0.0, NULL, NULL, '', NULL, 0.0,
    feedback, record, attempts
FROM decision_log
WHERE at <= :at AND (at, request_id, 0) < (:at, :request_id, :attempt)
    AND latency_budget_ms IS NOT NULL
ORDER BY at DESC, request_id DESC, attempt DESC LIMIT :most
"""
_NEVER = 2**62
_PLACE = itemgetter(2, 0, 1)  # at, request, attempt


class Tried(NamedTuple):
    """An attempt as it is listed; ``feedback`` is a later judgement, part of ``reward``."""

    request_id: str
    attempt: int
    at: int
    model_id: str
    provider_id: str
    mode: str
    estimated_tokens: int
    token_bucket: str
    latency_budget_ms: int
    latency_ms: float
    ttft_ms: float | None
    cost: int | None
    error_class: str
    reward: float | None
    propensity: float
    feedback: float | None


class _Asked(msgspec.Struct):
    input_tokens: int = 0


class _Record(msgspec.Struct):
    """Of a decision's record what its attempts share."""

    query: _Asked
    bucket: str = ""


_record = msgspec.json.Decoder(_Record).decode
_attempts = msgspec.json.Decoder(list[Attempt]).decode


async def tried(db: Database, at_once: int) -> AsyncIterator[list[Tried]]:
    """All attempts in the log, newest first, some at a time.

    Args:
        db: where the log is.
        at_once: rows to read before others get their turn on the loop.
    """
    after = {"at": _NEVER, "request_id": "", "attempt": 0}
    waiting: list[Tried] = []
    while True:
        rows = await db.read(_PAGE, {**after, "most": at_once})
        for row in rows:
            waiting += _of_row(row)
        waiting.sort(key=_PLACE, reverse=True)
        if len(rows) < at_once:
            yield waiting
            return
        request_id, attempt, at, *_ = rows[-1]
        after = {"at": at, "request_id": request_id, "attempt": attempt}
        # A request is in the log by its end, an attempt is listed by its begin: one that began
        # later than all of the next page ended comes before what that page holds.
        sure = sum(one.at > at for one in waiting)
        if sure:
            yield waiting[:sure]
            waiting = waiting[sure:]


def _of_row(row: Row) -> list[Tried]:
    *columns, record, attempts = row
    if not record:
        return [Tried(*columns)]
    request_id, mode, budget, feedback = row[0], row[5], row[8], row[15]
    asked = _record(record)
    tokens, bucket = asked.query.input_tokens, asked.bucket
    tries = _attempts(attempts)
    judged = 0
    if feedback is not None:
        judged = max((one.number for one in tries if not one.kind), default=0)
    found = []
    for one in tries:
        reward, said = worth(one, budget), None
        if one.number == judged and reward is not None:
            said = feedback
            reward += QUALITY_SHARE * (feedback - 1.0)
        found.append(Tried(
            request_id, one.number, one.at_ms, one.model_id, one.provider_id, mode, tokens,
            bucket, budget, one.latency_ms, one.ttft_ms, one.cost, one.kind, reward,
            one.propensity, said,
        ))  # fmt: skip
    return found
