"""What a client's model name means: a model, an alias, a wish for routing, or a mistake.

In this order: the exact id of a model; an enabled alias; ``auto``, ``auto:<mode>`` and ``*``;
``provider/model`` where exactly one model fits; else an error that names the nearest names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.catalog import Model
from tokenhub.core.decision import AUTO, MODES
from tokenhub.core.errors import Forbidden, InvalidRequest, NotFound
from tokenhub.core.similar import similar
from tokenhub.routing.aliases import Alias

if TYPE_CHECKING:
    from tokenhub.core.catalog import Catalog
    from tokenhub.routing.rules import Rules

WILDCARD = "*"


class Hint(msgspec.Struct, frozen=True):
    """One of: a model; an alias; neither, and then a mode or "" for the default one."""

    model: Model | None = None
    alias: Alias | None = None
    mode: str = ""


ROUTED = Hint()


def read_hint(name: str, rules: Rules, allowed: tuple[str, ...] = ()) -> Hint:
    """What ``name`` means.

    Args:
        name: as the client sent it; spaces around it do not count.
        rules: the catalog and the aliases.
        allowed: the key's allow-list; nothing outside it is suggested.

    Raises:
        NotFound: code ``model_not_found``, with the nearest names.
        Forbidden: code ``model_not_allowed``, the key may not use it.
        InvalidRequest: code ``unknown_mode``.
    """
    name = name.strip()
    if not name:
        return ROUTED
    if (model := rules.catalog.models.get(name)) is not None:
        return _permitted(Hint(model=model), name, allowed)
    alias = rules.aliases.get(name)
    if alias is not None and alias.enabled:
        return _permitted(Hint(alias=alias), name, allowed)
    if name in {AUTO, WILDCARD}:
        return ROUTED
    if name.startswith(AUTO + ":"):
        return Hint(mode=check_mode(name[len(AUTO) + 1 :], param="model"))
    if (model := _prefixed(name, rules.catalog)) is not None:
        return _permitted(Hint(model=model), model.id, allowed)
    raise _unknown(name, rules, allowed)


def check_mode(mode: str, *, param: str = "mode") -> str:
    """The mode, when there is one of that name.

    Raises:
        InvalidRequest: code ``unknown_mode``, with the nearest name.
    """
    if mode in MODES:
        return mode
    near = similar(mode[:64], MODES)
    raise InvalidRequest(
        f"There is no routing mode `{mode[:64]}`.",
        code="unknown_mode",
        param=param,
        hint=f"Did you mean `{near[0]}`?" if near else f"Modes: {', '.join(MODES)}.",
    )


def _permitted(hint: Hint, name: str, allowed: tuple[str, ...]) -> Hint:
    if not allowed or name in allowed:
        return hint
    if hint.alias and any(variant.model_id in allowed for variant in hint.alias.variants):
        return hint
    raise Forbidden(
        f"This key may not use `{name}`.",
        code="model_not_allowed",
        param="model",
        hint=f"It may use: {', '.join(allowed[:10])}.",
    )


def _prefixed(name: str, catalog: Catalog) -> Model | None:
    prefix, slash, rest = name.partition("/")
    if not slash or not rest:
        return None
    at = {one.id for one in catalog.providers.values() if prefix in {one.id, one.type}}
    fitting = [
        model
        for model in catalog.models.values()
        if model.provider_id in at and rest in {model.id, model.upstream_name}
    ]
    return fitting[0] if len(fitting) == 1 else None


def _unknown(name: str, rules: Rules, allowed: tuple[str, ...]) -> NotFound:
    shown = name[:128]
    names = [model.id for model in rules.catalog.models.values() if model.enabled]
    names += [alias.name for alias in rules.aliases.values() if alias.enabled]
    if allowed:
        names = [known for known in names if known in allowed]
    near = nearest(shown, names)
    if near:
        hint = f"Did you mean {' or '.join(f'`{known}`' for known in near)}?"
    elif names:
        hint = f"Send `{AUTO}` to let TokenHub choose, or see GET /v1/models for all names."
    else:
        hint = "No model is set up yet: `tokenhubctl model add` adds one."
    return NotFound(
        f"There is no model `{shown}`.",
        code="model_not_found",
        param="model",
        hint=hint,
        extra={"nearest": near},
    )


def nearest(name: str, names: list[str], count: int = 3) -> list[str]:
    """Up to ``count`` names that look like ``name``, the best first; case does not count."""
    folded: dict[str, str] = {}
    for known in names:
        folded.setdefault(known.casefold(), known)
        folded.setdefault(known.rpartition("/")[2].casefold(), known)
    close = similar(name.casefold(), folded, count=2 * count)
    return list(dict.fromkeys(folded[key] for key in close))[:count]
