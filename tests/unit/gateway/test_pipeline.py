from __future__ import annotations

import asyncio
import contextlib
import gc

import msgspec
import pytest
from tests.unit.gateway.stage import DONE, FOREVER, Stream, broken, grant, stage, until, whole, word

from tokenhub.core.bounds import measure_chat
from tokenhub.core.chat import parse_chat
from tokenhub.core.decision import RouteQuery
from tokenhub.core.errors import (
    FailureClass,
    HubError,
    InvalidRequest,
    PaymentRequired,
    RateLimited,
    TransportError,
    UpstreamFailed,
)
from tokenhub.gateway.attempt import Attempt
from tokenhub.gateway.features import features_of
from tokenhub.gateway.hedge import Hedging
from tokenhub.providers.upstream import Answer
from tokenhub.routing.aliases import Alias, Variant

OH = Answer(500, {}, b'{"error":{"message":"Oh"}}')
HEDGED = Hedging(after_s=0.02, most=2)


def spoken(*words):
    """A stream that is there as a whole."""
    *most, last = words
    return b"".join([*map(word, most), word(last, "stop")]) + DONE


async def test_a_failed_attempt_leads_to_the_next_provider(tmp_path):
    async with stage(tmp_path, {"a": [OH], "b": [whole("Hi")]}) as it:
        answer = await it.pipeline.chat(it.client(), grant())
    assert it.upstream.asked == ["a", "b"]
    headers = dict(answer.headers)
    assert headers[b"x-tokenhub-model"] == headers[b"x-tokenhub-provider"] == b"b"
    assert headers[b"x-tokenhub-attempts"] == b"2"
    assert b"x-alias-from" not in headers
    [call] = it.calls
    assert [(one.provider_id, one.kind) for one in call.attempts] == [("a", "server"), ("b", "")]


async def test_routing_is_told_what_is_asked(tmp_path):
    tool = {"type": "function", "function": {"name": "f"}}
    key = grant(mode="cheap", models=("a", "b"), allow_fallback=False)
    async with stage(tmp_path, {"a": [whole("Hi")]}) as it:
        client = it.client("a", n=2, max_tokens=7, tools=[tool])
        await it.pipeline.chat(client, key)
        plain = it.client("auto")
        await it.pipeline.chat(plain, grant())
    first, second = (call.decision.query for call in it.calls)
    size = measure_chat(parse_chat(client.body))
    assert first == RouteQuery(
        request_id=client.id,
        model="a",
        key_mode="cheap",
        input_tokens=size.text // 4,
        size=size,
        max_tokens=7,
        choices=2,
        tools=True,
        models=("a", "b"),
        key_id="k",
    )
    assert (second.tools, second.allow_fallback, second.choices) == (False, True, 1)
    assert second.features == features_of(parse_chat(plain.body))


async def test_an_error_says_how_many_attempts_were_made(tmp_path):
    async with stage(tmp_path, {"a": [OH], "b": [OH]}) as it:
        with pytest.raises(UpstreamFailed) as caught:
            await it.pipeline.chat(it.client(), grant())
        assert dict(caught.value.headers)[b"x-tokenhub-attempts"] == b"3"
        with pytest.raises(InvalidRequest) as refused:
            await it.pipeline.chat(it.client(messages=[]), grant())
        assert dict(refused.value.headers)[b"x-tokenhub-attempts"] == b"0"


@pytest.mark.parametrize(
    "script",
    [[Answer(400, {}, b"{}")], [Answer(500, {}, b"{}")], [b"[]"], [whole("hi")]],
    ids=["refused", "failed", "garbage", "answered"],
)
@pytest.mark.parametrize("model", ["a", "auto"])
async def test_nothing_is_left_for_the_collector(tmp_path, script, model):
    """Thousands of requests may fail before it comes by, each holding all it ever had."""
    async with stage(tmp_path, {"a": script, "b": script}) as on:

        async def ask():
            with contextlib.suppress(HubError):
                await on.pipeline.chat(on.client(model), grant())

        await asyncio.create_task(ask())
        gc.collect()
        gc.disable()
        try:
            await asyncio.create_task(ask())
            assert gc.collect() == 0
            assert on.calls[-1].status in {200, 400, 502}
        finally:
            gc.enable()


