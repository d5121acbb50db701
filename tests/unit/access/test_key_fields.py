"""What may be said of a key, and what is refused with the field's name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhub.access.key_fields import (
    SCOPES,
    KeyFields,
    checked,
    parse_duration,
    parse_moment,
    parse_scopes,
)
from tokenhub.core.errors import InvalidRequest
from tokenhub.core.fields import decode_fields

NOW = 1_700_000_000_000
HOUR = 3_600_000


def columns(body: str):
    return checked(decode_fields(body.encode(), KeyFields), NOW)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{}", {}),
        ('{"name":" app "}', {"name": "app"}),
        (r'{"scopes":"[\"chat\",\"plan\"]"}', {"scopes": ("chat", "plan")}),
        ('{"scopes":["embeddings","chat","chat"]}', {"scopes": ("chat", "embeddings")}),
        ('{"scopes":""}', {"scopes": ()}),
        ('{"scopes":"[]"}', {"scopes": ()}),
        ('{"scopes":[]}', {"scopes": ()}),
        ('{"expires_in":"720h"}', {"expires_at": NOW + 720 * HOUR}),
        ('{"expires_in":"30d"}', {"expires_at": NOW + 720 * HOUR}),
        ('{"expires_in":"1h30m"}', {"expires_at": NOW + HOUR * 3 // 2}),
        ('{"expires_in":"1.5h"}', {"expires_at": NOW + HOUR * 3 // 2}),
        ('{"expires_in":""}', {"expires_at": None}),
        ('{"expires_at":null}', {"expires_at": None}),
        ('{"expires_at":"2030-01-31"}', {"expires_at": 1_896_048_000_000}),
        ('{"expires_at":"2030-01-31T01:00:00+01:00"}', {"expires_at": 1_896_048_000_000}),
        ('{"expires_at":"2030-01-31T00:00:00Z"}', {"expires_at": 1_896_048_000_000}),
        ('{"expires_at":1896048000}', {"expires_at": 1_896_048_000_000}),
        ('{"expires_at":"1896048000000"}', {"expires_at": 1_896_048_000_000}),
        ('{"monthly_budget_usd":50.0}', {"monthly_budget": 50_000_000_000}),
        ('{"monthly_budget_usd":"0.000000001"}', {"monthly_budget": 1}),
        ('{"monthly_budget_usd":0.1}', {"monthly_budget": 100_000_000}),
        ('{"monthly_budget_usd":0}', {"monthly_budget": None}),
        (
            '{"daily_budget_usd":1,"total_budget_usd":null}',
            {"daily_budget": 10**9, "total_budget": None},
        ),
        ('{"rate_limit_rps":-1,"max_concurrent":3}', {"rate_limit_rps": -1, "max_concurrent": 3}),
        ('{"models":["a/b","c","c"],"mode":"cheap"}', {"models": ("a/b", "c"), "mode": "cheap"}),
        ('{"mode":"","enabled":false}', {"mode": "", "enabled": False}),
        ('{"rotation_days":90}', {"rotation_days": 90}),
        (
            '{"allow_fallback":true,"allow_directives":true}',
            {"allow_fallback": True, "allow_directives": True},
        ),
    ],
)
def test_what_is_accepted(body, expected):
    assert columns(body) == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"name":""}', "name"),
        ('{"name":"   "}', "name"),
        ('{"name":"a\\u001b[2Jb"}', "name"),
        ('{"name":7}', "name"),
        ('{"scopes":"chat"}', "scopes"),
        ('{"scopes":"{}"}', "scopes"),
        ('{"scopes":["admin"]}', "scopes"),
        ('{"scopes":[1]}', None),
        ('{"scopes":null}', "scopes"),
        ('{"expires_in":"soon"}', "expires_in"),
        ('{"expires_in":"-5h"}', "expires_in"),
        ('{"expires_in":"0h"}', "expires_in"),
        ('{"expires_in":"5 h"}', "expires_in"),
        ('{"expires_in":"٣h"}', "expires_in"),
        ('{"expires_in":"999999999999w"}', "expires_in"),
        ('{"expires_in":30}', "expires_in"),
        ('{"expires_in":"1h","expires_at":null}', "expires_at"),
        ('{"expires_at":"yesterday"}', "expires_at"),
        ('{"expires_at":"2020-01-01"}', "expires_at"),
        ('{"expires_at":0}', "expires_at"),
        ('{"expires_at":99999999999999999}', "expires_at"),
        ('{"expires_at":1.5}', "expires_at"),
        ('{"monthly_budget_usd":-1}', "monthly_budget_usd"),
        ('{"monthly_budget_usd":"NaN"}', "monthly_budget_usd"),
        ('{"monthly_budget_usd":"1e400"}', "monthly_budget_usd"),
        ('{"monthly_budget_usd":"0.0000000001"}', "monthly_budget_usd"),
        ('{"monthly_budget_usd":"fifty"}', "monthly_budget_usd"),
        ('{"monthly_budget_usd":true}', "monthly_budget_usd"),
        ('{"rate_limit_rps":-2}', "rate_limit_rps"),
        ('{"rate_limit_rps":1.5}', "rate_limit_rps"),
        ('{"max_concurrent":-1}', "max_concurrent"),
        ('{"rotation_days":-1}', "rotation_days"),
        ('{"rotation_days":"90"}', "rotation_days"),
        ('{"enabled":"yes"}', "enabled"),
        ('{"enabled":1}', "enabled"),
        ('{"models":"demo"}', "models"),
        ('{"models":[""]}', "models"),
        ('{"mode":"fastest"}', "mode"),
        ('{"monthly_budget":5}', "monthly_budget"),
        ('{"key":"tokenhub_mine"}', "key"),
    ],
)
def test_what_is_refused_with_the_field_named(body, param):
    with pytest.raises(InvalidRequest) as caught:
        columns(body)
    assert param is None or caught.value.param == param


@given(st.text(max_size=30))
def test_any_text_is_a_duration_or_a_clean_refusal(text):
    try:
        assert parse_duration(text) > 0
    except InvalidRequest as error:
        assert error.param == "expires_in"  # noqa: PT017


@given(st.text(max_size=40) | st.integers())
def test_any_value_is_a_moment_or_a_clean_refusal(value):
    try:
        parse_moment(value)
    except InvalidRequest as error:
        assert error.param == "expires_at"  # noqa: PT017


@given(st.text(max_size=40) | st.lists(st.sampled_from([*SCOPES, "x", ""])))
def test_scopes_never_mean_more_than_they_say(value):
    try:
        scopes = parse_scopes(value)
    except InvalidRequest:
        return
    assert set(scopes) <= set(SCOPES)
    assert all(scope in value for scope in scopes)


@given(st.datetimes())
def test_iso_moments_come_back_exactly(moment):
    milliseconds = parse_moment(moment.isoformat(timespec="milliseconds"))
    assert milliseconds % 1000 == moment.microsecond // 1000
