"""What the demo model says: a pure function of the request.

Its tokenizer is stated so that anyone can check its counts: **a token is a word, a run of
characters that are not white space, with the white space before it.** A message adds one token,
an image 85, a tool the words of its JSON.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

_TOKEN = re.compile(r"\s*\S+")
_QUOTED = 12  # words of the prompt that are said back
_MAX_DEPTH = 8  # of a schema that is filled in
IMAGE_TOKENS = 85


class Prompt(msgspec.Struct, kw_only=True):
    """One request, in no dialect: what the answer and its price depend on.

    ``text`` is the last user message, ``result`` the text of a tool's result when that came last.
    ``tools`` are (name, JSON schema). ``choice`` is "auto", "none", "required" or a tool's name.
    ``schema`` is what a JSON answer must fit ({} = any object), None = answer in words.
    """

    model: str
    text: str = ""
    result: str | None = None
    tokens: int = 0
    tools: list[tuple[str, Any]] = []
    choice: str = "auto"
    parallel: bool = True
    schema: Any = None
    max_tokens: int | None = None
    wish: Any = None
    stream: bool = False
    show_usage: bool = True


class Call(msgspec.Struct, frozen=True):
    """A tool call; ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str


class Answer(msgspec.Struct, kw_only=True):
    """What is said, in tokens: joined they are the text."""

    tokens: list[str] = []
    reasoning: list[str] = []
    calls: list[Call] = []
    finish: str = "stop"

    @property
    def text(self) -> str:
        """The tokens joined."""
        return "".join(self.tokens)

    @property
    def size(self) -> int:
        """Tokens to pay for: text, reasoning, and the words of every call."""
        spoken = len(self.tokens) + len(self.reasoning)
        return spoken + sum(call_size(call) for call in self.calls)


def count(text: str) -> int:
    """Tokens of a text."""
    return len(text.split())


def call_size(call: Call) -> int:
    """Tokens of a tool call: its name and the words of its arguments."""
    return 1 + count(call.arguments)


def answer_to(prompt: Prompt, *, length: int = 0, reasoning: int = 0) -> Answer:
    """The answer, cut at the prompt's ``max_tokens``.

    Args:
        prompt: what was asked.
        length: answer with exactly so many tokens; 0 = as the text comes.
        reasoning: so many tokens of reasoning before it.
    """
    thought = [f" step-{n}" for n in range(1, reasoning + 1)]
    calls = _calls(prompt)
    if calls and not length:
        return Answer(reasoning=thought, calls=calls, finish="tool_calls")
    tokens = _stretch(_TOKEN.findall(_words(prompt)), length)
    room = None if prompt.max_tokens is None else max(prompt.max_tokens - reasoning, 0)
    if room is not None and len(tokens) > room:
        return Answer(reasoning=thought[: prompt.max_tokens], tokens=tokens[:room], finish="length")
    return Answer(reasoning=thought, tokens=tokens)


def _words(prompt: Prompt) -> str:
    if prompt.schema is not None:
        return msgspec.json.encode(fill(prompt.schema or {"type": "object"}, prompt.text)).decode()
    if prompt.result is not None:
        return f"The tool answered: {_cut(prompt.result)}"
    said = _cut(prompt.text)
    return (
        "This is TokenHub's demo model; it runs offline and knows nothing."
        f' Your message has {count(prompt.text)} words: "{said}"'
    )


def _cut(text: str) -> str:
    words = text.split()
    return " ".join(words[:_QUOTED]) + (" …" if len(words) > _QUOTED else "")


def _stretch(tokens: list[str], length: int) -> list[str]:
    if not length:
        return tokens
    return tokens[:length] + [f" word-{n}" for n in range(len(tokens) + 1, length + 1)]


def _calls(prompt: Prompt) -> list[Call]:
    wanted = _wanted(prompt)
    if not prompt.parallel:
        wanted = wanted[:1]
    return [
        Call(
            f"call_demo_{number}",
            name,
            msgspec.json.encode(_arguments(schema, prompt.text)).decode(),
        )
        for number, (name, schema) in enumerate(wanted)
    ]


def _wanted(prompt: Prompt) -> list[tuple[str, Any]]:
    """The tools to call: the forced one, else those the prompt names or, for "tool", the first."""
    if prompt.choice == "none" or not prompt.tools:
        return []
    forced = [tool for tool in prompt.tools if tool[0] == prompt.choice]
    if forced:
        return forced[:1]
    # After a tool's result it is time to answer, or a client's loop would never end.
    text = "" if prompt.result is not None else prompt.text.lower()
    named = [tool for tool in prompt.tools if tool[0].lower() in text]
    if named:
        return named
    return prompt.tools[:1] if prompt.choice == "required" or "tool" in text else []


def _arguments(schema: Any, text: str) -> dict[str, Any]:
    value = fill(schema, text)
    return value if isinstance(value, dict) else {}


def fill(schema: Any, text: str) -> Any:
    """A value that fits the schema's types, required members, enums and lower bounds."""
    return _fill(schema, schema, _cut(text) or "demo", 0)


def _fill(schema: Any, root: Any, text: str, depth: int) -> Any:
    schema = _resolve(schema, root)
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if schema.get("enum"):
        return schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(name), list) and schema[name]:
            return _fill(schema[name][0], root, text, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0] if kind else "string"
    return _of_kind(kind, schema, root, text, depth)


def _of_kind(kind: Any, schema: dict[str, Any], root: Any, text: str, depth: int) -> Any:
    if kind == "object":
        members = schema.get("properties") or {}
        names = [name for name in schema.get("required") or [] if isinstance(name, str)]
        return {name: _fill(members.get(name, {}), root, text, depth + 1) for name in names}
    if kind == "array":
        size = min(_whole(schema.get("minItems"), 0), 16)
        return [_fill(schema.get("items") or {}, root, text, depth + 1) for _ in range(size)]
    if kind in {"integer", "number"}:
        return _whole(schema.get("minimum", schema.get("exclusiveMinimum", 0)), 0) + 1
    if kind == "boolean":
        return True
    return None if kind == "null" else _text(schema, text)


def _text(schema: dict[str, Any], text: str) -> str:
    short, long = _whole(schema.get("minLength"), 0), _whole(schema.get("maxLength"), 1000)
    return text.ljust(min(short, 1000), ".")[: max(long, 0)]


def _resolve(schema: Any, root: Any) -> Any:
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            break
        schema = _pointed(root, schema["$ref"])
    return schema


def _pointed(root: Any, pointer: str) -> Any:
    value = root
    for part in pointer.removeprefix("#").split("/")[1:]:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _whole(value: Any, otherwise: int) -> int:
    return int(value) if isinstance(value, int | float) and abs(value) < 1e9 else otherwise
