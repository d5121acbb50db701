"""Outcome → reward in [0, 1]; the logs of attempts and decisions, written in batches.

    reward = 0.3·(1 - min(cost/$0.10, 1)) + 0.3·(1 - min(time/budget, 1)) + 0.4·quality

or 0 for an attempt that failed. ``quality`` is 1 until feedback says otherwise. ``time`` is to the
first token of a stream, else of the whole answer; ``budget`` is the request's ``max_latency_ms``,
20 s where it has none, at least 1 s. An unknown cost counts as $0.10.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from tokenhub.core.errors import FailureClass
from tokenhub.routing.explain import encode_evidence, encode_record
from tokenhub.routing.health import ATTRIBUTABLE, REJECTIONS
from tokenhub.routing.rules import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenhub.core.decision import Attempt, Decision
    from tokenhub.routing.rules import Rules
    from tokenhub.storage.database import Database, Transaction

COST_CEILING = 100_000_000  # nano-dollars: $0.10
LATENCY_FLOOR_MS = 1_000
LATENCY_BUDGET_MS = 20_000
COST_SHARE = 0.3
LATENCY_SHARE = 0.3
QUALITY_SHARE = 0.4

FLUSH_S = 0.2
MOST_PENDING = 100_000
REBUILD_MS = 7 * 24 * 3_600_000  # older rewards have faded below 1 %
REBUILD_ROWS = 100_000

LEARNED = ATTRIBUTABLE | REJECTIONS | {FailureClass.RATE_LIMITED, FailureClass.DEADLINE}
"""Failures that count against the arm; the others are the request's or the client's."""

_INSERT = """
INSERT INTO reward_log (request_id, attempt, at, model_id, provider_id, mode, estimated_tokens,
    token_bucket, latency_budget_ms, latency_ms, ttft_ms, cost, error_class, reward, propensity)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (request_id, attempt) DO NOTHING
"""
_FEEDBACK = """
UPDATE reward_log SET feedback = :feedback, reward = reward + :change
WHERE request_id = :request_id AND attempt = :attempt
"""
_DECISION = """
INSERT INTO decision_log (request_id, at, mode, policy, model_id, answered_by, outcome, rules,
    evidence, record, attempts)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (request_id) DO NOTHING
"""
_EVIDENCE = (
    "INSERT INTO decision_evidence (digest, at, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
)
_RULES = "INSERT INTO decision_rules (digest, at, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_COLUMNS = (
    "request_id", "attempt", "at", "model_id", "provider_id", "mode", "estimated_tokens",
    "token_bucket", "latency_budget_ms", "latency_ms", "ttft_ms", "cost", "error_class", "reward",
    "propensity", "feedback",
)  # fmt: skip
_LIST = f"""
SELECT {", ".join(_COLUMNS)} FROM reward_log ORDER BY at DESC, request_id DESC, attempt DESC
LIMIT :limit OFFSET :offset
"""  # noqa: S608 - constant names
_LEARNED = """
SELECT request_id, attempt, at, model_id, token_bucket, reward, feedback, error_class
FROM reward_log WHERE at > :since AND reward IS NOT NULL
ORDER BY at DESC, request_id DESC, attempt DESC LIMIT :most
"""
_ONE = """
SELECT d.record, d.attempts, d.outcome, d.at, r.body, e.body
FROM decision_log d JOIN decision_rules r ON r.digest = d.rules
JOIN decision_evidence e ON e.digest = d.evidence WHERE d.request_id = :request_id
"""
PRUNE_SLICE = 2_000
_PRUNE = (
    """
    DELETE FROM reward_log WHERE (request_id, attempt) IN (
        SELECT request_id, attempt FROM reward_log WHERE at < :before ORDER BY at LIMIT :slice)
    """,
    """
    DELETE FROM decision_log WHERE request_id IN (
        SELECT request_id FROM decision_log WHERE at < :before ORDER BY at LIMIT :slice)
    """,
    """
    DELETE FROM decision_evidence WHERE digest IN (
        SELECT digest FROM decision_evidence WHERE at < :before - 60000 ORDER BY at LIMIT :slice)
    """,  # a decision is at most a minute younger than its evidence
    """
    DELETE FROM decision_rules
    WHERE at < :before AND digest NOT IN (SELECT rules FROM decision_log)
    """,
)


def latency_budget(decision: Decision) -> int:
    """The milliseconds an answer's time is measured against."""
    limit = decision.limits.max_latency_ms
    return max(limit, LATENCY_FLOOR_MS) if limit else LATENCY_BUDGET_MS


def reward_of(decision: Decision, attempt: Attempt) -> float | None:
    """What an attempt was worth; None when it says nothing about the model."""
    if attempt.kind:
        return 0.0 if attempt.kind in LEARNED else None
    spent = COST_CEILING if attempt.cost is None else attempt.cost
    time = attempt.latency_ms if attempt.ttft_ms is None else attempt.ttft_ms
    # Conditions, where min() would be a call: every request comes by here.
    cheap = 1.0 - spent / COST_CEILING if spent < COST_CEILING else 0.0
    budget = latency_budget(decision)
    quick = 1.0 - time / budget if time < budget else 0.0
    return COST_SHARE * cheap + LATENCY_SHARE * quick + QUALITY_SHARE


class Learned(NamedTuple):
    """A reward as it is read back at start."""

    request_id: str
    attempt: int
    at: int
    model_id: str
    bucket: str
    reward: float
    feedback: float | None
    kind: str


_Ended = tuple["Decision", tuple["Attempt", ...], str, int]
"""A decision, what was tried, what came of it, and when."""


class StoredDecision(msgspec.Struct, frozen=True):
    """A past decision as it stands in the log; texts are JSON."""

    record: str
    attempts: str
    outcome: str
    at: int
    rules: str
    evidence: str


