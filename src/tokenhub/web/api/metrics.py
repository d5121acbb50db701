"""/metrics: Prometheus text."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

from tokenhub.telemetry.metrics import CONTENT_TYPE
from tokenhub.web.http import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokenhub.telemetry.metrics import Gauge
    from tokenhub.telemetry.observer import Observer
    from tokenhub.web.http import Request

_SLICE = 500  # lines made before others get their turn on the loop, about 1 ms


class MetricsApi:
    """Everything a scraper may see.

    Args:
        observer: counts finished requests.
        gauges: the present state of everything else.
    """

    def __init__(self, observer: Observer, gauges: Callable[[], Iterable[Gauge]]) -> None:
        self._observer = observer
        self._gauges = gauges

    async def scrape(self, request: Request, _: None) -> Response:
        """All metrics."""
        del request
        self._observer.fold()
        lines = self._observer.metrics.lines(self._gauges())
        parts = []
        while part := "".join(islice(lines, _SLICE)):
            parts.append(part)
            await asyncio.sleep(0)
        headers = [(b"cache-control", b"no-store")]
        return Response(200, "".join(parts).encode(), headers, CONTENT_TYPE)
