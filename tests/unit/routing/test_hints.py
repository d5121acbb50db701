from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.routing.world import model, rules

from tokenhub.core.catalog import Provider
from tokenhub.core.errors import Forbidden, HubError, InvalidRequest, NotFound
from tokenhub.routing.aliases import Alias, Variant
from tokenhub.routing.hints import ROUTED, Hint, read_hint

FAST = Alias(name="fast", variants=(Variant("gpt-4o-mini"),))
RULES = rules(
    model("gpt-4o", "openai"),
    model("gpt-4o-mini", "openai"),
    model("Qwen/Qwen2.5-7B", "local", upstream_name="qwen"),
    model("llama", "here"),
    model("llama-2", "there", upstream_name="llama"),
    aliases=(FAST, Alias(name="off", variants=(Variant("gpt-4o"),), enabled=False)),
    providers=[
        Provider(id="openai", type="openai"),
        Provider(id="local", type="vllm"),
        Provider(id="here", type="ollama"),
        Provider(id="there", type="ollama"),
    ],
)


@pytest.mark.parametrize("name", ["", "auto", " auto ", "*"])
def test_a_wish_for_routing(name):
    assert read_hint(name, RULES) == ROUTED


def test_a_mode_in_the_name():
    assert read_hint("auto:cheap", RULES).mode == "cheap"
    with pytest.raises(InvalidRequest) as caught:
        read_hint("auto:cheep", RULES)
    assert (caught.value.code, caught.value.hint) == ("unknown_mode", "Did you mean `cheap`?")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4o", "gpt-4o"),
        (" gpt-4o ", "gpt-4o"),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("openai/gpt-4o", "gpt-4o"),
        ("local/Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("vllm/qwen", "Qwen/Qwen2.5-7B"),
        ("there/llama", "llama-2"),
    ],
)
def test_names_of_models(name, expected):
    assert read_hint(name, RULES).model.id == expected


@pytest.mark.parametrize("name", ["ollama/llama", "anthropic/gpt-4o", "openai/", "off"])
def test_ambiguous_or_unknown_names_are_not_guessed(name):
    with pytest.raises(NotFound):
        read_hint(name, RULES)


def test_an_exact_id_wins_over_every_other_meaning():
    exact = rules(model("openai/gpt-4o"), model("gpt-4o", "openai"), model("auto"))
    assert read_hint("openai/gpt-4o", exact).model.id == "openai/gpt-4o"
    assert read_hint("auto", exact).model.id == "auto"


def test_an_alias():
    assert read_hint("fast", RULES).alias == FAST


@pytest.mark.parametrize(
    ("name", "near"), [("gpt4o", "gpt-4o"), ("GPT-4O-MINI", "gpt-4o-mini"), ("fsat", "fast")]
)
def test_a_typo_is_answered_with_the_nearest_names(name, near):
    with pytest.raises(NotFound) as caught:
        read_hint(name, RULES)
    assert caught.value.code == "model_not_found"
    assert caught.value.extra["nearest"][0] == near
    assert near in caught.value.hint


def test_nothing_near_names_the_next_step():
    with pytest.raises(NotFound) as caught:
        read_hint("zzzzzzzz", RULES)
    assert "auto" in caught.value.hint
    with pytest.raises(NotFound, match="zzz") as caught:
        read_hint("zzz", rules())
    assert "tokenhubctl model add" in caught.value.hint


def test_a_key_sees_only_what_it_may_use():
    with pytest.raises(Forbidden) as caught:
        read_hint("gpt-4o", RULES, ("llama",))
    assert caught.value.code == "model_not_allowed"
    with pytest.raises(NotFound) as caught:
        read_hint("gpt-4", RULES, ("llama",))
    assert caught.value.extra["nearest"] == []
    assert read_hint("fast", RULES, ("fast",)).alias == FAST
    assert read_hint("fast", RULES, ("gpt-4o-mini",)).alias == FAST


@given(st.text(max_size=300))
def test_any_name_means_something_or_is_refused(name):
    with contextlib.suppress(HubError):
        assert isinstance(read_hint(name, RULES), Hint)
