"""Laws of writers, asked with the walk of a few points and of a few images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from difftool.components import Writer
from difftool.data.samples import PIXELS, Scaling
from difftool.errors import UsageError
from difftool.figures.drawing import Drawing
from difftool.figures.formats import DrawingSpec
from difftool.rng import generator
from difftool.sampling.writers import check, needed_states, write
from difftool.testing.laws import Broken

COUNT, STEPS = 6, 8


def names_its_suffixes(writer: Writer) -> str:
    """It has suffixes, in lower case, with a dot in front; an empty one stands for a folder."""
    if not writer.suffixes or not isinstance(writer.suffixes, tuple):
        raise Broken(f"its suffixes are {writer.suffixes!r}; they must be a tuple, such as ('.webp',)")
    for suffix in writer.suffixes:
        if suffix and not (suffix == suffix.lower() and Path(f"x{suffix}").suffix == suffix):
            raise Broken(f"{suffix!r} is no suffix that a path can have; it must be lower-case, such as '.webp'")
    return " ".join(suffix or "(folder)" for suffix in writer.suffixes)


def writes_what_it_takes(writer: Writer) -> str:
    """Of points and of images it writes a file of some content, the same bytes each time, or refuses them by `check`
    with a ValueError; and takes one of the two."""
    taken = []
    for name, drawing, spec in drawings(writer):
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(writer, Path("x"), spec)
            except UsageError:
                continue
            taken.append(name)
            for suffix in writer.suffixes:
                a, b = (_written(writer, drawing, Path(folder) / f"{k}{suffix}") for k in "ab")
                if not a:
                    raise Broken(f"{suffix}: it wrote nothing of {name}")
                if a != b:
                    raise Broken(f"{suffix}: the same {name} were written as other bytes")
    if not taken:
        raise Broken("it refuses points and images")
    return f"{', '.join(taken)}"


LAWS = (names_its_suffixes, writes_what_it_takes)


def drawings(writer: Writer) -> Iterator[tuple[str, Drawing, DrawingSpec]]:
    """What there is to write: (name, drawing, spec), with the states that the writer asks for."""
    for name, shape, scaling in (
        ("points", (2,), Scaling((0.0,), (1.0,), False)),
        ("images", (3, 6, 5), Scaling(PIXELS["shift"], PIXELS["scale"], True)),
    ):
        spec = DrawingSpec(shape=shape, steps=STEPS)
        walk = torch.randn(STEPS + 1, COUNT, *shape, generator=generator(0, "law")).clamp(-1, 1)
        steps = needed_states([writer], spec)
        states = walk[steps] if steps else None
        yield name, Drawing(x=walk[-1], scaling=scaling, title="a law", states=states, state_steps=steps), spec


def _written(writer: Writer, drawing: Drawing, path: Path) -> dict[str, bytes]:
    """The files, by name below the path."""
    write(writer, drawing, path, overwrite=False)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path)): content for file in files if (content := file.read_bytes())}
