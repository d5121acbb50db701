"""Invariants over hours of virtual traffic.

``SIMULATION_SEEDS=100 SIMULATION_HOURS=6`` makes it the long run; the default is CI-sized.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from tests.unit.routing.simulation import Simulation

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "10"))
HOURS = float(os.environ.get("SIMULATION_HOURS", "1"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_invariant_breaks(seed):
    simulation = Simulation(seed)
    simulation.run(HOURS)
    assert simulation.broken == []
    answered = simulation.outcomes[200] / simulation.outcomes.total()
    assert answered > 0.5, simulation.outcomes


def test_the_traffic_meets_every_kind_of_trouble():
    seen = Counter()
    for seed in range(3):
        simulation = Simulation(seed)
        simulation.run(1)
        seen += simulation.seen
    for event in ("attempt 3", "half_open", "retry", "rate_limited", "timeout", "connect"):
        assert seen[event], seen


def test_the_same_seed_gives_the_same_trace_whatever_the_hash_seed():
    here = Simulation(4).run(0.2)
    assert Simulation(4).run(0.2) == here
    assert Simulation(5).run(0.2) != here
    command = [sys.executable, "-m", "tests.unit.routing.simulation", "4", "0.2"]
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here
