"""`difftool sample`: walk a sampler with a trained model, and write what it made."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.command import component_command, given_names, given_values, named
from difftool.cli.console import bar, note
from difftool.cli.flags import Group, make_from_flags
from difftool.cli.outputs import check_outs, naming_out, report
from difftool.cli.sources import PANELS, RunArgument, SourceRequest, Timesteps, Weights, source_groups
from difftool.components import Sampler, Spacing, Writer
from difftool.distributed import connect, world
from difftool.errors import UsageError, printable, spending
from difftool.files import numbered
from difftool.options import options_of, plain
from difftool.sampling.writers import check, needed_states, suffixes_of_arrays, write, writer_of
from difftool.settings import STRENGTH, Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.distributed import ProcessGroup
    from difftool.figures.drawing import Drawing
    from difftool.figures.formats import DrawingSpec
    from difftool.runs.folder import RunFolder
    from difftool.sampling.plan import Plan
    from difftool.sampling.source import Source


def _choose(_ctx: typer.Context, params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    groups = [Group.of(named(Sampler, params)), Group.of(named(Spacing, params))]
    if writers := dict.fromkeys(_writer_of(Path(path)) for path in params.get("out") or ()):
        groups.append(Group.of(*writers))
    return [*source_groups(params), *groups, Group("sampling", (Sampling,), "Sampling")]


def _writer_of(path: Path) -> type[Writer]:
    with naming_out():
        return writer_of(path)


def sample(
    ctx: typer.Context,
    model: RunArgument = None,
    timesteps: Timesteps = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Where to write; the suffix decides: .png .jpg .svg .pdf picture, .gif film of the walk, .npy .npz "
            ".safetensors .csv the samples, no suffix a folder of PNGs. May be given several times.",
        ),
    ] = None,
    weights: Weights = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", metavar="NAME")] = "auto",
    columns: Annotated[int | None, typer.Option(min=1, help="Columns of a grid of images.")] = None,
    strip: Annotated[int | None, typer.Option(min=2, help="Draw this many states of the walk.")] = None,
    trajectory: Annotated[bool, typer.Option("--trajectory", help="Arrays hold the states of the walk too.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Arrays of images hold floats in [-1, 1], not pixels.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the paths.")] = False,
) -> None:
    """Draw samples from a trained model, or from an oracle, and print the files written."""
    names, values = given_names(ctx), given_values(ctx)
    sampler = make_from_flags(named(Sampler, names), values[Sampler.kind])
    spacing = make_from_flags(named(Spacing, names), values[Spacing.kind])
    settings = make_from_flags(Sampling, values["sampling"])
    if settings.interpolate is not None and "seed" in values["sampling"]:
        raise UsageError("--seed: --interpolate names its own two seeds; leave it out")
    request = SourceRequest.of(ctx.params, names, values)
    request.check(settings)
    check_outs(out or (), overwrite=overwrite)
    writers = {
        path: make_from_flags(cls, options_of(cls, values.get(Writer.kind, {}))) for path, cls in _by_path(out).items()
    }
    _check_arrays(writers.values(), trajectory=trajectory, raw=raw)

    from difftool import devices
    from difftool.figures.formats import DrawingSpec
    from difftool.sampling.plan import Plan

    chosen = devices.choose(device)
    opened = request.open(chosen, compiled=settings.compile)
    loaded, run = opened.source, opened.run
    plan = _divided(Plan.of(loaded, settings, sampler=sampler, spacing=spacing))
    if not writers:
        path = _default_out(loaded, plan, run)
        writers = {path: writer_of(path)()}
    spec = DrawingSpec(shape=loaded.data.shape, steps=plan.steps, strip=strip, trajectory=trajectory)
    for path, writer in writers.items():
        with naming_out():
            check(writer, path, spec)
    with devices.threads(settings.threads, opened.threads):
        note(
            f"sampling {opened.where} ({loaded.description}): "
            f"{plan.num_samples:,} samples, {plan.sampler.name}, {plan.steps} steps, {plan.spacing.name}; "
            f"{devices.describe(chosen)}, {_seeds(plan)}"
        )
        start = time.perf_counter()
        with connect() as group:
            with spending(plan.batch_size):
                drawing, calls = _walk(loaded, plan, spec, writers.values(), group, columns=columns, raw=raw)
            seconds = time.perf_counter() - start
            group.on_main(lambda: _write(writers, drawing, overwrite=overwrite))
    note(f"{plan.num_samples:,} samples in {seconds:.1f} s ({plan.steps} steps, {calls} network calls each)")
    facts = {
        **opened.facts,
        "sampler": plan.sampler.name,
        "steps": plan.steps,
        "calls": calls,
        "spacing": plan.spacing.name,
        "num_samples": plan.num_samples,
        "seed": plan.seed,
        "seconds": round(seconds, 3),
        "settings": _changed(settings),
    }
    report(list(writers), facts, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="sample", panels=PANELS))(sample)


def _by_path(out: Sequence[Path] | None) -> dict[Path, type[Writer]]:
    return {path: _writer_of(path) for path in out or ()}


def _divided(plan: Plan) -> Plan:
    """The plan with batches small enough that each of many processes has one, where the user does not say."""
    from dataclasses import replace

    if plan.settings.batch_size is not None or world().size == 1:
        return plan
    return replace(plan, batch_size=min(plan.batch_size, -(-plan.num_samples // world().size)))


def _write(writers: Mapping[Path, Writer], drawing: Drawing, *, overwrite: bool) -> None:
    for path, writer in writers.items():
        write(writer, drawing, path, overwrite=overwrite)


def _walk(
    model: Source,
    plan: Plan,
    spec: DrawingSpec,
    writers: Collection[Writer],
    group: ProcessGroup,
    *,
    columns: int | None,
    raw: bool,
) -> tuple[Drawing, int]:
    """Sample under a bar, keeping what the writers need; the drawing, and the network calls of a walk.

    Of many processes each walks some of the batches, and the drawing is whole at the first one alone.
    """
    import torch

    from difftool.figures.drawing import Drawing
    from difftool.sampling.loop import sample as sampling_steps
    from difftool.sampling.source import reference_points_of

    drawn = not all(writer.holds_arrays for writer in writers) and group.is_main
    reference = reference_points_of(model) if drawn and len(spec.shape) == 1 else None
    places = {step: k for k, step in enumerate(needed_states(writers, spec))}
    names = [""] * len(places)
    # filled as batches come: a list of them would be there twice in the end, and scattered over the memory that the
    # network takes and gives back, which would then be several times as much
    x = torch.empty(plan.num_samples, *spec.shape)
    states = torch.empty(len(places), plan.num_samples, *spec.shape)
    calls, made, own = 0, 0, range(plan.batches)[group.rank :: group.size]
    with bar("sampling", len(own) * plan.steps) as shown:
        for at in sampling_steps(model, plan, own):
            end = at.first + len(at.x)
            if at.number in places:
                k = places[at.number]
                states[k, at.first : end] = at.x
                names[k] = f"t = {at.level.t:.0f}" if at.level.sigma > 0 else "x_0"
            if at.done:
                x[at.first : end] = at.x
                made += 1
            calls, steps = at.calls, made * plan.steps + (0 if at.done else at.number)
            shown.update(steps, f"{end if at.done else at.first:,}/{plan.num_samples:,} samples")
    for whole in (x, *states):
        _gather(whole, plan, group)
    drawing = Drawing(
        x=x,
        scaling=model.data.scaling,
        title=", ".join(_title(model, plan)),
        states=states if places else None,
        state_labels=names,
        state_steps=list(places),
        labels=None if plan.label is None else torch.full((len(x),), plan.label),
        reference=reference,
        columns=columns or _columns(plan),
        given=_given(plan),
        joined=plan.settings.interpolate is not None,
        strip=spec.strip,
        raw=raw,
        trajectory=spec.trajectory,
    )
    return drawing, calls


def _gather(x: Tensor, plan: Plan, group: ProcessGroup) -> None:
    """Bring the batches that other processes walked to their place at the first one."""
    if group.size == 1:
        return
    for batch in range(plan.batches):
        owner, first = batch % group.size, batch * plan.batch_size
        part = x[first : first + plan.count(batch)]
        if group.is_main and owner:
            group.recv(part, owner)
        elif owner == group.rank and not group.is_main:
            group.send(part)


def _title(model: Source, plan: Plan) -> Iterator[str]:
    """What a picture says of the walk."""
    settings = plan.settings
    yield model.title
    yield f"{plan.sampler.name} {plan.steps} steps"
    yield _seeds(plan)
    if plan.label is not None:
        yield f"class {model.data.class_names[plan.label]}"
    if settings.guidance != 1.0:
        yield f"guidance {settings.guidance:g}"
    if settings.guidance_interval is not None:
        yield "only for sigma/alpha of {:g} to {:g}".format(*settings.guidance_interval)
    if settings.guidance_rescale:
        yield f"rescaled by {settings.guidance_rescale:g}"
    if settings.threshold is not None:
        yield f"thresholded at {settings.threshold:g}"
    if settings.init is not None:
        yield f"from {printable(settings.init.name)} (first) at strength {settings.strength or STRENGTH:g}"
    if settings.inpaint is not None:
        yield f"inpainting {printable(settings.inpaint.name)} (first)"


def _changed(settings: Sampling) -> dict[str, Any]:
    """The settings that are not the defaults, as plain values."""
    defaults = plain(Sampling())
    return {name: value for name, value in plain(settings).items() if value != defaults.get(name)}


def _seeds(plan: Plan) -> str:
    seeds = plan.settings.interpolate
    return f"seed {plan.seed}" if seeds is None else f"seeds {seeds[0]} to {seeds[1]}"


def _columns(plan: Plan) -> int | None:
    """A path of images is one row."""
    if plan.settings.interpolate is None:
        return None
    return plan.num_samples + (plan.init is not None) + (plan.inpainting is not None)


def _given(plan: Plan) -> Tensor | None:
    """The images that the samples start from or complete, ahead of them in a picture."""
    import torch

    images = [] if plan.init is None else [plan.init]
    if plan.inpainting is not None:
        images.append(torch.where(plan.inpainting.mask, torch.zeros_like(plan.inpainting.image), plan.inpainting.image))
    return torch.stack(images).cpu() if images else None


def _default_out(model: Source, plan: Plan, run: RunFolder | None) -> Path:
    from difftool.figures.formats import undrawable

    suffix = ".npy" if undrawable(model.data.shape) else ".png"
    return numbered(run.samples, plan.stem, suffix) if run else numbered(Path(), f"{model.name}-{plan.stem}", suffix)


def _check_arrays(writers: Collection[Writer], *, trajectory: bool, raw: bool) -> None:
    """Refuse options of arrays where no array is written."""
    if not any(writer.holds_arrays for writer in writers):
        for flag, given in (("--trajectory", trajectory), ("--raw", raw)):
            if given:
                raise UsageError(f"{flag}: is for arrays; add --out with one of {', '.join(suffixes_of_arrays())}")
