"""After the last byte: what a finished call leaves in the log and on the event stream."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tokenhub.telemetry.journal import Entry

if TYPE_CHECKING:
    from tokenhub.core.catalog import Catalog
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


def publish(call: Call, bus: EventBus) -> None:
    """Tell the event stream: the decision, what went wrong on the way, how it ended."""
    request_id, decision = call.request.id, call.decision
    common: dict[str, Any] = {"request_id": request_id, "api_key_name": call.grant.name}
    if decision is not None:
        common["mode"] = decision.mode
        chosen = decision.chosen
        bus.publish(
            "decision",
            {
                "model_id": chosen.model_id,
                "provider_id": chosen.provider_id,
                "reason": decision.reason,
                "policy": decision.policy,
                "candidates": len(decision.candidates),
                "propensity": chosen.propensity,
            }
            | common,
        )
    for failed in call.attempts[:-1]:
        bus.publish(
            "escalation",
            {
                "model_id": failed.model_id,
                "provider_id": failed.provider_id,
                "error_class": failed.kind,
                "reason": f"attempt {failed.number} failed, the next one was made",
            }
            | common,
        )
    common["latency_ms"] = round((call.ended - call.began) * 1000.0, 3)
    last = call.attempts[-1] if call.attempts else None
    common["model_id"] = call.model_id or (last.model_id if last else "")
    common["provider_id"] = call.provider_id or (last.provider_id if last else "")
    if call.error_class:
        error = {"error_class": call.error_class, "error_msg": call.error, "status": call.status}
        bus.publish("route_error", common | error)
        return
    cost, usage = call.cost, call.usage
    bus.publish(
        "route_success",
        common
        | {
            "reason": decision.reason if decision is not None else "",
            "cost_usd": None if cost is None else cost / 1e9,
            "input_tokens": usage.prompt if usage is not None else 0,
            "output_tokens": usage.completion if usage is not None else 0,
            "total_tokens": usage.total if usage is not None else 0,
            "ttft_ms": call.ttft_ms,
        },
    )


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


def _session(headers: dict[bytes, bytes]) -> str:
    for name in _SESSIONS:
        value = headers.get(name)
        if value is not None:
            return value[:MAX_SESSION].decode("latin-1")
    return ""
