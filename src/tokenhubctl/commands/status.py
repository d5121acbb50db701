"""status: is the server up, and is its vault open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenhubctl import address
from tokenhubctl.command import pass_session, verb
from tokenhubctl.errors import ApiError
from tokenhubctl.view import View, record

if TYPE_CHECKING:
    from tokenhubctl.session import Session


@verb("status", watch=True)
@pass_session
def status(session: Session) -> View:
    """Server info, health, vault state."""
    info = session.get(address.path("info"), "vault_locked", "vault_initialized")
    health = healthz(session)
    data = {"server": session.config.endpoint.url, **info, **health}
    pairs = [
        ("Server", data["server"]),
        ("Status", str(health.get("status") or "unknown")),
        ("Adapters", str(health.get("adapters", "-"))),
        ("Models", str(health.get("models", "-"))),
        ("Vault", "locked" if info.get("vault_locked") else "unlocked"),
        ("Vault initialized", "yes" if info.get("vault_initialized") else "no"),
    ]
    return record(data, pairs, key="server")


def healthz(session: Session) -> dict[str, Any]:
    """The health summary; an unhealthy server answers 503 with the same members."""
    try:
        answer = session.client.call("GET", "/healthz")
    except ApiError as error:
        return error.body if isinstance(error.body, dict) else {}
    return answer if isinstance(answer, dict) else {}
