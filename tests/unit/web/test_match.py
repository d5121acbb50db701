"""The route matcher."""

from __future__ import annotations

import contextlib
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhub.core.errors import InvalidRequest, NotFound
from tokenhub.web.match import Matcher, MethodNotAllowed

ROUTES = [
    ("GET", "/"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{id:path}"),
    ("DELETE", "/v1/models/{id:path}"),
    ("POST", "/v1/models/{id:path}/probe"),
    ("POST", "/v1/models/discover"),
    ("GET", "/admin/keys/{name}"),
    ("POST", "/admin/keys/{name}/rotate"),
    ("GET", "/admin/{kind}/{name}/x.y"),
]


@pytest.fixture(scope="module")
def table():
    matcher = Matcher()
    for method, path in ROUTES:
        matcher.add(method, path, f"{method} {path}")
    return matcher


@pytest.mark.parametrize(
    ("method", "path", "route", "params"),
    [
        ("GET", "/", "/", {}),
        ("GET", "/v1/models", "/v1/models", {}),
        ("GET", "/v1/models/a", "/v1/models/{id:path}", {"id": "a"}),
        ("GET", "/v1/models/a/b:c.d-e", "/v1/models/{id:path}", {"id": "a/b:c.d-e"}),
        ("GET", "/v1/models/a%2Fb", "/v1/models/{id:path}", {"id": "a/b"}),
        ("GET", "/v1/models/a%252Fb", "/v1/models/{id:path}", {"id": "a%2Fb"}),
        ("GET", "/v1/models/a+b%20c", "/v1/models/{id:path}", {"id": "a+b c"}),
        ("GET", "/v1/models/%C3%A9", "/v1/models/{id:path}", {"id": "é"}),
        ("GET", "/v1/models/a//b/", "/v1/models/{id:path}", {"id": "a//b/"}),
        ("GET", "/v1/models/..%2f..", "/v1/models/{id:path}", {"id": "../.."}),
        ("GET", "/v1/models/discover", "/v1/models/{id:path}", {"id": "discover"}),
        ("DELETE", "/v1/models/discover", "/v1/models/{id:path}", {"id": "discover"}),
        ("POST", "/v1/models/discover", "/v1/models/discover", {}),
        ("POST", "/v1/models/a/b/probe", "/v1/models/{id:path}/probe", {"id": "a/b"}),
        ("POST", "/v1/models/probe/probe", "/v1/models/{id:path}/probe", {"id": "probe"}),
        ("GET", "/v1/models/a/probe", "/v1/models/{id:path}", {"id": "a/probe"}),
        ("GET", "/admin/keys/a%2Fb", "/admin/keys/{name}", {"name": "a/b"}),
        ("POST", "/admin/keys/a/rotate", "/admin/keys/{name}/rotate", {"name": "a"}),
        ("GET", "/admin/k/n/x.y", "/admin/{kind}/{name}/x.y", {"kind": "k", "name": "n"}),
    ],
)
def test_found(table, method, path, route, params):
    assert table.match(method, path) == (f"{method} {route}", params)


def test_head_takes_the_route_of_get(table):
    assert table.match("HEAD", "/v1/models") == ("GET /v1/models", {})
    assert table.match("HEAD", "/v1/models/a") == ("GET /v1/models/{id:path}", {"id": "a"})


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/",
        "/v1",
        "/v1/model",
        "/v1/modelsx",
        "//v1/models",
        "/V1/models",
        "/v1/%6dodels",
        "/admin/keys/",
        "/admin/keys/a/b",
        "/admin/k/n/xzy",
        "*",
        "",
    ],
)
def test_not_found(table, path):
    with pytest.raises(NotFound):
        table.match("GET", path)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/", b"GET"),
        ("PUT", "/v1/models/a", b"DELETE, GET"),
        ("PUT", "/v1/models/discover", b"DELETE, GET, POST"),
        ("HEAD", "/admin/keys/a/rotate", b"POST"),
    ],
)
def test_another_method(table, method, path, allowed):
    with pytest.raises(MethodNotAllowed) as caught:
        table.match(method, path)
    assert caught.value.status == 405
    assert caught.value.headers == ((b"Allow", allowed),)


@pytest.mark.parametrize(
    "value", ["%", "%4", "%zz", "a%", "%%20", "%ff", "%c3", "%ed%a0%80", "%00", "a%0d%0ab", "%7f"]
)
def test_a_value_that_does_not_decode_is_refused(table, value):
    with pytest.raises(InvalidRequest) as caught:
        table.match("GET", f"/v1/models/{value}")
    assert caught.value.param == "id"


printable = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1)


@given(printable)
def test_any_id_comes_back_when_encoded_once(table, text):
    assert table.match("GET", "/v1/models/" + quote(text, safe=""))[1] == {"id": text}
    assert table.match("GET", "/admin/keys/" + quote(text, safe=""))[1] == {"name": text}


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)))
def test_any_path_is_answered_or_refused(table, text):
    with contextlib.suppress(NotFound, MethodNotAllowed, InvalidRequest):
        table.match("GET", "/" + text)


def test_the_same_route_twice_is_an_error(table):
    matcher = Matcher()
    matcher.add("GET", "/a/{x}", 1)
    matcher.add("POST", "/a/{x}", 2)
    with pytest.raises(ValueError, match="twice"):
        matcher.add("GET", "/a/{x}", 3)
    with pytest.raises(ValueError, match="differently"):
        matcher.add("PUT", "/a/{y}", 3)


def test_the_order_of_entry_does_not_matter():
    for routes in (ROUTES, ROUTES[::-1]):
        matcher = Matcher()
        for method, path in routes:
            matcher.add(method, path, path)
        assert matcher.match("POST", "/v1/models/a/probe")[0] == "/v1/models/{id:path}/probe"
        assert matcher.match("GET", "/admin/keys/a")[0] == "/admin/keys/{name}"


def test_routes_under_a_prefix_can_be_entered_when_first_asked_for():
    matcher = Matcher()
    matcher.add("GET", "/livez", "livez")
    entered = []

    def enter():
        entered.append("admin")
        matcher.add("GET", "/admin/{id}", "get")
        matcher.add("POST", "/admin/all", "post")

    matcher.later("/admin/", enter)
    assert matcher.match("GET", "/livez") == ("livez", {})
    with pytest.raises(NotFound):
        matcher.match("GET", "/administration")
    assert entered == []
    assert matcher.match("GET", "/admin/a") == ("get", {"id": "a"})
    assert matcher.match("POST", "/admin/all") == ("post", {})
    with pytest.raises(MethodNotAllowed):
        matcher.match("DELETE", "/admin/a")
    assert entered == ["admin"]


def test_routes_that_could_not_be_entered_are_tried_again():
    matcher = Matcher()
    wanted = [ImportError("half installed"), None]

    def enter():
        if error := wanted.pop(0):
            raise error
        matcher.add("GET", "/admin/a", "get")

    matcher.later("/admin/", enter)
    with pytest.raises(ImportError):
        matcher.match("GET", "/admin/a")
    assert matcher.match("GET", "/admin/a") == ("get", {})
