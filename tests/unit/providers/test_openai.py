from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenhub.core.catalog import Model, Provider
from tokenhub.core.chat import Usage, parse_chat
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import FailureClass, ProviderError
from tokenhub.providers import adapters
from tokenhub.providers.adapter import DONE, Target
from tokenhub.providers.openai_events import UsageObject
from tokenhub.providers.openai_stream import OpenAIRelay

ADAPTERS = adapters(SystemClock())
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def target(kind="openai", *, name="gpt", url="https://api.example.com/base/v1"):
    provider = Provider(id="p", type=kind, base_url=url)
    return Target(Model(id="m", provider_id="p", upstream_name=name), provider)


def request(body, *, kind="openai", cap=None, key=b"sk-1", **options):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ADAPTERS[kind].request(parse_chat(raw), target(kind, **options), key, max_tokens=cap)


def headers(found):
    return dict(found.headers())


def sent(body, **options):
    return json.loads(request(body, **options).body)


def test_where_and_how_it_is_sent():
    found = request(BODY)
    assert found.heading.method == b"POST"
    assert found.heading.target == b"/base/v1/chat/completions"
    assert headers(found)[b"authorization"] == b"Bearer sk-1"
    assert headers(found)[b"accept"] == b"application/json"
    assert b"authorization" not in headers(request(BODY, key=None))
    assert request(BODY, kind="demo", url="").heading.target == b"/v1/chat/completions"


def test_what_is_kept_for_later_requests_holds_no_key():
    heading = request(BODY).heading
    assert request(BODY, key=b"sk-2").heading is heading
    assert b"sk-" not in b"".join(value for _, value in heading.headers)
    stream = request(BODY | {"stream": True})
    assert headers(stream)[b"accept"] == b"text/event-stream"
    assert headers(stream)[b"authorization"] == b"Bearer sk-1"


def test_only_the_model_changes():
    assert sent(BODY) == BODY | {"model": "gpt"}
    assert sent({"messages": BODY["messages"]})["model"] == "gpt"


def test_what_needs_no_change_goes_byte_for_byte():
    raw = b'{ "model" : "m",\n"messages":[{"role":"user","content":"\\u00e9"}], "x": 1.50}'
    assert request(raw, name="m").body == raw


def test_unknown_members_keep_their_bytes():
    raw = b'{"model":"m","messages":[{"role":"user"}],"odd":{"a":1.500,"b":"\\u00e9"},"big":1e400}'
    out = request(raw).body
    assert b'"odd":{"a":1.500,"b":"\\u00e9"}' in out
    assert b'"big":1e400' in out


TOUCHED = {
    "model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens",
}  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.text(min_size=1, max_size=10).filter(lambda name: name not in TOUCHED)


@given(st.dictionaries(names, values, max_size=5))
@settings(max_examples=100, deadline=None)
def test_any_further_members_arrive_as_they_were(more):
    assert sent(BODY | more) == BODY | more | {"model": "gpt"}


@pytest.mark.parametrize(
    ("given_", "cap", "expected"),
    [
        ({}, None, {}),
        ({}, 100, {"max_completion_tokens": 100}),
        ({"max_tokens": 50}, 100, {"max_tokens": 50}),
        ({"max_tokens": 500}, 100, {"max_tokens": 100}),
        ({"max_completion_tokens": 500}, 100, {"max_completion_tokens": 100}),
        ({"max_tokens": 500, "max_completion_tokens": 50}, 100,
         {"max_tokens": 50, "max_completion_tokens": 50}),
        ({"max_tokens": 500, "max_completion_tokens": 50}, None,
         {"max_tokens": 50, "max_completion_tokens": 50}),
        ({"max_tokens": 7, "max_completion_tokens": 9}, None,
         {"max_tokens": 7, "max_completion_tokens": 9}),
        ({"max_tokens": 7, "max_completion_tokens": None}, None,
         {"max_tokens": 7, "max_completion_tokens": None}),
        ({"max_tokens": None}, 100, {"max_tokens": None, "max_completion_tokens": 100}),
    ],
)  # fmt: skip
def test_the_cap(given_, cap, expected):
    assert sent(BODY | given_, cap=cap) == BODY | {"model": "gpt"} | expected


def test_compatible_servers_get_the_cap_under_the_old_name():
    assert sent(BODY, kind="vllm", cap=100)["max_tokens"] == 100


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, {"include_usage": True}),
        ({"include_usage": True}, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
    ],
)
def test_a_stream_always_asks_for_usage(options, expected):
    body = sent(BODY | {"stream": True, "stream_options": options})
    assert body["stream_options"] == expected
    assert "stream_options" not in sent(BODY)


