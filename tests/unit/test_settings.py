from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokenhub.settings import PREFIX, VARIABLES, SettingsError, read_settings

HOME = Path("/home/someone")


def read(**variables):
    return read_settings({PREFIX + name: value for name, value in variables.items()}, HOME)


def test_the_defaults_are_safe():
    settings = read()
    assert (settings.listen_host, settings.listen_port) == ("127.0.0.1", 8080)
    assert settings.data_dir == HOME / ".tokenhub"
    assert settings.db_dsn == str(HOME / ".tokenhub" / "tokenhub.sqlite")
    assert (settings.default_max_budget_usd, settings.default_max_latency_ms) == (0, 0)
    assert settings.exploration_temp == 0
    assert settings.cors_origins == ()
    assert (settings.connect_timeout_secs, settings.idle_timeout_secs) == (3, 30)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LISTEN_ADDR", "8080"),
        ("LISTEN_ADDR", "host:99999"),
        ("RATE_LIMIT_RPS", "many"),
        ("RATE_LIMIT_RPS", "-1"),
        ("DEFAULT_MODE", "warp"),
        ("DEFAULT_MAX_BUDGET_USD", "nan"),
        ("DEFAULT_MAX_BUDGET_USD", "1000"),
        ("VAULT_ENABLED", "perhaps"),
        ("VAULT_PASSWORD", "short"),
        ("ADMIN_TOKEN", "short"),
        ("ADMIN_TOKEN", "has a space in the middle"),
        ("LOG_LEVEL", "loud"),
        ("SHUTDOWN_DRAIN_SECS", "60"),
        ("PRICING_REFRESH_ENABLED", "true"),
        ("TEMPORAL_ENABLED", "true"),
        ("LISTEN_ADDR", "localhost:" + "1" * 5000),
        ("ADMIN_TOKEN", "a" * 1025),
        ("TRUSTED_PROXIES", "10.0.0.0/33,proxy"),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "https://my.example.com/"),
        ("OTEL_ENDPOINT", "http://[::1"),
        ("OTEL_ENDPOINT", "http://collector:99999"),
        ("DATA_DIR", "~no-such-user-here/hub"),
        ("DB_DSN", "file:~no-such-user-here/hub.sqlite"),
        ("CREDENTIALS_FILE", "~no-such-user-here/credentials"),
        ("DATA_DIR", os.fsdecode(b"/srv/h\xfcb")),
        ("VAULT_PASSWORD", os.fsdecode(b"long enough \xfc")),
        ("DB_DSN", ":memory:"),
        ("DB_DSN", "file:"),
        ("DB_DSN", "file://host/hub.sqlite"),
        ("DB_DSN", "postgresql://host/db"),
        ("PROVIDER_PROXY", "https://me:s3cret-word@proxy:3128"),
        ("PROVIDER_PROXY", "http://me:s3cret-word"),
        ("PROVIDER_NO_PROXY", "*"),
        ("PROVIDER_CA_FILE", "/nowhere/at-all.pem"),
        ("PROVIDER_CA_FILE", __file__),
        ("PROVIDER_CA_FILE", str(Path(__file__).parent)),
    ],
)
def test_a_malformed_value_stops_the_start_and_is_named(name, value):
    with pytest.raises(SettingsError, match=PREFIX + name) as caught:
        read(**{name: value})
    # What was given is not repeated: it may be a secret in the wrong place.
    assert len(value) < 9 or name == "DB_DSN" or value not in str(caught.value)


def test_every_fault_is_told_at_once():
    with pytest.raises(SettingsError) as caught:
        read(LISTEN_ADDR="x", RATE_LIMIT_RPS="y")
    assert len(str(caught.value).splitlines()) == 2


def test_the_database_names_the_folder_of_everything_else():
    settings = read(DB_DSN="file:/srv/hub/data.sqlite?mode=rwc")
    assert settings.data_dir == Path("/srv/hub")
    assert settings.db_dsn == "/srv/hub/data.sqlite"


def test_the_database_as_a_file_url():
    assert read(DB_DSN="file:///srv/hub/data.sqlite").db_dsn == "/srv/hub/data.sqlite"


def test_without_a_home_the_folder_must_be_named(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(SettingsError, match="TOKENHUB_DATA_DIR must be set"):
        read_settings({})
    there = {"TOKENHUB_DATA_DIR": "/srv/hub"}
    assert read_settings(there).db_dsn == "/srv/hub/tokenhub.sqlite"


def test_networks_and_origins():
    settings = read(
        TRUSTED_PROXIES="10.0.0.1/8, fd00::1", CORS_ORIGINS="https://a.example, http://[::1]:3000"
    )
    assert settings.trusted_proxies == ("10.0.0.1/8", "fd00::1")
    assert settings.cors_origins == ("https://a.example", "http://[::1]:3000")


def test_addresses():
    assert read(LISTEN_ADDR=":9000").listen_host == "0.0.0.0"
    assert read(LISTEN_ADDR="[::1]:9000").listen_host == "::1"


def test_an_unknown_variable_is_pointed_out():
    [line] = read(RATE_LIMIT_RPMS="5").warnings
    assert "did you mean TOKENHUB_RATE_LIMIT_RPS" in line


def test_the_way_to_the_providers():
    proxy = "http://me:s3cret@proxy.example.com:3128"
    settings = read(
        PROVIDER_PROXY=proxy,
        PROVIDER_NO_PROXY="GPU.example.com, *.corp.example.com,.lab.example.com",
    )
    assert settings.provider_proxy == proxy
    assert "s3cret" not in repr(settings)
    names = ("gpu.example.com", "corp.example.com", "lab.example.com")
    assert settings.provider_no_proxy == names


def test_secrets_are_not_shown():
    settings = read(VAULT_PASSWORD="correct horse", ADMIN_TOKEN="0123456789abcdef0")
    assert "correct" not in repr(settings)
    assert "0123456789" not in repr(settings)


def test_every_variable_reaches_a_setting():
    fields = set(read().__struct_fields__)
    places = {"LISTEN_ADDR", "PRICING_REFRESH_ENABLED", "TEMPORAL_ENABLED"}
    assert {v.name.lower() for v in VARIABLES if v.name not in places} <= fields
