"""How each upstream is spoken to: adapters, transport, the catalog of providers and models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.providers.openai import OpenAIAdapter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenhub.core.clock import Clock
    from tokenhub.providers.adapter import Adapter


def adapters(clock: Clock) -> Mapping[str, Adapter]:
    """The adapter of each provider type."""
    return _Adapters(clock)


class _Adapters(dict[str, "Adapter"]):
    """What does not speak OpenAI's protocol is loaded when it is first asked for."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(
            openai=OpenAIAdapter(clock),
            vllm=OpenAIAdapter(clock, limit_name="max_tokens"),
            demo=OpenAIAdapter(clock),
        )
        self._clock = clock

    def __missing__(self, kind: str) -> Adapter:
        """Make the adapter of a type that was not asked for before; KeyError: there is no such."""
        if kind != "anthropic":
            raise KeyError(kind)
        from tokenhub.providers.anthropic import AnthropicAdapter  # noqa: PLC0415  # six modules

        adapter = self[kind] = AnthropicAdapter(self._clock)
        return adapter
