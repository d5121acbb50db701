"""Why nobody answers, as the error the client gets: reason, numbers, next step."""

from __future__ import annotations

from datetime import UTC, datetime
from math import ceil
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.errors import (
    FailureClass,
    Forbidden,
    HubError,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unavailable,
    UpstreamFailed,
    VaultLocked,
)
from tokenhub.core.money import format_usd
from tokenhub.routing.eligibility import CLOSED_REASONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenhub.core.decision import Attempt, Decision, Evidence, Filtered, RouteQuery

SHOWN = 20
_REOPENING = frozenset(CLOSED_REASONS.values())  # with these the limit is a time, Unix ms

# In the order in which the rules are tried: a model that fell at a later one came closer.
_ORDER = (
    "not_registered",
    "not_allowed",
    "disabled",
    "provider_disabled",
    "tools_unsupported",
    "images_unsupported",
    "weight_below_minimum",
    "context_overflow",
    "no_credential",
    "vault_locked",
    "provider_quota",
    "provider_auth",
    "health_down",
    "health_probing",
    "rate_limited",
    "price_unknown",
    "budget_exceeded",
    "latency_exceeded",
)

WORDS = {
    "not_registered": "it is not in the catalog",
    "not_allowed": "this key may not use it",
    "disabled": "it is disabled",
    "provider_disabled": "its provider `{provider}` is disabled",
    "tools_unsupported": "it cannot call tools",
    "images_unsupported": "it cannot read images",
    "weight_below_minimum": "its weight {value} is below the minimum of {limit}",
    "context_overflow": "the request needs {value} tokens and its context window has {limit}",
    "no_credential": "its provider `{provider}` has no credential",
    "vault_locked": "the vault is locked, so its provider `{provider}` cannot be called",
    "provider_quota": "the account at its provider `{provider}` has no credit left",
    "provider_auth": "its provider `{provider}` refuses our credential",
    "health_down": "its provider `{provider}` is down",
    "health_probing": "its provider `{provider}` is being tried again after an outage",
    "rate_limited": "its provider `{provider}` asked us to wait",
    "price_unknown": "its price is unknown, so the budget of {dollars_limit} cannot be kept",
    "budget_exceeded": "it could cost {dollars_value} and the limit is {dollars_limit}",
    "latency_exceeded": "it takes about {value} ms and the limit is {limit} ms",
}

_HINTS = {
    "disabled": "Enable it with `tokenhubctl model enable {model}`.",
    "provider_disabled": "Enable the provider, or send `auto` as the model.",
    "weight_below_minimum": "Lower `min_weight`.",
    "context_overflow": "Shorten the prompt, lower `max_tokens`, or use a model with more context.",
    "no_credential": "Store one with `tokenhubctl provider edit {provider} '{{\"api_key\":…}}'`.",
    "provider_auth": "Store a valid key for the provider; TokenHub tries again by itself.",
    "health_down": "`tokenhubctl health` says why; TokenHub tries it again by itself.",
    "price_unknown": "Set `input_per_1k` and `output_per_1k` of the model, 0 if it is free.",
    "budget_exceeded": "Raise `max_budget_usd`, or lower `max_tokens`.",
    "latency_exceeded": "Raise `max_latency_ms`, or try again when the model is faster.",
}

CODES = {
    "not_registered": "model_not_found",
    "not_allowed": "model_not_allowed",
    "disabled": "model_disabled",
    "context_overflow": "context_length_exceeded",
    "health_down": "provider_down",
    "health_probing": "provider_down",
    "rate_limited": "provider_rate_limited",
    "budget_exceeded": "request_budget_exceeded",
    "latency_exceeded": "latency_limit_exceeded",
}

KINDS: dict[str, type[HubError]] = {
    "not_registered": NotFound,
    "not_allowed": Forbidden,
    "disabled": NotFound,
    "provider_disabled": NotFound,
    "no_credential": Unavailable,
    "provider_quota": UpstreamFailed,
    "provider_auth": UpstreamFailed,
    "health_down": Unavailable,
    "health_probing": Unavailable,
    "rate_limited": RateLimited,
    "latency_exceeded": Unavailable,
}


