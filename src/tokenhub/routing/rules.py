"""Rules: catalog, aliases and settings at one moment, with a digest that names them."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import msgspec

from tokenhub.core.catalog import EMPTY, Catalog
from tokenhub.core.decision import Limits
from tokenhub.routing.aliases import Alias


class RoutingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The effective defaults of routed requests. 0 = no limit."""

    default_mode: str = "normal"
    default_max_budget: int = 0  # nano-dollars
    default_max_latency_ms: int = 0
    exploration_temp: float = 0.0

    @property
    def limits(self) -> Limits:
        """As the limits they stand for."""
        return _limits(self.default_max_budget, self.default_max_latency_ms)


@lru_cache(maxsize=16)
def _limits(max_budget: int, max_latency_ms: int) -> Limits:
    return Limits(max_budget=max_budget, max_latency_ms=max_latency_ms, min_weight=0)


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What was configured. Swapped whole, never changed."""

    catalog: Catalog = EMPTY
    aliases: dict[str, Alias] = {}
    settings: RoutingSettings = RoutingSettings()
    digest: str = ""

    def changed(
        self,
        *,
        catalog: Catalog | None = None,
        aliases: dict[str, Alias] | None = None,
        settings: RoutingSettings | None = None,
    ) -> Rules:
        """A copy with some parts replaced and its own digest."""
        rules = Rules(
            catalog=self.catalog if catalog is None else catalog,
            aliases=self.aliases if aliases is None else aliases,
            settings=settings or self.settings,
        )
        digest = hashlib.blake2b(encode(rules), digest_size=12).hexdigest()
        return msgspec.structs.replace(rules, digest=digest)


def encode(rules: Rules) -> bytes:
    """The rules as JSON, the same bytes for the same rules."""
    return msgspec.json.encode(msgspec.structs.replace(rules, digest=""), order="deterministic")


def decode(body: bytes | str) -> Rules:
    """The rules from their JSON.

    Raises:
        msgspec.ValidationError: the text does not hold rules.
    """
    rules = msgspec.json.decode(body, type=Rules)
    return rules.changed()
