from __future__ import annotations

import asyncio
import json
from decimal import Decimal

import jsonschema_rs
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from tokenhub.core.catalog import Model, Provider
from tokenhub.core.chat import parse_chat
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import FailureClass, TransportError
from tokenhub.providers import adapters
from tokenhub.providers.adapter import DONE, Target
from tokenhub.providers.demo import PRESETS, DemoProvider, DemoUpstream
from tokenhub.providers.demo.answers import answer_to, fill
from tokenhub.providers.demo.openai import OpenAIDialect
from tokenhub.providers.sse import EventReader
from tokenhub.providers.upstream import Timeouts

CLOCK = SystemClock()
ADAPTERS = adapters(CLOCK)
PATHS = {"demo": b"/v1/chat/completions", "anthropic": b"/v1/messages"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 3},
                "unit": {"enum": ["C", "F"]},
                "note": {"type": "string"},
            },
            "required": ["city", "days", "unit"],
        },
    },
}
QUICK = Timeouts(connect=1, first_byte=0.05, idle=0.05)


def chat(content="hello there", **more):
    body = {"model": "demo", "messages": [{"role": "user", "content": content}]} | more
    return parse_chat(json.dumps(body).encode())


def upstream():
    return DemoUpstream(DemoProvider(CLOCK))


async def ask(up, request, *, kind="demo", timeouts=QUICK):
    """One chat through adapter and upstream: (reply or relay, bytes for the client)."""
    target = Target(
        Model(id="m", provider_id="d", upstream_name=request.model),
        Provider(id="d", type=kind),
    )
    adapter = ADAPTERS[kind]
    sent = adapter.request(request, target, None, max_tokens=None)
    answer = await up.send(None, sent, timeouts, stream=request.stream)
    if answer.status != 200:
        raise adapter.failure(answer.status, answer.headers, await answer.read())
    if not request.stream:
        reply = adapter.reply(request, target, answer.body)
        return reply, reply.body
    relay = adapter.relay(request, target)
    out = []
    try:
        await answer.relay(lambda data: out.append(relay.feed(data)))
    except TransportError as error:
        out.append(relay.interrupted(error.message))
    else:
        out.append(relay.finish())
    return relay, b"".join(out)


def raw(body, *, path=PATHS["demo"], headers=None, provider=None):
    provider = provider or DemoProvider(CLOCK)
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return provider.respond("POST", path, headers or {}, encoded)


def text_of(out):
    found = [json.loads(event.data) for event in EventReader().feed(out)[:-1]]
    return "".join(e["choices"][0]["delta"].get("content") or "" for e in found if e["choices"])


async def test_it_answers_about_the_prompt_and_is_deterministic():
    up = upstream()
    one, body = await ask(up, chat("count these words"))
    two, again = await ask(up, chat("count these words"))
    said = ChatCompletion.model_validate(json.loads(body), strict=True).choices[0].message.content
    assert '3 words: "count these words"' in said
    assert json.loads(again)["choices"] == json.loads(body)["choices"]
    assert one.usage == two.usage
    assert one.usage.completion == len(said.split())
    assert one.usage.prompt == 4


@pytest.mark.parametrize("kind", ["demo", "anthropic"])
async def test_a_stream_says_the_same_word_by_word(kind):
    up = upstream()
    whole, body = await ask(up, chat(), kind=kind)
    relay, out = await ask(up, chat(stream=True), kind=kind)
    assert text_of(out) == json.loads(body)["choices"][0]["message"]["content"]
    assert len(EventReader().feed(out)) > 10
    assert relay.usage == whole.usage
    assert out.endswith(DONE)


