"""Background probes: whether a provider answers at all, found out before a request has to.

The prober follows the catalog: a provider is asked within a second of its appearance and then every
30 seconds. What it finds is kept apart from the traffic's statistics (see ``health``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenhub.core.errors import HubError, ProviderError, TransportError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenhub.core.catalog import Catalog, Provider
    from tokenhub.core.clock import Clock
    from tokenhub.routing.health import Health

INTERVAL_S = 30.0
TIMEOUT_S = 5.0
TICK_S = 1.0


class Prober:
    """Asks every provider again and again.

    Args:
        health: is told what each probe found.
        clock: when a provider is due.
        catalog: the snapshot in force.
        probe: asks one provider; None = it answered, else what went wrong. It may also raise
            ProviderError, TransportError or HubError.
    """

    def __init__(
        self,
        health: Health,
        clock: Clock,
        catalog: Callable[[], Catalog],
        probe: Callable[[Provider], Awaitable[str | None]],
        *,
        interval_s: float = INTERVAL_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._health = health
        self._clock = clock
        self._catalog = catalog
        self._probe = probe
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._due: dict[str, float] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def due(self) -> list[Provider]:
        """The providers to ask now; each is then due again after the interval."""
        now = self._clock.monotonic()
        providers = self._catalog().providers
        asked = [
            provider
            for provider in providers.values()
            if provider.enabled and provider.base_url and self._due.get(provider.id, now) <= now
        ]
        self._due = {name: moment for name, moment in self._due.items() if name in providers}
        self._due.update((provider.id, now + self._interval_s) for provider in asked)
        return asked

    async def run(self) -> None:
        """Probe until cancelled; the probes under way are cancelled with it."""
        try:
            while True:
                self._health.tick()
                for provider in self.due():
                    if provider.id not in self._running:
                        self._start(provider)
                await asyncio.sleep(TICK_S)
        finally:
            for task in self._running.values():
                task.cancel()

    def _start(self, provider: Provider) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._ask(provider))
        self._running[provider.id] = task
        alarm = loop.call_later(self._timeout_s, task.cancel, "late")

        def ended(_: asyncio.Task[None]) -> None:
            alarm.cancel()
            self._running.pop(provider.id, None)

        task.add_done_callback(ended)

    async def _ask(self, provider: Provider) -> None:
        try:
            error = await self._probe(provider)
        except (ProviderError, TransportError, HubError) as failure:
            error = failure.message
        except asyncio.CancelledError as cancelled:
            if cancelled.args != ("late",):
                raise
            error = f"No answer to a probe within {self._timeout_s:g} s."
        # It may have left the catalog meanwhile, and must not come back by this.
        if provider.id in self._catalog().providers:
            self._health.probed(provider.id, error)
