"""The demo provider inside this process, loaded when it is first asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenhub.core.clock import Clock
    from tokenhub.providers.egress import Origin
    from tokenhub.providers.upstream import Answer, Timeouts, Upstream, UpstreamRequest


class Builtin:
    """An ``Upstream``: a ``DemoUpstream`` that is made for its first request."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._demo: Upstream | None = None

    async def send(
        self,
        origin: Origin | None,
        request: UpstreamRequest,
        timeouts: Timeouts,
        stream: bool,  # noqa: FBT001  # see Upstream.send
    ) -> Answer:
        """Answer one request; ``origin`` means nothing here."""
        if self._demo is None:
            from tokenhub.providers.demo import DemoProvider, DemoUpstream  # noqa: PLC0415  # seldom

            self._demo = DemoUpstream(DemoProvider(self._clock))
        return await self._demo.send(origin, request, timeouts, stream)
