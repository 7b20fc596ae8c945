"""The files that samples are written to: the suffix decides."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from difftool.data import Scaling
from difftool.errors import DifftoolError
from difftool.figures import style
from difftool.figures.films import film, image_frames, scatter_frames
from difftool.figures.formats import FILM_STATES, check_shape, needs_states
from difftool.figures.samples import image_grid, image_table, point_limits, scatter, scatter_table
from difftool.figures.style import Floats, Pixels
from difftool.files import atomic, check_output

FILM_IMAGES, FILM_POINTS = 36, 5000
"""Samples that a film shows at most."""
STRIP_ROWS = 6
"""Images whose walk a strip shows at most."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What a sampling run made, and how it is to be shown."""

    x: Tensor
    """(N, *shape) float32 on the CPU, in model units."""
    scaling: Scaling
    """To data units; `is_image` tells images from points."""
    title: str
    states: Tensor | None = None
    """(K, N, *shape) of the walk in model units: x_T first, the result last."""
    state_labels: Sequence[str] = ()
    """K labels, such as "t = 999"."""
    labels: Tensor | None = None
    """(N,) class indices."""
    reference: Tensor | None = None
    """(M, D) data points in data units, to draw under the samples."""
    columns: int | None = None
    """Of the grid of images."""
    given: Tensor | None = None
    """(G, *shape) in model units: images that the samples were made from, drawn ahead of them."""
    joined: bool = False
    """The samples lie on a path: points are joined in their order."""
    strip: int | None = None
    """Draw this many states of the walk instead of the result alone."""
    raw: bool = False
    """Arrays of images hold floats (N, C, H, W) in model units instead of pixels."""
    trajectory: bool = False
    """Arrays also hold the states of the walk."""


def write(drawing: Drawing, path: Path, *, overwrite: bool) -> Path:
    """Write the samples in the format of the path's suffix, whole or not at all."""
    check_shape(path, drawing.x.shape[1:], strip=drawing.strip is not None)
    suffix = path.suffix.lower()
    check_output(path, overwrite=overwrite, folder=not suffix)
    if needs_states(path, strip=drawing.strip, trajectory=drawing.trajectory) and drawing.states is None:
        raise ValueError(f"{path} needs the states of the walk")
    if len(drawing.x) == 0:
        raise DifftoolError(f"there are no samples to write to {path}")
    if not bool(torch.isfinite(drawing.x).all()):
        raise DifftoolError(
            f"the samples hold NaN or infinite numbers, so {path} was not written: the network's estimates ran away; "
            "train longer, or take another --sampler, --spacing or, in training, --prediction"
        )
    if not suffix:
        return _folder(drawing, path, overwrite=overwrite)
    with atomic(path, overwrite=overwrite) as temporary:
        WRITERS[suffix](drawing, temporary)
    return path


def _pixels(x: Tensor, scaling: Scaling) -> Pixels:
    """(..., C, H, W) in model units -> uint8 (..., H, W, C); what lies beyond the range of pixels is clamped here."""
    flat = torch.nan_to_num(x.reshape(-1, *x.shape[-3:]))
    images: Pixels = scaling.to_pixels(flat).movedim(1, -1).contiguous().numpy()
    return images.reshape(*x.shape[:-3], *x.shape[-2:], x.shape[-3])


def _points(x: Tensor, drawing: Drawing) -> NDArray[np.float32]:
    """(..., *shape) in model units -> float32 in data units."""
    flat = x.reshape(-1, *drawing.x.shape[1:])
    points: NDArray[np.float32] = drawing.scaling.to_data(flat).to(torch.float32).reshape(x.shape).numpy()
    return points


def _reference(drawing: Drawing) -> Floats | None:
    return None if drawing.reference is None else drawing.reference.to(torch.float32).numpy()


def _chosen(count: int, wanted: int) -> list[int]:
    """Evenly chosen states of the walk, the first and the last among them (one alone: the last)."""
    last = count - 1
    if wanted >= count:
        return list(range(count))
    return [last] if wanted == 1 else [round(last * i / (wanted - 1)) for i in range(wanted)]


def _states(drawing: Drawing) -> Tensor:
    if drawing.states is None:
        raise ValueError("the states of the walk were not kept")
    return drawing.states


def _label(drawing: Drawing, state: int) -> str:
    return drawing.state_labels[state] if drawing.state_labels else f"state {state}"


def _picture(drawing: Drawing, path: Path) -> None:
    if drawing.strip is not None:
        figure = _strip(drawing, drawing.strip)
    elif drawing.scaling.is_image:
        images = _pixels(_with_given(drawing.x, drawing), drawing.scaling)
        figure = image_grid(images, title=drawing.title, columns=drawing.columns)
    else:
        points = _points(drawing.x, drawing)
        figure = scatter(points, reference=_reference(drawing), title=drawing.title, joined=drawing.joined)
    style.save(figure, path)


def _with_given(x: Tensor, drawing: Drawing) -> Tensor:
    return x if drawing.given is None else torch.cat([drawing.given, x])