@pytest.mark.parametrize("kind", ["demo", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
async def test_it_calls_the_tool_that_is_asked_for(kind, stream):
    request = chat("please use the weather tool", tools=[WEATHER], stream=stream)
    _, out = await ask(upstream(), request, kind=kind)
    arguments = ""
    if stream:
        for event in EventReader().feed(out)[:-1]:
            chunk = ChatCompletionChunk.model_validate(json.loads(event.data), strict=True)
            for call in chunk.choices[0].delta.tool_calls or []:
                arguments += call.function.arguments
    else:
        answer = ChatCompletion.model_validate(json.loads(out), strict=True)
        arguments = answer.choices[0].message.tool_calls[0].function.arguments
    value = json.loads(arguments)
    jsonschema_rs.validate(WEATHER["function"]["parameters"], value)
    assert value["days"] >= 3
    assert "note" not in value


@pytest.mark.parametrize(
    ("choice", "content", "called"),
    [
        ("auto", "hello", False),
        ("none", "use the weather tool", False),
        ("required", "hello", True),
        ({"type": "function", "function": {"name": "weather"}}, "hello", True),
        ("auto", "Weather?", True),
        ("auto", "call a tool", True),
    ],
)
async def test_when_it_calls(choice, content, called):
    reply, _ = await ask(upstream(), chat(content, tools=[WEATHER], tool_choice=choice))
    assert (reply.finish_reason == "tool_calls") == called


async def test_after_the_tools_result_it_answers():
    messages = [
        {"role": "user", "content": "use the weather tool"},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "weather", "arguments": "{}"},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ]
    for kind in ("demo", "anthropic"):
        _, body = await ask(upstream(), chat(messages=messages, tools=[WEATHER]), kind=kind)
        said = json.loads(body)["choices"][0]["message"]["content"]
        assert said == "The tool answered: sunny"


async def test_several_tools_named_are_called_in_parallel_unless_forbidden():
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
        for name in ("alpha", "beta", "gamma")
    ]
    for parallel, count in ((True, 2), (False, 1)):
        request = chat("alpha and beta", tools=tools, parallel_tool_calls=parallel)
        _, body = await ask(upstream(), request)
        assert len(json.loads(body)["choices"][0]["message"]["tool_calls"]) == count


async def test_a_json_answer_fits_its_schema():
    schema = WEATHER["function"]["parameters"]
    wanted = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}
    for kind in ("demo", "anthropic"):
        _, body = await ask(upstream(), chat(response_format=wanted), kind=kind)
        content = json.loads(body)["choices"][0]["message"]["content"]
        jsonschema_rs.validate(schema, json.loads(content))


def test_a_recursive_schema_ends():
    schema = {
        "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}},
                        "required": ["n"]}},
        "$ref": "#/$defs/n",
    }  # fmt: skip
    assert fill(schema, "x")["n"]["n"]
    assert isinstance(fill({"$ref": "#"}, "x"), str)


async def test_max_tokens_cuts_the_answer():
    reply, body = await ask(upstream(), chat(max_tokens=3))
    assert reply.finish_reason == "length"
    assert reply.usage.completion == 3
    assert len(json.loads(body)["choices"][0]["message"]["content"].split()) == 3


async def test_a_wished_length_is_exact():
    for tokens in (1, 5, 200):
        reply, _ = await ask(upstream(), chat(demo={"tokens": tokens}))
        assert reply.usage.completion == tokens


@pytest.mark.parametrize(
    ("model", "kind", "status"),
    [
        ("demo-429", FailureClass.RATE_LIMITED, 429),
        ("demo-500", FailureClass.SERVER, 500),
        ("demo-503", FailureClass.OVERLOADED, 503),
        ("demo-529", FailureClass.OVERLOADED, 529),
        ("demo-401", FailureClass.AUTH, 401),
        ("demo-402", FailureClass.QUOTA, 402),
        ("demo-400", FailureClass.CLIENT, 400),
        ("demo-overflow", FailureClass.CONTEXT, 413),
        ("demo-garbage", FailureClass.MISDIRECTED, 200),
        ("no-such-model", FailureClass.CLIENT, 404),
    ],
)
@pytest.mark.parametrize("dialect", ["demo", "anthropic"])
async def test_it_fails_as_its_name_says(model, kind, status, dialect):
    with pytest.raises(Exception, match=r".") as caught:
        await ask(upstream(), chat(model=model), kind=dialect)
    assert (caught.value.kind, caught.value.status) == (kind, status)
    if model == "demo-429":
        assert caught.value.retry_after == 2


async def test_flaky_fails_every_second_request_of_its_model():
    up = upstream()
    seen = []
    for _ in range(6):
        try:
            await ask(up, chat(model="demo-flaky"))
            seen.append(True)
        except Exception as error:  # noqa: BLE001
            seen.append(error.status != 500)
    assert seen == [False, True] * 3


@pytest.mark.parametrize("model", ["demo-cut", "demo-error", "demo-stall"])
@pytest.mark.parametrize("kind", ["demo", "anthropic"])
async def test_a_stream_that_breaks_is_told_as_broken(model, kind):
    up = upstream()
    relay, out = await ask(up, chat(model=model, stream=True, demo=None), kind=kind)
    assert relay.failure is not None
    assert b'"error"' in out
    assert DONE not in out
    account = up.provider.books.statement()["models"][model]
    assert account["reported"] == {"usd": "0"}
    assert account["unreported"]["completion"] > 0


