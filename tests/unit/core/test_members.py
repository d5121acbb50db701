"""The members of a body, however it is read: whole, or a long one around its messages."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.test_chat import JSON

from tokenhub.core import members as module
from tokenhub.core.bounds import measure_chat
from tokenhub.core.chat import ChatRequest, parse_chat
from tokenhub.core.errors import InvalidRequest
from tokenhub.core.members import LONG, Spliced, parse_members, read_object, split_messages
from tokenhub.gateway.features import features_of

WORDS = "word " * (LONG // 4)
TRAPS = ['], "n": 1}', '"messages": [', "]", "\x7f", '\\"', "}]}", '"tools"', "é😀", "\n\x00", ""]
NAMES = st.sampled_from(
    ["model", "n", "stop", "user", "tools", "metadata", "max_tokens", "x", "", "\x7f", '"', "]:"]
)
TOOLS = [{"type": "function", "function": {"name": "tools", "parameters": {"required": ["a"]}}}]
VALUES = JSON | st.sampled_from([["a"], TOOLS, [], {"messages": [1]}, "-]", '"messages": []'])
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.just("user")},
        optional={
            "content": st.sampled_from(TRAPS)
            | st.just([{"type": "text", "text": "t"}])
            | st.just([{"type": "image_url", "image_url": {"url": "https://e.com/a.png"}}])
            | st.none(),
            "tool_calls": st.just([{"id": "c", "function": {"name": "f", "arguments": "[]"}}]),
            "odd": st.just(1),
        },
    ),
    max_size=3,
)


def written(pairs, style):
    """An object's text, duplicates and all."""
    comma, colon = {"compact": (",", ":"), "spaced": (", ", ": "), "odd": (" ,\n", "\t:  ")}[style]
    ascii_only = style != "compact"
    inner = [
        json.dumps(name, ensure_ascii=ascii_only)
        + colon
        + json.dumps(value, separators=(comma, colon), ensure_ascii=ascii_only)
        for name, value in pairs
    ]
    return ("{" + comma.join(inner) + "}").encode()


def read(body):
    """What a body holds, or why it is refused; read whole."""
    try:
        return read_object(body)[0]
    except InvalidRequest as error:
        return str(error)


@given(
    st.lists(st.tuples(NAMES, VALUES), max_size=7),
    TURNS,
    st.sampled_from(TRAPS),
    st.integers(0, 7),
    st.sampled_from(["compact", "spaced", "odd"]),
)
def test_a_long_body_is_read_the_same_around_its_messages(pairs, turns, trap, place, style):
    messages = [{"role": "user", "content": WORDS + trap}, *turns]
    body = written([*pairs[:place], ("messages", messages), *pairs[place:]], style)
    names = [name for name, _ in pairs]
    whole, split = read(body), split_messages(body)
    if len(set(names)) < len(names):
        assert "twice" in whole
    else:
        assert json.loads(msgspec.json.encode(whole)) == json.loads(body)
    if split is None:
        return
    members, around, found = split
    assert list(members.items()) == list(whole.items())
    assert json.loads(around).keys() == json.loads(body).keys()
    assert [json.loads(bytes(turn.content)) for turn in found] == [
        message.get("content") for message in messages
    ]


@pytest.mark.parametrize("style", ["compact", "spaced"])
@pytest.mark.parametrize("tools", ["none", "before", "after"])
@pytest.mark.parametrize("first", ["model", "messages"])
def test_the_usual_long_body_is_scanned_once(style, tools, first):
    messages = [
        {"role": "user", "content": WORDS},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x"}]},
    ]
    pairs = [("model", "m"), ("messages", messages), ("max_tokens", 7)]
    if first == "messages":
        pairs[:2] = pairs[1::-1]
    if tools != "after":
        pairs.append(("stop", ["a"]))
    many = [("tools", TOOLS * 100)]
    pairs = many * (tools == "before") + pairs + many * (tools == "after")
    assert split_messages(written(pairs, style)) is not None


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[%b],"messages":[{}]}',
        b'{"model":"m","messages":[{}],"messages":[%b]}',
        b'{"n":1,"messages":[%b],"n":2}',
        b'{"messages":[%b],"x":{"messages":[{}]},"x":1}',
        b'{"messages":[%b],"\\u006dessages":[{}]}',
    ],
)
def test_a_long_body_with_a_member_that_stands_twice_is_refused(body):
    message = json.dumps({"role": "user", "content": WORDS}).encode()
    with pytest.raises(InvalidRequest, match="twice"):
        parse_chat(body % message)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":{"messages":[%b]},"messages":[{"content":"short"}]}',
        b'{"a":{"messages":[{"content":"inner"}]},"messages":[%b]}',
        b'{"a":{"messages":[%b],"b":1},"messages":[{"content":"short"}]}',
    ],
)
def test_messages_elsewhere_are_not_taken_for_them(body):
    body = body % json.dumps({"role": "user", "content": WORDS}).encode()
    assert bytes(parse_chat(body).members["messages"]) == bytes(
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])["messages"]
    )


