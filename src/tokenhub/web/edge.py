"""One handler for every request: match the route, check who calls, run it, render its error.

Authorisation looks at the matched route object, never at the text of the URL.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.errors import Forbidden, HubError, Unauthorized
from tokenhub.web.answers import NATIVE, OPENAI, PRIVATE, error_answer
from tokenhub.web.gate import Gated
from tokenhub.web.http import Reply, Request, Response, render_error
from tokenhub.web.match import Matcher

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenhub.access.admin_token import AdminToken
    from tokenhub.access.keys import Grant, Keys
    from tokenhub.access.limits import AddressLimiter

log = logging.getLogger(__name__)

Handler = Callable[[Request, Any], Coroutine[Any, Any, Reply | None]]

PUBLIC = "public"  # anybody
ADMIN = "admin"  # the admin token
ANY_KEY = "key"  # a valid API key, whatever its scopes
SCOPES = ("chat", "plan", "embeddings")  # a valid API key with that scope

V1_BODY = 10 * 2**20
# Of what anybody may have repeated to him: lines of answers are kept (``head.field_lines``).
MAX_ECHOED = 1024
ADMIN_BODY = 2 * 2**20


class Route(msgspec.Struct, frozen=True):
    """One row of the URL table.

    ``access`` is PUBLIC, ADMIN, ANY_KEY or a scope. ``handler(request, caller)`` gets the Grant
    for key routes, else None. ``spends``: the handler may cost money, so it must belong to a
    ``Gated``, which books it.
    """

    method: str
    path: str
    handler: Handler
    access: str
    dialect: str = NATIVE
    spends: bool = False
    max_body: int = ADMIN_BODY


class Edge:
    """Routes, authorisation and errors; everything else happens behind a handler.

    Args:
        routes: the URL table.
        admin_routes: makes the part of it under ``/admin/``, when that is first asked for.
    """

    def __init__(
        self,
        routes: Iterable[Route],
        keys: Keys,
        admin_token: AdminToken,
        *,
        admin_routes: Callable[[], Iterable[Route]] | None = None,
        v1_limiter: AddressLimiter | None = None,
        admin_limiter: AddressLimiter | None = None,
        on_refused: Callable[[Request, str], None] | None = None,
        cors_origins: frozenset[bytes] = frozenset(),
    ) -> None:
        self._keys = keys
        self._admin_token = admin_token
        self._v1_limiter = v1_limiter
        self._admin_limiter = admin_limiter
        self._on_refused = on_refused
        self._cors_origins = cors_origins
        self._changes: set[asyncio.Task[Reply | None]] = set()
        self._matcher: Matcher[Route] = Matcher()
        self._enter(routes)
        if admin_routes is not None:
            self._matcher.later("/admin/", lambda: self._enter(admin_routes()))

    def _enter(self, routes: Iterable[Route]) -> None:
        for route in routes:
            _check(route)
            if route.access == ADMIN and route.method != "GET":
                changing = functools.partial(self._to_its_end, route.handler)
                route = msgspec.structs.replace(route, handler=changing)  # noqa: PLW2901
            self._matcher.add(route.method, route.path, route)

    @property
    def handler(self) -> Callable[[Request], Coroutine[Any, Any, Reply | None]]:
        """Answers a request: None when the handler streamed its answer.

        Raises:
            HubError: it gets no further; ``failed`` makes the answer of it.
        """
        return self._for_browsers if self._cors_origins else self._handle

    def _handle(self, request: Request) -> Coroutine[Any, Any, Reply | None]:
        route, caller = request.route or self._admit(request)
        return route.handler(request, caller)

    async def _for_browsers(self, request: Request) -> Reply | None:
        try:
            answer = await self._handle(request)
        except HubError as error:
            answer = error_answer(error, self._dialect(request), request)
        origin = request.headers.get(b"origin")
        if answer is None or origin not in self._cors_origins:
            return answer
        headers = (
            *answer.headers,
            (b"access-control-allow-origin", origin),
            (b"vary", b"origin"),
            (b"access-control-expose-headers", b"*"),
        )
        return Response(answer.status, answer.body, headers, answer.content_type)

    def max_body(self, request: Request) -> int:
        """How large the body of this request may be, asked before it is read.

        Asked again when it has come: its sender may have lost the right to send it meanwhile.

        Raises:
            HubError: nobody may send this here, so that no body is read for nothing.
        """
        admitted = self._admit(request) if request.route is None else self._admit_still(request)
        return admitted[0].max_body

    def failed(self, request: Request | None, error: Exception) -> Response:
        """The answer to an error outside a handler, or to one that no handler expected."""
        if not isinstance(error, HubError):
            request_id = request.id if request is not None else ""
            log.error("a handler failed", exc_info=error, extra={"request_id": request_id})
            error = HubError(
                "The server failed while it handled this request.",
                code="internal_error",
                hint="The server's log has the details under this request id.",
            )
        if request is None:
            return render_error(None, error)
        return error_answer(error, self._dialect(request), request)

    async def _to_its_end(self, handler: Handler, request: Request, caller: None) -> Reply | None:
        """A change goes on when its client leaves: what is stored and what is in memory agree."""
        task = asyncio.get_running_loop().create_task(handler(request, caller))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    def _dialect(self, request: Request) -> str:
        """The error dialect of a request: its route's, or that of where it knocked."""
        try:
            return self._matcher.match(request.method, request.path)[0].dialect
        except HubError:
            return OPENAI if request.path.startswith("/v1/") else NATIVE

    def _admit(self, request: Request) -> tuple[Route, Grant | None]:
        """The route, and who calls; kept with the request, so that it is asked once."""
        kept: tuple[tuple[Route, Grant], dict[str, str]] | None = request.head.kept
        if kept is not None:
            # An equal head came before: it asks for the same, with the same key.
            found, request.params = kept
            if self._v1_limiter is not None:
                self._v1_limiter.check(request.peer, request.headers)
            route, grant = found
            if not self._keys.renew(grant, request.at_ms):
                found = route, self._authenticate(route, request)
            request.route = found
            return found
        if request.method == "OPTIONS" and self._cors_origins:
            return _PREFLIGHT, None
        route, request.params = self._matcher.match(request.method, request.path)
        request.route = admitted = route, self._authorise(route, request)
        return admitted

    def _admit_still(self, request: Request) -> tuple[Route, Grant | None]:
        """The same for one that was admitted; it counts once for its address."""
        route, grant = request.route
        if route.access == ADMIN:
            self._admin(request.headers.get(b"authorization"), request)
        elif grant is not None and not self._keys.renew(grant, request.at_ms):
            grant = self._authenticate(route, request)
        request.route = admitted = route, grant
        return admitted

    def _authorise(self, route: Route, request: Request) -> Grant | None:
        headers = request.headers
        if route.access == PUBLIC:
            return None
        if route.access == ADMIN:
            if self._admin_limiter is not None:
                self._admin_limiter.check(request.peer, headers)
            self._admin(headers.get(b"authorization"), request)
            return None
        if self._v1_limiter is not None:
            self._v1_limiter.check(request.peer, headers)
        return self._authenticate(route, request)

    def _authenticate(self, route: Route, request: Request) -> Grant:
        headers = request.headers
        grant = self._keys.authenticate(headers.get(b"authorization"), headers.get(b"x-api-key"))
        if route.access != ANY_KEY and route.access not in grant.scopes:
            raise Forbidden(
                f"This key has no scope `{route.access}`.",
                hint="`tokenhubctl apikey edit <id>` changes the scopes of a key.",
            )
        request.head.kept = (route, grant), request.params
        return grant

    def _admin(self, authorization: bytes | None, request: Request) -> None:
        kind, _, token = (authorization or b"").partition(b" ")
        if kind.lower() == b"bearer" and token and self._admin_token.verify(token.strip()):
            return
        if self._on_refused is not None:
            self._on_refused(request, "missing" if not token else "wrong")
        raise Unauthorized(
            "The admin token is missing." if not token else "The admin token is not valid.",
            code="admin_token_required" if not token else "invalid_admin_token",
            hint="Send `Authorization: Bearer $(tokenhubctl admin-token)`.",
            headers=((b"www-authenticate", b"Bearer"),),
        )


def _check(route: Route) -> None:
    if route.access not in {PUBLIC, ADMIN, ANY_KEY, *SCOPES}:
        raise ValueError(f"{route.path}: nobody is named who may call it")
    if route.path.startswith("/v1/") and route.method != "GET" and not route.spends:
        raise ValueError(f"{route.path}: a route that could spend must pass the gate")
    if route.spends and not isinstance(getattr(route.handler, "__self__", None), Gated):
        raise ValueError(f"{route.path}: only the gateway's handlers may spend, they book it")
    if route.spends and route.access not in SCOPES:
        raise ValueError(f"{route.path}: money needs a key with a scope")


async def _preflight(request: Request, _: None) -> Response:
    headers = [
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", b"authorization, content-type, x-api-key, x-request-id"),
        (b"access-control-max-age", b"300"),
        *PRIVATE,
    ]
    asked = request.headers.get(b"access-control-request-headers")
    if asked and len(asked) <= MAX_ECHOED:
        headers[1] = (b"access-control-allow-headers", asked)
    return Response(204, b"", headers)


_PREFLIGHT = Route("OPTIONS", "*", _preflight, PUBLIC)
