"""How the demo provider behaves for one request: what its model's name and the body ask for.

A body's member ``demo`` is an object of the fields of ``Script``; what it leaves out is as the
model's name says, and any other model whose name begins with "demo" behaves well.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request's behaviour.

    Attributes:
        delay_ms: wait before the answer begins.
        chunk_ms: wait before each further event of a stream.
        status: answer with this error status, 0 = do not.
        retry_after: seconds in the ``Retry-After`` of such an answer, None = no such header.
        fail_every: every n-th request of this model fails with 500, the first one first; 0 = none.
        cut_after: break the connection after this many events, -1 = do not. A whole answer breaks
            in the middle of its body.
        hang: never answer.
        stall_after: fall silent after this many events, -1 = do not.
        error_after: an error event in place of the rest after this many events, -1 = do not.
        garbage: answer 200 with something that is not the protocol.
        malformed: put one broken event into the stream.
        done: end the stream as the protocol says (``[DONE]``, ``message_stop``).
        usage: report usage.
        tokens: answer with exactly this many tokens, 0 = as long as the text is.
        cached: prompt tokens to report as read from a cache (as many as there are at most).
        cache_write: prompt tokens to report as written to a cache (as many as are left).
        reasoning: tokens to spend on reasoning first.
        refuse: end with a content filter's refusal.
    """

    delay_ms: int = 0
    chunk_ms: int = 0
    status: int = 0
    retry_after: float | None = None
    fail_every: int = 0
    cut_after: int = -1
    hang: bool = False
    stall_after: int = -1
    error_after: int = -1
    garbage: bool = False
    malformed: bool = False
    done: bool = True
    usage: bool = True
    tokens: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    refuse: bool = False


MAX_TOKENS = 20_000
MAX_DELAY_MS = 600_000

PRESETS: dict[str, Script] = {
    "demo": Script(),
    "demo-slow": Script(delay_ms=2000, chunk_ms=100),
    "demo-flaky": Script(fail_every=2),
    "demo-400": Script(status=400),
    "demo-401": Script(status=401),
    "demo-402": Script(status=402),
    "demo-429": Script(status=429, retry_after=2),
    "demo-500": Script(status=500),
    "demo-503": Script(status=503, retry_after=1),
    "demo-529": Script(status=529),
    "demo-overflow": Script(status=413),
    "demo-refuse": Script(refuse=True),
    "demo-cut": Script(cut_after=5),
    "demo-error": Script(error_after=5, chunk_ms=1),
    "demo-stall": Script(stall_after=5),
    "demo-hang": Script(hang=True),
    "demo-garbage": Script(garbage=True),
    "demo-malformed": Script(malformed=True),
    "demo-endless": Script(done=False),
    "demo-silent": Script(usage=False),
    "demo-cached": Script(cached=4, cache_write=2),
    "demo-reasoning": Script(reasoning=8),
}


class BadScript(ValueError):
    """The request asks for something the demo provider does not have."""


def script_for(model: str, wish: Any) -> Script:
    """The behaviour for a model's name and the body's member ``demo``.

    Raises:
        BadScript: no such model, or a member of ``demo`` that is not a field of ``Script``.
    """
    name = model.rpartition("/")[2]
    base = PRESETS.get(name)
    if base is None:
        if not name.startswith("demo"):
            raise BadScript(f"The model `{model[:64]}` does not exist; try `demo`.")
        base = PRESETS["demo"]
    if wish is None:
        return base
    if not isinstance(wish, dict):
        raise BadScript("`demo` must be an object.")
    try:
        return _checked(msgspec.convert(msgspec.structs.asdict(base) | wish, Script))
    except msgspec.ValidationError as error:
        raise BadScript(f"`demo` does not fit: {error}.") from None


def _checked(script: Script) -> Script:
    if not 0 <= script.tokens <= MAX_TOKENS:
        raise BadScript(f"`demo.tokens` must be between 0 and {MAX_TOKENS}.")
    for name in ("delay_ms", "chunk_ms"):
        if not 0 <= getattr(script, name) <= MAX_DELAY_MS:
            raise BadScript(f"`demo.{name}` must be between 0 and {MAX_DELAY_MS}.")
    if script.status and not 400 <= script.status <= 599:
        raise BadScript("`demo.status` must be between 400 and 599.")
    for name in ("cached", "cache_write", "reasoning", "fail_every"):
        if not 0 <= getattr(script, name) <= MAX_TOKENS:
            raise BadScript(f"`demo.{name}` must be between 0 and {MAX_TOKENS}.")
    return script
