from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", ".cache", "bin", "build", "results", ".*_cache", ".hypothesis", "__pycache__"
)

STUB = """#!/bin/sh
# Stands for the Docker client: writes down how it was called and does what STUB_* say.
printf '%s\\n' "$*" >>"$STUB_LOG"
case "$*" in
info) exit "${STUB_INFO:-0}" ;;
"build --target bundle "*) mkdir -p bin && touch bin/tokenhub bin/tokenhubctl ;;
"compose exec -T tokenhub cat /data/env")
    [ -n "$STUB_NO_COMPOSE" ] && exit 1
    tries=$(($(cat "$STUB_LOG.tries" 2>/dev/null || echo 0) + 1))
    echo "$tries" >"$STUB_LOG.tries"
    [ "$tries" -gt "${STUB_LATE:-0}" ] || exit 1
    cat "$STUB_ENV" ;;
"exec tokenhub-tokenhub-1 cat /data/env") [ -n "$STUB_NO_COMPOSE" ] && cat "$STUB_ENV" || exit 1 ;;
esac
"""


class Shell:
    """Runs programs in a copy of the project, with a stub docker and a HOME of its own."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree = tree
        self.home = folder / "home"
        self.home.mkdir()
        self.log = folder / "docker.log"
        self.container_env = folder / "container-env"
        self.container_env.write_text("TOKENHUB_ADMIN_TOKEN=0123456789abcdef\n")
        stubs = folder / "stubs"
        stubs.mkdir()
        (stubs / "docker").write_text(STUB)
        (stubs / "docker").chmod(0o755)
        self.environment = {
            **os.environ,
            "HOME": str(self.home),
            "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}",
            "STUB_LOG": str(self.log),
            "STUB_ENV": str(self.container_env),
        }
        for name in list(self.environment):
            if name.startswith(("TOKENHUB_", "MAKE", "MFLAGS")):
                del self.environment[name]

    def run(self, *command, umask=-1, **variables):
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.tree,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            umask=umask,
        )

    def make(self, *words, **variables):
        return self.run("make", *words, **variables)

    def calls(self):
        return self.log.read_text().splitlines() if self.log.exists() else []


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)
