"""The files of `difftool sample`, and how they show the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from difftool.cli.again import Single
from difftool.cli.console import note
from difftool.cli.guidance import words_of_several
from difftool.cli.outputs import naming_out
from difftool.components import Writer
from difftool.diffusion.visible import hidden
from difftool.errors import DifftoolError, counted, one_line, printable
from difftool.figures.formats import DrawingSpec
from difftool.options import Options, option, plain
from difftool.sampling.beside import path_beside
from difftool.sampling.writers import check, check_paths, needed_states, write
from difftool.settings import STRENGTH

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.cli.again import Again
    from difftool.cli.grids import Grid
    from difftool.figures.drawing import Drawing
    from difftool.sampling.loop import Trajectories
    from difftool.sampling.plan import Plan
    from difftool.sampling.record import Record
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
    again: Again | None = None
    ema_length: float | None = None

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
                check_paths(writer, path, overwrite=self.overwrite)
                check(writer, path, self.spec)
        if self.steps:
            self.grid.check_states()

    @property
    def steps(self) -> list[int]:
        """The steps whose states the files show."""
        return needed_states(self.writers.values(), self.spec)

    def records(self) -> dict[Path, Record]:
        """Return the record of each file, in the threads that draw. Raises `DifftoolError`."""
        from difftool.sampling.record import record_of

        checkpoints = dict.fromkeys(filter(None, self.grid.checkpoints))
        try:
            record = record_of(self.source, self.grid.plans, checkpoints=checkpoints, ema_length=self.ema_length)
        except OSError as error:
            raise DifftoolError(f"{one_line(error)}; the record of the samples cannot name it") from None
        found = {}
        for path, writer in self.writers.items():
            display = plain(self.display)
            if not writer.holds_arrays:
                display["reference"] = self._reference is not None
            found[path] = record.of_file(writer.folder if isinstance(writer, Single) else writer, display)
        return found

    def differences(self, records: Mapping[Path, Record]) -> dict[Path, list[str]]:
        """Return, for each file, why it may not be the same as the one that is made again."""
        if self.again is None:
            return {}
        from difftool.sampling.differences import differences

        before = self.again.record
        return {path: differences(before, records[path]) for path in self.writers}

    def write(self, trajectories: Trajectories, records: Mapping[Path, Record]) -> None:
        """Write all files, each with its record."""
        drawing, spec, steps = self._drawing(trajectories), self.spec, self.steps
        for path, writer in self.writers.items():
            own = _with_states(drawing, [steps.index(step) for step in needed_states([writer], spec)])
            text = records[path].text()
            if not text:
                note(f"the record of how {path} was made is too long for a file, and is left out")
            write(writer, replace(own, record=text), path, overwrite=self.overwrite)
            if writer.record_beside and text:
                note(f"how {path} was made is written in {path_beside(path)}")

    @cached_property
    def _reference(self) -> Tensor | None:
        """The data points to draw under the samples, unless a file that is made again has none."""
        from difftool.sampling.source import reference_points_of

        drawn = not all(writer.holds_arrays for writer in self.writers.values())
        none_before = self.again is not None and self.again.record.display.get("reference") is False
        if not drawn or none_before or not self.source.data.is_points:
            return None
        return reference_points_of(self.source)

    def _drawing(self, trajectories: Trajectories) -> Drawing:
        import torch

        from difftool.data.columns import COLUMNS
        from difftool.figures.drawing import Drawing

        source, plan, display, several = self.source, self.plan, self.display, len(self.grid.plans)
        condition = plan.condition(0, plan.num_samples)
        fields = {} if condition is None else condition.fields()
        fields = {name: torch.cat([rows] * several) for name, rows in fields.items()}
        images = _given_images(plan)
        names = [plan.names[k % len(plan.names)] for k in range(plan.num_samples)] if plan.names else []
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
            reference=self._reference,
            columns=columns,
            given=torch.stack(images).cpu() if images else None,
            joined=joined,
            strip=display.strip,
            raw=display.raw,
            trajectory=display.trajectory,
        )


def _with_states(drawing: Drawing, places: Sequence[int]) -> Drawing:
    """Return the drawing with some of its states, so that a file does not depend on those that others need."""
    if drawing.states is None or len(places) == len(drawing.states):
        return drawing
    return replace(
        drawing,
        states=drawing.states[places] if places else None,
        state_labels=[drawing.state_labels[i] for i in places],
        state_steps=[drawing.state_steps[i] for i in places],
        state_hidden=[drawing.state_hidden[i] for i in places],
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
