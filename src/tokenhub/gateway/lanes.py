"""Lanes: from a model of the catalog to everything needed to call it."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    """One way to an answer: which format to speak, over what, to whom."""

    __slots__ = ("adapter", "origin", "target", "upstream")

    def __init__(
        self, adapter: Adapter, upstream: Upstream, origin: Origin | None, target: Target
    ) -> None:
        self.adapter = adapter
        self.upstream = upstream
        self.origin = origin
        self.target = target


class Lanes:
    """Makes lanes; a credential is read from the vault for each call and kept by nobody.

    Args:
        catalog: the snapshot in force.
        adapters: by provider type.
        remote: the way to upstreams that have a base URL.
        builtin: the demo provider inside this process.
        credential: a provider's key, None when it has none; VaultLocked while that is so.
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
        credential: Callable[[Provider], bytes | None],
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

    def to(self, model: Model) -> Lane:
        """The lane to a model.

        Raises:
            VaultLocked, Conflict: its provider's credential cannot be used now.
        """
        return self.towards(self._catalog().providers[model.provider_id], model)

    def towards(self, provider: Provider, model: Model) -> Lane:
        """The lane to a model at a given provider."""
        target = Target(model=model, provider=provider, credential=self._credential(provider))
        adapter = self._adapters[provider.type]
        if provider.type == "demo":
            return Lane(adapter, self._builtin, None, target)
        return Lane(adapter, self._remote, parse_base_url(provider.base_url), target)

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
