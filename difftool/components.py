"""What a component is: validated options in, a working part out.

A component is a frozen, keyword-only dataclass. Its fields are its options, its docstring is its help, and its one
method makes the part. Subclassing is all it takes:

    class DDIM(Sampler, name="ddim"):
        \"\"\"Denoising diffusion implicit models (Song et al., 2021).\"\"\"

        eta: float = option(default=0.0, ge=0, le=1, help="0 is deterministic, 1 has DDPM's noise")

        def sample(self, denoise, x, levels, noise): ...
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from difftool.options import Options

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from difftool.data.samples import DatasetContext, Samples
    from difftool.diffusion.estimate import Denoise, Step
    from difftool.diffusion.schedule import Level, Schedule
    from difftool.figures.drawing import Drawing
    from difftool.figures.formats import DrawingSpec


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What a backbone is asked to build. May grow fields."""

    shape: tuple[int, ...]
    """Shape of one item, channels (or coordinates) first: (2,), (3, 32, 32)."""
    out_channels: int
    """Channels of the answer; the rest of its shape is the item's."""
    classes: int | None = None
    """Number of classes; index `classes` itself means "no class". None: the network takes no condition."""
    sigma_data: float = 1.0
    """Standard deviation of the data in model units."""
    self_condition: bool = False
    """Whether the last estimate of x_0 comes beside x_t, as further channels."""

    @property
    def in_channels(self) -> int:
        """Channels of the network's input."""
        return self.shape[0] * (2 if self.self_condition else 1)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """What prediction types, weightings and time densities are told. May grow fields."""

    schedule: Schedule
    sigma_data: float = 1.0
    """Standard deviation of the data in model units."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a logger is told of the run that it logs. May grow fields."""

    folder: Path
    """The run folder."""
    logs: Path
    """Where a logger may keep files of its own: a folder in the run folder that may not be there yet."""
    name: str
    """Such as `swiss-roll-mlp`."""
    config: Mapping[str, Mapping[str, Any]]
    """The components and settings of the run as plain values, a table for each."""
    started: str
    """When the run began, ISO 8601 in UTC; the same after each resume."""
    step: int = 0
    """Completed steps when training goes on; 0 for a new run."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is logged at a step. May grow fields."""

    step: int
    """Completed steps."""
    metrics: Mapping[str, float | None]
    """By name, the same names in each row of numbers; None where one was not measured. Empty where there are only
    pictures."""
    pictures: tuple[Path, ...] = ()
    """Pictures that were drawn at this step."""


