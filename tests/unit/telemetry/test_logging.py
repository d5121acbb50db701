from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import warnings
from datetime import datetime

import pytest

from tokenhub.telemetry import logging as lines

SECRET = "sk-live-0123456789abcdef"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def restored():
    """The logging of the test run as it was."""
    root = logging.getLogger()
    before = root.level, list(root.handlers), sys.excepthook, logging.getLogger("asyncio").level
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    sys.excepthook = before[2]
    logging.getLogger("asyncio").setLevel(before[3])
    logging.captureWarnings(capture=False)


@pytest.fixture
def out(restored):
    stream = io.StringIO()
    lines.set_up("info", stream)
    return stream


log = logging.getLogger("tokenhub.somewhere")


def read(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_json_object_per_line_with_the_fields_in_order(out):
    log.warning("took %d ms\nand more", 12, extra={"request_id": "r-1", "status": 503, "model": ""})
    [line] = read(out)
    assert list(line) == ["ts", "level", "msg", "request_id", "status", "logger"]
    assert (line["level"], line["msg"]) == ("warn", "took 12 ms\nand more")
    assert (line["request_id"], line["status"]) == ("r-1", 503)
    assert datetime.fromisoformat(line["ts"]).tzinfo is not None
    assert line["ts"].endswith("Z")


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_no_secret_passes_by_any_way(restored, kind):
    stream = kind()
    lines.set_up("debug", stream)
    try:
        raise ValueError(f"the header was {SECRET}")
    except ValueError:
        log.exception("with %s", SECRET, extra={"provider": SECRET, "what": {"k": SECRET}})
    warnings.showwarning(f"careful with {SECRET}", UserWarning, "file.py", 1)
    sys.excepthook(RuntimeError, RuntimeError(SECRET), None)
    said = stream.getvalue()
    assert "ValueError: the header was" in said
    assert "careful with" in said
    assert "stopped by an error" in said
    assert SECRET not in said


def test_on_a_terminal_a_line_is_for_a_person(restored):
    stream = Terminal()
    lines.set_up("info", stream)
    log.warning("a\x1b[31m\nb", extra={"provider": "open\x07ai"})
    [line] = stream.getvalue().splitlines()
    assert line.endswith("a\\x1b[31m\\nb provider=open\\x07ai")
    assert "warn" in line


def test_below_the_level_nothing_is_made(out):
    class Loud:
        def __str__(self):
            raise AssertionError("formatted although nobody wants it")

    log.debug("%s", Loud())
    assert out.getvalue() == ""


def test_set_up_again_replaces_the_first(out):
    other = io.StringIO()
    lines.set_up("error", other)
    log.error("once")
    assert out.getvalue() == ""
    assert len(read(other)) == 1


def test_a_broken_pipe_costs_the_line_and_nothing_else():
    program = (
        "import logging, os, sys; from tokenhub.telemetry.logging import set_up\n"
        "set_up('info'); r, w = os.pipe(); os.dup2(w, 1); os.close(w); os.close(r)\n"
        "for _ in range(3): logging.getLogger('x').error('lost')\n"
        "sys.stderr.write('alive'); sys.stderr.flush(); os._exit(0)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ran.returncode, ran.stderr) == (0, "alive")
