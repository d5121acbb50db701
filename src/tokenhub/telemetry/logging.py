"""The server's log: one line per event on stdout, JSON for machines, plain on a terminal.

Every line passes ``core.redaction`` last, whatever it is made of. A line that nobody takes is lost
(``log_sink``): a log must not stop the server.
"""

from __future__ import annotations

import logging
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from tokenhub.core.redaction import redact
from tokenhub.telemetry.log_sink import Sink

if TYPE_CHECKING:
    from types import TracebackType

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
_WORDS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
    logging.CRITICAL: "error",
}
# What every record has; everything else came in by `extra` and is a member of the line.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Made by this server, random by design and needed in full to find things again.
_IDS = frozenset({"request_id", "trace_id", "span_id"})
_encode = msgspec.json.Encoder(enc_hook=str).encode
_COLOURS = {"debug": "\x1b[2m", "info": "", "warn": "\x1b[33m", "error": "\x1b[31m"}
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 10}


class JsonLines(logging.Formatter):
    """``{"ts", "level", "msg", ..., "logger", "error"}`` on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one JSON object; members of ``extra`` between message and logger."""
        line: dict[str, Any] = {
            "ts": _moment(record.created),
            "level": _WORDS.get(record.levelno, "info"),
            "msg": redact(record.getMessage()),
        }
        line |= {name: _safe(name, value) for name, value in _extra(record).items()}
        line["logger"] = record.name
        if record.exc_info:
            line["error"] = redact(self.formatException(record.exc_info))
        return _encode(line).decode()


class Plain(logging.Formatter):
    """``HH:MM:SS level message name=value``, the traceback below; for a person at a terminal."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line; control characters as escapes, so that none reach the terminal."""
        level = _WORDS.get(record.levelno, "info")
        shown = f"{level:<5}"
        if self._colour and _COLOURS[level]:
            shown = f"{_COLOURS[level]}{shown}\x1b[0m"
        parts = [redact(record.getMessage())]
        parts += [f"{name}={_safe(name, value)}" for name, value in _extra(record).items()]
        said = " ".join(parts).replace("\n", "\\n").translate(_CONTROL)
        clock = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        line = f"{clock} {shown} {said}"
        if record.exc_info:
            trace = redact(self.formatException(record.exc_info))
            line += "\n" + trace.translate(_CONTROL)
        return line


def set_up(level: str, stream: TextIO | None = None) -> Sink:
    """Send everything that is logged in this process to ``stream`` (stdout), from ``level`` on.

    Python's warnings and errors that nobody caught are logged too. Calling again replaces the
    earlier set-up.
    """
    stream = stream or sys.stdout
    handler = Sink(stream)
    terminal = stream.isatty()
    handler.setFormatter(Plain(colour=terminal) if terminal else JsonLines())
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, Sink)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    for chatty in ("asyncio", "urllib3"):  # their debug lines are not about requests
        logging.getLogger(chatty).setLevel(max(LEVELS[level], logging.INFO))
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    return handler


def lost_lines() -> int:
    """How many lines of the log nobody took."""
    return sum(one.lost for one in logging.getLogger().handlers if isinstance(one, Sink))


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("tokenhub").critical("stopped by an error", exc_info=(kind, error, trace))


def _uncaught_in_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None:
        name = failed.thread.name if failed.thread else ""
        logging.getLogger("tokenhub").error(
            "a thread ended with an error", exc_info=failed.exc_value, extra={"thread_name": name}
        )


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _OWN and value is not None and value != ""
    }


def _safe(name: str, value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    return value if name in _IDS else redact(str(value))


def _moment(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")
