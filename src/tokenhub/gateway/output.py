"""The native endpoint's answers: format the text, check it against the client's schema."""

from __future__ import annotations

import itertools
import re
from typing import Any, Literal

import msgspec

from tokenhub.core.errors import InvalidRequest, Unprocessable
from tokenhub.gateway.expansion import Expansion

# Texts, compiled when first used: few requests ask for a format.
_FENCE = r"(?s)```[a-zA-Z]*[ \t]*\n(.*?)\n?```"
_JSON_FENCE = r"(?si)```json[ \t]*\n(.*?)\n?```"
_HEADING = r"(?m)^[ \t]*#{1,6}[ \t]+"
_BULLET = r"(?m)^[ \t]*[*+-][ \t]+"
# Mark, where it opens, where it closes. One pattern for the pair would take quadratic time.
_EMPHASIS = tuple(
    (
        mark,
        rf"{re.escape(mark)}(?=[^\s*])",
        rf"(?<=[^\s*]){re.escape(mark)}",
    )
    for mark in ("**", "__", "*", "`")
)
_THINK, _END_THINK = "<think>", "</think>"

CHARS_PER_TOKEN = 4
SHOWN_FAULTS = 10


class OutputFormat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How the text of an answer is to look. 0 and "" change nothing.

    ``max_tokens`` cuts the text after so many times four characters; it does not limit what is
    generated (and paid).
    """

    type: Literal["", "json", "markdown", "text", "xml"] = ""
    schema: dict[str, Any] | None = None
    max_tokens: int = 0
    strip_think: bool = False

    def apply(self, text: str) -> str:
        """The text as wished."""
        if self.strip_think:
            text = _without_thinking(text)
        if self.type == "json":
            text = unfenced(text)
        elif self.type == "markdown":
            text = text.strip()
        elif self.type == "text":
            text = _plain(text)
        limit = self.max_tokens * CHARS_PER_TOKEN
        if limit and len(text) > limit and self.type != "json":
            text = text[:limit] + "..."
        return text


class Schema:
    """A JSON Schema, compiled; nothing it refers to is ever fetched."""

    def __init__(self, schema: Any, param: str) -> None:
        if not isinstance(schema, dict | bool):
            raise InvalidRequest(f"`{param}` must be a JSON Schema object.", param=param)
        import jsonschema_rs  # noqa: PLC0415  # 4 MB that many servers never need

        try:
            self._expansion = Expansion(schema)
            self._validator = jsonschema_rs.validator_for(
                schema,
                offline=True,
                # Without back-references and look-around a pattern cannot take exponential time.
                pattern_options=jsonschema_rs.RegexOptions(size_limit=1_000_000),
            )
        except (ValueError, RecursionError, jsonschema_rs.ValidationError) as error:
            reason = str(error).partition("\n")[0][:300]
            raise InvalidRequest(
                f"`{param}` is not a usable JSON Schema: {reason}.", param=param
            ) from None

    def check(self, text: str) -> None:
        """Check the JSON in ``text``.

        Raises:
            Unprocessable: it is no JSON, or does not fit; says where and why.
        """
        try:
            value = msgspec.json.decode(unfenced(text))
        except (msgspec.DecodeError, RecursionError) as error:
            raise Unprocessable(
                f"The model's answer is not JSON: {error}.",
                code="output_schema_validation_failed",
                hint="Ask for JSON in the prompt, or set `parameters.response_format`.",
            ) from None
        if not self._expansion.bears(value):
            raise Unprocessable(
                "The model's answer is nested too deeply to be checked against a schema that "
                "refers to itself in several places.",
                code="output_schema_validation_failed",
            )
        found = itertools.islice(self._validator.iter_errors(value), SHOWN_FAULTS)
        faults = [
            {
                "at": "".join(f"/{part}" for part in fault.instance_path) or "/",
                "rule": "/".join(str(part) for part in fault.schema_path),
                "message": fault.message[:300],
            }
            for fault in found
        ]
        if faults:
            raise Unprocessable(
                f"The model's answer does not fit the schema: at {faults[0]['at']}: "
                f"{faults[0]['message']}.",
                code="output_schema_validation_failed",
                extra={"faults": faults},
            )


def unfenced(text: str) -> str:
    """What stands in the first fence, a ``json`` one first; else the text."""
    found = re.search(_JSON_FENCE, text) or (
        re.search(_FENCE, text) if text.lstrip().startswith("```") else None
    )
    return (found[1] if found else text).strip()


def _without_thinking(text: str) -> str:
    kept, at = [], 0
    while (start := text.find(_THINK, at)) >= 0:
        kept.append(text[at:start])
        # A block that never ends (the answer was cut inside it) is thinking too.
        end = text.find(_END_THINK, start)
        if end < 0:
            return "".join(kept)
        at = end + len(_END_THINK)
        while text[at : at + 1].isspace():
            at += 1
    return "".join((*kept, text[at:]))


def _plain(text: str) -> str:
    text = re.sub(_BULLET, "", re.sub(_HEADING, "", text))
    return "\n".join(_unmarked(line).strip() for line in text.splitlines()).strip()


def _unmarked(line: str) -> str:
    for mark, opening, closing in _EMPHASIS:
        if mark not in line:
            continue
        opens, closes = re.compile(opening), re.compile(closing)
        kept, at = [], 0
        while (start := opens.search(line, at)) and (end := closes.search(line, start.end() + 1)):
            kept += [line[at : start.start()], line[start.end() : end.start()]]
            at = end.end()
        line = "".join((*kept, line[at:]))
    return line
