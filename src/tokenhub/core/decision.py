"""What a routing decision is made of: the question, the evidence, the candidates, the choice.

A decision is a pure function of ``RouteQuery``, the rules (catalog, aliases, settings),
``Evidence`` and a seed; all four stand in its record, so that it can be made again.

Money is nano-dollars, time is milliseconds, unless a name says otherwise.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence

import msgspec

from tokenhub.core.bounds import Measure
from tokenhub.core.catalog import Model

AUTO = "auto"
"""The model name with which any client asks for routing; ``auto:<mode>`` names the mode too."""

DEFAULT_OUTPUT_TOKENS = 512
"""Output tokens counted where the client sets no ``max_tokens``."""


class Mode(enum.StrEnum):
    """The caller's intent. All but ``THOMPSON`` are weight profiles over the same four terms."""

    CHEAP = "cheap"
    NORMAL = "normal"
    HIGH_CONFIDENCE = "high_confidence"
    PLANNING = "planning"
    ADVERSARIAL = "adversarial"
    THOMPSON = "thompson"


MODES = tuple(mode.value for mode in Mode)


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ceilings of one request. None = nobody said anything; 0 = no limit, said explicitly."""

    max_budget: int | None = None  # nano-dollars
    max_latency_ms: int | None = None  # expected time, and the time to the first token
    min_weight: int | None = None

    def narrowed(self, other: Limits) -> Limits:
        """Both at once: the lower ceiling, the higher floor; 0 gives way to a real limit."""
        return Limits(
            max_budget=_lower(self.max_budget, other.max_budget),
            max_latency_ms=_lower(self.max_latency_ms, other.max_latency_ms),
            min_weight=_higher(self.min_weight, other.min_weight),
        )

    def completed(self, defaults: Limits) -> Limits:
        """The defaults where nobody said anything; an explicit 0 stays."""
        if self is NO_LIMITS:
            return defaults
        return Limits(
            max_budget=defaults.max_budget if self.max_budget is None else self.max_budget,
            max_latency_ms=(
                defaults.max_latency_ms if self.max_latency_ms is None else self.max_latency_ms
            ),
            min_weight=defaults.min_weight if self.min_weight is None else self.min_weight,
        )


def _lower(one: int | None, two: int | None) -> int | None:
    if one and two:
        return min(one, two)
    if one or two:
        return one or two
    return two if one is None else one


def _higher(one: int | None, two: int | None) -> int | None:
    if one is None or two is None:
        return two if one is None else one
    return max(one, two)


NO_LIMITS = Limits()


class Features(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Cheap numbers about a prompt; a record leaves out those that are 0.

    Args:
        version: which set of numbers this is; ``gateway.features`` says what they count.
        bytes: the whole conversation.
        messages, digits, upper, non_ascii, lines, questions, code, braces, equations: counts of
            its beginning.
        tools: how many are offered; ``tool_set``: a checksum that tells one set from another.
        json: 1 when a format of the answer is asked for.
    """

    version: int
    bytes: int = 0
    messages: int = 0
    digits: float = 0
    upper: float = 0
    non_ascii: float = 0
    lines: int = 0
    questions: int = 0
    code: int = 0
    braces: int = 0
    equations: int = 0
    tools: int = 0
    tool_set: int = 0
    json: float = 0


