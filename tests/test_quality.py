"""A bare `difftool train` must give a good model: measured against fresh data, not by eye."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

N, DIRECTIONS = 10_000, 200


def swiss_roll(n: int, seed: int) -> np.ndarray:
    """Written out here, so that the built-in dataset is tested too."""
    t = 1.5 * math.pi * (1 + 2 * np.random.default_rng(seed).random(n))
    return np.stack([t * np.cos(t), t * np.sin(t)], axis=1) / 10


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    """Sliced Wasserstein-2 distance of two point sets of one size (Bonneel et al., 2015)."""
    angles = np.random.default_rng(seed).uniform(0, math.pi, DIRECTIONS)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.sqrt(np.mean((np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)) ** 2)))


@pytest.mark.slow
def test_bare_train_is_a_good_model(tmp_path: Path) -> None:
    reference = swiss_roll(10**6, 0)
    mean, std = reference.mean(0), reference.std(0)

    def scaled(points: np.ndarray) -> np.ndarray:
        return (points - mean) / std

    floor = float(
        np.median(
            [sliced_wasserstein(scaled(swiss_roll(N, 1000 + i)), scaled(swiss_roll(N, 2000 + i)), i) for i in range(25)]
        )
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def difftool(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "difftool", *arguments],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
        )

    difftool("train", "--seed", "0", "--preview-every", "0")
    distances = []
    for seed in range(5):
        walk = ("--sampler", "ddim", "--steps", "50", "--seed", str(seed))
        difftool("sample", "-n", str(N), *walk, "--out", f"{seed}.npy", "--out", f"{seed}.png")
        samples = np.load(tmp_path / f"{seed}.npy")
        distances.append(sliced_wasserstein(scaled(samples), scaled(swiss_roll(N, 3000 + seed)), seed))
    assert np.median(distances) <= 2 * floor, (distances, floor)
