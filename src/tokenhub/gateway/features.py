"""Cheap numbers about a prompt, recorded with a routed decision for later offline evaluation.

Prompts are not stored, so what a future policy may want to learn from must be taken down now:
shares and counts over the first bytes of the conversation, in C, some five microseconds in all.
No text can be read back from them.
"""

from __future__ import annotations

import string
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenhub.core.chat import ChatRequest

VERSION = 1
LOOKED_AT = 4096  # bytes

# Every byte as the class it belongs to, so that one pass finds all classes: counting a single
# byte value is a memchr.
_CLASSES = bytes(
    0x80 if byte > 127
    else ord("0") if chr(byte) in string.digits
    else ord("A") if chr(byte) in string.ascii_uppercase
    else byte
    for byte in range(256)
)  # fmt: skip


def features_of(chat: ChatRequest) -> dict[str, float]:
    """Numbers by name; ``version`` says which set this is.

    ``bytes`` is the whole conversation; shares are of its first 4096 bytes. ``tool_set`` is a
    checksum that tells one set of tools from another.
    """
    raw = memoryview(chat.members["messages"])
    text = bytes(raw[:LOOKED_AT])
    size = len(text)
    classes = text.translate(_CLASSES)
    tools = bytes(chat.members["tools"]) if "tools" in chat.members else b""
    return {
        "version": VERSION,
        "bytes": len(raw),
        "messages": text.count(b'"role"'),
        "digits": classes.count(b"0") / size,
        "upper": classes.count(b"A") / size,
        "non_ascii": classes.count(b"\x80") / size,
        "lines": text.count(b"\\n"),
        "questions": text.count(b"?"),
        "code": text.count(b"```"),
        "braces": text.count(b"{"),
        "equations": text.count(b"="),
        "tools": tools.count(b'"name"'),
        "tool_set": zlib.crc32(tools) if tools else 0,
        "json": float("response_format" in chat.members),
    }
