"""Which URLs exist for clients and operators: method, path, handler, who may call.

Those for administration stand in web/admin/table.py, which the first request under /admin/ loads.
"""

from __future__ import annotations

import msgspec

from tokenhub.web.answers import OPENAI
from tokenhub.web.api.chat import ChatApi
from tokenhub.web.api.health import HealthApi
from tokenhub.web.api.metrics import MetricsApi
from tokenhub.web.api.models import ModelsApi
from tokenhub.web.edge import ANY_KEY, PUBLIC, V1_BODY, Route


class Handlers(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that answers, by noun."""

    chat: ChatApi
    models_api: ModelsApi
    health: HealthApi
    metrics: MetricsApi
    metrics_access: str = PUBLIC


def routes(on: Handlers) -> list[Route]:
    """The URL table without administration."""
    return [
        Route(
            "POST",
            "/v1/chat/completions",
            on.chat.completions,
            "chat",
            OPENAI,
            spends=True,
            max_body=V1_BODY,
        ),
        Route("POST", "/v1/chat", on.chat.native, "chat", spends=True, max_body=V1_BODY),
        Route("GET", "/v1/models", on.models_api.list, ANY_KEY, OPENAI),
        Route("GET", "/v1/models/{id:path}", on.models_api.get, ANY_KEY, OPENAI),
        Route("GET", "/healthz", on.health.healthz, PUBLIC),
        Route("GET", "/livez", on.health.livez, PUBLIC),
        Route("GET", "/readyz", on.health.readyz, PUBLIC),
        Route("GET", "/metrics", on.metrics.scrape, on.metrics_access),
    ]
