"""How good a bare `difftool train` is.

All defaults, so the swiss roll: trained on one thread from three seeds, then 10,000 samples of each, by default and in
ten network calls. The samples are compared with as many fresh points that the network never saw, by two measures, in
standard deviations of the data: the sliced Wasserstein-2 distance between the two crowds (Bonneel et al., 2015), and
the mean distance of a sample to the curve that all data lie on. Two sets of fresh points are some way apart themselves:
who is no further off than the furthest of 25 such pairs cannot be told from data. The command takes longer than its
training, since it starts, draws four pictures and saves.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.findings import Comparison, Effort, Findings, Table, at_most
from difftool.runs.folder import RunFolder

Points = NDArray[np.floating[Any]]
COUNT, DIRECTIONS, PAIRS = 10_000, 200, 25
TRAINING, COMMAND, FLOOR = "training", "the whole command", "fresh points"
SAMPLERS: dict[str, tuple[str, ...]] = {
    "by default": (),
    "dpmpp-2m, 10 calls": ("--sampler", "dpmpp-2m", "--spacing", "log-snr", "--steps", "10"),
}


def run(effort: Effort) -> Findings:
    roll = Roll()
    floor = [roll.distance(roll.fresh(2 * i), roll.fresh(2 * i + 1), i) for i in range(PAIRS)]
    seconds: dict[str, list[float]] = {TRAINING: [], COMMAND: []}
    samples: dict[str, list[Points]] = {name: [] for name in SAMPLERS}
    with tempfile.TemporaryDirectory() as place:
        for seed in range(effort(3, 1)):
            run_folder = Path(place) / f"seed-{seed}"
            seconds[COMMAND].append(trained(run_folder, seed, effort))
            seconds[TRAINING].append(float(RunFolder(run_folder).read_metrics()[-1]["elapsed"]))
            for number, (name, options) in enumerate(SAMPLERS.items()):
                samples[name].append(roll.scaled(sampled(run_folder, options, Path(place) / f"{seed}-{number}.npy")))
    return Findings([distances(roll, floor, samples), to_curve(roll, samples), training(seconds)])


def distances(roll: Roll, floor: Sequence[float], samples: dict[str, list[Points]]) -> Table:
    """The goal is the widest distance between two sets of data."""
    values = {
        name: [roll.distance(points, roll.fresh(1000 + i), i) for i, points in enumerate(sets)]
        for name, sets in samples.items()
    }
    goal = at_most(max(floor))
    comparisons = [Comparison(FLOOR), *(Comparison(name, None, goal) for name in values)]
    return Table("Sliced Wasserstein-2", "standard deviations", {FLOOR: floor, **values}, comparisons)


def to_curve(roll: Roll, samples: dict[str, list[Points]]) -> Table:
    values = {name: [roll.off_curve(points) for points in sets] for name, sets in samples.items()}
    values = {FLOOR: [roll.off_curve(roll.fresh(i)) for i in range(5)], **values}
    return Table("Mean distance to the curve", "standard deviations", values, [Comparison(name) for name in values])


def training(seconds: dict[str, list[float]]) -> Table:
    comparisons = [Comparison(TRAINING, None, at_most(15.0)), Comparison(COMMAND)]
    return Table("A bare difftool train", "s", seconds, comparisons)


class Roll:
    """The swiss roll, written out once more, so that the built-in dataset is judged too."""

    def __init__(self) -> None:
        reference = points_at(np.random.default_rng(0).random(10**6))
        self.mean, self.std = reference.mean(0), reference.std(0)
        self.curve = self.scaled(points_at(np.linspace(0, 1, 20_000)))

    def scaled(self, points: Points) -> Points:
        """With mean 0 and standard deviation 1 in each coordinate."""
        return np.asarray((points - self.mean) / self.std)

    def fresh(self, seed: int) -> Points:
        return self.scaled(points_at(np.random.default_rng(1_000_000 + seed).random(COUNT)))

    @staticmethod
    def distance(a: Points, b: Points, seed: int) -> float:
        """Sliced Wasserstein-2 between sets of one size."""
        angles = np.random.default_rng(seed).uniform(0, math.pi, DIRECTIONS)
        directions = np.stack([np.cos(angles), np.sin(angles)])
        return float(np.sqrt(np.mean((np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)) ** 2)))

    def off_curve(self, points: Points, block: int = 500) -> float:
        """Mean distance to the nearest point of the curve, which is known in small pieces."""
        total = 0.0
        squares = (self.curve**2).sum(1)
        for start in range(0, len(points), block):
            some = points[start : start + block]
            nearest = (squares - 2 * some @ self.curve.T).min(1) + (some**2).sum(1)
            total += float(np.sqrt(np.maximum(nearest, 0.0)).sum())
        return total / len(points)


def points_at(u: Points) -> Points:
    t = 1.5 * math.pi * (1 + 2 * u)
    return np.stack([t * np.cos(t), t * np.sin(t)], axis=1) / 10


def trained(folder: Path, seed: int, effort: Effort) -> float:
    """Seconds of a bare `difftool train`; a quick one is cut short."""
    less = ("--steps", "300") if effort.quick else ()
    start = time.perf_counter()
    difftool("train", "--seed", str(seed), "--out", str(folder), *less)
    return time.perf_counter() - start


def sampled(run_folder: Path, options: Sequence[str], file: Path) -> Points:
    difftool("sample", str(run_folder), "-n", str(COUNT), *options, "--out", str(file))
    return np.asarray(np.load(file), dtype=np.float64)


def difftool(*words: str) -> None:
    """A command in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "difftool", *words], env=environment, check=True, capture_output=True)
