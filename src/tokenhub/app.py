"""The composition root: where concrete classes meet. ``App.build`` reads as the parts list."""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tokenhub import __version__
from tokenhub.access.admin_token import AdminToken
from tokenhub.access.keys import Keys, load_pepper
from tokenhub.access.ledger import Ledger
from tokenhub.access.limits import AddressLimiter, KeyLimits
from tokenhub.access.past_days import add_up
from tokenhub.core.catalog import secret_name
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import HubError
from tokenhub.core.money import parse_usd
from tokenhub.core.outbox import Outbox
from tokenhub.gateway.hedge import Hedging
from tokenhub.gateway.lanes import Lanes
from tokenhub.gateway.pipeline import Pipeline
from tokenhub.gateway.settle import entry_of, log_call, publish
from tokenhub.gateway.transcribe import Answering, Transcribed
from tokenhub.providers import adapters
from tokenhub.providers.builtin import Builtin
from tokenhub.providers.catalog import CatalogStore
from tokenhub.providers.discovery import Discovered, alive, discover
from tokenhub.providers.egress import EgressPolicy
from tokenhub.providers.prices import PriceBook
from tokenhub.providers.transport import HttpTransport, Proxy
from tokenhub.providers.upstream import Timeouts
from tokenhub.routing.aliases import Aliases
from tokenhub.routing.prober import Prober
from tokenhub.routing.rewards import RewardLog
from tokenhub.routing.router import Router
from tokenhub.routing.rules import RoutingSettings
from tokenhub.routing.settings import SettingsStore
from tokenhub.storage.files import DataDir
from tokenhub.storage.spool import FileSpool
from tokenhub.storage.sqlite import SqliteDatabase
from tokenhub.telemetry.audit import Audit
from tokenhub.telemetry.events import EventBus
from tokenhub.telemetry.journal import Journal
from tokenhub.telemetry.observer import Observer
from tokenhub.telemetry.retention import Retention, Rule
from tokenhub.telemetry.transcripts import Transcripts
from tokenhub.vault.vault import Vault
from tokenhub.web.api.chat import ChatApi
from tokenhub.web.api.gauges import Parts, StateGauges
from tokenhub.web.api.health import HealthApi
from tokenhub.web.api.metrics import MetricsApi
from tokenhub.web.api.models import ModelsApi
from tokenhub.web.edge import ADMIN, PUBLIC, Edge
from tokenhub.web.http1 import HttpServer
from tokenhub.web.routes import Handlers, routes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tokenhub.core.catalog import Catalog, Provider
    from tokenhub.gateway.call import Call, ClientRequest
    from tokenhub.settings import Settings
    from tokenhub.telemetry.tracing import Tracing
    from tokenhub.web.edge import Route
    from tokenhub.web.http import Request

    Discovering = Callable[[Provider], Awaitable[list[Discovered]]]

log = logging.getLogger(__name__)

AUTO_LOCK_MS = 30 * 60 * 1000
DAY_MS = 86_400_000
HEARTBEAT_EVERY = 15.0
SHARE_S = 0.05  # decisions within this time see the same evidence
KEYS_USED_EVERY = 5.0  # seconds between two writes of the last-used times