async def test_a_whole_answer_that_is_cut_is_a_broken_connection():
    with pytest.raises(TransportError) as caught:
        await ask(upstream(), chat(model="demo-cut"))
    assert (caught.value.kind, caught.value.sent) == (FailureClass.RESET, True)


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_ends_with_the_callers_limit(stream):
    with pytest.raises(TransportError) as caught:
        await ask(upstream(), chat(model="demo-hang", stream=stream))
    assert caught.value.kind == FailureClass.TIMEOUT


async def test_a_malformed_event_is_dropped_and_the_end_may_miss():
    relay, out = await ask(upstream(), chat(model="demo-malformed", stream=True))
    assert relay.malformed == 1
    assert out.endswith(DONE)
    relay, out = await ask(upstream(), chat(model="demo-endless", stream=True))
    assert relay.complete
    assert out.endswith(DONE)
    assert relay.usage is not None


@pytest.mark.parametrize("kind", ["demo", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
async def test_silent_reports_no_usage_and_cached_and_reasoning_do(kind, stream):
    up = upstream()
    silent, _ = await ask(up, chat(model="demo-silent", stream=stream), kind=kind)
    assert silent.usage is None
    assert silent.content_bytes > 0
    cached, _ = await ask(up, chat(model="demo-cached", stream=stream), kind=kind)
    # The prompt has three tokens, so of the four and two asked for only three can be.
    assert (cached.usage.cached_read, cached.usage.cached_write) == (3, 0)
    thinking, _ = await ask(up, chat(model="demo-reasoning", stream=stream), kind=kind)
    assert thinking.usage.reasoning == 8
    refused, _ = await ask(up, chat(model="demo-refuse", stream=stream), kind=kind)
    assert refused.finish_reason == "content_filter"


async def test_delays_are_kept():
    loop = asyncio.get_running_loop()
    begun = loop.time()
    wish = {"delay_ms": 30, "chunk_ms": 2, "tokens": 10}
    await ask(upstream(), chat(stream=True, demo=wish))
    assert loop.time() - begun >= 0.045


@pytest.mark.parametrize(
    "wish",
    [[], "x", {"unknown": 1}, {"delay_ms": "1"}, {"delay_ms": -1}, {"tokens": 10**9},
     {"status": 200}, {"delay_ms": 10**9}, {"cached": -1}],
)  # fmt: skip
def test_a_senseless_wish_is_refused(wish):
    found = raw({"model": "demo", "messages": [{"role": "user", "content": "x"}], "demo": wish})
    assert found.status == 400
    assert b"`demo" in found.body


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["messages", "model", "tools", "content", "role", "demo", "stream",
                         "tool_choice", "max_tokens", "function", "name", "response_format"]),
        inner, max_size=5),
    max_leaves=20,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_nothing_makes_it_crash(body):
    for path in PATHS.values():
        found = raw(body, path=path, headers={b"anthropic-version": b"2023-06-01"})
        assert found.status in {200, 400, 404}


def test_it_refuses_what_anthropic_refuses():
    body = {"model": "demo", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    path = PATHS["anthropic"]
    old, new = {b"anthropic-version": b"2023-06-01"}, {b"anthropic-version": b"2026-10-21"}
    assert raw(body, path=path, headers=old).status == 200
    assert raw(body, path=path).status == 400
    assert raw(body | {"temperature": 0}, path=path, headers=old).status == 200
    assert raw(body | {"temperature": 0}, path=path, headers=new).status == 400
    del body["max_tokens"]
    assert raw(body, path=path, headers=new).status == 400


@pytest.mark.parametrize("model", ["demo", "demo-reasoning", "demo-cached"])
def test_its_anthropic_side_is_what_the_sdk_reads(model):
    body = {
        "model": model,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "weather"}],
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
    }
    head = {b"anthropic-version": b"2026-10-21"}
    found = raw(body, path=PATHS["anthropic"], headers=head)
    Message.model_validate(json.loads(found.body), strict=True)
    events = TypeAdapter(RawMessageStreamEvent)
    streamed = raw(body | {"stream": True}, path=PATHS["anthropic"], headers=head)
    out = b"".join(data for _, data in streamed.body)
    for event in EventReader().feed(out):
        if event.event != b"ping":
            events.validate_json(event.data)


