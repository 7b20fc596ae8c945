"""DPS is exact for Gaussian data and linear measurements, follows its formula, and works from the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import difftool_inverse
import numpy as np
import pytest
import torch
from difftool_inverse import DPS
from difftool_inverse.measurement import read_measurement
from PIL import Image
from torch import Tensor

import difftool
from difftool import CLEAN, Denoise, Estimate, GuidanceSpec, Level
from difftool.data.scaling import Scaling
from difftool.testing import PluginManager, check_component, invoke

COSINE = difftool.component("schedule", "cosine").build(1000)
LEVEL = COSINE[600]


def spec(shape: tuple[int, ...], scaling: Scaling | None = None) -> GuidanceSpec:
    return GuidanceSpec(
        shape=shape,
        schedule=COSINE,
        count=5,
        decode=lambda x: x,
        scaling=scaling or Scaling((0.0,), (1.0,)),
        device=torch.device("cpu"),
    )


def gaussian(std: float = 1.0) -> Denoise:
    """Return the exact denoiser of Gaussian data of mean 0."""

    def denoise(x: Tensor, level: Level) -> Estimate:
        x_0 = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2) * x
        return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)

    return denoise


def guided(options: DPS, shape: tuple[int, ...], models: Callable[..., Denoise] | None = None) -> Denoise:
    """Return the guided denoiser of a Gaussian."""
    return options.denoiser(models or (lambda **_: gaussian()), spec(shape))  # type: ignore[arg-type]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A measurement of some numbers of (1, 4, 4)."""
    values = random(1, 4, 4, seed=1)
    values[:, 2:, 1:] = math.nan
    np.save(tmp_path / "half.npy", values.numpy())
    return tmp_path / "half.npy"


@pytest.fixture
def means(tmp_path: Path) -> Path:
    """A measurement of the means of squares of (1, 4, 4)."""
    np.save(tmp_path / "means.npy", random(1, 2, 2, seed=1).numpy())
    return tmp_path / "means.npy"


