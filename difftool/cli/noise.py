"""`difftool noise`: the forward process of a dataset, or of one's own images."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.command import component_command, given_component, given_names, given_values, named
from difftool.cli.console import note, progress
from difftool.cli.flags import Group, make_from_flags
from difftool.cli.outputs import check_out, report
from difftool.cli.parameters import Device, FigureJson, Images, Overwrite, check_images, check_levels, out_option
from difftool.components import Dataset, NoiseSchedule
from difftool.errors import DifftoolError, UsageError, counted, printable
from difftool.figures.formats import FILMS, PICTURES, undrawable
from difftool.files import atomic, numbered
from difftool.options import Options, option
from difftool.settings import LARGEST_SEED

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.data.forms import Form
    from difftool.data.scaling import Scaling
    from difftool.diffusion.schedule import Schedule
    from difftool.figures.drawing import Drawing

FILM_FRAMES = 60
"""Largest number of levels that a film shows by default."""
ROWS, POINTS = 4, 2_000
"""Default numbers of images and points of a dataset."""
LONGEST_SIDE = 512
"""Larger images of the user are scaled down to this many pixels unless --size says otherwise."""


class Noising(Options):
    """The settings of a forward process."""

    timesteps: int = option(default=1000, ge=1, le=100_000, help="T, the number of noise levels")
    at: tuple[int, ...] | None = option(
        default=None, ge=0, lt=100_000, help="levels to show, 0 to T-1", otherwise="five of them"
    )
    iterative: bool = option(
        default=False, help="add noise step by step, and compare mean and deviation with the closed form"
    )
    num_samples: int | None = option(
        default=None, ge=1, le=10**6, short="-n", help="points of a dataset, or rows of other items"
    )
    size: tuple[int, ...] | None = option(default=None, ge=1, le=8192, help="HEIGHT,WIDTH of own images, or one number")
    seed: int = option(default=0, ge=0, le=LARGEST_SEED, help="seed of the noise and of random datasets")

    def __post_init__(self) -> None:
        if self.size is not None and len(self.size) not in (1, 2):
            raise ValueError("size: must be one number, or two as HEIGHT,WIDTH")
        if self.at == ():
            raise ValueError("at: must name at least one level")


def _choose(_ctx: typer.Context, params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    """Return the groups of options. A dataset's are among them even beside images, which a lenient pass cannot tell."""
    return [
        Group.of(named(Dataset, params)),
        Group.of(named(NoiseSchedule, params)),
        Group("noise", (Noising,), "Forward process"),
    ]


def noise(
    ctx: typer.Context,
    images: Images = None,
    out: Annotated[
        list[Path] | None,
        out_option("A strip (.png .jpg .svg .pdf) or a film (.gif .webp .apng).", "a new noise-<name>-NNN.png here"),
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json: FigureJson = False,
) -> None:
    """Show how signal turns into noise: the clean x_0, then x_t at several levels."""
    values = given_values(ctx)
    settings: Noising = make_from_flags(Noising, values["noise"])
    if images and (Dataset.kind in given_names(ctx) or values[Dataset.kind]):
        raise UsageError("--dataset: give either images or a dataset")
    if settings.size is not None and not images:
        raise UsageError("--size: is for own images; a dataset has --dataset.size where it has sizes")
    check_images(images or ())
    check_levels(settings.at or (), settings.timesteps)
    component = given_component(ctx, NoiseSchedule)
    dataset = None if images else given_component(ctx, Dataset)
    for path in out or ():
        check_out(path, overwrite=overwrite, suffixes=(*PICTURES, *FILMS))

    from difftool import devices
    from difftool.data.forms import PIXEL_FORMS
    from difftool.diffusion.visible import visible_levels
    from difftool.plugins.build import build_schedule

    chosen = devices.choose(device)
    schedule = build_schedule(component, settings.timesteps)
    items = _own_images(images, settings) if images else _dataset_items(dataset, settings)
    title = f"{items.name}, {component.name}, T = {settings.timesteps}"
    stem = f"noise-{items.name.replace(' ', '-')}-{component.name}"
    paths = out or ([] if json else [numbered(Path(), stem, ".png")])
    films = [path for path in paths if path.suffix.lower() in FILMS]
    levels = settings.at or visible_levels(schedule, is_image=items.form in PIXEL_FORMS)
    film_levels = settings.at or (
        visible_levels(schedule, FILM_FRAMES, is_image=items.form in PIXEL_FORMS) if films else ()
    )
    drawn = [f"levels {', '.join(map(str, levels))}"] if settings.at or not paths or len(films) < len(paths) else []
    if films and not settings.at:
        drawn.append(f"{counted(len(film_levels), 'level')} from {film_levels[0]} to {film_levels[-1]} in the film")
    note(
        f"{title}, {'; '.join(drawn)}, {'step by step' if settings.iterative else 'in closed form'}; "
        f"{devices.describe(chosen)}, seed {settings.seed}"
    )
    x_0 = items.x_0.to(chosen)
    states = _states(x_0, schedule, settings, {*levels, *film_levels})
    moments = _moments(x_0, schedule, settings.seed, {t: states[t] for t in levels})
    if settings.iterative:
        _report_moments(moments, x_0.numel())
    for path in paths:
        shown = {t: states[t] for t in (film_levels if path in films else levels)}
        _save(_drawing(items, shown, title), path, overwrite=overwrite)
    report(paths, {"levels": moments}, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="noise"))(noise)


