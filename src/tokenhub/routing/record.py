"""The record of a decision: what it was made of, not what it came to.

Everything else is found by deciding again, which ``explain`` does when an admin asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.decision import RouteQuery

if TYPE_CHECKING:
    from tokenhub.core.decision import Decision, Evidence

_encode = msgspec.json.Encoder().encode


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A decision as it is stored, beside its rules and its evidence.

    ``choice`` is "" when nobody could answer; ``propensity`` is for offline evaluation, ``bucket``
    for learning again what was learned. All else is found by deciding again.
    """

    query: RouteQuery
    seed: int
    turn: int = 0
    bucket: str = ""
    choice: str = ""
    propensity: float = 0.0


def encode_record(decision: Decision) -> bytes:
    """The record of a decision as JSON."""
    candidates = decision.candidates
    if not candidates:
        return _encode(
            Record(query=decision.query, seed=decision.seed, turn=decision.evidence.turn)
        )
    chosen = candidates[0]
    return _encode(
        Record(
            query=decision.query,
            seed=decision.seed,
            turn=decision.evidence.turn,
            bucket=decision.bucket,
            choice=chosen.model.id,
            propensity=chosen.propensity,
        )
    )


def encode_evidence(evidence: Evidence) -> bytes:
    """Evidence as JSON, without the turn, which is the request's own."""
    return msgspec.json.encode(msgspec.structs.replace(evidence, turn=0))