@pytest.mark.parametrize("name", ["half", "means"])
def test_it_is_the_posterior_mean_of_gaussian_data(name: str, request: pytest.FixtureRequest) -> None:
    """E[x_0 | x_t, y], by conditioning the joint Gaussian of x_0, x_t and y on the last two."""
    path = request.getfixturevalue(name)
    measured, x, noise = read_measurement(path, spec((1, 4, 4))), random(5, 1, 4, 4), 0.3
    basis = torch.eye(16).view(16, 1, 4, 4)
    a = measured.of(basis).flatten(1).T[measured.known.flatten()].double()  # the matrix A, without unknown rows
    y = measured.values.flatten()[measured.known.flatten()].double()
    given = torch.cat([LEVEL.alpha * torch.eye(16, dtype=torch.float64), a])
    noises = torch.cat([torch.full((16,), LEVEL.sigma**2), torch.full((len(y),), noise**2)]).double()
    joint = given @ given.T + noises.diag()
    observed = torch.cat([x.flatten(1), y.expand(5, -1)], dim=1)
    expected = torch.linalg.solve(joint, observed.T).T @ given
    found = guided(DPS(measurement=path, noise=noise), (1, 4, 4))(x, LEVEL)
    torch.testing.assert_close(found.x_0.flatten(1), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(LEVEL.alpha * found.x_0 + LEVEL.sigma * found.eps, x)


def test_without_spread_it_is_the_published_gradient(half: Path) -> None:
    """sigma^2/alpha times the gradient of -|y - A x_0|^2 / (2 noise^2), where x_0 = alpha x for data of deviation 1."""
    x, measured = random(5, 1, 4, 4), read_measurement(half, spec((1, 4, 4)))
    estimate = LEVEL.alpha * x
    change = LEVEL.sigma**2 / 0.5**2 * (measured.values - estimate) * measured.known
    found = guided(DPS(measurement=half, noise=0.5, spread=0.0), (1, 4, 4))(x, LEVEL)
    torch.testing.assert_close(found.x_0, estimate + change, rtol=1e-5, atol=1e-6)
    off = guided(DPS(measurement=half, scale=0.0), (1, 4, 4))(x, LEVEL)
    torch.testing.assert_close(off.x_0, estimate)


def test_sampling_ends_in_the_posterior(half: Path) -> None:
    """Known numbers get the mean y/(1 + noise^2) and the variance noise^2/(1 + noise^2), the others 0 and 1."""
    noise, measured = 0.5, read_measurement(half, spec((1, 4, 4)))
    denoise = guided(DPS(measurement=half, noise=noise), (1, 4, 4))
    levels = [COSINE.at(999 * (1 - i / 100) ** 1.5) for i in range(100)]
    x = random(2000, 1, 4, 4)
    for t, s in pairwise([*levels, CLEAN]):
        estimate = denoise(x, t)
        x = (s.alpha * estimate.x_0 + s.sigma * estimate.eps).detach()
    mean, known = measured.values / (1 + noise**2), measured.known
    std = torch.where(known, noise / math.sqrt(1 + noise**2), 1.0)
    assert float((x.mean(0) - mean * known).abs().max()) < 0.1
    assert float((x.std(0) / std - 1).abs().max()) < 0.1


def test_a_worse_model_guides_too(half: Path) -> None:
    """The gradient leads through b + w (m - b), which is linear in x for Gaussian data."""
    asked: list[dict[str, object]] = []

    def models(**words: object) -> Denoise:
        asked.append(words)
        return gaussian(1.0 if "run" not in words else 2.0)

    options = DPS(measurement=half, noise=0.5, spread=0.0, run=Path("worse"), worse_scale=3.0)
    found = guided(options, (1, 4, 4), models)(random(5, 1, 4, 4), LEVEL)
    assert asked == [{"gradients": True}, {"run": Path("worse"), "gradients": True}]
    m, b = LEVEL.alpha, LEVEL.alpha * 4 / (LEVEL.alpha**2 * 4 + LEVEL.sigma**2)
    slope, measured = b + 3 * (m - b), read_measurement(half, spec((1, 4, 4)))
    x = random(5, 1, 4, 4)
    error = (measured.values - slope * x) * measured.known
    expected = slope * x + LEVEL.sigma**2 / LEVEL.alpha * slope * error / 0.5**2
    torch.testing.assert_close(found.x_0, expected, rtol=1e-5, atol=1e-6)


def test_a_level_without_signal_is_left_alone(half: Path) -> None:
    flow = difftool.component("schedule", "flow").build(10)
    x = random(5, 1, 4, 4)
    assert not guided(DPS(measurement=half), (1, 4, 4))(x, flow[9]).x_0.any()


def test_an_image_with_holes(tmp_path: Path) -> None:
    image = np.full((4, 4, 4), 255, dtype=np.uint8)
    image[:2, :, 3] = 0
    Image.fromarray(image).save(tmp_path / "holes.png")
    measured = read_measurement(tmp_path / "holes.png", spec((3, 4, 4), Scaling((127.5,), (127.5,))))
    assert torch.equal(measured.known[0], torch.tensor([[False] * 4] * 2 + [[True] * 4] * 2))
    assert torch.equal(measured.values, measured.known.float())  # white is 1 in model units


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 4, 4), (1, 4, 2), (4,), (1, 8, 8)])
def test_measurements_of_other_shapes_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.zeros(shape))
    with pytest.raises(ValueError, match=r"y\.npy is"):
        read_measurement(tmp_path / "y.npy", spec((1, 4, 4)))


@pytest.fixture
def plugin(plugin_manager: PluginManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not plugin_manager.register(difftool_inverse).problems
    monkeypatch.chdir(tmp_path)


def test_samples_explain_the_measurement(plugin: None) -> None:
    """Of points in four clusters, one coordinate is known, and a worse model guides as well."""
    data = ("--dataset", "gaussian-mixture", "--dataset.components", 4, "--dataset.n", 2000, "--preview-every", 0)
    for name, steps in (("run", 300), ("worse", 60)):
        sizes = ("--backbone.width", 32, "--backbone.depth", 2, "--batch-size", 128, "--steps", steps)
        assert invoke("train", *data, *sizes, "--lr", 5e-3, "--ema", 0.9, "--out", name).code == 0
    known = float(difftool.load("run").load_samples().items[0, 0])
    np.save("y.npy", np.array([known, np.nan]))
    dps = ("--guidance", "dps", "--guidance.measurement", "y.npy", "--guidance.noise", 0.05)
    for more in ((), ("--guidance.run", "worse")):
        outcome = invoke("sample", "run", *dps, *more, "-n", 200, "--steps", 40, "--out", "x.npy", "--overwrite")
        assert outcome.code == 0, outcome.err
        error = np.abs(np.load("x.npy")[:, 0] - known)
        assert np.median(error) < 0.1
    missing = invoke("sample", "run", "--guidance", "dps", "--guidance.measurement", "nothing.npy")
    assert missing.code in (1, 2)
    assert "nothing.npy" in missing.err
    assert "Traceback" not in missing.err


@pytest.mark.parametrize("shape", [(3, 4, 4), (2,)])
def test_laws(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", random(*shape).numpy())
    check_component(DPS(measurement=tmp_path / "y.npy"))