@dataclass(frozen=True)
class _Items:
    """Items in model units on the CPU, with a name for notes and files."""

    x_0: Tensor
    scaling: Scaling
    form: Form
    name: str
    rate: float | None = None


def _own_images(paths: Sequence[Path], settings: Noising) -> _Items:
    """Read the user's images. All take the size of the first."""
    import torch

    from difftool.data.images import BadImage, read_image
    from difftool.data.samples import PIXELS
    from difftool.data.scaling import Scaling

    try:
        if settings.size is not None:
            size = (settings.size[0], settings.size[-1])
        else:
            _, height, width = read_image(paths[0]).shape
            shrink = min(1.0, LONGEST_SIDE / max(height, width))
            size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
            if shrink < 1.0:
                note(f"{paths[0]}: shown at {size[0]}x{size[1]} pixels; --size gives another size")
        pixels = torch.stack([read_image(path, size=size) for path in paths])
    except BadImage as error:
        raise DifftoolError(str(error)) from None
    scaling = Scaling(PIXELS["shift"], PIXELS["scale"])
    name = printable(paths[0].stem) if len(paths) == 1 else f"{len(paths)} images"
    return _Items(scaling.to_model(pixels), scaling, "image", name)


def _dataset_items(dataset: Any, settings: Noising) -> _Items:
    """Take the first items of a dataset. Raises `DifftoolError` if they cannot be drawn."""
    from difftool.data.forms import form_of
    from difftool.plugins.build import load_samples, loading

    samples = load_samples(dataset, settings.seed)
    if reason := undrawable(samples.form, samples.shape):
        raise DifftoolError(f"dataset {dataset.name}: {reason}")
    count = min(settings.num_samples or (POINTS if samples.form == "points" else ROWS), len(samples))
    with loading(dataset):  # items on disk are read here
        items = samples.take_items(range(count))
    scaling = samples.scaling
    form = form_of(samples.form, samples.shape)
    return _Items(scaling.to_model(items), scaling, form, dataset.name, samples.rate)


def _states(x_0: Tensor, schedule: Schedule, settings: Noising, levels: Collection[int]) -> dict[int, Tensor]:
    """Return x_t on the CPU at these levels."""
    from difftool.diffusion.forward import iterate, noised

    if not settings.iterative:
        return {t: noised(x_0, schedule[t], settings.seed).cpu() for t in sorted(levels)}
    states = {}
    steps = range(max(levels) + 1)
    with progress("noising", len(steps)) as bar:
        for t, x_t in zip(steps, iterate(x_0, schedule, settings.seed), strict=False):
            if t in levels:
                states[t] = x_t.cpu()
            bar.update(t + 1, "")
    return states


def _moments(x_0: Tensor, schedule: Schedule, seed: int, states: dict[int, Tensor]) -> list[dict[str, Any]]:
    """Return the mean and deviation of each state, with those of the closed form."""
    from difftool.diffusion.forward import moments, noised

    rows = []
    for t, x_t in states.items():
        level = schedule[t]
        mean, std = moments(x_t)
        closed_mean, closed_std = moments(noised(x_0, level, seed))
        row = {"t": t, "alpha": level.alpha, "sigma": level.sigma, "mean": mean, "std": std}
        rows.append(row | {"closed_mean": closed_mean, "closed_std": closed_std})
    return rows


def _report_moments(rows: Sequence[dict[str, Any]], numbers: int) -> None:
    """Say how far a process of so many numbers is from the closed form."""
    for row in rows:
        note(
            f"t = {row['t']}: mean {row['mean']:+.4f}, std {row['std']:.4f} step by step; "
            f"{row['closed_mean']:+.4f}, {row['closed_std']:.4f} in closed form"
        )
    difference = max(abs(row[key] - row[f"closed_{key}"]) for row in rows for key in ("mean", "std"))
    chance = max(row["sigma"] for row in rows) * math.sqrt(2 / numbers)
    note(f"largest difference of mean or deviation: {difference:.4f}; chance alone makes about {chance:.4f}")


def _save(drawing: Drawing, path: Path, *, overwrite: bool) -> None:
    """Write a film or a strip, whole or not at all."""
    with atomic(path, overwrite=overwrite) as temporary:
        if path.suffix.lower() in FILMS:
            drawing.save_film(temporary, most=len(drawing.state_labels), fps=20, hold=1.5)
        else:
            drawing.save_figure(temporary)


def _drawing(items: _Items, states: dict[int, Tensor], title: str) -> Drawing:
    """Return a drawing of x_0 and x_t at several levels."""
    import torch

    from difftool.figures.drawing import Drawing

    stacked = torch.stack([items.x_0, *states.values()])
    return Drawing(
        x=stacked[-1],
        scaling=items.scaling,
        form=items.form,
        rate=items.rate,
        title=title,
        noun="noised data",
        states=stacked,
        state_labels=["x_0", *(f"t = {t}" for t in states)],
        strip=len(stacked),
        strip_rows=len(items.x_0),
    )
