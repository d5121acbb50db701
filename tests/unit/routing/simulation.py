"""Hours of traffic in virtual time against providers that follow a script.

Everything random comes from one seed: when requests arrive, what they ask, how providers fare. The
router, its health, bandit, retry budget and failover are the shipped ones; only the network is
not there. ``python -m tests.unit.routing.simulation SEED HOURS`` prints the hash of one run.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
import sys
from collections import Counter, deque

from tests.unit.routing.world import ManualClock, catalog, model, per_million

from tokenhub.core.decision import MODES, Limits, RouteQuery
from tokenhub.core.errors import FailureClass, HubError, ProviderError
from tokenhub.routing.retry import MAX_ATTEMPTS, Wait
from tokenhub.routing.router import Router

GAP_S = 2.0  # mean time between requests
PROBE_S = 30.0
PHASES = (*("well",) * 6, "dead", "silent", "slow", "limited", "flapping", "broken")
MODELS = (
    model("small", "p0", weight=3, max_context_tokens=8_000, prices=per_million(0.1)),
    model("large", "p0", weight=9, max_context_tokens=128_000, prices=per_million(5.0)),
    model("medium", "p1", weight=6, max_context_tokens=32_000, prices=per_million(1.0)),
    model("twin", "p2", weight=6, max_context_tokens=32_000, prices=per_million(1.2)),
    model("long", "p3", weight=7, max_context_tokens=1_000_000, prices=per_million(8.0)),
)


class Provider:
    """What one upstream does, by its script."""

    def __init__(self, name, rng):
        self.name = name
        self.rng = rng
        self.phase = "well"
        self.closed_until = 0.0  # by a Retry-After that the router has seen
        self.until = rng.uniform(60, 600)

    def at(self, now):
        """The phase in force."""
        while now >= self.until:
            self.phase = self.rng.choice(PHASES)
            self.until += self.rng.uniform(20, 400)
        if self.phase == "flapping":
            return "well" if int(now / 3) % 2 else "dead"
        return self.phase

    def answer(self, now):
        """(seconds, None) of a good answer, or (seconds, error); seconds None = never."""
        phase, rng = self.at(now), self.rng
        quick = rng.uniform(0.1, 1.5)
        if phase == "dead":
            return 0.002, ProviderError(FailureClass.CONNECT, "refused", sent=False)
        if phase == "silent":
            return None, None
        if phase == "slow":
            return quick * 20, None
        if phase == "limited":
            wait = rng.choice([None, 1.0, 5.0, 20.0, 60.0])
            error = ProviderError(
                FailureClass.RATE_LIMITED, "slow down", status=429, retry_after=wait
            )
            return 0.01, error
        if phase == "broken":
            kind = rng.choice([FailureClass.SERVER, FailureClass.GARBAGE, FailureClass.RESET])
            return quick, ProviderError(kind, "broken", status=500)
        odd = rng.random()
        if odd < 0.01:
            return quick, ProviderError(FailureClass.CLIENT, "no such parameter", status=400)
        if odd < 0.02:
            return quick, ProviderError(FailureClass.CONTEXT, "too long", status=400)
        return quick, None


class Simulation:
    """One run; ``broken`` lists every invariant that did not hold."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self.router = Router(self.clock, seed=seed)
        self.router.update(catalog=catalog(*MODELS))
        self.providers = {
            name: Provider(name, random.Random(f"{seed}/{name}"))
            for name in ("p0", "p1", "p2", "p3")
        }
        self.events = []
        self.order = itertools.count()
        self.trace = hashlib.sha256()
        self.requests = deque()
        self.retries = deque()
        self.outcomes = Counter()
        self.seen = Counter()
        self.broken = []

    def run(self, hours):
        """Play the given time; returns the hash of everything that happened."""
        end = self.clock.monotonic() + hours * 3600
        self.later(0.0, self.arrive)
        self.later(0.0, self.probe)
        while self.events and self.events[0][0] < end:
            moment, _, event, args = heapq.heappop(self.events)
            self.clock.advance(moment - self.clock.monotonic())
            event(*args)
        return self.trace.hexdigest()

    def later(self, seconds, event, *args):
        moment = self.clock.monotonic() + seconds
        heapq.heappush(self.events, (moment, next(self.order), event, args))

    def note(self, *what):
        self.trace.update(repr((round(self.clock.monotonic(), 6), *what)).encode())

    def expect(self, holds, *what):
        if not holds:
            self.broken.append((self.clock.monotonic(), *what))

    def probe(self):
        self.later(PROBE_S, self.probe)
        self.router.health.tick()
        for name, provider in self.providers.items():
            ill = provider.at(self.clock.monotonic()) in {"dead", "silent"}
            self.router.health.probed(name, "no answer" if ill else None)

    def arrive(self):
        self.later(self.rng.expovariate(1 / GAP_S), self.arrive)
        rng, now = self.rng, self.clock.monotonic()
        named = rng.random() < 0.3
        asked = RouteQuery(
            request_id=self.clock.new_id(),
            model=rng.choice(MODELS).id if named else "auto",
            mode=rng.choice(MODES),
            input_tokens=rng.choice([200, 2000, 20_000]),
            stream=rng.random() < 0.7,
            allow_fallback=rng.random() < 0.5,
            limits=Limits(max_latency_ms=rng.choice([None, None, 8000])),
        )
        deadline = now + rng.choice([5.0, 60.0, 600.0])
        self.requests.append(now)
        try:
            decision = self.router.decide(asked)
        except HubError as error:
            self.router.budget.running += 1
            self.outcomes[error.status] += 1
            self.note(asked.request_id, "refused", error.code)
            return
        plan = self.router.failover(decision, deadline=deadline)
        self.go_on(Run(plan, asked, deadline))

    def go_on(self, run):
        try:
            step = run.plan.next()
        except HubError as error:
            self.outcomes[error.status] += 1
            self.note(run.asked.request_id, "failed", error.status, error.code)
            return
        match step:
            case Wait(seconds):
                self.expect(self.clock.monotonic() + seconds < run.deadline, "waits too long")
                self.count_retry(self.clock.monotonic())
                run.granted = True
                self.later(seconds, self.go_on, run)
            case _:
                self.call(run, step)

    def call(self, run, step):
        now, name = self.clock.monotonic(), step.candidate.provider_id
        provider = self.providers[name]
        run.calls += 1
        self.expect(run.calls <= MAX_ATTEMPTS, "too many attempts", run.calls)
        self.expect(now < run.deadline, "call past the deadline", name)
        self.expect(now + step.left_s <= run.deadline + 1e-6, "call may pass the deadline", name)
        self.expect(now >= provider.closed_until, "call inside a Retry-After window", name)
        circuit = self.router.health.rows([name])[0]["circuit"]
        self.expect(circuit != "open", "call to an open circuit", name)
        if name in run.failed_at:
            self.expect(run.granted, "a retry that was not granted", name)
            run.granted = False
        self.seen[f"attempt {step.number}"] += 1
        self.seen[circuit] += 1
        self.note(run.asked.request_id, step.candidate.model_id, step.number)
        seconds, error = provider.answer(now)
        limit = step.first_token_s
        if seconds is None or seconds > limit:
            seconds, error = limit, ProviderError(FailureClass.TIMEOUT, "silent")
        self.later(seconds, self.ended, run, step, error)

    def count_retry(self, now):
        while self.requests and self.requests[0] <= now - 10:
            self.requests.popleft()
        while self.retries and self.retries[0] <= now - 10:
            self.retries.popleft()
        self.retries.append(now)
        self.seen["retry"] += 1
        allowed = max(3, 0.1 * len(self.requests))
        self.expect(len(self.retries) <= allowed, "over the retry budget", len(self.retries))

    def ended(self, run, step, error):
        name = step.candidate.provider_id
        self.note(run.asked.request_id, step.candidate.model_id, error and error.kind)
        self.seen[error.kind if error else "answer"] += 1
        if error is None:
            run.plan.first_token(step)
            run.plan.succeeded(step, cost=step.candidate.cost)
            self.outcomes[200] += 1
            return
        if error.retry_after is not None:
            provider, now = self.providers[name], self.clock.monotonic()
            provider.closed_until = max(provider.closed_until, now + error.retry_after)
        if error.kind != FailureClass.CONTEXT:
            run.failed_at.add(name)
        run.plan.failed(step, error)
        self.go_on(run)


class Run:
    """A request under way."""

    def __init__(self, plan, asked, deadline):
        self.plan = plan
        self.asked = asked
        self.deadline = deadline
        self.calls = 0
        self.granted = False
        self.failed_at = set()


if __name__ == "__main__":
    played = Simulation(int(sys.argv[1]))
    sys.stdout.write(played.run(float(sys.argv[2])) + "\n")
    sys.stderr.write(f"{played.outcomes} {played.seen} {played.broken[:5]}\n")
