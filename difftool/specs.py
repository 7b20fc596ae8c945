"""The records that components receive beside their options. They may grow fields."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from difftool.diffusion.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class ConditionSpec:
    """The conditions that come with every item, and their shapes. Each is None where the data have none."""

    classes: int | None = None
    """Number of classes."""
    vector: int | None = None
    """Length D of the vector."""
    image: tuple[int, int, int] | None = None
    """Shape (C, H, W) of the image."""
    tokens: tuple[int, int] | None = None
    """Number and length (L, D) of the tokens."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each field of `Condition` that comes with an item, by name."""
        shapes = {
            "label": None if self.classes is None else (),
            "vector": None if self.vector is None else (self.vector,),
            "image": self.image,
            "tokens": self.tokens,
        }
        return {name: shape for name, shape in shapes.items() if shape is not None}

    def __bool__(self) -> bool:
        return bool(self.shapes)

    def __str__(self) -> str:
        """Return the conditions in words: `3 classes, a vector of 2, an image of 1x8x8`."""
        words = []
        if self.classes is not None:
            words.append(f"{self.classes} {'class' if self.classes == 1 else 'classes'}")
        if self.vector is not None:
            words.append(f"a vector of {self.vector}")
        if self.image is not None:
            words.append(f"an image of {'x'.join(map(str, self.image))}")
        if self.tokens is not None:
            words.append(f"{self.tokens[0]} tokens of {self.tokens[1]}")
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """The input and output of a network that a backbone has to build."""

    shape: tuple[int, ...]
    """Shape of one item, channels (or coordinates) first: (2,), (3, 32, 32)."""
    out_channels: int
    """Channels of the output, which otherwise has the shape of the item."""
    condition: ConditionSpec = ConditionSpec()
    """The conditions that the network is given as `cond`; without any, `cond` is None."""
    sigma_data: float = 1.0
    """Standard deviation of the data in model units."""
    self_condition: bool = False
    """Whether the last estimate of x_0 comes beside x_t, as further channels."""

    @property
    def classes(self) -> int | None:
        """Number of classes, or None if the network is given no labels."""
        return self.condition.classes

    @property
    def in_channels(self) -> int:
        """Channels of the network's input."""
        return self.shape[0] * (2 if self.self_condition else 1)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """The setting of a prediction type, a weighting or a timestep sampling."""

    schedule: Schedule
    sigma_data: float = 1.0
    """Standard deviation of the data in model units."""


@dataclass(frozen=True, kw_only=True)
class OracleSpec:
    """The setting of an oracle."""

    schedule: Schedule
    """The noise schedule of the samples: levels and times are its own."""
    label: int | None = None
    """The class that the denoiser is of; None: all classes."""
    device: torch.device
    """The device of the noisy states that the denoiser gets."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The run that a logger logs."""

    folder: Path
    """The run folder."""
    logs: Path
    """A folder in the run folder where a logger may keep files of its own. It may not exist yet."""
    name: str
    """A name such as `swiss-roll-mlp`."""
    config: Mapping[str, Mapping[str, Any]]
    """The components and settings of the run as plain values, a table for each."""
    started: str
    """The time at which the run began, ISO 8601 in UTC; the same after each resume."""
    step: int = 0
    """Completed steps when training resumes; 0 for a new run."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The numbers and pictures logged at one step."""

    step: int
    """Completed steps."""
    metrics: Mapping[str, float | None]
    """Numbers by name, the same names in each row; None for one that was not measured. Empty where there are only
    pictures."""
    pictures: tuple[Path, ...] = ()
    """Pictures that were drawn at this step."""


class OptimizerLike(Protocol):
    """The part of `torch.optim.Optimizer` that training uses."""

    param_groups: list[dict[str, Any]]
    """The groups, each with its parameters as `params`, its learning rate as `lr`, and options."""

    @property
    def state(self) -> MutableMapping[Any, dict[str, Any]]:
        """The state of each parameter, which may be empty before the first step."""

    def step(self) -> object:
        """Update the parameters by their gradients. Parameters without one stay as they are."""
