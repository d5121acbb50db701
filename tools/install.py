"""Installs tokenhub and tokenhubctl for one user, and removes them again.

Layout:

    <share>/releases/<version>-<time>/   a virtual environment of exactly the locked packages
    <share>/current                      symbolic link to the release in use
    <bin>/tokenhub, <bin>/tokenhubctl    symbolic links through current into that release
    <man>/*.1 and completions for bash, zsh and fish below the folder that holds <share>

An upgrade builds the new release beside the old one, starts its programs once, and then swaps
`current` in one step: at every moment a whole release is installed. The release before is kept,
because a server that is still running loads parts of it late.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("tokenhub", "tokenhubctl")
# Shell and the place where it looks for completions, below the data home.
COMPLETIONS = {
    "bash": "bash-completion/completions/tokenhubctl",
    "zsh": "zsh/site-functions/_tokenhubctl",
    "fish": "fish/vendor_completions.d/tokenhubctl.fish",
}
KEPT_RELEASES = 2


class InstallError(Exception):
    """What went wrong and what to do; the installation that was there is untouched."""


def run(*command: str | Path) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip()
        raise InstallError(f"{Path(command[0]).name} {command[1]} failed:\n{words}")
    return done.stdout.decode()


def only_wheel(folder: Path) -> Path:
    """The one wheel in a folder."""
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise InstallError(f"expected one wheel in {folder}, found {len(wheels)}; run make clean")
    return wheels[0]


def build_release(share: Path, uv: Path, wheel: Path, lock: Path) -> Path:
    """A new release, complete and tried, not yet in use."""
    version = wheel.name.split("-")[1]
    release = share / "releases" / f"{version}-{time.time_ns() // 1_000_000}"
    release.parent.mkdir(parents=True, exist_ok=True)
    try:
        run(sys.executable, "-m", "venv", "--without-pip", release)
        python = release / "bin" / "python"
        install = (uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python)
        run(*install, "--require-hashes", "--requirement", lock)
        run(*install, "--no-deps", wheel)
        for program in PROGRAMS:
            run(release / "bin" / program, "--version")
    except BaseException:
        shutil.rmtree(release, ignore_errors=True)
        raise
    return release


def point(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to `target` in one step, whatever file was there."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def put(path: Path, text: str) -> None:
    """Write a text file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def manuals(release: Path) -> dict[str, str]:
    """Page name → text, written from the installed programs themselves."""
    script = Path(__file__).with_name("manpages.py")
    return {
        f"{program}.1": run(release / "bin" / "python", script, program) for program in PROGRAMS
    }


def prune(share: Path) -> None:
    """Remove all releases but the newest ones."""
    releases = sorted((share / "releases").iterdir(), key=lambda path: path.name.rsplit("-", 1)[1])
    for release in releases[:-KEPT_RELEASES]:
        shutil.rmtree(release)


def install(places: argparse.Namespace) -> None:
    """Build a release, put it to use, say where it is."""
    release = build_release(places.share_dir, places.uv, only_wheel(places.wheel), places.lock)
    pages = manuals(release)
    command_line = release / "bin" / "tokenhubctl"
    scripts = {shell: run(command_line, "completion", shell) for shell in COMPLETIONS}
    current = places.share_dir / "current"
    point(current, release)
    for program in PROGRAMS:
        point(places.bin_dir / program, current / "bin" / program)
    for name, text in pages.items():
        put(places.man_dir / name, text)
    for shell, text in scripts.items():
        put(places.share_dir.parent / COMPLETIONS[shell], text)
    prune(places.share_dir)
    print(f"installed {' and '.join(PROGRAMS)} in {places.bin_dir}")
    if str(places.bin_dir) not in os.environ.get("PATH", "").split(os.pathsep):
        print(f"it is not on your PATH yet: export PATH={str(places.bin_dir)!r}:$PATH")


def uninstall(places: argparse.Namespace) -> None:
    """Remove what install put there, and nothing that somebody else did."""
    for program in PROGRAMS:
        link = places.bin_dir / program
        if link.is_symlink() and link.readlink().is_relative_to(places.share_dir):
            link.unlink()
        (places.man_dir / f"{program}.1").unlink(missing_ok=True)
    for path in COMPLETIONS.values():
        (places.share_dir.parent / path).unlink(missing_ok=True)
    (places.share_dir / "current").unlink(missing_ok=True)
    shutil.rmtree(places.share_dir / "releases", ignore_errors=True)
    if places.share_dir.is_dir() and not any(places.share_dir.iterdir()):
        places.share_dir.rmdir()
    print(f"removed {' and '.join(PROGRAMS)} from {places.bin_dir}; ~/.tokenhub was not touched")


def main() -> int:
    """Exit code 1 with one message when something could not be done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["install", "uninstall"])
    parser.add_argument("--uv", type=Path)
    parser.add_argument("--wheel", type=Path, help="folder with the one wheel to install")
    parser.add_argument("--lock", type=Path, help="hash-pinned requirements")
    for name in ("bin", "man", "share"):
        parser.add_argument(f"--{name}-dir", type=Path, required=True)
    places = parser.parse_args()
    for name in ("bin_dir", "man_dir", "share_dir"):
        setattr(places, name, getattr(places, name).expanduser().absolute())
    # Programs and pages are for reading, whatever the caller keeps private.
    os.umask(0o022)
    try:
        {"install": install, "uninstall": uninstall}[places.action](places)
    except (InstallError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
