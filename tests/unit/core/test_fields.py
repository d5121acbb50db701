from __future__ import annotations

import msgspec
import pytest

from tokenhub.core.errors import InvalidRequest
from tokenhub.core.fields import decode_fields


class Part(msgspec.Struct, forbid_unknown_fields=True):
    size: int


class Thing(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    weight: int = 1
    tags: list[str] = []
    part: Part | None = None


def test_a_good_body():
    assert decode_fields(b'{"name":"a","weight":3}', Thing) == Thing("a", 3)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (b"{}", "name", "missing"),
        (b"", "name", "missing"),
        (b'{"name":1}', "name", "expected `str`"),
        (b'{"name":"a","weight":"3"}', "weight", "expected `int`"),
        (b'{"name":"a","tags":["x",1]}', "tags[1]", "expected `str`"),
        (b'{"name":"a","wieght":3}', "wieght", "Unknown field"),
        (b'{"name":"a","name":"b"}', "name", "twice"),
        (b'{"name":"a","part":{"size":1,"colour":2}}', "part.colour", "Unknown field"),
        (b'{"name":"a","part":{}}', "part.size", "missing"),
    ],
)
def test_errors_name_the_field(body, param, said):
    with pytest.raises(InvalidRequest, match=said) as caught:
        decode_fields(body, Thing)
    assert caught.value.param == param


def test_a_typo_gets_the_right_name():
    with pytest.raises(InvalidRequest) as caught:
        decode_fields(b'{"name":"a","wieght":3}', Thing)
    assert caught.value.hint == "Did you mean `weight`?"


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"{", b"\xff", b"[" * 10_000])
def test_what_is_no_object_is_refused(body):
    with pytest.raises(InvalidRequest):
        decode_fields(body, Thing)
