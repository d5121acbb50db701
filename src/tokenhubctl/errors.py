"""What can go wrong in the command line, each with the exit code it ends in.

    CliError          1   this command failed, or the server refused or failed
    ├── UsageFault    2   the arguments make no sense
    ├── Unreachable   6   no server answered, or not in time
    └── ApiError          the server answered with an error: code by its status and code

A message says what was wrong and why; a hint names the next command.
"""

from __future__ import annotations

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
AUTHENTICATION = 4
CONFLICT = 5
UNREACHABLE = 6
INTERRUPTED = 130


class CliError(Exception):
    """The command cannot do what was asked."""

    exit_code = FAILED
    code = "failed"
    retryable = False

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.request_id = ""
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return self.message


class UsageFault(CliError):
    """An argument is missing, surplus or malformed; nothing was sent."""

    exit_code = USAGE
    code = "usage"


class NoCredential(CliError):
    """The command needs a credential and none was given; nothing was sent."""

    exit_code = AUTHENTICATION
    code = "no_credential"


class Unreachable(CliError):
    """No answer: refused, unknown host, TLS failure, or too slow."""

    exit_code = UNREACHABLE
    code = "unreachable"
    retryable = True


class ApiError(CliError):
    """The server's own error.

    Args:
        status: the HTTP status.
        body: the whole answer where it was JSON.
        message, code, hint, request_id: as the server gave them; "" or None where it did not.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "",
        hint: str | None = None,
        request_id: str = "",
        body: object = None,
    ) -> None:
        super().__init__(message, hint=hint, code=code or f"http_{status}")
        self.status = status
        self.body = body
        self.request_id = request_id
        self.exit_code = exit_code_of(status, code)
        self.retryable = status in {408, 425, 429, 502, 503, 504} and code != "vault_locked"


def exit_code_of(status: int, code: str) -> int:
    """The exit code for an HTTP status and the error code beside it."""
    if code == "vault_locked" or status in {409, 423}:
        return CONFLICT
    if status == 404:
        return NOT_FOUND
    if status in {401, 403}:
        return AUTHENTICATION
    return FAILED
