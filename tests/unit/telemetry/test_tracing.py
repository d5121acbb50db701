from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from tests.unit.telemetry.finished import entry, failed

from tokenhub.core.catalog import Catalog, Model, Provider
from tokenhub.core.chat import parse_chat
from tokenhub.core.decision import Attempt, Candidate, Decision, Filtered, RouteQuery
from tokenhub.telemetry import genai_names as names
from tokenhub.telemetry.tracing import Tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {b"traceparent": f"00-{TRACE}-b7ad6b7169203331-01".encode(), b"tracestate": b"a=1"}
UNSAMPLED = {b"traceparent": f"00-{TRACE}-b7ad6b7169203331-00".encode()}
AT = 1_700_000_000_000
MODEL = Model(id="m1", provider_id="p1", upstream_name="gpt-4o")
CATALOG = Catalog(
    version=1,
    providers={"p1": Provider(id="p1", type="openai", base_url="https://api.openai.com")},
    models={"m1": MODEL},
)
CHAT = parse_chat(
    b'{"messages":[{"role":"user","content":"the prompt"}],"model":"auto","temperature":0.5,'
    b'"max_tokens":9,"stop":"end","seed":"odd","stream":true}'
)
DECISION = Decision(
    query=RouteQuery(),
    ranking=(Candidate(model=MODEL, score=0.25, propensity=1.0),),
    filtered=(Filtered(model_id="m2", provider_id="p2", reason="vault_locked"),),
    reason="routed-weight-5",
    mode="normal",
)


def tried(number, kind="", **change):
    fields = {"at_ms": AT + 10 * number, "latency_ms": 20.0, "cost": 5} | change
    return Attempt(number=number, model_id="m1", provider_id="p1", kind=kind, **fields)


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter):
    made = Tracing(SimpleSpanProcessor(exporter), "hub", "9", lambda: CATALOG)
    yield made
    made.close()


def spans(exporter):
    return {span.name: span for span in exporter.get_finished_spans()}


def test_one_server_one_routing_and_a_client_span_per_attempt(tracing, exporter):
    done = entry(
        AT, 60.0, attempts=[tried(1, "timeout", message="with sk-secret-123456"), tried(2)],
        cached_read=3, ttft_ms=30.0, session="s-1",
    )  # fmt: skip
    tracing.record(done, DECISION, CHAT, PARENT)
    first, second = [s for s in exporter.get_finished_spans() if s.kind is SpanKind.CLIENT]
    found = spans(exporter)
    server, route = found["POST /v1/chat/completions"], found["tokenhub.route"]
    assert len(exporter.get_finished_spans()) == 4
    assert (server.kind, route.kind) == (SpanKind.SERVER, SpanKind.INTERNAL)
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {TRACE}
    assert f"{server.parent.span_id:016x}" == "b7ad6b7169203331"
    assert {s.parent.span_id for s in (route, first, second)} == {server.context.span_id}
    assert server.resource.attributes["service.name"] == "hub"
    [event] = route.events
    assert event.attributes["tokenhub.candidate.models"] == ("m1",)
    assert event.attributes["tokenhub.candidate.scores"] == (0.25,)
    assert event.attributes["tokenhub.filtered"] == ("m2: vault_locked",)
    assert (first.attributes[names.ERROR_TYPE], first.status.is_ok) == ("timeout", False)
    assert "sk-secret" not in first.status.description
    assert dict(second.attributes) == {
        names.OPERATION: "chat",
        names.PROVIDER: "openai",
        names.REQUEST_MODEL: "gpt-4o",
        names.SERVER_ADDRESS: "api.openai.com",
        names.SERVER_PORT: 443,
        names.REQUEST_STREAM: True,
        names.REQUEST_MAX_TOKENS: 9,
        "gen_ai.request.temperature": 0.5,
        names.REQUEST_STOP: ("end",),
        names.CONVERSATION: "s-1",
        names.RESPONSE_FINISH_REASONS: ("stop",),
        names.USAGE_INPUT: 10,
        names.USAGE_OUTPUT: 20,
        names.USAGE_CACHE_READ: 3,
        names.HTTP_STATUS: 200,
        "tokenhub.provider.id": "p1",
        "tokenhub.model.id": "m1",
        "tokenhub.attempt": 2,
        "tokenhub.cost_usd": 5e-9,
    }


def test_every_child_lies_inside_the_request(tracing, exporter):
    done = entry(AT, 25.4, attempts=[tried(1, at_ms=AT, latency_ms=25.9), tried(2)])
    tracing.record(done, DECISION, CHAT, {})
    server = spans(exporter)["POST /v1/chat/completions"]
    for span in exporter.get_finished_spans():
        assert server.start_time <= span.start_time <= span.end_time <= server.end_time


def test_the_span_told_upstream_is_the_span_that_is_made(tracing, exporter):
    for headers in ({}, PARENT):
        exporter.clear()
        told = dict(tracing.upstream("r-1", headers, 1))
        tracing.record(entry(AT, attempts=[tried(1)]), DECISION, CHAT, headers)
        [client] = [s for s in exporter.get_finished_spans() if s.kind is SpanKind.CLIENT]
        context = client.context
        expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        assert told[b"traceparent"].decode() == expected
        assert told.get(b"tracestate") == headers.get(b"tracestate")
    assert tracing.upstream("r-1", {}, 1) != tracing.upstream("r-1", {}, 2)
    assert tracing.upstream("r-1", {}, 1) != tracing.upstream("r-2", {}, 1)


def test_a_caller_who_does_not_sample_is_obeyed(tracing, exporter):
    tracing.record(entry(AT, attempts=[tried(1)]), DECISION, CHAT, UNSAMPLED)
    assert exporter.get_finished_spans() == ()
    [(_, told)] = tracing.upstream("r-1", UNSAMPLED, 1)
    assert told.startswith(f"00-{TRACE}-".encode())
    assert told.endswith(b"-00")


@pytest.mark.parametrize("bad", [b"", b"00-zz-1-01", b"00-" + b"0" * 32 + b"-1-01", b"\xff"])
def test_a_traceparent_that_is_none_starts_a_trace(tracing, exporter, bad):
    tracing.record(failed(AT), None, None, {b"traceparent": bad, b"tracestate": b"\xff="})
    server = spans(exporter)["POST /v1/chat/completions"]
    assert server.parent is None
    assert server.context.trace_id
    assert server.attributes[names.ERROR_TYPE] == "server"
    assert not server.status.is_ok


def test_no_text_of_the_conversation_is_in_a_span(tracing, exporter):
    tracing.record(entry(AT, attempts=[tried(1)]), DECISION, CHAT, PARENT)
    assert "the prompt" not in "".join(span.to_json() for span in exporter.get_finished_spans())


@pytest.mark.parametrize(
    ("kind", "host", "name"),
    [
        ("openai", "api.openai.com", "openai"),
        ("openai", "api.groq.com", "groq"),
        ("vllm", "10.0.0.7", "vllm"),
        ("anthropic", "api.anthropic.com", "anthropic"),
    ],
)
def test_the_providers_name_is_the_conventions(kind, host, name):
    assert names.provider_name(kind, host) == name
