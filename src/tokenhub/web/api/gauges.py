"""The present state of the parts as metrics: health, queues, refusals, vault, budgets, build."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tokenhub import __version__
from tokenhub.access.keys import Keys
from tokenhub.access.ledger import Ledger
from tokenhub.access.limits import AddressLimiter, KeyLimits
from tokenhub.providers.catalog import CatalogStore
from tokenhub.routing.rewards import RewardLog
from tokenhub.routing.router import Router
from tokenhub.telemetry.events import EventBus
from tokenhub.telemetry.journal import Journal
from tokenhub.telemetry.logging import lost_lines
from tokenhub.telemetry.metrics import Gauge
from tokenhub.telemetry.observer import Observer
from tokenhub.telemetry.retention import Retention
from tokenhub.vault.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterator

HEALTH = {"healthy": 2, "degraded": 1}  # anything else is 0: nothing is sent there


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at; ``budgets``: show what keys have left."""

    catalog: CatalogStore
    router: Router
    keys: Keys
    ledger: Ledger
    vault: Vault
    bus: EventBus
    journal: Journal
    rewards: RewardLog
    observer: Observer
    retention: Retention
    limits: KeyLimits
    v1_limiter: AddressLimiter | None
    admin_limiter: AddressLimiter | None
    budgets: bool


class StateGauges:
    """Asks the parts at every scrape."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def __call__(self) -> Iterator[Gauge]:
        """All gauges, and the counters that other parts keep."""
        yield Gauge(
            "tokenhub_build_info", "gauge", "Always 1.", ("version",), [((__version__,), 1)]
        )
        yield from self._health()
        yield from self._refusals()
        yield from self._queues()
        yield from self._counts()
        if self._parts.budgets:
            yield self._budgets()

    def _health(self) -> Iterator[Gauge]:
        parts = self._parts
        rows = parts.router.health.rows(parts.catalog.current.providers)
        states = [((row["provider_id"],), HEALTH.get(row["state"], 0)) for row in rows]
        yield Gauge(
            "tokenhub_provider_health_state",
            "gauge",
            "2 healthy, 1 degraded, 0 down.",
            ("provider",),
            states,
        )
        yield _plain(
            "tokenhub_vault_locked", "1 while provider keys are sealed.", parts.vault.locked
        )

    def _refusals(self) -> Iterator[Gauge]:
        parts = self._parts
        for name, text, limiter in (
            ("tokenhub_rate_limited_total", "by address under /v1", parts.v1_limiter),
            ("tokenhub_admin_rate_limited_total", "by address under /admin", parts.admin_limiter),
            ("tokenhub_key_rate_limited_total", "by the limits of their key", parts.limits),
        ):
            refused = 0 if limiter is None else limiter.refused
            yield _plain(name, f"Requests refused {text}.", refused, "counter")

    def _queues(self) -> Iterator[Gauge]:
        parts = self._parts
        yield _plain(
            "tokenhub_journal_pending", "Request log rows to be written.", parts.journal.pending
        )
        yield _plain(
            "tokenhub_series_pending",
            "Time series rows to be written.",
            parts.observer.series.pending,
        )
        yield _plain(
            "tokenhub_ledger_open_holds",
            "Tries whose money is reserved and not settled.",
            parts.ledger.open_holds,
        )
        yield _plain(
            "tokenhub_ledger_failing", "1 while the books cannot be written.", parts.ledger.failing
        )
        yield _plain("tokenhub_event_subscribers", "Readers of live events.", parts.bus.subscribers)

    def _counts(self) -> Iterator[Gauge]:
        parts = self._parts
        dropped = {
            "log_request": parts.journal.dropped,
            "log_reward": parts.rewards.dropped,
            "series": parts.observer.series.dropped,
        }
        yield Gauge(
            "tokenhub_store_dropped_total",
            "counter",
            "Rows that were not stored, by what they were for.",
            ("op",),
            [((op,), count) for op, count in dropped.items()],
        )
        yield Gauge(
            "tokenhub_pruned_rows_total",
            "counter",
            "Rows deleted because they were older than their retention.",
            ("table",),
            [((table,), count) for table, count in parts.retention.deleted.items()],
        )
        yield _plain(
            "tokenhub_series_rows_total",
            "Time series rows written.",
            parts.observer.series.written,
            "counter",
        )
        yield _plain(
            "tokenhub_log_lines_lost_total",
            "Lines of the log that nobody took.",
            lost_lines(),
            "counter",
        )
        yield _plain(
            "tokenhub_heartbeat_total",
            "Heartbeats of the event stream.",
            parts.bus.beats,
            "counter",
        )

    def _budgets(self) -> Gauge:
        parts = self._parts
        found = []
        for key in parts.keys.list():
            grant = parts.keys.grant_of(key["id"])
            if grant is None:
                continue
            parts.ledger.adopt(grant)
            for account in parts.ledger.accounts(key["id"]).values():
                if account.budget is not None:
                    labels = (key["id"], key["name"], account.kind)
                    found.append((labels, max(account.room, 0) / 1e9))
        return Gauge(
            "tokenhub_budget_remaining_usd",
            "gauge",
            "What a key may still spend of a budget.",
            ("api_key_id", "api_key_name", "period"),
            found,
        )


def _plain(name: str, text: str, value: float, kind: str = "gauge") -> Gauge:
    return Gauge(name, kind, text, (), [((), value)])
