"""Budgets against a real server with a real upstream: nobody spends more, nothing stays held."""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import apsw
import openai
import pytest
from tests.e2e.provider import Provider, answer, usage
from tests.e2e.shop import MESSAGES, PATIENCE, Client, Shop


@pytest.fixture
def shop(hub, upstream):
    return Shop(hub, upstream)


@pytest.fixture
def provider():
    made = []

    def make(*script):
        made.append(Provider(*script))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_hundred_at_once_against_a_budget_for_ten(shop):
    # 50 tokens at $0.01 per 1000 are $0.0005, bound and cost alike, so exactly ten fit.
    shop.budget(0.005)
    ready = threading.Barrier(100)

    def one(number):
        ready.wait(PATIENCE)
        stream = bool(number % 2)
        return shop.ask(max_tokens=50, stream=stream, demo={"tokens": 50})

    with ThreadPoolExecutor(100) as pool:
        replies = list(pool.map(one, range(100)))
    statuses = [reply.status for reply in replies]
    assert (statuses.count(200), statuses.count(429)) == (10, 90)
    account = shop.until(lambda row: row["reserved_usd"] == 0)
    assert (account["spent_usd"], account["overrun_usd"]) == (0.005, 0)
    assert shop.books()["answered"] == 10
    assert shop.hub.ok("POST", "/budget/verify", {})["ok"]


def test_the_reserve_counts_while_nothing_is_answered(shop):
    shop.budget(0.005)
    clients = [
        Client(shop, max_tokens=50, stream=bool(number % 2), demo={"hang": True})
        for number in range(30)
    ]
    account = shop.until(lambda row: row["reserved_usd"] == 0.005)
    assert account["spent_usd"] == 0
    assert shop.ask(max_tokens=50).status == 429
    for client in clients:
        client.leave()
    account = shop.until(lambda row: row["reserved_usd"] == 0)
    # The input is free here and nothing was produced.
    assert account["spent_usd"] == 0
    assert shop.ask(max_tokens=50).status == 200


def test_leaving_behind_the_reserve_costs_nothing(shop):
    shop.budget(1.0)
    assert shop.ask(max_tokens=16).status == 200
    before = shop.until(lambda row: row["reserved_usd"] == 0)
    answered = shop.books()["requests"]
    # Nothing can be noted and another writer holds the database: no reservation becomes durable.
    pid, none = shop.hub.process.pid, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with contextlib.closing(apsw.Connection(str(shop.hub.data / "tokenhub.sqlite"))) as db:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (16, none[1]))
        db.execute("BEGIN IMMEDIATE")
        client = Client(shop, max_tokens=1000)
        rows = shop.hub.ok("GET", "/apikeys")["keys"]
        deadline = time.monotonic() + 4
        while next(row for row in rows if row["id"] == shop.key_id)["reserved_usd"] == 0:
            assert time.monotonic() < deadline
            rows = shop.hub.ok("GET", "/apikeys")["keys"]
        client.leave()
        while next(row for row in rows if row["id"] == shop.key_id)["reserved_usd"] > 0:
            assert time.monotonic() < deadline
            rows = shop.hub.ok("GET", "/apikeys")["keys"]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, none)
        db.execute("ROLLBACK")
    account = shop.until(lambda row: row["reserved_usd"] == 0)
    assert account["spent_usd"] == before["spent_usd"]
    assert shop.books()["requests"] == answered
    assert shop.hub.ok("POST", "/budget/verify", {})["ok"]


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_before_the_first_byte_costs_the_prompt(shop, stream):
    shop.hub.ok("PUT", "/prices/m", {"input_per_1k": 0.01})
    shop.budget(1.0)
    client = Client(shop, max_tokens=1000, stream=stream, demo={"hang": True})
    deadline = time.monotonic() + PATIENCE
    while shop.books().get("requests") != 1:
        assert time.monotonic() < deadline
    assert shop.account()["reserved_usd"] > 0.01
    client.leave()
    account = shop.until(lambda row: row["reserved_usd"] == 0)
    assert 0 < account["spent_usd"] < 0.001
    assert attempts(shop, newest_log(shop, 499)) == [("cancelled", account["spent_usd"])]


