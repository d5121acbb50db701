"""Ports for servers that tests start: nobody else takes one before its server listens."""

from __future__ import annotations

import itertools
import os
import socket

# Below those that a system gives to connections and to whoever asks for any port.
_FIRST = 16_384
_SLICE = 2_048  # for each of eight workers
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8

_next = itertools.count(os.getpid())


def free_port() -> int:
    """A port of 127.0.0.1 that this worker has not used lately and nobody listens on."""
    for number in itertools.islice(_next, _SLICE):
        port = _FIRST + _WORKER * _SLICE + number % _SLICE
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(f"no port is free from {_FIRST + _WORKER * _SLICE} on")