def refusal(query: RouteQuery, filtered: Sequence[Filtered], evidence: Evidence) -> HubError:
    """The error for a request that no model may answer.

    Args:
        query: the request.
        filtered: why each model may not; for a named model that one alone.
        evidence: for the time and for when providers open again.
    """
    if not filtered:
        return Unavailable(
            "No model is set up, so nothing can answer.",
            code="no_models",
            hint="Add one with `tokenhubctl model add`.",
        )
    fault = max(filtered, key=lambda one: (_place(one.reason), one.model_id))
    words = explain_fault(fault)
    if len(filtered) == 1:
        message = f"`{fault.model_id}` cannot answer: {words}."
    else:
        message = (
            f"None of {len(filtered)} models may answer. Closest is `{fault.model_id}`: {words}."
        )
    return _error(query, fault, message, filtered, evidence)


def explain_fault(fault: Filtered) -> str:
    """The fault as the second half of a sentence about the model."""
    return _say(WORDS.get(fault.reason, fault.reason), fault)


def _error(
    query: RouteQuery,
    fault: Filtered,
    message: str,
    filtered: Sequence[Filtered],
    evidence: Evidence,
) -> HubError:
    reason = fault.reason
    extra: dict[str, Any] = _shown(fault) | {"filtered": [_shown(one) for one in filtered[:SHOWN]]}
    del extra["model_id"], extra["provider_id"]
    hint = _say(_HINTS[reason], fault) if reason in _HINTS else None
    if reason == "vault_locked":
        locked = VaultLocked(message)
        locked.extra = extra
        return locked
    kind = KINDS.get(reason, InvalidRequest)
    return kind(
        message,
        code=CODES.get(reason, reason),
        hint=hint or _alternative(query),
        headers=_retry_after(filtered, evidence),
        extra=extra,
    )


def _place(reason: str) -> int:
    return _ORDER.index(reason) if reason in _ORDER else len(_ORDER)


def _say(text: str, fault: Filtered) -> str:
    return text.format(
        model=fault.model_id,
        provider=fault.provider_id,
        limit=fault.limit,
        value=fault.value,
        dollars_limit=_dollars(fault.limit),
        dollars_value=_dollars(fault.value),
    )


