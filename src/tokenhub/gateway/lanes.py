"""Lanes: from a model of the catalog to everything needed to call it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.core.catalog import EMPTY
from tokenhub.providers.adapter import Target
from tokenhub.providers.egress import parse_base_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenhub.core.catalog import Catalog, Model, Provider
    from tokenhub.gateway.call import ClientRequest
    from tokenhub.providers.adapter import Adapter
    from tokenhub.providers.egress import Origin
    from tokenhub.providers.upstream import Upstream


class Lane:
    """One way to an answer: which format to speak, over what, to whom.

    Attributes:
        credential: reads the provider's key, for one request; None when it has none.
    """

    __slots__ = ("adapter", "credential", "origin", "target", "upstream")

    def __init__(
        self,
        adapter: Adapter,
        upstream: Upstream,
        origin: Origin | None,
        target: Target,
        credential: Callable[[], bytes] | None,
    ) -> None:
        self.adapter = adapter
        self.upstream = upstream
        self.origin = origin
        self.target = target
        self.credential = credential


class Lanes:
    """Makes lanes, and keeps them while the catalog stays the same.

    A credential is no part of a lane: it is read from the vault for each call and kept by nobody.

    Args:
        catalog: the snapshot in force.
        adapters: by provider type.
        remote: the way to upstreams that have a base URL.
        builtin: the demo provider inside this process.
        credential: how to read a provider's key, None when it has none. Reading raises VaultLocked
            while that is so, Conflict when the key is another address's.
        locked: whether credentials cannot be read now.
        trace: headers that tell a provider of the trace, None without tracing: from the request
            and the number of the attempt.
    """

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        adapters: Mapping[str, Adapter],
        remote: Upstream,
        builtin: Upstream,
        credential: Callable[[Provider], Callable[[], bytes] | None],
        locked: Callable[[], bool],
        trace: Callable[[ClientRequest, int], list[tuple[bytes, bytes]]] | None = None,
    ) -> None:
        self.trace = trace
        self._locked = locked
        self._catalog = catalog
        self._adapters = adapters
        self._remote = remote
        self._builtin = builtin
        self._credential = credential
        self._of: Catalog = EMPTY  # the snapshot that the kept lanes belong to
        self._kept: dict[str, Lane] = {}

    def to(self, model: Model) -> Lane:
        """The lane to a model, at the provider as the catalog has it now."""
        catalog = self._catalog()
        if catalog is not self._of:
            self._of, self._kept = catalog, {}
        lane = self._kept.get(model.id)
        # A request that was decided before the catalog changed brings a model of the old one.
        if lane is None or lane.target.model is not model:
            lane = self._kept[model.id] = self._towards(catalog.provider_of(model), model)
        return lane

    def _towards(self, provider: Provider, model: Model) -> Lane:
        target, adapter = Target(model, provider), self._adapters[provider.type]
        credential = self._credential(provider)
        if provider.type == "demo":
            return Lane(adapter, self._builtin, None, target, credential)
        origin = parse_base_url(provider.base_url)
        return Lane(adapter, self._remote, origin, target, credential)

    def unavailable(self) -> dict[str, str]:
        """Providers whose credential cannot be read now, with the reason."""
        if not self._locked():
            return _NONE
        return {
            one.id: "vault_locked"
            for one in self._catalog().providers.values()
            if one.cred_store == "vault"
        }


_NONE: dict[str, str] = {}
