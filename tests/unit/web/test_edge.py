"""The start refuses a route that could spend without the gate."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from tokenhub.web.admin.table import AdminHandlers, admin_routes
from tokenhub.web.api.chat import ChatApi
from tokenhub.web.edge import ADMIN, ANY_KEY, PUBLIC, SCOPES, Edge, Route
from tokenhub.web.gate import Gated
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
