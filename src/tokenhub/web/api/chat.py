"""POST /v1/chat/completions and POST /v1/chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenhub.web.gate import Gated
from tokenhub.web.http import Response

if TYPE_CHECKING:
    from tokenhub.access.keys import Grant
    from tokenhub.web.http import Request


class ChatApi(Gated):
    """Hands a chat request to the pipeline."""

    async def completions(self, request: Request, grant: Grant) -> Response | None:
        """Answer a chat request; None when the answer was streamed."""
        answer = await self._pipeline.chat(request, grant)
        return None if answer is None else Response(200, answer.body, answer.headers)

    async def native(self, request: Request, grant: Grant) -> Response | None:
        """The same in our own envelope, with a policy."""
        answer = await self._pipeline.native(request, grant)
        return None if answer is None else Response(200, answer.body, answer.headers)