class App:
    """A whole server, from its data directory to its socket."""

    def __init__(self, settings: Settings, data: DataDir, db: SqliteDatabase) -> None:
        self.settings = settings
        self.data = data
        self.db = db
        self.clock = SystemClock()
        self.vault: Vault
        self.keys: Keys
        self.ledger: Ledger
        self.prices: PriceBook
        self.catalog: CatalogStore
        self.router: Router
        self.rewards: RewardLog
        self.routing_settings: SettingsStore
        self.aliases: Aliases
        self.admin_token: AdminToken
        self.audit: Audit
        self.egress: EgressPolicy
        self.bus: EventBus
        self.journal: Journal
        self.observer: Observer
        self.retention: Retention
        self.transport: HttpTransport
        self.tracing: Tracing | None = None
        self.prober: Prober
        self.server: HttpServer
        self._tasks: list[asyncio.Task[None]] = []
        self._learning: AsyncIterator[int]
        self._opening: asyncio.Task[None] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @classmethod
    async def build(cls, settings: Settings) -> App:
        """Open the data and put the parts together; nothing listens yet.

        Raises:
            StorageRefused, HubError: it cannot start; the message says why and what to do.
        """
        data = DataDir(settings.data_dir)
        data.lock()
        clock = SystemClock()
        file = Path(settings.db_dsn)
        if file.parent.resolve() != data.path.resolve():
            DataDir(file.parent).lock()  # the database is elsewhere, and ours alone too
        db = await SqliteDatabase.open(file, clock)
        app = cls(settings, data, db)
        app.clock = clock
        app.audit = Audit(db, clock)
        app.admin_token = AdminToken.load(data, settings.admin_token or None)
        app.keys = await Keys.open(db, clock, load_pepper(data))
        app.vault = await Vault.open(
            db,
            clock,
            enabled=settings.vault_enabled,
            auto_lock_ms=0 if settings.vault_password else AUTO_LOCK_MS,
        )
        app.vault.on_change.append(app._audit_lock)
        if settings.vault_enabled and settings.vault_password:
            await app.vault.unlock(settings.vault_password.encode())
            app.audit.own("vault.unlock", "vault", "TOKENHUB_VAULT_PASSWORD")
        if settings.demo:
            await app.keys.ensure_demo_key(data)
        app.ledger = await Ledger.open(db, clock, FileSpool(file))
        app.rewards = RewardLog(db, asyncio.get_running_loop().call_later)
        app.routing_settings = await SettingsStore.open(db, _routing_base(settings))
        app.aliases = await Aliases.open(db, clock)
        app.router = Router(clock, log=app.rewards, share_s=SHARE_S)
        app.router.update(aliases=app.aliases.current, settings=app.routing_settings.effective)
        app.prices = PriceBook(clock)
        app.catalog = CatalogStore(db, clock, app.prices, demo=settings.demo)
        app.catalog.listen(lambda catalog: app.router.update(catalog=catalog))
        app.catalog.load()
        if _is_there(settings.credentials_file):
            from tokenhub.credentials import CredentialsFile  # noqa: PLC0415  # seldom there

            credentials = CredentialsFile(app.catalog, app.vault, app.audit)
            await credentials.load(settings.credentials_file)
        app._learning = app.router.recall()
        await anext(app._learning, 0)  # what was learned last counts most; the rest comes later
        app.bus = EventBus(clock)
        app.journal = Journal(db, asyncio.get_running_loop().call_later, app.keys.name_of)
        await app.journal.open()
        app.observer = Observer(
            db,
            clock,
            asyncio.get_running_loop().call_later,
            retention_days=settings.series_retention_days,
        )
        await app.observer.series.configure()
        app.tracing = _tracing(settings, lambda: app.catalog.current)
        app._wire()
        app._announce()
        return app

    def _announce(self) -> None:
        """Have state changes told on the event stream."""
        bus = self.bus
        self.router.health.on_change(
            lambda provider_id, old, new, reason: bus.publish(
                "health_change",
                {
                    "provider_id": provider_id,
                    "old_state": old,
                    "new_state": new,
                    "reason": reason,
                },
            )
        )
        self.vault.on_change.append(
            lambda state, reason: bus.publish("vault", {"new_state": state, "reason": reason})
        )
        self.vault.on_change.append(_log_vault)
        self.router.health.on_change(_log_health)
        self.catalog.listen(
            lambda catalog: bus.publish("config", {"reason": f"catalog {catalog.version}"})
        )

    def _observers(self) -> list[Callable[[Call], None]]:
        observers: list[Callable[[Call], None]] = [self._observe]
        if log.isEnabledFor(logging.DEBUG):
            observers.append(log_call)
        if self.tracing is not None:
            observers.append(self._record)
        return observers

    def _observe(self, call: Call) -> None:
        entry = entry_of(call, self.catalog.current)
        self.journal.append(entry)
        decision = call.decision
        self.observer.observe(entry, call.upstream_s, decision.filtered if decision else ())
        for model_id, provider_id, events in call.malformed:
            self.observer.metrics.dropped(model_id, provider_id, events)
        publish(call, entry, self.bus)

    def _wire(self) -> None:
        settings, clock = self.settings, self.clock
        self.egress = EgressPolicy()
        outbox = Outbox(asyncio.get_running_loop())
        outbox.first = self.ledger.put_down
        proxy = None
        if settings.provider_proxy:
            proxy = Proxy.parse(settings.provider_proxy, settings.provider_no_proxy)
        self.transport = HttpTransport(
            self.egress, ca_file=settings.provider_ca_file, proxy=proxy, outbox=outbox
        )
        demo = Builtin(clock)
        lanes = Lanes(
            lambda: self.catalog.current,
            adapters(clock),
            self.transport,
            demo,
            self._credential,
            lambda: self.vault.locked,
            self._trace if self.tracing is not None else None,
        )
        limits = KeyLimits(
            clock,
            default_rps=settings.rate_limit_rps,
            default_burst=settings.rate_limit_burst,
        )
        pipeline = Pipeline(
            clock=clock,
            router=self.router,
            ledger=self.ledger,
            limits=limits,
            lanes=lanes,
            timeouts=Timeouts(
                connect=settings.connect_timeout_secs, idle=settings.idle_timeout_secs
            ),
            deadline_s=settings.provider_timeout_secs,
            first_token_s=settings.first_token_timeout_secs,
            hedging=_hedging(settings),
            observers=self._observers(),
            after=outbox.after,
        )

        transcripts = Transcripts(self.db)
        answering: Answering = pipeline
        if settings.log_content:
            answering = Transcribed(pipeline, transcripts)

        async def probe(provider: Provider) -> str | None:
            upstream = demo if provider.type == "demo" else self.transport
            return await alive(upstream, provider)

        async def discovered(provider: Provider) -> list[Discovered]:
            upstream = demo if provider.type == "demo" else self.transport
            read = self._credential(provider)
            return await discover(upstream, provider, None if read is None else read())

        self.retention = Retention(
            clock,
            (
                Rule("request_log", settings.log_retention_days, self.journal.prune),
                Rule(
                    "ledger_attempts", settings.log_retention_days, partial(add_up, self.db, clock)
                ),
                Rule("transcripts", settings.log_retention_days, transcripts.prune),
                Rule("decision_log", settings.decision_retention_days, self.rewards.prune),
                Rule("series", 1, lambda _: self.observer.prune()),
            ),
        )
        v1_limiter = self._limiter(settings.rate_limit_rps, settings.rate_limit_burst)
        admin_limiter = self._limiter(
            settings.admin_rate_limit_rps, settings.admin_rate_limit_burst
        )
        parts = Parts(
            catalog=self.catalog,
            router=self.router,
            keys=self.keys,
            ledger=self.ledger,
            vault=self.vault,
            bus=self.bus,
            journal=self.journal,
            rewards=self.rewards,
            observer=self.observer,
            retention=self.retention,
            limits=limits,
            v1_limiter=v1_limiter,
            admin_limiter=admin_limiter,
            budgets=settings.metrics_budgets,
        )
        handlers = Handlers(
            chat=ChatApi(answering),
            models_api=ModelsApi(self.catalog, clock),
            health=HealthApi(self.catalog, self.vault, self.ledger, lambda: self.server.draining),
            metrics=MetricsApi(self.observer, StateGauges(parts)),
            metrics_access=ADMIN if settings.metrics_auth else PUBLIC,
        )
        edge = Edge(
            routes(handlers),
            self.keys,
            self.admin_token,
            admin_routes=lambda: self._admin_routes(lanes, transcripts, discovered),
            v1_limiter=v1_limiter,
            admin_limiter=admin_limiter,
            on_refused=self._refused,
            cors_origins=frozenset(origin.encode() for origin in settings.cors_origins),
        )
        self.prober = Prober(self.router.health, clock, lambda: self.catalog.current, probe)
        self.server = HttpServer(
            edge.handler, clock, body_limit=edge.max_body, render=edge.failed, outbox=outbox
        )

    def _admin_routes(
        self, lanes: Lanes, transcripts: Transcripts, discovered: Discovering
    ) -> list[Route]:
        """The URL table of administration, and what only that needs."""
        from tokenhub.access.bookkeeper import Bookkeeper  # noqa: PLC0415  # as the table
        from tokenhub.web.admin import table  # noqa: PLC0415  # a tenth of the start, for admins only

        clock, audit = self.clock, self.audit
        bookkeeper = Bookkeeper(self.db, clock, self.ledger)
        handlers = table.AdminHandlers(
            server=table.ServerAdmin(self.catalog, self.vault, self.admin_token, audit, clock),
            vault=table.VaultAdmin(self.vault, audit),
            providers=table.ProviderAdmin(self.catalog, self.vault, discovered, audit),
            models=table.ModelAdmin(self.catalog, audit),
            keys=table.KeyAdmin(self.keys, self.ledger, bookkeeper, audit),
            budget=table.BudgetAdmin(self.keys, self.ledger, bookkeeper, audit),
            prices=table.PriceAdmin(self.catalog, self.prices, audit),
            routing=table.RoutingAdmin(
                self.router,
                self.routing_settings,
                self.aliases,
                self.catalog,
                self.rewards,
                lanes.unavailable,
                audit,
            ),
            observe=table.ObserveAdmin(self.journal, transcripts, audit, self.bus),
            series=table.SeriesAdmin(self.observer, self.keys.name_of, audit),
        )
        return table.admin_routes(handlers)

    def _trace(self, request: ClientRequest, attempt: int) -> list[tuple[bytes, bytes]]:
        assert self.tracing is not None
        return self.tracing.upstream(request.id, request.headers, attempt)

    def _record(self, call: Call) -> None:
        assert self.tracing is not None
        entry = entry_of(call, self.catalog.current)
        self.tracing.record(entry, call.decision, call.chat, call.request.headers)

    def _audit_lock(self, state: str, reason: str) -> None:
        # Those two have the row of whoever asked.
        if state == "locked" and reason not in {"admin", "rotated"}:
            self.audit.own("vault.lock", "vault", reason)

    def _refused(self, request: Request, how: str) -> None:
        self.audit.note(request, "login", "admin", how)
        told = {"request_id": request.id, "address": request.peer, "reason": how}
        log.warning("admin login refused", extra=told)

    def _limiter(self, rps: int, burst: int) -> AddressLimiter | None:
        if not rps:
            return None
        return AddressLimiter(self.clock, rps, burst, self.settings.trusted_proxies)

    def _credential(self, provider: Provider) -> Callable[[], bytes] | None:
        """How to read the key of a provider, decrypted for one call; None when it has none."""
        if provider.cred_store != "vault":
            return None
        # By position: with names a partial costs a dictionary at each call.
        return partial(
            self.vault.get, secret_name(provider.id), "provider", provider.id, provider.origin
        )

    async def start(self) -> int:
        """Listen; the port."""
        self._save_keys_used()
        settings = self.settings
        port = await self.server.start(settings.listen_host, settings.listen_port)
        # A provider that is this very server would be a loop without end.
        host = "127.0.0.1" if settings.listen_host == "localhost" else settings.listen_host
        self.egress.refuse_listener(host, port)
        self._check_idle()
        self._new_day()
        self.bus.beat(HEARTBEAT_EVERY, self._heartbeat)
        loop = asyncio.get_running_loop()
        # Nobody waits for the past: it takes longer the more of it there is.
        self._opening = loop.create_task(self.observer.open())
        self._tasks.append(loop.create_task(self._learn()))
        self._tasks.append(loop.create_task(self.retention.run()))
        if not settings.health_probe_disabled:
            self._tasks.append(loop.create_task(self.prober.run()))
        return port

    async def stop(self) -> None:
        """Finish what runs, as far as the drain time allows, then write and close everything."""
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        self.bus.close()
        await self.server.drain(self.settings.shutdown_drain_secs)
        self.transport.close()
        await self.close()

    async def close(self) -> None:
        """Write what is queued and let go of the data directory."""
        self.vault.lock("shutdown")
        self.keys.save_used()
        self.rewards.flush()
        self.journal.flush()
        if self._opening is not None:
            await self._opening  # or what was observed meanwhile would be lost
        self.observer.close()
        await self.ledger.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        await self.db.close()
        self.data.close()

    async def _learn(self) -> None:
        """Learn again what is left of the past."""
        try:
            async for _ in self._learning:
                await asyncio.sleep(0)
        except HubError as error:
            log.warning("What was learned earlier could not be read: %s", error.message)

    def _heartbeat(self) -> str:
        catalog = self.catalog.current
        enabled = sum(model.enabled for model in catalog.models.values())
        return f"providers={len(catalog.providers)} models={enabled}"

    def _save_keys_used(self) -> None:
        self.keys.save_used()
        later = asyncio.get_running_loop().call_later
        self._timers["keys"] = later(KEYS_USED_EVERY, self._save_keys_used)

    def _new_day(self) -> None:
        """Dated prices change at midnight UTC."""
        if "day" in self._timers:
            self.catalog.refresh()
        left = DAY_MS - self.clock.now_ms() % DAY_MS
        later = asyncio.get_running_loop().call_later
        self._timers["day"] = later(left / 1000 + 1, self._new_day)

    def _check_idle(self) -> None:
        due = self.vault.check_idle()
        if due < float("inf"):
            later = asyncio.get_running_loop().call_later
            self._timers["idle"] = later(max(due, 1.0), self._check_idle)


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _hedging(settings: Settings) -> Hedging | None:
    if not settings.hedge_after_ms:
        return None
    return Hedging(settings.hedge_after_ms / 1000, settings.max_hedged_providers)


