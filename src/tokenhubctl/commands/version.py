"""version: the version of this program."""

from __future__ import annotations

from tokenhubctl import __version__
from tokenhubctl.command import verb
from tokenhubctl.view import View, bare


@verb("version")
def version() -> View:
    """The version of this program."""
    return bare({"version": __version__}, f"tokenhubctl {__version__}", key="version")
