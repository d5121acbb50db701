"""TOKENHUB_* environment variables → one frozen Settings; each field's docstring documents it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from tokenhub.core.similar import similar

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "TOKENHUB_"
MODES = ("cheap", "normal", "high_confidence", "planning", "adversarial", "thompson")
LEVELS = ("debug", "info", "warn", "error")

# Read by tokenhubctl, make or compose, not by the server.
_FOREIGN = {
    "URL",
    "API_KEY",
    "OUTPUT",
    "PORT",
    "BIND",
    "REAL",
    "CRASH_CYCLES",
    "NEW_VAULT_PASSWORD",
    "CACHE_DIR",
    "FUZZ",
}

_DIGITS = re.compile(r"[0-9]{1,5}")
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^\s/?#@*A-Z]+")


class SettingsError(Exception):
    """One or more variables cannot be used; the message has a line for each."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment decided. Times in seconds, money in dollars, 0 = no limit."""

    listen_host: str
    listen_port: int
    data_dir: Path
    db_dsn: str
    credentials_file: Path
    log_level: str = "info"
    admin_token: str = ""
    vault_enabled: bool = True
    vault_password: str = ""
    demo: bool = True
    default_mode: str = "normal"
    default_max_budget_usd: float = 0.0
    default_max_latency_ms: int = 0
    exploration_temp: float = 0.0
    connect_timeout_secs: float = 3.0
    first_token_timeout_secs: float = 10.0
    idle_timeout_secs: float = 30.0
    provider_proxy: str = ""  # as Proxy.parse reads it
    provider_no_proxy: tuple[str, ...] = ()
    provider_ca_file: Path | None = None
    provider_timeout_secs: float = 900.0
    hedge_after_ms: int = 0
    max_hedged_providers: int = 3
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    rate_limit_rps: int = 60
    rate_limit_burst: int = 120
    admin_rate_limit_rps: int = 30
    admin_rate_limit_burst: int = 60
    health_probe_disabled: bool = False
    shutdown_drain_secs: int = 25
    otel_enabled: bool = False
    otel_endpoint: str = "http://localhost:4318/v1/traces"
    otel_service_name: str = "tokenhub"
    log_retention_days: int = 90
    decision_retention_days: int = 30
    series_retention_days: int = 400
    metrics_auth: bool = False
    metrics_budgets: bool = False
    log_content: bool = False
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"Settings({self.listen_host}:{self.listen_port}, {self.data_dir})"


class Variable(msgspec.Struct, frozen=True):
    """One variable: its name without prefix, how to read it, its default as text, its meaning."""

    name: str
    read: Callable[[str], Any]
    default: str
    meaning: str


def _require_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8 text") from None


def _flag(text: str) -> bool:
    lowered = text.lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off"}:
        return False
    raise ValueError("must be true or false")


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError("must be a whole number") from None
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return read


def _number(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError("must be a number") from None
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"must be between {low:g} and {high:g}")
        return value

    return read


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return read


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _networks(text: str) -> tuple[str, ...]:
    from ipaddress import ip_network  # noqa: PLC0415  # few have some

    networks = _list(text)
    for one in networks:
        try:
            ip_network(one, strict=False)
        except ValueError:
            raise ValueError("must be networks, for example 10.0.0.0/8,192.168.1.7") from None
    return networks


def _origins(text: str) -> tuple[str, ...]:
    origins = _list(text)
    if not all(_ORIGIN.fullmatch(one) for one in origins):
        raise ValueError(
            "must be origins as browsers send them, for example https://my.example.com"
        )
    return origins


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not _DIGITS.fullmatch(port) or not int(port) <= 65535:
        raise ValueError("must be host:port, for example 127.0.0.1:8080")
    return host.strip("[]") or "0.0.0.0", int(port)


def _token(text: str) -> str:
    if not 16 <= len(text) <= 1024 or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must have 16 to 1024 printable ASCII characters without spaces")
    return text


def _password(text: str) -> str:
    if len(text.encode()) < 8:
        raise ValueError("must have 8 bytes or more")
    return text


