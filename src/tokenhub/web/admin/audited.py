"""What every admin handler needs to change something: the audit row that goes into its commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenhub.storage.database import Also
    from tokenhub.web.http import Request


class Auditor(Protocol):
    """Makes the audit row of one change; telemetry.audit is the implementation."""

    def entry(self, request: Request, action: str, resource: str) -> Also:
        """A row writer for the change's own transaction: no row, no change."""
        ...

    async def noted(self, request: Request, action: str, resource: str, outcome: str) -> None:
        """A row as of ``note`` that is durable when this returns; raises when it cannot be."""
        ...

    def note(self, request: Request, action: str, resource: str, outcome: str) -> None:
        """A row for something that changes no stored object: a failed login."""
        ...
