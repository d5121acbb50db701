"""What the start loads, and that everything else can be loaded too."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tokenhub

PACKAGE = Path(tokenhub.__file__).parent
MODULES = sorted(
    ".".join(("tokenhub", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__"
)
# Each costs the start more than a millisecond, and a server may never need it.
LATE = {
    "cryptography",
    "dataclasses",
    "difflib",
    "email",
    "http",
    "importlib.resources",
    "json",
    "jsonschema_rs",
    "opentelemetry",
    "tokenhub.credentials",
    "tokenhub.gateway.native",
    "tokenhub.providers.anthropic",
    "tokenhub.providers.demo",
    "tokenhub.routing.explain",
    "tokenhub.web.admin",
}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_loaded(name):
    importlib.import_module(name)


def test_what_few_servers_need_is_not_loaded_at_the_start():
    code = "import sys, tokenhub.app, tokenhub.serve; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert LATE.isdisjoint(found.stdout.split())
