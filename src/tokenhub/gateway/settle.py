"""After the last byte: what a finished call leaves in the log and on the event stream."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.chat import Usage
from tokenhub.core.errors import FailureClass, PaymentRequired
from tokenhub.gateway.call import reason_of
from tokenhub.telemetry.cell import pair_of
from tokenhub.telemetry.journal import Entry

if TYPE_CHECKING:
    from tokenhub.core.catalog import Catalog
    from tokenhub.core.decision import Attempt, Candidate
    from tokenhub.gateway.call import Call
    from tokenhub.telemetry.events import EventBus

# Where clients name the conversation a request belongs to, first found counts.
_SESSIONS = (b"x-session-id", b"session-id", b"x-claude-code-session-id", b"x-session-affinity")
_NAMES_A_SESSION = frozenset(_SESSIONS)
MAX_SESSION = 128
MAX_FINISH = 64  # a provider may say anything, and the event stream keeps the latest entries
_NO_USAGE = Usage(source="")

log = logging.getLogger(__name__)


def entry_of(call: Call, catalog: Catalog) -> Entry:
    """The row of the request log."""
    request, chat, decision = call.request, call.chat, call.decision
    usage = call.usage or _NO_USAGE
    headers = request.headers
    model = catalog.models.get(call.model_id)
    prices = model.prices if model is not None else None
    if decision is not None:
        mode, alias, reason = decision.mode, decision.alias, reason_of(decision, call.model_id)
    else:
        mode = alias = reason = ""
    return Entry(
        request.id,
        request.client_id,
        _session(headers) if not _NAMES_A_SESSION.isdisjoint(headers) else "",
        call.started_ms,
        call.endpoint,
        call.grant.key_id,
        chat.model if chat is not None else "",
        call.model_id,
        call.provider_id,
        mode,
        alias,
        reason,
        chat.stream if chat is not None else False,
        call.status,
        call.error_class,
        call.error,
        (call.finish_reason or "")[:MAX_FINISH],
        (call.ended - call.began) * 1000.0,
        call.ttft_ms,
        usage.prompt,
        usage.completion,
        usage.cached_read,
        usage.cached_write,
        usage.reasoning,
        usage.source,
        call.cost,
        prices.source if prices is not None else "",
        prices.version if prices is not None else "",
        call.attempts,
        call.attempts_json,
    )


def publish(call: Call, entry: Entry, bus: EventBus) -> None:
    """Tell the event stream: the decision, what went wrong on the way, how it ended.

    An event's fields are made when somebody listens. Until then it holds the log's entry and no
    part of the request.
    """
    name, decision = call.grant.name, call.decision
    if decision is None:
        chosen, policy, count, reason = None, "", 0, ""
    else:
        chosen, policy, count = decision.chosen, decision.policy, decision.count
        if not entry.error_class and len(entry.attempts) == 1:
            bus.tell(_USUAL, _usual, (entry, name, chosen, policy, count))
            return
        reason = decision.reason
    kinds = ["decision"] if decision is not None else []
    escalated = _escalations(entry)
    kinds += ["escalation"] * len(escalated)
    if entry.status == PaymentRequired.status:
        kinds.append("budget")
    kinds.append("route_error" if entry.error_class else "route_success")
    bus.tell(tuple(kinds), _unusual, (entry, name, chosen, policy, count, reason, escalated))


def log_call(call: Call) -> None:
    """One line of the server's log for a finished request; only installed at level debug."""
    usage, cost = call.usage, call.cost
    log.debug(
        "request",
        extra={
            "request_id": call.request.id,
            "endpoint": call.endpoint,
            "key_id": call.grant.key_id,
            "model": call.model_id,
            "provider": call.provider_id,
            "mode": call.decision.mode if call.decision is not None else "",
            "status": call.status,
            "error_class": call.error_class,
            "error_msg": call.error,
            "attempts": len(call.attempts),
            "latency_ms": round((call.ended - call.began) * 1000.0, 3),
            "ttft_ms": call.ttft_ms,
            "tokens": usage.total if usage is not None else None,
            "cost_usd": None if cost is None else cost / 1e9,
        },
    )


