"""OpenTelemetry traces: spans made from finished requests, off the request's way.

    SERVER    POST /v1/chat/completions     child of the client's ``traceparent``
    INTERNAL  tokenhub.route                the candidates as an event
    CLIENT    chat gpt-4o                   one for each attempt; its id was sent upstream

Ids are a hash of the request's id, so an attempt can name its span to the provider long before
the span exists. Prompts and answers are never part of a span. Needs the extra ``[otel]``.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tokenhub.core.redaction import redact
from tokenhub.telemetry import genai_names as names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.sdk.trace import SpanProcessor

    from tokenhub.core.catalog import Catalog
    from tokenhub.core.chat import ChatRequest
    from tokenhub.core.decision import Attempt, Decision
    from tokenhub.telemetry.journal import Entry

EXPORT_SECONDS = 5.0
MOST_SHOWN = 64  # candidates in the event

_NS = 1_000_000
_propagator = TraceContextTextMapPropagator()
_number = msgspec.json.Decoder(int | float | None)
_stop = msgspec.json.Decoder(str | list[str] | None)


class Tracing:
    """Makes the spans of each request.

    Args:
        processor: takes finished spans; must not wait.
        service_name, version: what the resource says of this server.
        catalog: the snapshot in force.
    """

    def __init__(
        self,
        processor: SpanProcessor,
        service_name: str,
        version: str,
        catalog: Callable[[], Catalog],
    ) -> None:
        self._catalog = catalog
        self._ids = _Given()
        self._provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON),
            resource=Resource.create({"service.name": service_name, "service.version": version}),
            shutdown_on_exit=False,
            id_generator=self._ids,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tokenhub", version)

    def upstream(
        self, request_id: str, headers: Mapping[bytes, bytes], attempt: int
    ) -> list[tuple[bytes, bytes]]:
        """The headers that tell a provider which span its work belongs to."""
        parent = _parent(headers)
        trace_id = parent.trace_id if parent.is_valid else _trace_id(request_id)
        sampled = parent.trace_flags.sampled if parent.is_valid else True
        span_id = _span_id(request_id, attempt)
        told = [(b"traceparent", b"00-%032x-%016x-%02x" % (trace_id, span_id, sampled))]
        if parent.is_valid and parent.trace_state:
            told.append((b"tracestate", parent.trace_state.to_header().encode()))
        return told

    def record(
        self,
        entry: Entry,
        decision: Decision | None,
        chat: ChatRequest | None,
        headers: Mapping[bytes, bytes],
    ) -> None:
        """Make the spans of a request that is over."""
        parent = _parent(headers)
        if parent.is_valid and not parent.trace_flags.sampled:
            return
        self._ids.trace_id = _trace_id(entry.request_id)
        began = entry.at_ms * _NS
        ended = began + int(entry.latency_ms * _NS)
        server = self._start(
            f"POST {entry.endpoint}",
            trace.set_span_in_context(trace.NonRecordingSpan(parent)) if parent.is_valid else None,
            SpanKind.SERVER,
            _server_attributes(entry),
            _span_id(entry.request_id, "server"),
            began,
        )
        if entry.status >= 500:
            server.set_status(Status(StatusCode.ERROR, redact(entry.error)))
        inside = trace.set_span_in_context(server)
        if decision is not None:
            first = entry.attempts[0].at_ms * _NS if entry.attempts else ended
            self._route(entry, decision, inside, began, _between(began, first, ended))
        for attempt in entry.attempts:
            self._attempt(entry, decision, chat, attempt, inside, began, ended)
        server.end(ended)

    def close(self) -> None:
        """Send what waits, for a few seconds at most, and stop. Blocks."""
        self._provider.shutdown()

    def _start(
        self,
        name: str,
        context: Context | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        span_id: int,
        start: int,
    ) -> trace.Span:
        self._ids.span_id = span_id
        # A context of its own, also when there is no parent: none is ever taken from the thread.
        inside = Context() if context is None else context
        return self._tracer.start_span(
            name, inside, kind, {k: v for k, v in attributes.items() if v is not None},
            start_time=start,
        )  # fmt: skip

    def _route(
        self, entry: Entry, decision: Decision, inside: Context, began: int, ended: int
    ) -> None:
        attributes = {
            "tokenhub.mode": decision.mode or None,
            "tokenhub.policy": decision.policy or None,
            "tokenhub.alias": decision.alias or None,
            "tokenhub.reason": decision.reason or None,
        }
        span_id = _span_id(entry.request_id, "route")
        span = self._start("tokenhub.route", inside, SpanKind.INTERNAL, attributes, span_id, began)
        shown = decision.candidates[:MOST_SHOWN]
        span.add_event(
            "tokenhub.candidates",
            {
                "tokenhub.candidate.models": [one.model_id for one in shown],
                "tokenhub.candidate.providers": [one.provider_id for one in shown],
                "tokenhub.candidate.scores": [float(one.score) for one in shown],
                "tokenhub.candidate.propensities": [float(one.propensity) for one in shown],
                "tokenhub.filtered": [
                    f"{one.model_id}: {one.reason}" for one in decision.filtered[:MOST_SHOWN]
                ],
            },
            ended,
        )
        span.end(ended)

    def _attempt(
        self,
        entry: Entry,
        decision: Decision | None,
        chat: ChatRequest | None,
        attempt: Attempt,
        inside: Context,
        began: int,
        ended: int,
    ) -> None:
        model = _upstream_model(decision, attempt.model_id)
        attributes = self._who(attempt, model) | _asked(chat, entry.session)
        answered = not attempt.kind or (
            # A stream that broke after content had gone out was answered in part.
            bool(entry.model_id) and attempt is entry.telling()
        )
        attributes |= _answer(entry, attempt) if answered else {}
        attributes[names.HTTP_STATUS] = attempt.status if attempt.kind else 200
        attributes[names.ERROR_TYPE] = attempt.kind or None
        start = _between(began, attempt.at_ms * _NS, ended)
        span = self._start(
            f"{names.CHAT} {model}",
            inside,
            SpanKind.CLIENT,
            attributes,
            _span_id(entry.request_id, attempt.number),
            start,
        )
        if attempt.kind:
            span.set_status(Status(StatusCode.ERROR, redact(attempt.message)))
        span.end(_between(start, start + int(attempt.latency_ms * _NS), ended))

    def _who(self, attempt: Attempt, model: str) -> dict[str, Any]:
        provider = self._catalog().providers.get(attempt.provider_id)
        place = urlsplit(provider.base_url if provider is not None else "")
        default = {"http": 80, "https": 443}.get(place.scheme)
        return {
            names.OPERATION: names.CHAT,
            names.PROVIDER: names.provider_name(
                provider.type if provider is not None else attempt.provider_id,
                place.hostname or "",
            ),
            names.REQUEST_MODEL: model,
            names.SERVER_ADDRESS: place.hostname or None,
            names.SERVER_PORT: place.port or default,
            "tokenhub.provider.id": attempt.provider_id,
            "tokenhub.model.id": attempt.model_id,
            "tokenhub.attempt": attempt.number,
            "tokenhub.cost_usd": None if attempt.cost is None else attempt.cost / 1e9,
        }


class _Given(IdGenerator):
    """Hands out the ids that were set just before; spans are made on one thread only."""

    def __init__(self) -> None:
        self.trace_id = 0
        self.span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


def connect(
    endpoint: str, service_name: str, version: str, catalog: Callable[[], Catalog]
) -> Tracing:
    """Tracing that sends OTLP over HTTP, in batches from a thread of its own."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415  # 150 ms
        OTLPSpanExporter,
    )

    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
    return Tracing(BatchSpanProcessor(exporter), service_name, version, catalog)


