"""An error of a component names the component, wherever its code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import POINTS, Run
from torch import nn

from difftool import Backbone, BackboneSpec, Samples
from difftool.testing import examine
from difftool_plugins.backbones.mlp import MLP
from difftool_plugins.backbones.networks.mlp import MLPNetwork
from difftool_plugins.datasets.points import SwissRoll
from difftool_plugins.objectives.predictions import EpsPrediction
from difftool_plugins.objectives.timestep_sampling import Uniform
from difftool_plugins.objectives.weightings import Unweighted
from difftool_plugins.oracles.mixture import MixtureDenoiser
from difftool_plugins.samplers.ddim import DDIM
from difftool_plugins.samplers.spacings import Trailing
from difftool_plugins.schedules.variance_preserving import Linear

TRAIN = ("train", *POINTS, "--steps", 2, "--out", "new")
SAMPLE = ("sample", "RUN", "-n", 2, "--steps", 2, "--out", "x.npy")
ORACLE = ("sample", "--oracle", "ideal", "--dataset.n", 50, "-n", 2, "--steps", 2, "--out", "x.npy")


def fail(*_: object, **__: object) -> None:
    raise KeyError("x")


FAULTS: dict[str, tuple[type, str, tuple[object, ...], str]] = {
    "dataset": (SwissRoll, "load", TRAIN, "dataset swiss-roll"),
    "schedule": (Linear, "build", TRAIN, "schedule linear"),
    "prediction": (EpsPrediction, "coefficients", TRAIN, "prediction eps, schedule linear"),
    "input scale of a prediction": (EpsPrediction, "input_scale", TRAIN, "prediction eps"),
    "weighting": (Unweighted, "weight", TRAIN, "weighting none"),
    "timestep sampling": (Uniform, "density", TRAIN, "timestep sampling uniform"),
    "backbone": (MLP, "build", TRAIN, "backbone mlp"),
    "network in training": (MLPNetwork, "forward", TRAIN, "backbone mlp"),
    "network in sampling": (MLPNetwork, "forward", SAMPLE, "backbone mlp"),
    "prediction in sampling": (EpsPrediction, "input_scale", SAMPLE, "prediction eps"),
    "sampler": (DDIM, "sample", SAMPLE, "sampler ddim"),
    "spacing": (Trailing, "levels", SAMPLE, "spacing trailing"),
    "oracle": (MixtureDenoiser, "__init__", ORACLE, "oracle ideal, dataset swiss-roll"),
    "denoiser of an oracle": (MixtureDenoiser, "__call__", ORACLE, "oracle ideal, dataset swiss-roll"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_an_error_names_its_component(what: str, run: Run, points_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a component's method ends in one line that names the component."""
    cls, method, command, name = FAULTS[what]
    monkeypatch.setattr(cls, method, fail)
    outcome = run(*(points_run if word == "RUN" else word for word in command))
    assert outcome.code == 1
    assert f"{name} failed: KeyError: 'x'" in outcome.error
    assert "this is a bug" not in outcome.error


class OddFails:
    """512 points, of which every other one cannot be read: those by which the data are measured can."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, i: int) -> torch.Tensor:
        return fail() if i % 2 else torch.full((2,), float(i))  # type: ignore[return-value]


@pytest.mark.parametrize("where", ["augment", "item", "item in a worker"])
def test_an_error_in_reading_names_the_dataset(where: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a dataset's items or augmentation ends in one line that names the dataset."""
    items: Any = torch.randn(512, 2) if where == "augment" else OddFails()
    augment: Any = fail if where == "augment" else None
    samples = Samples(items=items, shape=(2,), augment=augment, fingerprint="x")
    monkeypatch.setattr(SwissRoll, "load", lambda *_: samples)
    outcome = run(*TRAIN, "--workers", int(where == "item in a worker"))
    assert outcome.code == 1
    assert "dataset swiss-roll failed: KeyError: 'x'" in outcome.error


class NeedsLabel(Backbone, name="needs-label"):
    """A network that is told a class, and refuses to be built without classes."""

    default_dataset = "gaussian-mixture"
    conditions = ("label",)

    def build(self, spec: BackboneSpec) -> nn.Module:
        if spec.classes is None:
            raise ValueError("it needs classes; add --dataset.labels")
        return MLP(width=64, depth=3).build(spec)


def test_a_backbone_may_need_labels() -> None:
    """A backbone that needs classes passes the laws of backbones."""
    failed = {finding.law for finding in examine(NeedsLabel()) if finding.verdict == "failed"}
    assert failed <= {"imports nothing heavy"}  # as this module of tests does
