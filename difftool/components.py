"""The kinds of component: validated options go in, a working part comes out.

A component is a frozen, keyword-only dataclass. Its fields are its options, its docstring is its help, and its one
method makes the part. Subclassing is all it takes: `class DDIM(Sampler, name="ddim")`. Imports nothing heavy.
A kind is declared by its base class alone: hook, flag, options, tables in config files and documentation follow.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from difftool.options import Options, dashed, plain

if TYPE_CHECKING:
    from torch import Tensor, nn

    from difftool.data.samples import DatasetContext, Samples
    from difftool.diffusion.estimate import Denoise, Step
    from difftool.diffusion.schedule import Level, Schedule
    from difftool.figures.drawing import Drawing
    from difftool.figures.formats import DrawingSpec
    from difftool.specs import BackboneSpec, ObjectiveSpec, OracleSpec, Row, RunContext


class Component(Options):
    """A named record of options that makes one working part."""

    name: ClassVar[str] = ""
    """The name that users type."""

    # Declared by the base class of each kind:
    kind: ClassVar[str] = ""
    """The word for the kind: `dataset`, `timestep-sampling`."""
    hook: ClassVar[str] = ""
    """The hook in `difftool.hookspecs` by which plugins offer components of the kind."""
    flag: ClassVar[str | None] = None
    """The flag that chooses one by name, or None where something else does, such as the suffix of a file."""
    several: ClassVar[bool] = False
    """True if several can be chosen at once. They accompany a run, and its weights do not depend on them."""
    commands: ClassVar[tuple[str, ...]] = ()
    """The commands that take the flag."""
    default: ClassVar[str] = ""
    """The default, unless a component of another kind suggests another, as `Dataset.default_backbone` does."""
    needed_to_sample: ClassVar[bool] = True
    """True if sampling from a trained model needs the component it was trained with."""

    def __init_subclass__(cls, *, name: str = "", **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.name = name

    @classmethod
    def plural(cls) -> str:
        """Return the plural of the kind: `datasets`, `timestep-samplings`."""
        return cls.hook.removeprefix("difftool_").replace("_", "-")

    @classmethod
    def chosen_by(cls) -> str:
        """Return what a user types to choose this component."""
        return f"{cls.flag} {cls.name}"


class Dataset(Component):
    """The data to learn."""

    kind = "dataset"
    hook = "difftool_datasets"
    flag = "--dataset"
    commands = ("train", "sample", "compare", "noise")
    default = "swiss-roll"
    needed_to_sample = False

    default_backbone: ClassVar[str] = "mlp"
    """The backbone that is taken when the user names none."""

    generated: ClassVar[bool] = False
    """True if the samples are computed from the options and the seed alone. A model file by itself loads no others."""

    @abstractmethod
    def load(self, context: DatasetContext) -> Samples:
        """Return the samples. Raise `ValueError` or `OSError` with one clear line when they cannot be loaded."""

    def item_shape(self) -> tuple[int, ...] | None:
        """Return the shape of one item if the options alone fix it, so that misfits are refused before any work."""
        return None


class NoiseSchedule(Component):
    """The noise schedule: a table of alpha_t and sigma_t in x_t = alpha_t x_0 + sigma_t eps."""

    kind = "schedule"
    hook = "difftool_schedules"
    flag = "--schedule"
    commands = ("train", "sample", "compare", "noise")
    default = "linear"

    default_prediction: ClassVar[str] = "eps"
    """The prediction type that suits this schedule."""

    @abstractmethod
    def build(self, timesteps: int) -> Schedule:
        """Return the float64 table of `timesteps` levels, its signal-to-noise ratio strictly falling."""


class Backbone(Component):
    """The network."""

    kind = "backbone"
    hook = "difftool_backbones"
    flag = "--backbone"
    commands = ("train",)
    default = "mlp"

    default_dataset: ClassVar[str] = "swiss-roll"
    """The dataset that is taken when the user names none."""

    training_defaults: ClassVar[Mapping[str, object]] = {}
    """Defaults of `Training` that suit this network, such as `{"lr": 2e-4, "batch_size": 32}`."""

    self_conditioning: ClassVar[bool] = False
    """True if the network takes the last estimate of x_0 beside x_t: `spec.in_channels` is then twice the data's."""

    @abstractmethod
    def build(self, spec: BackboneSpec) -> nn.Module:
        """Return a module `net(x, t, cond=None)`.

        x is (B, spec.in_channels, *spec.shape[1:]), of unit variance if the data are (else see `spec.sigma_data`); t is
        (B,), a float in [0, 1000); cond is (B,) int64 class indices, where `spec.classes` stands for "no class"; the
        output is (B, spec.out_channels, *spec.shape[1:]).

        Raise `ValueError` when the shape does not fit, and say which shapes do.
        """