@pytest.mark.parametrize("end", [b"}", b',"messages":"\x7f"}', b',"messages":null}'])
def test_messages_elsewhere_do_not_stand_for_missing_ones(end):
    message = json.dumps({"role": "user", "content": WORDS}).encode()
    with pytest.raises(InvalidRequest, match=r"`messages` (is missing|must be a list)"):
        parse_chat(b'{"a":{"messages":[%b],"b":1}' % message + end)


@pytest.mark.parametrize(
    "broken",
    [b'[{"content":"%b\x01"}]', b'[{"content":"%b\\x"}]', b'[{"content":"%b"},]', b'[{"c" "%b"}]',
     b'[{"content":"%b"}}]', b'["%b]', b'[{"content":"%b"}], 7, [{}]'],
)  # fmt: skip
def test_a_long_body_that_is_no_json_is_refused(broken):
    body = b'{"model":"m","messages":' + broken.replace(b"%b", WORDS.encode()) + b',"n":1}'
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parse_chat(body)


def test_a_long_body_that_is_nested_too_deeply_is_refused():
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(InvalidRequest, match="too deeply"):
        parse_chat(b'{"messages":[{"content":' + deep + b"}]}")


@given(st.text('ab\\"é\n', max_size=12), st.integers(0, 99_999), st.integers(1, 7))
def test_no_length_hides_a_member_that_stands_twice(name, value, others):
    # Compact, with a duplicate as long as the spaces a usual writer would have put.
    pairs = [(f"member_{number}", number) for number in range(others)]
    for style in ("compact", "spaced", "odd"):
        body = written([(name, value), *pairs, (name, 1)], style)
        with pytest.raises(InvalidRequest, match="twice"):
            parse_members(body)
        assert parse_members(written([(name, value), *pairs], style))


SPACES = st.sampled_from(["", " ", " ", "\n", "\t\r\n "])
TRICKS = st.sampled_from(
    ["null", '{"messages": null}', '{"messages":null}', '"messages\\": null"',
     '"\\"messages\\": null"', '", "', '": "', "[]", "{}", "1", "12345",
     '[{"role": "user", "content": "a"}]', '"\\u006e"']
)  # fmt: skip
MEMBERS = st.tuples(
    st.sampled_from(
        ["model", "messages", "n", "\\u006e", "user", "stop", "", "a", "b", "c", "top_p", "seed",
         "stream", "temperature", "max_tokens", "\\n", '\\"messages', "é"]
    ),
    TRICKS,
)  # fmt: skip


def holds_a_name_twice(body):
    """Whether the outermost object, which is read last, names a member twice."""
    names = []

    def pairs(found):
        names[:] = [name for name, _ in found]
        return dict(found)

    json.loads(body, object_pairs_hook=pairs)
    return len(set(names)) < len(names)


@given(st.lists(MEMBERS, min_size=1, max_size=16), st.data())
def test_a_member_is_refused_exactly_when_it_stands_twice(pairs, data):
    style = data.draw(st.sampled_from(["compact", "spaced", "any", "fitted"]))
    if style == "fitted":
        # Compact, with a duplicate in front as long as the spaces a usual writer would have put.
        pairs = list(dict(pairs).items())
        name = data.draw(st.sampled_from([name for name, _ in pairs]))
        left = 2 * len(pairs) - 1 - len(name.encode()) - 4
        pairs[:0] = [(name, "1" * left)] if left > 0 else []
    space = {"compact": st.just(""), "fitted": st.just(""), "spaced": st.just(" "), "any": SPACES}
    between = data.draw(st.lists(space[style], min_size=2 * len(pairs), max_size=2 * len(pairs)))
    inner = ",".join(
        f'{between[2 * i] if i else ""}"{name}":{between[2 * i + 1]}{value}'
        for i, (name, value) in enumerate(pairs)
    )
    body = f"{{{inner}}}".encode()
    found = read(body)
    assert isinstance(found, str) == holds_a_name_twice(body)
    assert isinstance(found, dict) or "appears twice" in found


