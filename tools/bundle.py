"""Builds bin/tokenhub and bin/tokenhubctl: each program with all it needs in one file.

Both are zip files that Python runs. tokenhubctl is pure Python and imported straight from the
file, compiled code beside the source. tokenhub has compiled packages, so it carries those of every
Python version asked for and unpacks the fitting ones once (see bundle_main.py). The same sources
give the same bytes: order, dates and modes in the files are fixed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import py_compile
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SHEBANG = b"#!/usr/bin/env python3\n"
# The locked packages that the command line imports.
COMMAND_LINE_PACKAGES = ("click", "jmespath", "pyyaml")
# Of no use to a running program, or different on each machine.
LEFT_OUT = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "WHEEL"}

RUNNING = "{}.{}".format(*sys.version_info[:2])
COMMAND_LINE_MAIN = b"""import sys

if sys.version_info < (3, 11):
    sys.exit("%s needs Python 3.11 or newer; %s is %d.%d"
             % ((sys.argv[0], sys.executable) + sys.version_info[:2]))

from tokenhubctl.__main__ import main

sys.exit(main())
"""

Files = dict[str, bytes]


def packages(uv: Path, python: str, *wanted: str | Path) -> Files:
    """Path → content of packages as installed for one Python version."""
    with tempfile.TemporaryDirectory() as folder:
        command = [uv, "pip", "install", "--quiet", "--target", folder, "--python", sys.executable]
        command += ["--python-version", python, "--only-binary", ":all:", "--link-mode", "copy"]
        subprocess.run([str(part) for part in (*command, *wanted)], check=True)
        return read_tree(Path(folder))


def read_tree(root: Path) -> Files:
    """All files below a folder that a running program may want."""
    found: Files = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        wanted = path.is_file() and path.name not in LEFT_OUT and "__pycache__" not in name.parts
        if wanted and name.parts[0] not in {"bin", ".lock"}:
            found[name.as_posix()] = path.read_bytes()
    return found


def archive(files: Files, *, compress: bool = True) -> bytes:
    """A zip file that depends on nothing but the names and contents."""
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=9 if compress else None) as out:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = method
            entry.external_attr = 0o644 << 16
            out.writestr(entry, files[name])
    return buffer.getvalue()


def with_bytecode(files: Files) -> Files:
    """The files and, beside each source, what this Python compiles it to.

    Another Python version ignores the compiled file and reads the source.
    """
    compiled: Files = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.py"), Path(folder, "target.pyc")
        for name, content in files.items():
            if name.endswith(".py"):
                source.write_bytes(content)
                py_compile.compile(
                    str(source),
                    cfile=str(target),
                    dfile=name,
                    doraise=True,
                    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
                )
                compiled[name + "c"] = target.read_bytes()
    return files | compiled


def locked(lock: Path, names: tuple[str, ...]) -> str:
    """The part of a lock file that pins some packages."""
    entries: list[list[str]] = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        if not line.startswith((" ", "#")):
            entries.append([])
        entries[-1].append(line)
    found = [entry for entry in entries if entry[0].partition("==")[0] in names]
    if len(found) != len(names):
        raise SystemExit(f"error: {lock} does not pin all of {', '.join(names)}")
    return "\n".join(line for entry in found for line in entry) + "\n"


def write_program(path: Path, files: Files, *, compress: bool = True) -> None:
    """Put an executable file in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(SHEBANG + archive(files, compress=compress))
    temporary.chmod(0o755)
    temporary.replace(path)


def build_command_line(uv: Path, wheel: Path, lock: Path, out: Path) -> None:
    """Write tokenhubctl: its own code, what that imports, and a main that starts it.

    PyYAML's compiled half is left out: its pure half does the same, and needs no unpacking.
    """
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "pins.txt")
        pins.write_text(locked(lock, COMMAND_LINE_PACKAGES), encoding="utf-8")
        files = packages(uv, RUNNING, "--require-hashes", "--requirement", pins)
    files |= own(uv, wheel, "tokenhubctl")
    files = {name: body for name, body in files.items() if not name.endswith(".so")}
    files["__main__.py"] = COMMAND_LINE_MAIN
    write_program(out / "tokenhubctl", with_bytecode(files))


def build_server(uv: Path, wheel: Path, lock: Path, pythons: list[str], out: Path) -> None:
    """Write tokenhub: what all versions share once, the rest per version."""
    per_version = {
        python: packages(uv, python, "--require-hashes", "--requirement", lock)
        for python in pythons
    }
    first, *others = per_version.values()
    shared = {
        name: body for name, body in first.items() if all(x.get(name) == body for x in others)
    }
    parts = {"any.zip": archive(shared | own(uv, wheel, "tokenhub"))}
    for python, files in per_version.items():
        rest = {name: body for name, body in files.items() if name not in shared}
        parts[python.replace(".", "") + ".zip"] = archive(rest)
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(hashlib.sha256(parts[name]).digest())
    about = {
        "module": "tokenhub.__main__",
        "pythons": pythons,
        "machine": f"{sys.platform}-{os.uname().machine}",
        "digest": digest.hexdigest()[:24],
    }
    parts["bundle.json"] = json.dumps(about).encode()
    parts["__main__.py"] = Path(__file__).with_name("bundle_main.py").read_bytes()
    write_program(out / "tokenhub", parts, compress=False)


def own(uv: Path, wheel: Path, package: str) -> Files:
    """One of this project's packages, from its wheel."""
    files = packages(uv, RUNNING, "--no-deps", wheel)
    return {name: body for name, body in files.items() if name.startswith(f"{package}/")}


def main() -> int:
    """Write both programs and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, required=True, help="folder with the one wheel")
    parser.add_argument("--lock", type=Path, required=True, help="hash-pinned requirements")
    parser.add_argument("--pythons", required=True, help="versions, for example '3.11 3.12'")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    os.umask(0o022)
    [wheel] = options.wheel.glob("*.whl")
    build_command_line(options.uv, wheel, options.lock, options.out)
    build_server(options.uv, wheel, options.lock, options.pythons.split(), options.out)
    for name in ("tokenhub", "tokenhubctl"):
        path = options.out / name
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