def _strip(drawing: Drawing, wanted: int) -> Figure:
    states = _states(drawing)
    chosen = _chosen(len(states), wanted)
    columns = [_label(drawing, k) for k in chosen]
    if drawing.scaling.is_image:
        few = states[chosen, :STRIP_ROWS].transpose(0, 1)
        if drawing.given is not None:
            few = torch.cat([drawing.given.expand(len(few), *drawing.given.shape), few], dim=1)
            columns = [*(["given"] * len(drawing.given)), *columns]
        labels = () if drawing.labels is None else [f"class {int(label)}" for label in drawing.labels[: len(few)]]
        return image_table(_pixels(few, drawing.scaling), columns=columns, rows=labels, title=drawing.title)
    cells = [[_points(states[k], drawing)[:, :2] for k in chosen]]
    return scatter_table(
        cells, columns=columns, title=_plane(drawing), reference=_reference(drawing), joined=drawing.joined
    )


def _plane(drawing: Drawing) -> str:
    """The title, which names the coordinates where not all can be drawn."""
    dimensions = drawing.x.shape[1]
    return drawing.title if dimensions == 2 else f"{drawing.title} (coordinates 0 and 1 of {dimensions})"


def _gif(drawing: Drawing, path: Path) -> None:
    states, scaling = _states(drawing), drawing.scaling
    chosen = _chosen(len(states), FILM_STATES)
    shown = FILM_IMAGES if scaling.is_image else FILM_POINTS
    title = drawing.title if scaling.is_image else _plane(drawing)
    if states.shape[1] > shown:
        title = f"{title} (first {shown:,} of {states.shape[1]:,})"
    titles = [f"{title}\n{_label(drawing, k)}" for k in chosen]
    kept = (states[k, :shown] for k in chosen)
    frames: Iterator[Pixels]
    if scaling.is_image:
        frames = image_frames((_pixels(_with_given(x, drawing), scaling) for x in kept), titles, drawing.columns)
    else:
        reference = _reference(drawing)
        ends = np.concatenate([_points(states[0], drawing), _points(states[-1], drawing)])
        limits = point_limits(ends, reference)
        points = (_points(x, drawing)[:, :2] for x in kept)
        frames = scatter_frames(points, titles, limits, reference, joined=drawing.joined)
    film(frames, path)


def _samples(x: Tensor, drawing: Drawing) -> NDArray[Any]:
    """What arrays hold: pixels (..., H, W, C), floats (..., C, H, W) in model units (raw), or points in data units."""
    if not drawing.scaling.is_image:
        return _points(x, drawing)
    return x.to(torch.float32).numpy() if drawing.raw else _pixels(x, drawing.scaling)


def _named(drawing: Drawing) -> dict[str, NDArray[Any]]:
    arrays = {"samples": _samples(drawing.x, drawing)}
    if drawing.trajectory:
        arrays["states"] = _samples(_states(drawing), drawing)
    if drawing.labels is not None:
        arrays["labels"] = drawing.labels.to(torch.int64).numpy()
    return arrays


def _npy(drawing: Drawing, path: Path) -> None:
    x = _states(drawing) if drawing.trajectory else drawing.x
    with open(path, "wb") as file:  # given a name, numpy would append .npy to one that ends in .NPY
        np.save(file, _samples(x, drawing))


def _npz(drawing: Drawing, path: Path) -> None:
    with open(path, "wb") as file:
        arrays: Any = _named(drawing)
        np.savez(file, **arrays)


def _safetensors(drawing: Drawing, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in _named(drawing).items()}
    save_file(tensors, path, metadata={"samples": json.dumps({"title": drawing.title, "units": _units(drawing)})})


def _units(drawing: Drawing) -> str:
    if not drawing.scaling.is_image:
        return "data units"
    return "model units, channels first" if drawing.raw else "pixels 0..255, channels last"


def _csv(drawing: Drawing, path: Path) -> None:
    """One row a sample: x0, x1, ..., then its label; with the trajectory one row a state and sample, numbered first."""
    x = _states(drawing) if drawing.trajectory else drawing.x[None]
    rows = _samples(x, drawing)
    width = math.prod(rows.shape[2:])
    number = "%d" if rows.dtype == np.uint8 else "%.9g"
    header = [f"x{i}" for i in range(width)]
    if drawing.trajectory:
        header = ["state", "sample", *header]
    if drawing.labels is not None:
        header.append("label")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(",".join(header) + "\n")
        line = ",".join([number] * width)
        for state, samples in enumerate(rows):
            for i, sample in enumerate(samples):
                before = f"{state},{i}," if drawing.trajectory else ""
                after = "" if drawing.labels is None else f",{int(drawing.labels[i])}"
                file.write(f"{before}{line % tuple(sample.ravel())}{after}\n")


def _folder(drawing: Drawing, path: Path, *, overwrite: bool) -> Path:
    """One PNG an image, at its true pixels: 0000.png, 0001.png, ..."""
    if path.exists() and not path.is_dir():
        raise DifftoolError(f"{path} is a file; a name without suffix is a folder of images")
    images = _pixels(drawing.x, drawing.scaling)
    digits = max(4, len(str(len(images) - 1)))
    path.mkdir(parents=True, exist_ok=True)
    names = [f"{i:0{digits}d}.png" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        with atomic(path / name, overwrite=overwrite) as temporary:
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, format="PNG")
    # Images of an earlier, larger set would pass for samples of this one.
    for old in path.iterdir():
        if overwrite and re.fullmatch(r"\d{4,}\.png", old.name) and old.name not in names:
            old.unlink()
    return path


WRITERS: dict[str, Callable[[Drawing, Path], None]] = {
    **dict.fromkeys(style.FORMATS, _picture),
    ".gif": _gif,
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".csv": _csv,
}
"""Suffix -> the function that writes it; `formats` names the same suffixes."""
