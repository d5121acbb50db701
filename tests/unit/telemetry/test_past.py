from __future__ import annotations

from tokenhub.telemetry.past import MOST_POINTS_KEPT, Memory, Past


def past(size):
    return Past({1: [{"t": "", "v": 0}] * size}, {})


def test_a_past_is_true_for_one_version():
    memory, kept = Memory(), past(3)
    memory.put(("a",), 7, kept)
    assert memory.get(("a",), 7) is kept
    assert memory.get(("a",), 8) is None
    assert memory.get(("b",), 7) is None
    later = past(4)
    memory.put(("a",), 8, later)
    assert memory.get(("a",), 8) is later
    assert memory.get(("a",), 7) is None


def test_what_was_not_asked_for_longest_makes_room():
    memory = Memory()
    third = MOST_POINTS_KEPT // 3
    for name in "abc":
        memory.put((name,), 1, past(third))
    assert memory.get(("a",), 1)
    memory.put(("d",), 1, past(third))
    assert [bool(memory.get((name,), 1)) for name in "abcd"] == [True, False, True, True]
    memory.put(("huge",), 1, past(MOST_POINTS_KEPT + 1))
    assert memory.get(("huge",), 1) is None


def test_the_same_question_again_takes_no_more_room():
    memory = Memory()
    for version in range(20):
        memory.put(("a",), version, past(MOST_POINTS_KEPT // 2))
        memory.put(("b",), version, past(MOST_POINTS_KEPT // 2))
        assert memory.get(("a",), version)
        assert memory.get(("b",), version)