def _otlp(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # of the address or the port
        usable = False
    if not usable:
        raise ValueError("must be a URL, for example http://localhost:4318")
    return text if "/v1/traces" in text else text.rstrip("/") + "/v1/traces"


def _absent(text: str) -> bool:
    if _flag(text):
        raise ValueError("is not offered by this server; unset it")
    return False


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("names a home folder that is not known; write the whole path") from None


def _database(text: str) -> Path:
    name = text.removeprefix("file:").partition("?")[0]
    if name.startswith("///"):
        name = name[2:]  # of a file URL without a host
    if "://" in text and not text.startswith("file:"):
        raise ValueError(
            "must be a file (file:/path/tokenhub.sqlite); this server has no driver for "
            f"{text.partition('://')[0]!r}"
        )
    if not name or name == ":memory:" or name.startswith("//"):
        raise ValueError("must be a file (file:/path/tokenhub.sqlite)")
    return _path(name).absolute()


def _proxy(text: str) -> str:
    from tokenhub.providers.dial import Proxy  # noqa: PLC0415  # few have one

    Proxy.parse(text)
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.lower().removeprefix("*").strip(".") for name in _list(text))
    if not all(names):
        raise ValueError("must be names, for example models.example.com,corp.example.com")
    return names


def _authorities(text: str) -> Path:
    import ssl  # noqa: PLC0415  # few have their own

    path = _path(text).absolute()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise ValueError("must be a file of certificates in PEM form") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    return path


VARIABLES = (
    Variable("LISTEN_ADDR", _address, "127.0.0.1:8080", "address and port to listen on"),
    Variable("DATA_DIR", _path, "~/.tokenhub", "folder of all files; /data in the container"),
    Variable("DB_DSN", _database, "file:<data dir>/tokenhub.sqlite", "where the database is"),
    Variable("CREDENTIALS_FILE", _path, "<data dir>/credentials", "added once at start, 0600"),
    Variable("LOG_LEVEL", _one_of(*LEVELS), "info", "debug, info, warn or error"),
    Variable("LOG_CONTENT", _flag, "false", "keep prompts and answers with the request log"),
    Variable("ADMIN_TOKEN", _token, "", "admin token; made and kept in the data dir when unset"),
    Variable("VAULT_ENABLED", _flag, "true", "whether provider credentials can be stored"),
    Variable("VAULT_PASSWORD", _password, "", "unlock at start; then no auto-lock"),
    Variable("DEMO", _flag, "true", "built-in demo provider while no provider exists"),
    Variable("DEFAULT_MODE", _one_of(*MODES), "normal", "routing mode when nothing names one"),
    Variable("DEFAULT_MAX_BUDGET_USD", _number(0, 100), "0", "limit per routed request"),
    Variable("DEFAULT_MAX_LATENCY_MS", _whole(0, 300_000), "0", "limit per routed request"),
    Variable("EXPLORATION_TEMP", _number(0, 100), "0", "softmax temperature over the ranking"),
    Variable("CONNECT_TIMEOUT_SECS", _number(0.1, 60), "3", "connect to a provider"),
    Variable("FIRST_TOKEN_TIMEOUT_SECS", _number(0.1, 3600), "10", "first byte of a stream"),
    Variable("IDLE_TIMEOUT_SECS", _number(0.1, 3600), "30", "silence inside an answer"),
    Variable(
        "PROVIDER_TIMEOUT_SECS", _number(1, 86_400), "900", "whole request, all attempts together"
    ),
    Variable("PROVIDER_PROXY", _proxy, "", "HTTP proxy to providers that are not local"),
    Variable("PROVIDER_NO_PROXY", _names, "", "names and domains that are reached without it"),
    Variable("PROVIDER_CA_FILE", _authorities, "", "authorities to trust besides the system's"),
    Variable("HEDGE_AFTER_MS", _whole(0, 60_000), "0", "start a second provider after; 0 = never"),
    Variable("MAX_HEDGED_PROVIDERS", _whole(2, 3), "3", "most attempts running at once"),
    Variable("CORS_ORIGINS", _origins, "", "origins allowed to call /v1 from a browser"),
    Variable("TRUSTED_PROXIES", _networks, "", "networks whose X-Forwarded-For is believed"),
    Variable("RATE_LIMIT_RPS", _whole(0, 1_000_000), "60", "requests/s per address under /v1"),
    Variable("RATE_LIMIT_BURST", _whole(1, 1_000_000), "120", "burst of the same"),
    Variable("ADMIN_RATE_LIMIT_RPS", _whole(0, 1_000_000), "30", "requests/s per address, admin"),
    Variable("ADMIN_RATE_LIMIT_BURST", _whole(1, 1_000_000), "60", "burst of the same"),
    Variable("HEALTH_PROBE_DISABLED", _flag, "false", "no background probes"),
    Variable("SHUTDOWN_DRAIN_SECS", _whole(0, 28), "25", "wait for running requests at a stop"),
    Variable(
        "LOG_RETENTION_DAYS",
        _whole(0, 3_660),
        "90",
        "request log, attempts in the books; 0 = for ever",
    ),
    Variable("DECISION_RETENTION_DAYS", _whole(0, 3_660), "30", "rewards, decisions; 0 = for ever"),
    Variable(
        "SERIES_RETENTION_DAYS",
        _whole(1, 3_660),
        "400",
        "time series, unless set by tsdb retention",
    ),
    Variable("METRICS_AUTH", _flag, "false", "/metrics asks for the admin token"),
    Variable("METRICS_BUDGETS", _flag, "false", "/metrics shows what keys have left, by name"),
    Variable("OTEL_ENABLED", _flag, "false", "send traces; needs the extra [otel]"),
    Variable("OTEL_ENDPOINT", _otlp, "http://localhost:4318", "OTLP over HTTP; /v1/traces added"),
    Variable("OTEL_SERVICE_NAME", str, "tokenhub", "service.name of the traces"),
    Variable("PRICING_REFRESH_ENABLED", _absent, "false", "no prices are ever downloaded"),
    Variable("TEMPORAL_ENABLED", _absent, "false", "no external workflow engine is used"),
)


