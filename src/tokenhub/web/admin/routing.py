"""/admin/v1: routing defaults, aliases, simulation, past decisions, rewards, provider health."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.errors import InvalidRequest, NotFound
from tokenhub.core.fields import decode_fields
from tokenhub.core.money import usd
from tokenhub.routing.aliases import AliasFields, describe
from tokenhub.routing.explain import explain, replay
from tokenhub.routing.settings import SettingsFields
from tokenhub.routing.simulate import SimulateFields, simulate, table_of
from tokenhub.web.admin.moments import rfc3339
from tokenhub.web.admin.paging import MAX_LIMIT, page, query_of, whole
from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenhub.providers.catalog import CatalogStore
    from tokenhub.routing.aliases import Alias, Aliases
    from tokenhub.routing.rewards import RewardLog, StoredDecision
    from tokenhub.routing.router import Router
    from tokenhub.routing.settings import SettingsStore
    from tokenhub.web.admin.audited import Auditor
    from tokenhub.web.http import Request, Response


class RoutingAdmin:
    """What decides, what was decided, and what would be.

    Tables are made in a thread: with 1,000 models one takes half a second, and requests go on.

    Args:
        router: the one that decides.
        settings, aliases, catalog: what is configured.
        log: past decisions and rewards.
        unavailable: providers that cannot be called now, with the reason.
        audit: rows for changes.
    """

    def __init__(
        self,
        router: Router,
        settings: SettingsStore,
        aliases: Aliases,
        catalog: CatalogStore,
        log: RewardLog,
        unavailable: Callable[[], Mapping[str, str]],
        audit: Auditor,
    ) -> None:
        self._router = router
        self._settings = settings
        self._aliases = aliases
        self._catalog = catalog
        self._log = log
        self._unavailable = unavailable
        self._audit = audit

    async def config(self, request: Request, _: None) -> Response:
        """The defaults in force, and what of them is stored."""
        query_of(request)
        return json_answer(self._settings.describe())

    async def set_config(self, request: Request, _: None) -> Response:
        """Change the defaults named."""
        fields = decode_fields(request.body, SettingsFields)
        audit = self._audit.entry(request, "routing-config.update", "routing")
        effective = await self._settings.change(fields, also=audit)
        self._router.update(settings=effective)
        return json_answer({"ok": True} | self._settings.describe())

    async def simulate(self, request: Request, _: None) -> Response:
        """Decide for a made-up request; nothing is sent, nothing changes."""
        fields = decode_fields(request.body, SimulateFields)
        decision = simulate(self._router, fields, self._unavailable())
        return json_answer(await asyncio.to_thread(table_of, decision, self._router.rules))

    async def decision(self, request: Request, _: None) -> Response:
        """Why a past request went where it went."""
        request_id = request.params["id"]
        stored = await self._stored(request_id)
        return json_answer(_explained(await asyncio.to_thread(explain, request_id, stored)))

    async def replay(self, request: Request, _: None) -> Response:
        """Decide a past request again, from its record alone."""
        request_id = request.params["id"]
        stored = await self._stored(request_id)
        return json_answer(await asyncio.to_thread(replay, request_id, stored))

    async def rewards(self, request: Request, _: None) -> Response:
        """Logged attempts with their rewards, newest first."""
        query = query_of(request, "limit", "offset")
        limit = whole(query, "limit", 100, 1, MAX_LIMIT)
        offset = whole(query, "offset", 0, 0, 10**9)
        self._log.flush()
        rows = await self._log.rewards(limit, offset)
        return json_answer({"rewards": [_reward(row) for row in rows]})

    async def health(self, request: Request, _: None) -> Response:
        """What is known of each provider of the catalog."""
        query_of(request)
        rows = self._router.health.rows(self._catalog.current.providers)
        return json_answer({"providers": rows})

    async def aliases(self, request: Request, _: None) -> Response:
        """All aliases, by name."""
        rows = [_alias(alias) for _, alias in sorted(self._aliases.current.items())]
        return json_answer(page(request, "items", rows))

    async def alias(self, request: Request, _: None) -> Response:
        """One alias."""
        return json_answer(_alias(self._aliases.get(request.params["name"])))

    async def put_alias(self, request: Request, _: None) -> Response:
        """Create or replace an alias."""
        name = request.params["name"]
        fields = decode_fields(request.body, AliasFields)
        if fields.name not in {"", name}:
            raise InvalidRequest("`name` in the body is not the name in the path.", param="name")
        fields = msgspec.structs.replace(fields, name=name)
        audit = self._audit.entry(request, "alias.upsert", name)
        alias, missing = await self._aliases.put(fields, self._catalog.current, also=audit)
        self._router.update(aliases=self._aliases.current)
        return json_answer(_alias(alias) | {"ok": True, "unknown_models": missing})

    async def delete_alias(self, request: Request, _: None) -> Response:
        """Delete an alias."""
        name = request.params["name"]
        await self._aliases.delete(name, also=self._audit.entry(request, "alias.delete", name))
        self._router.update(aliases=self._aliases.current)
        return json_answer({"ok": True})

    async def _stored(self, request_id: str) -> StoredDecision:
        stored = await self._log.stored(request_id)
        if stored is None:
            raise NotFound(
                f"No decision of a request `{request_id[:64]}` is stored.",
                code="decision_not_found",
                hint="The id stands in the answer's X-Request-Id header and in `tokenhubctl logs`.",
            )
        return stored


def _alias(alias: Alias) -> dict[str, Any]:
    times = {"created_at": rfc3339(alias.created_at), "updated_at": rfc3339(alias.updated_at)}
    return describe(alias) | times


def _reward(row: dict[str, Any]) -> dict[str, Any]:
    """A logged attempt in the words of the API; the times and the cost in its units."""
    cost, kind = row["cost"], row["error_class"]
    return {
        "timestamp": rfc3339(row["at"]),
        "request_id": row["request_id"],
        "attempt": row["attempt"],
        "model_id": row["model_id"],
        "provider_id": row["provider_id"],
        "mode": row["mode"],
        "estimated_tokens": row["estimated_tokens"],
        "token_bucket": row["token_bucket"],
        "latency_budget_ms": row["latency_budget_ms"],
        "latency_ms": row["latency_ms"],
        "ttft_ms": row["ttft_ms"],
        "cost_usd": None if cost is None else usd(cost),
        "success": not kind,
        "error_class": kind,
        "reward": row["reward"],
        "propensity": row["propensity"],
        "feedback": row["feedback"],
    }


def _explained(answer: dict[str, Any]) -> dict[str, Any]:
    """A past decision with its moments as text, in place of the numbers it is stored with."""
    head = {"request_id": answer.pop("request_id"), "timestamp": rfc3339(answer.pop("at"))}
    for attempt in answer["attempts"]:
        attempt["timestamp"] = rfc3339(attempt.pop("at"))
    return head | answer
