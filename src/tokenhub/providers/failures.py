"""Why a provider refused: status, headers and body of an error answer → ``ProviderError``.

Only the error's own code, type and message are searched for patterns, never the whole body: a
provider may echo the prompt, and a prompt must not choose how its failure is classified.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from tokenhub.core.errors import FailureClass, ProviderError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_MESSAGE = 500  # characters of a provider's own words
MAX_RETRY_AFTER = 86_400.0  # seconds; a provider that asks for more is asked again after a day

# Texts, not compiled patterns: six of them would cost each start 2 ms, and failures are rare.
_QUOTA = (
    r"(?i)insufficient_quota|billing|budget_exceeded|credit balance"
    r"|insufficient (balance|credit|funds)"
    r"|exceeded your current quota|out of credits"
)
_CONTEXT = (
    r"(?i)context_length_exceeded|exceed_context_size|context (length|limit|window|size)"
    r"|maximum context|prompt is too long|prompt_too_long|input is too long|input too long"
    r"|too many (input |prompt )?tokens|input tokens exceed|string_above_max_length"
    r"|request_too_large|reduce the length of"
)
_FILTER = (
    r"(?i)content_filter|content_policy|content management policy|responsible_?ai_?policy"
    r"|moderation_blocked|safety system"
)
_HIDDEN = (
    r"(?ia)(?:Bearer|Basic)\s+[^\s\"',;]+"
    r"|\b(?:sk|pk|rk|ak|gsk|xai|hf|ghp|gho|glpat|key|tokenhub|pplx|nvapi|or)[-_][\w*.-]{6,}"
    r"|\bAIza[\w-]{20,}"
    r"|\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]+)?"
    r"|\bAKIA[0-9A-Z]{12,}"
    r"|://[^/\s:@]+:[^/\s@]+@"
    r"|(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[a-z])[\w-]{40,}={0,2}"
)
_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+"
_SECONDS = rb"\s*(\d{1,15}(?:\.\d{1,9})?)\s*"
_anything = msgspec.json.Decoder()


class Fault(msgspec.Struct, frozen=True):
    """The parts of a provider's error that tell its class; "" where it says nothing."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str = ""

    @property
    def searchable(self) -> str:
        """What the patterns look at."""
        return f"{self.code} {self.type} {self.message[:4000]}"


def read_fault(body: bytes) -> Fault | None:
    """The error in a body of any customary shape; None when it is not JSON."""
    try:
        value = _anything.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return fault_of(value)


def fault_of(value: Any) -> Fault:
    """The error in a decoded value: under ``error``, or a bare ``message`` or ``detail``."""
    if not isinstance(value, dict):
        return Fault(message=value) if isinstance(value, str) else Fault()
    inner = value.get("error", value)
    if isinstance(inner, str):
        return Fault(message=inner)
    if not isinstance(inner, dict):
        inner = value
    for name in ("message", "detail", "msg"):
        if words := inner.get(name):
            break
    if words is not None and not isinstance(words, str):
        words = msgspec.json.encode(words).decode()
    return Fault(
        words or "",
        _word(inner.get("type")),
        _word(inner.get("code")),
        _word(inner.get("param")),
    )


def classify(
    status: int, headers: Mapping[bytes, bytes], body: bytes, *, now_ms: int
) -> ProviderError:
    """The failure an error answer stands for.

    Args:
        status: the answer's status, anything but 200.
        headers: lower-case names.
        body: the whole body, in whatever state.
        now_ms: wall time, for a ``Retry-After`` that is a date.
    """
    wait = retry_after(headers, now_ms=now_ms)
    if status < 400:
        return _unexpected(status)
    fault = read_fault(body)
    if fault is None:
        return _unreadable(status, body, wait)
    return classify_fault(status, fault, wait)


def classify_fault(status: int, fault: Fault, wait: float | None = None) -> ProviderError:
    """The failure a readable error stands for; ``status`` may be the one an event implies."""
    kind = _kind(status, fault.searchable)
    words = _words(kind, status, fault.message)
    if kind not in _OF_THE_REQUEST:
        return ProviderError(kind, words, status=status, retry_after=wait)
    return ProviderError(
        kind,
        words,
        status=status,
        retry_after=wait,
        param=shown(fault.param),
        code=shown(fault.code),
    )


def classify_event(payload: bytes) -> ProviderError:
    """The failure an error object inside a 200 answer or a stream stands for.

    Such an object carries no status, so its words imply one.
    """
    fault = read_fault(payload) or Fault()
    return classify_fault(_implied_status(fault), fault)


def retry_after(headers: Mapping[bytes, bytes], *, now_ms: int) -> float | None:
    """Seconds the provider asks us to stay away; None when it does not say so legibly.

    ``retry-after-ms`` is the more exact one. A date (RFC 9110, 10.2.3) counts from the answer's
    own ``Date``, so that a wrong clock on either side does no harm.
    """
    if match := re.fullmatch(_SECONDS, headers.get(b"retry-after-ms", b"")):
        return _bounded(float(match[1]) / 1000)
    raw = headers.get(b"retry-after", b"")
    if match := re.fullmatch(_SECONDS, raw):
        return _bounded(float(match[1]))
    until = _date(raw)
    if until is None:
        return None
    sent = _date(headers.get(b"date", b"")) or now_ms / 1000
    return _bounded(until - sent)


