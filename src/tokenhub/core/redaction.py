"""Secrets by their looks: the last net under every log line, for text that nobody planned.

Code here logs no secret on purpose. What this catches are the words of others: an exception that
repeats a header, a URL with a password, a provider that quotes the key it refused.
"""

from __future__ import annotations

import re
from itertools import pairwise

MARK = "[redacted]"

_NAMES = "api[_-]?key|token|passw(?:or)?d|passphrase|secret|credential|authorization|x-api-key"
_VALUE = r"(?:\"[^\"]*\"|'[^']*'|[^\s\"',;&}\])]+)"
# Each group named `keep` is shown again before the mark.
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE | re.ASCII)
    for pattern in (
        # Authorization: Bearer ..., Basic ...
        r"\b(?P<keep>(?:bearer|basic)\s+)[^\s\"',;]+",
        # https://user:password@host
        r"(?P<keep>://)[^/\s:@]+:[^/\s@]+@",
        # "api_key": "...", password=..., token = ...
        rf"(?P<keep>[\"']?\b[\w-]*(?:{_NAMES})[\"']?\s*[=:]\s*){_VALUE}",
        # `key` alone is also an ordinary word, so only `=` makes it a name here.
        rf"(?P<keep>\bkey\s*=\s*){_VALUE}",
        # Keys that providers and this server give out.
        r"(?P<keep>)\b(?:sk|pk|rk|ak|gsk|xai|hf|ghp|gho|glpat|pplx|nvapi)[-_][\w*.-]{6,}",
        r"(?P<keep>)\btokenhub_[0-9a-f]{8,}",
        r"(?P<keep>)\bAIza[\w-]{20,}|\bAKIA[0-9A-Z]{12,}",
        # JSON Web Tokens
        r"(?P<keep>)\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]+)?",
        # 128 bits or more in hex
        r"(?P<keep>)(?<![\w-])[0-9a-f]{32,}(?![\w-])",
    )
)
_LONG = re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}", re.ASCII)


def redact(text: str) -> str:
    """The text with everything that looks like a credential replaced by ``[redacted]``."""
    text = _LONG.sub(_random, text)
    for pattern in _PATTERNS:
        text = pattern.sub(_marked, text)
    return text


def _marked(match: re.Match[str]) -> str:
    return (match["keep"] or "") + MARK


def _random(match: re.Match[str]) -> str:
    # Base64 of random bytes changes between a-z, A-Z and 0-9 at 60 % of its places, names and
    # file paths at a tenth of theirs; 40 random characters stay below a quarter once in 10^5.
    kinds = [_kind(char) for char in match[0]]
    changes = sum(one != two and bool(one and two) for one, two in pairwise(kinds))
    return MARK if changes * 4 >= len(kinds) else match[0]


def _kind(char: str) -> str:
    if char.isdigit():
        return "0"
    return "a" if char.islower() else "A" if char.isupper() else ""
