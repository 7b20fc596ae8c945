"""`difftool sample`: walk a sampler with a trained model, and write what it made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from difftool.cli.command import component_command, given_values, name_option, named
from difftool.cli.console import bar, note
from difftool.cli.outputs import check_out, report
from difftool.components import Component, Sampler, Spacing
from difftool.errors import UsageError
from difftool.files import numbered
from difftool.options import Group, help_text, make_from_flags
from difftool.settings import Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.model import Model
    from difftool.runs import RunFolder
    from difftool.sampling import Plan

CHOICES: dict[str, tuple[type[Component], str]] = {"sampler": (Sampler, "ddim"), "spacing": (Spacing, "trailing")}
"""The components this command chooses, and those it takes by itself."""


def _chosen(params: Mapping[str, Any]) -> dict[str, type[Component]]:
    return {kind: named(base, params.get(kind), default) for kind, (base, default) in CHOICES.items()}


def _choose(params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    chosen = _chosen(params).values()
    return [*(Group.of(cls) for cls in chosen), Group("sampling", (Sampling,), "Sampling")]


def sample(
    ctx: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(help=help_text("A run folder or a model file.", "default: the newest run"), metavar="RUN"),
    ] = None,
    sampler: Annotated[
        str | None,
        name_option("sampler", "How to walk.", "ddim"),
    ] = None,
    spacing: Annotated[
        str | None,
        name_option("spacing", "Levels visited.", "trailing"),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Where to write; the suffix decides: .png .jpg .svg .pdf picture, .gif film of the walk, .npy .npz "
            ".safetensors .csv the samples, no suffix a folder of PNGs. May be given several times.",
        ),
    ] = None,
    weights: Annotated[Literal["ema", "raw"], typer.Option(help="The average, or the trained weights.")] = "ema",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", metavar="NAME")] = "auto",
    columns: Annotated[int | None, typer.Option(min=1, help="Columns of a grid of images.")] = None,
    strip: Annotated[int | None, typer.Option(min=2, help="Draw this many states of the walk.")] = None,
    trajectory: Annotated[bool, typer.Option("--trajectory", help="Arrays hold the states of the walk too.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Arrays of images hold floats in [-1, 1], not pixels.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the paths.")] = False,
) -> None:
    """Draw samples from a trained model, and print the files written."""
    given = given_values(ctx)
    parts = {kind: make_from_flags(cls, given[kind]) for kind, cls in _chosen(ctx.params).items()}
    settings = make_from_flags(Sampling, given["sampling"])
    for i, path in enumerate(out or ()):
        check_out(path, overwrite=overwrite)
        if path.absolute() in [other.absolute() for other in (out or ())[:i]]:
            raise UsageError(f"--out: {path} is given twice")
    _check_arrays(out or (), trajectory=trajectory, raw=raw)

    from difftool import device as devices
    from difftool.runs import find_model
    from difftool.sampling import Plan
    from difftool.state import read_model

    source, run = find_model(model)
    chosen = devices.choose(device)
    loaded = read_model(source, run, weights).to(chosen)
    if settings.compile:
        import torch

        loaded.forward = torch.compile(loaded.network)
    plan = Plan.of(
        loaded,
        sampler=parts["sampler"],
        spacing=parts["spacing"],
        **{name: getattr(settings, name) for name in _PLANNED},
    )
    paths = list(out or ()) or [_default_out(loaded, plan, run)]
    for path in paths:
        _check_drawable(path, loaded, strip=strip is not None)
    with devices.threads(settings.threads, loaded.recipe.training.threads):
        note(
            f"sampling {run.path if run else source} ({loaded.recipe.name}, step {loaded.step}, {loaded.weights} "
            f"weights): {plan.num_samples:,} samples, {plan.sampler.name}, {plan.steps} steps, {plan.spacing.name}; "
            f"{devices.describe(chosen)}, seed {plan.seed}"
        )
        show = _Show(paths, columns=columns, strip=strip, trajectory=trajectory, raw=raw)
        start = time.perf_counter()
        drawing = show.walk(loaded, plan)
        seconds = time.perf_counter() - start
    from difftool.figures.writers import write

    for path in paths:
        write(drawing, path, overwrite=overwrite)
    note(f"{plan.num_samples:,} samples in {seconds:.1f} s ({plan.steps} steps each)")
    facts = {
        "model": str(source),
        "weights": loaded.weights,
        "sampler": plan.sampler.name,
        "steps": plan.steps,
        "spacing": plan.spacing.name,
        "num_samples": plan.num_samples,
        "seed": plan.seed,
        "seconds": round(seconds, 3),
    }
    report(paths, facts, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose))(sample)


_PLANNED = ("steps", "num_samples", "batch_size", "seed", "label", "guidance", "precision")


class _Show:
    """What is kept of a walk for the files asked for."""

    def __init__(
        self, paths: Sequence[Path], *, columns: int | None, strip: int | None, trajectory: bool, raw: bool
    ) -> None:
        self.paths, self.columns, self.strip, self.trajectory, self.raw = paths, columns, strip, trajectory, raw

    def kept_steps(self, steps: int) -> set[int]:
        """The steps whose states the files show: 0 is x_T, the last the result."""
        from difftool.figures.formats import ARRAYS, FILM_STATES, needs_states

        suffixes = {path.suffix.lower() for path in self.paths}
        if not any(needs_states(p, strip=self.strip, trajectory=self.trajectory) for p in self.paths):
            return set()
        if self.trajectory and suffixes & set(ARRAYS):
            return set(range(steps + 1))
        wanted = max(self.strip or 0, FILM_STATES if ".gif" in suffixes else 0)
        return {round(i * steps / (wanted - 1)) for i in range(wanted)} if wanted > 1 else {steps}

    def walk(self, model: Model, plan: Plan) -> Any:
        """Sample under a bar; the drawing of the result."""
        import torch

        from difftool.figures.formats import FILMS, PICTURES
        from difftool.figures.writers import Drawing
        from difftool.previews import reference_points_of
        from difftool.sampling import sample as walk

        kept = self.kept_steps(plan.steps)
        pictures = any(path.suffix.lower() in (*PICTURES, *FILMS) for path in self.paths)
        reference = reference_points_of(model.recipe) if pictures and len(model.data.shape) == 1 else None
        states: dict[int, list[Tensor]] = {step: [] for step in sorted(kept)}
        names: dict[int, str] = {}
        x: list[Tensor] = []
        with bar("sampling", plan.batches * plan.steps) as shown:
            for at in walk(model, plan):
                if at.step in kept:
                    states[at.step].append(at.x.cpu())
                    names[at.step] = f"t = {at.level.t:.0f}" if at.level.sigma > 0 else "x_0"
                if at.done:
                    x.append(at.x.cpu())
                made = min(at.first + len(at.x), plan.num_samples) if at.done else at.first
                shown.update(at.batch * plan.steps + at.step, f"{made:,}/{plan.num_samples:,} samples")
        result = torch.cat(x)
        recipe = model.recipe
        trained = f"{recipe.name}, {recipe.schedule.name} T = {recipe.training.timesteps}"
        title = f"{trained}, {plan.sampler.name} {plan.steps} steps, seed {plan.seed}"
        label = "" if plan.label is None else f", {model.data.class_names[plan.label]}"
        guidance = "" if plan.guidance == 1.0 else f", guidance {plan.guidance:g}"
        return Drawing(
            x=result,
            scaling=model.data.scaling,
            title=title + label + guidance,
            states=torch.stack([torch.cat(states[step]) for step in states]) if states else None,
            state_labels=[names[step] for step in states],
            labels=None if plan.label is None else torch.full((len(result),), plan.label),
            reference=reference,
            columns=self.columns,
            strip=self.strip,
            raw=self.raw,
            trajectory=self.trajectory,
        )


def _default_out(model: Model, plan: Plan, run: RunFolder | None) -> Path:
    from difftool.figures.formats import drawable

    suffix = ".png" if drawable(model.data.shape) else ".npy"
    return numbered(run.samples if run else Path(), plan.stem, suffix)


def _check_arrays(paths: Sequence[Path], *, trajectory: bool, raw: bool) -> None:
    """Refuse options of arrays where no array is written."""
    from difftool.figures.formats import ARRAYS

    if not any(path.suffix.lower() in ARRAYS for path in paths):
        for flag, given in (("--trajectory", trajectory), ("--raw", raw)):
            if given:
                raise UsageError(f"{flag}: is for arrays; add --out with one of {', '.join(ARRAYS)}")


def _check_drawable(path: Path, model: Model, *, strip: bool) -> None:
    from difftool.figures.formats import check_shape

    check_shape(path, model.data.shape, strip=strip)