def _tracing(settings: Settings, catalog: Callable[[], Catalog]) -> Tracing | None:
    if not settings.otel_enabled:
        return None
    try:
        from tokenhub.telemetry.tracing import connect  # noqa: PLC0415  # an extra, 200 ms
    except ImportError as error:
        raise HubError(
            f"TOKENHUB_OTEL_ENABLED needs the extra [otel] ({error}).",
            hint="Install it (pip install 'tokenhub[otel]', or -r requirements/otel.txt).",
        ) from None
    return connect(settings.otel_endpoint, settings.otel_service_name, __version__, catalog)


def _log_vault(state: str, reason: str) -> None:
    if reason == "rotated":
        log.info("vault password changed")
    elif state == "locked":  # an unlock has the line of its request
        log.info("vault locked", extra={"reason": reason})


def _log_health(provider_id: str, old: str, new: str, reason: str) -> None:
    told = {"provider": provider_id, "from": old, "to": new, "reason": reason}
    log.log(logging.INFO if new == "healthy" else logging.WARNING, "provider health", extra=told)


def _routing_base(settings: Settings) -> RoutingSettings:
    return RoutingSettings(
        default_mode=settings.default_mode,
        default_max_budget=parse_usd(settings.default_max_budget_usd, "default_max_budget_usd"),
        default_max_latency_ms=settings.default_max_latency_ms,
        exploration_temp=settings.exploration_temp,
    )
