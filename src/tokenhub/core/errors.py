"""Every error the hub answers with, one tree.

    HubError                    status, type, code, message, hint
    ├── InvalidRequest          400  invalid_request_error, code invalid_value if none fits better
    │   └── TooLarge            413
    ├── Unauthorized            401  authentication_error
    ├── Forbidden               403  permission_error
    ├── NotFound                404  not_found_error
    ├── Conflict                409  conflict_error
    ├── Unprocessable           422  invalid_request_error
    ├── PaymentRequired         402  insufficient_quota
    ├── RateLimited             429  rate_limit_error
    ├── Unavailable             503  service_unavailable
    │   └── VaultLocked         503  code vault_locked
    └── UpstreamFailed          502  upstream_error (status may be the upstream's own)

    ProviderError               what one attempt at one provider came to; never leaves the gateway
    TransportError              what a connection came to; never leaves the providers room

A message says what was wrong and why; a hint says what to do next. Neither may hold a secret.
"""

from __future__ import annotations

from typing import ClassVar


class HubError(Exception):
    """An answer the caller must get instead of the one it wanted."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        extra: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.param = param
        self.headers = headers
        # Further members of the error object: limit, spent, attempts, ...
        self.extra = extra or {}


class InvalidRequest(HubError):
    """The request cannot be understood or obeyed as it stands.

    Its codes are OpenAI's where that has one: ``missing_required_parameter``, ``invalid_type``, ...
    """

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class TooLarge(InvalidRequest):
    """The body is over the cap of its route."""

    status = 413
    default_code = "request_too_large"


class Unauthorized(HubError):
    """No credential, or one that is not valid now."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class Forbidden(HubError):
    """A valid credential that does not permit this."""

    status = 403
    type = "permission_error"
    default_code = "insufficient_scope"


class NotFound(HubError):
    """The thing named does not exist."""

    status = 404
    type = "not_found_error"
    default_code = "not_found"


class Conflict(HubError):
    """The thing's present state does not allow this."""

    status = 409
    type = "conflict_error"
    default_code = "conflict"


class Unprocessable(HubError):
    """Understood, but the content breaks a rule the caller set (an output schema)."""

    status = 422
    type = "invalid_request_error"
    default_code = "unprocessable"


class PaymentRequired(HubError):
    """The key's budget does not cover the request. Rendered as 429 in the OpenAI dialect."""

    status = 402
    type = "insufficient_quota"
    default_code = "insufficient_quota"


class RateLimited(HubError):
    """Too many requests; ``Retry-After`` stands in the headers."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limited"


class Unavailable(HubError):
    """Nothing can answer now; trying again later may help."""

    status = 503
    type = "service_unavailable"
    default_code = "unavailable"


class VaultLocked(Unavailable):
    """A provider credential is needed and the vault is locked."""

    default_code = "vault_locked"

    def __init__(self, message: str = "The vault is locked: no secret is used or stored.") -> None:
        super().__init__(message, hint="Unlock it with `tokenhubctl vault unlock`.")


class UpstreamFailed(HubError):
    """No provider gave an answer. ``status`` is the best-fitting one of the attempts."""

    type = "upstream_error"
    default_code = "upstream_failed"

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        code: str | None = None,
        hint: str | None = None,
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        extra: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint, param=param, headers=headers, extra=extra)
        self.status = status  # type: ignore[misc]  # one class answers with several statuses


class FailureClass:
    """Why an attempt failed: the closed set of ``error_class`` values in logs and metrics."""

    CONNECT = "connect"  # refused, DNS, TLS
    TIMEOUT = "timeout"  # no first byte, or silent in mid-stream
    LATENCY = "latency_limit"  # no token within the request's own `max_latency_ms`
    RESET = "reset"  # the connection broke
    SERVER = "server"  # 5xx
    OVERLOADED = "overloaded"  # 503 with a wish to wait, 529
    RATE_LIMITED = "rate_limited"  # 429
    AUTH = "auth"  # 401, 403: our credential is bad, not the client's
    QUOTA = "quota"  # the provider account has no money left
    CONTEXT = "context_overflow"
    CLIENT = "client"  # the request itself is wrong: 400, 404, 413, 422 ...
    CONTENT_FILTER = "content_filter"
    GARBAGE = "garbage"  # an answer that is not what the protocol says
    MISDIRECTED = "misdirected"  # no such API answers there: a redirect, a 204, a web page, no HTTP
    CANCELLED = "cancelled"  # the client left, a hedge was slower, or it could not be sent
    DEADLINE = "deadline"  # our own limit for the whole request


class ProviderError(Exception):
    """One attempt failed.

    Args:
        kind: a FailureClass value.
        message: fit for a client: ours, or the provider's own words cut and redacted.
        status: the upstream's status, None when there was none.
        retry_after: seconds the provider asked us to stay away, None when it did not say.
        sent: whether the request may have reached the provider (and may be billed).
        param: the part of the request that the provider names as wrong, "" if none.
        code: the provider's own code for a refused request, "" if none.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        sent: bool = True,
        param: str = "",
        code: str = "",
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.retry_after = retry_after
        self.sent = sent
        self.param = param
        self.code = code


class TransportError(Exception):
    """A connection to an upstream failed.

    Args:
        kind: CONNECT, TIMEOUT, RESET, GARBAGE or MISDIRECTED of FailureClass; CLIENT when the
            request itself cannot be written as HTTP (a line break in a credential).
        message: what happened, without addresses resolved from secrets or header values.
        sent: whether any byte of the request left this process.
    """

    def __init__(self, kind: str, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.sent = sent
