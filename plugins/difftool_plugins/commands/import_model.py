"""`difftool import` reads a model of another library."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from difftool import (
    Backbone,
    Command,
    Component,
    DifftoolError,
    NoiseSchedule,
    Output,
    Prediction,
    note,
    option,
    output_option,
)

if TYPE_CHECKING:
    from difftool import Model


class Import(Command, name="import"):
    """Read a model of another library, as a file that every command takes.

    diffusers: a folder with a `UNet2DModel` or a `DiTTransformer2DModel` and a scheduler, such as one that
    `DDPMPipeline.save_pretrained` wrote. Only safetensors are opened.
    """

    path: Path = option(positional=True, help="folder to read")
    from_: Literal["diffusers"] = option(default="diffusers", help="library")
    size: tuple[int, ...] | None = option(
        default=None, ge=1, le=4096, help="HEIGHT,WIDTH in pixels, or one number", otherwise="as the folder says"
    )
    out: Output = output_option(suffixes=(".safetensors",), help="model file to write")

    def __post_init__(self) -> None:
        if self.size is not None and len(self.size) > 2:
            raise ValueError(f"size: must be HEIGHT,WIDTH or one number, not {len(self.size)} numbers")

    def run(self) -> dict[str, object]:
        if find_spec("diffusers") is None:
            raise DifftoolError("--from diffusers: diffusers is not installed; pip install 'difftool[diffusers]'")
        from difftool_plugins.exchange.from_diffusers import read_folder

        model = read_folder(self.path, size=self.size)
        with self.out.writing() as path:
            model.save(path)
        note(f"fine-tune it with: {shlex.join(training_words(model, self.out.path))}")
        return {"model": model.description, "data": model.data.words, "classes": len(model.data.class_names)}


def training_words(model: Model, path: Path) -> Iterator[str]:
    """Yield the words of a command that trains an imported model further, with all its options that are not default."""
    yield from ("difftool", "train", "--init-from", str(path))
    if model.data.is_image:
        yield from ("--dataset", "image-folder", "--dataset.path", "FOLDER")
        yield from ("--dataset.size", ",".join(map(str, model.data.shape[1:])))
        yield from ("--dataset.channels", str(model.data.shape[0]))
    for base in (Backbone, NoiseSchedule, Prediction):
        part = model.recipe[base]
        yield from (f"--{base.kind}", part.name)
        yield from _options(part)
    settings, default = model.recipe.training, type(model.recipe.training)()
    for name in ("timesteps", "learn_variance", "condition_dropout"):
        if (value := getattr(settings, name)) != getattr(default, name):
            yield from _words("", name, value)


def _options(part: Component) -> Iterator[str]:
    for one in dataclasses.fields(part):
        if (value := getattr(part, one.name)) is not None and value != one.default:
            yield from _words(f"{part.kind}.", one.name, value)


def _words(prefix: str, name: str, value: Any) -> Iterator[str]:
    """Yield an option as the command line spells it."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{prefix}{flag}" if value else f"--{prefix}no-{flag}"
    else:
        yield from (f"--{prefix}{flag}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value))
