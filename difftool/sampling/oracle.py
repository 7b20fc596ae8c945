"""Sampling without training: an oracle of a dataset, with a noise schedule, as a source."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from difftool.components import Dataset, NoiseSchedule, Oracle
from difftool.data.facts import DataFacts
from difftool.data.samples import Samples
from difftool.diffusion.estimate import Denoise, Estimate
from difftool.diffusion.schedule import Level, Schedule
from difftool.errors import UsageError, blaming
from difftool.plugins.build import build_schedule, load_samples, loading
from difftool.sampling.source import Autocast, Source

TIMESTEPS = 1000


@dataclass
class OracleSource(Source):
    """An oracle with the data it knows."""

    oracle: Oracle
    dataset: Dataset
    noise: NoiseSchedule
    samples: Samples
    data: DataFacts
    schedule: Schedule
    device: torch.device
    _known: dict[int | None, Denoise] = field(default_factory=dict, repr=False)

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
        """Load the data (generated ones from the seed) and let the oracle see them. Raises `DifftoolError`."""
        schedule = build_schedule(noise, timesteps)
        samples = load_samples(dataset, seed)
        with loading(dataset):
            facts = DataFacts.of(samples)
        source = cls(oracle, dataset, noise, samples, facts, schedule, torch.device(device))
        source._of_class(None)  # an oracle that cannot know these data says so before any work
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

    def denoiser(self, count: int, *, label: int | Tensor | None = None, autocast: Autocast | None = None) -> Denoise:
        if not isinstance(label, Tensor):
            return self._of_class(label)
        labels = label.to(self.device).expand(count)
        return ByClass(labels, {k: self._of_class(k) for k in sorted(set(labels.tolist()))})

    def load_samples(self) -> Samples:
        return self.samples

    def _of_class(self, label: int | None) -> Denoise:
        """Made once: an oracle remembers nothing between walks."""
        if label not in self._known:
            with blaming(f"oracle {self.oracle.name}, dataset {self.dataset.name}", refusal=UsageError):
                self._known[label] = self.oracle.denoiser(self.samples, label, self.device)
        return self._known[label]


class ByClass:
    """Asks the denoiser of each sample's own class."""

    def __init__(self, labels: Tensor, denoisers: dict[int, Denoise]) -> None:
        self.labels, self.denoisers = labels, denoisers

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        x_0, eps = torch.empty_like(x), torch.empty_like(x)
        for label, denoise in self.denoisers.items():
            own = self.labels == label
            estimate = denoise(x[own], level)
            x_0[own], eps[own] = estimate.x_0, estimate.eps
        return Estimate(x_0, eps)
