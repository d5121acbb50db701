"""A route that could spend needs the gate; a key is checked with every request."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from tokenhub.access.key_fields import KeyFields
from tokenhub.access.keys import Keys, load_pepper
from tokenhub.access.limits import AddressLimiter
from tokenhub.core.clock import SystemClock
from tokenhub.storage.files import DataDir
from tokenhub.storage.sqlite import SqliteDatabase
from tokenhub.web.admin.table import AdminHandlers, admin_routes
from tokenhub.web.answers import OPENAI
from tokenhub.web.api.chat import ChatApi
from tokenhub.web.edge import ADMIN, ANY_KEY, MAX_ECHOED, PUBLIC, SCOPES, Edge, Route
from tokenhub.web.gate import Gated
from tokenhub.web.http import Response
from tokenhub.web.routes import Handlers, routes


class AnyHandler:
    """Stands for the handlers that the table only names."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        async def handler(request, caller):
            raise AssertionError("not called")

        return handler


def any_handlers(kind):
    fields = msgspec.structs.fields(kind)
    return kind(**{one.name: AnyHandler() for one in fields if one.type is not str})


@pytest.fixture
def table():
    clients = msgspec.structs.replace(any_handlers(Handlers), chat=ChatApi(SimpleNamespace()))
    return routes(clients) + admin_routes(any_handlers(AdminHandlers))


def edge(*table):
    return Edge(table, SimpleNamespace(), SimpleNamespace())


async def test_every_route_that_could_spend_is_the_gateways(table):
    edge(*table)
    under_v1 = [route for route in table if route.path.startswith("/v1")]
    assert {(route.method, route.path) for route in under_v1} >= {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/chat"),
    }
    for route in under_v1:
        if route.method == "GET":
            assert (route.spends, route.access) == (False, ANY_KEY)
        else:
            assert route.spends
            assert isinstance(route.handler.__self__, Gated)
            assert route.access in SCOPES
    for route in table:
        assert not route.spends or route in under_v1


class Rogue:
    async def ask(self, request, caller):
        raise AssertionError("it would cost money")


class Honest(Gated):
    async def ask(self, request, caller):
        raise AssertionError("not called")


ROGUE = Rogue().ask
HONEST = Honest(SimpleNamespace()).ask


@pytest.mark.parametrize(
    ("route", "why"),
    [
        (Route("POST", "/v1/embeddings", HONEST, "chat"), "must pass the gate"),
        (Route("PUT", "/v1/embeddings", HONEST, "chat"), "must pass the gate"),
        (Route("POST", "/v1/embeddings", ROGUE, "chat", spends=True), "only the gateway's"),
        (Route("GET", "/v1/answer", ROGUE, "chat", spends=True), "only the gateway's"),
        (Route("POST", "/other", ROGUE, "chat", spends=True), "only the gateway's"),
        (Route("POST", "/v1/embeddings", HONEST, ANY_KEY, spends=True), "a scope"),
        (Route("POST", "/v1/embeddings", HONEST, PUBLIC, spends=True), "a scope"),
        (Route("POST", "/admin/v1/test", HONEST, ADMIN, spends=True), "a scope"),
        (Route("POST", "/v1/embeddings", HONEST, "everybody", spends=True), "who may call"),
    ],
)
async def test_a_forged_route_does_not_start(table, route, why):
    with pytest.raises(ValueError, match=why):
        edge(*table, route)


async def test_an_honest_route_starts(table):
    edge(*table, Route("POST", "/v1/embeddings", HONEST, "embeddings", spends=True))


class Answers(Gated):
    async def ask(self, request, grant):
        return Response(200, f"{grant.name} {request.path}".encode())


@pytest.fixture
async def keys(tmp_path):
    data = DataDir(tmp_path / "hub")
    db = await SqliteDatabase.open(tmp_path / "edge.sqlite", SystemClock())
    yield await Keys.open(db, SystemClock(), load_pepper(data))
    await db.close()
    data.close()


@pytest.fixture
async def ask(http, keys):
    """Answers to one connection that sends the same head again and again."""
    route = Route("POST", "/v1/ask", Answers(SimpleNamespace()).ask, "chat", OPENAI, spends=True)
    limiter = AddressLimiter(SystemClock(), 1, 8)
    one = Edge([route], keys, SimpleNamespace(), v1_limiter=limiter)
    await http.serve(one.handler, body_limit=one.max_body, render=one.failed)
    client = await http.connect()

    async def ask(key, extra=""):
        head = f"POST /v1/ask HTTP/1.1\r\nHost: h\r\nX-Api-Key: {key}\r\n{extra}"
        nonlocal client
        client.send(head.encode() + b"Content-Length: 1\r\n\r\na")
        answer = await client.answer()
        if answer.headers.get(b"connection") == b"close":
            client = await http.connect()
        return answer.status, answer.body

    return ask