def read_settings(environ: Mapping[str, str], home: Path | None = None) -> Settings:
    """Read the variables.

    Raises:
        SettingsError: naming every variable that cannot be used, and why.
    """
    found: dict[str, Any] = {}
    faults: list[str] = []
    for variable in VARIABLES:
        text = environ.get(PREFIX + variable.name, "").strip()
        if not text:
            continue
        try:
            _require_utf8(text)
            found[variable.name.lower()] = variable.read(text)
        except ValueError as error:
            faults.append(f"{PREFIX}{variable.name} {error}.")
    if faults:
        raise SettingsError("\n".join(faults))
    host, port = found.pop("listen_addr", ("127.0.0.1", 8080))
    data_dir, dsn = _places(found, home)
    for unused in ("pricing_refresh_enabled", "temporal_enabled"):
        found.pop(unused, None)
    return Settings(
        listen_host=host,
        listen_port=port,
        data_dir=data_dir,
        db_dsn=dsn,
        credentials_file=found.pop("credentials_file", data_dir / "credentials"),
        warnings=_unknown(environ),
        **found,
    )


def _places(found: dict[str, Any], home: Path | None) -> tuple[Path, str]:
    file: Path | None = found.pop("db_dsn", None)
    folder: Path | None = found.pop("data_dir", None)
    if file is not None:
        return folder or file.parent, str(file)
    folder = folder or (home or _home()) / ".tokenhub"
    return folder, str(folder.absolute() / "tokenhub.sqlite")


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise SettingsError(
            f"{PREFIX}DATA_DIR must be set: this user has no home folder, and HOME is not set."
        ) from None


def _unknown(environ: Mapping[str, str]) -> tuple[str, ...]:
    known = {variable.name for variable in VARIABLES} | _FOREIGN
    lines = []
    for name in sorted(environ):
        rest = name.removeprefix(PREFIX)
        if rest == name or rest in known:
            continue
        near = similar(rest, known)
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        lines.append(f"{name} is not a setting of this server{hint}")
    return tuple(lines)


def from_environment() -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: see ``read_settings``.
    """
    return read_settings(os.environ)
