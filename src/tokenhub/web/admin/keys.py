"""/admin/v1/apikeys: create, list, edit, rotate, delete, paid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenhub.access.key_fields import KeyFields
from tokenhub.core.fields import decode_fields
from tokenhub.core.money import usd
from tokenhub.web.admin.paging import page
from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from tokenhub.access.bookkeeper import Bookkeeper
    from tokenhub.access.keys import Keys
    from tokenhub.access.ledger import Ledger
    from tokenhub.storage.database import Transaction
    from tokenhub.web.admin.audited import Auditor
    from tokenhub.web.http import Request, Response

WARNING = "Save this key now; it will not be shown again."


class KeyAdmin:
    """API keys with what they spent; the text of a key is answered once, at birth."""

    def __init__(self, keys: Keys, ledger: Ledger, bookkeeper: Bookkeeper, audit: Auditor) -> None:
        self._keys = keys
        self._bookkeeper = bookkeeper
        self._ledger = ledger
        self._audit = audit

    async def list(self, request: Request, _: None) -> Response:
        """All keys, newest first."""
        rows = self._keys.list()
        return json_answer(page(request, "keys", [self._with_spend(row) for row in rows]))

    async def get(self, request: Request, _: None) -> Response:
        """One key."""
        return json_answer(self._with_spend(self._keys.get(request.params["id"])))

    async def create(self, request: Request, _: None) -> Response:
        """Make a key."""
        fields = decode_fields(request.body, KeyFields)
        name = fields.name if isinstance(fields.name, str) else ""
        audit = self._audit.entry(request, "apikey.create", name[:128])
        key, row = await self._keys.create(fields, also=audit)
        return json_answer(
            {
                "ok": True,
                "key": key,
                "id": row.id,
                "prefix": row.key_prefix,
                "name": row.name,
                "scopes": list(row.scopes),
                "warning": WARNING,
            }
        )

    async def edit(self, request: Request, _: None) -> Response:
        """Change the fields named."""
        key_id = request.params["id"]
        fields = decode_fields(request.body, KeyFields)
        audit = self._audit.entry(request, "apikey.update", key_id)
        await self._keys.edit(key_id, fields, also=audit)
        self._adopt(key_id)
        return json_answer({"ok": True, "key": self._with_spend(self._keys.get(key_id))})

    async def rotate(self, request: Request, _: None) -> Response:
        """A new text for the key; the old one is dead."""
        key_id = request.params["id"]
        audit = self._audit.entry(request, "apikey.rotate", key_id)
        key, _row = await self._keys.rotate(key_id, also=audit)
        return json_answer({"ok": True, "key": key, "id": key_id, "warning": WARNING})

    async def delete(self, request: Request, _: None) -> Response:
        """Delete a key; what it spent stays in the books."""
        key_id = request.params["id"]
        audit = self._audit.entry(request, "apikey.revoke", key_id)
        await self._keys.delete(key_id, also=audit)
        return json_answer({"ok": True})

    async def paid(self, request: Request, _: None) -> Response:
        """The spend so far is paid: this month's and this day's accounts start again at nothing."""
        key_id = self._keys.get(request.params["id"])["id"]
        audit = self._audit.entry(request, "apikey.budget_paid", key_id)
        paid = self._keys.paid(key_id)

        def also(tx: Transaction, *sums: dict[str, Any] | None) -> None:
            audit(tx, *sums)
            paid(tx)

        changed = await self._bookkeeper.mark_paid(key_id, also=also)
        return json_answer({"ok": True, "paid_usd": usd(-changed.get("month", 0))})

    def _adopt(self, key_id: str) -> None:
        grant = self._keys.grant_of(key_id)
        if grant is not None:
            self._ledger.adopt(grant)

    def _with_spend(self, row: dict[str, Any]) -> dict[str, Any]:
        month = self._ledger.accounts(row["id"]).get("month")
        return row | {
            "current_spend_usd": usd(month.spent if month else 0),
            "reserved_usd": usd(month.reserved if month else 0),
            "overrun_usd": usd(month.overrun if month else 0),
        }
