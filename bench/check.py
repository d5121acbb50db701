"""make bench-check: fail when a ratio falls below 80 % of the recorded one.

    bench/check.py                     measure, compare with bench/recorded.json
    bench/check.py --results FILE      compare what bench/run.py wrote
    bench/check.py --results FILE --record
                                       keep its ratios as the recorded ones

Ratios (the hub to nginx, or to itself, in one run) carry over between machines; other figures do
not and are not compared. For a nightly run on a quiet machine, never for a test.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from subjects import HERE

RECORDED = HERE / "recorded.json"
ALLOWED = 0.8


def ratios_of(results: Path) -> tuple[dict[str, str], dict[str, float]]:
    """The machine of a run, and its ratios by ``scenario: subject, figure``."""
    content: dict[str, Any] = json.loads(results.read_text())
    return content["machine"], {
        f"{row['scenario']}: {row['subject']}, {row['figure']}": round(row["ratio"], 4)
        for row in content["rows"]
        if row["ratio"] is not None
    }


def measured(scenarios: list[str], folder: str) -> Path:
    """Run the benchmark; the file it wrote."""
    results = Path(folder) / "results.json"
    command = [sys.executable, str(HERE / "run.py"), *scenarios, "--json", str(results)]
    subprocess.run(command, check=True)
    return results


def record(results: Path) -> int:
    """Keep the ratios of a run, beside those of other scenarios."""
    machine, ratios = ratios_of(results)
    known = json.loads(RECORDED.read_text())["ratios"] if RECORDED.exists() else {}
    content = {"machine": machine, "ratios": known | ratios}
    RECORDED.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def compare(recorded: dict[str, float], results: Path) -> int:
    """Print each ratio beside the recorded one; 1 if one is too low or missing."""
    _, now = ratios_of(results)
    failed = 0
    for name, was in recorded.items():
        ratio = now.get(name, 0.0)
        low = ratio < ALLOWED * was
        failed += low
        print(f"{name:48} {was:8.3f} -> {ratio:8.3f}  {'TOO LOW' if low else 'ok'}")
    return 1 if failed else 0


def main() -> int:
    """Exit code 1 when a ratio is too low."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help="what bench/run.py wrote")
    parser.add_argument("--record", action="store_true", help="keep these ratios")
    options = parser.parse_args()
    if options.record:
        if options.results is None:
            parser.error("--record needs --results")
        return record(options.results)
    recorded: dict[str, float] = json.loads(RECORDED.read_text())["ratios"]
    if options.results is not None:
        return compare(recorded, options.results)
    scenarios = list(dict.fromkeys(name.partition(":")[0] for name in recorded))
    with tempfile.TemporaryDirectory(prefix="bench-check-") as folder:
        return compare(recorded, measured(scenarios, folder))


if __name__ == "__main__":
    sys.exit(main())
