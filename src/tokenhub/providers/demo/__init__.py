"""The built-in demo provider: answers offline, counts tokens, misbehaves on request."""

from __future__ import annotations

from tokenhub.providers.demo.books import Books
from tokenhub.providers.demo.provider import DemoProvider, Scripted
from tokenhub.providers.demo.script import PRESETS, Script
from tokenhub.providers.demo.upstream import DemoUpstream

__all__ = ["PRESETS", "Books", "DemoProvider", "DemoUpstream", "Script", "Scripted"]
