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


def encode_record(decision: Decision) -> str:
    """The record of a decision as JSON."""
    query, seed, turn = decision.query, decision.seed, decision.evidence.turn
    if not decision.policy:  # nobody could answer
        return _encode(Record(query=query, seed=seed, turn=turn)).decode()
    chosen = decision.candidates[0]
    return _encode(
        Record(
            query=query,
            seed=seed,
            turn=turn,
            bucket=decision.bucket,
            choice=chosen.model.id,
            propensity=chosen.propensity,
        )
    ).decode()


def encode_evidence(evidence: Evidence) -> bytes:
    """Evidence as JSON, without the turn, which is the request's own."""
    return msgspec.json.encode(msgspec.structs.replace(evidence, turn=0))
