"""Sampling without training: an oracle that knows a dataset, with a noise schedule, as a source of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from difftool.components import Dataset, NoiseSchedule, Oracle
from difftool.data.condition import Condition
from difftool.data.facts import DataFacts
from difftool.data.samples import Samples
from difftool.diffusion.estimate import Denoise, Estimate
from difftool.diffusion.schedule import Level, Schedule
from difftool.errors import UsageError, blaming
from difftool.plugins.build import build_schedule, load_samples, loading
from difftool.sampling.model import Model, load_model
from difftool.sampling.source import Autocast, Source
from difftool.specs import OracleSpec

TIMESTEPS = 1000


@dataclass
class OracleSource(Source):
    """An oracle with the data that it knows."""

    oracle: Oracle
    dataset: Dataset
    noise: NoiseSchedule
    samples: Samples
    data: DataFacts
    schedule: Schedule
    device: torch.device
    _denoisers: dict[int | None, Denoise] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        oracle: Oracle,
        dataset: Dataset,
        noise: NoiseSchedule,
        *,
        timesteps: int = TIMESTEPS,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> OracleSource:
        """Load the data, from the seed if they are generated, and show them to the oracle. Raises `DifftoolError`."""
        schedule = build_schedule(noise, timesteps)
        samples = load_samples(dataset, seed).select(["label"])
        with loading(dataset):
            facts = DataFacts.of(samples)
        source = cls(oracle, dataset, noise, samples, facts, schedule, torch.device(device))
        source._of_class(None)  # an oracle that cannot know these data refuses them before any work
        return source

    @property
    def name(self) -> str:
        return f"{self.dataset.name}-{self.oracle.name}"

    @property
    def schedule_name(self) -> str:
        return self.noise.name

    @property
    def description(self) -> str:
        return f"{self.title}, untrained"

    def denoiser(
        self,
        count: int,
        *,
        condition: Condition | None = None,
        autocast: Autocast | None = None,
        gradients: bool = False,
    ) -> Denoise:
        """Return the denoiser of all classes, or of each sample's own."""
        if condition is None or condition.label is None:
            return self._naming(self._of_class(None), gradients)
        labels = condition.label.to(self.device)
        classes = sorted(set(labels.tolist()))
        if len(classes) == 1:
            return self._naming(self._of_class(classes[0]), gradients)
        return self._naming(by_class(labels, {k: self._of_class(k) for k in classes}), gradients)

    def open_other(self, run: Path, weights: str) -> Model:
        return load_model(run, weights, device=self.device)

    def load_samples(self) -> Samples:
        return self.samples

    def _of_class(self, label: int | None) -> Denoise:
        """Return the denoiser of a class. It is made once, since an oracle remembers nothing between trajectories."""
        if label not in self._denoisers:
            spec = OracleSpec(schedule=self.schedule, label=label, device=self.device)
            with blaming(self._what, refusal=UsageError):
                self._denoisers[label] = self.oracle.denoiser(self.samples, spec)
        return self._denoisers[label]

    @property
    def _what(self) -> str:
        return f"oracle {self.oracle.name}, dataset {self.dataset.name}"

    def _naming(self, denoise: Denoise, gradients: bool) -> Denoise:
        """Return a denoiser, with or without gradients, whose errors name the oracle, and not what calls it."""
        what = self._what

        def denoise_or_blame(x: Tensor, level: Level) -> Estimate:
            with blaming(what), torch.set_grad_enabled(gradients):
                return denoise(x, level)

        return denoise_or_blame


def by_class(labels: Tensor, denoisers: Mapping[int, Denoise]) -> Denoise:
    """Return a denoiser that applies the denoiser of each sample's class; labels (B,)."""

    def denoise(x: Tensor, level: Level) -> Estimate:
        x_0, eps = torch.empty_like(x), torch.empty_like(x)
        for label, denoise_class in denoisers.items():
            rows = labels == label
            estimate = denoise_class(x[rows], level)
            x_0[rows], eps[rows] = estimate.x_0, estimate.eps
        return Estimate(x_0, eps)

    return denoise
