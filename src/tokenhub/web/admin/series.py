"""/admin/v1: statistics by window, and the time series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.core.errors import InvalidRequest
from tokenhub.core.fields import decode_fields
from tokenhub.telemetry.query import METRICS, Question
from tokenhub.telemetry.series import RetentionFields
from tokenhub.web.admin.budget import moment
from tokenhub.web.admin.paging import query_of, whole
from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.telemetry.observer import Observer
    from tokenhub.web.admin.audited import Auditor
    from tokenhub.web.http import Request, Response

MAX_STEP_MS = 366 * 86_400_000
_NAMES = {"model_id": "model", "provider_id": "provider", "step_ms": "step"}


class SeriesAdmin:
    """What requests came to, in numbers.

    Args:
        observer: has the numbers.
        key_name: an API key's name by its id.
        audit: rows for changes.
    """

    def __init__(self, observer: Observer, key_name: Callable[[str], str], audit: Auditor) -> None:
        self._observer = observer
        self._key_name = key_name
        self._audit = audit

    async def stats(self, request: Request, _: None) -> Response:
        """Figures of the last 1m, 5m, 1h and 24h; a window without requests is absent."""
        query_of(request)
        return json_answer(await self._observer.report(self._key_name))

    async def metrics(self, request: Request, _: None) -> Response:
        """Names of the metrics."""
        query_of(request)
        return json_answer({"metrics": list(METRICS)})

    async def query(self, request: Request, _: None) -> Response:
        """Points of one metric."""
        found = query_of(
            request, "metric", "model_id", "model", "provider_id", "provider", "start", "end",
            "step_ms", "step", "agg",
        )  # fmt: skip
        for name, short in _NAMES.items():
            if name in found and short in found:
                raise InvalidRequest(f"`{name}` and `{short}` mean the same; send one.", param=name)
        step = "step_ms" if "step_ms" in found else "step"
        asked = Question(
            metric=found.get("metric", ""),
            model=found.get("model_id", found.get("model", "")),
            provider=found.get("provider_id", found.get("provider", "")),
            start=moment(found, "start", 0),
            end=moment(found, "end", 0),
            step=whole(found, step, 0, 1, MAX_STEP_MS),
            aggregate=found.get("agg", ""),
        )
        return json_answer(await self._observer.query(asked))

    async def prune(self, request: Request, _: None) -> Response:
        """Delete points older than the retention, now."""
        query_of(request)
        await self._audit.noted(request, "tsdb.prune", "tsdb", "ok")
        deleted = await self._observer.prune()
        return json_answer({"deleted": deleted})

    async def retention(self, request: Request, _: None) -> Response:
        """How long points are kept."""
        query_of(request)
        return json_answer({"retention_days": self._observer.series.retention_days})

    async def set_retention(self, request: Request, _: None) -> Response:
        """Change how long points are kept, for good."""
        fields = decode_fields(request.body, RetentionFields)
        also = self._audit.entry(request, "tsdb.retention", "tsdb")
        await self._observer.series.set_retention(fields.days, also=also)
        return json_answer({"ok": True, "retention_days": fields.days})
