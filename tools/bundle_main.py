"""The first code that bin/tokenhub runs: finds its packages and starts the server.

Compiled packages cannot be imported from inside a file, so the program is unpacked once, into a
folder that only its user can read, named by the digest of its content; every later start finds it
there. The folder is ~/.cache/tokenhub, or TOKENHUB_CACHE_DIR, or, where neither can be used, one
in the system's temporary folder.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

THIS_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
THIS_MACHINE = f"{sys.platform}-{os.uname().machine}"
RETRIED = "_TOKENHUB_BUNDLE_RETRIED"


def fail(message: str) -> NoReturn:
    """End the program with a line that says what to do."""
    sys.exit(f"{sys.argv[0]}: {message}")


def use_python(versions: list[str]) -> None:
    """Return when this interpreter fits; else start again under one that does."""
    if THIS_PYTHON in versions:
        os.environ.pop(RETRIED, None)
        return
    if RETRIED not in os.environ:
        for version in reversed(versions):
            found = shutil.which(f"python{version}")
            if found:
                os.environ[RETRIED] = version
                os.execv(found, [found, *sys.argv])
    fail(
        f"carries packages for Python {', '.join(versions)}; {sys.executable} is {THIS_PYTHON}. "
        f"Install one of those, or build with others: make build BUILD_PYTHONS=..."
    )


def usable(folder: Path) -> bool:
    """Whether a folder is real, mine and closed to others, so that code in it can be trusted."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    mine = status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return mine and folder.is_dir() and not folder.is_symlink()


def cache_places() -> list[Path]:
    """Where unpacked programs may live, best first."""
    named = os.environ.get("TOKENHUB_CACHE_DIR")
    caches = os.environ.get("XDG_CACHE_HOME")
    places = [Path(tempfile.gettempdir()) / f"tokenhub-{os.geteuid()}"]
    if named:
        places.insert(0, Path(named))
    elif caches or os.environ.get("HOME"):
        home = Path(caches) if caches else Path(os.environ["HOME"]) / ".cache"
        places.insert(0, home / "tokenhub")
    return places


def cache_root() -> Path:
    """The first of the places that is private and can be written."""
    places = cache_places()
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        if usable(place) and os.access(place, os.W_OK):
            return place
    tried = " and ".join(str(place) for place in places)
    fail(f"no folder to unpack into: {tried}. Name one of mode 0700 with TOKENHUB_CACHE_DIR.")


def unpacked(archive: zipfile.ZipFile, digest: str) -> Path:
    """The folder with this program's packages, made on the first start."""
    tag = THIS_PYTHON.replace(".", "")
    folder = cache_root() / f"{digest}-{tag}"
    if usable(folder):
        return folder
    umask = os.umask(0o077)
    temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
    try:
        for part in ("any.zip", f"{tag}.zip"):
            zipfile.ZipFile(io.BytesIO(archive.read(part))).extractall(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            # Another start was faster; what it unpacked has the same digest.
            if not usable(folder):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.umask(umask)
    return folder


def main() -> None:
    """Start the program this file carries, in this process."""
    with zipfile.ZipFile(sys.path[0]) as archive:
        about = json.loads(archive.read("bundle.json"))
        use_python(about["pythons"])
        if about["machine"] != THIS_MACHINE:
            fail(f"was built for {about['machine']}; this is {THIS_MACHINE}. Build it here anew.")
        sys.path[0] = str(unpacked(archive, about["digest"]))
    sys.exit(importlib.import_module(about["module"]).main())


main()
