"""Names that somebody may have meant."""

from __future__ import annotations

from tokenhub.core.similar import similar


def test_the_best_names_come_first():
    known = ("claude-sonnet", "gpt-4o", "gpt-4o-mini", "gpt-5")
    assert similar("gpt-4o-min", known, count=2) == ["gpt-4o-mini", "gpt-4o"]
    assert similar("gpt-4o-min", iter(known)) == ["gpt-4o-mini"]
    assert similar("zzz", known) == []
