"""JSON arguments: where they come from and what is refused before anything is sent."""

from __future__ import annotations

import pytest

DEEP = "[" * 100_000


@pytest.mark.parametrize("source", ["argv", "stdin", "file"])
def test_json_from_anywhere(ctl, peer, tmp_path, source):
    peer.answers["POST /admin/v1/models"] = {"ok": True}
    text = '{\n "id": "modèle"\n}\n'
    (tmp_path / "m.json").write_text(text)
    given = {"argv": text, "stdin": "-", "file": f"@{tmp_path}/m.json"}[source]
    assert ctl("model", "add", given, stdin=text.encode()).code == 0
    assert peer.last.body == text.encode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1, column 2"),
        ("", "column 1: the end"),
        ("{'id': 1}", "single quotes"),
        ("[1]", "not an array"),
        ('"text"', "not a string"),
        ("1", "not a number"),
        ("null", "not null"),
        ("true", "not a boolean"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1, "a": 2}', "'a' stands there twice"),
        ('{"b": {"\\u001b": 1, "\\u001b": 2}}', "stands there twice"),
        ('{"a": 1} trailing', "Extra data"),
        (DEEP, "nested too deeply"),
        ('{"x": "\udcff"}', "not UTF-8"),
        ("' OR '1'='1", "not valid JSON"),
    ],
    ids=range(16),
)
def test_bad_json_is_refused_with_its_place_and_never_sent(ctl, peer, text, said):
    ran = ctl("model", "add", text)
    assert (ran.code, ran.out, peer.calls) == (2, "", [])
    assert said in ran.err
    assert "\x1b" not in ran.err


def test_a_mistake_does_not_repeat_a_secret(ctl):
    ran = ctl("provider", "add", '{"api_key": "sk-secret-secret" "x": 1}')
    assert ran.code == 2
    assert "sk-secret" not in ran.err


def test_a_directory_is_no_file(ctl, peer, tmp_path):
    ran = ctl("model", "add", f"@{tmp_path}")
    assert (ran.code, peer.calls) == (2, [])
    assert "Is a directory" in ran.err


def test_input_without_end_is_cut_off(ctl, peer):
    ran = ctl("model", "add", "@/dev/zero")
    assert (ran.code, peer.calls) == (2, [])
    assert "64 MiB" in ran.err


def test_text_that_is_not_utf_8_is_refused_and_never_sent(spawn, peer):
    for words in (("model", "add"), ("api", "POST", "/admin/v1/models")):
        ran = spawn(*words, b'{"id": "\xff"}')
        assert (ran.code, ran.out) == (2, ""), ran
        assert "is not UTF-8 text" in ran.err
    assert peer.calls == []