_USUAL = ("decision", "route_success")


def _usual(
    entry: Entry, name: str, chosen: Candidate, policy: str, count: int
) -> tuple[_Decided, _Succeeded]:
    return _decided(entry, name, chosen, policy, count, entry.reason), _succeeded(entry, name)


def _escalations(entry: Entry) -> list[Attempt]:
    """The attempts that were given up for a later one, which answered or failed last."""
    if len(entry.attempts) < 2:
        return []
    last = entry.telling().number
    return [one for one in entry.attempts if one.number < last]


def _unusual(
    entry: Entry,
    name: str,
    chosen: Candidate | None,
    policy: str,
    count: int,
    reason: str,
    escalated: list[Attempt],
) -> list[Any]:
    told: list[Any] = []
    if chosen is not None:
        told.append(_decided(entry, name, chosen, policy, count, reason))
    told += [_escalated(entry, name, failed) for failed in escalated]
    if entry.status == PaymentRequired.status:
        told.append(_over_budget(entry, name))
    told.append(_failed(entry, name) if entry.error_class else _succeeded(entry, name))
    return told


class _Decided(msgspec.Struct, gc=False):
    model_id: str
    provider_id: str
    reason: str
    policy: str
    candidates: int
    propensity: float
    request_id: str
    api_key_name: str
    mode: str | msgspec.UnsetType


class _Succeeded(msgspec.Struct, gc=False):
    request_id: str
    api_key_name: str
    mode: str | msgspec.UnsetType
    latency_ms: float
    model_id: str
    provider_id: str
    reason: str
    cost_usd: float | None
    input_tokens: int
    output_tokens: int
    total_tokens: int
    ttft_ms: float | None


def _decided(
    entry: Entry, name: str, chosen: Candidate, policy: str, count: int, reason: str
) -> _Decided:
    return _Decided(
        chosen.model.id,
        chosen.model.provider_id,
        reason,
        policy,
        count,
        chosen.propensity,
        entry.request_id,
        name,
        entry.mode if entry.reason else msgspec.UNSET,
    )


def _common(entry: Entry, name: str) -> dict[str, Any]:
    common: dict[str, Any] = {"request_id": entry.request_id, "api_key_name": name}
    return common | {"mode": entry.mode} if entry.reason else common


def _over_budget(entry: Entry, name: str) -> dict[str, Any]:
    return _common(entry, name) | {"reason": entry.error}


def _escalated(entry: Entry, name: str, failed: Attempt) -> dict[str, Any]:
    ended = "was slow" if failed.kind == FailureClass.CANCELLED else "failed"
    return {
        "model_id": failed.model_id,
        "provider_id": failed.provider_id,
        "error_class": failed.kind,
        "reason": f"attempt {failed.number} {ended}, the next one was made",
    } | _common(entry, name)


def _failed(entry: Entry, name: str) -> dict[str, Any]:
    model_id, provider_id = pair_of(entry)
    return _common(entry, name) | {
        "latency_ms": round(entry.latency_ms, 3),
        "model_id": model_id,
        "provider_id": provider_id,
        "error_class": entry.error_class,
        "error_msg": entry.error,
        "status": entry.status,
    }


def _succeeded(entry: Entry, name: str) -> _Succeeded:
    cost, prompt, completion = entry.cost, entry.prompt, entry.completion
    return _Succeeded(
        entry.request_id,
        name,
        entry.mode if entry.reason else msgspec.UNSET,  # without a reason nothing was decided
        int(entry.latency_ms * 1000.0 + 0.5) / 1000.0,  # round() costs as much as the rest
        entry.model_id,
        entry.provider_id,
        entry.reason,
        None if cost is None else cost / 1e9,
        prompt,
        completion,
        prompt + completion,
        entry.ttft_ms,
    )


def _session(headers: dict[bytes, bytes]) -> str:
    for name in _SESSIONS:
        value = headers.get(name)
        if value is not None:
            return value[:MAX_SESSION].decode("latin-1")
    return ""
