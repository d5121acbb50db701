"""Bounds: never under what a request can come to, never the budget over."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tokenhub.core.bounds import (
    DEFAULT_OUTPUT_TOKENS,
    FILE_TOKENS,
    FIXED_TOKENS,
    IMAGE_TOKENS,
    TOOL_TOKENS,
    Measure,
    bound,
    counted,
    measure,
    measure_chat,
)
from tokenhub.core.catalog import Model, Prices
from tokenhub.core.chat import Usage, parse_chat
from tokenhub.core.money import cost

NANO = Prices(input=1_000_000, output=1_000_000)  # a nano-dollar per token
MODEL = Model(id="m", provider_id="p", prices=NANO)
PIXELS = base64.b64encode(bytes(range(256)) * 40).decode()


def chat(*parts, **members):
    messages = [{"role": "user", "content": list(parts) if parts else "hi"}]
    return json.dumps({"model": "m", "messages": messages, **members}).encode()


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


@given(st.text(max_size=400))
def test_text_is_at_most_its_bytes(text):
    body = chat({"type": "text", "text": text})
    assert measure(body).text >= len(text.encode("utf-8", "surrogatepass"))
    assert measure(body).text <= len(body) + FIXED_TOKENS


def test_media_is_counted_by_caps_not_by_its_base64():
    body = chat(
        {"type": "text", "text": "what is this?"},
        image(f"data:image/png;base64,{PIXELS}"),
        image("https://example.com/a.png"),
        {"type": "input_audio", "input_audio": {"data": "A" * 8000, "format": "mp3"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PIXELS}"}},
    )
    size = measure(body)
    assert (size.images, size.files, size.audio) == (2, 1, 1000)
    assert 400 < size.text < 800
    anthropic = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": PIXELS},
    }
    result = {"type": "tool_result", "tool_use_id": "t", "content": [anthropic]}
    assert measure(chat(result)).images == 1
    assert measure(chat(result)).text < 400


def test_media_cannot_hide_behind_escapes():
    body = chat(image("https://example.com/a.png")).replace(b"image_url", b"\\u0069mage_url")
    assert measure(body).images == 1
    body = body.replace(b'"type"', b'"\\u0074ype"')
    assert measure(body).images == 1


def test_text_cannot_pass_for_media():
    text = "data:" + "x" * 10_000
    fake = {"type": "image", "data": text}
    tool = {"type": "function", "function": {"name": "f", "parameters": fake}}
    body = chat(tools=[tool], user=fake)
    assert measure(body).images == 0
    assert measure(body).text > 20_000
    captioned = image("https://example.com/a.png") | {"text": "y" * 10_000}
    assert measure(chat(captioned)).text > 10_000


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "content", "messages", "data", "image_url"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )
)
def test_any_shape_can_be_measured(value):
    body = json.dumps({"messages": value, "type": '"image', "input": value}).encode()
    size = measure(body)
    assert 0 <= size.text <= len(body) + FIXED_TOKENS


def test_tools_and_the_service_tier_of_a_chat():
    plain = parse_chat(chat())
    tools = [{"type": "function", "function": {"name": "f"}}]
    tooled = parse_chat(chat(tools=tools, service_tier="flex"))
    assert measure_chat(plain) == Measure(text=len(plain.body) + FIXED_TOKENS)
    assert measure_chat(tooled).text == len(tooled.body) + FIXED_TOKENS + TOOL_TOKENS
    assert measure_chat(tooled).tier == "flex"
    assert measure_chat(parse_chat(chat(service_tier=7))).tier == "7"
    assert measure_chat(parse_chat(chat(service_tier="x" * 99))).tier == ""


def test_the_output_is_lowered_to_what_is_left_and_not_under_the_floor():
    size = Measure(text=100)
    assert bound(size, MODEL, max_tokens=500, room=1000).max_tokens is None
    assert bound(size, MODEL, max_tokens=500, room=1000).nano == 600
    lowered = bound(size, MODEL, max_tokens=500, room=350)
    assert (lowered.max_tokens, lowered.nano) == (250, 350)
    assert bound(size, MODEL, max_tokens=500, room=116).max_tokens == 16
    assert bound(size, MODEL, max_tokens=500, room=115).nano == 116
    assert bound(size, MODEL, max_tokens=3, room=103).nano == 103
    assert bound(size, MODEL, max_tokens=500, choices=5, room=350).max_tokens == 50


def test_without_a_limit_of_the_client_one_request_does_not_take_everything():
    size = Measure(text=100)
    assert bound(size, MODEL, room=10**9).max_tokens == DEFAULT_OUTPUT_TOKENS
    assert bound(size, MODEL, room=40_000).max_tokens == 10_000 - 100
    assert bound(size, MODEL, room=8_000).max_tokens == 4096
    assert bound(size, MODEL, room=1_000).max_tokens == 900
    small = replace(MODEL, max_output_tokens=2048)
    assert bound(size, small, room=10**9).max_tokens == 2048
    assert bound(size, small, max_tokens=9999, room=10**9).nano == 2148
    assert bound(size, MODEL).max_tokens is None
    assert bound(size, MODEL).nano == 100 + DEFAULT_OUTPUT_TOKENS


def test_an_endpoint_that_generates_nothing():
    found = bound(Measure(text=100), MODEL, output=False, room=100)
    assert (found.nano, found.output, found.max_tokens) == (100, 0, None)


def test_a_free_or_unpriced_model():
    free = replace(MODEL, prices=Prices(input=0, output=0))
    assert bound(Measure(text=100), free, max_tokens=10**30, room=0).nano == 0
    assert bound(Measure(text=100), free, room=0).max_tokens is None
    unknown = bound(Measure(text=100), replace(MODEL, prices=Prices()), max_tokens=7)
    assert (unknown.priced, unknown.nano, unknown.output) == (False, 0, 7)


def test_images_and_files_by_the_model():
    size = Measure(text=10, images=2, files=1)
    assert bound(size, MODEL, max_tokens=1).prompt == 10 + 2 * IMAGE_TOKENS + FILE_TOKENS
    mini = replace(MODEL, upstream_name="gpt-4o-mini-2024-07-18", max_context_tokens=128_000)
    assert bound(size, mini, max_tokens=1).prompt == 10 + 2 * 48_169 + 128_000


def test_images_and_audio_at_their_own_prices():
    prices = Prices(input=1_000_000, output=0, image_in=2_000_000, audio_in=5_000_000)
    model = replace(MODEL, prices=prices)
    found = bound(Measure(text=10, images=1, audio=100), model, max_tokens=1)
    assert found.nano == 10 + 2 * IMAGE_TOKENS + 5 * 100


rate = st.integers(0, 10**9)
price = st.builds(
    Prices,
    input=rate,
    output=rate,
    cached_read=st.none() | rate,
    cached_write=st.none() | rate,
    cached_write_1h=st.none() | rate,
    reasoning=st.none() | rate,
    audio_in=st.none() | rate,
    image_in=st.none() | rate,
    audio_out=st.none() | rate,
    image_out=st.none() | rate,
    request=rate,
)
tiered = st.builds(
    lambda base, first, second, flex: replace(
        base, tiers=((50, first), (5000, second)), variants=(("flex", flex),)
    ),
    price,
    price,
    price,
    price,
)
share = st.sampled_from([0.0, 0.3, 1.0])


@given(
    price | tiered,
    st.integers(0, 10_000),
    st.integers(0, 3),
    st.integers(0, 500),
    st.integers(1, 5000),
    st.integers(1, 3),
    st.sampled_from(["", "flex"]),
    st.none() | st.integers(0, 10**9),
    st.lists(share, min_size=9, max_size=9),
)
def test_no_usage_within_the_bound_costs_more_than_it(
    prices, text, images, audio, limit, choices, tier, room, shares
):
    size = Measure(text=text, images=images, audio=audio, hour=True, tier=tier)
    model = replace(MODEL, prices=prices)
    found = bound(size, model, max_tokens=limit, choices=choices, room=room)
    assert found.output <= limit * choices
    if found.max_tokens is not None:
        assert found.output == found.max_tokens * choices
    sent, read, write, hour, heard, seen, made, thought, drawn = shares
    prompt = int(found.prompt * sent)
    pictures = min(int(images * IMAGE_TOKENS * seen), prompt)
    sound = min(int(audio * heard), prompt - pictures)
    rest = prompt - pictures - sound
    cached = int(rest * read)
    written = int((rest - cached) * write)
    completion = int(found.output * made)
    usage = Usage(
        prompt=prompt,
        cached_read=cached,
        cached_write=written,
        cached_write_1h=int(written * hour),
        audio_in=sound,
        image_in=pictures,
        completion=completion,
        reasoning=int(completion * thought),
        image_out=int((completion - int(completion * thought)) * drawn),
        tier=tier,
    )
    assert cost(usage, prices) <= found.nano
    if room is not None and found.nano > room:
        assert found.output <= 16 * choices


def test_counting_where_the_provider_does_not():
    found = counted(Measure(text=400, images=1), 41)
    assert found == Usage(prompt=100 + IMAGE_TOKENS // 8, completion=11, source="counted")


@pytest.mark.parametrize("body", [b"{}", b'{"messages":"x"}', b'["type", "\\u0041"]'])
def test_bodies_that_are_no_chat(body):
    assert measure(body).images == 0


def test_measures_and_bounds_are_plain_data():
    found = bound(measure(chat()), MODEL, max_tokens=5)
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


LONG = "word " * 4000
ODD_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"])},
        optional={
            "content": st.sampled_from(
                [LONG, None, [{"type": "text", "text": LONG}], [image("https://e.com/a.png")], 7]
            ),
            "name": st.just("Ann"),
            "image": st.just(image("https://e.com/a.png")),
            "cache_control": st.just({"type": "ephemeral", "ttl": "1h"}),
            "tool_calls": st.just([{"type": "function", "id": "c"}]),
        },
    ),
    min_size=1,
    max_size=4,
)


@given(ODD_MESSAGES, st.dictionaries(st.sampled_from(["n", "user", "cache_control"]), st.just(1)))
def test_a_long_request_has_the_same_size_whichever_way_it_is_found(messages, members):
    padded = [*messages, {"role": "user", "content": LONG}]
    body = json.dumps({"model": "m", "messages": padded, **members}).encode()
    found = measure_chat(parse_chat(body))
    # An escape only says that more must be looked at; "1h" is then assumed.
    assert replace(found, hour=False) == replace(measure(body), hour=False)
    assert found.hour >= (b'"1h"' in body)


def test_a_member_written_with_escapes_is_not_taken_for_text():
    part = json.dumps(image("https://e.com/a.png")).replace('"type"', '"\\u0074ype"')
    content = '"\\u0063ontent"'
    body = f'{{"messages":[{{{content}:[{part}]}},{{"content":"{LONG}"}}]}}'.encode()
    assert measure_chat(parse_chat(body)).images == 1


def test_the_dearest_price_is_that_of_these_prices_alone():
    """It is kept with them; changed prices are other prices."""
    prices = Prices(input=3, output=4, cached_write=7, cached_write_1h=9, reasoning=5)
    assert prices.dearest == (7, 9, 5)
    assert replace(prices, cached_write=1, cached_write_1h=2, reasoning=None).dearest == (3, 3, 4)
    assert prices == replace(prices)
