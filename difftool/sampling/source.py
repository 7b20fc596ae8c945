"""Sources of samples: a trained model, or an oracle that needs no training."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difftool.data.facts import classes_text
from difftool.errors import DifftoolError, UsageError
from difftool.options import number_in, suggestion

if TYPE_CHECKING:
    from difftool.data.condition import Condition
    from difftool.data.facts import DataFacts
    from difftool.data.latents import LatentSpace
    from difftool.data.samples import Samples
    from difftool.diffusion.estimate import Denoise
    from difftool.diffusion.schedule import Level, Schedule
    from difftool.settings import Precision

Autocast = Callable[[], AbstractContextManager[object]]
"""Returns the context in which a network runs in lower precision."""


class Source(ABC):
    """A denoiser with its schedule and the facts of its data."""

    data: DataFacts
    """The facts of the data, as the user sees them."""
    schedule: Schedule
    device: torch.device
    latents: LatentSpace | None = None
    """The latents that denoiser and sampler work in, or None if they work on the data themselves."""

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
    def space(self) -> DataFacts:
        """The facts of what denoiser and sampler work on: the data, or latents in their place."""
        return self.data if self.latents is None else self.latents.facts

    def encode(self, x: Tensor) -> Tensor:
        """Return items (B, *shape) in model units as denoiser and sampler see them: (B, *space.shape)."""
        return x if self.latents is None else self.latents.encode(x)

    def decode(self, x: Tensor) -> Tensor:
        """Return what the sampler made (B, *space.shape) as items (B, *shape) in model units."""
        return x if self.latents is None else self.latents.decode(x)

    def model_condition(self, raw: Condition | None) -> Condition | None:
        """Return a raw condition in the units of the network, its image encoded as items are."""
        condition = self.data.model_condition(raw)
        return (
            condition
            if self.latents is None or condition is None
            else self.latents.condition(condition.to(self.device))
        )

    @property
    def needs_condition(self) -> bool:
        """True if every sample needs all conditions of the data."""
        return False

    @property
    def precision(self) -> Precision:
        """The number format in which the network was trained."""
        return "fp32"

    @property
    def held_out(self) -> int:
        """The number of items of the data that were kept out of training."""
        return 0

    @property
    def evaluated(self) -> dict[str, Any]:
        """The facts that tell which model an evaluation is of, as plain values."""
        return {"step": 0}

    def read_condition(self, field: str, text: str) -> Tensor | None:
        """Return a condition that the user names, as its data read it; None if they have no way of their own."""
        return None

    @abstractmethod
    def denoiser(
        self,
        count: int,
        *,
        condition: Condition | None = None,
        autocast: Autocast | None = None,
        gradients: bool = False,
    ) -> Denoise:
        """Return a new denoiser of `count` samples under their conditions, or without any.

        It is bare: the caller puts guidance and clipping around it. With `gradients`, estimates keep the graph that
        leads back to x.
        """

    def open_other(self, run: Path, weights: str) -> Source:
        """Open another run or model file on the same device. Raises `DifftoolError`."""
        raise UsageError(f"{self.name} cannot be guided by {run}")

    @cached_property
    def _others(self) -> dict[tuple[Path, str], Source]:
        """The other runs that guidances have opened, by path and weights."""
        return {}

    def other(self, run: Path, weights: str, check: Callable[[Source, Source], None]) -> Source:
        """Return another run or model file, which is opened and checked once. Raises `DifftoolError`."""
        if (run, weights) not in self._others:
            other = self.open_other(run, weights)
            check(self, other)
            self._others[run, weights] = other
        return self._others[run, weights]

    def step_gain(self, t: Level, s: Level) -> float:
        """Return the factor by which a step from t to s multiplies errors of a network; 0 for one without errors."""
        return 0.0

    @abstractmethod
    def load_samples(self) -> Samples:
        """Load the data that the source stands for. Raises `DifftoolError` if they are not available here."""

    @property
    def title(self) -> str:
        """A title for pictures: `swiss-roll-mlp, linear T = 1000`."""
        return f"{self.name}, {self.schedule_name} T = {len(self.schedule)}"

    def of_class(self, label: int | None) -> str:
        """Return words such as ` of class cat`, or an empty text without a class."""
        return "" if label is None else f" of class {self.data.class_names[label]}"

    def label_index(self, label: str | int | None) -> int | None:
        """Return the index of a class, given by name, or by index if no name is a number.

        Raises `UsageError` for an unknown one.
        """
        if label is None:
            return None
        names = self.data.class_names
        if not names:
            raise UsageError(f"--label: {self.name} has no classes")
        text = str(label)
        if text in names:
            return names.index(text)
        numeric = [name for name in names if number_in(name) is not None]
        if not numeric and re.fullmatch(r"[0-9]{1,9}", text) and int(text) < len(names):
            return int(text)
        similar = nearest(text, numeric) or suggestion(text, names)
        raise UsageError(f"--label: there is no class {text!r}{similar}; there are {classes_text(names, LISTED)}")

    def label_indices(self, label: str | Sequence[str | int]) -> list[int]:
        """Return the indices of several classes: a list of them, names joined by commas, or `all`.

        A text that is the name of a class stands for that class, whatever it holds. Raises `UsageError` for an unknown
        class, and for a text that names one twice.
        """
        names = self.data.class_names
        if not isinstance(label, str):
            if len(label) == 0:
                raise UsageError("--label: must name at least one class")
            return [index for one in label if (index := self.label_index(one)) is not None]
        if label == ALL and names and ALL not in names:
            return list(range(len(names)))
        indices = [index for word in split_names(label, names) if (index := self.label_index(word)) is not None]
        twice = next((index for i, index in enumerate(indices) if index in indices[:i]), None)
        if twice is not None:
            raise UsageError(f"--label: names class {names[twice]!r} twice")
        return indices


def split_names(text: str, names: Sequence[str]) -> list[str]:
    """Split a text at its commas, but not at those within a name that stands there whole.

    Spaces around a word are left out unless a name has them.
    """
    words, known, found = text.split(","), set(names), []
    longest, start = max((name.count(",") for name in names), default=0) + 1, 0
    while start < len(words):
        joined = (",".join(words[start : start + count]) for count in range(min(longest, len(words) - start), 0, -1))
        word = next((word for word in joined if word in known), words[start])
        found.append(word if word in known else word.strip())
        start += word.count(",") + 1
    return found


def nearest(text: str, numbers: Sequence[str]) -> str:
    """Return `; did you mean 'x'?` with the numbers nearest in value to a text, or nothing if it is not a number."""
    if (value := number_in(text)) is None or not numbers:
        return ""
    distance = {name: abs(float(name) - value) for name in numbers}
    near = [name for name in numbers if distance[name] == min(distance.values())][:2]
    return f"; did you mean {' or '.join(map(repr, near))}?"


ALL = "all"
"""The word for all classes."""
LISTED = 12
"""The number of classes that a refusal names."""
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
