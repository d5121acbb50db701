"""Aliases: client-facing model names that stand for weighted variants; their table.

The variant of a request is found by a hash of what the alias sticks to, so the same key always
meets the same variant and nothing has to be remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.decision import AUTO
from tokenhub.core.errors import Conflict, InvalidRequest, NotFound

if TYPE_CHECKING:
    from tokenhub.core.catalog import Catalog
    from tokenhub.core.clock import Clock
    from tokenhub.core.decision import RouteQuery
    from tokenhub.storage.database import Also, Database, Transaction

STICKY_BY = ("", "request", "api_key", "round_robin")
MAX_NAME = 256
MAX_VARIANTS = 100
MAX_WEIGHT = 1_000_000

_LIST = "SELECT name, variants, enabled, sticky_by, created_at, updated_at FROM model_aliases"
_PUT = """
INSERT INTO model_aliases (name, variants, enabled, sticky_by, created_at, updated_at)
VALUES (:name, :variants, :enabled, :sticky_by, :created_at, :updated_at)
ON CONFLICT (name) DO UPDATE SET variants = excluded.variants, enabled = excluded.enabled,
    sticky_by = excluded.sticky_by, updated_at = excluded.updated_at
"""
_DELETE = "DELETE FROM model_aliases WHERE name = :name"


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model an alias may mean, and its share."""

    model_id: str
    weight: int = 1


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """A name for several models. ``sticky_by`` "" is the same as ``request``."""

    name: str
    variants: tuple[Variant, ...]
    enabled: bool = True
    sticky_by: str = ""
    created_at: int = 0
    updated_at: int = 0

    @property
    def total(self) -> int:
        """The sum of the weights."""
        return sum(variant.weight for variant in self.variants)


class AliasFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an admin may say about an alias; the name stands in the path or here."""

    name: str = ""
    variants: tuple[Variant, ...] = ()
    enabled: bool = True
    sticky_by: str = ""


def fnv1a(key: str) -> int:
    """FNV-1a, 32 bits, of the UTF-8 bytes (draft-eastlake-fnv)."""
    value = 0x811C9DC5
    for byte in key.encode("utf-8", "surrogatepass"):
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def pick(alias: Alias, query: RouteQuery, turn: int, draw: float) -> int:
    """The index of the variant that the query meets.

    Args:
        alias: with at least one variant.
        query: names what the alias may stick to.
        turn: for ``round_robin``; a weight of 2 is two turns in a row.
        draw: in [0, 1), used when there is nothing to stick to.
    """
    total = alias.total
    if alias.sticky_by == "round_robin":
        point = turn % total
    else:
        key = (alias.sticky_by == "api_key" and query.key_id) or query.request_id
        point = fnv1a(key) % total if key else int(draw * total)
    for index, variant in enumerate(alias.variants):
        point -= variant.weight
        if point < 0:
            return index
    raise AssertionError("the weights sum to the total")


def check(fields: AliasFields, catalog: Catalog) -> None:
    """Refuse an alias that could not be obeyed.

    Raises:
        InvalidRequest: naming the field.
        Conflict: a model has that name, and a model's own id always wins.
    """
    name = fields.name
    if not name or name != name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidRequest(
            "`name` must have 1 to 256 printable characters, without spaces around it.",
            param="name",
        )
    if name == AUTO or name.startswith(AUTO + ":"):
        raise InvalidRequest(f"`{name}` is how clients ask for routing.", param="name")
    if name in catalog.models:
        raise Conflict(
            f"`{name}` is the id of a model, which wins over an alias of that name.",
            hint="Choose another name for the alias.",
            param="name",
        )
    if fields.sticky_by not in STICKY_BY:
        raise InvalidRequest(
            "`sticky_by` must be request, api_key or round_robin.", param="sticky_by"
        )
    _check_variants(fields)


def _check_variants(fields: AliasFields) -> None:
    if not 1 <= len(fields.variants) <= MAX_VARIANTS:
        raise InvalidRequest("`variants` must hold 1 to 100 entries.", param="variants")
    seen = set()
    for number, variant in enumerate(fields.variants):
        at = f"variants[{number}]"
        if not variant.model_id:
            raise InvalidRequest(f"`{at}.model_id` is empty.", param=at)
        if variant.model_id == fields.name:
            raise InvalidRequest(f"`{at}.model_id` is the alias itself.", param=at)
        if variant.model_id in seen:
            raise InvalidRequest(
                f"`{at}.model_id` appears twice.", param=at, code="duplicate_parameter"
            )
        if not 1 <= variant.weight <= MAX_WEIGHT:
            raise InvalidRequest(
                f"`{at}.weight` must be a whole number from 1 to {MAX_WEIGHT}.", param=at
            )
        seen.add(variant.model_id)


class Aliases:
    """The stored aliases; ``current`` is what requests are routed by."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self.current: dict[str, Alias] = {}

    @classmethod
    async def open(cls, db: Database, clock: Clock) -> Aliases:
        """Read the table."""
        aliases = cls(db, clock)
        aliases.current = {row[0]: _from_row(row) for row in await db.read(_LIST)}
        return aliases

    def get(self, name: str) -> Alias:
        """One alias.

        Raises:
            NotFound: there is none of that name.
        """
        if (alias := self.current.get(name)) is None:
            raise NotFound(f"There is no alias `{name}`.", hint="See `tokenhubctl alias list`.")
        return alias

    async def put(
        self, fields: AliasFields, catalog: Catalog, *, also: Also | None = None
    ) -> tuple[Alias, list[str]]:
        """Create or replace an alias; also the variants that name no model of the catalog.

        Raises:
            InvalidRequest, Conflict: see ``check``.
        """
        check(fields, catalog)
        before = self.current.get(fields.name)
        now = self._clock.now_ms()
        alias = Alias(
            **msgspec.structs.asdict(fields),
            created_at=before.created_at if before else now,
            updated_at=now,
        )

        def save(tx: Transaction) -> None:
            tx.execute(_PUT, _to_row(alias))
            if also:
                also(tx, describe(before) if before else None, describe(alias))

        await self._db.write(save)
        self.current = self.current | {alias.name: alias}
        return alias, [v.model_id for v in alias.variants if v.model_id not in catalog.models]

    async def delete(self, name: str, *, also: Also | None = None) -> None:
        """Remove an alias.

        Raises:
            NotFound: there is none of that name.
        """
        before = self.get(name)

        def remove(tx: Transaction) -> None:
            tx.execute(_DELETE, {"name": name})
            if also:
                also(tx, describe(before), None)

        await self._db.write(remove)
        self.current = {key: value for key, value in self.current.items() if key != name}


def describe(alias: Alias) -> dict[str, Any]:
    """The alias as JSON-able data."""
    fields: dict[str, Any] = msgspec.to_builtins(alias)
    return fields


def _to_row(alias: Alias) -> dict[str, Any]:
    row = describe(alias)
    row["variants"] = msgspec.json.encode(alias.variants).decode()
    row["enabled"] = int(alias.enabled)
    return row


def _from_row(row: tuple[Any, ...]) -> Alias:
    name, variants, enabled, sticky_by, created_at, updated_at = row
    return Alias(
        name=name,
        variants=msgspec.json.decode(variants, type=tuple[Variant, ...]),
        enabled=bool(enabled),
        sticky_by=sticky_by,
        created_at=created_at,
        updated_at=updated_at,
    )
