"""How a client wants its chat request routed and answered, whichever endpoint it came by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.core.decision import NO_LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.core.decision import Limits
    from tokenhub.gateway.call import Answer, Call


class Intent:
    """The policy a chat request is routed under.

    Attributes:
        mode: a routing mode, "" = not said.
        limits: ceilings the client set.
        allow_fallback: another model may answer when the named one cannot.
        input_tokens: the client's own estimate, 0 = none.
        shape: makes the endpoint's own answer of a whole one; may raise Unprocessable.
    """

    __slots__ = ("allow_fallback", "input_tokens", "limits", "mode", "shape")

    def __init__(
        self,
        mode: str = "",
        limits: Limits = NO_LIMITS,
        *,
        allow_fallback: bool = False,
        input_tokens: int = 0,
        shape: Callable[[Call, Answer], Answer] | None = None,
    ) -> None:
        self.mode = mode
        self.limits = limits
        self.allow_fallback = allow_fallback
        self.input_tokens = input_tokens
        self.shape = shape


PLAIN = Intent()
"""Of an endpoint that can say none of it."""