class RewardLog:
    """Rows waiting to be written, and the questions that can be asked of those that were.

    Args:
        db: where they go.
        call_later: the loop's; a timer runs only while rows wait.
    """

    def __init__(
        self,
        db: Database,
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._db = db
        self._call_later = call_later
        self._attempts: list[tuple[Any, ...]] = []
        self._feedback: list[dict[str, Any]] = []
        self._decisions: list[_Ended] = []
        self._rules: dict[str, tuple[Rules, int]] = {}
        self._known: set[str] = set()
        self._waiting = False
        self.dropped = 0

    def attempt(self, decision: Decision, attempt: Attempt, reward: float | None) -> None:
        """Log an attempt."""
        query = decision.query
        row = (
            query.request_id, attempt.number, attempt.at_ms, attempt.model_id, attempt.provider_id,
            decision.mode, query.input_tokens, decision.bucket, latency_budget(decision),
            attempt.latency_ms, attempt.ttft_ms, attempt.cost, attempt.kind, reward,
            attempt.propensity,
        )  # fmt: skip
        self._add(self._attempts, row)

    def feedback(self, request_id: str, attempt: int, score: float, change: float) -> None:
        """Log that a judgement moved a reward."""
        row = {
            "request_id": request_id, "attempt": attempt, "feedback": score, "change": change,
        }  # fmt: skip
        self._add(self._feedback, row)

    def decision(
        self,
        decision: Decision,
        rules: Rules,
        attempts: Sequence[Attempt],
        outcome: str,
        at_ms: int,
    ) -> None:
        """Log a decision and what became of it."""
        if rules.digest not in self._known:
            self._known.add(rules.digest)
            self._rules[rules.digest] = (rules, at_ms)
        self._add(self._decisions, (decision, tuple(attempts), outcome, at_ms))

    def _add(self, rows: list[Any], row: Any) -> None:
        if len(rows) >= MOST_PENDING:
            self.dropped += 1
            return
        rows.append(row)
        if not self._waiting:
            self._waiting = True
            self._call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Queue everything that waits, now."""
        self._waiting = False
        attempts, self._attempts = self._attempts, []
        feedback, self._feedback = self._feedback, []
        decisions, self._decisions = self._decisions, []
        rules, self._rules = self._rules, {}
        if not (attempts or feedback or decisions):
            return

        def save(tx: Transaction) -> None:
            for digest, (body, at) in rules.items():
                tx.execute(_RULES, (digest, at, encode(body).decode()))
            if decisions:
                digests = _save_evidence(tx, decisions)
                rows = [_row(*one, digests[id(one[0].evidence)]) for one in decisions]
                tx.executemany(_DECISION, rows)
            if attempts:
                tx.executemany(_INSERT, attempts)
            if feedback:
                tx.executemany(_FEEDBACK, feedback)

        self._db.write_soon(save)

    async def rewards(self, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
        """Logged attempts, newest first, with those that have just ended."""
        await self._written()
        rows = await self._db.read(_LIST, {"limit": limit, "offset": offset})
        return [dict(zip(_COLUMNS, row, strict=True)) for row in rows]

    async def stored(self, request_id: str) -> StoredDecision | None:
        """The decision of a request, None when it is not (or no longer) in the log."""
        await self._written()
        rows = await self._db.read(_ONE, {"request_id": request_id})
        return StoredDecision(*rows[0]) if rows else None

    async def _written(self) -> None:
        self.flush()
        # A write ordered after the flush: when it is acknowledged the flush is readable.
        await self._db.write(lambda _: None)

    async def learned(self, now_ms: int) -> list[Learned]:
        """The rewards that still count, oldest first."""
        bounds = {"since": now_ms - REBUILD_MS, "most": REBUILD_ROWS}
        rows = await self._db.read(_LEARNED, bounds)
        return [Learned(*row) for row in reversed(rows)]

    async def prune(self, before_ms: int) -> int:
        """Delete what is older than a moment, in slices so that no lock is long; how many rows."""
        *logs, rules = _PRUNE
        total = 0
        for statement in logs:
            while deleted := await self._delete(statement, before_ms):
                total += deleted
        total += await self._delete(rules, before_ms)
        # The text of rules still in force may just have been deleted with their last decision.
        self._known.clear()
        return total

    async def _delete(self, statement: str, before_ms: int) -> int:
        def delete(tx: Transaction) -> int:
            slice_ = {"slice": PRUNE_SLICE} if ":slice" in statement else {}
            tx.execute(statement, {"before": before_ms} | slice_)
            return tx.changes()

        return await self._db.write(delete)


def _save_evidence(tx: Transaction, decisions: Sequence[_Ended]) -> dict[int, str]:
    """Write the evidence of some decisions once each; object identity → digest."""
    digests: dict[int, str] = {}
    rows = []
    for decision, *_ in decisions:
        evidence = decision.evidence
        if id(evidence) not in digests:
            body = encode_evidence(evidence)
            digest = digests[id(evidence)] = blake2b(body, digest_size=12).hexdigest()
            rows.append((digest, evidence.at_ms, body.decode()))
    tx.executemany(_EVIDENCE, rows)
    return digests


def _row(
    decision: Decision, attempts: tuple[Attempt, ...], outcome: str, at_ms: int, evidence: str
) -> tuple[Any, ...]:
    answered = next((one.model_id for one in attempts if not one.kind), "")
    return (
        decision.query.request_id,
        at_ms,
        decision.mode,
        decision.policy,
        decision.chosen.model_id if decision.candidates else "",
        answered,
        outcome,
        decision.rules,
        evidence,
        encode_record(decision).decode(),
        msgspec.json.encode(attempts).decode(),
    )
