from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import warnings
from datetime import datetime

import pytest

from tokenhub.telemetry import logging as lines
from tokenhub.telemetry.log_sink import MAX_WAITING, Sink

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
    for sink in root.handlers:
        if isinstance(sink, Sink):
            sink.close()
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    sys.excepthook = before[2]
    logging.getLogger("asyncio").setLevel(before[3])
    logging.captureWarnings(capture=False)


class Written:
    """What the log has written, all of it."""

    def __init__(self, level, stream):
        self.stream = stream
        self.sink = lines.set_up(level, stream)

    def getvalue(self):
        self.sink.flush()
        return self.stream.getvalue()


@pytest.fixture
def out(restored):
    return Written("info", io.StringIO())


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
    stream = Written("debug", kind())
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
    stream = Written("info", Terminal())
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
    other = Written("error", io.StringIO())
    log.error("once")
    assert out.getvalue() == ""
    assert len(read(other)) == 1


def test_a_broken_pipe_costs_the_line_and_nothing_else():
    program = (
        "import logging, os, sys; from tokenhub.telemetry.logging import set_up\n"
        "set_up('info'); r, w = os.pipe(); os.dup2(w, 1); os.close(w); os.close(r)\n"
        "from tokenhub.telemetry.logging import lost_lines\n"
        "for _ in range(3):\n"
        "  logging.getLogger('x').error('lost'); logging.root.handlers[0].flush()\n"
        "sys.stderr.write(f'alive {lost_lines()}')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ran.returncode, ran.stderr) == (0, "alive 3")


@pytest.fixture
def pipe(restored):
    """The log on a pipe: its sink, and the end to read."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb") as reader:
        yield lines.set_up("info", stream), reader


def test_a_pipe_that_nobody_reads_holds_up_nobody_and_what_was_lost_is_told(pipe):
    sink, reader = pipe
    words = "x" * 1000
    number = 0
    while sink.lost < 5:
        log.warning(words, extra={"number": number})
        number += 1
    assert number * len(words) < MAX_WAITING * 3
    assert lines.lost_lines() == 5
    taken = [json.loads(reader.readline()) for _ in range(number - 5)]
    assert [line["number"] for line in taken] == list(range(number - 5))
    told = json.loads(reader.readline())
    assert (told["level"], told["lost"]) == ("warn", 5)
    log.warning("again")
    assert json.loads(reader.readline())["msg"] == "again"
    assert sink.lost == 5


def test_a_pipe_that_does_not_wait_loses_nothing(pipe):
    sink, reader = pipe
    os.set_blocking(sink._descriptor, False)
    for number in range(300):
        log.warning("x" * 1000, extra={"number": number})
    assert [json.loads(reader.readline())["number"] for _ in range(300)] == list(range(300))
    assert sink.lost == 0


@pytest.mark.parametrize("end", ["", "raise RuntimeError('the last word')", "sys.exit(3)"])
def test_a_process_ends_although_nobody_takes_its_log(end):
    program = (
        "import logging, os, sys; from tokenhub.telemetry.logging import set_up\n"
        "set_up('info'); r, w = os.pipe(); os.dup2(w, 1)\n"
        "for _ in range(300): logging.getLogger('x').error('x' * 1000)\n" + end
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ran.returncode, ran.stderr) == ({"": 0, "sys.exit(3)": 3}.get(end, 1), "")


def test_the_last_line_is_written_when_a_process_ends():
    program = (
        "from tokenhub.telemetry.logging import set_up; set_up('info'); raise ValueError('the end')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert "the end" in json.loads(ran.stdout)["error"]
