"""The log of decisions, written in batches: what was decided, what was tried, how it ended.

A request is one row. The rewards of its attempts are not stored: they follow from the attempts
(``routing/reward.py``) when somebody asks, by ``routing/tried.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.losses import Losses
from tokenhub.routing.evidence_log import OLDEST_BASE_MS, EvidenceLog, read_evidence
from tokenhub.routing.record import encode_record
from tokenhub.routing.reward import LATENCY_BUDGET_MS, latency_budget
from tokenhub.routing.rules import encode
from tokenhub.routing.tried import tried

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tokenhub.core.decision import Attempt, Decision
    from tokenhub.routing.rules import Rules
    from tokenhub.routing.tried import Tried
    from tokenhub.storage.database import Database, Transaction

FLUSH_S = 0.02
PIECE = 128  # rows written at once: some 0.4 ms, for which others wait
MOST_PENDING = 100_000
LIST_PAGE = 200
REBUILD_MS = 7 * 24 * 3_600_000  # older rewards have faded below 1 %
REBUILD_ROWS = 100_000
REBUILD_PAGE = 100  # rows read at once, between which requests get their turn

# In the order of the columns, evidence and feedback among them; see migrations 0003, 0007, 0009.
_INSERT = f"INSERT INTO decision_log VALUES ({','.join('?' * 13)}) ON CONFLICT DO NOTHING"  # noqa: S608
_EVIDENCE_AT = 10
_FEEDBACK = (
    """
    UPDATE decision_log SET feedback = :feedback
    WHERE request_id = :request_id AND latency_budget_ms IS NOT NULL
    """,
    """
    UPDATE reward_log SET feedback = :feedback, reward = reward + :change
    WHERE request_id = :request_id AND attempt = :attempt
    """,
)
_RULES = """
INSERT INTO decision_rules (digest, at, body) VALUES (?, ?, ?)
ON CONFLICT (digest) DO UPDATE SET at = excluded.at
"""
RULES_USED_MS = 3_600_000  # how often it is said again that rules are in use
_ONE = """
SELECT d.record, d.attempts, d.outcome, d.at, r.body, d.evidence
FROM decision_log d JOIN decision_rules r ON r.digest = d.rules WHERE d.request_id = :request_id
"""
PRUNE_SLICE = 2_000
# A decision is at most a minute younger than its evidence, which may need an older one as its base.
_EVIDENCE_KEPT_MS = 60_000 + OLDEST_BASE_MS
_PRUNE = (
    """
    DELETE FROM reward_log WHERE (request_id, attempt) IN (
        SELECT request_id, attempt FROM reward_log WHERE at < :before ORDER BY at LIMIT :slice)
    """,
    """
    DELETE FROM decision_log WHERE request_id IN (
        SELECT request_id FROM decision_log WHERE at < :before ORDER BY at LIMIT :slice)
    """,
    f"""
    DELETE FROM decision_evidence WHERE digest IN (
        SELECT digest FROM decision_evidence
        WHERE at < :before - {_EVIDENCE_KEPT_MS} ORDER BY at LIMIT :slice)
    """,  # noqa: S608 - a constant
    f"DELETE FROM decision_rules WHERE at < :before - {2 * RULES_USED_MS}",  # noqa: S608 - as above
)


_Row = tuple[Any, ...]


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
        self._feedback: list[dict[str, Any]] = []
        self._decisions: list[_Row] = []
        self._rules: dict[str, tuple[Rules, int]] = {}
        self._known: dict[str, int] = {}  # digest → when it was last said to be in use
        self._evidence = EvidenceLog()
        self._waiting = False
        self._unwritten = 0  # queued for the writer
        self.dropped = 0
        self._losses = Losses("decision log")

    def feedback(self, request_id: str, attempt: int, score: float, change: float) -> None:
        """Log that a judgement moved a reward."""
        row = {
            "request_id": request_id, "attempt": attempt, "feedback": score, "change": change,
        }  # fmt: skip
        self._add(self._feedback, row)

    def in_use(self, rules: Rules, at_ms: int) -> None:
        """Decisions are made by these rules; they are stored with the next that is logged."""
        digest = rules.digest
        used = self._known.get(digest)
        if used is None or at_ms - used > RULES_USED_MS:
            self._known[digest] = at_ms
            self._rules[digest] = (rules, at_ms)

    def decision(
        self,
        decision: Decision,
        attempts: Sequence[Attempt],
        outcome: str,
        at_ms: int,
        attempts_json: str,
    ) -> None:
        """Log a decision and what became of it; ``attempts_json`` is the attempts as stored.

        Its rules must have been given to ``in_use`` before: they may have changed since.
        """
        answered = ""
        for one in attempts:
            if not one.kind:
                answered = one.model_id
                break
        # As text, since what a decision is made of would have to be kept until the flush. The
        # evidence is shared, and becomes its digest then.
        row = (
            decision.query.request_id, at_ms, decision.mode, decision.policy,
            decision.chosen.model.id, answered, outcome, decision.rules, encode_record(decision),
            attempts_json, (decision.evidence, decision.bucket),
            latency_budget(decision) if decision.limits.max_latency_ms else LATENCY_BUDGET_MS, None,
        )  # fmt: skip
        rows = self._decisions
        if self._waiting and len(rows) + self._unwritten < MOST_PENDING:
            rows.append(row)
        else:
            self._add(rows, row)

    def _add(self, rows: list[Any], row: Any) -> None:
        if len(rows) + self._unwritten >= MOST_PENDING:
            self.dropped += 1
            return
        rows.append(row)
        if not self._waiting:
            self._waiting = True
            self._call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Queue everything that waits, now."""
        self._waiting = False
        feedback, self._feedback = self._feedback, []
        decisions, self._decisions = self._decisions, []
        if not feedback and not decisions:
            return
        rules, self._rules = self._rules, {}
        while len(decisions) > PIECE:
            self._save(rules, decisions[:PIECE], [])
            rules, decisions = {}, decisions[PIECE:]
        self._save(rules, decisions, feedback)

    def _save(
        self,
        rules: dict[str, tuple[Rules, int]],
        decisions: list[_Row],
        feedback: list[dict[str, Any]],
    ) -> None:
        count = len(feedback) + len(decisions)
        self._unwritten += count

        def save(tx: Transaction) -> None:
            for digest, (body, at) in rules.items():
                tx.execute(_RULES, (digest, at, encode(body).decode()))
            tx.executemany(_INSERT, self._with_digests(tx, decisions))
            for statement in _FEEDBACK if feedback else ():
                tx.executemany(statement, feedback)

        def done(error: BaseException | None) -> None:
            self._unwritten -= count
            if error is None:
                self._losses.written()
            else:
                self.dropped += count
                self._rules = rules | self._rules
                self._losses.lost(count, error)

        self._db.write_soon(save, done, patient=True)

    def _with_digests(self, tx: Transaction, rows: Sequence[_Row]) -> list[list[Any]]:
        """Write the evidence of some decisions once each; their rows with digests in its place."""
        digests: dict[int, str] = {}
        complete = []
        for row in rows:
            evidence, bucket = row[_EVIDENCE_AT]
            digest = digests.get(id(evidence))
            if digest is None:
                digest = digests[id(evidence)] = self._evidence.write(tx, evidence, bucket)
            whole = [*row]  # the row stays as it is: this may be run again
            whole[_EVIDENCE_AT] = digest
            complete.append(whole)
        return complete

    async def rewards(self, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
        """Logged attempts, newest first, with those that have just ended."""
        await self._written()
        found: list[Tried] = []
        async for some in tried(self._db, LIST_PAGE):
            found += some[offset:]
            offset = max(0, offset - len(some))
            if len(found) >= limit:
                break
        return [one._asdict() for one in found[:limit]]

    async def stored(self, request_id: str) -> StoredDecision | None:
        """The decision of a request, None when it is not (or no longer) in the log."""
        await self._written()
        rows = await self._db.read(_ONE, {"request_id": request_id})
        if not rows:
            return None
        record, attempts, outcome, at, rules, digest = rows[0]
        evidence = await read_evidence(self._db, digest)
        if evidence is None:
            return None
        return StoredDecision(record, attempts, outcome, at, rules, evidence)

    async def _written(self) -> None:
        self.flush()
        # A write ordered after the flush: when it is acknowledged the flush is readable.
        await self._db.write(lambda _: None, patient=True)

    async def learned(self, now_ms: int) -> AsyncIterator[list[Tried]]:
        """The attempts whose rewards still count, latest first, some at a time."""
        left = REBUILD_ROWS
        since = now_ms - REBUILD_MS
        async for some in tried(self._db, REBUILD_PAGE):
            found = [one for one in some if one.reward is not None and one.at > since][:left]
            if found:
                yield found
            left -= len(found)
            if not left or (some and some[-1].at <= since):
                break

    async def prune(self, before_ms: int) -> int:
        """Delete what is older than a moment, in slices so that no lock is long; how many rows."""
        *logs, rules = _PRUNE
        total = 0
        for statement in logs:
            while deleted := await self._delete(statement, before_ms):
                total += deleted
        return total + await self._delete(rules, before_ms)

    async def _delete(self, statement: str, before_ms: int) -> int:
        def delete(tx: Transaction) -> int:
            slice_ = {"slice": PRUNE_SLICE} if ":slice" in statement else {}
            tx.execute(statement, {"before": before_ms} | slice_)
            return tx.changes()

        return await self._db.write(delete)
