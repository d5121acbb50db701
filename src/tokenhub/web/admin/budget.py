"""/admin/v1/budget and /admin/v1/spend: what keys may spend, have spent, and on what."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from tokenhub.access.accounts import MONTH, resets_at
from tokenhub.access.bookkeeper import By
from tokenhub.core.errors import InvalidRequest
from tokenhub.core.fields import decode_fields
from tokenhub.core.money import parse_signed_usd, usd
from tokenhub.web.admin.moments import rfc3339
from tokenhub.web.admin.paging import query_of
from tokenhub.web.answers import json_answer

if TYPE_CHECKING:
    from tokenhub.access.accounts import Account
    from tokenhub.access.bookkeeper import Bookkeeper, SpendRow
    from tokenhub.access.keys import Keys
    from tokenhub.access.ledger import Ledger
    from tokenhub.web.admin.audited import Auditor
    from tokenhub.web.http import Request, Response

GROUP_NAMES = {"key": "api_key_id", "model": "model_id", "provider": "provider_id", "day": "day"}


class AdjustFields(msgspec.Struct, forbid_unknown_fields=True):
    """Body of adjust."""

    amount_usd: Decimal
    reason: str


class BudgetAdmin:
    """Accounts of the ledger, and corrections of them."""

    def __init__(self, keys: Keys, ledger: Ledger, bookkeeper: Bookkeeper, audit: Auditor) -> None:
        self._keys = keys
        self._ledger = ledger
        self._bookkeeper = bookkeeper
        self._audit = audit

    async def list(self, request: Request, _: None) -> Response:
        """The running month of every key, and its other accounts where they have a limit."""
        query_of(request)
        rows = [
            _shown(account, key["name"])
            for key in self._keys.list()
            for account in self._accounts(key["id"])
            if account.kind == MONTH or account.budget is not None
        ]
        return json_answer({"accounts": rows, "total": len(rows)})

    async def get(self, request: Request, _: None) -> Response:
        """All accounts of one key, past ones too, and what was booked by hand."""
        query_of(request)
        key = self._keys.get(request.params["id"])
        past, entries = await self._bookkeeper.show(key["id"])
        return json_answer(
            {
                "key_id": key["id"],
                "name": key["name"],
                "accounts": [_shown(account, key["name"]) for account in self._accounts(key["id"])],
                "history": [
                    {
                        "period": row.kind,
                        "of": str(row.period),
                        "spent_usd": usd(row.settled + row.overrun),
                        "reserved_usd": usd(row.reserved),
                        "overrun_usd": usd(row.overrun),
                        "limit_usd": None if row.budget is None else usd(row.budget),
                    }
                    for row in past
                ],
                "entries": [
                    {
                        "period": row.kind,
                        "of": str(row.period),
                        "what": row.what,
                        "amount_usd": usd(row.settled + row.overrun),
                        "reason": row.reason,
                        "timestamp": rfc3339(row.booked_at),
                    }
                    for row in entries
                ],
            }
        )

    async def verify(self, request: Request, _: None) -> Response:
        """Compute every account again from its rows."""
        query_of(request)
        problems = await self._bookkeeper.verify()
        return json_answer(
            {
                "ok": not problems,
                "problems": [f"{one.table} {one.row}: {one.text}" for one in problems],
            }
        )

    async def adjust(self, request: Request, _: None) -> Response:
        """Correct what a key has spent, with a reason."""
        key_id = self._keys.get(request.params["id"])["id"]
        fields = decode_fields(request.body, AdjustFields)
        nano = parse_signed_usd(fields.amount_usd, "amount_usd")
        audit = self._audit.entry(request, "budget.adjust", key_id)
        changed = await self._bookkeeper.adjust(key_id, nano, fields.reason, also=audit)
        return json_answer(
            {
                "ok": True,
                "key_id": key_id,
                "changed_usd": {kind: usd(amount) for kind, amount in changed.items()},
            }
        )

    async def spend(self, request: Request, _: None) -> Response:
        """Where the money went, by key, model, provider or day."""
        query = query_of(request, "by", "since", "until")
        by = query.get("by", "key")
        if by not in get_args(By):
            raise InvalidRequest(f"`by` must be one of {', '.join(get_args(By))}.", param="by")
        rows = await self._bookkeeper.spend(
            by,  # type: ignore[arg-type]  # checked above
            since=moment(query, "since", 0),
            until=moment(query, "until", 1 << 62),
        )
        names = {row["id"]: row["name"] for row in self._keys.list()} if by == "key" else {}
        return json_answer({"spend": [_group(row, by, names) for row in rows], "total": len(rows)})

    def _accounts(self, key_id: str) -> tuple[Account, ...]:
        grant = self._keys.grant_of(key_id)
        if grant is not None:
            self._ledger.adopt(grant)
        return tuple(self._ledger.accounts(key_id).values())


def moment(query: dict[str, str], name: str, default: int) -> int:
    """A moment of the query as Unix ms: RFC 3339, or Unix ms itself.

    Raises:
        InvalidRequest: neither.
    """
    text = query.get(name)
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise InvalidRequest(
            f"`{name}` must be a time with a zone, like 2026-01-31T00:00:00Z.", param=name
        )
    return int(at.timestamp() * 1000)


def _shown(account: Account, name: str) -> dict[str, Any]:
    reset = resets_at(account)
    limit = account.budget
    return {
        "key_id": account.key_id,
        "name": name,
        "period": account.kind,
        "limit_usd": None if limit is None else usd(limit),
        "spent_usd": usd(account.spent),
        "reserved_usd": usd(account.reserved),
        "remaining_usd": None if limit is None else usd(max(account.room, 0)),
        "overrun_usd": usd(account.overrun),
        "resets_at": f"{reset:%Y-%m-%dT%H:%M:%SZ}" if reset else None,
    }


def _group(row: SpendRow, by: str, names: dict[str, str]) -> dict[str, Any]:
    group = row.group
    if by == "day":
        group = f"{group[:4]}-{group[4:6]}-{group[6:]}"
    shown: dict[str, Any] = {GROUP_NAMES[by]: group}
    if by == "key":
        shown["api_key_name"] = names.get(group, "")
    return shown | {
        "requests": row.attempts,
        "cost_usd": usd(row.cost),
        "overrun_usd": usd(row.overrun),
        "reserved_usd": usd(row.reserved),
        "input_tokens": row.prompt,
        "output_tokens": row.completion,
        "cached_read_tokens": row.cached_read,
        "cached_write_tokens": row.cached_write,
        "reasoning_tokens": row.reasoning,
        "unpriced": row.unpriced,
        "inexact": row.inexact,
    }
