"""Every refusal names itself: no class of errors and no place that makes one lacks a code."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import tokenhub
from tokenhub.core.errors import HubError
from tokenhub.routing.refusal import CODES, VERDICTS, WORDS
from tokenhub.web.answers import NATIVE, OPENAI, error_answer
from tokenhub.web.head import Head
from tokenhub.web.http import Request

SOURCE = Path(tokenhub.__file__).parent
CODE = re.compile(r"[a-z][a-z_]+[a-z]")


def classes():
    for module in pkgutil.walk_packages(tokenhub.__path__, "tokenhub."):
        if module.name not in {"tokenhub.__main__", "tokenhub.telemetry.tracing"}:
            importlib.import_module(module.name)
    waiting = [HubError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        yield kind


KINDS = {kind.__name__: kind for kind in classes()}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_class_of_errors_has_a_code_of_its_own(kind):
    assert CODE.fullmatch(kind.default_code)


def places():
    """Each call that makes an error: file and line, and what it gives as the code."""
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                where = f"{file.relative_to(SOURCE)}:{node.lineno}"
                if node.func.id == "Refused":
                    yield where, node.args[1]
                elif node.func.id in KINDS:
                    yield from ((where, one.value) for one in node.keywords if one.arg == "code")


def test_no_place_that_makes_an_error_takes_its_code_away():
    found = list(places())
    assert len(found) > 50
    for where, code in found:
        written = [leaf.value for leaf in ast.walk(code) if isinstance(leaf, ast.Constant)]
        assert None not in written, where
        if isinstance(code, ast.Constant):
            assert CODE.fullmatch(code.value), where


def test_the_tables_of_routing_have_codes_only():
    for code in [*WORDS, *CODES.values(), *(code for _, _, code in VERDICTS)]:
        assert CODE.fullmatch(code)


@pytest.mark.parametrize("dialect", [NATIVE, OPENAI])
def test_no_answer_has_an_empty_code(dialect):
    request = Request(Head(b"GET", b"/", 1, {}), {}, None, "", "r-1", 0)
    said = error_answer(HubError("No."), dialect, request).body
    assert b'"code":"internal_error"' in said
