"""Decode an admin body into a Struct; errors name the field, the reason and the way out."""

from __future__ import annotations

import difflib
import re
from typing import TypeVar

import msgspec

from tokenhub.core.chat import parse_members
from tokenhub.core.errors import InvalidRequest

T = TypeVar("T", bound=msgspec.Struct)

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`$", re.DOTALL)
_AT = re.compile(r"^(.*) - at `\$\.(.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`$")


def decode_fields(body: bytes, kind: type[T]) -> T:
    """Decode ``body`` (a JSON object) as ``kind``, a Struct that forbids unknown fields.

    Raises:
        InvalidRequest: not JSON, a duplicate, missing or unknown member, or a wrong type.
    """
    parse_members(body or b"{}")
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise _named(str(error), kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None


def _named(text: str, kind: type[msgspec.Struct]) -> InvalidRequest:
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    if match := _UNKNOWN.match(text):
        name = match[1][:64]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known fields: {', '.join(known)}."
        return InvalidRequest(f"Unknown field `{name}`.", param=name, hint=hint)
    if match := _MISSING.match(text):
        return InvalidRequest(f"The field `{match[1]}` is missing.", param=match[1])
    if match := _AT.match(text):
        reason = match[1][:1].lower() + match[1][1:]
        return InvalidRequest(f"The field `{match[2]}` is wrong: {reason}.", param=match[2])
    return InvalidRequest(f"The body does not fit: {text}.")
