"""Outbox: what one turn of the event loop sends leaves at the end of it, all at once.

Each write to a socket may wake whoever reads at its other end, and waking another core costs more
than the write. Written one after the other, most find it awake already: 15 % less CPU for a chat.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_AT_ONCE = 65_536  # bytes for one transport; more goes out at once, so that it can say "pause"

_log = logging.getLogger(__name__)


class Outbox:
    """Bytes on their way to transports, in order for each of them.

    Who closes a transport properly calls ``flush`` before; what is left for one that is closing
    is dropped.

    Attributes:
        first: called before anything leaves; what it does has happened for every reader.
    """

    __slots__ = ("_call_soon", "_later", "_pending", "_scheduled", "first")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._pending: dict[asyncio.WriteTransport, bytes] = {}
        self._later: list[tuple[Callable[[Any], None], Any]] = []
        self._scheduled = False
        self.first: Callable[[], None] | None = None

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Send ``data`` when this turn ends."""
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._end)
        pending = self._pending
        earlier = pending.get(transport)
        if earlier is None:
            pending[transport] = data
        else:
            pending[transport] = data = earlier + data
            if len(data) > _AT_ONCE:
                self.flush()

    def holds(self, transport: asyncio.WriteTransport) -> bool:
        """Whether something written for ``transport`` has not left yet."""
        return transport in self._pending

    def after(self, call: Callable[[Any], None], value: object) -> None:
        """Have ``call(value)`` done once this turn's bytes have left: nobody waits for it."""
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._end)
        self._later.append((call, value))

    def _end(self) -> None:
        self._scheduled = False
        self.flush()
        later, self._later = self._later, []
        for call, value in later:
            try:
                call(value)
            except Exception:  # noqa: BLE001  # the answer has left; the others' work must be done
                _log.error("What follows an answer failed.", exc_info=True)

    def flush(self) -> None:
        """Send everything now."""
        pending = self._pending
        if not pending:
            return
        self._pending = {}
        if self.first is not None:
            self.first()
        for transport, data in pending.items():
            if transport.is_closing():
                continue
            try:
                transport.write(data)
            except Exception:  # noqa: BLE001  # one broken connection must not keep the others'
                _log.error("A connection could not be written to.", exc_info=True)
                transport.abort()
