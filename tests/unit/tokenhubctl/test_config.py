from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tokenhubctl.config import Config, parse_env

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path):
    def write(env: str | None = None, token: str | None = None) -> Path:
        for name, text in (("env", env), (".admin-token", token)):
            if text is not None:
                (tmp_path / name).write_text(text)
        return tmp_path

    return write


def sources(config):
    return [(token.value, token.source.rsplit("/", 1)[-1]) for token in config.admin_tokens()]


def test_defaults(tmp_path):
    config = Config({}, tmp_path)
    assert config.endpoint.url == "http://localhost:8080"
    assert config.admin_tokens() == []


def test_the_environment_wins_then_the_token_file_then_the_env_file(files):
    home = files("TOKENHUB_ADMIN_TOKEN=stale\n", "fresh\n")
    real = "the environment variable TOKENHUB_ADMIN_TOKEN"
    config = Config({"TOKENHUB_ADMIN_TOKEN": "real"}, home)
    assert sources(config) == [("real", real), ("fresh", ".admin-token"), ("stale", "env")]
    assert [value for value, _ in sources(Config({}, home))] == ["fresh", "stale"]


def test_the_same_token_is_tried_once_and_named_by_its_best_source(files):
    home = files("TOKENHUB_ADMIN_TOKEN=same", "same")
    assert sources(Config({}, home)) == [("same", ".admin-token")]


def test_the_token_file_is_only_for_this_machine(files):
    home = files(None, "local")
    assert sources(Config({"TOKENHUB_URL": "http://hub.example"}, home)) == []
    assert sources(Config({"TOKENHUB_URL": "http://127.0.0.1:9"}, home)) == [
        ("local", ".admin-token")
    ]


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://hub.example:8080", True),
        ("http://hub.example:8080/", True),
        ("http://other.example:8080", False),
        ("https://hub.example:8080", False),
        ("http://localhost:8080", False),
    ],
)
def test_an_env_file_that_names_a_server_keeps_its_token_for_it(files, url, sent):
    home = files("TOKENHUB_URL=http://hub.example:8080\nTOKENHUB_ADMIN_TOKEN=t\n")
    assert bool(Config({"TOKENHUB_URL": url}, home).admin_tokens()) is sent


def test_the_url_of_the_env_file_is_used_and_the_option_outranks_all(files):
    home = files("TOKENHUB_URL=http://a.example\n")
    assert Config({}, home).url.value == "http://a.example"
    assert Config({"TOKENHUB_URL": "http://b.example"}, home).url.value == "http://b.example"
    assert Config({"TOKENHUB_URL": "http://b"}, home, "http://c").url == ("http://c", "--url")


def test_an_unreadable_or_binary_file_counts_as_absent(tmp_path):
    (tmp_path / "env").mkdir()
    (tmp_path / ".admin-token").write_bytes(b"\xff\xfe")
    assert Config({}, tmp_path).admin_tokens() == []


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("TOKENHUB_X=plain", "plain"),
        ("  TOKENHUB_X = spaced  ", "spaced"),
        ("export TOKENHUB_X=exported", "exported"),
        ('TOKENHUB_X="double # quoted"', "double # quoted"),
        ("TOKENHUB_X='single $HOME'", "single $HOME"),
        ('TOKENHUB_X="a\\"b\\\\c\\n"', 'a"b\\c\\n'),
        ("TOKENHUB_X=value # comment", "value"),
        ("TOKENHUB_X=a#b", "a#b"),
        ("TOKENHUB_X=a=b", "a=b"),
        ('TOKENHUB_X="open', '"open'),
        ("TOKENHUB_X=", ""),
    ],
)
def test_env_lines(line, value):
    assert parse_env([line]) == {"TOKENHUB_X": value}


@pytest.mark.parametrize("line", ["# TOKENHUB_X=1", "", "PATH=/evil", "LD_PRELOAD=x", "TOKENHUB_X"])
def test_other_lines_are_skipped(line):
    assert parse_env([line]) == {}
