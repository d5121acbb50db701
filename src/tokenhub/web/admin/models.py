"""/admin/v1/models: add, list, edit, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.core.fields import decode_fields
from tokenhub.providers.catalog_fields import ModelFields
from tokenhub.providers.catalog_rows import public_model
from tokenhub.web.admin.paging import page
from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from tokenhub.providers.catalog import CatalogStore
    from tokenhub.web.admin.audited import Auditor
    from tokenhub.web.http import Request, Response


class ModelAdmin:
    """Models of the catalog."""

    def __init__(self, catalog: CatalogStore, audit: Auditor) -> None:
        self._catalog = catalog
        self._audit = audit

    async def list(self, request: Request, _: None) -> Response:
        """Every model."""
        rows = [public_model(one) for one in self._catalog.current.models.values()]
        return json_answer(page(request, "items", rows))

    async def get(self, request: Request, _: None) -> Response:
        """One model."""
        return json_answer(public_model(self._catalog.model(request.params["id"])))

    async def add(self, request: Request, _: None) -> Response:
        """Add a model, or change the one with that id; fields left out stay."""
        fields = decode_fields(request.body, ModelFields)
        resource = fields.id if isinstance(fields.id, str) else ""
        audit = self._audit.entry(request, "model.upsert", resource)
        model = await self._catalog.save_model(fields, also=audit)
        return json_answer({"ok": True, "model": public_model(model)})

    async def edit(self, request: Request, _: None) -> Response:
        """Change the fields named."""
        fields = decode_fields(request.body, ModelFields)
        model_id = request.params["id"]
        audit = self._audit.entry(request, "model.patch", model_id)
        model = await self._catalog.save_model(fields, id=model_id, also=audit)
        return json_answer({"ok": True, "model": public_model(model)})

    async def delete(self, request: Request, _: None) -> Response:
        """Delete a model."""
        model_id = request.params["id"]
        audit = self._audit.entry(request, "model.delete", model_id)
        await self._catalog.delete_model(model_id, also=audit)
        return json_answer({"ok": True})
