from __future__ import annotations

from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhubctl import address
from tokenhubctl.errors import UsageFault


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://localhost:8080", (False, "localhost", 8080, "")),
        ("http://localhost:8080///", (False, "localhost", 8080, "")),
        ("https://hub.example", (True, "hub.example", 443, "")),
        ("HTTP://Hub.example/base/", (False, "Hub.example", 80, "/base")),
        ("http://[::1]:99/x", (False, "::1", 99, "/x")),
        ("http://[::1]", (False, "::1", 80, "")),
        ("http://user:pa%40ss@h:1", (False, "h", 1, "")),
    ],
)
def test_urls(url, endpoint):
    assert address.split(url)[0] == endpoint


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "ftp://x", "http://", "http://:80", "http://h:0", "http://h:65536",
     "http://h:8x", "http://h/?a", "http://h/#a", "http://a b", "http://a:1:2", "http://[::1]x",
     "http://h\r\nX: y"],
)  # fmt: skip
def test_what_is_no_url(url):
    with pytest.raises(UsageFault, match="TOKENHUB_URL"):
        address.split(url)


def test_a_password_in_a_bad_url_is_not_shown():
    with pytest.raises(UsageFault) as caught:
        address.split("http://me:secret@h:99999")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "a.localhost", "127.0.0.1", "127.9.9.9", "::1"]
)
def test_loopback(host):
    assert address.is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "127.evil.example",
        "127.0.0.1.evil.example",
        "127.evil.0.1",
        "localhost.example",
        "10.0.0.1",
        "::2",
        "",
    ],
)
def test_not_loopback(host):
    assert not address.is_loopback(host)


@given(st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_any_text_is_one_segment(text):
    path = address.path("models", text)
    assert path.count("/") == 4
    assert not set(path) & set("?#% \r\n") - {"%"}
    assert unquote(path.rsplit("/", 1)[1]) == text


def test_the_ids_of_the_manual_and_worse():
    assert (
        address.path("models", "Qwen/Qwen2.5-Coder-32B")
        == "/admin/v1/models/Qwen%2FQwen2.5-Coder-32B"
    )
    assert address.path("models", "a?b#c%2F d") == "/admin/v1/models/a%3Fb%23c%252F%20d"
    assert address.path("models", "..") == "/admin/v1/models/%2E%2E"


def test_an_empty_id_is_refused():
    with pytest.raises(UsageFault):
        address.path("models", "")


@given(st.lists(st.tuples(st.text(), st.text())))
def test_queries_survive(pairs):
    pairs = [
        (a.encode("utf-8", "ignore").decode(), b.encode("utf-8", "ignore").decode())
        for a, b in pairs
    ]
    assert parse_qsl(address.query(pairs).removeprefix("?"), keep_blank_values=True) == list(pairs)


def test_a_parameter_without_a_value_is_left_out():
    assert address.query([("limit", 5), ("model", None)]) == "?limit=5"
    assert address.query([("model", None)]) == ""
