"""A log that cannot be written: said when it begins and when it ends."""

from __future__ import annotations

from tokenhub.core.losses import Losses


def test_it_is_said_once_and_counted_at_the_end(caplog):
    losses = Losses("request log")
    losses.written()
    assert caplog.messages == []
    for _ in range(2):
        caplog.clear()
        for count in (3, 4, 5):
            losses.lost(count, OSError("the disk is full"))
        losses.written()
        losses.written()
        assert caplog.messages == [
            "The request log cannot be written; its rows are lost.",
            "The request log can be written again; 12 rows are lost.",
        ]
        assert "the disk is full" in caplog.text