def _shown(fault: Filtered) -> dict[str, Any]:
    """A fault as data; the limit of a closed provider is a time, and shown as one."""
    shown: dict[str, Any] = msgspec.to_builtins(fault)
    if fault.reason in _REOPENING:
        del shown["limit"], shown["value"]
        if isinstance(fault.limit, int) and fault.limit:
            at = datetime.fromtimestamp(fault.limit / 1000, UTC)
            shown["until"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return shown


def _dollars(nano: float | str) -> str:
    return f"${format_usd(nano)}" if isinstance(nano, int) else ""


def _alternative(query: RouteQuery) -> str | None:
    if not query.model or query.allow_fallback:
        return None
    return (
        "Send `auto` as the model, or allow another one: `allow_fallback` of the key, or in the "
        "policy of /v1/chat."
    )


def _retry_after(
    filtered: Sequence[Filtered], evidence: Evidence
) -> tuple[tuple[bytes, bytes], ...]:
    waits = [
        one.limit - evidence.at_ms
        for one in filtered
        if one.reason in _REOPENING and isinstance(one.limit, int) and one.limit > evidence.at_ms
    ]
    if not waits or not evidence.at_ms:
        return ()
    return ((b"retry-after", b"%d" % -(-min(waits) // 1000)),)


# What the client hears when several attempts failed, most useful first: a time to come back, then
# what may pass by itself, then what somebody must mend. (kind, status, code)
VERDICTS = (
    (FailureClass.CONTENT_FILTER, 400, "content_filter"),
    (FailureClass.CLIENT, 400, "provider_rejected"),
    (FailureClass.RATE_LIMITED, 429, "provider_rate_limited"),
    (FailureClass.OVERLOADED, 503, "provider_overloaded"),
    (FailureClass.TIMEOUT, 504, "provider_timeout"),
    (FailureClass.LATENCY, 504, "latency_limit_exceeded"),
    (FailureClass.DEADLINE, 504, "deadline_exceeded"),
    (FailureClass.CONTEXT, 400, "context_length_exceeded"),
    (FailureClass.SERVER, 502, "provider_error"),
    (FailureClass.RESET, 502, "provider_unreachable"),
    (FailureClass.CONNECT, 502, "provider_unreachable"),
    (FailureClass.GARBAGE, 502, "provider_garbage"),
    (FailureClass.MISDIRECTED, 502, "provider_misdirected"),
    (FailureClass.QUOTA, 502, "provider_quota"),
    (FailureClass.AUTH, 502, "provider_auth"),
)
# For those that only somebody who administers the hub can mend.
_MEND = {
    FailureClass.MISDIRECTED: (
        "The `base_url` of provider `{provider}` seems to lead elsewhere: `tokenhubctl provider "
        "get {provider}` shows it, `tokenhubctl provider edit {provider} '{{\"base_url\":…}}'` "
        "changes it."
    ),
    FailureClass.AUTH: _HINTS["provider_auth"],
}
_OWN_STATUS = frozenset({FailureClass.CLIENT, FailureClass.CONTENT_FILTER})
_NO_RETRY = (b"x-should-retry", b"false")


def exhausted(
    decision: Decision, attempts: Sequence[Attempt], waits: Sequence[float], *, late: bool = False
) -> UpstreamFailed:
    """The error for a request whose attempts have all failed, with the attempts listed.

    Args:
        decision: whom it could have asked.
        attempts: as they ended.
        waits: seconds of each Retry-After that was seen.
        late: the deadline of the request has passed.
    """
    listed = [_listed(attempt) for attempt in attempts]
    if late or not attempts:
        return _undone(decision, listed, late=late)
    place, status, code = min(
        (place, status, code)
        for place, (kind, status, code) in enumerate(VERDICTS)
        for attempt in attempts
        if attempt.kind == kind
    )
    kind = VERDICTS[place][0]
    telling = next(attempt for attempt in attempts if attempt.kind == kind)
    if kind in _OWN_STATUS and telling.status:
        status = telling.status
    headers = [_NO_RETRY]
    if status in {429, 503} and waits:
        headers.append((b"retry-after", b"%d" % ceil(min(waits))))
    tries = f" after {len(attempts)} attempts" if len(attempts) > 1 else ""
    return UpstreamFailed(
        f"`{telling.model_id}` at `{telling.provider_id}` failed{tries}: {telling.message}",
        status=status,
        code=code,
        hint=_MEND[kind].format(provider=telling.provider_id) if kind in _MEND else None,
        param=telling.param or None,
        headers=tuple(headers),
        extra={"attempts": listed},
    )


def _undone(decision: Decision, listed: list[dict[str, Any]], *, late: bool) -> UpstreamFailed:
    if late:
        return UpstreamFailed(
            "The time for the whole request is over.",
            status=504,
            code="deadline_exceeded",
            headers=(_NO_RETRY,),
            extra={"attempts": listed},
        )
    names = ", ".join(f"`{candidate.provider_id}`" for candidate in decision.candidates[:5])
    return UpstreamFailed(
        f"The providers that could answer have just closed: {names}.",
        status=503,
        code="provider_down",
        headers=((b"retry-after", b"1"), (b"x-should-retry", b"true")),
        extra={"attempts": []},
    )


def _listed(attempt: Attempt) -> dict[str, Any]:
    listed = {
        "model": attempt.model_id,
        "provider": attempt.provider_id,
        "error": attempt.kind,
        "status": attempt.status,
        "latency_ms": round(attempt.latency_ms, 1),
        "message": attempt.message,
    }
    if attempt.provider_code:
        listed["provider_code"] = attempt.provider_code
    return listed
