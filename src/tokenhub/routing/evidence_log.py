"""Evidence in the log: once per look, and with many models only what changed since the last one.

    complete ◄── difference ◄── difference ◄── …        each names the one before it, its base

With 1,000 models an evidence is 140 KB of JSON, twenty times a second. Between two looks only the
models that answered meanwhile change. A row of differences never refers to one that is not there:
whether the base is stored is asked in the transaction that stores the difference.

Requests end in another order than they began in, a stream a minute after its look. So it is
remembered what the latest looks are stored as, and what comes late is no base for what follows.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tokenhub.core.decision import Evidence
from tokenhub.routing.record import encode_evidence

if TYPE_CHECKING:
    from tokenhub.storage.database import Database, Transaction

COMPLETE_BELOW = 100  # arms and times; so few are stored as they are
MOST_LINKS = 64  # differences in a row: what has to be read to know one evidence
OLDEST_BASE_MS = 60_000  # so that what is pruned by age takes no base from what is left
LATE_MS = 60_000  # what is older than the last by more was taken after the clock was set back
REMEMBERED = 100_000  # arms and times, some 100 bytes each
OWN_WEIGHT = 100  # of an evidence, in the same measure

_INSERT = """
INSERT INTO decision_evidence (digest, at, body, base) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
_IS_STORED = "SELECT 1 FROM decision_evidence WHERE digest = ?"
_WITH_BASES = """
WITH RECURSIVE chain (place, base, body) AS (
    SELECT 0, base, body FROM decision_evidence WHERE digest = :digest
    UNION ALL
    SELECT c.place + 1, e.base, e.body
    FROM chain c JOIN decision_evidence e ON e.digest = c.base)
SELECT base, body FROM chain ORDER BY place
"""

_decode = msgspec.json.Decoder(Evidence).decode


_Look = tuple[int, int, int, int]
"""What tells one look from another, whatever the turn: its time and its parts' identities."""


class _Stored(NamedTuple):
    """The last evidence of a bucket: what later ones may be differences from."""

    evidence: Evidence
    digest: str
    links: int
    complete_at: int


class EvidenceLog:
    """Writes evidence, one after the other."""

    def __init__(self) -> None:
        self._last: dict[str, _Stored] = {}  # arms are of one bucket, so differences are too
        self._known: dict[_Look, tuple[Evidence, str]] = {}  # the evidence, so that its ids last
        self._weight = 0

    def write(self, tx: Transaction, evidence: Evidence, bucket: str) -> str:
        """Store an evidence if it is not yet; its digest.

        Args:
            tx: of the writer's thread; one call at a time.
            evidence: what decisions were made by; without the turn, which is the request's own.
            bucket: the token bucket its arms are of.
        """
        look = evidence.at_ms, id(evidence.providers), id(evidence.models), id(evidence.arms)
        if (known := self._known.get(look)) is not None:
            if tx.execute(_IS_STORED, (known[1],)):
                return known[1]
            self._forget(look)
        # Where nothing reads arms, it is the same evidence for all buckets.
        series = bucket if evidence.arms else ""
        last = self._last.get(series)
        if last is not None and not tx.execute(_IS_STORED, (last.digest,)):
            last = None  # the transaction that was to store it was lost, or it was pruned
        part = None if last is None else _difference(evidence, last)
        if part is None or last is None:
            body, base, links, complete_at = encode_evidence(evidence), "", 0, evidence.at_ms
        else:
            body, base = encode_evidence(part), last.digest
            links, complete_at = last.links + 1, last.complete_at
        digest = blake2b(base.encode() + body, digest_size=12).hexdigest()
        tx.execute(_INSERT, (digest, evidence.at_ms, body.decode(), base))
        if last is None or not 0 < last.evidence.at_ms - evidence.at_ms <= LATE_MS:
            self._last[series] = _Stored(evidence, digest, links, complete_at)
        self._remember(look, evidence, digest)
        return digest

    def _remember(self, look: _Look, evidence: Evidence, digest: str) -> None:
        self._known[look] = evidence, digest
        self._weight += _weight(evidence)
        while self._weight > REMEMBERED and len(self._known) > 1:
            self._forget(next(iter(self._known)))

    def _forget(self, look: _Look) -> None:
        self._weight -= _weight(self._known.pop(look)[0])


def _weight(evidence: Evidence) -> int:
    return OWN_WEIGHT + len(evidence.arms) + len(evidence.models)


def _difference(evidence: Evidence, last: _Stored) -> Evidence | None:
    """What of an evidence is not in the last one; None where it is to be stored as it is."""
    size = len(evidence.arms) + len(evidence.models)
    age = evidence.at_ms - last.complete_at
    if size < COMPLETE_BELOW or last.links >= MOST_LINKS or not 0 <= age <= OLDEST_BASE_MS:
        return None
    old = last.evidence
    if not (
        old.arms.keys() <= evidence.arms.keys() and old.models.keys() <= evidence.models.keys()
    ):
        return None  # a difference can add, and cannot take away
    # By identity, which looks share where nothing changed; what is only equal is stored again.
    get = old.arms.get
    arms = {name: arm for name, arm in evidence.arms.items() if get(name) is not arm}
    view = old.models.get
    models = {name: one for name, one in evidence.models.items() if view(name) is not one}
    if 2 * (len(arms) + len(models)) > size:
        return None
    return msgspec.structs.replace(evidence, arms=arms, models=models)


async def read_evidence(db: Database, digest: str) -> str | None:
    """The whole of a stored evidence as JSON; None when it is not (or no longer) there."""
    rows = await db.read(_WITH_BASES, {"digest": digest})
    if not rows or rows[-1][0]:
        return None
    if len(rows) == 1:
        text: str = rows[0][1]
        return text
    *_, evidence = parts = [_decode(body) for _, body in rows]
    for part in reversed(parts[:-1]):
        arms, models = {**evidence.arms, **part.arms}, {**evidence.models, **part.models}
        evidence = msgspec.structs.replace(part, arms=arms, models=models)
    return encode_evidence(evidence).decode()
