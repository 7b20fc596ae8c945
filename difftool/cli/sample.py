"""`difftool sample`: draw samples with a trained model or an oracle, and write them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool import manifest
from difftool.cli.command import component_command, given_component, given_values, named
from difftool.cli.console import note, progress
from difftool.cli.flags import Group, make_from_flags
from difftool.cli.guidance import guidance_groups, guidances, words_of
from difftool.cli.outputs import check_outs, naming_out, report
from difftool.cli.parameters import AsJson, Device, Overwrite
from difftool.cli.sources import (
    PANELS,
    EmaLength,
    Opened,
    RunArgument,
    SourceRequest,
    Timesteps,
    Weights,
    source_groups,
)
from difftool.components import Sampler, Spacing, Writer
from difftool.diffusion.visible import hidden
from difftool.distributed import connect, world
from difftool.errors import UsageError, counted, printable, spending
from difftool.figures.formats import DrawingSpec, undrawable
from difftool.files import numbered
from difftool.options import Options, option, options_of, plain
from difftool.paths import check_inside
from difftool.sampling.writers import check, needed_states, suffixes_of_arrays, write, writer_of
from difftool.settings import STRENGTH, Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.distributed import ProcessGroup
    from difftool.figures.drawing import Drawing
    from difftool.sampling.loop import Trajectories
    from difftool.sampling.plan import Plan
    from difftool.sampling.source import Source


class Display(Options):
    """The settings of pictures and arrays."""

    columns: int | None = option(default=None, ge=1, le=1000, help="columns of a grid of images, or of a --strip")
    strip: int | None = option(default=None, ge=2, le=400, help="draw this many states of the trajectory")
    trajectory: bool = option(default=False, help="write the states of the trajectory to arrays too")
    raw: bool = option(
        default=False, help="write arrays in model units, as the network sees them, not as pixels or in data units"
    )


FILES = Group("files", (Display,), "Files")


def _choose(_ctx: typer.Context, params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    groups = [Group.of(named(Sampler, params)), Group.of(named(Spacing, params))]
    if writers := dict.fromkeys(_writers_of(params.get("out")).values()):
        groups.append(Group.of(*writers))
    groups += guidance_groups(params)
    return [*source_groups(params), *groups, Group("sampling", (Sampling,), "Sampling"), FILES]


def _writers_of(out: Sequence[Path] | None) -> dict[Path, type[Writer]]:
    with naming_out():
        return {Path(path): writer_of(Path(path)) for path in out or ()}


def sample(
    ctx: typer.Context,
    model: RunArgument = None,
    timesteps: Timesteps = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Where to write; the suffix decides: .png .jpg .svg .pdf picture, .gif film of the trajectory, .npy "
            ".npz .safetensors .csv arrays, no suffix a folder of PNGs. May be given several times.",
        ),
    ] = None,
    weights: Weights = None,
    ema_length: EmaLength = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Draw samples from a trained model, or from an oracle, and print the files written."""
    sampler, spacing = given_component(ctx, Sampler), given_component(ctx, Spacing)
    values = given_values(ctx)
    settings: Sampling = make_from_flags(Sampling, values["sampling"])
    guidance, *others = guidances(ctx)
    if others:
        raise UsageError("--guidance: sample takes one; compare takes several")
    if settings.interpolate is not None and "seed" in values["sampling"]:
        raise UsageError("--seed: --interpolate names its own two seeds; leave it out")
    request = SourceRequest.of(ctx)
    request.check(settings)
    check_outs(out or (), overwrite=overwrite)
    given_options = values.get(Writer.kind, {})
    writers = {path: make_from_flags(cls, options_of(cls, given_options)) for path, cls in _writers_of(out).items()}
    display: Display = make_from_flags(Display, values[FILES.key])
    _check_for_arrays(display, writers.values())

    from difftool import devices
    from difftool.sampling.plan import Plan, caution

    opened = request.open(devices.choose(device), compiled=settings.compile)
    plan = Plan.of(opened.source, settings, sampler=sampler, spacing=spacing, guidance=guidance)
    if settings.batch_size is None and world().size > 1:  # so that each process has a batch
        plan = replace(plan, batch_size=min(plan.batch_size, -(-plan.num_samples // world().size)))
    if not out:
        path = _default_path(opened, plan)
        writers[path] = writer_of(path)()
    output = _Output(writers, opened.source, plan, display, overwrite)
    output.check()
    if warning := caution(opened.source, plan):
        warnings.warn(warning, stacklevel=1)
    facts = _draw_and_write(opened, output)
    if not out and opened.run and world().is_main:
        manifest.record(opened.run.samples, map(manifest.entry, writers))
    report(list(writers), {**opened.facts, **_facts(plan), **facts}, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="sample", panels=PANELS))(sample)


def _check_for_arrays(display: Display, writers: Iterable[Writer]) -> None:
    """Raise `UsageError` for settings of arrays if no writer holds them."""
    if any(writer.holds_arrays for writer in writers):
        return
    for flag, used in (("--trajectory", display.trajectory), ("--raw", display.raw)):
        if used:
            raise UsageError(f"{flag}: is for arrays; add --out with one of {', '.join(suffixes_of_arrays())}")


def _default_path(opened: Opened, plan: Plan) -> Path:
    suffix = ".npy" if undrawable(opened.source.data.form, opened.source.data.shape) else ".png"
    if opened.run:
        check_inside(opened.run.samples, opened.run.path)
        return numbered(opened.run.samples, plan.stem, suffix)
    return numbered(Path(), f"{opened.source.name}-{plan.stem}", suffix)


def _facts(plan: Plan) -> dict[str, Any]:
    """Return the facts of a plan for `--json`, with the settings that differ from their defaults."""
    from difftool.runs.recipe import component_table

    defaults = plain(Sampling())
    return {
        "sampler": plan.sampler.name,
        "steps": plan.steps,
        "spacing": plan.spacing.name,
        "guidance": None if plan.guidance is None else component_table(plan.guidance),
        "num_samples": plan.num_samples,
        "seed": plan.seed,
        "settings": {name: value for name, value in plain(plan.settings).items() if value != defaults.get(name)},
    }


def _under(source: Source, plan: Plan) -> str:
    """Return words such as ` of class cat` or ` under class cat, vector 7.5`, or an empty text."""
    words = plan.conditions_in_words(source)
    return f" {'of' if [*plan.rows] == ['label'] else 'under'} {', '.join(words)}" if words else ""


def _seeds(plan: Plan) -> str:
    seeds = plan.settings.interpolate
    return f"seed {plan.seed}" if seeds is None else f"seeds {seeds[0]} to {seeds[1]}"


def _draw_and_write(opened: Opened, output: _Output) -> dict[str, Any]:
    """Draw the samples, write the files, and return network calls and seconds for `--json`."""
    from difftool import devices

    source, plan = output.source, output.plan
    with devices.threads(plan.settings.threads, opened.threads), connect() as group:
        note(
            f"sampling {opened.where} ({source.description}): {counted(plan.num_samples, 'sample')}"
            f"{_under(source, plan)}, {plan.sampler.name}, {counted(plan.steps, 'step')}, {plan.spacing.name}; "
            f"{devices.describe(source.device)}, {_seeds(plan)}"
        )
        start = time.perf_counter()
        trajectories = _draw(source, plan, output.steps, group)
        seconds = time.perf_counter() - start
        group.on_main(lambda: output.write(trajectories))
    calls = trajectories.calls
    each = f"{counted(plan.steps, 'step')}, {counted(calls, 'network call')} each"
    note(f"{counted(plan.num_samples, 'sample')} in {seconds:.1f} s ({each})")
    return {"calls": calls, "seconds": round(seconds, 3)}


def _draw(source: Source, plan: Plan, steps: Sequence[int], group: ProcessGroup) -> Trajectories:
    """Draw the samples under a progress bar, with their states after these steps.

    Each of many processes draws some of the batches. The samples are complete on the first one alone.
    """
    from difftool.sampling.loop import collect

    batches = range(plan.batches)[group.rank :: group.size]
    with progress("sampling", len(batches) * plan.steps) as bar, spending(plan.batch_size):

        def watch(step: Any) -> None:
            finished = step.first + (len(step.x) if step.done else 0)
            steps_before = batches.index(step.first // plan.batch_size) * plan.steps
            bar.update(steps_before + step.number, f"{finished:,}/{counted(plan.num_samples, 'sample')}")

        trajectories = collect(source, plan, steps, batches=batches, watch=watch)
        for x in (trajectories.x, *trajectories.states):
            _gather(x, plan, group)
    return trajectories


def _gather(x: Tensor, plan: Plan, group: ProcessGroup) -> None:
    """Copy the batches of the other processes to their place on the first one."""
    for batch in range(plan.batches):
        owner, first = batch % group.size, batch * plan.batch_size
        part = x[first : first + plan.count(batch)]
        if owner and group.is_main:
            group.recv(part, owner)
        elif owner and owner == group.rank:
            group.send(part)


@dataclass(frozen=True)
class _Output:
    """The files to write, and how they show the samples."""

    writers: Mapping[Path, Writer]
    source: Source
    plan: Plan
    display: Display
    overwrite: bool

    @property
    def spec(self) -> DrawingSpec:
        """The samples to come, for the writers."""
        display, data = self.display, self.source.data
        return DrawingSpec(
            shape=data.shape,
            form=data.form,
            steps=self.plan.steps,
            strip=display.strip,
            trajectory=display.trajectory,
            hidden=hidden(self.plan.levels, is_image=data.is_image),
        )

    def check(self) -> None:
        """Raise `UsageError` for a file that cannot show these samples."""
        for path, writer in self.writers.items():
            with naming_out():
                check(writer, path, self.spec)

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

        condition = self.plan.condition(0, self.plan.num_samples)
        fields = {} if condition is None else condition.fields()
        source, plan, images = self.source, self.plan, _given_images(self.plan)
        drawn = not all(writer.holds_arrays for writer in self.writers.values())
        joined, columns = plan.settings.interpolate is not None, self.display.columns
        if joined and not columns and self.display.strip is None:
            columns = plan.num_samples + len(images)  # a path is one row
        return Drawing(
            x=trajectories.x,
            scaling=source.data.scaling,
            form=source.data.form,
            title=", ".join(_title(source, plan)),
            states=trajectories.states if self.steps else None,
            state_labels=[f"t = {level.t:.0f}" if level.sigma > 0 else "x_0" for level in trajectories.levels],
            state_steps=self.steps,
            state_hidden=hidden(trajectories.levels, is_image=source.data.is_image),
            labels=fields.get("label"),
            conditions={COLUMNS[name]: rows for name, rows in fields.items() if name != "label"},
            condition_images=fields.get("image"),
            class_names=source.data.class_names,
            reference=reference_points_of(source) if drawn and source.data.is_points else None,
            columns=columns,
            given=torch.stack(images).cpu() if images else None,
            joined=joined,
            strip=self.display.strip,
            raw=self.display.raw,
            trajectory=self.display.trajectory,
        )


def _given_images(plan: Plan) -> list[Tensor]:
    """Return the images that the samples start from or complete, without the part to paint."""
    images = [] if plan.init is None else [plan.init]
    if plan.inpainting is not None:
        images.append(plan.inpainting.image.masked_fill(plan.inpainting.mask, 0.0))
    return images


def _title(source: Source, plan: Plan) -> Iterator[str]:
    """Yield the parts of the title of a picture."""
    settings = plan.settings
    yield source.title
    yield f"{plan.sampler.name} {counted(plan.steps, 'step')}"
    yield _seeds(plan)
    yield from plan.conditions_in_words(source)
    if plan.guidance is not None:
        yield words_of(plan.guidance)
    if settings.threshold is not None:
        yield f"thresholded at {settings.threshold:g}"
    if settings.init is not None:
        yield f"from {printable(settings.init.name)} (first) at strength {settings.strength or STRENGTH:g}"
    if settings.inpaint is not None:
        yield f"inpainting {printable(settings.inpaint.name)} (first)"
