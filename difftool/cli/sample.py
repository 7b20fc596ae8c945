"""`difftool sample`: draw samples with a trained model or an oracle, and write them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool import manifest
from difftool.cli.command import component_command, given_component, given_values, named
from difftool.cli.console import note, progress
from difftool.cli.flags import Group, make_from_flags
from difftool.cli.guidance import guidance_groups, guidances, words_of_several
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
from difftool.components import Sampler, Spacing, Writer
from difftool.distributed import connect, world
from difftool.errors import UsageError, counted, listed, spending
from difftool.figures.formats import undrawable
from difftool.files import numbered
from difftool.options import options_of, plain
from difftool.paths import check_inside
from difftool.sampling.writers import suffixes_of_arrays, writer_of
from difftool.settings import Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.distributed import ProcessGroup
    from difftool.sampling.loop import Trajectories
    from difftool.sampling.plan import Plan
    from difftool.sampling.source import Source


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
    plans = [plan, *(plan.with_guidance(opened.source, other) for other in others)]
    output = Output(writers, opened.source, plans, display, overwrite)
    output.check()
    if warning := caution(opened.source, plan):
        warnings.warn(warning, stacklevel=1)
    facts = _draw_and_write(opened, output)
    if not out and opened.run and world().is_main:
        manifest.record(opened.run.samples, map(manifest.entry, writers))
    report(list(writers), {**opened.facts, **_facts(plans), **facts}, as_json=json)


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


def _facts(plans: Sequence[Plan]) -> dict[str, Any]:
    """Return the facts of plans for `--json`, with the settings that differ from their defaults."""
    from difftool.runs.recipe import component_table

    plan, defaults = plans[0], plain(Sampling())
    tables = [None if each.guidance is None else component_table(each.guidance) for each in plans]
    return {
        "sampler": plan.sampler.name,
        "steps": plan.steps,
        "spacing": plan.spacing.name,
        "guidance": tables if len(tables) > 1 else tables[0],
        "num_samples": plan.num_samples,
        "seed": plan.seed,
        "settings": {name: value for name, value in plain(plan.settings).items() if value != defaults.get(name)},
    }


def _draw_and_write(opened: Opened, output: Output) -> dict[str, Any]:
    """Draw the samples, write the files, and return network calls and seconds for `--json`."""
    from difftool import devices

    source, plan, plans = output.source, output.plan, output.plans
    with devices.threads(plan.settings.threads, opened.threads), connect() as group:
        note(
            f"sampling {opened.where} ({source.description}): {counted(plan.num_samples, 'sample')}"
            f"{under(source, plan)}{_guided(plans)}, {plan.sampler.name}, {counted(plan.steps, 'step')}, "
            f"{plan.spacing.name}; {devices.describe(source.device)}, {seeds(plan)}"
        )
        start = time.perf_counter()
        parts = _draw(source, plans, output.steps, group)
        seconds = time.perf_counter() - start
        group.on_main(lambda: output.write(joined(parts)))
    calls = [part.calls for part in parts]
    distinct = listed([f"{number:,}" for number in dict.fromkeys(calls)])
    each = f"{counted(plan.steps, 'step')}, {distinct} network call{'' if {*calls} == {1} else 's'} each"
    note(f"{counted(plan.num_samples * len(plans), 'sample')} in {seconds:.1f} s ({each})")
    return {"calls": calls if len(calls) > 1 else calls[0], "seconds": round(seconds, 3)}


def _guided(plans: Sequence[Plan]) -> str:
    """Return words such as `, guidance 2` or `, each with guidance 1, 2 and 4`, or an empty text."""
    words = words_of_several([plan.guidance for plan in plans])
    return f", {'each with ' if len(plans) > 1 else ''}{words}" if words else ""


def _draw(source: Source, plans: Sequence[Plan], steps: Sequence[int], group: ProcessGroup) -> list[Trajectories]:
    """Draw the samples of all plans under one progress bar, with their states after these steps.

    Each of many processes draws some of the batches. The samples are complete on the first one alone.
    """
    from difftool.sampling.loop import collect

    plan, parts = plans[0], []
    batches = range(plan.batches)[group.rank :: group.size]
    with progress("sampling", len(plans) * len(batches) * plan.steps) as bar, spending(plan.batch_size):

        def watch(number: int, step: Any) -> None:
            finished = number * plan.num_samples + step.first + (len(step.x) if step.done else 0)
            batches_before = number * len(batches) + batches.index(step.first // plan.batch_size)
            words = f"{finished:,}/{counted(len(plans) * plan.num_samples, 'sample')}"
            bar.update(batches_before * plan.steps + step.number, words)

        for number, each in enumerate(plans):
            part = collect(source, each, steps, batches=batches, watch=partial(watch, number))
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
