"""Prompts and answers, kept only where the admin turned that on; pruned with the request log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenhub.storage.database import Database, Transaction

MAX_BYTES = 256 * 1024  # of each of the two texts
PRUNE_SLICE = 500

_INSERT = """
INSERT INTO transcripts (request_id, at_ms, request, answer, cut)
VALUES (:request_id, :at_ms, :request, :answer, :cut)
"""
_ONE = "SELECT request, answer, cut FROM transcripts WHERE request_id = :id"
_PRUNE = """
DELETE FROM transcripts WHERE request_id IN (
  SELECT request_id FROM transcripts WHERE at_ms < :before ORDER BY at_ms LIMIT :slice)
"""


class Transcripts:
    """Keeps what was asked and answered, word for word."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def keep(self, request_id: str, at_ms: int, request: bytes, answer: bytes) -> None:
        """Store one exchange; never waits. What is over 256 KiB is cut, and marked so."""
        row = {
            "request_id": request_id,
            "at_ms": at_ms,
            "request": request[:MAX_BYTES].decode("utf-8", "replace"),
            "answer": answer[:MAX_BYTES].decode("utf-8", "replace"),
            "cut": int(max(len(request), len(answer)) > MAX_BYTES),
        }
        self._db.write_soon(lambda tx: tx.execute(_INSERT, row))

    async def get(self, request_id: str) -> dict[str, Any] | None:
        """``{request, answer, cut}``, None where nothing was kept."""
        rows = await self._db.read(_ONE, {"id": request_id})
        if not rows:
            return None
        request, answer, cut = rows[0]
        return {"request": request, "answer": answer, "cut": bool(cut)}

    async def prune(self, before_ms: int) -> int:
        """Delete what is older than a moment, in slices; how many."""

        def delete(tx: Transaction) -> int:
            tx.execute(_PRUNE, {"before": before_ms, "slice": PRUNE_SLICE})
            return tx.changes()

        total = 0
        while True:
            deleted = await self._db.write(delete)
            total += deleted
            if deleted < PRUNE_SLICE:
                return total
            await asyncio.sleep(0)
