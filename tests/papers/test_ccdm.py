"""ccdm.py: degrees are read as cosine and sine, conditions move by at most kappa, and unseen angles are learnt."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import Run

from difftool import Condition, Pairing
from difftool.scripts import Script
from difftool.testing import check_component

PAPERS = Path(__file__).resolve().parents[2] / "examples" / "papers"
ccdm = Script.read(PAPERS / "ccdm.py").load()


def pairing(count: int) -> Pairing:
    """Items with vectors of ones, of which the first is hidden."""
    hidden = torch.arange(count) == 0
    cond = Condition(vector=torch.ones(count, 2), hidden=torch.zeros(count, dtype=torch.bool)).hide(hidden)
    x, t, random = torch.zeros(count, 2), torch.zeros(count, dtype=torch.int64), torch.Generator().manual_seed(0)
    return Pairing(x_0=x, eps=x, t=t, cond=cond, generator=random)


def test_vectors_move_uniformly_up_to_kappa_and_hidden_ones_stay() -> None:
    paired = ccdm.Vicinal(kappa=0.3).pair(pairing(20_000))
    change = (paired.cond.vector - 1)[1:]
    assert change.abs().max() <= 0.3
    assert abs(float(change.std()) - 0.3 / math.sqrt(3)) < 0.002  # of a uniform distribution
    assert not paired.cond.vector[0].any()
    assert torch.equal(ccdm.Vicinal(kappa=0).pair(pairing(5)).cond.vector, pairing(5).cond.vector)  # type: ignore[union-attr]


def test_components_keep_the_laws() -> None:
    check_component(ccdm.Compass(n=500))


@pytest.mark.slow
def test_an_angle_between_those_of_the_data(run: Run) -> None:
    """Samples at 45 degrees lie there, with the deviation of the data, though the data have multiples of 30 alone."""
    script = ("--plugin", PAPERS / "ccdm.py")
    data = ("--dataset", "compass", "--dataset.angles", 12, "--loss", "vicinal", "--loss.kappa", 0.4)
    sizes = ("--backbone.width", 64, "--steps", 1500, "--preview-every", 0, "--condition-dropout", 0.1)
    outcome = run("train", *script, *data, *sizes, "--out", "run")
    assert outcome.code == 0, outcome.err
    outcome = run("sample", "run", *script, "--vector", "45deg", "-n", 1000, "--steps", 20, "--out", "x.npy")
    assert outcome.code == 0, outcome.err
    import numpy as np

    samples = torch.from_numpy(np.load("x.npy"))
    degrees = torch.atan2(samples[:, 1], samples[:, 0]).rad2deg()
    assert abs(float(degrees.median()) - 45) < 4
    assert float((degrees - 45).abs().quantile(0.9)) < 20
    assert abs(float(samples.norm(dim=1).mean()) - 1) < 0.05
