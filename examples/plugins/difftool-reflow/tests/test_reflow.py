"""Pairs are both ends of a model's paths, straightness has a closed form, and reflow makes paths straighter."""

from __future__ import annotations

import json
import math
from pathlib import Path

import difftool_reflow
import numpy as np
import pytest
import torch
from difftool_reflow import DrawPairs, Pairs, Straightness
from difftool_reflow.paths import levels_of, path, straightness
from torch import Tensor

import difftool
from difftool import Estimate, Level
from difftool.testing import PluginManager, check_component, invoke

FLOW = difftool.component("schedule", "flow").build(1000)
SMALL = ("--dataset.n", 300, "--backbone.width", 16, "--backbone.depth", 1, "--batch-size", 32, "--preview-every", 0)


@pytest.fixture
def plugin(plugin_manager: PluginManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not plugin_manager.register(difftool_reflow).problems
    monkeypatch.chdir(tmp_path)


def done(*words: object) -> str:
    outcome = invoke(*words)
    assert outcome.code == 0, outcome.err
    return outcome.out


def gaussian(std: float) -> object:
    """Return the exact denoiser of Gaussian data of this standard deviation."""

    def denoise(x: Tensor, level: Level) -> Estimate:
        x_0 = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2) * x
        return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)

    return denoise


def noise(count: int) -> Tensor:
    return torch.randn(count, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("std", [1.0, 0.2])
def test_straightness_of_a_gaussian_has_a_closed_form(std: float) -> None:
    """Along a path, z_u = z_1 s(u) with s(u)^2 = (1 - u)^2 std^2 + u^2, so S is the mean of ((1 - std) - s'(u))^2."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    s = ((1 - u).square() * std**2 + u.square()).sqrt()
    expected = float(((1 - std) - (u - (1 - u) * std**2) / s).square().mean())
    if std == 1.0:
        assert math.isclose(expected, 2 - math.pi / 2, abs_tol=1e-8)
    found = straightness(gaussian(std), noise(100), FLOW, 200)
    assert math.isclose(found, expected * float(noise(100).square().mean()), rel_tol=1e-3)


def test_paths_to_one_point_are_straight() -> None:
    assert straightness(gaussian(0.0), noise(100), FLOW, 50) < 1e-10


def test_straightness_is_that_of_a_flow() -> None:
    cosine = difftool.component("schedule", "cosine").build(1000)
    with pytest.raises(difftool.UsageError, match="alpha \\+ sigma = 1"):
        straightness(gaussian(1.0), noise(10), cosine, 5)


def test_a_path_ends_where_the_exact_flow_does() -> None:
    """The flow of Gaussian data multiplies the noise by their standard deviation."""
    heun = difftool.component("sampler", "heun")
    *_, last = path(gaussian(0.3), noise(100).double(), levels_of(FLOW, 100), heun)
    torch.testing.assert_close(last.x, 0.3 * noise(100).double(), rtol=0.02, atol=0.01)


def test_pairs_belong_together(plugin: None) -> None:
    """From the noise of a file, the sampler of the command line comes to its items; a longer file begins with them."""
    done("train", *SMALL, "--schedule", "flow", "--steps", 20, "--out", "run")
    assert done("pairs", "run", "-n", 7, "--steps", 5, "--batch-size", 3, "--out", "pairs.npz") == "pairs.npz\n"
    model, samples = difftool.load("run"), Pairs(path=Path("pairs.npz")).load(difftool.DatasetContext())
    assert samples.scaling == model.data.scaling
    eps = samples.take_noise(range(7))
    *_, last = path(model.denoiser(7), eps, levels_of(model.schedule, 5), difftool.component("sampler", "heun"))
    torch.testing.assert_close(model.data.scaling.to_data(last.x), samples.items, rtol=1e-4, atol=1e-4)
    done("pairs", "run", "-n", 9, "--steps", 5, "--out", "more.npz")
    assert np.array_equal(np.load("more.npz")["noise"][:7], np.load("pairs.npz")["noise"])
    check_component(Pairs(path=Path("pairs.npz").absolute()))


def test_images_stay_images(plugin: None) -> None:
    network = ("--backbone", "unet", "--backbone.dim", 8, "--backbone.dim-mults", "1,2", "--backbone.groups", 4)
    done("train", *network, "--dataset.n", 16, "--dataset.size", 8, "--schedule", "flow", "--steps", 2, "--out", "run")
    done("pairs", "run", "-n", 4, "--steps", 2)
    samples = Pairs(path=Path("pairs.npz")).load(difftool.DatasetContext())
    assert samples.is_image
    assert samples.bounds == (-1.0, 1.0)
    assert 0 <= float(samples.items.min()) < float(samples.items.max()) <= 255


def test_reflow_makes_paths_straighter(plugin: None) -> None:
    """Pairs of the exact flow of a mixture, learnt anew, give paths that are nearly straight."""
    oracle = ("--oracle", "closed-form", "--dataset", "gaussian-mixture", "--schedule", "flow")
    done("pairs", *oracle, "-n", 4000, "--steps", 20, "--out", "pairs.npz")
    network = ("--backbone.width", 64, "--backbone.depth", 3, "--batch-size", 256, "--preview-every", 0)
    reflow = ("--dataset", "pairs", "--dataset.path", "pairs.npz", "--schedule", "flow")
    done("train", *reflow, *network, "--steps", 800, "--lr", 5e-3, "--out", "reflow")
    before, after = (
        json.loads(done("straightness", *words, "-n", 500, "--steps", 50))["straightness"]
        for words in (oracle, ("reflow",))
    )
    assert before > 0.01
    assert after < 0.2 * before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--sampler", "ddpm"), 2, "--sampler: ddpm draws noise"),
        (("--out", "pairs.png"), 2, "npz"),
    ],
)
def test_pairs_that_cannot_be_drawn(plugin: None, words: tuple[str, ...], code: int, message: str) -> None:
    done("train", *SMALL, "--steps", 2, "--out", "run")
    outcome = invoke("pairs", "run", "-n", 3, "--steps", 2, *words)
    assert outcome.code == code
    assert message in outcome.err


def test_other_files_are_refused(plugin: None, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", items=np.zeros(3))
    (tmp_path / "text.npz").write_text("no pairs")
    for name in ("other.npz", "text.npz"):
        outcome = invoke("train", "--dataset", "pairs", "--dataset.path", name, "--steps", 1)
        assert f"path: {name} is no file of pairs" in outcome.err


def test_commands_keep_the_laws() -> None:
    for command in (DrawPairs, Straightness):
        check_component(command)
