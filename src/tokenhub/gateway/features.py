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
_BACKSLASH = ord("\\")
_BACKTICK = ord("`")
_DROPPED = bytes(byte for byte in range(128) if _CLASSES[byte] not in b"0A?{=`\\")


def features_of(chat: ChatRequest) -> Features:
    """The numbers of a conversation.

    Counts are of its first 2048 bytes. In version 1 ``digits``, ``upper`` and ``non_ascii`` were
    shares, and it looked at 4096 bytes.
    """
    members = chat.members
    raw = memoryview(members["messages"])
    text = bytes(raw[:LOOKED_AT])
    left = text.translate(_CLASSES, _DROPPED)
    tools = bytes(members["tools"]) if "tools" in members else b""
    count = left.count
    return Features(
        version=VERSION,
        bytes=len(raw),
        messages=text.count(b'"role"'),
        digits=count(b"0"),
        upper=count(b"A"),
        non_ascii=count(b"\x80"),
        lines=text.count(b"\\n") if _BACKSLASH in left else 0,
        questions=count(b"?"),
        code=text.count(b"```") if _BACKTICK in left else 0,
        braces=count(b"{"),
        equations=count(b"="),
        tools=tools.count(b'"name"') if tools else 0,
        tool_set=crc32(tools) if tools else 0,
        json=1 if "response_format" in members else 0,
    )
