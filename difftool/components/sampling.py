"""The components of sampling: samplers, the levels they visit, guidances, oracles and file formats."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from difftool.components.component import Component
from difftool.options import dashed, fields

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.data.samples import Samples
    from difftool.diffusion.estimate import Denoise, Step
    from difftool.diffusion.schedule import Level, Schedule
    from difftool.figures.drawing import Drawing
    from difftool.figures.formats import DrawingSpec
    from difftool.sampling.guidance import GuidanceSpec, Predictions
    from difftool.specs import OracleSpec


class Sampler(Component):
    """The sampler, which goes from noise to data."""

    kind = "sampler"
    hook = "difftool_samplers"
    flag = "--sampler"
    commands = ("sample", "evaluate")
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
    commands = ("sample", "evaluate")
    default = "trailing"

    @abstractmethod
    def levels(self, schedule: Schedule, steps: int) -> Sequence[Level]:
        """Return exactly `steps` levels, strictly from noisy to clean. The caller appends the clean end."""


class Guidance(Component):
    """The guidance, a denoiser around denoisers: a scale of cfg such as 2, or a name; several are joined by commas."""

    kind = "guidance"
    hook = "difftool_guidances"
    flag = "--guidance"
    commands = ("sample", "compare", "evaluate")

    by_number: ClassVar[str] = "cfg"
    """The name of the guidance whose option `scale` a number stands for."""

    @abstractmethod
    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        """Return the guided denoiser of one batch of samples. Raise `ValueError` where the guidance does not fit.

        `predict()` is the denoiser of the model under the condition that the user gave, and `predict(hidden=True)` the
        one without any. An estimate keeps x_t = alpha x_0 + sigma eps, which `Estimate.with_x_0` sees to. A guidance
        that computes the unconditional estimate leaves it in `Estimate.unconditional`. Clipping comes afterwards.
        """

    def words(self) -> str:
        """Return the guidance in words for titles: by default its name, and options that differ from their defaults."""
        changed = ((f, getattr(self, f.name)) for f in fields(type(self)))
        return ", ".join([self.name, *(f"{dashed(f.name)} {value}" for f, value in changed if value != f.default)])


class Oracle(Component):
    """A denoiser that needs no training, since it knows the data."""

    kind = "oracle"
    hook = "difftool_oracles"
    flag = "--oracle"
    commands = ("sample", "compare", "evaluate")
    default = "ideal"

    comparison_defaults: ClassVar[Mapping[str, object]] = {}
    """Options that `compare` sets unless the user does, since it makes thousands of calls."""

    @abstractmethod
    def denoiser(self, samples: Samples, spec: OracleSpec) -> Denoise:
        """Return the denoiser of the data in model units, or of one class. Raise `ValueError` where there is none.

        A guidance may want its gradients with respect to x, in which case it is called with gradients on.
        """


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

    record_beside: ClassVar[bool] = False
    """True if the format has no place for `drawing.record`, which difftool then writes into `FILE.json` beside it."""

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
        """Write the file, or the files into the folder, at a temporary path that is moved to its place at the end.

        `drawing.record` is a text about how the samples were made, for the place that the format has for one.
        """
