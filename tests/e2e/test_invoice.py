"""The mock invoice: what the provider would bill, against what the ledger says.

The demo provider is a process of its own with books of its own: it charges what it produced, apart
from anything the gateway knows. Its column ``reported`` holds the answers in which it told its
usage, ``unreported`` what was produced without: cut answers, clients that left, silent ones.

Compared, to the femto-dollar and token by token, are its ``reported`` column and those rows of our
ledger that were settled by the provider's own count (flag ``''``: not counted by us, not cut). An
answer booked twice, not at all, at another model's price, with cached tokens at the full price,
or without its reasoning would all show. The prices are whole nano-dollars per token, so nothing is
rounded. What the provider did not report, the ledger holds by our own count, and flagged.

Clients leave where the provider cannot just have told its usage (it hangs, or falls silent in the
middle), or it would be chance which side saw the last event.

TOKENHUB_INVOICE_REQUESTS sets how many requests are made.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import secrets
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import apsw
import pytest
from tests.e2e.shop import Client, Shop, books_of

REQUESTS = int(os.environ.get("TOKENHUB_INVOICE_REQUESTS", "400"))
PRICES = {  # the demo provider's list prices, in dollars per 1000 tokens
    "input_per_1k": 0.001,
    "output_per_1k": 0.004,
    "cached_read_per_1k": 0.0001,
    "cached_write_per_1k": 0.00125,
}
OPENAI_LANES = ("m0", "m1", "m2", "m3")
ANTHROPIC_LANES = ("a0", "a1")
LANES = OPENAI_LANES + ANTHROPIC_LANES
LEAVERS = {"left", "hung"}
RESTING = {429, 503}  # the lane's provider is left alone for a while
CUT, LEFT = -1, -2
COLUMNS = ("prompt", "completion", "cached_read", "cached_write", "reasoning")

# kind → share, whether streamed (None = either), what the provider is asked to do in the body.
# Anthropic's dialect has no such member: there the model's name asks for it.
KINDS = {
    "whole": (30, False, {}),
    "stream": (25, True, {}),
    "flaky": (6, None, {"fail_every": 2}),
    "error": (3, None, {"status": 500}),
    "limited": (2, None, {"status": 429, "retry_after": 0}),
    "garbage": (2, False, {"garbage": True}),
    "malformed": (4, True, {"malformed": True}),
    "endless": (3, True, {"done": False}),
    "silent": (5, None, {"usage": False}),
    "cut": (6, None, {"cut_after": 4}),
    "broken": (4, True, {"error_after": 4}),
    "left": (6, True, {"stall_after": 6}),
    "hung": (4, False, {"hang": True}),
}
PRESETS = {
    "whole": ("demo", "demo-cached", "demo-reasoning"),
    "stream": ("demo", "demo-cached", "demo-reasoning"),
    "flaky": ("demo-flaky",),
    "error": ("demo-500",),
    "limited": ("demo-429",),
    "garbage": ("demo-garbage",),
    "malformed": ("demo-malformed",),
    "silent": ("demo-silent",),
    "cut": ("demo-cut",),
    "broken": ("demo-error",),
    "left": ("demo-stall",),
    "hung": ("demo-hang",),
}


class Traffic:
    """Random requests of all kinds over several providers that are one, in two dialects."""

    def __init__(self, shop: Shop, seed: int) -> None:
        self.shop = shop
        self.random = random.Random(seed)
        self.seen: Counter[tuple[str, int]] = Counter()

    def plan(self):
        names = list(KINDS)
        kind = self.random.choices(names, [KINDS[name][0] for name in names])[0]
        return kind, [self.members(kind, lane) for lane in self.lanes()]

    def lanes(self):
        return self.random.sample(LANES, len(LANES)) * 4

    def members(self, kind, lane):
        _, stream, demo = KINDS[kind]
        stream = self.random.random() < 0.5 if stream is None else stream
        words = " ".join("word" for _ in range(self.random.randrange(1, 40)))
        members = {
            "model": lane,
            "messages": [{"role": "user", "content": words}],
            "stream": stream,
            "max_tokens": 200,
        }
        if lane in OPENAI_LANES:
            own = {"tokens": self.random.randrange(8, 60), "cached": self.random.randrange(4)}
            own |= {"cache_write": self.random.randrange(3), "reasoning": self.random.randrange(5)}
            members["demo"] = own | demo
        else:
            members["model"] += "/" + self.random.choice(PRESETS.get(kind, ("demo",)))
        if stream and self.random.random() < 0.5:
            members["stream_options"] = {"include_usage": True}
        return members

    def one(self, planned):
        """Ask one lane after the other, until one is not left alone just now."""
        kind, tries = planned
        for members in tries:
            status = self.leave(kind, members) if kind in LEAVERS else self.ask(members)
            self.seen[kind, status] += 1
            if status not in RESTING or kind == "limited":
                return

    def ask(self, members):
        try:
            return self.shop.ask(**members).status
        except (OSError, http.client.HTTPException):
            return CUT

    def leave(self, kind, members):
        client = Client(self.shop, **members)
        try:
            if kind == "hung":
                client.sock.settimeout(0.05)
            return int(client.read_until(b"\r\n").split()[1])
        except TimeoutError:
            return LEFT
        finally:
            client.leave()


@pytest.mark.timeout(60 + REQUESTS // 10)
def test_our_total_is_the_providers_total(hub, upstream):
    shop = Shop(hub, upstream)
    mine = secrets.token_hex(4)
    # One address, many providers: one that fails is left alone for a while, the others go on.
    for lane in LANES:
        kind = "vllm" if lane in OPENAI_LANES else "anthropic"
        hub.ok("POST", "/providers", {"id": lane, "type": kind, "base_url": upstream})
    presets = sorted({name for names in PRESETS.values() for name in names})
    models = [(lane, lane, "demo") for lane in OPENAI_LANES]
    models += [(f"{lane}/{name}", lane, name) for lane in ANTHROPIC_LANES for name in presets]
    for model, lane, name in models:
        row = {"id": model, "provider_id": lane, "upstream_name": f"{mine}/{lane}/{name}"}
        hub.ok("POST", "/models", row | PRICES)
    shop.budget(10_000)
    traffic = Traffic(shop, random.randrange(2**32))
    plans = [traffic.plan() for _ in range(REQUESTS)]
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(traffic.one, plans))
    account = shop.until(lambda row: row["reserved_usd"] == 0)
    assert hub.ok("POST", "/budget/verify", {}) == {"ok": True, "problems": []}
    theirs = [one for name, one in books_of(upstream).items() if name.startswith(f"{mine}/")]
    hub.stop()
    with contextlib.closing(apsw.Connection(str(hub.data / "tokenhub.sqlite"))) as db:
        sums = ", ".join(f"SUM({name})" for name in COLUMNS)
        rows = {
            flag: rest
            for flag, *rest in db.execute(
                f"SELECT flag, COUNT(*), SUM(settled + overrun), {sums} FROM ledger_attempts "
                "WHERE state = 'settled' GROUP BY flag"
            )
        }
        overrun = db.execute("SELECT SUM(overrun) FROM ledger_attempts").fetchall()[0][0]
    answers, nano, *tokens = rows[""]
    reported = Counter()
    for one in theirs:
        reported.update(one["reported"])
    told = Decimal(reported["femto_usd"]) / 10**15
    ours = Decimal(nano) / 10**9
    print(f"{REQUESTS} requests: provider ${told}, ledger ${ours}, {answers} answers; {rows}")  # noqa: T201
    assert ours == told
    assert answers == reported["answers"]
    assert dict(zip(COLUMNS, tokens, strict=True)) == {name: reported[name] for name in COLUMNS}
    assert overrun == 0
    # The account is all of it: the reported, and what we had to count ourselves.
    total = sum(row[1] for row in rows.values())
    assert account["spent_usd"] == total / 10**9
    # The mix was a mix.
    assert answers > REQUESTS * 0.4
    assert sum(one["failed"] for one in theirs) > REQUESTS * 0.02
    assert sum(one["unreported"].get("answers", 0) for one in theirs) > REQUESTS * 0.05
    assert {"counted", "cut"} <= rows.keys()
    assert all(value > 0 for value in tokens)
