"""How each upstream is spoken to: adapters, transport, the catalog of providers and models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.providers.anthropic import AnthropicAdapter
from tokenhub.providers.openai import OpenAIAdapter

if TYPE_CHECKING:
    from tokenhub.core.clock import Clock
    from tokenhub.providers.adapter import Adapter


def adapters(clock: Clock) -> dict[str, Adapter]:
    """The adapter of each provider type."""
    return {
        "openai": OpenAIAdapter(clock),
        "anthropic": AnthropicAdapter(clock),
        "vllm": OpenAIAdapter(clock, limit_name="max_tokens"),
        "demo": OpenAIAdapter(clock),
    }
