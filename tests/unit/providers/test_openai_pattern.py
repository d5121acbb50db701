"""What is read by its pattern, against every event decoded on its own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.providers.scripted import mutated

from tokenhub.providers.openai_pattern import learn
from tokenhub.providers.openai_stream import OpenAIRelay

RECORDED = sorted((Path(__file__).parents[2] / "wire/openai").glob("*.sse"))
HEAD = '{"id":"c1","object":"chat.completion.chunk","created":17,"model":"m","choices":'
NOTED = ("started", "complete", "usage", "finish_reason", "content_bytes", "malformed", "failure")


class EventByEvent(OpenAIRelay):
    """The same relay without its ways of reading many events at once."""

    def _plain(self, block, chunks=()):
        del block, chunks


def event(delta, finish="null", index=0, after=""):
    delta = delta if isinstance(delta, str) else json.dumps(delta, ensure_ascii=False)
    choice = f'{{"index":{index},"delta":{delta},"finish_reason":{finish}}}'
    return f"data: {HEAD}[{choice}]{after}}}\n\n".encode("utf-8", "surrogatepass")


def word(text, **more):
    return event(f'{{"content":{json.dumps(text, ensure_ascii=False)}}}', **more)


def padded(parts):
    text, padding = parts
    return word(text, after=f',"usage":null,"obfuscation":"{padding}"')


def ran(relay, reads):
    pieces = [relay.feed(read) for read in reads]
    noted = {name: getattr(relay, name) for name in NOTED}
    return pieces, {name: repr(value) for name, value in noted.items()}, relay.finish()


def cut(data, places):
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def agree(reads, *, show_usage=False):
    fast, slow = OpenAIRelay(show_usage=show_usage), EventByEvent(show_usage=show_usage)
    assert ran(fast, reads) == ran(slow, reads)
    return fast


TEXTS = st.one_of(
    st.sampled_from(["a", "", "Hello", '"', "\\", 'say "x"', "\n\n", "\x7f", "data: ", "[DONE]"]),
    st.sampled_from(['","finish_reason":"stop', "<what was said>", "wörld", "🌍", "\u2028"]),
    st.text(max_size=5),
)
EVENTS = st.one_of(
    TEXTS.map(word),
    TEXTS.map(word),
    TEXTS.map(lambda text: event(json.dumps({"content": text}))),  # escaped
    TEXTS.map(lambda text: event({"reasoning_content": text})),
    TEXTS.map(lambda text: event({"reasoning_content": text, "reasoning": text})),
    TEXTS.map(lambda text: word(text, index=1)),
    TEXTS.map(lambda text: word(text, after=f',"obfuscation":{json.dumps(text)}')),
    st.tuples(TEXTS, st.sampled_from(["", "x1Yz", "a7", "b c"])).map(padded),
    st.tuples(TEXTS, st.sampled_from(["", "x1Yz", "a7", "b c"])).map(padded),
    TEXTS.map(
        lambda text: event(f'{{"tool_calls":[{{"function":{{"arguments":{json.dumps(text)}}}}}]}}')
    ),
    TEXTS.map(lambda text: event(f'{{"refusal":{json.dumps(text)}}}')),
    TEXTS.map(lambda text: word(text, after=',"usage":{"prompt_tokens":3}')),
    TEXTS.map(lambda text: event(f'{{"content":{json.dumps(text)},"content":"twice"}}')),
    st.sampled_from(
        [
            event({"role": "assistant", "content": ""}),
            event({"content": "last"}, finish='"stop"'),
            event({}, finish='"stop"'),
            event({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}),
            event({"content": 7}),
            event('{"content":"\\ud83d"}'),
            event('{"content":"\\ude00"}'),
            event('{"content":"cut\\'),
            event('{"content":"\x01"}'),
            event('{"content":"a\nb"}'),
            b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n',
            b'data: {"error":{"message":"no","code":503}}\n\n',
            b'data: {"object":"error","message":"no"}\n\n',
            b"data: NaN\n\n",
            b"data: [1,2]\n\n",
            b": comment\n\n",
            b"event: x\n",
            b'data: {"choices":\ndata: []}\n\n',
            b"data: [DONE]\n\n",
        ]
    ),
)
CUTS = st.lists(st.integers(min_value=0, max_value=100_000), max_size=6)
# Where a byte is put in, which one, and how many it replaces.
MUTATIONS = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=100_000),
        st.sampled_from([b'"', b"\\", b"\n", b"\n\n", b",", b"}", b"{", b"x", b"\0", b"\xff", b""]),
        st.integers(min_value=0, max_value=3),
    ),
    max_size=3,
)


@given(st.lists(EVENTS, max_size=12), CUTS, MUTATIONS, st.booleans())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_stream_in_any_cut_says_the_same(events, places, mutations, show_usage):
    agree(cut(mutated(b"".join(events), mutations), places), show_usage=show_usage)


@given(st.lists(EVENTS, max_size=12), MUTATIONS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_one_event_a_read_says_the_same(events, mutations):
    agree([word("one"), *(mutated(one, mutations) for one in events)])


@given(st.lists(st.lists(EVENTS, max_size=9), max_size=4), CUTS, MUTATIONS, st.booleans())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_chunks_of_a_read_are_it_says_the_same(reads, places, mutations, show_usage):
    hinted, blind = OpenAIRelay(show_usage=show_usage), EventByEvent(show_usage=show_usage)
    for events in reads:
        chunks = [mutated(one, mutations) for one in events]
        if len(places) % 2:
            chunks = cut(b"".join(chunks), places)
        read = b"".join(chunks)
        assert hinted.feed(read, chunks) == blind.feed(read)
    assert ran(hinted, []) == ran(blind, [])


def test_a_row_in_chunks_is_found_without_its_neighbours():
    start, end = event({"role": "assistant", "content": ""}), event({}, finish='"stop"')
    chunks = [start, *(word(f"w{i}") for i in range(10)), end]
    read = b"".join(chunks)
    pattern = learn(word("one"))
    row = pattern.find(read, chunks)
    assert row == pattern.find(read) == (len(start), len(read) - len(end), 20)
    assert pattern.find(read, [b"", *read.splitlines(keepends=True)]) == row
    assert pattern.find(start + end, [start, end]) is None


@pytest.mark.parametrize(
    "other",
    [
        word("two", index=1),
        event('{"refusal":"two"}'),
        word("two").replace(b"null", b"NULL"),
        word("two").replace(b'"id":"c1"', b'"id":"c2"'),
    ],
)
def test_a_chunk_of_another_kind_is_not_of_the_row(other):
    chunks = [word("one"), other, word("three")]
    assert learn(word("one")).find(b"".join(chunks), chunks) is None
    agree(chunks)


def test_a_head_and_a_foot_that_share_a_quote_in_a_chunk_are_no_event():
    pattern = learn(word("one"))
    cut_short = word("").replace(b'""', b'"')
    for chunks in ([cut_short], [word("a"), cut_short], [cut_short, word("a")]):
        assert pattern.find(b"".join(chunks), chunks) is None


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
@given(places=CUTS, mutations=MUTATIONS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_recorded_stream_says_the_same(path, places, mutations):
    agree(cut(mutated(path.read_bytes(), mutations), places))


@given(st.lists(TEXTS, min_size=1, max_size=20), st.booleans())
@settings(deadline=None)
def test_a_row_of_words_is_counted_whole(texts, escaped):
    texts = ["first", *texts]
    words = [json.dumps(t) if escaped else json.dumps(t, ensure_ascii=False) for t in texts]
    row = b"".join(event(f'{{"content":{text}}}') for text in words)
    size = len("".join(texts).encode())
    assert learn(row).said(row) == size


@given(st.lists(TEXTS, min_size=1, max_size=20))
@settings(deadline=None)
def test_padding_is_not_counted(texts):
    texts = ["first", *texts]
    row = b"".join(padded((text, "x1Yz"[: i % 5])) for i, text in enumerate(texts))
    assert learn(row).said(row) == len("".join(texts).encode())


@pytest.mark.parametrize(
    "odd",
    [
        padded(("a", "b c")),
        padded(("a", '","error":{"message":"no"},"x":"')),
        word("a"),
        word("a", after=',"usage":null'),
        padded(("a", "x")).replace(b'"usage":null', b'"usage":{}'),
        padded(("a", "x")).replace(b"null}]", b'"stop"}]'),
    ],
)
def test_an_event_that_is_padded_otherwise_is_not_of_the_pattern(odd):
    one, pattern = padded(("one", "x1")), learn(padded(("one", "yz")))
    assert pattern.said(one + one) == 6
    assert pattern.said(odd) == pattern.said(one + odd) == pattern.said(one + odd + one) == -1
    agree([one, odd, one + odd, one + odd + one])


def test_a_calls_arguments_are_words_too():
    calls = [
        event(f'{{"tool_calls":[{{"index":0,"function":{{"arguments":{json.dumps(text)}}}}}]}}')
        for text in ("city", '{"', "🌍")
    ]
    assert learn(calls[0]).said(b"".join(calls)) == len('city{"🌍'.encode())
    agree(calls)


def test_a_head_and_a_foot_that_share_a_quote_are_no_event():
    pattern = learn(word("one"))
    cut_short = word("").replace(b'""', b'"')
    assert pattern.said(word("")) == 0
    assert pattern.said(cut_short) == -1
    assert pattern.find(cut_short) is None
    agree([word("one"), cut_short, word("two")])


@pytest.mark.parametrize(
    "odd",
    [
        event('{"content":"bad \\x"}'),
        event('{"content":"ends in \\"}'),
        event('{"content":"half \\ud83d"}'),
        event('{"content":"control \x01"}'),
        event('{"content":"two","content":"words"}'),
        event('{"content":"over"},"x":{"content":"here"}'),
        event('{"content":"over"}}],"error":{"message":"no"},"x":[{"x":{"x":"y"}'),
        word("x").replace(b"x", b"\xff"),
        event('{"content":"a\nb"}'),
    ],
)
def test_words_that_are_no_sound_string_are_not_of_the_pattern(odd):
    pattern = learn(word("one"))
    assert pattern.find(word("two") + odd + word("three")) is None
    assert pattern.find(odd) is None
    agree([word("one"), odd + word("two"), word("three")])


@pytest.mark.parametrize(
    "unfit",
    [
        word("x", finish='"stop"'),
        word("x", after=',"usage":{"prompt_tokens":3}'),
        word("x", after=',"error":{"message":"no"}'),
        word("x", after=',"choices":[]'),
        event({"role": "assistant", "content": ""}),
        event('{"content":"x","refusal":"no"}'),
        event('{"reasoning":"x","reasoning_content":"y"}'),
        event('{"reasoning_content":"x","reasoning":"y"}'),
        event('{"content":7,"note":{"content":"x"}}'),
        event('{"content":"x","content":"<what was said>"}'),
        event("{}", after=',"content":"x"'),
        b'data: {"choices":[{"delta":{"content":"x"}},{"delta":{"content":"y"}}]}\n\n',
        b'data: {"object":"error","content":"x"}\n\n',
        b'data: {"content":"x"\n\n',
        b'event: a\ndata: {"choices":[{"delta":{"content":"x"}}]}\n\n',
        word("x").replace(b'"id":"c1"', b'"id":"\xff"'),
    ],
)
def test_an_event_that_says_more_than_its_words_teaches_nothing(unfit):
    assert learn(unfit) is None
    agree([unfit, unfit + unfit])


def test_a_pattern_is_learnt_anew_when_the_head_changes():
    later = [word(f"w{i}").replace(b'"created":17', b'"created":%d' % (i // 2)) for i in range(40)]
    relay = agree(later)
    assert relay._pattern is not None
    assert relay._pattern.find(later[-1]) is not None


def test_a_stream_without_a_pattern_is_not_searched_for_one_for_ever():
    relay = agree([event({"content": "x", "refusal": "no"}) for _ in range(20)])
    assert relay._guesses == 0