async def test_a_request_that_has_ended_counts_no_longer_for_the_limit_at_once(tmp_path):
    async with stage(tmp_path, {"a": [whole("Hi"), FOREVER]}) as it:
        one = grant(max_concurrent=1)
        await it.pipeline.chat(it.client(), one)
        with pytest.raises(InvalidRequest):
            await it.pipeline.chat(it.client(messages=[]), one)
        task = asyncio.create_task(it.pipeline.chat(it.client(), one))
        await until(lambda: it.upstream.asked == ["a", "a"])
        with pytest.raises(RateLimited):
            await it.pipeline.chat(it.client(), one)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(InvalidRequest):
            await it.pipeline.chat(it.client(messages=[]), one)


async def test_the_alias_a_name_came_from_is_told_in_ascii(tmp_path):
    variants = (Variant(model_id="a"),)
    names = {"fast one": b"fast one", "50%/ö": b"50%25/%C3%B6"}
    aliases = {name: Alias(name=name, variants=variants) for name in names}
    async with stage(tmp_path, {"a": [whole("Hi")]}, aliases=aliases) as it:
        for name, shown in names.items():
            answer = await it.pipeline.chat(it.client(name), grant())
            assert dict(answer.headers)[b"x-alias-from"] == shown


async def test_the_books_are_closed_before_the_client_sees_the_end(tmp_path):
    async with stage(tmp_path, {"a": [Answer(200, {}, spoken("Hi", " there"))]}) as it:
        client = it.client(stream=True)
        end, open_at_end = None, []
        original = client.open_stream

        def watched(status, headers):
            stream = original(status, headers)
            real = stream.end
            stream.end = lambda data=b"": (open_at_end.append(it.ledger.open_holds), real(data))
            return stream

        client.open_stream = watched
        end = await it.pipeline.chat(client, grant(monthly_budget=10**9))
    assert end is None
    assert open_at_end == [0]
    assert client.text.endswith(DONE)


async def test_of_a_whole_stream_only_the_end_waits_for_the_disk(tmp_path):
    async with stage(tmp_path, {"a": [Answer(200, {}, spoken("Hi", " there"))]}) as it:
        client = it.client(stream=True)
        await it.pipeline.chat(client, grant(monthly_budget=10**9))
    assert client.told == [("write", spoken("Hi", " there").removesuffix(DONE)), ("end", DONE)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "costs"),
    [
        (whole("Hi")[:-1], True),
        (b'{"id": "c"}', True),
        (b"", True),
        (b"<html>elsewhere</html>", False),
        (b'{"error": {"message": "busy", "code": 503}}', False),
    ],
)
async def test_what_cannot_be_read_may_have_been_billed(tmp_path, body, costs, stream):
    async with stage(tmp_path, {"a": [body]}) as it:
        with pytest.raises(HubError):
            await it.pipeline.chat(it.client(stream=stream), grant())
        attempts = it.calls[-1].attempts
        assert attempts
        assert all((one.cost > 0) is costs for one in attempts), attempts


async def test_no_other_provider_after_the_first_byte(tmp_path):
    async with stage(tmp_path, {"a": [broken()], "b": [whole("no")]}) as it:
        answer = Stream()
        it.upstream.scripts["a"] = [answer]
        client = it.client(stream=True)
        task = asyncio.create_task(it.pipeline.chat(client, grant()))
        await until(lambda: answer.sink)
        answer.push(word("Hi"))
        answer.fail(broken())
        assert await task is None
        assert it.upstream.asked == ["a"]
        assert client.told[-1][0] == "abort"
        assert it.calls[0].error_class == "reset"
        assert it.calls[0].attempts[0].cost > 0