class Sampler(Component):
    """The sampler, which goes from noise to data."""

    kind = "sampler"
    hook = "difftool_samplers"
    flag = "--sampler"
    commands = ("sample",)
    default = "ddim"

    default_steps: ClassVar[int | None] = 50
    """Steps when the user gives none; None stands for every level of the schedule."""

    def claimed_order(self) -> int | None:
        """Return the order of convergence that `difftool check` verifies; None for one that adds noise."""
        return None

    def claimed_calls(self, steps: int) -> int | None:
        """Return the network calls of that many steps, or None where they depend on more than the steps."""
        return steps

    @abstractmethod
    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        """Take x from `levels[0]` to `levels[-1]`, which is clean, and yield a `Step` after each step.

        `denoise(x, level)` returns the estimate at a level and must not be called at the clean end; `noise(i)` is the
        standard normal noise of step i, shaped as x.
        """


class Spacing(Component):
    """The spacing of the levels that a sampler visits."""

    kind = "spacing"
    hook = "difftool_spacings"
    flag = "--spacing"
    commands = ("sample",)
    default = "trailing"

    @abstractmethod
    def levels(self, schedule: Schedule, steps: int) -> Sequence[Level]:
        """Return exactly `steps` levels, strictly from noisy to clean. The caller appends the clean end."""


class Prediction(Component):
    """The quantity that the network predicts, a x_0 + b eps. Loss and estimates follow from it."""

    kind = "prediction"
    hook = "difftool_predictions"
    flag = "--prediction"
    commands = ("train",)
    default = "eps"

    @abstractmethod
    def coefficients(self, level: Level, spec: ObjectiveSpec) -> tuple[float, float]:
        """Return (a, b) at a level. difftool refuses alpha b = sigma a, which would leave x_0 unknown."""

    def input_scale(self, level: Level, spec: ObjectiveSpec) -> float:
        """Return the factor of x_t in the network's input, by default 1/norm: unit variance if the data have it."""
        return 1.0 / level.norm


class Weighting(Component):
    """The weight of each noise level in the loss."""

    kind = "weighting"
    hook = "difftool_weightings"
    flag = "--weighting"
    commands = ("train",)
    default = "none"
    needed_to_sample = False

    @abstractmethod
    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        """Return the weight (T,) of the squared error in x_0 space, float64.

        `native` (T,) is the weight that the plain loss of the prediction type has there: snr for eps, 1 for x_0. Most
        weightings start from `spec.schedule.snr`.
        """


class TimestepSampling(Component):
    """The distribution from which training draws its noise levels."""

    kind = "timestep-sampling"
    hook = "difftool_timestep_samplings"
    flag = "--timestep-sampling"
    commands = ("train",)
    default = "uniform"
    needed_to_sample = False

    @abstractmethod
    def density(self, spec: ObjectiveSpec) -> Tensor:
        """Return the weights (T,) of the levels, float64, not negative. They need not sum to 1."""


class Oracle(Component):
    """A denoiser that needs no training, since it knows the data."""

    kind = "oracle"
    hook = "difftool_oracles"
    flag = "--oracle"
    commands = ("sample", "compare")
    default = "ideal"

    comparison_defaults: ClassVar[Mapping[str, object]] = {}
    """Options that `compare` sets unless the user does, since it makes thousands of calls."""

    @abstractmethod
    def denoiser(self, samples: Samples, spec: OracleSpec) -> Denoise:
        """Return the denoiser of the data in model units, or of one class. Raise `ValueError` where there is none."""


