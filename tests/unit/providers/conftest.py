"""The transport's tests run on both event loops, the rest of this folder on uvloop."""

from __future__ import annotations

import asyncio

import uvloop


def pytest_asyncio_loop_factories(config, item):
    both = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    if item.path.name == "test_transport.py":
        return both
    return {"uvloop": uvloop.new_event_loop}