@pytest.mark.parametrize("traced", [False, True])
async def test_a_stream_that_has_begun_keeps_no_text_of_its_request(tmp_path, traced):
    async with stage(tmp_path, {"a": [broken()]}) as it:
        answer = Stream()
        answer._headers = {b"x": b"y"}
        it.upstream.scripts["a"] = [answer]
        if traced:
            it.lanes.trace = lambda _request, _attempt: []
        client = it.client(stream=True, temperature=0.5)
        task = asyncio.create_task(it.pipeline.chat(client, grant()))
        await until(lambda: answer.sink)
        assert client.body  # another provider may have to be asked
        answer.push(word("Hi"))
        assert bool(client.body) is traced
        assert answer.headers == {}
        answer.push(word("", "stop"), DONE)
        answer.end()
        await task
        chat = it.calls[0].chat
        assert (b"Hello" in chat.body) is traced
        assert ("temperature" in chat.members) is traced  # a trace tells it
        assert it.calls[0].finish_reason == "stop"


async def test_a_silent_provider_is_left_at_the_configured_limit(tmp_path):
    scripts = {"a": [OH], "b": [Answer(200, {}, spoken("Hi"))]}
    async with stage(tmp_path, scripts, first_token_s=0.05) as it:
        it.upstream.scripts["a"] = [Stream()]
        began = it.clock.monotonic()
        await it.pipeline.chat(it.client(stream=True), grant())
        assert it.clock.monotonic() - began < 2  # not the router's own default
        assert it.upstream.asked == ["a", "b"]
        assert [one.kind for one in it.calls[0].attempts] == ["timeout", ""]


async def test_hedging_takes_the_first_answer_and_cancels_the_other(tmp_path):
    async with stage(tmp_path, {"a": [FOREVER], "b": [whole("Hi")]}, hedging=HEDGED) as it:
        answer = await it.pipeline.chat(it.client(), grant(monthly_budget=10**9))
        assert dict(answer.headers)[b"x-tokenhub-attempts"] == b"2"
        assert it.upstream.left == ["a"]
        attempts = {one.provider_id: one for one in it.calls[0].attempts}
        assert attempts["a"].kind == "cancelled"
        assert attempts["a"].cost > 0
        assert attempts["b"].kind == ""


async def test_a_second_attempt_that_was_beaten_before_its_first_step_is_told(
    tmp_path, monkeypatch
):
    async with stage(tmp_path, {"a": [OH], "b": [whole("no")]}, hedging=HEDGED) as it:
        answer = Stream()
        it.upstream.scripts["a"] = [answer]
        beside = Attempt.beside

        def beaten(first):
            asyncio.get_running_loop().call_soon(answer.push, word("Hi", "stop"), DONE)
            asyncio.get_running_loop().call_soon(answer.end)
            return beside(first)

        monkeypatch.setattr(Attempt, "beside", beaten)
        await it.pipeline.chat(it.client(stream=True), grant(monthly_budget=10**9))
        assert it.upstream.asked == ["a"]
        [call] = it.calls
        ended = {one.provider_id: (one.number, one.kind) for one in call.attempts}
        assert ended == {"a": (1, ""), "b": (2, "cancelled")}
        assert call.cost == sum(one.cost or 0 for one in call.attempts) > 0
        listed = msgspec.json.decode(call.attempts_json)
        assert len(listed) == len(ended)


async def test_two_contents_in_one_turn_of_the_loop_are_one_answer(tmp_path):
    async with stage(tmp_path, {"a": [OH], "b": [OH]}, hedging=HEDGED) as it:
        one, two = Stream(), Stream()
        it.upstream.scripts = {"a": [one], "b": [two]}
        client = it.client(stream=True)
        task = asyncio.create_task(it.pipeline.chat(client, grant()))
        await until(lambda: two.sink, pause=0.005)
        one.push(word("first"))
        two.push(word("second"))
        assert len(client.heads) == 1
        await until(lambda: two.aborted)
        one.push(word(" and last", "stop"), DONE)
        one.end()
        await task
        assert b"second" not in client.text
        assert client.text.endswith(DONE)
        assert client.heads[0][1][b"x-tokenhub-provider"] == b"a"


