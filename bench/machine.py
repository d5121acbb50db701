"""Processes on chosen cores, and what they cost: the part of the benchmark that is Linux."""

from __future__ import annotations

import os
import platform
import signal
import socket
import statistics
import subprocess
import time
from pathlib import Path

PROC = Path("/proc")


class BenchError(Exception):
    """The measurement cannot be made; the message says what is missing."""


class Process:
    """A program pinned to one core, its output in a file, its CPU time readable."""

    def __init__(
        self,
        command: list[str | Path],
        *,
        core: int,
        log: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *(str(part) for part in command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )
        self.pid = self._popen.pid

    def tree(self) -> list[int]:
        """The process and all that it started, directly or not."""
        parents: dict[int, list[int]] = {}
        for entry in PROC.iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self.pid]
        for pid in found:
            found.extend(parents.get(pid, []))
        return found

    def cpu_seconds(self) -> float:
        """CPU time of all threads of the tree so far."""
        total = 0
        for pid in self.tree():
            for task in (PROC / str(pid) / "task").iterdir():
                try:
                    total += int((task / "schedstat").read_text().split()[0])
                except OSError:
                    continue
        return total / 1e9

    def rss_mb(self) -> float:
        """Memory in use now: resident pages of the tree."""
        pages = sum(int((PROC / str(pid) / "statm").read_text().split()[1]) for pid in self.tree())
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def check_running(self) -> None:
        """Raise BenchError with the end of its output when the program has ended."""
        if self._popen.poll() is not None:
            words = self.log.read_text(errors="replace")[-2000:]
            raise BenchError(f"{self._popen.args!r} ended with {self._popen.returncode}:\n{words}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after ten seconds."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(10)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(process: Process, port: int, seconds: float = 15) -> None:
    """Return when the process accepts connections."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        process.check_running()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.005)
        else:
            return
    raise BenchError(f"nothing listens on port {port} after {seconds:g} s; see {process.log}")


def busy_seconds() -> float:
    """CPU time that all programs on the machine have had since it started."""
    fields = (PROC / "stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, soft, *_ = (int(field) for field in fields)
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def children_cpu_ms(command: list[str | Path], environment: dict[str, str]) -> float:
    """CPU milliseconds of one run of a command that must succeed."""
    words = [str(part) for part in command]
    null = os.open(os.devnull, os.O_RDWR)
    pid = os.posix_spawnp(
        words[0],
        words,
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)],
    )
    _, status, usage = os.wait4(pid, 0)
    os.close(null)
    if status:
        raise BenchError(f"{' '.join(words)} failed with status {status}")
    return (usage.ru_utime + usage.ru_stime) * 1000


def sync_ms(folder: Path, count: int = 500) -> list[float]:
    """Milliseconds of each of ``count`` fdatasyncs after 4 KB were written, a millisecond apart.

    Sorted. No answer that waits for the disk can take less.
    """
    path = folder / "sync"
    taken = []
    with path.open("wb", buffering=0) as file:
        file.write(bytes(4096 * count))
        os.fsync(file.fileno())
        for number in range(count):
            os.pwrite(file.fileno(), b"x" * 4096, number * 4096)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - began) * 1000)
            time.sleep(0.001)
    path.unlink()
    return sorted(taken)


def describe() -> dict[str, str]:
    """What the figures were measured on."""
    lines = (PROC / "cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def median(values: list[float]) -> float:
    """The middle value."""
    return statistics.median(values)