def reply(body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ADAPTERS["openai"].reply(parse_chat(json.dumps(BODY).encode()), target(), raw)


def answer(**more):
    message = {"role": "assistant", "content": "hé"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-x",
            "choices": [choice]} | more  # fmt: skip


def test_a_reply_goes_byte_for_byte():
    raw = json.dumps(answer(odd={"x": 1}), indent=3).encode()
    found = reply(raw)
    assert found.body is raw
    assert (found.finish_reason, found.model) == ("stop", "gpt-x")


def test_usage_is_read_or_the_size_told():
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    found = reply(answer(usage=usage, service_tier="flex"))
    assert (found.usage.prompt, found.usage.completion, found.usage.tier) == (3, 2, "flex")
    silent = reply(answer())
    assert silent.usage is None
    assert silent.content_bytes == 3


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", FailureClass.GARBAGE),
        (b"<html>", FailureClass.MISDIRECTED),
        (b"[]", FailureClass.MISDIRECTED),
        (b"{}", FailureClass.GARBAGE),
        (b" \n" * 99, FailureClass.GARBAGE),
        (b"\n<html>", FailureClass.MISDIRECTED),
        (b'{"choices":[]}', FailureClass.GARBAGE),
        (b'{"choices":"x"}', FailureClass.GARBAGE),
        (b'{"choices":[5]}', FailureClass.GARBAGE),
        (b'{"model":5,"choices":[{}]', FailureClass.GARBAGE),
        (
            b'{"model":5,"error":{"message":"busy","code":503},"choices":[{}]}',
            FailureClass.OVERLOADED,
        ),
        (b"\xff", FailureClass.MISDIRECTED),
        (b'{"a":' * 5000, FailureClass.GARBAGE),
        (b'{"error":{"message":"busy","code":503}}', FailureClass.OVERLOADED),
    ],
)
def test_what_is_no_answer_is_a_failure(raw, kind):
    with pytest.raises(ProviderError) as caught:
        reply(raw)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "odd",
    [
        {"model": 5},
        {"usage": "many"},
        {"usage": [1]},
        {"choices": [{"message": {"content": "h\u00e9"}, "finish_reason": 7}]},
        {"choices": [{"message": "h\u00e9"}]},
        {"choices": [{"message": ["h\u00e9"]}, {"message": None}]},
    ],
)
def test_an_answer_with_odd_members_is_one(odd):
    raw = json.dumps(answer() | odd).encode()
    found = reply(raw)
    assert found.body is raw
    assert found.usage is None
    assert 3 <= found.content_bytes <= len(raw)
    counts = {"prompt_tokens": 3, "completion_tokens": 2}
    assert reply(answer(model=5, usage=counts)).usage == Usage(prompt=3, completion=2)


@pytest.mark.parametrize(
    "usage", [None, {}, {"unknown": 1}, {"prompt_tokens": None}, {"total_tokens": 5}]
)
def test_usage_that_says_nothing_is_none(usage):
    found = reply(answer(usage=usage))
    assert (found.usage, found.content_bytes) == (None, 3)


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": None}, {"total_tokens": 5}])
def test_usage_that_says_nothing_makes_no_stream_free(usage):
    said = {"index": 0, "delta": {"content": "hey"}, "finish_reason": "stop"}
    events = [{"choices": [said]}, {"choices": [], "usage": usage}]
    relay = ADAPTERS["openai"].relay(parse_chat(json.dumps(BODY).encode()), target())
    relay.feed(b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events))
    relay.finish()
    assert (relay.complete, relay.usage, relay.content_bytes) == (True, None, 3)


@pytest.mark.parametrize("usage", [{"prompt_tokens": 0}, {"completion_tokens": "7"}])
def test_usage_that_says_too_little_is_usage(usage):
    found = reply(answer(usage=usage))
    assert (found.usage, found.content_bytes) == (Usage(), 0)


def tokens(usage, tier=None):
    return UsageObject.of(usage).tokens(tier)


def test_usage_by_kind():
    usage = tokens(
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 5,
                                      "cache_write_tokens": 10, "image_tokens": 7},
            "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 1},
        },
        "priority",
    )  # fmt: skip
    assert (usage.prompt, usage.cached_read, usage.cached_write) == (100, 60, 10)
    assert (usage.completion, usage.reasoning, usage.tier) == (50, 20, "priority")
    assert (usage.audio_in, usage.audio_out, usage.image_in) == (5, 1, 7)


def test_more_cached_than_there_was_is_cut_to_the_prompt():
    details = {"cached_tokens": 60, "cache_write_tokens": 5}
    usage = tokens({"prompt_tokens": 50, "prompt_tokens_details": details})
    assert (usage.prompt, usage.cached_read, usage.cached_write) == (50, 50, 0)


