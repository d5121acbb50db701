"""What a key is told when its money does not suffice, or cannot be counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.access.accounts import DAY, MONTH, TOTAL, resets_at
from tokenhub.core.errors import InvalidRequest, PaymentRequired, Unavailable
from tokenhub.core.money import format_usd, usd

if TYPE_CHECKING:
    from tokenhub.access.accounts import Account
    from tokenhub.core.catalog import Model

# SDKs repeat a 429 by themselves; a budget does not come back in seconds.
NO_RETRY = ((b"x-should-retry", b"false"),)

_NAMES = {MONTH: "monthly", DAY: "daily", TOTAL: "total"}


def unpriced(model: Model) -> InvalidRequest:
    """A key with a budget cannot use a model whose price nobody knows."""
    return InvalidRequest(
        f"This key has a budget, and the model `{model.id}` has no known price.",
        code="model_unpriced",
        param="model",
        hint=(
            f"Set one, in dollars per 1000 tokens: `tokenhubctl prices set {model.id} "
            """'{"input_per_1k": 0.001, "output_per_1k": 0.002}'`."""
        ),
    )


def over_budget(account: Account, needed: int) -> PaymentRequired:
    """An account has less room than is needed."""
    assert account.budget is not None
    reset = resets_at(account)
    left = max(account.room, 0)
    return PaymentRequired(
        f"The {_NAMES[account.kind]} budget of this key is ${format_usd(account.budget)}; "
        f"${format_usd(left)} is free and this request may cost ${format_usd(needed)}.",
        hint=f"It resets at {reset:%Y-%m-%dT%H:%M:%SZ}." if reset else None,
        headers=NO_RETRY,
        extra={
            "period": account.kind,
            "limit_usd": usd(account.budget),
            "spent_usd": usd(account.spent),
            "reserved_usd": usd(account.reserved),
            "needed_usd": usd(needed),
            "resets_at": f"{reset:%Y-%m-%dT%H:%M:%SZ}" if reset else None,
        },
    )


def unwritten() -> Unavailable:
    """The books cannot be written, so nothing may be spent."""
    return Unavailable(
        "The spending of this key cannot be written down now, so nothing may be spent.",
        code="ledger_unavailable",
        hint="Look at /healthz: the disk may be full, or the server is stopping.",
    )
