"""What the demo provider would put on its invoice, kept apart from the gateway's own ledger.

Money is in femto-dollars (1e-15 $), so that a price of any number of decimals adds up exactly.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.catalog import Prices

if TYPE_CHECKING:
    from tokenhub.core.chat import Usage

LIST_PRICES = Prices(
    input=1_000_000_000,  # $1 per million tokens
    output=4_000_000_000,
    cached_read=100_000_000,
    cached_write=1_250_000_000,
    source="manual",
)


class Account(msgspec.Struct):
    """One model's books.

    ``reported`` is what clients were told in a usage object, ``unreported`` what was produced
    without one: cut streams, clients that left, answers asked to keep silent.
    """

    requests: int = 0
    answered: int = 0
    failed: int = 0
    reported: dict[str, int] = msgspec.field(default_factory=dict)
    unreported: dict[str, int] = msgspec.field(default_factory=dict)


class Books:
    """Accounts per model."""

    def __init__(self, prices: Prices = LIST_PRICES) -> None:
        self.prices = prices
        self._accounts: dict[str, Account] = {}

    def account(self, model: str) -> Account:
        """The account of a model, opened when new."""
        return self._accounts.setdefault(model, Account())

    def charge(self, model: str, usage: Usage, *, reported: bool) -> None:
        """Enter one answer."""
        account = self.account(model)
        account.answered += 1
        column = account.reported if reported else account.unreported
        entry = {
            "prompt": usage.prompt,
            "completion": usage.completion,
            "cached_read": usage.cached_read,
            "cached_write": usage.cached_write,
            "reasoning": usage.reasoning,
            "answers": 1,
            "femto_usd": self.cost(usage),
        }
        for name, amount in entry.items():
            column[name] = column.get(name, 0) + amount

    def cost(self, usage: Usage) -> int:
        """What an answer costs, in femto-dollars; kinds without a price cost as input."""
        price = self.prices
        fresh = usage.prompt - usage.cached_read - usage.cached_write
        base = price.input or 0
        read = base if price.cached_read is None else price.cached_read
        write = base if price.cached_write is None else price.cached_write
        return (
            fresh * base
            + usage.cached_read * read
            + usage.cached_write * write
            + usage.completion * (price.output or 0)
        )

    def statement(self) -> dict[str, Any]:
        """Everything, JSON-able; dollars as exact decimal text."""
        models = {
            name: msgspec.to_builtins(self._accounts[name]) for name in sorted(self._accounts)
        }
        for account in models.values():
            for column in ("reported", "unreported"):
                account[column]["usd"] = _dollars(account[column].get("femto_usd", 0))
        total = sum(account["reported"].get("femto_usd", 0) for account in models.values())
        return {"models": models, "reported_usd": _dollars(total)}


def _dollars(femto: int) -> str:
    return format(Decimal(femto).scaleb(-15).normalize(), "f")
