"""How cost grows.

Steps of training for growing batches, images and datasets, and `difftool sample` for growing numbers of samples: each
size beside the smallest, on one thread. What grows less than in proportion to its size gets cheaper by the item. A step
of training must not depend on how many items there are to choose from.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import ours
from benchmarks.findings import Comparison, Effort, Findings, Goal, Table, at_most
from benchmarks.measuring import Contest, Steps
from difftool import Dataset, DatasetContext, Samples, devices, option
from difftool.data.samples import PIXELS
from difftool.runs.recipe import build_recipe

PEAK = Path(__file__).resolve().parents[1] / "peak.py"


def run(effort: Effort) -> Findings:
    with devices.threads(1):
        tables = [batches(effort), image_sizes(effort), datasets(effort)]
    return Findings([*tables, *samples(effort)])


def grown(
    title: str, unit: str, values: Mapping[str, list[float]], sizes: Mapping[str, float], goal: Goal | None = None
) -> Table:
    """Each size beside the smallest, which comes first; a goal is for the largest."""
    smallest, *others = values
    comparisons = [Comparison(name, smallest, goal if name == others[-1] else None) for name in others]
    return Table(title, unit, values, comparisons, sizes=sizes)


def steps_of(
    title: str,
    start: Callable[[int], Steps],
    sizes: Mapping[str, int],
    *,
    steps: int,
    rounds: int,
    goal: Goal | None = None,
) -> Table:
    """A table of training steps: one contender for each size."""
    entries = Contest()
    for name, size in sizes.items():
        entries.add(name, partial(start, size))
    measured = entries.run(warmup=3, steps=steps, rounds=rounds)
    return grown(title, "us a step", measured.times, sizes, goal)


def batches(effort: Effort) -> Table:
    sizes = {f"batch of {size:,}": size for size in chosen((32, 128, 512, 2048, 8192), effort)}
    return steps_of("Batch size, MLP", mlp, sizes, steps=effort(20, 2), rounds=effort(15, 2))


def image_sizes(effort: Effort) -> Table:
    sizes = {f"{size}x{size} pixels": size**2 for size in chosen((16, 24, 32, 48, 64), effort)}
    return steps_of("Pixels of an image, U-Net, batches of 4", unet, sizes, steps=effort(2, 1), rounds=effort(10, 2))


def datasets(effort: Effort) -> Table:
    sizes = {f"{size:,} images": size for size in chosen((10**3, 10**4, 10**5, 10**6), effort)}
    title, steps, rounds = "Images in the dataset, read by index", effort(50, 5), effort(15, 2)
    return steps_of(title, by_index, sizes, steps=steps, rounds=rounds, goal=at_most(1.05))


def chosen(sizes: tuple[int, ...], effort: Effort) -> tuple[int, ...]:
    """All sizes, or the first, the second and no more."""
    return sizes[: effort(len(sizes), 2)]


# ── training ────────────────────────────────────────────────────────────────────────────────────


def mlp(batch_size: int) -> Steps:
    return ours.loop(ours.recipe({"backbone": {"name": "mlp"}}, batch_size=batch_size))


def unet(pixels: int) -> Steps:
    dataset = {"name": "gradients", "n": 100, "size": (math.isqrt(pixels),)}
    return ours.loop(ours.recipe({"dataset": dataset, "backbone": {"name": "unet"}}, batch_size=4))


@dataclass(frozen=True)
class Made:
    """Images of one colour, made when they are asked for: a map-style source of any length."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Tensor:
        return torch.full((3, 8, 8), i % 256, dtype=torch.uint8)


class ByIndex(Dataset, name="by-index"):
    """Images that are read one by one, as those of a folder are."""

    n: int = option(default=1000, ge=1, help="number of images")

    def load(self, context: DatasetContext) -> Samples:
        return Samples(items=Made(self.n), shape=self.item_shape(), **PIXELS)

    def item_shape(self) -> tuple[int, ...]:
        return (3, 8, 8)


def by_index(count: int) -> Steps:
    """An MLP on so many images. No worker processes read them: they would hide what reading costs."""
    settings = {**ours.ENDLESS, "batch_size": 128, "workers": 0}
    recipe = build_recipe({"backbone": {"name": "mlp"}, "training": settings}, parts={"dataset": ByIndex(n=count)})
    return ours.loop(recipe)


# ── sampling ────────────────────────────────────────────────────────────────────────────────────


def samples(effort: Effort) -> list[Table]:
    """Seconds and peak memory of `difftool sample`, a process each."""
    sizes = {f"{size:,} samples": size for size in chosen((10**2, 10**3, 10**4, 10**5, 10**6), effort)}
    seconds: dict[str, list[float]] = {name: [] for name in sizes}
    memory: dict[str, list[float]] = {name: [] for name in sizes}
    with tempfile.TemporaryDirectory() as place:
        run_folder = Path(place) / "run"
        child("train", "--steps", "200", "--preview-every", "0", "--out", str(run_folder))
        for _ in range(effort(3, 1)):
            for name, size in sizes.items():
                out = str(Path(place) / "samples.npy")
                words = ("sample", str(run_folder), "-n", str(size), "--steps", "10", "--overwrite", "--out", out)
                taken, peak = child(*words)
                seconds[name].append(taken)
                memory[name].append(peak)
    return [
        grown("Samples, time of the whole command", "s", seconds, sizes),
        grown("Samples, peak memory", "MiB", memory, sizes),
    ]


def child(*words: str) -> tuple[float, float]:
    """(seconds, peak resident memory in MiB) of a difftool command in a process of its own, on one thread."""
    command = [sys.executable, str(PEAK), sys.executable, "-m", "difftool", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    taken = json.loads(done.stdout)
    return taken["seconds"], taken["peak"]