def test_reasoning_beside_the_completion_is_added():
    raw = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 35}
    usage = tokens(raw | {"completion_tokens_details": {"reasoning_tokens": 20}})
    assert (usage.completion, usage.reasoning) == (25, 20)


@given(
    st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens",
                         "prompt_tokens_details", "completion_tokens_details"]),
        st.none() | st.text() | st.integers() | st.floats() | st.booleans()
        | st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]),
                          st.integers() | st.none() | st.text()),
    )
)  # fmt: skip
def test_senseless_usage_never_becomes_negative_or_too_large(raw):
    usage = tokens(raw)
    assert 0 <= usage.cached_read + usage.cached_write <= usage.prompt
    assert 0 <= usage.reasoning <= usage.completion


def event(**delta):
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


def test_plain_reads_are_passed_on_as_they_are():
    relay = OpenAIRelay(show_usage=True)
    read = event(content="a") + event(content="b")
    assert relay.feed(read) is read


def test_a_role_alone_waits_for_the_first_content():
    relay = OpenAIRelay(show_usage=False)
    role = event(role="assistant", content="")
    assert relay.feed(role) == b""
    assert not relay.started
    assert relay.feed(event(content="a")) == role + event(content="a")
    assert relay.started


def test_a_long_lead_without_content_is_let_go():
    relay = OpenAIRelay(show_usage=False)
    lead = event(unknown_member="x" * 1000)
    out = b"".join(relay.feed(lead) for _ in range(40))
    assert relay.started
    assert len(out) > 20 * len(lead)


def test_every_choice_must_finish():
    relay = OpenAIRelay(show_usage=False)
    relay.feed(
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
    )
    relay.feed(b'data: {"choices":[{"index":1,"delta":{"content":"b"}}]}\n\n')
    assert b"upstream_interrupted" in relay.finish()


def test_a_stream_of_nothing_but_done_is_no_answer():
    relay = OpenAIRelay(show_usage=False)
    assert relay.feed(DONE) == b""
    assert relay.finish() == b""
    assert relay.failure.kind == FailureClass.GARBAGE


def test_two_documents_on_a_line_are_malformed():
    relay = OpenAIRelay(show_usage=False)
    twin = b'data: {"choices":[]} {"choices":[]}\n\n'
    assert relay.feed(event(content="a") + twin) == event(content="a")
    assert relay.malformed == 1


def test_an_event_over_several_lines_goes_out_on_one():
    relay = OpenAIRelay(show_usage=False)
    split_event = b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"a"}}]}\n\n'
    out = relay.feed(split_event)
    assert out.count(b"\n") == 2
    assert json.loads(out[6:])["choices"][0]["delta"] == {"content": "a"}


def test_invalid_utf8_is_malformed():
    relay = OpenAIRelay(show_usage=False)
    assert relay.feed(b'data: {"choices":[],"x":"\xff"}\n\n') == b""
    assert relay.malformed == 1


def test_half_an_emoji_passes_untouched():
    relay = OpenAIRelay(show_usage=False)
    half = b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}\n\n'
    assert relay.feed(half) == half
    assert relay.content_bytes >= 3


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(texts, min_size=1, max_size=12), st.lists(st.integers(1, 4000), max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_text_in_any_reads_arrives_whole_and_is_counted(words, places):
    data = b"".join(event(content=word) for word in words) + FINISH + DONE
    edges = [0, *sorted({place % len(data) for place in places}), len(data)]
    relay = OpenAIRelay(show_usage=False)
    out = b"".join(relay.feed(data[a:b]) for a, b in itertools.pairwise(edges))
    assert out + relay.finish() == data
    assert relay.content_bytes == len("".join(words).encode())
    assert relay.malformed == 0


def test_every_provider_type_has_its_adapter():
    dialects = {kind: ADAPTERS[kind].dialect for kind in ("openai", "vllm", "demo", "anthropic")}
    assert dialects == dict.fromkeys(("openai", "vllm", "demo"), "openai") | {
        "anthropic": "anthropic"
    }
    assert ADAPTERS["anthropic"] is ADAPTERS["anthropic"]
    with pytest.raises(KeyError):
        ADAPTERS["other"]
    assert ADAPTERS["openai"].notes(parse_chat(json.dumps(BODY).encode()), target()) == []


@pytest.mark.timeout(30)  # a watchdog: it takes a moment, or minutes
def test_an_event_that_never_ends_is_refused_in_linear_time():
    relay = OpenAIRelay(show_usage=False)
    relay.feed(b'data: {"choices":[{"delta":{"content":"')
    while relay.failure is None:
        assert relay.feed(b"x" * 64) == b""
    assert relay.failure.kind == FailureClass.GARBAGE
