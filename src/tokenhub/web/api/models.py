"""GET /v1/models and /v1/models/{id}: what the caller's key may ask for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tokenhub.core.errors import NotFound
from tokenhub.core.similar import similar
from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from tokenhub.access.keys import Grant
    from tokenhub.core.catalog import Catalog, Model
    from tokenhub.core.clock import Clock
    from tokenhub.providers.catalog import CatalogStore
    from tokenhub.web.http import Request, Response


class ModelsApi:
    """The model list in a shape that both the OpenAI and the Anthropic SDK read.

    ``created`` is when this server started: a model's real birthday is not known here.
    """

    def __init__(self, catalog: CatalogStore, clock: Clock) -> None:
        self._catalog = catalog
        self._started = clock.now_ms() // 1000

    async def list(self, request: Request, grant: Grant) -> Response:
        """Every enabled model of an enabled provider, sorted by id."""
        del request
        data = [self._shown(model) for model in usable(self._catalog.current, grant)]
        return json_answer(
            {
                "object": "list",
                "data": data,
                "has_more": False,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
            }
        )

    async def get(self, request: Request, grant: Grant) -> Response:
        """One of them."""
        models = {model.id: model for model in usable(self._catalog.current, grant)}
        wanted = request.params["id"]
        if wanted not in models:
            near = similar(wanted, models, count=3, cutoff=0.5)
            raise NotFound(
                f"The model `{wanted[:128]}` does not exist or this key may not use it.",
                code="model_not_found",
                param="model",
                hint=f"Nearest: {', '.join(near)}." if near else "GET /v1/models lists them.",
            )
        return json_answer(self._shown(models[wanted]))

    def _shown(self, model: Model) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "id": model.id,
            "object": "model",
            "created": self._started,
            "owned_by": model.provider_id,
            "type": "model",
            "display_name": model.id,
            "created_at": datetime.fromtimestamp(self._started, UTC).isoformat(),
        }
        if model.max_context_tokens:
            shown["context_length"] = model.max_context_tokens
            shown["max_model_len"] = model.max_context_tokens
        return shown


def usable(catalog: Catalog, grant: Grant) -> list[Model]:
    """The models a key may name, sorted by id."""
    return [
        model
        for model in catalog.models.values()
        if model.enabled
        and catalog.providers[model.provider_id].enabled
        and (not grant.models or model.id in grant.models)
    ]
