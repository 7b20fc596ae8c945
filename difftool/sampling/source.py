"""Sources of samples: a trained model, or an oracle that needs no training."""

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
"""Returns the context in which a network runs in lower precision."""


class Source(ABC):
    """A denoiser with its schedule and the facts of its data."""

    data: DataFacts
    schedule: Schedule
    device: torch.device

    @property
    @abstractmethod
    def name(self) -> str:
        """A name such as `swiss-roll-mlp`."""

    @property
    @abstractmethod
    def schedule_name(self) -> str:
        """The name of the noise schedule."""

    @property
    @abstractmethod
    def description(self) -> str:
        """A longer name, such as `swiss-roll-mlp, step 6000, ema weights`."""

    @property
    def needs_label(self) -> bool:
        """True if every sample needs a class."""
        return False

    @abstractmethod
    def denoiser(self, count: int, *, label: int | Tensor | None = None, autocast: Autocast | None = None) -> Denoise:
        """Return a new denoiser of `count` samples: all of one class, each of its own (count,), or without a class.

        It is bare: the caller puts guidance and clipping around it.
        """

    @abstractmethod
    def load_samples(self) -> Samples:
        """Load the data that the source stands for. Raises `DifftoolError` if they are not available here."""

    @property
    def title(self) -> str:
        """A title for pictures: `swiss-roll-mlp, linear T = 1000`."""
        return f"{self.name}, {self.schedule_name} T = {len(self.schedule)}"

    def label_index(self, label: str | int | None) -> int | None:
        """Return the index of a class, given by name or index. Raises `UsageError` for an unknown one."""
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
"""Number of data points drawn under samples."""


def reference_points_of(source: Source) -> Tensor | None:
    """Load data points of a source (N, D), in data units; None for other data, or if they are not available here."""
    try:
        return reference_points(source.load_samples())
    except DifftoolError:
        return None


def reference_points(samples: Samples) -> Tensor | None:
    """Return the first data points (N, D), in data units; None for other data."""
    items = samples.items
    return items[:REFERENCE] if isinstance(items, Tensor) and samples.form == "points" else None
