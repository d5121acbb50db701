from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhub.core.chat import parse_chat
from tokenhub.core.errors import InvalidRequest
from tokenhub.core.members import parse_members

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
NAMES = st.text(max_size=12).filter(
    lambda name: name not in {"model", "messages", "stream", "stream_options", "n", "max_tokens"}
)


def body(**members):
    return json.dumps({"model": "m", "messages": [{"role": "user"}]} | members).encode()


def test_what_routing_reads():
    options = {"include_usage": True}
    request = parse_chat(body(stream=True, stream_options=options, max_tokens=7, n=3))
    assert (request.model, request.stream, request.include_usage) == ("m", True, True)
    assert (request.max_tokens, request.choices) == (7, 3)


def test_the_new_name_of_the_limit_comes_first():
    assert parse_chat(body(max_tokens=7, max_completion_tokens=9)).max_tokens == 9
    assert parse_chat(body(max_tokens=7, max_completion_tokens=None)).max_tokens == 7


@given(st.dictionaries(NAMES, JSON, max_size=5), st.text(min_size=1, max_size=30))
def test_a_splice_changes_nothing_else(extra, name):
    sent = json.dumps({"model": "m", "messages": [{}]} | extra).encode()
    out = parse_chat(sent).spliced({"model": msgspec.Raw(msgspec.json.encode(name))})
    assert json.loads(out) == {"model": name, "messages": [{}]} | extra


def test_numbers_keep_every_digit_in_a_splice():
    sent = b'{"model":"m","messages":[{}],"seed":12345678901234567890123,"t":1.10}'
    out = parse_chat(sent).spliced({"model": msgspec.Raw(b'"x"')})
    assert b"12345678901234567890123" in out
    assert b"1.10" in out


def test_no_change_is_the_same_bytes():
    sent = b'{ "model" : "m", "messages": [ {} ] }'
    assert parse_chat(sent).spliced({}) is sent


@given(st.dictionaries(NAMES, JSON, max_size=4), st.integers(0, 3), st.booleans())
def test_a_member_that_stands_twice_is_refused_however_it_is_spaced(members, indent, compact):
    text = json.dumps(
        {"model": "m", "messages": [{}]} | members,
        indent=indent or None,
        separators=(",", ":") if compact and not indent else None,
    )
    assert parse_members(text.encode())
    doubled = text[:-1].rstrip() + ', "model": "other"}'
    with pytest.raises(InvalidRequest, match="twice"):
        parse_members(doubled.encode())


def test_members_inside_may_repeat():
    # They are the provider's to judge: we read none of them.
    assert parse_members(b'{"model": "m",  "metadata": {"a": 1, "a": 2}}')


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("model", 3),
        ("messages", "text"),
        ("messages", []),
        ("messages", {}),
        ("stream", "yes"),
        ("stream_options", [1]),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_completion_tokens", "9"),
        ("n", 0),
        ("n", 129),
    ],
)
def test_a_wrong_member_is_named(member, value):
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(body(**{member: value}))
    assert caught.value.param == member


@given(st.binary(max_size=80))
def test_any_bytes_are_parsed_or_refused(data):
    with contextlib.suppress(InvalidRequest):
        parse_chat(data)
