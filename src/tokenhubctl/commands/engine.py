"""engine: what the running server routes with."""

from __future__ import annotations

from typing import Any

from tokenhubctl import address, cells, table
from tokenhubctl.command import noun, pass_session
from tokenhubctl.session import Session, objects
from tokenhubctl.view import View

HEADINGS = ("MODEL", "PROVIDER", "WEIGHT", "CONTEXT", "ENABLED")


@noun("engine", default="models")
def engine() -> None:
    """What the running server routes with."""


@engine.command("models", watch=True)
@pass_session
def models(session: Session) -> View:
    """Runtime model registry and adapters."""
    answer = session.get(address.path("engine", "models"))
    found = sorted(objects(answer, "models"), key=lambda row: str(row.get("id")))
    adapters = answer.get("adapter_info") or [{"id": name} for name in answer.get("adapters") or []]
    adapters = sorted(adapters, key=lambda row: str(row.get("id")))
    data = {"adapters": adapters, "models": found}
    return View(data, lambda _wide, headings: _text(adapters, found, headings=headings))


def _text(adapters: list[dict[str, Any]], found: list[dict[str, Any]], *, headings: bool) -> str:
    lines = [f"Adapters: {len(adapters)}"]
    for adapter in adapters:
        endpoint = cells.text(adapter.get("health_endpoint"))
        lines.append(f"  {table.visible(str(adapter.get('id')))} → {table.visible(endpoint)}")
    lines += ["", f"Models: {len(found)}", ""]
    rows = [
        [
            f"  {cells.text(row.get('id'))}",
            cells.text(row.get("provider_id")),
            cells.number(row.get("weight")),
            cells.number(row.get("max_context_tokens")),
            cells.yes_no(row.get("enabled")),
        ]
        for row in found
    ]
    titles = [[f"  {HEADINGS[0]}", *HEADINGS[1:]]] if headings and rows else []
    return "\n".join(lines) + table.render(titles + rows)
