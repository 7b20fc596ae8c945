"""`difftool noise --reconstruct RUN`: what a trained network makes of noised items, in one step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from difftool.cli.console import note
from difftool.cli.outputs import check_out, report
from difftool.components import Dataset
from difftool.errors import DifftoolError, UsageError, printable
from difftool.figures.formats import PICTURES, undrawable
from difftool.files import numbered

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.sampling.model import Model
    from difftool.sampling.reconstruction import Reconstruction

POINTS, IMAGES = 2_000, 1
"""Items of the run's dataset when the user does not say."""


def reconstruct_items(
    run: Path,
    images: Sequence[Path],
    *,
    at: tuple[int, ...] | None,
    num_samples: int | None,
    seed: int,
    out: Sequence[Path],
    device: str,
    overwrite: bool,
    json: bool,
) -> None:
    """Noise items to several levels, estimate them, draw a table and say how far the estimates are off."""
    for path in out:
        check_out(path, overwrite=overwrite, suffixes=PICTURES)

    from difftool import devices
    from difftool.diffusion.forward import five_levels, noise_of
    from difftool.sampling.model import load_model
    from difftool.sampling.reconstruction import reconstruct

    model = load_model(run, device=devices.choose(device))
    if undrawable(model.data.shape):
        raise DifftoolError(f"{run}: only points and images can be drawn, not shape {model.data.shape}")
    levels = at or five_levels(len(model.schedule))
    check_levels(levels, len(model.schedule))
    x_0, labels, names = own_items(model, images) if images else items_of_run(model, num_samples)
    eps = noise_of(x_0, seed)
    with devices.threads(None, model.recipe.training.threads):
        made = [reconstruct(model, x_0, model.schedule[t], eps, labels) for t in levels]
    what = ", ".join(printable(path.name) for path in images) or f"{len(x_0):,} of {model.recipe[Dataset].name}"
    note(f"{model.description}: reconstructing {what} in one step; {devices.describe(model.device)}, seed {seed}")
    for one in made:
        note(
            f"t = {one.level.t:.0f}: mean squared error {one.error:.4g} of x_0 (data of variance "
            f"{float(x_0.var(correction=0)):.3g}), {one.noise_error:.4g} of the noise"
        )
    paths = list(out) or [numbered(Path(), f"reconstruction-{model.name}", ".png")]
    draw(model, made, names, paths, overwrite=overwrite)
    facts = [
        {
            "t": int(one.level.t),
            "alpha": one.level.alpha,
            "sigma": one.level.sigma,
            "mse": one.error,
            "noise_mse": one.noise_error,
        }
        for one in made
    ]
    report(paths, {"model": str(model.source), "levels": facts}, as_json=json)


def check_levels(at: Sequence[int], timesteps: int) -> None:
    for t in at:
        if t >= timesteps:
            raise UsageError(f"--at: {t} is beyond the last level, {timesteps - 1}")


def own_items(model: Model, images: Sequence[Path]) -> tuple[Tensor, None, list[str]]:
    """The user's images in model units, without labels, and their names."""
    import torch

    from difftool.data.images import own_image

    if model.needs_label:
        raise UsageError(
            f"image: {model.name} was trained with --label-dropout 0 and knows no images without a class; "
            "name none, and items of its dataset are taken"
        )
    x_0 = torch.stack([own_image(p, model.data, model.name, "image") for p in images])
    return x_0.to(model.device), None, [printable(p.stem) for p in images]


def items_of_run(model: Model, num_samples: int | None) -> tuple[Tensor, Tensor | None, list[str]]:
    """The first items of the run's dataset in model units, their labels, and numbers as names."""
    from difftool.plugins.build import loading

    samples = model.load_samples()
    count = min(num_samples or (IMAGES if samples.is_image else POINTS), len(samples))
    with loading(model.recipe[Dataset]):  # items on disk are read here
        items, labels = samples.take(range(count))
    x_0 = model.data.scaling.to_model(items).to(model.device)
    return x_0, None if labels is None else labels.to(model.device), [f"item {i}" for i in range(count)]


def draw(
    model: Model, made: Sequence[Reconstruction], names: Sequence[str], paths: Sequence[Path], *, overwrite: bool
) -> None:
    """A row for each level; of images, for each image and level."""
    from difftool.figures.style import save
    from difftool.files import atomic
    from difftool.sampling.reconstruction import panel

    rows, labels = list(made), [f"t = {one.level.t:.0f}" for one in made]
    if model.data.is_image and len(names) > 1:
        rows = [one.item(i) for i in range(len(names)) for one in made]
        labels = [f"{name}, t = {one.level.t:.0f}" for name in names for one in made]
    for path in paths:
        with atomic(path, overwrite=overwrite) as temporary:
            save(panel(rows, model.data, rows=labels, title=model.description), temporary)
