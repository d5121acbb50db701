"""The record of a decision: what it was made of, not what it came to.

Everything else is found by deciding again, which ``explain`` does when an admin asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tokenhub.core.decision import RouteQuery

if TYPE_CHECKING:
    from tokenhub.core.decision import Candidate, Decision, Evidence

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


class _End(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fields of ``Record`` that say what came of the query and the seed, in their order."""

    turn: int = 0
    bucket: str = ""
    choice: str = ""
    propensity: float = 0.0


def record_end(bucket: str, chosen: Candidate, turn: int) -> str:
    """How the records of all decisions end that chose alike by one evidence."""
    end = _encode(_End(turn, bucket, chosen.model.id, chosen.propensity)).decode()
    return "}" if end == "{}" else "," + end[1:]


def encode_record(decision: Decision) -> str:
    """The record of a decision as JSON: a ``Record``."""
    end = decision.record_end
    if not end:
        end = record_end(decision.bucket, decision.chosen, decision.evidence.turn)
    return f'{{"query":{_encode(decision.query).decode()},"seed":{decision.seed}{end}'


def encode_evidence(evidence: Evidence) -> bytes:
    """Evidence as JSON, without the turn, which is the request's own."""
    return msgspec.json.encode(msgspec.structs.replace(evidence, turn=0))