def test_leaving_in_the_middle_costs_what_was_sent(shop):
    shop.budget(1.0)
    client = Client(shop, max_tokens=1000, stream=True, demo={"tokens": 500, "stall_after": 41})
    client.read_until(b'"content":" word-40"')
    client.leave()
    account = shop.until(lambda row: row["reserved_usd"] == 0)
    # Forty words of 2 to 11 letters, counted by us at four bytes a token, at $0.01 per 1000.
    assert 0.0004 < account["spent_usd"] < 0.0011
    row = newest_log(shop, 499)
    assert row["counted_by"] == "counted"
    assert row["estimated_cost_usd"] == account["spent_usd"]
    assert attempts(shop, row) == [("cancelled", account["spent_usd"])]


def test_a_refusal_says_everything_in_both_dialects(shop):
    shop.budget(0.0006)
    assert shop.ask(max_tokens=50, demo={"tokens": 50}).status == 200
    # Ten tokens' worth is left; an answer is not cut below sixteen.
    openai_shape = shop.ask(max_tokens=50)
    native = shop.hub.request(
        "POST",
        "/v1/chat",
        {"request": {"model_hint": "m", "messages": MESSAGES, "parameters": {"max_tokens": 50}}},
        headers={"Authorization": f"Bearer {shop.key}"},
    )
    assert (openai_shape.status, native.status) == (429, 402), native.body
    error = openai_shape.json()["error"]
    assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
    now = time.gmtime()
    year, month = now.tm_year + now.tm_mon // 12, now.tm_mon % 12 + 1
    for reply, fields in ((openai_shape, error), (native, native.json())):
        assert reply.headers["x-should-retry"] == "false"
        assert (fields["limit_usd"], fields["spent_usd"]) == (0.0006, 0.0005)
        assert (fields["reserved_usd"], fields["needed_usd"]) == (0, 0.00016)
        assert fields["period"] == "month"
        assert fields["resets_at"] == f"{year:04d}-{month:02d}-01T00:00:00Z"


def test_the_official_sdk_does_not_repeat_a_refusal(shop):
    shop.budget(0.0001)
    client = openai.OpenAI(base_url=f"{shop.hub.url}/v1", api_key=shop.key, max_retries=5)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=50)
    assert refused.value.code == "insufficient_quota"
    assert refused.value.body["needed_usd"] == 0.00016
    assert len(shop.hub.ok("GET", f"/logs?key={shop.key_id}")["logs"]) == 1


def test_the_output_is_limited_to_what_the_budget_affords(shop, provider):
    own = provider(answer(usage(1, 1)))
    shop.hub.ok("PATCH", "/providers/up", {"base_url": own.url})
    shop.budget(0.001)  # 100 tokens
    assert shop.ask(max_tokens=5000).status == 200
    assert shop.ask(max_tokens=40).status == 200
    assert shop.ask().status == 200
    lowered, left, unset = own.requests
    assert lowered["max_tokens"] == 100
    assert left["max_tokens"] == 40
    limit = unset.get("max_completion_tokens") or unset["max_tokens"]
    assert 16 <= limit <= 98


def test_never_under_sixteen_tokens(shop, provider):
    own = provider(answer(usage(1, 1)))
    shop.hub.ok("PATCH", "/providers/up", {"base_url": own.url})
    shop.budget(0.00015)  # 15 tokens
    assert shop.ask(max_tokens=5000).status == 429
    assert not own.requests
    assert shop.ask(max_tokens=15).status == 200


def test_a_model_without_a_price_names_the_command(shop):
    shop.hub.ok("PUT", "/prices/m", {"input_per_1k": None, "output_per_1k": None})
    shop.budget(1.0)
    reply = shop.ask()
    assert reply.status == 400
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == ("model_unpriced", "model")
    command = error["hint"].partition("`")[2].rpartition("`")[0]
    assert command.startswith("tokenhubctl prices set m '")
    name, verb, model, body = command.removeprefix("tokenhubctl ").split(" ", 3)
    done = shop.hub.ctl(name, verb, model, body.strip("'"))
    assert done.returncode == 0, done.stderr
    assert shop.ask().status == 200


def test_a_provider_that_reports_too_much_ends_in_overrun(shop, provider):
    own = provider(answer(usage(1, 1000)))
    shop.hub.ok("PATCH", "/providers/up", {"base_url": own.url})
    shop.budget(0.002)
    assert shop.ask(max_tokens=100).status == 200  # reserved $0.001, reported $0.01
    account = shop.until(lambda row: row["reserved_usd"] == 0)
    assert (account["spent_usd"], account["overrun_usd"]) == (0.01, 0.008)
    row = next(one for one in shop.hub.ok("GET", "/apikeys")["keys"] if one["id"] == shop.key_id)
    assert (row["current_spend_usd"], row["overrun_usd"]) == (0.01, 0.008)
    assert "$0.01" in shop.hub.ctl("apikey", "list").stdout
    assert "$0.008" in shop.hub.ctl("apikey", "list", "-o", "wide").stdout
    assert shop.ask(max_tokens=16).status == 429
    assert shop.hub.ok("POST", "/budget/verify", {})["ok"]
    shop.hub.stop()
    with contextlib.closing(apsw.Connection(str(shop.hub.data / "tokenhub.sqlite"))) as db:
        rows = db.execute("SELECT flag, settled, overrun FROM ledger_attempts").fetchall()
    assert rows == [("overrun", 2_000_000, 8_000_000)]