@pytest.mark.parametrize("words", ["hello", WORDS])
@pytest.mark.parametrize("style", ["compact", "spaced"])
@pytest.mark.parametrize("count", range(13))
def test_no_name_of_a_usual_body_is_read_twice(monkeypatch, words, style, count):
    monkeypatch.setattr(module, "_refuse_duplicates", None)
    names = ["temperature", "max_tokens", "top_p", "n", "user", "stop", "seed", "logprobs",
             "tool_choice", "store", "a", "b"]  # fmt: skip
    more = [(name, 1) for name in names[:count]]
    messages = [{"role": "user", "content": f'{words} "messages": null'}]
    pairs = [("model", "m"), ("messages", messages), ("tools", TOOLS), *more]
    assert parse_chat(written(pairs, style)).model == "m"
    pairs[1] = ("input", "hello")
    assert parse_members(written(pairs, style)).keys() == dict(pairs).keys()


def test_a_duplicate_as_long_as_the_usual_spaces_is_refused():
    with pytest.raises(InvalidRequest, match="twice"):
        parse_chat(b'{"model":"m","messages":[{}],"n":12,"n":2,"user":"x"}')


@pytest.mark.parametrize("body", [b'{"model":"\xff","messages":[{}]}', b'{"\xff":1}'])
def test_names_that_are_no_utf8_are_refused(body):
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parse_chat(body)


def test_a_splice_of_a_long_body_copies_nothing_of_the_messages():
    messages = [{"role": "user", "content": WORDS}]
    sent = written([("model", "a"), ("messages", messages), ("t", 1.5), ("z", '\x00"')], "spaced")
    chat = parse_chat(sent)
    out = chat.spliced({"model": msgspec.Raw(b'"other"'), "new": msgspec.Raw(b"[1]")})
    assert isinstance(out, Spliced)
    assert any(isinstance(part, memoryview) and len(part) > len(WORDS) for part in out.parts)
    assert len(out) == len(bytes(out))
    pairs = json.loads(bytes(out), object_pairs_hook=list)
    assert [name for name, _ in pairs] == ["model", "messages", "t", "z", "new"]
    assert json.loads(bytes(out)) == json.loads(sent) | {"model": "other", "new": [1]}


@given(TURNS, st.sampled_from(["compact", "spaced", "odd"]))
def test_a_long_body_has_one_size_whichever_way_it_is_read(turns, style):
    messages = [{"role": "user", "content": WORDS}, *turns]
    body = written([("model", "m"), ("messages", messages), ("tools", TOOLS)], style)
    whole = ChatRequest(body, read_object(body)[0], None, "m", None, 1, False, False)
    assert measure_chat(parse_chat(body)) == measure_chat(whole)


def outcome(body):
    """All that a request's body is read as, or why it is refused."""
    try:
        chat = parse_chat(body)
    except InvalidRequest as error:
        return str(error)
    members = {name: bytes(raw) for name, raw in chat.members.items()}
    changed = chat.spliced({"model": msgspec.Raw(b'"other"')})
    sent = bytes(chat.spliced({})), bytes(changed)
    return members, chat.model, chat.choices, measure_chat(chat), features_of(chat), sent


@given(
    st.lists(st.tuples(NAMES, VALUES), max_size=6),
    TURNS,
    st.sampled_from(["compact", "spaced", "odd"]),
    st.sampled_from([b"", b"}", b'"', b"[]", b"\xff"]),
)
def test_a_view_of_what_was_read_is_taken_as_a_body_of_its_own(pairs, turns, style, end):
    messages = [{"role": "user", "content": WORDS}, *turns]
    body = written([*pairs, ("messages", messages), ("tools", TOOLS)], style) + end
    read = b'POST {"a":' + body + b'],"n":2}'
    assert outcome(memoryview(read)[10 : 10 + len(body)]) == outcome(body)


def test_the_end_of_a_view_of_long_messages_is_found():
    pairs = [("model", "m"), ("messages", [{"content": WORDS}]), ("tools", TOOLS * 100), ("n", 1)]
    body = written(pairs, "spaced")
    found = split_messages(memoryview(body + b"]}")[: len(body)])
    assert found is not None
    assert json.loads(bytes(found[0]["messages"])) == pairs[1][1]


def test_a_view_that_is_not_changed_is_sent_uncopied():
    body = memoryview(written([("messages", [{"content": WORDS}])], "compact"))
    assert parse_chat(body).spliced({}).parts[0] is body


def test_a_name_may_be_any_text():
    assert module.parse_members(b'{"\\u0000":1,"":2,"a\\"b":3}').keys() == {"\0", "", 'a"b'}
