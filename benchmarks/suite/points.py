"""A small network on points.

A multilayer perceptron of 4 hidden layers of 128 learns the swiss roll: 10,000 points, 50 noise levels, batches of 128,
one thread. Here a loop can easily take longer than the network that it trains.
"""

from __future__ import annotations

from benchmarks import ours, tutorial
from benchmarks.findings import Effort, Findings
from benchmarks.tutorial import Goals

DOCUMENT: ours.Document = {
    "dataset": {"name": "swiss-roll", "n": 10_000},
    "backbone": {"name": "mlp", "width": 128, "depth": 4, "activation": "relu", "residual": False, "time": "plain"},
    "training": {**tutorial.SETTINGS, "timesteps": 50},
}

GOALS = Goals(eager=1.45, compiled=2.0, of_network=0.97)


def run(effort: Effort) -> Findings:
    return tutorial.compare(ours.recipe(DOCUMENT), effort, depth=4, statistics=False, goals=GOALS)
