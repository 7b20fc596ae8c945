"""`difftool noise`: the forward process of a dataset, or of one's own images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.command import component_command, given_names, given_values, named
from difftool.cli.console import bar, help_text, note
from difftool.cli.flags import Group, make_from_flags
from difftool.cli.outputs import check_out, report
from difftool.cli.reconstruct import check_levels, reconstruct_items
from difftool.components import Dataset, NoiseSchedule
from difftool.errors import DifftoolError, UsageError, printable
from difftool.figures.formats import FILMS, PICTURES
from difftool.files import numbered
from difftool.options import Options, option
from difftool.settings import LARGEST_SEED

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from difftool.data.samples import Scaling
    from difftool.diffusion.schedule import Schedule

FILM_FRAMES = 60
ROWS, POINTS = 4, 2_000
LONGEST_SIDE = 512
"""Own images larger than this are shown smaller unless --size says otherwise."""


class Noising(Options):
    """What of the forward process is shown."""

    timesteps: int = option(default=1000, ge=1, le=100_000, help="T, the number of noise levels")
    at: tuple[int, ...] | None = option(default=None, ge=0, help="levels to show, 0 to T-1", otherwise="five of them")
    iterative: bool = option(
        default=False, help="walk step by step, and say how far the moments are from the closed form"
    )
    num_samples: int | None = option(
        default=None, ge=1, le=10**6, short="-n", help="images (rows) or points of a dataset"
    )
    size: tuple[int, ...] | None = option(default=None, ge=1, le=8192, help="HEIGHT,WIDTH of own images, or one number")
    seed: int = option(default=0, ge=0, le=LARGEST_SEED, help="everything random is a function of it")

    def __post_init__(self) -> None:
        if self.size is not None and len(self.size) not in (1, 2):
            raise ValueError("size: must be one number, or two as HEIGHT,WIDTH")
        if self.at == ():
            raise ValueError("at: must name at least one level")


def _choose(_ctx: typer.Context, params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    """The dataset's options are offered beside images too: a lenient pass cannot tell images from values."""
    return [
        Group.of(named(Dataset, params)),
        Group.of(named(NoiseSchedule, params)),
        Group("noise", (Noising,), "Forward process"),
    ]


def noise(
    ctx: typer.Context,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Own images, instead of a dataset.")
    ] = None,
    reconstruct: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Show what a trained run makes of the noise: predicted noise and one-step reconstruction of items of "
            "its dataset, or of own images.",
        ),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help=help_text(
                "A strip (.png .jpg .svg .pdf) or a film (.gif).", "default: a new noise-<name>-NNN.png here"
            ),
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", metavar="NAME")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the paths.")] = False,
) -> None:
    """Show how signal turns into noise: the clean x_0, then x_t at several levels."""
    given, names = given_values(ctx), given_names(ctx)
    dataset, schedule = names.get(Dataset.kind), names.get(NoiseSchedule.kind)
    if images and (dataset is not None or given["dataset"]):
        raise UsageError("--dataset: give either images or a dataset")
    settings = make_from_flags(Noising, given["noise"])
    for path in images or ():
        if not path.is_file():
            raise DifftoolError(f"image {path} does not exist" if not path.exists() else f"image {path} is no file")
    if reconstruct is not None:
        _check_own(given, dataset=dataset, schedule=schedule)
        reconstruct_items(
            reconstruct,
            images or (),
            at=settings.at,
            num_samples=settings.num_samples,
            seed=settings.seed,
            out=out or (),
            device=device,
            overwrite=overwrite,
            json=json,
        )
        return
    check_levels(settings.at or (), settings.timesteps)
    component = make_from_flags(named(NoiseSchedule, names), given["schedule"])
    source = None
    if not images:
        source = make_from_flags(named(Dataset, names), given["dataset"])
        if settings.size is not None:
            raise UsageError("--size: is for own images; a dataset has --dataset.size where it has sizes")
    for path in out or ():
        check_out(path, overwrite=overwrite, suffixes=(*PICTURES, *FILMS))

    from difftool import devices
    from difftool.plugins.build import build_schedule

    table = build_schedule(component, settings.timesteps)
    x_0, scaling, name = _own(images, settings) if images else _of_dataset(source, settings)
    chosen = devices.choose(device)
    process = _Process(x_0.to(chosen), scaling, table, settings, f"{name}, {component.name}, T = {settings.timesteps}")
    how = "step by step" if settings.iterative else "in closed form"
    levels = ", ".join(map(str, process.at))
    note(
        f"{name}: {component.name}, T = {settings.timesteps}, levels {levels}, {how}; "
        f"{devices.describe(chosen)}, seed {settings.seed}"
    )
    stem = f"noise-{name.replace(' ', '-')}-{component.name}"
    paths = list(out or ()) or [numbered(Path(), stem, ".png")]
    process.run(films=any(p.suffix.lower() == ".gif" for p in paths))
    moments = process.moments()
    for row in moments:
        if settings.iterative:
            note(
                f"t = {row['t']}: mean {row['mean']:+.4f}, std {row['std']:.4f} step by step; "
                f"{row['closed_mean']:+.4f}, {row['closed_std']:.4f} in closed form"
            )
    if settings.iterative:
        far = max(max(abs(r["mean"] - r["closed_mean"]), abs(r["std"] - r["closed_std"])) for r in moments)
        chance = max(r["sigma"] for r in moments) * math.sqrt(2 / x_0.numel())
        note(f"largest difference of mean or standard deviation: {far:.4f}; chance alone makes about {chance:.4f}")
    for path in paths:
        process.write(path, overwrite=overwrite)
    report(paths, {"levels": moments}, as_json=json)


