"""Asks one admin address after the other at a fixed rate; the part of bench/watch.py that watches.

    TOKENHUB_ADMIN_TOKEN=... bench/watcher.py PORT SECONDS RATE PATH...

Every path has a thread and a connection of its own and is asked RATE times a second, open loop: an
answer's time counts from the moment its question was due. Prints one line of JSON: path → times in
ms, sorted.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time


def watch(port: int, seconds: float, rate: float, path: str, times: list[float]) -> None:
    """Ask until the time is over."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {os.environ['TOKENHUB_ADMIN_TOKEN']}"}
    began = time.monotonic()
    for number in range(int(seconds * rate)):
        due = began + number / rate
        time.sleep(max(0.0, due - time.monotonic()))
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {body[:500]!r}")
        times.append((time.monotonic() - due) * 1000)
        if time.monotonic() > began + seconds:
            break
    connection.close()


def main() -> int:
    port, seconds, rate, *paths = sys.argv[1:]
    times: dict[str, list[float]] = {path: [] for path in paths}
    threads = [
        threading.Thread(target=watch, args=(int(port), float(seconds), float(rate), path, found))
        for path, found in times.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({path: sorted(found) for path, found in times.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
