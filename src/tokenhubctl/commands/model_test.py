"""model-test: one real chat request, as a client would send it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from tokenhubctl import cells, table
from tokenhubctl.arguments import Secret
from tokenhubctl.command import pass_session, verb
from tokenhubctl.completion import ids
from tokenhubctl.config import API_KEY, Found
from tokenhubctl.errors import NoCredential
from tokenhubctl.session import unexpected
from tokenhubctl.view import View, record

if TYPE_CHECKING:
    from tokenhubctl.session import Session

SECONDS = 300.0
MAX_REASONING = 80


@verb("model-test", literal=True)
@click.argument("model_id", metavar="ID", shell_complete=ids("model"))
@click.argument("key", required=False)
@pass_session
def model_test(session: Session, model_id: str, key: str | None) -> View:
    """Send one short chat request with an API key.

    KEY is a client key (or - for stdin, or @file); left out it is TOKENHUB_API_KEY. The admin
    token is never used: it is no client key.
    """
    client = session.client_with([_key(session, key)], seconds=SECONDS)
    body = {
        "model": model_id,
        "messages": [{"role": "user", "content": "Answer with the one word: pong"}],
        "max_tokens": 16,
    }
    started = time.perf_counter()
    answer = client.call("POST", "/v1/chat/completions", body)
    elapsed = (time.perf_counter() - started) * 1000
    if not isinstance(answer, dict) or not answer.get("choices"):
        raise unexpected(["choices"])
    usage = answer.get("usage") or {}
    pairs = [
        ("Model", model_id),
        ("Status", "200"),
        ("Latency", cells.duration(elapsed)),
        ("Response", _content(answer)),
        (
            "Tokens",
            f"in={usage.get('prompt_tokens', '-')} out={usage.get('completion_tokens', '-')}",
        ),
        ("Model used", cells.text(answer.get("model"))),
    ]
    data = {"model": model_id, "status": 200, "latency_ms": round(elapsed), "answer": answer}
    return record(data, pairs, key="model")


def _key(session: Session, given: str | None) -> Found:
    if given is not None:
        return Found(Secret("API key").resolve(given), "the command line")
    found = session.config.find(API_KEY)
    if found is None:
        raise NoCredential(
            "model-test needs a client's API key; the admin token is not one.",
            hint="""Create one: tokenhubctl apikey create '{"name":"test"}', then set """
            "TOKENHUB_API_KEY.",
        )
    return found


def _content(answer: dict[str, Any]) -> str:
    message = answer["choices"][0].get("message") or {}
    if content := message.get("content"):
        return str(content)
    if reasoning := message.get("reasoning_content"):
        return "[reasoning] " + table.cut(str(reasoning), MAX_REASONING)
    return "(empty)"
