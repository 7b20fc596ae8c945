"""`difftool import` reads a model of another library."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from difftool import Command, DifftoolError, Output, option, output_option


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
        return {"model": model.description, "data": model.data.words, "classes": len(model.data.class_names)}
