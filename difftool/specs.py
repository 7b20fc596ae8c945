"""The records that components receive beside their options. They may grow fields."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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

    def only(self, fields: Collection[str]) -> ConditionSpec:
        """Return the conditions without the fields of other names than these."""
        kept = {"classes" if name == "label" else name for name in fields}
        return replace(self, **{f.name: None for f in dataclass_fields(self) if f.name not in kept})

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
    checkpoint_activations: bool = False
    """Whether the network computes its blocks again in the backward pass instead of storing what they computed."""
    image_channels: int = 0
    """Channels of the condition image that comes beside x_t too, for a network that takes no image itself."""

    @property
    def classes(self) -> int | None:
        """Number of classes, or None if the network is given no labels."""
        return self.condition.classes

    @property
    def in_channels(self) -> int:
        """Channels of the network's input: x_t, the last estimate of x_0, and the condition image."""
        return self.shape[0] * (2 if self.self_condition else 1) + self.image_channels


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """The setting of a codec."""

    shape: tuple[int, ...]
    """The shape of one item, channels (or coordinates) first."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The plain values that a module had as `facts` when its model file was written; empty for a new run."""


@dataclass(frozen=True, kw_only=True)
class FeaturesSpec:
    """The setting of features."""

    shape: tuple[int, ...]
    """The shape of one item, channels (or coordinates) first."""
    form: str
    """What the numbers mean: `image`, `points`, `series`, ..."""
    class_names: tuple[str, ...] = ()
    device: torch.device
    """The device on which features are computed. Items come on it."""
    seed: int = 0
    """Whatever is random about the features, such as a network that is trained for them, is a function of this seed."""
    cache: Path | None = None
    """A folder to keep what takes long to learn, which is that of these features, options, data and seed alone; it may
    not be there yet. None to keep nothing."""

    def generator(self, *parts: int | str) -> torch.Generator:
        """Return a CPU generator for (seed, "features", *parts)."""
        from difftool.rng import generator

        return generator(self.seed, "features", *parts)


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
    """The run that a logger logs, or that a callback watches."""

    folder: Path
    """The run folder."""
    logs: Path
    """A folder in the run folder for files of the logger's or callback's own. It may not exist yet."""
    name: str
    """A name such as `swiss-roll-mlp`."""
    config: Mapping[str, Mapping[str, Any]]
    """The components and settings of the run as plain values, a table for each."""
    started: str
    """The time at which the run began, ISO 8601 in UTC; the same after each resume."""
    step: int = 0
    """Completed steps when training resumes; 0 for a new run."""
    steps: int = 0
    """The step at which training ends."""
    metrics: Sequence[str] = ()
    """The names of the numbers that every row has; those of callbacks join them."""
    rows: Sequence[Row] = ()
    """The rows that were logged up to `step`, in order."""


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


class ModelInTraining(Protocol):
    """The model of a run as it is now. It is a `difftool.Model`, of which callbacks mostly need `sample`."""

    def sample(self, n: int = 16, **settings: Any) -> Tensor:
        """Draw n samples (n, *shape) in data units; `settings` are the options of `difftool sample`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a run at a logged row, for callbacks."""

    step: int
    """Completed steps."""
    steps: int
    """The step at which training ends."""
    row: Mapping[str, float | None]
    """The numbers of this row by name, those of the callbacks before this one included; None for one that was not
    measured."""
    model: ModelInTraining
    """The model that would be saved now: the average of the weights, if there is one."""


@dataclass(frozen=True)
class Stop:
    """The wish of a callback to end training now, as if its last step had been made."""

    reason: str
    """One line for the user, such as `held_out_loss has not improved in 10 measurements`."""
