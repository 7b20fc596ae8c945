"""A tiny network on tiny images.

A multilayer perceptron of one hidden layer of 128 learns colour gradients of 3x5x5: 50,000 images, 100 noise levels,
batches of 128, one thread. The tutorial also keeps mean and variance of the network's input and answer in each step.
"""

from __future__ import annotations

from benchmarks import ours, tutorial
from benchmarks.findings import Effort, Findings
from benchmarks.tutorial import Goals

DOCUMENT: ours.Document = {
    "dataset": {"name": "gradients", "n": 50_000, "size": (5,)},
    "backbone": {"name": "mlp", "width": 128, "depth": 1, "activation": "relu", "time": "plain"},
    "training": {**tutorial.SETTINGS, "timesteps": 100},
}

GOALS = Goals(eager=1.8, compiled=2.8, of_network=0.88)


def run(effort: Effort) -> Findings:
    return tutorial.compare(ours.recipe(DOCUMENT), effort, depth=1, statistics=True, goals=GOALS)
