"""/admin/v1: request log, audit trail, live events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tokenhub.core.errors import InvalidRequest
from tokenhub.telemetry.events import TYPES
from tokenhub.telemetry.journal import Filter, status_range
from tokenhub.web.admin.budget import moment
from tokenhub.web.admin.moments import rfc3339
from tokenhub.web.admin.paging import MAX_LIMIT, query_of, whole
from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from tokenhub.telemetry.audit import Audit
    from tokenhub.telemetry.events import EventBus
    from tokenhub.telemetry.journal import Journal
    from tokenhub.telemetry.transcripts import Transcripts
    from tokenhub.web.http import Request, Response

EVENT_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
CONNECTED = b'event: connected\ndata: {"status":"ok"}\n\n'


class ObserveAdmin:
    """What happened, and what is happening."""

    def __init__(
        self, journal: Journal, transcripts: Transcripts, audit: Audit, bus: EventBus
    ) -> None:
        self._journal = journal
        self._transcripts = transcripts
        self._audit = audit
        self._bus = bus

    async def logs(self, request: Request, _: None) -> Response:
        """The request log, newest first."""
        query = query_of(
            request, "limit", "offset", "since", "until", "model", "provider", "status", "key"
        )
        status = query.get("status", "")
        try:
            status_range(status or "200")
        except ValueError:
            raise InvalidRequest(
                "`status` must be a status (429), a class (5xx) or `error`.", param="status"
            ) from None
        wanted = Filter(
            model=query.get("model", ""),
            provider=query.get("provider", ""),
            key=query.get("key", ""),
            status=status,
            since_ms=moment(query, "since", 0),
            until_ms=moment(query, "until", 0),
        )
        limit = whole(query, "limit", 100, 1, MAX_LIMIT)
        offset = whole(query, "offset", 0, 0, 10**9)
        rows = await self._journal.list(wanted, limit, offset)
        return json_answer({"logs": rows, "dropped": self._journal.dropped})

    async def log(self, request: Request, _: None) -> Response:
        """One request with its attempts, and with its prompt and answer where they are kept."""
        found = await self._journal.get(request.params["id"])
        for attempt in found["attempts"]:
            attempt["timestamp"] = rfc3339(attempt.pop("started_ms"))
        content = await self._transcripts.get(found["request_id"])
        return json_answer(found if content is None else found | {"content": content})

    async def audit(self, request: Request, _: None) -> Response:
        """The audit trail, newest first."""
        query = query_of(request, "limit", "offset", "action", "resource", "outcome")
        limit = whole(query, "limit", 100, 1, MAX_LIMIT)
        offset = whole(query, "offset", 0, 0, 10**9)
        equal = {name: query[name] for name in ("action", "resource", "outcome") if name in query}
        return json_answer({"logs": await self._audit.list(limit, offset, **equal)})

    async def audit_verify(self, request: Request, _: None) -> Response:
        """Whether the audit trail is as it was written."""
        query_of(request)
        rows, broken = await self._audit.verify()
        answer: dict[str, Any] = {"ok": broken is None, "rows": rows}
        if broken is not None:
            answer |= {"broken_row": broken.seq, "reason": broken.reason}
        return json_answer(answer)

    async def events(self, request: Request, _: None) -> None:
        """Live events until the client leaves or the server stops."""
        query = query_of(request, "type", "last_event_id")
        types = [name for name in query.get("type", "").split(",") if name]
        for name in types:
            if name not in TYPES:
                raise InvalidRequest(
                    f"There are no `{name[:64]}` events.",
                    param="type",
                    hint=f"Types: {', '.join(TYPES)}.",
                )
        last = request.headers.get(b"last-event-id", b"").decode("latin-1")
        subscription = self._bus.subscribe(last or query.get("last_event_id", ""), types)
        stream = request.open_stream(200, EVENT_HEADERS)
        try:
            stream.write(CONNECTED)
            while (frames := await subscription.take()) is not None:
                stream.write(frames)
                await stream.drain()
            stream.end()
        except asyncio.CancelledError:
            stream.abort()
            raise
        finally:
            subscription.close()