def _check_own(given: Mapping[str, Mapping[str, Any]], *, dataset: str | None, schedule: str | None) -> None:
    """Refuse what a run brings with it."""
    asked = {
        "--dataset": dataset is not None or given["dataset"],
        "--schedule": schedule is not None or given["schedule"],
        "--timesteps": "timesteps" in given["noise"],
        "--size": "size" in given["noise"],
    }
    for flag in [flag for flag, found in asked.items() if found]:
        raise UsageError(f"{flag}: the run of --reconstruct has its own; leave it out")
    if given["noise"].get("iterative"):
        raise UsageError("--iterative: --reconstruct noises in closed form, as training does; leave one out")


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="noise"))(noise)


@dataclass
class _Process:
    """The states of a forward process, and the pictures of it."""

    x_0: Tensor
    scaling: Scaling
    schedule: Schedule
    settings: Noising
    title: str

    @property
    def at(self) -> list[int]:
        from difftool.diffusion.forward import five_levels

        if self.settings.at is not None:
            return list(self.settings.at)
        return list(five_levels(len(self.schedule)))

    @property
    def film_levels(self) -> list[int]:
        if self.settings.at is not None:
            return list(self.settings.at)
        last = len(self.schedule) - 1
        frames = min(FILM_FRAMES, last + 1)
        return sorted({round(i * last / max(frames - 1, 1)) for i in range(frames)})

    def run(self, *, films: bool) -> None:
        """Compute the states that the pictures need."""
        wanted = {*self.at, *(self.film_levels if films else ())}
        self.states: dict[int, Tensor] = {}
        for t, x_t in self._states(wanted):
            self.states[t] = x_t.cpu()

    def _states(self, wanted: set[int]) -> Iterator[tuple[int, Tensor]]:
        from difftool.diffusion.forward import iterate, noised

        if not self.settings.iterative:
            for t in sorted(wanted):
                yield t, noised(self.x_0, self.schedule[t], self.settings.seed)
            return
        last = max(wanted)
        with bar("noising", last + 1) as shown:
            for t, x_t in enumerate(iterate(self.x_0, self.schedule, self.settings.seed)):
                if t in wanted:
                    yield t, x_t
                shown.update(t + 1, "")
                if t == last:
                    return

    def moments(self) -> list[dict[str, Any]]:
        """Mean and standard deviation of x_t at the levels shown, and what the closed form gives."""
        from difftool.diffusion.forward import moments, noised

        rows = []
        for t in self.at:
            level = self.schedule[t]
            mean, std = moments(self.states[t])
            closed_mean, closed_std = moments(noised(self.x_0, level, self.settings.seed))
            rows.append(
                {
                    "t": t,
                    "alpha": level.alpha,
                    "sigma": level.sigma,
                    "mean": mean,
                    "std": std,
                    "closed_mean": closed_mean,
                    "closed_std": closed_std,
                }
            )
        return rows

    def write(self, path: Path, *, overwrite: bool) -> None:
        from difftool.figures.films import film
        from difftool.figures.style import save
        from difftool.files import atomic

        with atomic(path, overwrite=overwrite) as temporary:
            if path.suffix.lower() == ".gif":
                film(self._frames(), temporary)
            else:
                save(self._strip(), temporary)

    def _strip(self) -> Any:
        import numpy as np

        from difftool.figures.samples import image_table, scatter_table

        columns = ["x_0", *(f"t = {t}" for t in self.at)]
        states = [self.x_0.cpu(), *(self.states[t] for t in self.at)]
        if self.scaling.is_image:
            return image_table(np.stack([self._pixels(x) for x in states], axis=1), columns=columns, title=self.title)
        return scatter_table([[self._points(x) for x in states]], columns=columns, title=self.title)

    def _frames(self) -> Iterator[Any]:
        import numpy as np

        from difftool.figures.films import image_frames, scatter_frames
        from difftool.figures.samples import point_limits

        states = [self.x_0.cpu(), *(self.states[t] for t in self.film_levels)]
        titles = [self.title + ", x_0", *(f"{self.title}, t = {t}" for t in self.film_levels)]
        if self.scaling.is_image:
            return image_frames((self._pixels(x) for x in states), titles, None)
        points = [self._points(x) for x in states]
        limits = point_limits(np.concatenate([points[0], points[-1]]))
        return scatter_frames(points, titles, limits, None)

    def _pixels(self, x: Tensor) -> np.ndarray:
        return self.scaling.to_pixels(x.cpu()).movedim(1, -1).numpy()

    def _points(self, x: Tensor) -> np.ndarray:
        return self.scaling.to_data(x.cpu()).numpy()