async def test_a_change_of_a_key_is_seen_on_a_connection_that_used_it(ask, keys):
    key, row = await keys.create(KeyFields(name="one"))
    assert await ask(key) == (200, b"one /v1/ask")
    assert await ask(key) == (200, b"one /v1/ask")
    await keys.edit(row.id, KeyFields(name="two"))
    assert await ask(key) == (200, b"two /v1/ask")
    await keys.edit(row.id, KeyFields(scopes=["plan"]))
    assert (await ask(key))[0] == 403
    await keys.edit(row.id, KeyFields(scopes=["chat"]))
    assert (await ask(key))[0] == 200
    await keys.delete(row.id)
    assert (await ask(key))[0] == 401


async def test_only_the_same_question_with_the_same_key_is_not_asked_again(ask, keys, monkeypatch):
    key, row = await keys.create(KeyFields(name="one"))
    other, _ = await keys.create(KeyFields(name="two"))
    assert await ask(key, "X-Request-Id: 1\r\n") == (200, b"one /v1/ask")
    with monkeypatch.context() as patch:
        patch.setattr(keys, "authenticate", None)
        assert await ask(key, "X-Request-Id: 2\r\n") == (200, b"one /v1/ask")
    assert await ask(other, "X-Request-Id: 2\r\n") == (200, b"two /v1/ask")
    assert (await ask(other, f"Authorization: Bearer {key}\r\n"))[0] == 400
    assert (await ask(key, "X-Request-Id: 3\r\n"))[0] == 200
    await keys.edit(row.id, KeyFields(enabled=False))
    assert (await ask(key, "X-Request-Id: 4\r\n"))[0] == 401


async def test_equal_requests_of_one_connection_count_against_its_address(ask, keys):
    key, _ = await keys.create(KeyFields(name="one"))
    assert [(await ask(key))[0] for _ in range(9)] == [200] * 8 + [429]


async def test_who_loses_the_right_while_the_body_comes_is_refused(http, keys):
    key, row = await keys.create(KeyFields(name="one"))
    admins = {b"right"}
    answers = Answers(SimpleNamespace())
    one = Edge(
        [
            Route("POST", "/v1/ask", answers.ask, "chat", OPENAI, spends=True),
            Route("POST", "/admin/v1/ask", lambda request, _: answers.ask(request, row), ADMIN),
        ],
        keys,
        SimpleNamespace(verify=admins.__contains__),
        v1_limiter=AddressLimiter(SystemClock(), 1, 4),
    )
    await http.serve(one.handler, body_limit=one.max_body, render=one.failed)

    async def ask(path, secret, meanwhile):
        client = await http.connect()
        head = f"POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {secret}\r\n"
        client.send(head.encode() + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        assert (await client.answer()).status == 100
        await meanwhile()
        client.send(b"a")
        answer = await client.answer()
        return answer.status, answer.body

    async def nothing():
        pass

    assert await ask("/v1/ask", key, nothing) == (200, b"one /v1/ask")
    renamed = await ask("/v1/ask", key, lambda: keys.edit(row.id, KeyFields(name="two")))
    assert renamed == (200, b"two /v1/ask")
    narrowed = await ask("/v1/ask", key, lambda: keys.edit(row.id, KeyFields(scopes=["plan"])))
    assert narrowed[0] == 403
    await keys.edit(row.id, KeyFields(scopes=["chat"]))
    assert (await ask("/v1/ask", key, lambda: keys.delete(row.id)))[0] == 401

    async def changed():
        admins.clear()

    assert (await ask("/admin/v1/ask", "right", nothing))[0] == 200
    assert (await ask("/admin/v1/ask", "right", changed))[0] == 401


async def test_a_preflight_names_what_was_asked_for_unless_that_is_long(http):
    """What anybody may send must not fill the lines of answers that are kept."""
    origin = b"https://a.test"
    it = Edge((), SimpleNamespace(), SimpleNamespace(), cors_origins=frozenset({origin}))
    await http.serve(it.handler, body_limit=it.max_body, render=it.failed)
    client = await http.connect()
    for asked, named in [
        (b"x-mine", b"x-mine"),
        (b"x" * MAX_ECHOED, b"x" * MAX_ECHOED),
        (b"x" * (MAX_ECHOED + 1), b"authorization, content-type, x-api-key, x-request-id"),
    ]:
        fields = b"Origin: %b\r\nAccess-Control-Request-Headers: %b\r\n" % (origin, asked)
        client.send(b"OPTIONS /v1/models HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n")
        answer = await client.answer()
        assert answer.status == 204
        assert answer.headers[b"access-control-allow-origin"] == origin
        assert answer.headers[b"access-control-allow-headers"] == named
