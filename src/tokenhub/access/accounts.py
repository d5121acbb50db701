"""Accounts: what a key has settled, reserved and may still spend, as the ledger keeps it in memory.

A key has three: its UTC month, its UTC day, and its total.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

MONTH, DAY, TOTAL = "month", "day", "total"
KINDS = (MONTH, DAY, TOTAL)

UNLIMITED = 1 << 62
"""The ceiling of an account without a budget."""

DAY_MS = 86_400_000


class Budgeted(Protocol):
    """What the ledger must know of an API key; amounts are nano-dollars, None = no limit."""

    @property
    def key_id(self) -> str:
        """Whose money it is."""
        ...

    @property
    def revision(self) -> int:
        """Rises with each change of the key."""
        ...

    @property
    def monthly_budget(self) -> int | None:
        """Per UTC month."""
        ...

    @property
    def daily_budget(self) -> int | None:
        """Per UTC day."""
        ...

    @property
    def total_budget(self) -> int | None:
        """For ever."""
        ...


class Account:
    """The sums of one key over one period.

    Attributes:
        id: of its row.
        period: YYYYMM, YYYYMMDD, or 0 for the total.
        settled, reserved, overrun: nano-dollars.
        budget: the key's limit, None = none.
        stored: its row is durable.
        capped: the budget was lowered below what was settled and reserved; the row's ceiling is
            brought down with them.
    """

    __slots__ = (
        "budget",
        "capped",
        "id",
        "key_id",
        "kind",
        "overrun",
        "period",
        "reserved",
        "settled",
        "stored",
    )

    def __init__(
        self,
        number: int,
        key_id: str,
        kind: str,
        period: int,
        budget: int | None = None,
    ) -> None:
        self.id = number
        self.key_id = key_id
        self.kind = kind
        self.period = period
        self.settled = 0
        self.reserved = 0
        self.overrun = 0
        self.budget = budget
        self.stored = False
        self.capped = False

    @property
    def ceiling(self) -> int:
        """The limit the row has to keep."""
        if self.budget is None:
            return UNLIMITED
        return max(self.budget, self.settled + self.reserved)

    @property
    def spent(self) -> int:
        """What the key's owner owes for the period."""
        return self.settled + self.overrun

    @property
    def room(self) -> int:
        """What may still be reserved; below 0 after an overrun or a lowered budget.

        Overruns count as spent, though no limit could stop them.
        """
        if self.budget is None:
            return UNLIMITED
        return self.budget - self.settled - self.reserved - self.overrun


class Books:
    """The three accounts of a key that a new reservation counts in.

    Attributes:
        accounts: all three: month, day, total.
        key_id, month, day: whose they are, and the periods of the first two.
        grant: the one whose budgets are in force.
        limited: the accounts that have a budget.
    """

    __slots__ = ("accounts", "day", "grant", "key_id", "limited", "month")

    def __init__(self, month: Account, day: Account, total: Account) -> None:
        self.accounts = (month, day, total)
        self.key_id = month.key_id
        self.month = month.period
        self.day = day.period
        self.grant: Budgeted | None = None
        self.limited: tuple[Account, ...] = ()

    def adopt(self, grant: Budgeted) -> list[Account]:
        """Put a grant's budgets in force; returns the accounts whose budget changed.

        A grant that a newer one has replaced (a long request may still carry it) changes nothing.
        """
        if self.grant is not None and grant.revision < self.grant.revision:
            return []
        changed = []
        budgets = (grant.monthly_budget, grant.daily_budget, grant.total_budget)
        for account, budget in zip(self.accounts, budgets, strict=True):
            if account.budget != budget:
                account.budget = budget
                changed.append(account)
        self.grant = grant
        self.limited = tuple(account for account in self.accounts if account.budget is not None)
        return changed

    def turned(self, found: dict[str, Account]) -> Books:
        """The books of a new day, with the same grant in force."""
        books = Books(found[MONTH], found[DAY], found[TOTAL])
        if self.grant is not None:
            books.adopt(self.grant)
        return books

    def tightest(self) -> Account | None:
        """The account with the least room, None where there is no budget."""
        found = None
        for account in self.limited:
            if found is None or account.room < found.room:
                found = account
        return found


def day_of(now_ms: int) -> int:
    """The UTC day as YYYYMMDD."""
    at = datetime.fromtimestamp(now_ms / 1000, UTC)
    return at.year * 10_000 + at.month * 100 + at.day


def day_start_ms(day: int) -> int:
    """The first millisecond of a day YYYYMMDD."""
    return int(_date(day).timestamp()) * 1000


def resets_at(account: Account) -> datetime | None:
    """The first instant of the period after an account's, None for the total."""
    if account.kind == DAY:
        return _date(account.period) + timedelta(days=1)
    if account.kind == MONTH:
        return (_date(account.period * 100 + 1) + timedelta(days=31)).replace(day=1)
    return None


def _date(day: int) -> datetime:
    return datetime(day // 10_000, day // 100 % 100, day % 100, tzinfo=UTC)
