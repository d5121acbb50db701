"""Finished requests as the observer gets them, and a clock-driven timer instead of the loop's."""

from __future__ import annotations

from tokenhub.core.decision import Attempt, encode_attempts
from tokenhub.telemetry.journal import Entry


def entry(at_ms, latency_ms=100.0, **change):
    fields = {
        "request_id": "r-1",
        "client_id": "",
        "session": "",
        "at_ms": at_ms,
        "endpoint": "/v1/chat/completions",
        "key_id": "k1",
        "asked": "m1",
        "model_id": "m1",
        "provider_id": "p1",
        "mode": "normal",
        "alias": "",
        "reason": "",
        "stream": False,
        "status": 200,
        "error_class": "",
        "error": "",
        "finish_reason": "stop",
        "latency_ms": latency_ms,
        "ttft_ms": None,
        "prompt": 10,
        "completion": 20,
        "cached_read": 0,
        "cached_write": 0,
        "reasoning": 0,
        "counted_by": "provider",
        "cost": 1_000_000,
        "price_source": "manual",
        "price_version": "",
        "attempts": [],
    } | change
    if not fields["attempts"] and fields["model_id"]:
        fields["attempts"] = [attempt(fields["model_id"], fields["provider_id"])]
    return Entry(**fields, attempts_json=encode_attempts(fields["attempts"]))


def failed(at_ms, kind="server", status=502, **change):
    """A request that no provider answered; the last one asked was m1 at p1."""
    tried = {"attempts": [attempt("m1", "p1", kind)]}
    fields = {"model_id": "", "provider_id": "", "cost": None, "prompt": 0, "completion": 0}
    return entry(at_ms, **(fields | tried | {"status": status, "error_class": kind} | change))


def attempt(model, provider, kind=""):
    return Attempt(number=1, model_id=model, provider_id=provider, at_ms=0, kind=kind)


class Timer:
    """``call_later`` that runs nothing by itself."""

    def __init__(self):
        self.waiting = []

    def __call__(self, delay, callback):
        self.waiting.append(callback)

    def fire(self):
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()
