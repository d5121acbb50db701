"""Copies the token of the running container to ~/.tokenhub/env, for tokenhubctl and shells.

The server writes /data/env inside the container at start. It is asked for up to 30 times, a
second apart, because this runs right after the container was started. The file written here has
mode 0600 and replaces the old one in one step; a symbolic link is refused, not followed. The
content is never printed.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

READ_COMMANDS = (
    ["docker", "compose", "exec", "-T", "tokenhub", "cat", "/data/env"],
    ["docker", "exec", "tokenhub-tokenhub-1", "cat", "/data/env"],
)
LINE = re.compile(r"(?:export )?TOKENHUB_[A-Z_]+=[!-~]+")


def read_container() -> str | None:
    """The container's /data/env, or None while it cannot be read or carries no token.

    Raises:
        FileNotFoundError: there is no program `docker`.
    """
    for command in READ_COMMANDS:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        content = answer.stdout.decode("ascii", "replace")
        lines = [line.strip() for line in content.splitlines() if line.strip()]
        if answer.returncode == 0 and carries_token(lines):
            return "".join(f"{line}\n" for line in lines)
    return None


def carries_token(lines: list[str]) -> bool:
    """Whether the lines are assignments and nothing else, the admin token among them."""
    names = [line.removeprefix("export ").partition("=")[0] for line in lines]
    return "TOKENHUB_ADMIN_TOKEN" in names and all(LINE.fullmatch(line) for line in lines)


def wait_for_container(tries: int, pause: float) -> str | None:
    """The container's assignments, or None when they did not come in time."""
    for attempt in range(tries):
        if attempt == 1:
            print(f"no token yet; asking the container {tries - 1} times more", file=sys.stderr)
        if attempt:
            time.sleep(pause)
        content = read_container()
        if content is not None:
            return content
    return None


def write_private(path: Path, content: str) -> None:
    """Replace `path` in one step with a file that only its owner can read.

    Raises:
        OSError: the folder or the file is a symbolic link, or cannot be written.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    for place in (path.parent, path):
        if place.is_symlink():
            raise OSError(f"{place} is a symbolic link; remove it and run `make _write-env` again")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if stat.S_IMODE(os.fstat(folder).st_mode) & 0o022:
            raise OSError(f"others may write to {path.parent}; run: chmod 700 {path.parent}")
        temporary = f".{path.name}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def main() -> int:
    """Exit code 0 also when no token came: the container runs all the same."""
    parser = argparse.ArgumentParser(description="Sync the container's token to ~/.tokenhub/env.")
    parser.add_argument("--tries", type=int, default=30)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two tries")
    options = parser.parse_args()
    os.umask(0o077)
    path = Path.home() / ".tokenhub" / "env"
    port = os.environ.get("TOKENHUB_PORT") or "8080"
    try:
        content = wait_for_container(options.tries, options.pause)
    except FileNotFoundError:
        print(
            "error: there is no docker here, so no container to ask. A server started with "
            "`make run` needs no sync: tokenhubctl finds its token by itself.",
            file=sys.stderr,
        )
        return 1
    if content is None:
        print(
            f"warning: the container gave no token in {options.tries} tries; {path} is unchanged. "
            "Look at `make status` and `make logs`, then run `make _write-env`.",
            file=sys.stderr,
        )
        return 0
    try:
        write_private(path, f"TOKENHUB_URL=http://localhost:{port}\n{content}")
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
