"""Which URLs exist for administration.

Loaded, with all that only they need, by the first request under /admin/.
"""

from __future__ import annotations

import msgspec

from tokenhub.web.admin.budget import BudgetAdmin
from tokenhub.web.admin.keys import KeyAdmin
from tokenhub.web.admin.models import ModelAdmin
from tokenhub.web.admin.observe import ObserveAdmin
from tokenhub.web.admin.prices import IMPORT_BODY, PriceAdmin
from tokenhub.web.admin.providers import ProviderAdmin
from tokenhub.web.admin.routing import RoutingAdmin
from tokenhub.web.admin.series import SeriesAdmin
from tokenhub.web.admin.server import ServerAdmin
from tokenhub.web.admin.vault import VaultAdmin
from tokenhub.web.edge import ADMIN, Route

__all__ = [
    "AdminHandlers",
    "BudgetAdmin",
    "KeyAdmin",
    "ModelAdmin",
    "ObserveAdmin",
    "PriceAdmin",
    "ProviderAdmin",
    "RoutingAdmin",
    "SeriesAdmin",
    "ServerAdmin",
    "VaultAdmin",
    "admin_routes",
]


class AdminHandlers(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that answers an admin, by noun."""

    server: ServerAdmin
    vault: VaultAdmin
    providers: ProviderAdmin
    models: ModelAdmin
    keys: KeyAdmin
    budget: BudgetAdmin
    prices: PriceAdmin
    routing: RoutingAdmin
    observe: ObserveAdmin
    series: SeriesAdmin


def admin_routes(on: AdminHandlers) -> list[Route]:
    """The URL table of administration."""
    admin = "/admin/v1"
    return [
        Route("GET", f"{admin}/info", on.server.info, ADMIN),
        Route("POST", f"{admin}/admin-token/rotate", on.server.rotate_token, ADMIN),
        Route("GET", f"{admin}/engine/models", on.server.engine, ADMIN),
        Route("GET", f"{admin}/vault/status", on.vault.status, ADMIN),
        Route("POST", f"{admin}/vault/unlock", on.vault.unlock, ADMIN),
        Route("POST", f"{admin}/vault/lock", on.vault.lock, ADMIN),
        Route("POST", f"{admin}/vault/rotate", on.vault.rotate, ADMIN),
        Route("GET", f"{admin}/vault/secrets", on.vault.secrets, ADMIN),
        Route("GET", f"{admin}/vault/secrets/{{key:path}}", on.vault.secret, ADMIN),
        Route("PUT", f"{admin}/vault/secrets/{{key:path}}", on.vault.set_secret, ADMIN),
        Route("DELETE", f"{admin}/vault/secrets/{{key:path}}", on.vault.delete_secret, ADMIN),
        Route("GET", f"{admin}/providers", on.providers.list, ADMIN),
        Route("POST", f"{admin}/providers", on.providers.add, ADMIN),
        Route("GET", f"{admin}/providers/{{id}}", on.providers.get, ADMIN),
        Route("PATCH", f"{admin}/providers/{{id}}", on.providers.edit, ADMIN),
        Route("DELETE", f"{admin}/providers/{{id}}", on.providers.delete, ADMIN),
        Route("GET", f"{admin}/providers/{{id}}/discover", on.providers.discover, ADMIN),
        Route("GET", f"{admin}/models", on.models.list, ADMIN),
        Route("POST", f"{admin}/models", on.models.add, ADMIN),
        Route("GET", f"{admin}/models/{{id:path}}", on.models.get, ADMIN),
        Route("PATCH", f"{admin}/models/{{id:path}}", on.models.edit, ADMIN),
        Route("DELETE", f"{admin}/models/{{id:path}}", on.models.delete, ADMIN),
        Route("GET", f"{admin}/prices", on.prices.list, ADMIN),
        Route("POST", f"{admin}/prices/import", on.prices.import_, ADMIN, max_body=IMPORT_BODY),
        Route("GET", f"{admin}/prices/{{id:path}}", on.prices.get, ADMIN),
        Route("PUT", f"{admin}/prices/{{id:path}}", on.prices.set, ADMIN),
        Route("GET", f"{admin}/apikeys", on.keys.list, ADMIN),
        Route("POST", f"{admin}/apikeys", on.keys.create, ADMIN),
        Route("GET", f"{admin}/apikeys/{{id}}", on.keys.get, ADMIN),
        Route("PATCH", f"{admin}/apikeys/{{id}}", on.keys.edit, ADMIN),
        Route("DELETE", f"{admin}/apikeys/{{id}}", on.keys.delete, ADMIN),
        Route("POST", f"{admin}/apikeys/{{id}}/rotate", on.keys.rotate, ADMIN),
        Route("POST", f"{admin}/apikeys/{{id}}/paid", on.keys.paid, ADMIN),
        Route("GET", f"{admin}/budget", on.budget.list, ADMIN),
        Route("POST", f"{admin}/budget/verify", on.budget.verify, ADMIN),
        Route("GET", f"{admin}/budget/{{id}}", on.budget.get, ADMIN),
        Route("POST", f"{admin}/budget/{{id}}/adjust", on.budget.adjust, ADMIN),
        Route("GET", f"{admin}/spend", on.budget.spend, ADMIN),
        Route("GET", f"{admin}/routing-config", on.routing.config, ADMIN),
        Route("PUT", f"{admin}/routing-config", on.routing.set_config, ADMIN),
        Route("POST", f"{admin}/routing/simulate", on.routing.simulate, ADMIN),
        Route("GET", f"{admin}/decisions/{{id}}", on.routing.decision, ADMIN),
        Route("POST", f"{admin}/decisions/{{id}}/replay", on.routing.replay, ADMIN),
        Route("GET", f"{admin}/rewards", on.routing.rewards, ADMIN),
        Route("GET", f"{admin}/logs", on.observe.logs, ADMIN),
        Route("GET", f"{admin}/logs/{{id}}", on.observe.log, ADMIN),
        Route("GET", f"{admin}/audit", on.observe.audit, ADMIN),
        Route("GET", f"{admin}/audit/verify", on.observe.audit_verify, ADMIN),
        Route("GET", f"{admin}/events", on.observe.events, ADMIN),
        Route("GET", f"{admin}/health", on.routing.health, ADMIN),
        Route("GET", f"{admin}/stats", on.series.stats, ADMIN),
        Route("GET", f"{admin}/tsdb/metrics", on.series.metrics, ADMIN),
        Route("GET", f"{admin}/tsdb/query", on.series.query, ADMIN),
        Route("POST", f"{admin}/tsdb/prune", on.series.prune, ADMIN),
        Route("GET", f"{admin}/tsdb/retention", on.series.retention, ADMIN),
        Route("PUT", f"{admin}/tsdb/retention", on.series.set_retention, ADMIN),
        Route("GET", f"{admin}/aliases", on.routing.aliases, ADMIN),
        Route("GET", f"{admin}/aliases/{{name:path}}", on.routing.alias, ADMIN),
        Route("PUT", f"{admin}/aliases/{{name:path}}", on.routing.put_alias, ADMIN),
        Route("DELETE", f"{admin}/aliases/{{name:path}}", on.routing.delete_alias, ADMIN),
    ]
