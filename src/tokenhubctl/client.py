"""The admin API as the commands see it: a call is JSON in, JSON out, or an error they can show."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenhubctl import http1
from tokenhubctl.connect import Limits
from tokenhubctl.errors import ApiError, NoCredential
from tokenhubctl.sse import EventReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenhubctl.address import Endpoint
    from tokenhubctl.config import Found
    from tokenhubctl.http1 import Answer
    from tokenhubctl.sse import Event

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
MAX_SHOWN_BODY = 500


class Reply(NamedTuple):
    """A bare exchange: whatever the status was."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


class Client:
    """Speaks to one server with one kind of credential.

    Args:
        endpoint: the server.
        credentials: bearer tokens to try, best first; the next one is tried on 401.
        read_seconds: how long a silent server is waited for; streams wait for ever.
        debug: show each exchange on stderr, without credentials and bodies.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Sequence[Found],
        *,
        read_seconds: float = READ_SECONDS,
        debug: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._credentials = list(credentials)
        self._limits = Limits(min(CONNECT_SECONDS, read_seconds), read_seconds)
        self._debug = debug

    def call(self, method: str, target: str, body: object = None) -> Any:
        """The JSON answer.

        Args:
            method: the HTTP method.
            target: encoded path and query, from ``address``.
            body: bytes are sent as they are, another value as JSON, None means no body.

        Raises ApiError for a status of 300 and above or an answer that is not JSON, Unreachable
        for no answer.
        """
        with self._open(method, target, body, self._limits) as answer:
            raw = answer.read()
        try:
            return json.loads(raw) if raw else {}
        except (ValueError, RecursionError) as error:
            raise ApiError(
                answer.status,
                f"The server's answer is not JSON: {excerpt(raw)}",
                code="not_json",
                hint=http1.NOT_TOKENHUB,
                request_id=answer.headers.get("x-request-id", ""),
            ) from error

    def raw(self, method: str, target: str, body: object = None) -> bytes:
        """The body of the answer as it came; errors as in ``call``."""
        with self._open(method, target, body, self._limits) as answer:
            return answer.read()

    def exchange(self, method: str, target: str) -> Reply:
        """One request with no error for any status; for looking at a server."""
        started = time.perf_counter()
        using = self._credentials[0] if self._credentials else None
        with self._send(method, target, None, self._limits, {}, using) as answer:
            body = answer.read()
            return Reply(answer.status, answer.headers, body, time.perf_counter() - started)

    def events(self, target: str, last_id: str = "") -> Iterator[Event]:
        """The events of a stream until it ends; ``last_id`` resumes where one broke off.

        Raises as ``call`` does; an answer that is no event stream is an ApiError.
        """
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        limits = Limits(self._limits.connect, None)
        with self._open("GET", target, None, limits, headers) as answer:
            kind = answer.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise ApiError(
                    answer.status,
                    f"The server's answer is no event stream but {kind or 'nameless'}.",
                    code="not_events",
                    hint=http1.NOT_TOKENHUB,
                )
            reader = EventReader(last_id)
            for data in answer.chunks():
                yield from reader.feed(data)

    def _open(
        self,
        method: str,
        target: str,
        body: object,
        limits: Limits,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """A successful answer with its headers read. 401 moves on to the next credential."""
        while True:
            using = self._credentials[0] if self._credentials else None
            answer = self._send(method, target, body, limits, dict(headers or {}), using)
            if answer.status < 300:
                return answer
            with answer:
                error = to_error(answer, answer.read())
            if error.status != 401 or error.code == "wrong_password":
                raise error
            self._refused(error, using)

    def _refused(self, error: ApiError, using: Found | None) -> None:
        """Drop the credential the server refused; raise when it was the last."""
        if using is None:
            raise NoCredential(
                "This server wants an admin token and none was found.", hint=HOW_TO_GET_IT
            ) from error
        if len(self._credentials) == 1:
            error.message = (
                f"The server refused the credential from {using.source}: {error.message}"
            )
            error.hint = error.hint or HOW_TO_GET_IT
            raise error
        print(
            f"note: the server refused the token from {using.source}; "
            f"trying {self._credentials[1].source}",
            file=sys.stderr,
        )
        del self._credentials[0]

    def _send(
        self,
        method: str,
        target: str,
        body: object,
        limits: Limits,
        headers: dict[str, str],
        using: Found | None,
    ) -> Answer:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        headers.setdefault("Accept", "application/json")
        if using is not None:
            headers["Authorization"] = f"Bearer {using.value}"
        answer = http1.request(self._endpoint, method, target, headers, data, limits)
        if self._debug:
            token = f" (token from {using.source})" if using else ""
            sent = f" {len(data)} bytes" if data is not None else ""
            print(f"> {method} {self._endpoint.url}{target}{sent}{token}", file=sys.stderr)
            request_id = answer.headers.get("x-request-id", "-")
            print(f"< {answer.status} request id {request_id}", file=sys.stderr)
        return answer


HOW_TO_GET_IT = (
    "Set TOKENHUB_ADMIN_TOKEN, or run on the server's machine: "
    'export TOKENHUB_ADMIN_TOKEN="$(tokenhubctl admin-token)"'
)


def to_error(answer: Answer, raw: bytes) -> ApiError:
    """The error in an answer: ours, OpenAI's shape, ``{"error": "text"}`` or plain text."""
    request_id = answer.headers.get("x-request-id", "")
    if 300 <= answer.status < 400:
        where = answer.headers.get("location", "elsewhere")
        return ApiError(
            answer.status,
            f"The server redirects to {where}; credentials are not sent along.",
            hint="Put the final address into TOKENHUB_URL.",
            request_id=request_id,
        )
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    found = body.get("error") if isinstance(body, dict) else None
    if isinstance(found, str):
        found = {**body, "message": found}
    if not isinstance(found, dict) or not found.get("message"):
        found = {"message": excerpt(raw) or f"HTTP status {answer.status} without a message"}
    return ApiError(
        answer.status,
        str(found["message"]),
        code=str(found.get("code") or ""),
        hint=str(found["hint"]) if found.get("hint") else None,
        request_id=str(found.get("request_id") or request_id),
        body=body,
    )


def excerpt(raw: bytes) -> str:
    """The beginning of a body, for a message."""
    text = raw.decode("utf-8", "replace").strip()
    return text if len(text) <= MAX_SHOWN_BODY else text[:MAX_SHOWN_BODY] + "…"
