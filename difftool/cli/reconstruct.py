"""`difftool reconstruct`: noised items, and a trained network's estimates of them in one step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftool.cli.command import component_command, given_values
from difftool.cli.console import note
from difftool.cli.flags import Group, make_from_flags
from difftool.cli.outputs import check_out, report, save_figure
from difftool.cli.parameters import Device, FigureJson, Images, Overwrite, check_images, check_levels, out_option
from difftool.components import Dataset
from difftool.errors import DifftoolError, UsageError, printable
from difftool.figures.formats import PICTURES, undrawable
from difftool.files import numbered
from difftool.options import Options, option
from difftool.settings import LARGEST_SEED

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from difftool.data.condition import Condition
    from difftool.sampling.model import Model
    from difftool.sampling.reconstruction import Reconstruction

POINTS, ITEMS = 2_000, 1
"""Default numbers of items of the run's dataset."""


class Reconstructing(Options):
    """The settings of a reconstruction."""

    at: tuple[int, ...] | None = option(
        default=None, ge=0, lt=100_000, help="levels to show, 0 to T-1", otherwise="five of them"
    )
    num_samples: int | None = option(
        default=None,
        ge=1,
        le=10**6,
        short="-n",
        help="items of the run's dataset",
        otherwise="2000 points, or 1 other item",
    )
    seed: int = option(default=0, ge=0, le=LARGEST_SEED, help="seed of the noise")

    def __post_init__(self) -> None:
        if self.at == ():
            raise ValueError("at: must name at least one level")


def reconstruct(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a model file.")],
    images: Images = None,
    out: Annotated[
        list[Path] | None,
        out_option("The figure (.png .jpg .svg .pdf).", "a new reconstruction-<name>-NNN.png here"),
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json: FigureJson = False,
) -> None:
    """Show what a network makes of noised items in one step.

    Items of the run's dataset, or your own images, are noised to several levels.
    The columns are the original, the noised item, the true and the predicted noise, and the reconstruction.
    """
    settings: Reconstructing = make_from_flags(Reconstructing, given_values(ctx)["reconstruct"])
    check_images(images or ())
    for path in out or ():
        check_out(path, overwrite=overwrite, suffixes=PICTURES)

    from difftool import devices
    from difftool.diffusion.forward import noise_of
    from difftool.diffusion.visible import visible_levels
    from difftool.sampling.model import load_model
    from difftool.sampling.reconstruction import reconstruct as reconstruct_items

    model = load_model(run, device=devices.choose(device))
    if reason := undrawable(model.data.form, model.data.shape):
        raise DifftoolError(f"{run}: {reason}")
    levels = settings.at or visible_levels(model.schedule, is_image=model.data.has_pixels)
    check_levels(levels, len(model.schedule))
    x_0, condition, names = _own_items(model, images) if images else _dataset_items(model, settings.num_samples)
    what = ", ".join(printable(path.name) for path in images or ()) or f"{len(x_0):,} of {model.recipe[Dataset].name}"
    note(
        f"{model.description}: reconstructing {what} in one step; "
        f"{devices.describe(model.device)}, seed {settings.seed}"
    )
    eps, variance = noise_of(x_0, settings.seed), float(x_0.var(correction=0))
    with devices.threads(None, model.recipe.training.threads):
        rows = [reconstruct_items(model, x_0, model.schedule[t], eps, condition) for t in levels]
    what_of = "data" if model.latents is None else "latents"
    for row in rows:
        note(
            f"t = {row.level.t:.0f}: mean squared error {row.error:.4g} of x_0 ({what_of} of variance {variance:.3g}), "
            f"{row.noise_error:.4g} of the noise"
        )
    paths = out or ([] if json else [numbered(Path(), f"reconstruction-{model.name}", ".png")])
    for path in paths:
        save_figure(_figure(model, rows, names), path, overwrite=overwrite)
    report(paths, {"model": str(model.source), "levels": [row.facts() for row in rows]}, as_json=json)


def add_to(app: typer.Typer) -> None:
    group = Group("reconstruct", (Reconstructing,), "Reconstruction")
    app.command(cls=component_command(lambda *_: [group]))(reconstruct)


def _own_items(model: Model, images: Sequence[Path]) -> tuple[Tensor, None, list[str]]:
    """Return the user's images as the network sees them, without a condition, and their names."""
    import torch

    from difftool.data.own_images import own_image
    from difftool.sampling.conditions import WORDS

    if model.needs_condition:
        fields = " and ".join(WORDS[name] for name in model.data.condition.shapes)
        raise UsageError(
            f"IMAGE: {model.name} was trained with --condition-dropout 0 and cannot predict without {fields}; "
            "leave the images out to reconstruct items of its dataset"
        )
    x_0 = torch.stack([own_image(path, model.data, model.name, "IMAGE") for path in images])
    return model.encode(x_0.to(model.device)), None, [printable(path.stem) for path in images]


def _dataset_items(model: Model, num_samples: int | None) -> tuple[Tensor, Condition | None, list[str]]:
    """Return the first items of the run's dataset as the network sees them, their conditions, and their names."""
    from difftool.plugins.build import loading

    samples = model.load_samples()
    count = min(num_samples or (POINTS if samples.form == "points" else ITEMS), len(samples))
    with loading(model.recipe[Dataset]):  # items on disk are read here
        items, condition = samples.take(range(count))
    x_0 = model.encode(model.data.scaling.to_model(items).to(model.device))
    condition = model.model_condition(condition)
    return x_0, None if condition is None else condition.to(model.device), [f"item {i}" for i in range(count)]


def _figure(model: Model, reconstructions: Sequence[Reconstruction], names: Sequence[str]) -> Figure:
    """Draw a row for each level; for several items that are no points, a row for each item and level."""
    from difftool.sampling.reconstruction import panel

    rows, labels = list(reconstructions), [f"t = {one.level.t:.0f}" for one in reconstructions]
    if not model.data.is_points and len(names) > 1:
        rows = [one.item(i) for i in range(len(names)) for one in reconstructions]
        labels = [f"{name}, {label}" for name in names for label in labels]
    return panel(rows, model, rows=labels, title=model.description)
