"""The pipeline with a stenographer, for servers whose admin wants prompts and answers kept.

Stands around the pipeline instead of inside it, so that it costs nothing where it is off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tokenhub.access.keys import Grant
    from tokenhub.gateway.call import Answer, ClientRequest, ClientStream
    from tokenhub.telemetry.transcripts import Transcripts


class Answering(Protocol):
    """What answers chat requests: the pipeline, or something that stands around it."""

    async def chat(self, request: ClientRequest, grant: Grant) -> Answer | None:
        """Answer a request in OpenAI's dialect."""
        ...

    async def native(self, request: ClientRequest, grant: Grant) -> Answer | None:
        """Answer a request in our own envelope."""
        ...


class Transcribed:
    """Answers as ``pipeline`` does and keeps both sides of every exchange."""

    def __init__(self, pipeline: Answering, transcripts: Transcripts) -> None:
        self._pipeline = pipeline
        self._transcripts = transcripts

    async def chat(self, request: ClientRequest, grant: Grant) -> Answer | None:
        """Answer a request in OpenAI's dialect."""
        return await self._kept(self._pipeline.chat, request, grant)

    async def native(self, request: ClientRequest, grant: Grant) -> Answer | None:
        """Answer a request in our own envelope."""
        return await self._kept(self._pipeline.native, request, grant)

    async def _kept(
        self,
        answering: Callable[[ClientRequest, Grant], Awaitable[Answer | None]],
        request: ClientRequest,
        grant: Grant,
    ) -> Answer | None:
        heard = _Heard(request)
        try:
            answer = await answering(heard, grant)
            if answer is not None:
                heard.said.append(answer.body)
            return answer
        finally:
            said = b"".join(heard.said)
            self._transcripts.keep(request.id, request.at_ms, bytes(request.body), said)


class _Heard:
    """A request whose streamed answer is written down as it goes out."""

    def __init__(self, request: ClientRequest) -> None:
        self.id = request.id
        self.client_id = request.client_id
        self.body = request.body
        self.at_ms = request.at_ms
        self.peer = request.peer
        self.headers = request.headers
        self.said: list[bytes] = []
        self._request = request

    def open_stream(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> ClientStream:
        return _HeardStream(self._request.open_stream(status, headers), self.said)


class _HeardStream:
    def __init__(self, stream: ClientStream, said: list[bytes]) -> None:
        self._stream = stream
        self._said = said

    @property
    def paused(self) -> bool:
        return self._stream.paused

    @property
    def on_pause(self) -> Callable[[], None] | None:
        return self._stream.on_pause

    @on_pause.setter
    def on_pause(self, callback: Callable[[], None] | None) -> None:
        self._stream.on_pause = callback

    @property
    def on_resume(self) -> Callable[[], None] | None:
        return self._stream.on_resume

    @on_resume.setter
    def on_resume(self, callback: Callable[[], None] | None) -> None:
        self._stream.on_resume = callback

    def write(self, data: bytes) -> None:
        self._said.append(data)
        self._stream.write(data)

    def end(self, data: bytes = b"") -> None:
        self._said.append(data)
        self._stream.end(data)

    def abort(self) -> None:
        self._stream.abort()