class RouteQuery(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What routing needs to know of a request.

    Args:
        request_id: names the decision; also what aliases stick to by default.
        model: the name the client sent; "" means ``auto``.
        mode: asked for by the client's policy; a mode in the model name comes second.
        key_mode: the mode of the API key, third; the stored default is last.
        input_tokens: best estimate of the prompt.
        size: the request as it is bounded for money; None = ``input_tokens`` of plain text.
        max_tokens: the client's output limit, None if none.
        choices: how many answers are asked for (``n``); each costs its output.
        tools, images: what the model must be able to do.
        stream: whether the client streams; decides which of two times ``max_latency_ms`` means.
        limits: of the client and its key together; stored defaults are not among them.
        models: the key's allow-list of model ids and alias names; empty = all.
        allow_fallback: another model may answer when the named one cannot.
        key_id: what aliases with ``sticky_by: api_key`` stick to.
        features: for offline evaluation; not read by any policy yet.
    """

    request_id: str = ""
    model: str = ""
    mode: str = ""
    key_mode: str = ""
    input_tokens: int = 0
    size: Measure | None = None
    max_tokens: int | None = None
    choices: int = 1
    tools: bool = False
    images: bool = False
    stream: bool = False
    limits: Limits = NO_LIMITS
    models: tuple[str, ...] = ()
    allow_fallback: bool = False
    key_id: str = ""
    features: Features | None = None


class ProviderView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A provider's health at the moment of a decision.

    ``closed`` says why nothing may be sent there now ("" = it may): ``down``, ``probing``,
    ``rate_limited``, ``auth``, ``quota``. ``retry_ms`` is when that may end.
    """

    state: str = "healthy"
    closed: str = ""
    retry_ms: int = 0
    error_rate: float = 0.0  # of the last minutes
    usual_ms: float = 0.0  # whole answers, moving average of long memory; 0 = never measured
    latency_ms: float = 0.0  # whole answers, mean of the last minutes; 0 = fewer than three
    ttft_ms: float = 0.0  # to the first token of a stream, likewise


class ModelView(msgspec.Struct, frozen=True, omit_defaults=True):
    """Times of one model, as those of ``ProviderView``."""

    usual_ms: float = 0.0
    latency_ms: float = 0.0
    ttft_ms: float = 0.0


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything a decision reads besides the question and the rules.

    Attributes:
        at_ms: when it was taken, wall time.
        providers: health by provider id; a missing one is healthy and unmeasured.
        models: times by model id.
        arms: posterior mean and standard deviation by model id, for the request's token bucket.
        unavailable: provider id → reason the gateway gave (``vault_locked``, ``no_credential``).
        turn: the alias's turn, for ``sticky_by: round_robin``.
    """

    at_ms: int = 0
    providers: Mapping[str, ProviderView] = {}
    models: Mapping[str, ModelView] = {}
    arms: Mapping[str, tuple[float, float]] = {}
    unavailable: Mapping[str, str] = {}
    turn: int = 0


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A model that may answer.

    Attributes:
        score: lower is better, in every mode; exactly the sum of ``terms`` in their order.
        cost: what the request is expected to cost here; None = the price is unknown.
        bound: the most it can cost with the output limit in force; None = the price is unknown,
            or no limit on money was set.
        output_cap: ``max_tokens`` to send so that the budget holds; None = as the client said.
        expected_ms: the time that ``max_latency_ms`` was compared with; 0 = unknown.
        propensity: probability that this model is put first.
        mean, sd: of the learned reward; None outside ``thompson``.
    """

    model: Model
    score: float = 0.0
    terms: dict[str, float] = {}
    cost: int | None = None
    bound: int | None = None
    output_cap: int | None = None
    expected_ms: float = 0.0
    propensity: float = 0.0
    mean: float | None = None
    sd: float | None = None

    @property
    def model_id(self) -> str:
        """The model's id in the catalog."""
        return self.model.id

    @property
    def provider_id(self) -> str:
        """The id of the provider that has the model."""
        return self.model.provider_id


NOBODY = Candidate(model=Model(id="", provider_id=""))
"""Stands where a choice would, when nobody could answer."""


class Filtered(msgspec.Struct, frozen=True, kw_only=True):
    """A model that may not answer: the rule, the limit it broke and by which value."""

    model_id: str
    provider_id: str
    reason: str
    limit: int | float | str = ""
    value: int | float | str = ""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Candidates best first, and why.

    Attributes:
        chosen: whom to ask first; what the request is expected to cost and to take there is
            certain to be found in ``candidates`` only.
        count: how many candidates there are.
        ranking: all of them, or what finds them from the query and the draw.
        reason: ``routed-weight-8``, ``routed-hint-exact``, ``routed-alias``, ``routed-fallback``;
            where another one answered in the end, the client reads ``routed-failover``.
        policy: what chose: ``weighted``, ``softmax``, ``thompson``, ``named`` or ``alias``; "" when
            nobody could answer.
        mode: the effective mode; "" when the model was named.
        alias: the alias the name was, "" if none.
        limits: the limits in force, defaults included.
        draw: the number in [0, 1) that chose; of no effect where nothing was drawn.
        bucket: token bucket of the bandit's arms.
        rules: digest of catalog, aliases and settings, under which their text is stored.
        record_end: what its record says of the choice, where many share it (``routing/record.py``);
            "" = still to be written.
    """

    query: RouteQuery
    seed: int = 0
    draw: float = 0.0
    chosen: Candidate = NOBODY
    count: int = 0
    ranking: tuple[Candidate, ...] | Callable[[RouteQuery, float], tuple[Candidate, ...]] = ()
    filtered: tuple[Filtered, ...] = ()
    reason: str = ""
    policy: str = ""
    mode: str = ""
    limits: Limits = NO_LIMITS
    bucket: str = ""
    rules: str = ""
    evidence: Evidence = Evidence()
    record_end: str = ""
    alias: str = ""

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All that may answer: the choice, then the order of failover. Found at each call."""
        ranking = self.ranking
        return ranking(self.query, self.draw) if callable(ranking) else ranking

    @property
    def propensity(self) -> float:
        """Probability with which the choice was made."""
        return self.chosen.propensity


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One try at one candidate, as it ended.

    Attributes:
        number: 1 for the first of the request.
        at_ms: wall time of its start.
        kind: "" when it answered, else a ``FailureClass`` value.
        latency_ms: start to end; ``ttft_ms``: start to the first token, None if none came.
        cost: what it cost, None if unknown.
        param: the part of the request that the provider names as wrong, "" if none.
        provider_code: its own code for a refused request, "" if none.
    """

    number: int
    model_id: str
    provider_id: str
    at_ms: int
    kind: str = ""
    status: int | None = None
    message: str = ""
    param: str = ""
    provider_code: str = ""
    latency_ms: float = 0.0
    ttft_ms: float | None = None
    cost: int | None = None
    propensity: float = 0.0


_encode = msgspec.json.Encoder().encode


def encode_attempts(attempts: Sequence[Attempt]) -> str:
    """Attempts as they stand in the logs."""
    return _encode(attempts).decode()
