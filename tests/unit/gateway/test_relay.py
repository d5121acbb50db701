from __future__ import annotations

import asyncio

import pytest
from tests.unit.gateway.stage import DONE, ClientStream, Stream, broken, until, word

from tokenhub.core.errors import FailureClass, ProviderError
from tokenhub.gateway.relay import Relay
from tokenhub.providers.openai_stream import OpenAIRelay
from tokenhub.providers.upstream import Answer


class Scene:
    """A relay at work between an answer and a client."""

    def __init__(self, first_token=5.0, waited=0.0, *, full=False):
        self.answer = Stream()
        self.full = full
        self.told = []
        self.client = None
        wire = OpenAIRelay(show_usage=True)
        self.relay = Relay(self.answer, wire, self._open, first_token, waited)
        self.task = asyncio.get_running_loop().create_task(self.relay.run())

    def _open(self):
        self.client = ClientStream(self.told)
        self.client.paused = self.full
        self.told.append(("head", b""))
        return self.client

    async def push(self, *pieces):
        await asyncio.sleep(0)
        self.answer.push(*pieces)


async def test_nothing_goes_out_before_the_first_content():
    scene = Scene()
    await scene.push(b": comment\n\n", word(""))
    assert scene.told == []
    await scene.push(word("Hi"))
    assert [kind for kind, _ in scene.told] == ["head", "write"]
    scene.answer.fail(broken())
    await scene.task


async def test_the_tail_is_kept_until_the_books_are_closed():
    scene = Scene()
    await scene.push(word("Hi", "stop"), DONE)
    scene.answer.end()
    await scene.task
    assert DONE not in b"".join(data for _, data in scene.told)
    scene.relay.finish()
    kind, data = scene.told[-1]
    assert kind == "end"
    assert data.endswith(DONE)


async def test_an_answer_that_is_all_there_needs_no_timer(monkeypatch):
    scene = Scene()
    scene.answer.push(word("Hi", "stop"), DONE)
    scene.answer.ended = True
    scene.answer.end()
    asked = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda *args: asked.append(args))
    await scene.task
    assert asked == []
    assert scene.relay.stream is scene.client


class Whole:
    """A relay of an answer that is all there."""

    def __init__(self, *events):
        self.told = []
        body = b"".join(events)
        wire = OpenAIRelay(show_usage=True)
        self.relay = Relay(Answer(200, {}, body), wire, self._open, 5.0, 0.0)
        self.relay.take(body)

    def _open(self):
        self.told.append(("head", b""))
        return ClientStream(self.told)


def test_an_answer_that_is_all_there_goes_out_in_one_piece():
    scene = Whole(word("Hi"), word("!", "stop"), DONE)
    assert scene.told == [("head", b"")]
    scene.relay.finish()
    assert scene.told[1:] == [("end", word("Hi") + word("!", "stop") + DONE)]


def test_all_but_the_tail_can_go_out_before():
    scene = Whole(word("Hi"), word("!", "stop"), DONE)
    scene.relay.write()
    scene.relay.finish()
    assert scene.told[1:] == [("write", word("Hi") + word("!", "stop")), ("end", DONE)]


def test_a_whole_answer_that_stops_short_does_not_look_complete():
    scene = Whole(word("Hi"))
    scene.relay.finish()
    kinds, texts = zip(*scene.told[1:], strict=True)
    assert kinds == ("write", "abort")
    assert texts[0].startswith(word("Hi"))
    assert texts[0].count(b'"error"') == 1
    assert DONE not in texts[0]


ERROR = b'data: {"error":{"message":"no","code":503}}\n\n'


@pytest.mark.parametrize("body", [b"", word(""), ERROR, word("Hi") + ERROR])
def test_a_whole_answer_without_content_is_raised_and_nothing_was_sent(body):
    with pytest.raises(ProviderError):
        Whole(body)


@pytest.mark.parametrize("how", ["fail", "error event", "end"])
async def test_a_failure_before_content_is_raised_and_nothing_was_sent(how):
    scene = Scene()
    await scene.push(word(""))
    if how == "error event":
        scene.answer.push(b'data: {"error":{"message":"no","code":503}}\n\n')
    elif how == "fail":
        scene.answer.fail(broken())
    else:
        scene.answer.end()
    with pytest.raises(ProviderError):
        await scene.task
    assert scene.told == []


@pytest.mark.parametrize("how", ["fail", "error event", "end"])
async def test_a_failure_after_content_ends_with_the_error_event_and_an_abort(how):
    scene = Scene()
    await scene.push(word("Hi"))
    if how == "fail":
        scene.answer.fail(broken())
    elif how == "error event":
        scene.answer.push(b'data: {"error":{"message":"no","code":503}}\n\n')
    else:
        scene.answer.end()
    await scene.task
    scene.relay.finish()
    text = b"".join(data for _, data in scene.told)
    assert text.count(b'"error"') == 1
    assert DONE not in text
    assert scene.told[-1] == ("abort", b"")
    assert scene.answer.aborted


async def test_after_an_error_event_the_provider_is_hung_up_on():
    scene = Scene()
    await scene.push(word("Hi"), b'data: {"error":{"message":"no"}}\n\n', word("more"))
    assert scene.answer.aborted
    await scene.task
    assert b"more" not in b"".join(data for _, data in scene.told)


async def test_a_provider_without_a_word_is_left_at_the_limit():
    loop = asyncio.get_running_loop()
    began = loop.time()
    scene = Scene(first_token=0.05)
    await scene.push(b": still here\n\n", word(""))
    with pytest.raises(ProviderError) as caught:
        await scene.task
    assert 0.045 <= loop.time() - began < 1
    assert caught.value.kind == FailureClass.TIMEOUT
    assert scene.answer.aborted


async def test_the_limit_counts_from_the_attempts_start():
    scene = Scene(first_token=60.0, waited=60.0)
    with pytest.raises(ProviderError, match="within 60 s"):
        await scene.task


async def test_after_the_first_word_the_limit_has_no_say():
    scene = Scene(first_token=0.03)
    await scene.push(word("Hi"))
    await asyncio.sleep(0.06)
    assert not scene.answer.aborted
    await scene.push(word(" there", "stop"), DONE)
    scene.answer.end()
    await scene.task


async def test_a_client_that_cannot_keep_up_pauses_the_provider():
    scene = Scene()
    await scene.push(word("Hi"))
    assert scene.answer.reading
    scene.client.on_pause()
    assert not scene.answer.reading
    scene.client.on_resume()
    assert scene.answer.reading
    scene.answer.fail(broken())
    await scene.task


async def test_a_client_that_is_full_before_the_first_word_pauses_the_provider():
    scene = Scene(full=True)
    await scene.push(word("Hi"))
    assert not scene.answer.reading
    scene.client.on_resume()
    assert scene.answer.reading
    scene.answer.fail(broken())
    await scene.task


async def test_cancelling_hangs_up():
    scene = Scene()
    await scene.push(word("Hi"))
    scene.task.cancel()
    await until(scene.task.done)
    assert scene.task.cancelled()
    assert scene.answer.aborted
