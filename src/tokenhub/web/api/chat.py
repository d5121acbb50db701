"""POST /v1/chat/completions and POST /v1/chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenhub.web.gate import Gated

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tokenhub.access.keys import Grant
    from tokenhub.web.http import Reply, Request


class ChatApi(Gated):
    """Hands a chat request to the pipeline."""

    def completions(self, request: Request, grant: Grant) -> Coroutine[Any, Any, Reply | None]:
        """Answer a chat request; None when the answer was streamed."""
        return self._pipeline.chat(request, grant)

    def native(self, request: Request, grant: Grant) -> Coroutine[Any, Any, Reply | None]:
        """The same in our own envelope, with a policy."""
        return self._pipeline.native(request, grant)
