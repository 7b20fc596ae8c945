"""Grids of `sample`: several values of a flag, joined by commas, make at most two labelled axes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from difftool.cli.guidance import name_of
from difftool.components import Component, Guidance
from difftool.errors import UsageError, counted, listed
from difftool.figures.axes import Axis
from difftool.options import Options, option
from difftool.plugins.registry import registry
from difftool.settings import LARGEST_SEED, Sampling

if TYPE_CHECKING:
    from difftool.sampling.checkpoints import Checkpoint
    from difftool.sampling.plan import Plan
    from difftool.sampling.source import Source

MOST_CELLS = 400
"""The largest number of sets of samples in one call."""
CHECKPOINT = "checkpoint"


class Several(Options):
    """The settings of sampling of which `sample` takes several values. They stand for those of `Sampling`."""

    steps: tuple[int, ...] | None = option(
        default=None,
        ge=1,
        le=100_000,
        help="sampling steps; several, such as 5,10,20, make a grid",
        otherwise="what suits the sampler",
    )
    seed: tuple[int, ...] = option(
        default=(0,),
        ge=0,
        le=LARGEST_SEED,
        help="random seed; sample k of a seed is always the same; several, such as 0..3, make a grid",
    )

    def __post_init__(self) -> None:
        for name in ("steps", "seed"):
            if getattr(self, name) == ():
                raise ValueError(f"{name}: must be a whole number, or several such as 1,2,4 or 0..3")


def words_in(base: type[Component], names: Mapping[str, Any]) -> list[str]:
    """Return the names of components of a kind that are joined by commas, or the default. Raises `UsageError`."""
    words = [word.strip() for word in str(names.get(base.kind) or base.default).split(",")]
    if not all(words):
        raise UsageError(f"{base.flag}: must be names joined by commas, such as a,b, not {names[base.kind]!r}")
    return list(dict.fromkeys(words))


def classes_of(base: type[Component], words: Sequence[str]) -> list[type[Component]]:
    """Return the components of these names, each once. Raises `UsageError`."""
    return list(dict.fromkeys(registry().of_kind(base, word) for word in words))


@dataclass(frozen=True)
class Variation:
    """The values that the command line gives of one thing."""

    name: str
    """The quantity that they are values of: the name of an argument of `Plan.varied`, or `checkpoint`."""
    values: Sequence[Any]

    @property
    def flag(self) -> str:
        return f"--{self.name}s" if self.name == CHECKPOINT else f"--{self.name}"

    @property
    def axis(self) -> Axis:
        """The axis of a grid on which they lie."""
        if all(isinstance(value, int) for value in self.values):
            return Axis(self.name, [*map(str, self.values)], [*self.values])
        named = [name_of(v) if self.name == Guidance.kind else v.name for v in self.values]
        if len({*named}) < len(named):
            named = [f"{name} ({k})" for k, name in enumerate(named, start=1)]
        return Axis(self.name, named)


def check_axes(variations: Sequence[Variation], others: Sequence[str] = ()) -> None:
    """Raise `UsageError` for more than two axes or too many sets; `others` are flags of axes beside the variations."""
    several = [one for one in variations if len(one.values) > 1]
    flags = [*others, *(one.flag for one in several)]
    if len(flags) > 2:
        raise UsageError(
            f"{listed(flags)}: have several values, and a grid has two axes, its rows and its columns; give one value "
            f"of {flags[-1] if len(flags) == 3 else 'all but two'}"
        )
    if (cells := _product(several)) > MOST_CELLS:
        raise UsageError(f"{listed(flags)}: make {cells:,} sets of samples, and a grid has {MOST_CELLS} at most")


@dataclass(frozen=True)
class Grid:
    """The sets of samples of a call: a plan for each combination of values, the last axis changing first."""

    axes: Sequence[Axis]
    """The axes of which there are several values."""
    plans: Sequence[Plan]
    checkpoints: Sequence[Checkpoint | None]
    """The checkpoint of each set; None for the weights that the model was opened with."""

    @classmethod
    def of(cls, source: Source, settings: Sampling, variations: Sequence[Variation]) -> Grid:
        """Return the sets of samples of a source. Raises `UsageError`, and `DifftoolError` for files."""
        from difftool.sampling.plan import Plan

        several = [one for one in variations if len(one.values) > 1]
        first = {one.name: one.values[0] for one in variations if one.values}
        parts = {name: first[name] for name in ("sampler", "spacing", "guidance") if name in first}
        settings = replace(settings, steps=first.get("steps"), seed=first["seed"])
        plan = Plan.of(source, settings, **parts)
        asked = {name: rows for name, rows in plan.rows.items() if name != "label" or settings.label is not None}
        by_sample = ["--label"] if len(asked.get("label", ())) > 1 else ["--image"] if plan.names else []
        check_axes(variations, by_sample)
        alike = all(len(rows) == 1 for rows in asked.values()) and settings.interpolate is None
        if len(several) == 2 and settings.num_samples is None and not source.data.is_points and alike:
            plan = Plan.of(source, replace(settings, num_samples=1), **parts)  # a picture in each cell
        chosen = [one for one in variations if one in several or one.name == CHECKPOINT]
        plans: list[Plan] = []
        checkpoints: list[Checkpoint | None] = []
        for values in itertools.product(*(one.values for one in chosen)):
            changes = dict(zip((one.name for one in chosen), values, strict=True))
            checkpoints.append(changes.pop(CHECKPOINT, None))
            plans.append(plan.varied(source, **changes) if changes else plan)
        return cls([one.axis for one in several], plans, checkpoints)

    @property
    def plan(self) -> Plan:
        """The plan of the first set."""
        return self.plans[0]

    def with_batches(self, size: int) -> Grid:
        """Return the grid with batches of another size."""
        return replace(self, plans=[replace(plan, batch_size=size) for plan in self.plans])

    def check_states(self) -> None:
        """Raise `UsageError` if the sets pass different levels, whose states no file can show side by side."""
        if any(plan.levels != self.plan.levels for plan in self.plans):
            flags = " and ".join(f"--{axis.name}" for axis in self.axes if axis.name in ("sampler", "spacing", "steps"))
            raise UsageError(
                f"{flags}: a film, a strip or a trajectory shows the same steps of all samples, and these differ in "
                "their levels; write the results alone, or give one value"
            )

    def value(self, name: str) -> str:
        """Return the values of an axis in words, such as `ddim and heun`, or an empty text if it has one."""
        axis = next((axis for axis in self.axes if axis.name == name), None)
        if axis is None:
            return ""
        if len(axis.values) > NAMED or any("," in value for value in axis.values):
            return counted(len(axis.values), name.removesuffix("s"))
        return listed(axis.values)


NAMED = 4
"""The largest number of values that words name."""


def _product(variations: Sequence[Variation]) -> int:
    count = 1
    for one in variations:
        count *= len(one.values)
    return count
