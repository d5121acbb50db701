"""What the documents name must exist: files, make targets, commands, settings."""

from __future__ import annotations

import re

import click
import pytest
from tests.packaging.project import ROOT

from tokenhub.settings import PREFIX, VARIABLES
from tokenhubctl.cli import root

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")])
# Read by tokenhubctl, make, compose or the single file, not by the server.
OTHER_VARIABLES = {"URL", "API_KEY", "PORT", "BIND", "CACHE_DIR", "OUTPUT"}
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request):
    return request.param


def code(text):
    """Everything in backticks and code blocks, joined lines joined."""
    blocks = re.findall(r"```.*?\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
    return [line for block in blocks for line in "".join(block).replace("\\\n", " ").splitlines()]


def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    missing = [
        target
        for target in targets
        if not target.startswith(("http://", "https://"))
        and not (document.parent / target).exists()
    ]
    assert not missing


def test_make_targets_exist(document):
    named = {
        target
        for line in code(document.read_text())
        for words in re.findall(r"(?:^|\s)make((?: [a-z_-]+)+)", line.partition("#")[0])
        for target in words.split()
    }
    missing = [target for target in named if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)]
    assert not missing


def test_commands_exist(document):
    context = click.Context(root, info_name="tokenhubctl")
    for line in code(document.read_text()):
        for words in re.findall(r"\btokenhubctl((?: [a-z][a-z-]*)+)", line.partition("#")[0]):
            assert exists(context, words.split()), f"tokenhubctl{words}"


def exists(context, words):
    """Whether the words lead to a command; what follows one is its arguments."""
    command = context.command
    for word in words:
        if not isinstance(command, click.Group):
            return True
        command = command.get_command(context, word)
        if command is None:
            return False
    return True


def test_variables_exist(document):
    known = {variable.name for variable in VARIABLES} | OTHER_VARIABLES
    named = set(re.findall(PREFIX + r"([A-Z_]+[A-Z])\b", document.read_text()))
    assert not named - known


def test_no_document_speaks_of_the_place_it_was_written_in(document):
    assert not re.search(r"/(work|root)/|/home/\w+/", document.read_text())