async def test_losers_are_cancelled_when_content_comes_not_when_the_stream_ends(tmp_path):
    async with stage(tmp_path, {"a": [FOREVER], "b": [OH]}, hedging=HEDGED) as it:
        answer = Stream()
        it.upstream.scripts["b"] = [answer]
        task = asyncio.create_task(it.pipeline.chat(it.client(stream=True), grant()))
        await until(lambda: answer.sink, pause=0.005)
        assert it.upstream.left == []
        answer.push(word("Hi"))
        await until(lambda: it.upstream.left == ["a"])
        assert not task.done()
        answer.push(word(" there", "stop"), DONE)
        answer.end()
        await task


async def test_a_winning_stream_is_not_hedged_any_more(tmp_path):
    async with stage(tmp_path, {"a": [OH], "b": [whole("no")]}, hedging=HEDGED) as it:
        answer = Stream()
        it.upstream.scripts["a"] = [answer]
        task = asyncio.create_task(it.pipeline.chat(it.client(stream=True), grant()))
        await until(lambda: answer.sink)
        answer.push(word("Hi"))
        await asyncio.sleep(0.06)
        answer.push(word(" there", "stop"), DONE)
        answer.end()
        await task
        assert it.upstream.asked == ["a"]


async def test_failures_beside_each_other_lead_on_to_the_third(tmp_path):
    late = TransportError("reset", "late", sent=True)

    class Late(Answer):
        async def read(self):
            await asyncio.sleep(0.05)
            raise late

    scripts = {"a": [Late(500, {}, None)], "b": [Late(500, {}, None)], "c": [whole("Hi")]}
    async with stage(tmp_path, scripts, hedging=HEDGED) as it:
        answer = await it.pipeline.chat(it.client(), grant())
        assert dict(answer.headers)[b"x-tokenhub-provider"] == b"c"
        assert it.upstream.asked == ["a", "b", "c"]
        assert len(it.calls[0].attempts) == 3


async def test_a_client_that_leaves_takes_all_attempts_along(tmp_path):
    async with stage(tmp_path, {"a": [FOREVER], "b": [FOREVER]}, hedging=HEDGED) as it:
        task = asyncio.create_task(it.pipeline.chat(it.client(), grant(monthly_budget=10**9)))
        await until(lambda: len(it.upstream.asked) == 2, pause=0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(it.upstream.left) == ["a", "b"]
        assert it.calls[0].status == 499
        assert len(it.calls[0].attempts) == 2


async def test_hedging_off_makes_no_task(tmp_path):
    async with stage(tmp_path, {"a": [whole("Hi")]}) as it:
        before = len(asyncio.all_tasks())
        seen = []
        send = it.upstream.send

        async def watched(*args, **options):
            seen.append(len(asyncio.all_tasks()))
            return await send(*args, **options)

        it.upstream.send = watched
        await it.pipeline.chat(it.client(), grant())
        assert seen == [before]


async def test_an_unaffordable_second_attempt_does_not_disturb_the_first(tmp_path):
    async with stage(tmp_path, {"a": [OH], "b": [whole("no")]}, hedging=HEDGED) as it:

        class Slow(Answer):
            async def read(self):
                await asyncio.sleep(0.06)
                return b'{"error":{"message":"Oh"}}'

        it.upstream.scripts["a"] = [Slow(400, {}, None)]
        # Enough for one bound, not for two.
        with pytest.raises(HubError) as caught:
            await it.pipeline.chat(it.client(max_tokens=500), grant(monthly_budget=800_000))
        assert caught.value.status == 400
        assert it.upstream.asked == ["a"]


async def test_an_attempt_that_cannot_be_paid_for_says_so(tmp_path):
    async with stage(tmp_path, {"a": [whole("Never asked.")]}) as it:
        with pytest.raises(PaymentRequired) as caught:
            await it.pipeline.chat(it.client("a"), grant(monthly_budget=1))
        [call] = it.calls
        [attempt] = call.attempts
        assert it.upstream.asked == []
        assert attempt.kind == FailureClass.CANCELLED
        assert attempt.message == call.error == caught.value.message