async def test_an_http_server_gets_the_same_through_answer():
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    provider = DemoProvider(CLOCK, sleep=sleep)
    request = json.dumps({"model": "demo-slow", "messages": [{"role": "user", "content": "x"}]})
    status, headers, body, cut = await provider.answer("POST", PATHS["demo"], {}, request.encode())
    assert (status, cut, waited) == (200, False, [2.0])
    assert dict(headers)[b"content-type"] == b"application/json"
    ChatCompletion.model_validate(json.loads(body), strict=True)
    listed = await provider.answer("GET", b"/v1/models?x=1", {}, b"")
    assert {item["id"] for item in json.loads(listed[2])["data"]} == PRESETS.keys()
    books = json.loads((await provider.answer("GET", b"/demo/books", {}, b""))[2])
    assert books["models"]["demo-slow"]["requests"] == 1
    assert (await provider.answer("GET", b"/nothing", {}, b""))[0] == 404


@pytest.mark.parametrize("kind", ["demo", "anthropic"])
async def test_the_books_are_what_the_clients_were_told(kind):
    up = upstream()
    models = ["demo", "demo-cached", "demo-silent", "demo-reasoning", "demo-flaky", "demo-cut"]
    told = {}
    for number in range(60):
        name = models[number % len(models)]
        request = chat(f"request {number} " * (number % 4 + 1), model=name, stream=number % 2 == 0)
        try:
            found, _ = await ask(up, request, kind=kind)
        except Exception:  # noqa: BLE001
            continue
        if found.usage is not None:
            usage = found.usage
            spent = (
                (usage.prompt - usage.cached_read - usage.cached_write) * Decimal("1e-6")
                + usage.cached_read * Decimal("0.1e-6")
                + usage.cached_write * Decimal("1.25e-6")
                + usage.completion * Decimal("4e-6")
            )
            told[name] = told.get(name, 0) + spent
    statement = up.provider.books.statement()
    for name in models:
        account = statement["models"][name]
        assert Decimal(account["reported"]["usd"]) == told.get(name, 0)
        assert account["requests"] == account["answered"] + account["failed"]
    assert Decimal(statement["reported_usd"]) == sum(told.values())


async def test_a_client_that_leaves_is_charged_for_what_it_got():
    up = upstream()
    request = chat(stream=True, demo={"tokens": 50, "chunk_ms": 5})
    first = asyncio.Event()
    target = Target(Model(id="demo", provider_id="d"), Provider(id="d", type="demo"))
    sent = ADAPTERS["demo"].request(request, target, None, max_tokens=None)
    answer = await up.send(None, sent, QUICK, stream=True)
    task = asyncio.create_task(answer.relay(lambda _: first.set()))
    await first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    account = up.provider.books.statement()["models"]["demo"]
    assert account["unreported"]["answers"] == 1
    assert account["unreported"]["completion"] < 50


async def test_pause_holds_the_stream_and_resume_goes_on():
    up = upstream()
    request = chat(stream=True, demo={"tokens": 5, "chunk_ms": 1})
    target = Target(Model(id="demo", provider_id="d"), Provider(id="d", type="demo"))
    sent = ADAPTERS["demo"].request(request, target, None, max_tokens=None)
    answer = await up.send(None, sent, Timeouts(), stream=True)
    got = []

    def sink(data):
        got.append(data)
        answer.pause()

    task = asyncio.create_task(answer.relay(sink))
    await asyncio.sleep(0.02)
    assert len(got) == 1
    for _ in range(200):
        if task.done():
            break
        answer.resume()
        await asyncio.sleep(0.002)
    await task
    assert b"".join(got).endswith(DONE)


async def test_abort_and_a_failing_sink_end_the_relay():
    up = upstream()
    target = Target(Model(id="demo", provider_id="d"), Provider(id="d", type="demo"))
    sent = ADAPTERS["demo"].request(
        chat(stream=True, demo={"chunk_ms": 1000}), target, None, max_tokens=None
    )
    answer = await up.send(None, sent, Timeouts(), stream=True)
    task = asyncio.create_task(answer.relay(lambda _: None))
    await asyncio.sleep(0)
    answer.abort()
    with pytest.raises(TransportError):
        await task
    answer = await up.send(None, sent, Timeouts(), stream=True)

    def broken(_):
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        await answer.relay(broken)


@given(st.text(max_size=200), st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_its_tokens_are_the_words_of_what_it_says(content, limit):
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": limit}
    answer = answer_to(OpenAIDialect().read(body, {}))
    assert answer.size == len(answer.text.split()) <= limit