def _own(paths: Sequence[Path], settings: Noising) -> tuple[Tensor, Scaling, str]:
    """The user's images in model units; all take the size of the first."""
    import torch

    from difftool.data.images import BadImage, read_image
    from difftool.data.samples import PIXELS, Scaling

    size: tuple[int, int] | None = None
    if settings.size is not None:
        size = (settings.size[0], settings.size[-1])
    try:
        if size is None:
            _, height, width = read_image(paths[0]).shape
            shrink = min(1.0, LONGEST_SIDE / max(height, width))
            size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
            if shrink < 1.0:
                note(f"{paths[0]}: shown at {size[0]}x{size[1]} pixels; --size gives another size")
        pixels = torch.stack([read_image(path, size=size) for path in paths])
    except BadImage as error:
        raise DifftoolError(str(error)) from None
    scaling = Scaling(PIXELS["shift"], PIXELS["scale"], is_image=True)
    return scaling.to_model(pixels), scaling, printable(paths[0].stem) if len(paths) == 1 else f"{len(paths)} images"


def _of_dataset(dataset: Any, settings: Noising) -> tuple[Tensor, Scaling, str]:
    """The first samples of a dataset in model units."""
    from difftool.data.samples import Scaling
    from difftool.plugins.build import load_samples, loading

    samples = load_samples(dataset, settings.seed)
    count = min(settings.num_samples or (ROWS if samples.is_image else POINTS), len(samples))
    with loading(dataset):  # items on disk are read here
        items, _ = samples.take(range(count))
    if not samples.is_image and len(samples.shape) != 1:
        raise DifftoolError(f"dataset {dataset.name}: only points and images can be drawn, not shape {samples.shape}")
    scaling = Scaling.of(samples)
    return scaling.to_model(items), scaling, dataset.name
