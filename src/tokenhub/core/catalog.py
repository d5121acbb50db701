"""Provider, Model and Catalog: the immutable snapshot a request is routed against."""

from __future__ import annotations

from functools import cached_property

import msgspec


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """An upstream account: type, base URL, credential.

    ``origin`` is scheme://host:port of ``base_url``; a credential is bound to it.
    ``cred_store`` is "vault" when the vault holds a key for it, else "none".
    ``source`` is "store" for a row of the database, "runtime" for the built-in demo.
    """

    id: str
    type: str  # openai, anthropic, vllm, demo
    base_url: str = ""
    enabled: bool = True
    cred_store: str = "none"
    api_version: str = ""  # the Anthropic version header; "" = the adapter's default
    source: str = "store"
    origin: str = ""


class Prices(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, dict=True):
    """What a model's tokens cost, in **femto-dollars (1e-15 $) per token**, integers.

    $0.075 per million tokens is 75_000_000 here, so no list price needs a float. ``input`` None =
    the model has no known price. Any other kind that is None costs as the kind it is part of:
    the cached, audio and image kinds of the prompt as ``input`` (``cached_write_1h`` as
    ``cached_write``), those of the answer as ``output``, ``output`` itself as ``input``.

    Attributes:
        request: femto-dollars for each request, on top of its tokens.
        tiers: (prompt tokens, prices) in rising order: from one token more than that on, *all*
            tokens of the request cost so, whatever was said above.
        variants: (service tier, prices) for answers whose usage names one: batch, flex, ...
        source: manual, catalogue or unknown.
        version: the catalogue's date.
    """

    input: int | None = None
    output: int | None = None
    cached_read: int | None = None
    cached_write: int | None = None
    cached_write_1h: int | None = None
    reasoning: int | None = None
    audio_in: int | None = None
    audio_out: int | None = None
    image_in: int | None = None
    image_out: int | None = None
    request: int = 0
    tiers: tuple[tuple[int, Prices], ...] = ()
    variants: tuple[tuple[str, Prices], ...] = ()
    source: str = "unknown"
    version: str = ""

    @cached_property
    def dearest(self) -> tuple[int, int, int]:
        """The most a token can cost: sent, sent to be cached for an hour, and in the answer."""
        text = max(self.input or 0, self.cached_read or 0, self.cached_write or 0)
        hour = max(text, self.cached_write_1h or 0)
        plain = (self.input or 0) if self.output is None else self.output
        answer = max(plain, self.reasoning or 0, self.audio_out or 0, self.image_out or 0)
        return text, hour, answer


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One routable entry: a model at a provider, with weight, context size and prices.

    The four ``…_per_1k`` are dollars per 1000 tokens as the admin wrote them (decimal text,
    "" = not given); ``prices`` is what holds. ``upstream_name`` is what the provider calls it;
    "" = the id.
    """

    id: str
    provider_id: str
    weight: int = 5
    max_context_tokens: int = 0  # 0 = unknown, treated as unlimited
    input_per_1k: str = ""
    output_per_1k: str = ""
    cached_read_per_1k: str = ""
    cached_write_per_1k: str = ""
    enabled: bool = True
    pricing_source: str = "manual"
    upstream_name: str = ""
    max_output_tokens: int = 0  # 0 = unknown
    first_token_ms: int = 0  # limit for the first token; 0 = the gateway's default
    tools: bool = True  # can call tools
    images: bool = True  # reads image parts
    prices: Prices = Prices()
    source: str = "store"

    @property
    def name_at_provider(self) -> str:
        """The name to send to the provider."""
        return self.upstream_name or self.id


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """Providers and models at one moment; swapped whole, never changed."""

    version: int
    providers: dict[str, Provider]
    models: dict[str, Model]

    def provider_of(self, model: Model) -> Provider:
        """The provider of a model of this catalog."""
        return self.providers[model.provider_id]


EMPTY = Catalog(version=0, providers={}, models={})


def secret_name(provider_id: str) -> str:
    """What the vault calls the key of a provider."""
    return f"provider:{provider_id}:api_key"
