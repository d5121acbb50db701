"""Decode an admin body into a Struct; errors name the field, the reason and the way out."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from tokenhub.core.errors import InvalidRequest
from tokenhub.core.members import parse_members
from tokenhub.core.similar import similar

T = TypeVar("T", bound=msgspec.Struct)

_UNKNOWN = r"(?s)Object contains unknown field `(.*)`$"
_AT = r"(?s)^(.*) - at `\$\.(.*)`$"
_MISSING = r"Object missing required field `(.*)`$"


def decode_fields(body: bytes | memoryview, kind: type[T]) -> T:
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
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None


def _named(text: str, kind: type[msgspec.Struct]) -> InvalidRequest:
    reason, at = text, ""
    if match := re.match(_AT, text):
        reason, at = match[1], match[2]
    inside = f"{at}." if at else ""
    if match := re.match(_UNKNOWN, reason):
        name = inside + match[1][:64]
        return InvalidRequest(
            f"Unknown field `{name}`.",
            param=name,
            code="unknown_parameter",
            hint=_hint(name, at, kind),
        )
    if match := re.match(_MISSING, reason):
        name = inside + match[1]
        return InvalidRequest(
            f"The field `{name}` is missing.", param=name, code="missing_required_parameter"
        )
    if at:
        reason = reason[:1].lower() + reason[1:]
        return InvalidRequest(
            f"The field `{at}` is wrong: {reason}.", param=at, code="invalid_type"
        )
    return InvalidRequest(f"The body does not fit: {text}.", code="invalid_type")


def _hint(name: str, at: str, kind: type[msgspec.Struct]) -> str | None:
    if at:
        return None
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    near = similar(name, known)
    return f"Did you mean `{near[0]}`?" if near else f"Known fields: {', '.join(known)}."
