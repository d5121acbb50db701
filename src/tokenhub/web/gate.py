"""The gate: what a handler must be to cost money."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenhub.gateway.transcribe import Answering


class Gated:
    """Handlers that reach providers through the pipeline only, which reserves and settles.

    The edge refuses a route that says it spends and is not one of these.
    """

    def __init__(self, pipeline: Answering) -> None:
        self._pipeline = pipeline
