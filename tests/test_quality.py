"""A bare `difftool train` must give a good model: measured against fresh data, not by eye."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, invoke

N, DIRECTIONS, SEEDS = 10_000, 100, 3


def swiss_roll(n: int, seed: int) -> np.ndarray:
    """Written out here, so that the built-in dataset is tested too."""
    t = 1.5 * math.pi * (1 + 2 * np.random.default_rng(seed).random(n))
    return np.stack([t * np.cos(t), t * np.sin(t)], axis=1) / 10


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    """Sliced Wasserstein-2 distance of two point sets of one size (Bonneel et al., 2015)."""
    angles = np.random.default_rng(seed).uniform(0, math.pi, DIRECTIONS)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.sqrt(np.mean((np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)) ** 2)))


class Yardstick:
    """Distance to fresh swiss rolls, in distances between two of them."""

    def __init__(self) -> None:
        reference = swiss_roll(10**6, 0)
        self.mean, self.std = reference.mean(0), reference.std(0)
        rolls = [(self.scaled(swiss_roll(N, 1000 + i)), self.scaled(swiss_roll(N, 2000 + i))) for i in range(9)]
        self.floor = float(np.median([sliced_wasserstein(a, b, i) for i, (a, b) in enumerate(rolls)]))

    def scaled(self, points: np.ndarray) -> np.ndarray:
        return (points - self.mean) / self.std

    def __call__(self, files: list[Path]) -> float:
        distances = [
            sliced_wasserstein(self.scaled(np.load(file)), self.scaled(swiss_roll(N, 3000 + i)), i)
            for i, file in enumerate(files)
        ]
        return float(np.median(distances)) / self.floor


def walks(cwd: Path, *arguments: str) -> list[Path]:
    """Samples of a few seeds, drawn in this process, whose current folder is `cwd`."""
    files = [cwd / f"{'-'.join(arguments).replace('/', '')}-{seed}.npy" for seed in range(SEEDS)]
    for seed, file in enumerate(files):
        done = invoke("sample", "-n", N, *arguments, "--seed", seed, "--out", file)
        assert done.code == 0, done.err
    return files


@pytest.fixture(scope="module")
def measure() -> Yardstick:
    return Yardstick()


TEN_CALLS = ("--sampler", "dpmpp-2m", "--spacing", "log-snr", "--steps", "10")


@pytest.mark.slow
def test_bare_train_is_a_good_model(run: Run, tmp_path: Path, measure: Yardstick) -> None:
    assert run("train", "--seed", "0", "--preview-every", "0").code == 0
    assert measure(walks(tmp_path, "--sampler", "ddim", "--steps", "50")) <= 2
    assert measure(walks(tmp_path, *TEN_CALLS)) <= 1.5


@pytest.mark.slow
@pytest.mark.usefixtures("run")
def test_the_ideal_denoiser_needs_ten_calls(tmp_path: Path, measure: Yardstick) -> None:
    ideal = ("--oracle", "ideal", "--oracle.items", "10000", "--dataset", "swiss-roll")
    assert measure(walks(tmp_path, *ideal, *TEN_CALLS)) <= 1.5


@pytest.mark.slow
def test_guidance_draws_the_class_asked_for(run: Run, tmp_path: Path) -> None:
    """Threes, as judged by a classifier of the scans that the network learned from."""
    datasets, svm = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.svm")
    from PIL import Image

    digits = datasets.load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")
    for number, (scan, label) in enumerate(zip(pixels, digits.target, strict=True)):
        (tmp_path / "digits" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(scan).save(tmp_path / "digits" / str(label) / f"{number:04d}.png")
    data = ("--dataset", "image-folder", "--dataset.path", "digits", "--dataset.size", "8", "--dataset.channels", "1")
    network = ("--backbone", "unet", "--backbone.dim", "16", "--backbone.dim-mults", "1,2", "--batch-size", "64")
    network = (*network, "--steps", "300", "--lr", "2e-3")
    assert run("train", *data, *network, "--preview-every", "0", "--out", "run").code == 0
    assert run("sample", "run", "--label", "3", "--guidance", "2", "-n", "64", "--out", "threes.npy").code == 0
    threes = np.load(tmp_path / "threes.npy").reshape(64, -1)
    judge = svm.SVC(gamma=0.05, C=10).fit(pixels.reshape(len(pixels), -1) / 255, digits.target)
    assert (judge.predict(threes / 255) == 3).mean() >= 0.95
