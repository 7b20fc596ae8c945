"""The laws of writers, checked with the trajectories of a few samples of each form."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from difftool.components import Writer
from difftool.data.forms import UNITS_OF_RATE, form_of
from difftool.data.samples import PIXELS
from difftool.data.scaling import Scaling
from difftool.errors import UsageError
from difftool.figures.drawing import Drawing
from difftool.figures.formats import DrawingSpec
from difftool.rng import generator
from difftool.sampling.writers import check, needed_states, write
from difftool.testing.laws import Failed, Skipped, require

COUNT, STEPS, RATE = 6, 8, 100


def declares_valid_suffixes(writer: Writer) -> str:
    """`suffixes` is a tuple of lower-case suffixes with a leading dot; an empty one stands for a folder."""
    if not writer.suffixes or not isinstance(writer.suffixes, tuple):
        raise Failed(f"its suffixes are {writer.suffixes!r}; they must be a tuple, such as ('.webp',)")
    for suffix in writer.suffixes:
        if suffix and not (suffix == suffix.lower() and Path(f"x{suffix}").suffix == suffix):
            raise Failed(
                f"{suffix!r} is not a valid suffix; it must be lower-case and begin with a dot, such as '.webp'"
            )
    return " ".join(suffix or "(folder)" for suffix in writer.suffixes)


def writes_what_it_accepts(writer: Writer) -> str:
    """It accepts samples of at least one form, and writes them to a file that is not empty and has the same bytes each
    time. `check` refuses the others with a `ValueError`."""
    accepted, missing = [], ""
    for name, drawing, spec in drawings(writer):
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(writer, Path("x"), spec)
            except UsageError as error:
                missing = str(error) if "not installed" in str(error) else missing
                continue
            accepted.append(name)
            for suffix in writer.suffixes:
                a, b = (_written(writer, drawing, Path(folder) / f"{k}{suffix}") for k in "ab")
                require(a, f"{suffix}: it wrote no content for {name}")
                require(a == b, f"{suffix}: writing the same {name} twice gave different bytes")
    if not accepted and missing:
        raise Skipped(missing)
    require(accepted, "it refuses samples of every form")
    return ", ".join(accepted)


LAWS = (declares_valid_suffixes, writes_what_it_accepts)


def drawings(writer: Writer) -> Iterator[tuple[str, Drawing, DrawingSpec]]:
    """Yield (name, drawing, spec), with the states of the trajectory that the writer needs."""
    for name, shape, scaling in (
        ("points", (2,), Scaling((0.0,), (1.0,))),
        ("image", (3, 6, 5), Scaling(PIXELS["shift"], PIXELS["scale"])),
        ("series", (2, 16), Scaling((0.0,), (1.0,))),
        ("sound", (1, 400), Scaling((0.0,), (1.0,))),
        ("film", (3, 4, 6, 5), Scaling(PIXELS["shift"], PIXELS["scale"])),
        ("cloud", (3, 20), Scaling((0.0,), (1.0,))),
        ("array", (2, 6, 5), Scaling((0.0,), (1.0,))),
    ):
        form = form_of(name, shape)
        rate = RATE if form in UNITS_OF_RATE else None
        spec = DrawingSpec(shape=shape, steps=STEPS, form=form, rate=rate)
        trajectory = torch.randn(STEPS + 1, COUNT, *shape, generator=generator(0, "law")).clamp(-1, 1)
        steps = needed_states([writer], spec)
        states = trajectory[steps] if steps else None
        drawing = Drawing(
            x=trajectory[-1],
            scaling=scaling,
            title="a law",
            states=states,
            state_steps=steps,
            form=form,
            rate=rate,
        )
        yield name, drawing, spec


def _written(writer: Writer, drawing: Drawing, path: Path) -> dict[str, bytes]:
    """Write the drawing, and return the content of each file by its name below the path."""
    write(writer, drawing, path, overwrite=False)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path)): content for file in files if (content := file.read_bytes())}
