"""Cheap numbers about a prompt, recorded with a routed decision for later offline evaluation.

Prompts are not stored, so what a future policy may want to learn from must be taken down now:
counts over the first bytes of the conversation, in C, some two microseconds in all. No text can
be read back from them.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING
from zlib import crc32

from tokenhub.core.decision import Features

if TYPE_CHECKING:
    from tokenhub.core.chat import ChatRequest

VERSION = 2
LOOKED_AT = 2048  # bytes

# One pass turns every byte that is counted into its class and drops all others, some nine in ten,
# so that the counting itself has little left to look at.
_CLASSES = bytes(
    0x80 if byte > 127
    else ord("0") if chr(byte) in string.digits
    else ord("A") if chr(byte) in string.ascii_uppercase
    else byte
    for byte in range(256)
)  # fmt: skip
_DIGIT = ord("0")
_QUESTION = ord("?")
_BACKSLASH = ord("\\")
_BACKTICK = ord("`")
_EQUALS = ord("=")
_DROPPED = bytes(byte for byte in range(128) if _CLASSES[byte] not in b"0A?{=`\\")


def features_of(chat: ChatRequest) -> Features:
    """The numbers of a conversation.

    Counts are of its first 2048 bytes. In version 1 ``digits``, ``upper`` and ``non_ascii`` were
    shares, and it looked at 4096 bytes.
    """
    members = chat.members
    raw = members["messages"]
    size = len(raw)
    text = bytes(raw) if size <= LOOKED_AT else bytes(memoryview(raw)[:LOOKED_AT])
    left = text.translate(_CLASSES, _DROPPED)
    tools = bytes(members["tools"]) if "tools" in members else b""
    count = left.count
    # Looking whether there is one costs a third of counting them.
    digits = count(b"0") if _DIGIT in left else 0
    questions = count(b"?") if _QUESTION in left else 0
    braces = count(b"{")
    non_ascii = 0 if left.isascii() else count(b"\x80")
    equations = count(b"=") if _EQUALS in left else 0
    slashes = count(b"\\") if _BACKSLASH in left else 0
    ticks = count(b"`") if _BACKTICK in left else 0
    # By position, in the order of its fields.
    return Features(
        VERSION,
        size,
        text.count(b'"role"'),  # messages
        digits,
        len(left) - digits - questions - braces - non_ascii - equations - slashes - ticks,  # upper
        non_ascii,
        text.count(b"\\n") if slashes else 0,  # lines
        questions,
        text.count(b"```") if ticks else 0,  # code
        braces,
        equations,
        tools.count(b'"name"') if tools else 0,
        crc32(tools) if tools else 0,
        1 if "response_format" in members else 0,  # json
    )
