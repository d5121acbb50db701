from __future__ import annotations

import json
import string

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from tokenhub.core.chat import parse_chat
from tokenhub.gateway.features import LOOKED_AT, features_of


def features(*texts, **members):
    messages = [{"role": "user", "content": text} for text in texts]
    body = {"model": "auto", "messages": messages} | members
    return asdict(features_of(parse_chat(json.dumps(body, ensure_ascii=False).encode())))


def test_they_tell_kinds_of_prompts_apart():
    plain = features("Please tell me a story.")
    code = features("Fix this:\n```python\nx = {1: 2}\n```")
    assert code["code"] == 2
    assert code["equations"] > plain["equations"]
    assert code["lines"] > plain["lines"]
    assert features("What? Why?")["questions"] == 2
    assert features("12345678")["digits"] > plain["digits"]
    assert features("Ärger über Öl")["non_ascii"] > 0


def test_conversations_and_tools():
    tool = {"type": "function", "function": {"name": "f"}}
    other = {"type": "function", "function": {"name": "g"}}
    one = features("a", "b", tools=[tool])
    assert (one["messages"], one["tools"]) == (2, 1)
    assert one["tool_set"] != features("a", "b", tools=[other])["tool_set"]
    assert one["tool_set"] == features("quite another text", tools=[tool])["tool_set"]
    assert features("a", response_format={"type": "json_object"})["json"] == 1


@given(st.text(max_size=3 * LOOKED_AT))
def test_they_are_what_counting_one_by_one_finds(text):
    raw = json.dumps([{"role": "user", "content": text}], ensure_ascii=False).encode()
    chat = parse_chat(b'{"model": "auto", "messages": ' + raw + b"}")
    looked = raw[:LOOKED_AT]
    expected = {
        "version": 2,
        "bytes": len(raw),
        "messages": looked.count(b'"role"'),
        "digits": sum(byte in b"0123456789" for byte in looked),
        "upper": sum(byte in string.ascii_uppercase.encode() for byte in looked),
        "non_ascii": sum(byte > 127 for byte in looked),
        "lines": looked.count(b"\\n"),
        "questions": looked.count(b"?"),
        "code": looked.count(b"```"),
        "braces": looked.count(b"{"),
        "equations": looked.count(b"="),
        "tools": 0,
        "tool_set": 0,
        "json": 0,
    }
    assert asdict(features_of(chat)) == expected
