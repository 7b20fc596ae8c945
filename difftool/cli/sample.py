"""`difftool sample`: draw samples with a trained model or an oracle, and write them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool import manifest
from difftool.cli.again import Again, Single
from difftool.cli.command import component_command, given_names, given_values
from difftool.cli.console import note, progress
from difftool.cli.flags import Group, make_from_flags
from difftool.cli.grids import CHECKPOINT, Grid, Several, Variation, check_axes, classes_of, words_in
from difftool.cli.guidance import guidance_groups, guidances, words_of
from difftool.cli.outputs import check_outs, naming_out, report
from difftool.cli.parameters import AsJson, Device, Overwrite
from difftool.cli.sample_files import Display, Output, joined, seeds, under
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
from difftool.components import Component, Guidance, Sampler, Spacing, Writer
from difftool.distributed import connect, world
from difftool.errors import UsageError, counted, listed, spending
from difftool.figures.formats import undrawable
from difftool.files import numbered
from difftool.options import fields, options_of, plain
from difftool.paths import check_inside
from difftool.sampling.writers import suffixes_of_arrays, writer_of
from difftool.settings import Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.distributed import ProcessGroup
    from difftool.sampling.loop import Trajectories
    from difftool.sampling.plan import Plan

FILES = Group("files", (Display,), "Files")
SAMPLING = Group("sampling", (Several, Sampling), "Sampling")

Checkpoints = Annotated[
    str | None,
    typer.Option(
        metavar="STEP,...|all",
        help="Sample the weights of earlier steps of the run, of all that it keeps, or the best; several make a grid.",
    ),
]
AgainFile = Annotated[
    Path | None,
    typer.Option(
        "--again",
        metavar="FILE",
        help="Make a file of samples again from the record that it carries. Other options take the place of its own.",
    ),
]


def _choose(ctx: typer.Context, params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    if (again := Again.of(ctx, params.get("again"))) is not None:
        params = again.names(params)
    groups = [Group.of(*classes_of(base, words_in(base, params))) for base in (Sampler, Spacing)]
    if writers := dict.fromkeys(_writers_of(params.get("out")).values()):
        groups.append(Group.of(*writers))
    groups += guidance_groups(params)
    return [*source_groups(params), *groups, SAMPLING, FILES]


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
    checkpoints: Checkpoints = None,
    again: AgainFile = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Draw samples from a trained model, or from an oracle, and print the files written."""
    made = Again.of(ctx, again)
    settings, variations = _settings(ctx, made), _variations(ctx, made)
    check_axes(variations)
    request = SourceRequest.of(ctx) if made is None else made.request(ctx)
    request.check(settings)
    check_outs(out or (), overwrite=overwrite)
    writers = _writers(ctx, out, made)
    display: Display = make_from_flags(Display, _laid_over(made, FILES, given_values(ctx)[FILES.key]))
    _check_for_arrays(display, writers.values())

    from difftool import devices
    from difftool.sampling.checkpoints import checkpoints_of
    from difftool.sampling.plan import caution

    opened = request.open(devices.choose(device if made is None else made.device(device)), compiled=settings.compile)
    if made is not None and checkpoints is None:
        checkpoints = ",".join(made.record.checkpoints) or None
    if checkpoints is not None:
        variations.insert(0, Variation(CHECKPOINT, checkpoints_of(opened.source, checkpoints, weights)))
    grid = Grid.of(opened.source, settings, variations)
    plan = grid.plan
    if settings.batch_size is None and world().size > 1:  # so that each process has a batch
        grid = grid.with_batches(min(plan.batch_size, -(-plan.num_samples // world().size)))
    if not out:
        path = _default_path(opened, plan, made)
        writers[path] = _writer(made, path, {})
    output = Output(writers, opened.source, grid, display, overwrite, made, request.ema_length)
    output.check()
    if warning := next(filter(None, (caution(opened.source, one) for one in grid.plans)), ""):
        warnings.warn(warning, stacklevel=1)
    facts = _draw_and_write(opened, output)
    if not out and opened.run and world().is_main:
        manifest.record(opened.run.samples, map(manifest.entry, writers))
    report(list(writers), {**opened.facts, **_facts(grid), **facts}, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="sample", panels=PANELS))(sample)


def _laid_over(again: Again | None, group: Group, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of options that the command line gives, over those of a record."""
    return {**({} if again is None else again.settings(*group.records)), **given}


def _settings(ctx: typer.Context, again: Again | None) -> Sampling:
    """Return the settings but for those of which several values may be given. Raises `UsageError`."""
    given = given_values(ctx)[SAMPLING.key]
    several = {f.name for f in fields(Several)}
    if again is not None:
        again.check_inputs(given)
    values = {name: v for name, v in _laid_over(again, SAMPLING, given).items() if name not in several}
    settings: Sampling = make_from_flags(Sampling, values)
    if settings.interpolate is not None and "seed" in given:
        raise UsageError("--seed: --interpolate names its own two seeds; leave it out")
    return settings


def _variations(ctx: typer.Context, again: Again | None) -> list[Variation]:
    """Return what several values may be given of, with its values. Raises `UsageError`."""
    values = _laid_over(again, SAMPLING, given_values(ctx)[SAMPLING.key])
    several: Several = make_from_flags(Several, options_of(Several, values))
    if again is None or Guidance.kind in given_names(ctx):
        guided = [guidance for guidance in guidances(ctx) if guidance is not None]
    else:
        guided = again.components(Guidance, given_values(ctx).get(Guidance.kind, {}))
    return [
        Variation(Sampler.kind, _components(ctx, Sampler, again)),
        Variation(Spacing.kind, _components(ctx, Spacing, again)),
        Variation(Guidance.kind, guided),
        Variation("steps", list(dict.fromkeys(several.steps or ()))),
        Variation("seed", list(dict.fromkeys(several.seed))),
    ]


def _components(ctx: typer.Context, base: type[Component], again: Again | None) -> list[Component]:
    """Return the components of a kind that the command line names, with those of the options that they have."""
    values, names = given_values(ctx)[base.kind], given_names(ctx)
    if again is not None:
        return again.components(base, values, words_in(base, names) if base.kind in names else ())
    return [make_from_flags(cls, options_of(cls, values)) for cls in classes_of(base, words_in(base, names))]


def _writers(ctx: typer.Context, out: Sequence[Path] | None, again: Again | None) -> dict[Path, Writer]:
    """Return the writer of each file that the command line names. Raises `UsageError`."""
    values = given_values(ctx).get(Writer.kind, {})
    return {Path(path): _writer(again, Path(path), values) for path in out or ()}


def _writer(again: Again | None, path: Path, values: Mapping[str, Any]) -> Writer:
    """Return the writer of a path, with those of the options that it has, over those of a record."""
    if again is not None and again.is_single(path):
        return Single(index=again.record.index or 0)
    cls = writer_of(path)
    recorded = {} if again is None else again.writer_options(cls)
    made: Writer = make_from_flags(cls, {**recorded, **options_of(cls, values)})
    return made


def _check_for_arrays(display: Display, writers: Iterable[Writer]) -> None:
    """Raise `UsageError` for settings of arrays if no writer holds them."""
    if any(writer.holds_arrays for writer in writers):
        return
    for flag, used in (("--trajectory", display.trajectory), ("--raw", display.raw)):
        if used:
            raise UsageError(f"{flag}: is for arrays; add --out with one of {', '.join(suffixes_of_arrays())}")


def _default_path(opened: Opened, plan: Plan, again: Again | None) -> Path:
    suffix = ".npy" if undrawable(opened.source.data.form, opened.source.data.shape) else ".png"
    if again is not None and not again.file.is_dir():
        suffix = again.file.suffix
    if opened.run:
        check_inside(opened.run.samples, opened.run.path)
        return numbered(opened.run.samples, plan.stem, suffix)
    return numbered(Path(), f"{opened.source.name}-{plan.stem}", suffix)


def _facts(grid: Grid) -> dict[str, Any]:
    """Return the facts of a grid for `--json`, with the settings that differ from their defaults.

    What has several values is a list of them.
    """
    from difftool.runs.recipe import component_table

    plan, defaults = grid.plan, plain(Sampling())

    def values(axis: str, of: Callable[[Plan], Any]) -> Any:
        found: list[Any] = []
        for one in map(of, grid.plans):
            if one not in found:
                found.append(one)
        return found if any(axis == each.name for each in grid.axes) else found[0]

    checkpoints = [checkpoint.name for checkpoint in grid.checkpoints if checkpoint is not None]
    return {
        **({"checkpoints": list(dict.fromkeys(checkpoints))} if checkpoints else {}),
        "sampler": values("sampler", lambda one: one.sampler.name),
        "steps": values("steps", lambda one: one.steps),
        "spacing": values("spacing", lambda one: one.spacing.name),
        "guidance": values("guidance", lambda one: None if one.guidance is None else component_table(one.guidance)),
        "num_samples": plan.num_samples,
        "seed": values("seed", lambda one: one.seed),
        "settings": {
            name: value
            for name, value in plain(plan.settings).items()
            if value != defaults.get(name) and all(name != axis.name for axis in grid.axes)
        },
    }


def _draw_and_write(opened: Opened, output: Output) -> dict[str, Any]:
    """Draw the samples, write the files, and return network calls and seconds for `--json`."""
    from difftool import devices

    grid, plan = output.grid, output.plan
    with devices.threads(plan.settings.threads, opened.threads) as parallel, connect() as group:
        if opened.source.device.type != "cpu" or plan.settings.compile:  # compiled code is not made for threads
            parallel = 1
        parallel = max(1, min(parallel, plan.batches // group.size))
        records = output.records()
        different = output.differences(records)
        note(f"sampling {opened.where} ({opened.source.description}): {_in_words(output, parallel)}")
        if output.again is not None:
            output.again.say_differences(different)
        start = time.perf_counter()
        parts = _draw(output, group, parallel)
        seconds = time.perf_counter() - start
        group.on_main(lambda: output.write(joined(parts), records))
    if output.again is not None and world().is_main:
        for path, rows in different.items():
            output.again.say_whether_same(path, expected=not rows)
    calls = [part.calls for part in parts]
    distinct = listed([f"{number:,}" for number in dict.fromkeys(calls)])
    steps = grid.value("steps") or f"{plan.steps:,}"
    each = f"{steps} step{'' if steps == '1' else 's'}, {distinct} network call{'' if {*calls} == {1} else 's'} each"
    note(f"{counted(plan.num_samples * len(parts), 'sample')} in {seconds:.1f} s ({each})")
    return {"calls": calls if len(calls) > 1 else calls[0], "seconds": round(seconds, 3)}


def _in_words(output: Output, parallel: int) -> str:
    """Return words such as `16 samples, ddim, 50 steps, trailing; cpu (1 thread), seed 0`."""
    from difftool import devices

    grid, plan, source = output.grid, output.plan, output.source
    steps = f"{plan.steps:,} step{'' if plan.steps == 1 else 's'}"
    words = [
        f"{counted(plan.num_samples, 'sample')}{under(source, plan)}",
        _each(grid) if grid.axes else words_of(plan.guidance) if plan.guidance is not None else "",
        "" if grid.value("sampler") else plan.sampler.name,
        "" if grid.value("steps") else steps,
        "" if grid.value("spacing") else plan.spacing.name,
    ]
    seed = "" if grid.value("seed") else f", {seeds(plan)}"
    return f"{', '.join(filter(None, words))}; {devices.describe(source.device, parallel)}{seed}"


def _each(grid: Grid) -> str:
    """Return words such as `each with guidance 1, 2 and 4`."""
    return f"each with {' by '.join(_axis_in_words(grid, axis.name) for axis in grid.axes)}"


def _axis_in_words(grid: Grid, name: str) -> str:
    value = grid.value(name)
    return value if name in value else f"{name} {value}"


def _draw(output: Output, group: ProcessGroup, parallel: int) -> list[Trajectories]:
    """Draw the samples of all sets under one progress bar, with the states that the files show.

    Each of many processes draws some of the batches, several at once. The samples are complete on the first one alone.
    """
    from difftool.sampling.loop import collect

    grid, plan, kept, parts = output.grid, output.plan, output.steps, []
    batches = range(plan.batches)[group.rank :: group.size]
    total = len(batches) * sum(one.steps for one in grid.plans)
    made = finished = 0
    with progress("sampling", total) as bar, spending(plan.batch_size):

        def watch(step: Any) -> None:
            nonlocal made, finished
            made += step.number > 0
            finished += len(step.x) if step.done else 0
            bar.update(made, f"{finished:,}/{counted(len(grid.plans) * plan.num_samples, 'sample')}")

        source = output.source
        for number, (each, checkpoint) in enumerate(zip(grid.plans, grid.checkpoints, strict=True)):
            if checkpoint is not None and (number == 0 or checkpoint is not grid.checkpoints[number - 1]):
                source = checkpoint.into(source)
            part = collect(source, each, kept, batches=batches, parallel=parallel, watch=watch)
            for x in (part.x, *part.states):
                _gather(x, each, group)
            parts.append(part)
    return parts


def _gather(x: Tensor, plan: Plan, group: ProcessGroup) -> None:
    """Copy the batches of the other processes to their place on the first one."""
    for batch in range(plan.batches):
        owner, first = batch % group.size, batch * plan.batch_size
        part = x[first : first + plan.count(batch)]
        if owner and group.is_main:
            group.recv(part, owner)
        elif owner and owner == group.rank:
            group.send(part)
