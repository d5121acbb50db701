"""The router: the state that decisions read, and what outcomes change in it.

Usable without a server::

    router = Router(clock, seed=7)
    router.update(catalog=catalog)
    decision = router.decide(RouteQuery(request_id="r-1", model="auto:thompson", input_tokens=300))
    router.record(decision, Attempt(number=1, model_id=decision.chosen.model_id, ...))
    router.feedback("r-1", 0.8)
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec

from tokenhub.core.decision import Decision, Evidence, Mode
from tokenhub.core.errors import HubError, InvalidRequest, NotFound
from tokenhub.routing.answers import PAGE, Answers
from tokenhub.routing.decide import MIXED, decide, draw_of
from tokenhub.routing.health import Health
from tokenhub.routing.retry import FIRST_TOKEN_S, Failover, RetryBudget
from tokenhub.routing.reward import LATENCY_BUDGET_MS, QUALITY_SHARE, latency_budget, worth
from tokenhub.routing.rules import RoutingSettings, Rules
from tokenhub.routing.shortlist import Shortlists, kind_of
from tokenhub.routing.thompson import Bandit, bucket_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tokenhub.core.catalog import Catalog
    from tokenhub.core.clock import Clock
    from tokenhub.core.decision import Attempt, RouteQuery
    from tokenhub.routing.aliases import Alias
    from tokenhub.routing.rewards import RewardLog

NOTHING: Mapping[str, str] = {}
FEW = 50  # models; with more, a look at what was learned lasts longer in proportion
MOST = 20  # times, at the most
_PART = MIXED - 1  # 49 bits, with that of MIXED, are exact in every JSON reader
LATEST = 1_000  # rewards: of an arm, what is older counts 1 % less for each later one


class Router:
    """Decides, and learns from what came of it.

    Args:
        clock: all times.
        seed: with a request's id it makes the request's own seed.
        rules: what is configured at first.
        log: where decisions and their attempts are written, None = nowhere.
        share_s: for how long decisions may share one look at what was learned, in seconds;
            longer with more than ``FEW`` models, as a look takes longer. A failure, or anything
            else but a plain answer, is seen by the very next decision.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        seed: int = 0,
        rules: Rules | None = None,
        log: RewardLog | None = None,
        share_s: float = 0.0,
    ) -> None:
        self._clock = clock
        self._share_s = self._shared_s = share_s
        self._shortlists = Shortlists()
        self._found = self._shortlists.found
        self._evidences: dict[str, Evidence] = {}  # by token bucket
        self._look_ends = 0.0
        self._news = -1
        self._unavailable = NOTHING
        self._seed = int(draw_of(seed) * MIXED)
        self._log = log
        self._turns: dict[str, int] = {}
        self._answers = Answers()
        self._unnamed = itertools.count(1)
        self.rules = (rules or Rules()).changed()
        self.health = Health(clock)
        self.health.follow(self.rules.catalog)
        self.bandit = Bandit()
        self.budget = RetryBudget(clock)

    def update(
        self,
        *,
        catalog: Catalog | None = None,
        aliases: dict[str, Alias] | None = None,
        settings: RoutingSettings | None = None,
    ) -> None:
        """Replace what is configured; the next decision is made under it."""
        self.rules = self.rules.changed(catalog=catalog, aliases=aliases, settings=settings)
        self._look_ends = 0.0
        self._shared_s = self._share_s * min(max(len(self.rules.catalog.models) / FEW, 1.0), MOST)
        self._shortlists = Shortlists()
        if catalog is not None:
            self.health.follow(catalog)

    def decide(
        self,
        query: RouteQuery,
        unavailable: Mapping[str, str] = NOTHING,
        now: float | None = None,
    ) -> Decision:
        """Choose for a request.

        Args:
            query: the request.
            unavailable: provider id → ``vault_locked`` or ``no_credential``.
            now: the monotonic time, where it has just been asked.

        Raises:
            HubError: nothing may answer, or the name means nothing; see ``decide.decide``.
        """
        if now is None:
            now = self._clock.monotonic()
        if (
            now >= self._look_ends
            or self.health.news != self._news
            or (unavailable is not self._unavailable and unavailable != self._unavailable)
        ):
            self._look(now, unavailable)
        # A checksum, its bits spread by a hash of two numbers, is enough for a random number: ids
        # are not the client's to choose.
        name = query.request_id or str(next(self._unnamed))
        seed = hash((self._seed, crc32(name.encode()))) >> 16 & _PART | MIXED
        found = self._found.get(kind_of(query))
        if found is not None:
            known = found.choose(query, seed, seed / MIXED - 1.0)  # as ``draw_of``
            if known is not None:
                return known
        return self._decide_anew(query, seed)

    def _look(self, now: float, unavailable: Mapping[str, str]) -> None:
        """Begin another look at the evidence, which ends at the latest when it must change."""
        health = self.health
        health.tick()  # what time alone has changed is news too
        self._look_ends = min(now + self._shared_s, health.due)
        self._news = health.news
        self._unavailable = unavailable
        self._shortlists.look_again()
        self._found = self._shortlists.found
        self._evidences = {}
        if self._log is not None:
            self._log.in_use(self.rules, self._clock.now_ms())

    def _decide_anew(self, query: RouteQuery, seed: int) -> Decision:
        """The long way, which leaves a shortlist for the next request of the kind."""
        turn = self._turn(query.model)
        bucket = self._bucket(query)
        evidence = self._evidences.get(bucket)
        if evidence is None:
            evidence = self._evidences[bucket] = self._evidence(bucket, self._unavailable, 0)
        if turn:
            evidence = msgspec.structs.replace(evidence, turn=turn)
        try:
            decision = decide(query, self.rules, evidence, seed, shortlists=self._shortlists)
        except HubError as error:
            self._refused(query, evidence, seed, error)
            raise
        if decision.alias and self.rules.aliases[decision.alias].sticky_by == "round_robin":
            self._turns[decision.alias] = turn + 1
        return decision

    def _refused(self, query: RouteQuery, evidence: Evidence, seed: int, error: HubError) -> None:
        if self._log is None or not query.request_id:
            return
        nobody = Decision(query, seed, rules=self.rules.digest, evidence=evidence)
        self.finish(nobody, (), error.code, "[]")

    def simulate(
        self,
        query: RouteQuery,
        unavailable: Mapping[str, str] = NOTHING,
        seed: int = 0,
    ) -> Decision:
        """The same choice by the given seed, changing nothing.

        Raises:
            HubError: as ``decide``.
        """
        evidence = self._evidence(self._bucket(query), unavailable, self._turn(query.model))
        return decide(query, self.rules, evidence, seed)

    def failover(
        self,
        decision: Decision,
        *,
        deadline: float,
        first_token_s: float = FIRST_TOKEN_S,
        now_ms: int | None = None,
    ) -> Failover:
        """The attempts of a request; each is recorded here when it ends.

        Args:
            decision: whom to ask.
            deadline: monotonic time at which the whole request ends.
            first_token_s: for models that set no limit of their own.
            now_ms: the wall time, where it has just been asked.
        """
        clock = self._clock
        return Failover(
            decision, self.health, self.budget, clock, deadline, self.record, first_token_s,
            clock.now_ms() if now_ms is None else now_ms,
        )  # fmt: skip

    def record(
        self,
        decision: Decision,
        attempt: Attempt,
        retry_after: float | None = None,
        now: float | None = None,
    ) -> float | None:
        """Learn from an attempt at once: health and arms. Returns its reward, None if none.

        Args:
            decision: that it was made by.
            attempt: as it ended.
            retry_after: seconds the provider asked to be left alone, None if it did not say.
            now: the monotonic time, where it has just been asked.
        """
        model_id, bucket = attempt.model_id, decision.bucket
        if not attempt.kind:
            self.health.answered(
                attempt.provider_id, model_id, attempt.latency_ms, attempt.ttft_ms, now
            )
            page = self._answers.page
            page[decision.query.request_id] = attempt.number, model_id, bucket, 1.0
            if len(page) >= PAGE:
                self._answers.turn()
        else:
            began = None if now is None else now - attempt.latency_ms / 1000.0
            self.health.failed(
                attempt.provider_id, attempt.kind, attempt.message, retry_after, began
            )
        limited = decision.limits.max_latency_ms
        reward = worth(attempt, latency_budget(decision) if limited else LATENCY_BUDGET_MS)
        if reward is not None:
            self.bandit.update(model_id, bucket, reward, self._clock.now_ms())
        return reward

    def finish(
        self, decision: Decision, attempts: Sequence[Attempt], outcome: str, attempts_json: str
    ) -> None:
        """Log the decision of a request that has ended, and its attempts.

        Args:
            decision: what was decided.
            attempts: what was tried.
            outcome: ``ok`` or the code of the error the client got.
            attempts_json: the attempts as they are stored.
        """
        if self._log is not None:
            at_ms = self._clock.now_ms()
            self._log.decision(decision, attempts, outcome, at_ms, attempts_json)

    def feedback(self, request_id: str, score: float) -> None:
        """Learn how good an answer was, in [0, 1]; said again, the last word counts.

        Raises:
            NotFound: no such request was answered lately.
            InvalidRequest: the score is not in [0, 1].
        """
        if not 0.0 <= score <= 1.0:
            raise InvalidRequest("`score` must be between 0 and 1.", param="score")
        if (answer := self._answers.find(request_id)) is None:
            raise NotFound(
                f"No answer to a request `{request_id[:64]}` is remembered.",
                hint="Feedback reaches the latest 20000 answers.",
            )
        number, model_id, bucket, quality = answer
        change = QUALITY_SHARE * (score - quality)
        now = self._clock.now_ms()
        self.bandit.correct(model_id, bucket, change, now)
        self._answers.replace(request_id, (number, model_id, bucket, score))
        if self._log is not None:
            self._log.feedback(request_id, number, score, change)

    async def recall(self) -> AsyncIterator[int]:
        """Learn again what the log holds, latest first, also while new outcomes are recorded.

        Yields:
            How many rewards were read, first when the latest of them were.
        """
        if self._log is None:
            return
        now = self._clock.now_ms()
        count = 0
        async for some in self._log.learned(now):
            for one in some:
                assert one.reward is not None
                self.bandit.recall(one.model_id, one.token_bucket, one.reward, min(one.at, now))
                if not one.error_class:
                    quality = 1.0 if one.feedback is None else one.feedback
                    answer = (one.attempt, one.model_id, one.token_bucket, quality)
                    self._answers.recall(one.request_id, answer)
            count += len(some)
            if count >= LATEST:
                yield count
        if count < LATEST:
            yield count

    def snapshot(self) -> dict[str, Any]:
        """What was learned and the aliases' turns, JSON-able. Health is of the moment, not here."""
        return {"arms": self.bandit.snapshot(), "turns": dict(self._turns)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what ``snapshot`` described."""
        self.bandit.restore(state["arms"])
        self._turns = dict(state["turns"])

    def _turn(self, name: str) -> int:
        return self._turns.get(name.strip(), 0) if self._turns else 0

    def _evidence(self, bucket: str, unavailable: Mapping[str, str], turn: int) -> Evidence:
        providers, models = self.health.views()
        now = self._clock.now_ms()
        arms = self.bandit.view(self.rules.catalog.models, bucket, now) if bucket else {}
        return Evidence(
            at_ms=now,
            providers=providers,
            models=models,
            arms=arms,
            unavailable=unavailable,
            turn=turn,
        )

    def _bucket(self, query: RouteQuery) -> str:
        """The arms that a decision would read, "" if none."""
        wish = Mode.THOMPSON
        learns = (
            query.model.endswith(wish)
            or wish in {query.mode, query.key_mode, self.rules.settings.default_mode}
            or query.model.strip().endswith(wish)
        )
        return bucket_of(query.input_tokens) if learns else ""
