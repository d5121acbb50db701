"""A server with a handful of scripted providers, laid out afresh for each test."""

from __future__ import annotations

import itertools
import json
from urllib.parse import quote

from tests.e2e.peers import Peer
from tests.ports import free_port

HELLO = [{"role": "user", "content": "Hello"}]
_numbers = itertools.count(1)


class Fleet:
    """Providers and models of one test on a shared server; ``clear`` removes them again.

    Provider ids are never used twice, because their health would outlive them.
    """

    def __init__(self, hub):
        self.hub = hub
        self.peers = []
        self.models = []
        self.providers = []
        self.aliases = []
        self.number = next(_numbers)
        self.key = self.new_key()

    def new_key(self, **fields):
        name = f"app-{self.number}-{next(_numbers)}"
        return self.hub.ok("POST", "/apikeys", {"name": name} | fields)["key"]

    def add(self, name, script, *, type_="openai", **fields):
        """A provider and its one model, both called ``<name>-<number>``; the peer behind it.

        ``script`` may be a URL of a server that runs, or None: nobody listens there.
        """
        peer = None
        if callable(script):
            peer = Peer(script)
            self.peers.append(peer)
        url = peer.url if peer else script or f"http://127.0.0.1:{free_port()}"
        where = self.id(name)
        self.hub.ok("POST", "/providers", {"id": where, "type": type_, "base_url": url})
        self.providers.append(where)
        price = {"input_per_1k": 0.001, "output_per_1k": 0.002}
        model = {"id": where, "provider_id": where, "upstream_name": "demo"} | price
        self.hub.ok("POST", "/models", model | fields)
        self.models.append(where)
        return peer

    def alias(self, name, **fields):
        self.hub.ok("PUT", f"/aliases/{quote(name)}", fields)
        self.aliases.append(name)

    def id(self, name):
        return f"{name}-{self.number}"

    def chat(self, model, key=None, **fields):
        """A chat request for a model of this fleet, or for ``auto``."""
        name = model if model.startswith("auto") or model in self.aliases else self.id(model)
        return self.hub.chat(key or self.key, {"model": name, "messages": HELLO} | fields)

    def native(self, model, policy=None, key=None, **request):
        headers = {"Authorization": f"Bearer {key or self.key}"}
        hint = model if not model or model.startswith("auto") else self.id(model)
        body = {"request": {"messages": HELLO, "model_hint": hint} | request}
        body["policy"] = policy or {}
        return self.hub.request("POST", "/v1/chat", body, headers=headers)

    def health(self, name):
        rows = self.hub.ok("GET", "/health")["providers"]
        return next(row for row in rows if row["provider_id"] == self.id(name))

    def ctl(self, *args):
        ran = self.hub.ctl(*args)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def clear(self):
        for name in self.aliases:
            self.hub.ok("DELETE", f"/aliases/{quote(name)}")
        for name in self.models:
            self.hub.ok("DELETE", f"/models/{name}")
        for name in self.providers:
            self.hub.ok("DELETE", f"/providers/{name}")
        for peer in self.peers:
            peer.close()


def text_of(reply):
    return reply.json()["choices"][0]["message"]["content"]


def words(body):
    """The text of a stream, and whether it claims to be whole."""
    lines = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    text = "".join(
        choice["delta"].get("content") or ""
        for event in events
        for choice in event.get("choices", [])
    )
    return text, "[DONE]" in lines