class Logger(Component):
    """A place to log the metrics of a training run, besides its own `metrics.jsonl`."""

    kind = "logger"
    hook = "difftool_loggers"
    flag = "--logger"
    several = True
    commands = ("train",)
    needed_to_sample = False
    path_use = "write"

    requires: ClassVar[Mapping[str, str]] = {}
    """The modules that the logger needs, looked for before a run begins, each with what to pip install for it."""
    files: ClassVar[tuple[str, ...]] = ()
    """Patterns of its files below `run.logs`, such as `metrics.csv`, which `train --overwrite` deletes with the run."""

    @abstractmethod
    def open(self, run: RunContext) -> AbstractContextManager[Callable[[Row], None]]:
        """Return a context that stays open during training, and that gives the function to call with each row.

        Rows up to `run.step` were logged before. Rows beyond it must be discarded, since a resumed run logs them again.
        An exception that the function raises is reported, and the run continues without this logger.
        """

    def destination(self, run: RunContext) -> str:
        """Return where the rows go, for the first lines of `difftool train`: the options, or `run.logs`."""
        return ", ".join(f"{dashed(name)} {v}" for name, v in plain(self).items() if v != []) or str(run.logs)


class Writer(Component):
    """A file format of `difftool sample --out`, chosen by the suffix of the file."""

    kind = "writer"
    hook = "difftool_writers"
    several = True
    commands = ("sample",)

    suffixes: ClassVar[tuple[str, ...]] = ()
    """The suffixes that it writes, such as `(".jpg", ".jpeg")`, in lower case; `""` stands for a folder."""

    holds_arrays: ClassVar[bool] = False
    """True if the format keeps the numbers themselves, takes any shape, and obeys `--raw` and `--trajectory`."""

    @classmethod
    def chosen_by(cls) -> str:
        return f"--out FILE{cls.suffixes[0]}" if any(cls.suffixes) else "--out FOLDER"

    def check(self, spec: DrawingSpec) -> None:
        """Raise `ValueError` for samples that it cannot show; by default everything but points and images."""
        if not self.holds_arrays:
            spec.check_drawable()

    def states(self, spec: DrawingSpec) -> Collection[int]:
        """Return the steps after which the state is needed (0 is x_T); by default all of them with `--trajectory`."""
        return range(spec.steps + 1) if self.holds_arrays and spec.trajectory else ()

    @abstractmethod
    def write(self, drawing: Drawing, path: Path) -> None:
        """Write the file, or the files into the folder, at a temporary path that is moved to its place at the end."""


class Command(Component):
    """A command of `difftool`; its fields are its arguments.

    The package announces it, so that `difftool --help` can name it without importing anything:

        [project.entry-points."difftool.commands"]
        fid = "difftool_fid"
    """

    kind = "command"
    hook = "difftool_commands"

    @classmethod
    def chosen_by(cls) -> str:
        return f"difftool {cls.name}"

    @abstractmethod
    def run(self) -> object:
        """Run the command, and return its result.

        The result goes to stdout: a mapping as one JSON object, a list one entry a line, None as nothing. Anything
        printed meanwhile goes to stderr. Raise `DifftoolError` for a failure, and `UsageError` for a request that
        cannot be met.
        """


KINDS: dict[str, type[Component]] = {base.kind: base for base in Component.__subclasses__()}
"""The base classes by kind."""


def kinds_of(command: str) -> dict[str, type[Component]]:
    """Return the kinds whose flags a command takes."""
    return {kind: base for kind, base in KINDS.items() if command in base.commands and base.flag is not None}


def suggestion_attribute(base: type[Component]) -> str:
    """Return the attribute by which components of other kinds suggest one of this kind: `default_backbone`."""
    return f"default_{base.kind.replace('-', '_')}"