class Component(Options):
    """A named record of options that makes one working part."""

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""

    def __init_subclass__(cls, *, name: str = "", kind: str = "", **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.name = name
        if kind:
            cls.kind = kind

    @classmethod
    def chosen_by(cls) -> str:
        """What a user types to choose it."""
        return f"--{cls.kind} {cls.name}"


class Dataset(Component, kind="dataset"):
    """What there is to learn."""

    default_backbone: ClassVar[str] = "mlp"
    """The backbone that is taken when the user names none."""

    @abstractmethod
    def load(self, context: DatasetContext) -> Samples:
        """The samples. Raise `ValueError` or `OSError` with one clear line when they cannot be had."""

    def item_shape(self) -> tuple[int, ...] | None:
        """The shape of one item where the options alone fix it, so that misfits are refused before any work."""
        return None


class NoiseSchedule(Component, kind="schedule"):
    """How signal turns into noise: x_t = alpha_t x_0 + sigma_t eps."""

    default_prediction: ClassVar[str] = "eps"
    """The prediction type that suits this schedule."""

    @abstractmethod
    def build(self, timesteps: int) -> Schedule:
        """The float64 table of `timesteps` levels, its signal-to-noise ratio strictly falling."""


class Backbone(Component, kind="backbone"):
    """The network that a denoiser asks."""

    default_dataset: ClassVar[str] = "swiss-roll"
    """The dataset that is taken when the user names none."""

    training_defaults: ClassVar[Mapping[str, object]] = {}
    """Defaults of `Training` that suit this network, such as `{"lr": 2e-4, "batch_size": 32}`."""

    self_conditioning: ClassVar[bool] = False
    """Whether there is room for the last estimate of x_0 beside x_t: `spec.in_channels` is then twice the data's."""

    @abstractmethod
    def build(self, spec: BackboneSpec) -> nn.Module:
        """A module `net(x, t, cond=None)`.

        x is (B, spec.in_channels, *spec.shape[1:]), of unit variance where the data have it (else see
        `spec.sigma_data`); t is (B,), a float in [0, 1000); cond is (B,) int64 class indices, where `spec.classes`
        stands for "no class"; the result is (B, spec.out_channels, *spec.shape[1:]).

        Raise `ValueError` when the shape does not fit, and say which shapes do.
        """


class Prediction(Component, kind="prediction"):
    """What the network is asked for: a x_0 + b eps. The loss, its weight, and x_0 and eps again all follow from it."""

    @abstractmethod
    def coefficients(self, level: Level, spec: ObjectiveSpec) -> tuple[float, float]:
        """(a, b) at a level. Where alpha b = sigma a the answer would leave x_0 unknown: that schedule is refused."""

    def input_scale(self, level: Level, spec: ObjectiveSpec) -> float:
        """The network sees this times x_t; by default 1/norm, unit variance for data of unit variance."""
        return 1.0 / level.norm


class Weighting(Component, kind="weighting"):
    """How much each noise level counts in the loss."""

    @abstractmethod
    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        """The weight (T,) of the squared error in x_0 space, float64; `spec.schedule.snr` is what most start from.

        `native` (T,) is what the plain loss of the prediction type amounts to there: snr for eps, 1 for x_0.
        """


class TimeDensity(Component, kind="time"):
    """How often each noise level is drawn in training."""

    @abstractmethod
    def density(self, spec: ObjectiveSpec) -> Tensor:
        """Weights (T,) of the levels, float64, not negative; they need not sum to 1."""


class Oracle(Component, kind="oracle"):
    """A denoiser that needs no training, for it knows the data."""

    @abstractmethod
    def denoiser(self, samples: Samples, label: int | None, device: torch.device) -> Denoise:
        """The denoiser of the data in model units, or of one class of them. Raise `ValueError` where there is none."""


class Spacing(Component, kind="spacing"):
    """Which levels a sampler visits."""

    @abstractmethod
    def levels(self, schedule: Schedule, steps: int) -> Sequence[Level]:
        """Exactly `steps` levels, strictly from noisy to clean; the clean end is appended by the caller."""


class Sampler(Component, kind="sampler"):
    """How to walk from noise to data."""

    default_steps: ClassVar[int | None] = 50
    """Steps when the user gives none; None stands for every level of the schedule."""

    def claimed_order(self) -> int | None:
        """The order at which its error falls as steps grow, so that `difftool check` can hold it to that.

        None where it claims none, as a sampler that draws noise must.
        """
        return None

    def claimed_calls(self, steps: int) -> int | None:
        """The network calls of a walk of so many steps; None where they depend on more than that."""
        return steps

    @abstractmethod
    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        """Walk x from `levels[0]` to `levels[-1]`, which is clean; yield a `Step` after each step.

        `denoise(x, level)` gives the estimate at a level and must not be asked at the clean end; `noise(i)` is the
        standard normal noise of step i, shaped as x.
        """


class Logger(Component, kind="logger"):
    """Where the numbers of a training run go, beside its own `metrics.jsonl`."""

    requires: ClassVar[Mapping[str, str]] = {}
    """Modules that it needs, each with what to pip install for it: looked for before a run begins."""

    @abstractmethod
    def open(self, run: RunContext) -> AbstractContextManager[Callable[[Row], None]]:
        """A context in which the run is trained; it gives the function that is called with each row.

        Rows up to `run.step` were logged before, those beyond it are to be forgotten: a resumed run logs them again.
        What it raises later is noted, and the run goes on without it.
        """


class Writer(Component, kind="writer"):
    """A file format of `difftool sample --out`: the suffix decides."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """The endings it writes, such as `(".jpg", ".jpeg")`, in lower case; `""` stands for a folder."""

    holds_arrays: ClassVar[bool] = False
    """Whether it keeps the numbers themselves: any shape of samples will do, and `--raw` and `--trajectory` count."""

    @classmethod
    def chosen_by(cls) -> str:
        return f"--out FILE{cls.suffixes[0]}" if any(cls.suffixes) else "--out FOLDER"

    def check(self, spec: DrawingSpec) -> None:
        """Raise `ValueError` for samples that it cannot show; by default what is neither points nor images."""
        if not self.holds_arrays:
            spec.check_drawable()

    def states(self, spec: DrawingSpec) -> Collection[int]:
        """After which steps the state of the walk is needed (0 is x_T); by default all of them with `--trajectory`."""
        return range(spec.steps + 1) if self.holds_arrays and spec.trajectory else ()

    @abstractmethod
    def write(self, drawing: Drawing, path: Path) -> None:
        """Write the file, or the files into the folder, at a path that is moved to its place once all is written."""


class Command(Component, kind="command"):
    """A command of `difftool`; its fields are its arguments.

    The package announces it, so that `difftool --help` can name it without importing anything:

        [project.entry-points."difftool.commands"]
        fid = "difftool_fid"
    """

    @classmethod
    def chosen_by(cls) -> str:
        return f"difftool {cls.name}"

    @abstractmethod
    def run(self) -> object:
        """Do it. The result goes to stdout: a mapping as one JSON object, a list one entry a line, None as nothing.

        What is printed meanwhile goes to stderr. Raise `DifftoolError` where it fails, `UsageError` where it is asked
        for what cannot be.
        """


KINDS: Mapping[str, type[Component]] = {
    base.kind: base
    for base in (
        Dataset,
        NoiseSchedule,
        Backbone,
        Sampler,
        Spacing,
        Prediction,
        Weighting,
        TimeDensity,
        Oracle,
        Logger,
        Writer,
        Command,
    )
}
"""The bases by kind. The hook of a kind is `difftool_<kind>s`."""
