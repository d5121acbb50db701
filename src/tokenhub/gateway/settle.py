"""After the last byte: what a finished call leaves in the log and on the event stream."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from tokenhub.core.errors import PaymentRequired
from tokenhub.telemetry.journal import Entry

if TYPE_CHECKING:
    from tokenhub.core.catalog import Catalog
    from tokenhub.core.decision import Attempt
    from tokenhub.gateway.call import Call
    from tokenhub.telemetry.events import EventBus

# Where clients name the conversation a request belongs to, first found counts.
_SESSIONS = (b"x-session-id", b"session-id", b"x-claude-code-session-id", b"x-session-affinity")
MAX_SESSION = 128

log = logging.getLogger(__name__)


def entry_of(call: Call, catalog: Catalog) -> Entry:
    """The row of the request log."""
    request, chat, decision, usage = call.request, call.chat, call.decision, call.usage
    model = catalog.models.get(call.model_id)
    prices = model.prices if model is not None else None
    return Entry(
        request.id,
        request.client_id,
        _session(request.headers),
        call.started_ms,
        call.endpoint,
        call.grant.key_id,
        chat.model if chat is not None else "",
        call.model_id,
        call.provider_id,
        decision.mode if decision is not None else "",
        decision.alias if decision is not None else "",
        decision.reason if decision is not None else "",
        chat.stream if chat is not None else False,
        call.status,
        call.error_class,
        call.error,
        call.finish_reason or "",
        (call.ended - call.began) * 1000.0,
        call.ttft_ms,
        usage.prompt if usage is not None else 0,
        usage.completion if usage is not None else 0,
        usage.cached_read if usage is not None else 0,
        usage.cached_write if usage is not None else 0,
        usage.reasoning if usage is not None else 0,
        usage.source if usage is not None else "",
        call.cost,
        prices.source if prices is not None else "",
        prices.version if prices is not None else "",
        call.attempts,
    )


def publish(call: Call, entry: Entry, bus: EventBus) -> None:
    """Tell the event stream: the decision, what went wrong on the way, how it ended.

    An event's fields are made when somebody reads it. Until then it holds the log's entry and no
    part of the request.
    """
    name, decision = call.grant.name, call.decision
    if decision is not None:
        chosen, count = decision.chosen, len(decision.candidates)
        facts = (chosen.model_id, chosen.provider_id, decision.policy, count, chosen.propensity)
        bus.publish("decision", partial(_decided, entry, name, facts))
    if len(entry.attempts) > 1:
        for failed in entry.attempts[:-1]:
            bus.publish("escalation", partial(_escalated, entry, name, failed))
    if entry.status == PaymentRequired.status:
        bus.publish("budget", partial(_over_budget, entry, name))
    if entry.error_class:
        bus.publish("route_error", partial(_failed, entry, name))
    else:
        bus.publish("route_success", partial(_succeeded, entry, name))


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


def _common(entry: Entry, name: str) -> dict[str, Any]:
    common: dict[str, Any] = {"request_id": entry.request_id, "api_key_name": name}
    # Without a reason nothing was decided.
    return common | {"mode": entry.mode} if entry.reason else common


def _decided(entry: Entry, name: str, facts: tuple[str, str, str, int, float]) -> dict[str, Any]:
    model_id, provider_id, policy, count, propensity = facts
    return {
        "model_id": model_id,
        "provider_id": provider_id,
        "reason": entry.reason,
        "policy": policy,
        "candidates": count,
        "propensity": propensity,
    } | _common(entry, name)


def _over_budget(entry: Entry, name: str) -> dict[str, Any]:
    return _common(entry, name) | {"reason": entry.error}


def _escalated(entry: Entry, name: str, failed: Attempt) -> dict[str, Any]:
    return {
        "model_id": failed.model_id,
        "provider_id": failed.provider_id,
        "error_class": failed.kind,
        "reason": f"attempt {failed.number} failed, the next one was made",
    } | _common(entry, name)


def _ended(entry: Entry, name: str) -> dict[str, Any]:
    last = entry.attempts[-1] if entry.attempts else None
    return _common(entry, name) | {
        "latency_ms": round(entry.latency_ms, 3),
        "model_id": entry.model_id or (last.model_id if last else ""),
        "provider_id": entry.provider_id or (last.provider_id if last else ""),
    }


def _failed(entry: Entry, name: str) -> dict[str, Any]:
    error = {"error_class": entry.error_class, "error_msg": entry.error, "status": entry.status}
    return _ended(entry, name) | error


def _succeeded(entry: Entry, name: str) -> dict[str, Any]:
    return _ended(entry, name) | {
        "reason": entry.reason,
        "cost_usd": None if entry.cost is None else entry.cost / 1e9,
        "input_tokens": entry.prompt,
        "output_tokens": entry.completion,
        "total_tokens": entry.prompt + entry.completion,
        "ttft_ms": entry.ttft_ms,
    }


def _session(headers: dict[bytes, bytes]) -> str:
    for name in _SESSIONS:
        value = headers.get(name)
        if value is not None:
            return value[:MAX_SESSION].decode("latin-1")
    return ""
