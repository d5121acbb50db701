"""Answers as bytes: JSON bodies, and every error in the dialect of its route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.errors import HubError, PaymentRequired, RateLimited
from tokenhub.web.http import Response

if TYPE_CHECKING:
    from tokenhub.web.http import Request

_encode = msgspec.json.Encoder(decimal_format="number").encode

NATIVE = "native"
OPENAI = "openai"

PRIVATE = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


def json_answer(value: Any, status: int = 200) -> Response:
    """A JSON answer; Decimals become numbers, exactly."""
    return Response(status, _encode(value), list(PRIVATE))


def error_answer(error: HubError, dialect: str, request: Request) -> Response:
    """``error`` as the client of a route expects it.

    OpenAI dialect: ``{"error": {message, type, param, code, hint, request_id, ...}}``; a refused
    budget is 429 ``insufficient_quota`` there, as its SDKs know it. Native and admin routes:
    ``{"error": <text>, "code", "hint", "param", "request_id", ...}``.
    """
    status = error.status
    common: dict[str, Any] = {"code": error.code}
    if error.hint:
        common["hint"] = error.hint
    common["request_id"] = request.id
    common |= error.extra
    if dialect == OPENAI:
        if isinstance(error, PaymentRequired):
            status = 429
        detail = {"message": error.message, "type": error.type, "param": error.param}
        body = {"error": detail | common}
    else:
        if error.param:
            common["param"] = error.param
        body = {"error": error.message} | common
    headers = [*error.headers, *PRIVATE]
    # The official SDKs retry 409, 429 and 5xx by themselves, which would multiply our own tries.
    said = any(name == b"x-should-retry" for name, _ in headers)
    if not said and not isinstance(error, RateLimited):
        headers.append((b"x-should-retry", b"false"))
    return Response(status, _encode(body), headers)
