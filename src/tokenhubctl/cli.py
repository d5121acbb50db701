"""The root of the command tree."""

from __future__ import annotations

from tokenhubctl.command import LazyGroup
from tokenhubctl.commands import LAZY, usage

root = LazyGroup("tokenhubctl", lazy=LAZY, usage=usage())
