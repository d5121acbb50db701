"""The decision itself: a pure function of question, rules, evidence and seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tokenhub.core.decision import Candidate, Decision, Filtered, Mode
from tokenhub.routing.aliases import pick
from tokenhub.routing.eligibility import Screen
from tokenhub.routing.hints import check_mode, read_hint
from tokenhub.routing.refusal import refusal
from tokenhub.routing.scoring import Fit, plain, rank
from tokenhub.routing.shortlist import Shortlist, kind_of, smallest
from tokenhub.routing.thompson import bucket_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenhub.core.catalog import Model
    from tokenhub.core.decision import Evidence, Limits, RouteQuery
    from tokenhub.routing.aliases import Alias
    from tokenhub.routing.rules import Rules
    from tokenhub.routing.shortlist import Shortlists

_MASK = (1 << 64) - 1


MIXED = 1 << 48
"""Seeds from here to twice as much are random numbers as they are, in units of the first."""

_MIXED_END = 2 * MIXED


def draw_of(seed: int) -> float:
    """The number in [0, 1) that a seed stands for.

    Seeds that people choose, and all of older records, are spread by SplitMix64's finaliser (top 53
    bits) first, which costs as much as choosing by the number.
    """
    if MIXED <= seed < _MIXED_END:
        return seed / MIXED - 1.0
    value = seed + 0x9E3779B97F4A7C15 & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return ((value ^ value >> 31) >> 11) / (1 << 53)


class Ask(NamedTuple):
    """What a decision is made of."""

    query: RouteQuery
    rules: Rules
    evidence: Evidence
    seed: int
    draw: float


def decide(
    query: RouteQuery,
    rules: Rules,
    evidence: Evidence,
    seed: int,
    *,
    draw: float | None = None,
    shortlists: Shortlists | None = None,
) -> Decision:
    """Choose a model, and the order of those that may follow if it fails.

    Args:
        query: the request.
        rules: catalog, aliases and settings in force.
        evidence: health, arms and what is unavailable.
        seed: stands for the one random number of the decision.
        draw: that number itself, to ask what another one would have chosen.
        shortlists: found by earlier decisions under the same rules, and added to here; they save
            work and change nothing. Another evidence begins with ``look_again``.

    Raises:
        NotFound: code ``model_not_found``.
        InvalidRequest: code ``unknown_mode``.
        HubError: nothing may answer; see ``refusal``.
    """
    if draw is None:
        draw = draw_of(seed)
    if (
        shortlists is not None
        and (found := shortlists.found.get(kind_of(query))) is not None
        and (known := found.choose(query, seed, draw)) is not None
    ):
        return known
    ask = Ask(query, rules, evidence, seed, draw)
    hint = read_hint(query.model, rules, query.models)
    if hint.model is not None:
        return _named(ask, hint.model)
    if hint.alias is not None:
        return _aliased(ask, hint.alias)
    return _routed(ask, hint.mode, shortlists)


def effective_mode(query: RouteQuery, hinted: str, rules: Rules) -> str:
    """The mode in force: the policy's, the model name's, the key's, the stored default.

    Raises:
        InvalidRequest: code ``unknown_mode``.
    """
    if query.mode:
        return check_mode(query.mode, param="policy.mode")
    return hinted or query.key_mode or rules.settings.default_mode


def screen_of(ask: Ask, limits: Limits) -> Screen:
    """The rules for a model that the client did not name."""
    return Screen(ask.query, limits, ask.rules, ask.evidence, allowed=_allowed(ask))


def _routed(ask: Ask, hinted: str, shortlists: Shortlists | None) -> Decision:
    query, rules = ask.query, ask.rules
    mode = effective_mode(query, hinted, rules)
    limits = query.limits.completed(rules.settings.limits)
    free = not limits.max_budget and not limits.max_latency_ms
    if shortlists is not None and mode == Mode.THOMPSON and free:
        kind = kind_of(query)
        if kind not in shortlists.found:
            found = shortlists.found[kind] = _shortlist(ask, limits, mode, shortlists)
            if (known := found.choose(query, ask.seed, ask.draw)) is not None:
                return known
    candidates, filtered, policy = _ranked(ask, limits, mode)
    reason = f"routed-weight-{candidates[0].model.weight}"
    return _decision(ask, candidates, filtered, policy, reason, mode=mode, limits=limits)


def _ranked(
    ask: Ask, limits: Limits, mode: str
) -> tuple[tuple[Candidate, ...], list[Filtered], str]:
    fits, filtered = _sift(screen_of(ask, limits), ask.rules.catalog.models.values())
    if not fits:
        raise refusal(ask.query, filtered, ask.evidence)
    temperature = ask.rules.settings.exploration_temp
    candidates, policy = rank(fits, mode, temperature, ask.evidence, ask.draw)
    return candidates, filtered, policy


def _shortlist(ask: Ask, limits: Limits, mode: str, shortlists: Shortlists) -> Shortlist:
    query, rules, evidence = ask.query, ask.rules, ask.evidence

    def complete(query: RouteQuery, draw: float) -> tuple[Candidate, ...]:
        return _ranked(Ask(query, rules, evidence, 0, draw), limits, mode)[0]

    screen = screen_of(ask._replace(query=smallest(query)), limits)
    screened = shortlists.screen(kind_of(query), screen, rules, evidence)
    bucket = bucket_of(query.input_tokens)
    return Shortlist(screened, limits, rules.digest, evidence, bucket, complete)


def _named(ask: Ask, model: Model) -> Decision:
    verdict = Screen(ask.query, ask.query.limits, ask.rules, ask.evidence, named=True).judge(model)
    chosen, filtered = _split([verdict])
    others, more = _stand_ins(ask, {model.id}, chosen=bool(chosen))
    if not chosen and not others:
        raise refusal(ask.query, filtered + more, ask.evidence)
    reason = "routed-hint-exact" if chosen else "routed-fallback"
    candidates = [plain(fit, 1.0) for fit in chosen]
    return _decision(ask, (*candidates, *others), filtered + more, "named", reason)


def _aliased(ask: Ask, alias: Alias) -> Decision:
    # The alias's other variants stand in for one that cannot answer: who made the alias said that
    # any of them may.
    query, variants = ask.query, alias.variants
    first = pick(alias, query, ask.evidence.turn, ask.draw)
    order = (variants[first], *variants[:first], *variants[first + 1 :])
    allowed = None if not query.models or alias.name in query.models else frozenset(query.models)
    screen = Screen(query, query.limits, ask.rules, ask.evidence, named=True, allowed=allowed)
    known = ask.rules.catalog.models
    missing = [_unregistered(one.model_id) for one in order if one.model_id not in known]
    verdicts = [screen.judge(known[one.model_id]) for one in order if one.model_id in known]
    fits, filtered = _split([*missing, *verdicts])
    others, more = _stand_ins(ask, {one.model_id for one in variants}, chosen=bool(fits))
    if not fits and not others:
        raise refusal(query, filtered, ask.evidence)
    shares = _shares(alias, {fit.model.id for fit in fits})
    candidates = [plain(fit, shares[fit.model.id]) for fit in fits]
    reason = "routed-alias" if fits else "routed-fallback"
    return _decision(
        ask, (*candidates, *others), filtered + more, "alias", reason, alias=alias.name
    )


def _shares(alias: Alias, able: set[str]) -> dict[str, float]:
    """How often each variant that may answer comes first."""
    total = alias.total
    # The first that may answer is asked in place of each one that may not.
    extra = sum(one.weight for one in alias.variants if one.model_id not in able)
    shares: dict[str, float] = {}
    for one in alias.variants:
        if one.model_id in able:
            shares[one.model_id] = (one.weight + extra) / total
            extra = 0
    return shares


def _stand_ins(
    ask: Ask, named: set[str], *, chosen: bool
) -> tuple[tuple[Candidate, ...], list[Filtered]]:
    """What may answer instead of the models that were named, when that is permitted."""
    if not ask.query.allow_fallback:
        return (), []
    limits = ask.query.limits.completed(ask.rules.settings.limits)
    models = ask.rules.catalog.models
    rest = [model for name, model in models.items() if name not in named]
    fits, filtered = _sift(screen_of(ask, limits), rest)
    if not fits:
        return (), filtered
    mode = effective_mode(ask.query, "", ask.rules)
    ranked, _ = rank(fits, mode, 0.0, ask.evidence, ask.draw)
    if chosen:
        ranked = tuple(msgspec.structs.replace(one, propensity=0.0) for one in ranked)
    return ranked, filtered


def _sift(screen: Screen, models: Iterable[Model]) -> tuple[list[Fit], list[Filtered]]:
    judge = screen.judge
    return _split([judge(model) for model in models])


def _split(verdicts: Iterable[Fit | Filtered]) -> tuple[list[Fit], list[Filtered]]:
    fits: list[Fit] = []
    filtered: list[Filtered] = []
    for verdict in verdicts:
        if isinstance(verdict, Fit):
            fits.append(verdict)
        else:
            filtered.append(verdict)
    return fits, filtered


def _unregistered(model_id: str) -> Filtered:
    return Filtered(model_id=model_id, provider_id="", reason="not_registered")


def _allowed(ask: Ask) -> frozenset[str] | None:
    """The ids the key may be routed to: those it lists, and the variants of aliases it lists."""
    if not ask.query.models:
        return None
    ids = set(ask.query.models)
    for name in ask.query.models:
        if (alias := ask.rules.aliases.get(name)) is not None and alias.enabled:
            ids.update(variant.model_id for variant in alias.variants)
    return frozenset(ids)


def _decision(
    ask: Ask,
    candidates: tuple[Candidate, ...],
    filtered: Sequence[Filtered],
    policy: str,
    reason: str,
    *,
    mode: str = "",
    alias: str = "",
    limits: Limits | None = None,
) -> Decision:
    return Decision(
        query=ask.query,
        chosen=candidates[0],
        count=len(candidates),
        ranking=candidates,
        filtered=tuple(filtered),
        policy=policy,
        reason=reason,
        mode=mode,
        alias=alias,
        limits=ask.query.limits if limits is None else limits,
        seed=ask.seed,
        draw=ask.draw,
        bucket=bucket_of(ask.query.input_tokens),
        rules=ask.rules.digest,
        evidence=ask.evidence,
    )
