"""provider: upstream accounts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from tokenhubctl import address, cells
from tokenhubctl.arguments import json_object
from tokenhubctl.command import noun, pass_session, verb
from tokenhubctl.completion import ids
from tokenhubctl.session import Session, objects
from tokenhubctl.view import Column, Layout, View, document, done, rows

# What an adapter's health endpoint ends in after the provider's base URL.
_PROBE_PATHS = ("/v1/models", "/v1/messages", "/health", "/v1")

PROVIDERS = Layout(
    (
        Column("ID", "id"),
        Column("TYPE", "type"),
        Column("BASE URL", "base_url"),
        Column("CREDS", "cred_store"),
        Column("ENABLED", "enabled", cells.yes_no),
        Column("MODELS", "models", cells.number),
        Column("SOURCE", "source"),
    ),
    key="id",
    empty="No providers. Add one with: tokenhubctl provider add '<json>'",
)
DISCOVERED = Layout(
    (
        Column("MODEL ID", "id"),
        Column("REGISTERED", lambda row: "yes" if row.get("registered") else "no"),
        Column("CONTEXT", "max_context_tokens", cells.number, wide=True),
    ),
    key="id",
    empty="The provider lists no models.",
)


@noun("provider", default="list")
def provider() -> None:
    """Upstream accounts: type, base URL, credential."""


@provider.command("list", watch=True)
@pass_session
def list_(session: Session) -> View:
    """Providers of the store and the engine."""
    engine = session.get(address.path("engine", "models"))
    stored = session.listed(address.path("providers"), "items", "providers")
    return rows(merge(stored, engine), PROVIDERS)


def merge(stored: list[dict[str, Any]], engine: dict[str, Any]) -> list[dict[str, Any]]:
    """Stored providers and those only the engine knows, by id, with the number of models."""
    models = Counter(str(model.get("provider_id")) for model in objects(engine, "models"))
    adapters = {str(item.get("id")): item for item in engine.get("adapter_info") or []}
    merged = {str(row["id"]): {**row, "source": row.get("source") or "store"} for row in stored}
    for name in [*adapters, *models]:
        merged.setdefault(name, _runtime_only(name, adapters.get(name, {})))
    for name, row in merged.items():
        row["base_url"] = row.get("base_url") or _base_url(adapters.get(name, {}))
        row["models"] = models[name]
    return [merged[name] for name in sorted(merged)]


def _runtime_only(name: str, adapter: dict[str, Any]) -> dict[str, Any]:
    kind = adapter.get("type") or "openai"
    creds = adapter.get("cred_store") or ("none" if kind == "demo" else "env")
    return {"id": name, "type": kind, "cred_store": creds, "enabled": True, "source": "runtime"}


def _base_url(adapter: dict[str, Any]) -> str:
    url = str(adapter.get("health_endpoint") or "")
    suffix = next((path for path in _PROBE_PATHS if url.endswith(path)), "")
    return url.removesuffix(suffix)


@provider.command("get")
@click.argument("provider_id", metavar="ID", shell_complete=ids("provider"))
@pass_session
def get(session: Session, provider_id: str) -> View:
    """One provider."""
    return document(session.get(address.path("providers", provider_id)))


@provider.command("add")
@click.argument("json_", metavar="JSON")
@pass_session
def add(session: Session, json_: str) -> View:
    """Add a provider, or change one.

    JSON (or - for stdin, or @file): id, type (openai, anthropic, vllm, demo), base_url, api_key,
    enabled, api_version.
    """
    body = json_object(json_, "provider")
    answer = session.change("POST", address.path("providers"), body)
    _warn(session, answer)
    return done(answer, "Provider saved.")


@provider.command("edit")
@click.argument("provider_id", metavar="ID", shell_complete=ids("provider"))
@click.argument("json_", metavar="JSON")
@pass_session
def edit(session: Session, provider_id: str, json_: str) -> View:
    """Change members of a provider.

    Members that JSON does not name stay as they are.
    """
    body = json_object(json_, "change")
    answer = session.change("PATCH", address.path("providers", provider_id), body)
    _warn(session, answer)
    return done(answer, "Provider updated.")


def _warn(session: Session, answer: Any) -> None:
    if isinstance(answer, dict) and answer.get("warning"):
        session.note(f"note: {answer['warning']}")


@provider.command("delete")
@click.argument("provider_id", metavar="ID", shell_complete=ids("provider"))
@pass_session
def delete(session: Session, provider_id: str) -> View:
    """Delete a provider, its models and its key."""
    answer = session.change("DELETE", address.path("providers", provider_id))
    return done(answer, "Provider deleted.")


@provider.command("discover")
@click.argument("provider_id", metavar="ID", shell_complete=ids("provider"))
@pass_session
def discover_models(session: Session, provider_id: str) -> View:
    """Models the provider offers, and which are registered.

    Asks the provider's /v1/models. Registers nothing.
    """
    return _discovered(session, provider_id)


def _discovered(session: Session, provider_id: str) -> View:
    found = session.listed(address.path("providers", provider_id, "discover"), "models")
    return rows(sorted(found, key=lambda row: str(row.get("id"))), DISCOVERED)


@verb("discover")
@click.argument("provider_id", metavar="ID", shell_complete=ids("provider"))
@pass_session
def discover(session: Session, provider_id: str) -> View:
    """The same as provider discover."""
    return _discovered(session, provider_id)