def test_failed_attempts_that_cost_money_are_itemised(shop, provider):
    own = provider("break", answer(usage(5, 50)))
    shop.hub.ok("PATCH", "/providers/up", {"base_url": own.url})
    shop.hub.ok("PUT", "/prices/m", {"input_per_1k": 0.1})
    shop.budget(1.0)
    reply = shop.ask(max_tokens=100)
    assert reply.status == 200, reply.body
    row = shop.hub.ok("GET", f"/logs/{reply.headers['x-request-id']}")
    (failed, lost), (well, paid) = attempts(shop, row)
    assert (failed, well) == ("reset", "")
    assert lost > 0
    assert paid == 0.001
    account = shop.account()
    assert account["spent_usd"] == pytest.approx(lost + paid, abs=1e-12)
    assert row["estimated_cost_usd"] == account["spent_usd"]
    shown = shop.hub.ctl("logs", "show", row["request_id"]).stdout
    assert f"{lost:g}" in shown


def test_verify_finds_the_row_that_was_changed(shop):
    shop.budget(1.0)
    replies = [shop.ask(max_tokens=50, demo={"tokens": 50}) for _ in range(3)]
    assert shop.hub.ctl("budget", "verify").returncode == 0
    shop.hub.stop()
    victim = replies[1].headers["x-request-id"]
    with contextlib.closing(apsw.Connection(str(shop.hub.data / "tokenhub.sqlite"))) as db:
        db.execute(
            "UPDATE ledger_attempts SET settled = settled - 7 WHERE request_id = ?", [victim]
        )
        assert db.changes() == 1
    shop.hub.start()
    done = shop.hub.ctl("budget", "verify")
    assert done.returncode == 1
    assert victim in done.stdout
    assert replies[0].headers["x-request-id"] not in done.stdout
    assert f"{shop.key_id} month" in done.stdout


def test_a_kill_leaves_no_hold(shop):
    shop.budget(0.005)
    clients = [Client(shop, max_tokens=50, stream=True, demo={"hang": True}) for _ in range(4)]
    shop.until(lambda row: row["reserved_usd"] == 0.002)
    deadline = time.monotonic() + PATIENCE
    while shop.books().get("requests") != 4:
        assert time.monotonic() < deadline
    shop.hub.stop(signal.SIGKILL)
    for client in clients:
        client.leave()
    shop.hub.start()
    account = shop.account()
    assert (account["spent_usd"], account["reserved_usd"]) == (0.002, 0)
    assert shop.hub.ok("POST", "/budget/verify", {})["ok"]


def newest_log(shop, status):
    deadline = time.monotonic() + PATIENCE
    while True:
        rows = shop.hub.ok("GET", f"/logs?key={shop.key_id}&status={status}")["logs"]
        if rows:
            return shop.hub.ok("GET", f"/logs/{rows[0]['request_id']}")
        assert time.monotonic() < deadline


def attempts(shop, row):
    return [(one["error_class"], one["cost_usd"]) for one in row["attempts"]]


def test_a_full_disk_refuses_budgets_and_is_said_where_readiness_is_asked(shop):
    hub, none = shop.hub, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    shop.budget(10)
    assert shop.ask().status == 200
    pid = hub.process.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (16_384, none[1]))  # the files are larger already
    deadline = time.monotonic() + PATIENCE
    try:
        # Where there is room for a note, those before the first commit are reserved and answered.
        while (refused := shop.ask()).status == 200:
            assert time.monotonic() < deadline
        assert refused.status == 503
        assert refused.json()["error"]["code"] == "ledger_unavailable"
        unready = hub.request("GET", "/readyz")
        assert unready.status == 503
        assert "df" in unready.json()["checks"]["books"]
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, none)
    deadline = time.monotonic() + PATIENCE
    while hub.request("GET", "/readyz").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert shop.ask().status == 200
    assert hub.ok("POST", "/budget/verify", {}) == {"ok": True, "problems": []}
