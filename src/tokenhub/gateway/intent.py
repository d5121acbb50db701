"""What a client asks for, whichever endpoint it came by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.core.chat import parse_chat
from tokenhub.core.decision import NO_LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenhub.core.chat import ChatRequest
    from tokenhub.core.decision import Limits
    from tokenhub.gateway.call import Answer, Call


class Intent:
    """A chat request and the policy it is routed under.

    Attributes:
        chat: what to ask, in OpenAI's dialect.
        mode: a routing mode, "" = not said.
        limits: ceilings the client set.
        allow_fallback: another model may answer when the named one cannot.
        input_tokens: the client's own estimate, 0 = none.
        shape: makes the endpoint's own answer of a whole one; may raise Unprocessable.
    """

    __slots__ = ("allow_fallback", "chat", "input_tokens", "limits", "mode", "shape")

    def __init__(
        self,
        chat: ChatRequest,
        mode: str = "",
        limits: Limits = NO_LIMITS,
        *,
        allow_fallback: bool = False,
        input_tokens: int = 0,
        shape: Callable[[Call, Answer], Answer] | None = None,
    ) -> None:
        self.chat = chat
        self.mode = mode
        self.limits = limits
        self.allow_fallback = allow_fallback
        self.input_tokens = input_tokens
        self.shape = shape


def chat_intent(body: bytes) -> Intent:
    """Read the body of ``/v1/chat/completions``.

    Raises:
        InvalidRequest: naming the member.
    """
    return Intent(parse_chat(body))
