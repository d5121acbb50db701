from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhubctl import table


def test_columns_line_up_and_the_last_one_is_not_padded():
    text = table.render([["ID", "NAME", "X"], ["a", "long name", "1"], ["bbb", "n", ""]])
    assert text == "ID   NAME       X\na    long name  1\nbbb  n\n"


def test_wide_and_combining_characters_line_up():
    text = table.render([["模型", "x"], ["ab", "x"], ["e\u0301", "x"]])
    assert text == "模型  x\nab    x\ne\u0301     x\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r", "a\\x0ab\\x09c\\x0d"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066x\u200f", "\\u2066x\\u200f"),
        ("\U000e0041", "\\U000e0041"),
        ("käse 模型", "käse 模型"),
    ],
)
def test_what_could_drive_the_terminal_is_spelt_out(text, shown):
    assert table.visible(text) == shown


@given(st.text())
def test_no_control_or_direction_character_is_left(text):
    shown = table.visible(text)
    assert not [c for c in shown if unicodedata.category(c) in {"Cc", "Cs"}]
    assert not [
        c for c in shown if unicodedata.bidirectional(c) in {"LRE", "RLO", "LRO", "RLI", "PDF"}
    ]


@given(st.text(alphabet="ab模é", max_size=30), st.integers(3, 20))
def test_cutting_never_exceeds_the_width(text, most):
    assert table.width(table.cut(text, most)) <= most


def test_cutting_keeps_whole_characters():
    assert table.cut("模型模型模型", 8) == "模型..."
    assert table.cut("short", 8) == "short"


def test_labels_are_aligned():
    assert table.labels([("Server", "x"), ("Vault initialized", "no")]) == (
        "Server:           x\nVault initialized: no\n"
    )
