"""What samples can be drawn from: a trained model, or an oracle that needs no training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.errors import DifftoolError, UsageError
from difftool.options import suggestion

if TYPE_CHECKING:
    from difftool.data.facts import DataFacts
    from difftool.data.samples import Samples
    from difftool.diffusion.estimate import Denoise
    from difftool.diffusion.schedule import Schedule

Autocast = Callable[[], AbstractContextManager[object]]
"""Makes the context that runs a network in lower precision."""


class Source(ABC):
    """A denoiser with the schedule it belongs to and the facts of its data."""

    data: DataFacts
    schedule: Schedule
    device: torch.device

    @property
    @abstractmethod
    def name(self) -> str:
        """Such as `swiss-roll-mlp`."""

    @property
    @abstractmethod
    def schedule_name(self) -> str:
        """The name of the noise schedule."""

    @property
    @abstractmethod
    def description(self) -> str:
        """For a line that says what is sampled: `swiss-roll-mlp, step 6000, ema weights`."""

    @property
    def needs_label(self) -> bool:
        """Whether it knows no samples without a class."""
        return False

    @abstractmethod
    def denoiser(self, count: int, *, label: int | Tensor | None = None, autocast: Autocast | None = None) -> Denoise:
        """A fresh denoiser of `count` samples: of one class, of each its own (count,), or of none.

        It is bare: guidance and clipping are put around it.
        """

    @abstractmethod
    def load_samples(self) -> Samples:
        """The data it stands for, loaded again. Raises `DifftoolError` where they cannot be had here."""

    @property
    def title(self) -> str:
        """For pictures: `swiss-roll-mlp, linear T = 1000`."""
        return f"{self.name}, {self.schedule_name} T = {len(self.schedule)}"

    def label_index(self, label: str | int | None) -> int | None:
        """The index of a class given by name or index. Raises `UsageError`."""
        if label is None:
            return None
        names = self.data.class_names
        if not names:
            raise UsageError(f"--label: {self.name} has no classes")
        if str(label) in names:
            return names.index(str(label))
        if str(label).isdecimal() and int(label) < len(names):
            return int(label)
        raise UsageError(
            f"--label: there is no class {str(label)!r}{suggestion(str(label), names)}; "
            f"the {len(names)} classes are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
        )


REFERENCE = 5_000
"""Data points drawn under samples."""


def reference_points_of(source: Source) -> Tensor | None:
    """Data points of a source in data units, made again; None where they cannot be had here."""
    try:
        return _some_points(source.load_samples())
    except DifftoolError:
        return None


def _some_points(samples: Samples) -> Tensor | None:
    items = samples.items
    return items[:REFERENCE].float().cpu() if isinstance(items, Tensor) and items.ndim == 2 else None
