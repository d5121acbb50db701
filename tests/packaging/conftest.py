from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from tests.packaging.project import NOT_SOURCE, ROOT, Shell


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A copy of the project in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("clone") / "a folder with spaces"
    shutil.copytree(ROOT, folder, ignore=NOT_SOURCE)
    return folder


@pytest.fixture
def shell(tree, tmp_path):
    yield Shell(tree, tmp_path)
    shutil.rmtree(tree / "bin", ignore_errors=True)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory, tree):
    """The folder with the project's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=tree,
        check=True,
        capture_output=True,
    )
    return folder