def _server_attributes(entry: Entry) -> dict[str, Any]:
    return {
        names.HTTP_METHOD: "POST",
        names.HTTP_ROUTE: entry.endpoint,
        names.URL_PATH: entry.endpoint,
        names.HTTP_STATUS: entry.status,
        names.ERROR_TYPE: entry.error_class or None,
        names.CONVERSATION: entry.session or None,
        "tokenhub.request.id": entry.request_id,
        "tokenhub.request.client_id": entry.client_id or None,
        "tokenhub.key.id": entry.key_id,
        "tokenhub.model.asked": entry.asked or None,
        "tokenhub.model.id": entry.model_id or None,
        "tokenhub.provider.id": entry.provider_id or None,
        "tokenhub.cost_usd": None if entry.cost is None else entry.cost / 1e9,
    }


def _asked(chat: ChatRequest | None, session: str) -> dict[str, Any]:
    if chat is None:
        return {}
    found: dict[str, Any] = {
        names.REQUEST_STREAM: chat.stream,
        names.REQUEST_MAX_TOKENS: chat.max_tokens,
        names.REQUEST_CHOICES: chat.choices if chat.choices != 1 else None,
        names.CONVERSATION: session or None,
    }
    for member, name in names.REQUEST_NUMBERS.items():
        found[name] = _read(_number, chat, member)
    stop = _read(_stop, chat, "stop")
    found[names.REQUEST_STOP] = [stop] if isinstance(stop, str) else stop
    return found


def _read(decoder: msgspec.json.Decoder[Any], chat: ChatRequest, member: str) -> Any:
    try:
        return decoder.decode(chat.members.get(member, b"null"))
    except msgspec.ValidationError:
        return None  # the provider judges what it cannot read


def _answer(entry: Entry, attempt: Attempt) -> dict[str, Any]:
    return {
        names.RESPONSE_FINISH_REASONS: [entry.finish_reason] if entry.finish_reason else None,
        names.RESPONSE_FIRST_CHUNK: None if attempt.ttft_ms is None else attempt.ttft_ms / 1000,
        names.USAGE_INPUT: entry.prompt,
        names.USAGE_OUTPUT: entry.completion,
        names.USAGE_CACHE_READ: entry.cached_read or None,
        names.USAGE_CACHE_WRITE: entry.cached_write or None,
        names.USAGE_REASONING: entry.reasoning or None,
    }


def _upstream_model(decision: Decision | None, model_id: str) -> str:
    for one in decision.candidates if decision is not None else ():
        if one.model_id == model_id:
            return one.model.name_at_provider
    return model_id


def _parent(headers: Mapping[bytes, bytes]) -> SpanContext:
    carrier = {
        name: headers[name.encode()].decode("latin-1")
        for name in ("traceparent", "tracestate")
        if name.encode() in headers
    }
    if not carrier:
        return trace.INVALID_SPAN_CONTEXT
    span = trace.get_current_span(_propagator.extract(carrier, Context()))
    return span.get_span_context()


def _trace_id(request_id: str) -> int:
    return _hash(request_id, "trace", 16)


def _span_id(request_id: str, part: str | int) -> int:
    return _hash(request_id, str(part), 8)


def _hash(request_id: str, part: str, size: int) -> int:
    digest = hashlib.blake2b(f"{request_id}/{part}".encode(), digest_size=size).digest()
    return int.from_bytes(digest, "big") or 1


def _between(low: int, value: int, high: int) -> int:
    # Start times are whole milliseconds, durations are exact: a child must not stick out.
    return max(low, min(value, high))
