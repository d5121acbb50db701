"""Questions of an administrator that take long to answer, while requests go on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from tests.unit.routing.world import ManualClock, catalog, model, per_million

from tokenhub.routing.router import Router
from tokenhub.web.admin.routing import RoutingAdmin


async def test_the_loop_goes_on_while_a_large_table_is_made():
    models = (model(f"m{n}", weight=n % 10, prices=per_million(1 + n % 7)) for n in range(500))
    router = Router(ManualClock())
    router.update(catalog=catalog(*models))
    admin = RoutingAdmin(router, None, None, None, None, dict, None)
    asked = asyncio.create_task(admin.simulate(SimpleNamespace(body=b'{"mode":"normal"}'), None))
    turns = 0
    while not asked.done():
        await asyncio.sleep(0)
        turns += 1
    assert asked.result().status == 200
    assert turns > 10
