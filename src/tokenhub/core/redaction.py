"""Secrets by their looks: the last net under every log line, for text that nobody planned.

Code here logs no secret on purpose. What this catches are the words of others: an exception that
repeats a header, a URL with a password, a provider that quotes the key it refused.
"""

from __future__ import annotations

import re

MARK = "[redacted]"

# Each group named `keep` is shown again before the mark.
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE | re.ASCII)
    for pattern in (
        # Authorization: Bearer ..., Basic ...
        r"\b(?P<keep>(?:bearer|basic)\s+)[^\s\"',;]+",
        # https://user:password@host
        r"(?P<keep>://)[^/\s:@]+:[^/\s@]+@",
        # "api_key": "...", password=..., token = ...; a name alone must be followed by = to count.
        r"(?P<keep>[\"']?\b[\w-]*(?:api[_-]?key|token|passw(?:or)?d|passphrase|secret|credential|"
        r"authorization|x-api-key)[\"']?\s*[=:]\s*)(?:\"[^\"]*\"|'[^']*'|[^\s\"',;&}\])]+)",
        r"(?P<keep>\bkey\s*=\s*)(?:\"[^\"]*\"|'[^']*'|[^\s\"',;&}\])]+)",
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
    for pattern in _PATTERNS:
        text = pattern.sub(_marked, text)
    return _LONG.sub(_random, text)


def _marked(match: re.Match[str]) -> str:
    return (match["keep"] or "") + MARK


def _random(match: re.Match[str]) -> str:
    """Base64 of random bytes changes between a-z, A-Z and 0-9 at 62 % of its places; names, words
    and file paths at far fewer, so that one third tells them apart."""
    kinds = [_kind(char) for char in match[0]]
    changes = sum(one != two for one, two in zip(kinds, kinds[1:], strict=False))
    return MARK if changes * 3 >= len(kinds) else match[0]


def _kind(char: str) -> int:
    if char.isdigit():
        return 0
    return 1 if char.islower() else 2 if char.isupper() else 3