def shown(text: str) -> str:
    """A provider's words as a client may see them: one line, cut, secrets replaced."""
    line = re.sub(_CONTROL, " ", text[: MAX_MESSAGE * 8]).strip()
    line = re.sub(_HIDDEN, "[redacted]", line)
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"


def garbage(what: str, *, status: int | None = 200) -> ProviderError:
    """The failure of an answer that is not what the protocol says."""
    return ProviderError(FailureClass.GARBAGE, f"The provider {what}.", status=status)


def misdirected(what: str, *, status: int | None = 200) -> ProviderError:
    """The failure of an answer that comes from something else than the provider's API."""
    return ProviderError(FailureClass.MISDIRECTED, f"The provider {what}.", status=status)


def no_answer(body: bytes, what: str) -> ProviderError:
    """The failure of a whole answer that cannot be read; ``what`` it did, if it is an API's.

    An API that stumbles sends nothing, or an object that is cut or lacks something, and may do
    better at once. What begins otherwise was never one.
    """
    begin = body.lstrip()[:1]
    if not begin:
        return garbage("answered with an empty body")
    if begin == b"{":
        return garbage(what)
    return elsewhere(begin)


def elsewhere(begin: bytes) -> ProviderError:
    """The failure of an answer whose first visible byte begins nothing that an API sends."""
    page = begin == b"<"
    return misdirected(f"answered with {'a web page' if page else 'no JSON object'}")


def no_stream(body: bytes | bytearray) -> ProviderError:
    """The failure of an object that came whole where a stream was due; nothing is none."""
    fault = read_fault(bytes(body))
    if fault is None or not fault.message:
        return garbage("sent a stream without an answer")
    return classify_fault(_implied_status(fault), fault)


def _kind(status: int, text: str) -> str:
    if status in {401, 403} and not re.search(_FILTER, text) and not re.search(_QUOTA, text):
        return FailureClass.AUTH
    if status == 402 or (status in {400, 401, 403, 429} and re.search(_QUOTA, text)):
        return FailureClass.QUOTA
    if status == 429:
        return FailureClass.RATE_LIMITED
    if status in {503, 529}:
        return FailureClass.OVERLOADED
    if status == 413 or (status in {400, 422, 500} and re.search(_CONTEXT, text)):
        return FailureClass.CONTEXT
    if status >= 500:
        return FailureClass.SERVER
    if re.search(_FILTER, text):
        return FailureClass.CONTENT_FILTER
    if status == 408:
        return FailureClass.TIMEOUT
    return FailureClass.CLIENT


def _implied_status(fault: Fault) -> int:
    if fault.code.isdecimal() and 400 <= int(fault.code) <= 599:
        return int(fault.code)
    words = f"{fault.type} {fault.code}".lower()
    return next((status for word, status in _STATUSES if word in words), 500)


_STATUSES = (
    ("rate_limit", 429),
    ("quota", 429),
    ("overloaded", 529),
    ("unavailable", 503),
    ("timeout", 504),
    ("authentication", 401),
    ("billing", 402),
    ("permission", 403),
    ("invalid_request", 400),
    ("badrequest", 400),
    ("bad_request", 400),
    ("content_filter", 400),
    ("context", 400),
    ("not_found", 404),
    ("too_large", 413),
)

# Only these speak of what the client sent, so only there its provider's details help the client.
_OF_THE_REQUEST = frozenset(
    {FailureClass.CLIENT, FailureClass.CONTEXT, FailureClass.CONTENT_FILTER}
)

_OURS = {
    FailureClass.AUTH: "The provider refused the gateway's credential.",
    FailureClass.QUOTA: "The gateway's account at the provider has no credit left.",
    FailureClass.RATE_LIMITED: "The provider is limiting requests.",
}


def _words(kind: str, status: int, message: str) -> str:
    # These three speak of the gateway's own account, so the provider's words, which may name the
    # organisation or part of the key, are not for the client.
    if ours := _OURS.get(kind):
        return ours
    theirs = shown(message)
    return theirs or f"The provider answered with status {status}."


def _unexpected(status: int) -> ProviderError:
    if 300 <= status < 400:
        words = f"answered with a redirect (status {status}), which is not followed"
    else:
        words = f"answered with status {status} where 200 was due"
    return misdirected(words, status=status)


def _unreadable(status: int, body: bytes, wait: float | None) -> ProviderError:
    text = body[:4096].decode("utf-8", "replace").strip()
    kind = _kind(status, "")
    if kind == FailureClass.CLIENT:
        # A page or bytes come from something in front of the API, not from the API's validation.
        if not text or text.startswith("<") or "\ufffd" in text or "\x00" in text:
            words = f"answered with status {status} and no readable error"
            return misdirected(words, status=status)
        return classify_fault(status, Fault(message=text), wait)
    return ProviderError(kind, _words(kind, status, ""), status=status, retry_after=wait)


def _word(value: Any) -> str:
    return str(value)[:100] if isinstance(value, str | int) else ""


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER) if math.isfinite(seconds) else MAX_RETRY_AFTER


def _date(raw: bytes) -> float | None:
    if not raw or len(raw) > 64:
        return None
    from email.utils import parsedate_to_datetime  # noqa: PLC0415  # for a rare header

    try:
        moment = parsedate_to_datetime(raw.decode("ascii"))
    except (ValueError, TypeError, IndexError, OverflowError, UnicodeDecodeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    except OverflowError:
        return None
