"""Providers that misbehave exactly as a test says: plain sockets, one thread a connection."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
import time

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


class Line:
    """The server's end of one connection, and the request that came on it."""

    def __init__(self, sock, body):
        self.sock = sock
        self.body = body

    @property
    def stream(self):
        return self.body.get("stream") is True

    def send(self, data):
        self.sock.sendall(data)

    def answer(self, body, status="200 OK", headers=""):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send(
            f"HTTP/1.1 {status}\r\n{headers}content-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def head(self):
        self.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    def piece(self, data):
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def word(self, text, finish=None):
        delta = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up"}
        self.piece(b"data: " + json.dumps(event | {"choices": [delta]}).encode() + b"\n\n")

    def until_closed(self):
        """Wait for the gateway to hang up."""
        try:
            while self.sock.recv(65536):
                pass
        except OSError:
            pass

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.sock.detach())  # a plain close waits for the reader's file


class Peer:
    """A provider whose answer to each chat request is ``script(line)``.

    Attributes:
        calls: monotonic time of each chat request.
        probes: how many other requests came.
        left: monotonic times at which the gateway hung up while ``hang`` was running.
    """

    def __init__(self, script):
        self.script = script
        self.calls = []
        self.bodies = []
        self.left = []
        self.probes = 0
        self._socks = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        # Only shutdown wakes the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            sock.close()

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._socks.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        reader = sock.makefile("rb")
        try:
            while head := _head(reader):
                found = _LENGTH.search(head)
                body = reader.read(int(found[1])) if found else b""
                if head.startswith(b"GET"):
                    self.probes += 1
                    Line(sock, {}).answer({"object": "list", "data": []})
                    continue
                self.calls.append(time.monotonic())
                self.bodies.append(json.loads(body))
                self.script(Line(sock, self.bodies[-1]))
        except (OSError, ValueError):
            pass  # the other end has gone, or the script has closed
        finally:
            reader.close()
            sock.close()


def _head(reader):
    head = b""
    while line := reader.readline():
        head += line
        if line == b"\r\n":
            return head
    return b""


def says(text, pause=0.0):
    """Answer well."""

    def script(line):
        time.sleep(pause)
        if not line.stream:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = {"id": "c", "object": "chat.completion", "created": 1, "model": "up"}
            line.answer(body | {"choices": [choice], "usage": USAGE})
            return
        line.head()
        line.word(text, "stop")
        end = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up"}
        line.piece(b"data: " + json.dumps(end | {"choices": [], "usage": USAGE}).encode() + b"\n\n")
        line.piece(b"data: [DONE]\n\n")
        line.send(b"0\r\n\r\n")

    return script


def refuses(status, message="no", *, code=None, param=None, headers=""):
    """Answer with an error."""
    body = {"error": {"message": message, "type": "x", "param": param, "code": code}}
    return lambda line: line.answer(body, status, headers)


def hangs(line):
    """Say nothing at all."""
    line.until_closed()


def only_head(line):
    """Send headers and then nothing."""
    line.head()
    line.until_closed()


def chatters(line):
    """Send headers and comments, and never a word."""
    line.head()
    try:
        while True:
            line.piece(b": still here\n\n")
            time.sleep(0.1)
    except OSError:
        pass


def garbage(line):
    """Answer 200 with something else."""
    line.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 15\r\n\r\n<html>oh</html>"
    )


def resets(line):
    """Break the connection before any byte."""
    line.reset()


def breaks(line):
    """Say two words, then break the connection."""
    line.head()
    line.word("Hello")
    line.word(" wor")
    time.sleep(0.1)  # a reset overtakes what the other end has not read yet
    line.reset()


def stalls(line):
    """Say two words, then nothing more."""
    line.head()
    line.word("Hello")
    line.word(" wor")
    line.until_closed()


def errs(line):
    """Say two words, then report an error inside the stream."""
    line.head()
    line.word("Hello")
    line.word(" wor")
    time.sleep(0.1)  # in one read with the words the gateway could still go elsewhere
    line.piece(b'data: {"error":{"message":"out of memory","type":"server_error"}}\n\n')
    line.until_closed()


def stops_short(line):
    """Say two words and end as if that were all."""
    line.head()
    line.word("Hello")
    line.word(" wor")
    line.send(b"0\r\n\r\n")
