"""The files of `difftool sample`, and how they show the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from difftool.cli.guidance import words_of_several
from difftool.cli.outputs import naming_out
from difftool.components import Writer
from difftool.diffusion.visible import hidden
from difftool.errors import counted, printable
from difftool.figures.formats import DrawingSpec
from difftool.options import Options, option
from difftool.sampling.writers import check, needed_states, write
from difftool.settings import STRENGTH

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.cli.variations import Grid
    from difftool.figures.drawing import Drawing
    from difftool.sampling.loop import Trajectories
    from difftool.sampling.plan import Plan
    from difftool.sampling.source import Source


class Display(Options):
    """The settings of pictures and arrays."""

    columns: int | None = option(
        default=None, ge=1, le=1000, help="columns of a grid of images, of the images of a class in it, or of a --strip"
    )
    strip: int | None = option(default=None, ge=2, le=400, help="draw this many states of the trajectory")
    trajectory: bool = option(default=False, help="write the states of the trajectory to arrays too")
    raw: bool = option(default=False, help="write arrays in model units, not as pixels or in data units")


@dataclass(frozen=True)
class Output:
    """The files to write, and how they show the samples."""

    writers: Mapping[Path, Writer]
    source: Source
    grid: Grid
    display: Display
    overwrite: bool

    @property
    def plan(self) -> Plan:
        """The first plan."""
        return self.grid.plan

    @property
    def spec(self) -> DrawingSpec:
        """The samples to come, for the writers."""
        display, data = self.display, self.source.data
        return DrawingSpec(
            shape=data.shape,
            form=data.form,
            rate=data.rate,
            steps=self.plan.steps,
            strip=display.strip,
            trajectory=display.trajectory,
            hidden=hidden(self.plan.levels, is_image=data.has_pixels),
        )

    def check(self) -> None:
        """Raise `UsageError` for a file that cannot show these samples."""
        for path, writer in self.writers.items():
            with naming_out():
                check(writer, path, self.spec)
        if self.steps:
            self.grid.check_states()

    @property
    def steps(self) -> list[int]:
        """The steps whose states the files show."""
        return needed_states(self.writers.values(), self.spec)

    def write(self, trajectories: Trajectories) -> None:
        """Write all files."""
        drawing = self._drawing(trajectories)
        for path, writer in self.writers.items():
            write(writer, drawing, path, overwrite=self.overwrite)

    def _drawing(self, trajectories: Trajectories) -> Drawing:
        import torch

        from difftool.data.columns import COLUMNS
        from difftool.figures.drawing import Drawing
        from difftool.sampling.source import reference_points_of

        source, plan, display, several = self.source, self.plan, self.display, len(self.grid.plans)
        condition = plan.condition(0, plan.num_samples)
        fields = {} if condition is None else condition.fields()
        fields = {name: torch.cat([rows] * several) for name, rows in fields.items()}
        images = _given_images(plan)
        names = [plan.names[k % len(plan.names)] for k in range(plan.num_samples)] if plan.names else []
        drawn = not all(writer.holds_arrays for writer in self.writers.values())
        joined, columns = plan.settings.interpolate is not None, display.columns
        if joined and not columns and display.strip is None:
            columns = plan.num_samples + len(images)  # a path is one row
        return Drawing(
            x=trajectories.x,
            scaling=source.data.scaling,
            form=source.data.form,
            rate=source.data.rate,
            title=", ".join(_title(source, self.grid)),
            states=trajectories.states if self.steps else None,
            state_labels=[f"t = {level.t:.0f}" if level.sigma > 0 else "x_0" for level in trajectories.levels],
            state_steps=self.steps,
            state_hidden=hidden(trajectories.levels, is_image=source.data.has_pixels),
            labels=fields.get("label"),
            conditions={COLUMNS[name]: rows for name, rows in fields.items() if name != "label"},
            condition_images=fields.get("image"),
            class_names=source.data.class_names,
            column_names=source.data.column_names,
            names=names * several,
            axes=self.grid.axes,
            reference=reference_points_of(source) if drawn and source.data.is_points else None,
            columns=columns,
            given=torch.stack(images).cpu() if images else None,
            joined=joined,
            strip=display.strip,
            raw=display.raw,
            trajectory=display.trajectory,
        )


def joined(parts: Sequence[Trajectories]) -> Trajectories:
    """Return the samples of several plans as one, those of the first plan first."""
    import torch

    if len(parts) == 1:
        return parts[0]
    states = torch.cat([part.states for part in parts], dim=1)
    return replace(parts[0], x=torch.cat([part.x for part in parts]), states=states)


def under(source: Source, plan: Plan) -> str:
    """Return words such as ` of class cat` or ` under class cat, vector 7.5`, or an empty text."""
    words = plan.conditions_in_words(source)
    return f" {'of' if [*plan.rows] == ['label'] else 'under'} {', '.join(words)}" if words else ""


def seeds(plan: Plan) -> str:
    """Return the seed in words, or the two of a path."""
    ends = plan.settings.interpolate
    return f"seed {plan.seed}" if ends is None else f"seeds {ends[0]} to {ends[1]}"


def _given_images(plan: Plan) -> list[Tensor]:
    """Return the images that the samples start from or complete, without the part to paint."""
    images = [] if plan.init is None else [plan.init]
    if plan.inpainting is not None:
        images.append(plan.inpainting.image.masked_fill(plan.inpainting.mask, 0.0))
    return images


def _title(source: Source, grid: Grid) -> Iterator[str]:
    """Yield the parts of the title of a picture. What differs between its parts is said beside them."""
    plan, settings = grid.plan, grid.plan.settings
    several = {axis.name for axis in grid.axes}
    yield source.title
    sampler = grid.value("sampler") or plan.sampler.name
    yield sampler if "steps" in several else f"{sampler} {counted(plan.steps, 'step')}"
    if "seed" not in several:
        yield seeds(plan)
    yield from plan.conditions_in_words(source)
    if words := words_of_several(list(dict.fromkeys(each.guidance for each in grid.plans))):
        yield words
    if settings.threshold is not None:
        yield f"thresholded at {settings.threshold:g}"
    if settings.init is not None:
        yield f"from {printable(settings.init.name)} (first) at strength {settings.strength or STRENGTH:g}"
    if settings.inpaint is not None:
        yield f"inpainting {printable(settings.inpaint.name)} (first)"
