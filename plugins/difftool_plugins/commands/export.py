"""`difftool export` writes a model for another library."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from difftool import Command, DifftoolError, UsageError, model_option, option

if TYPE_CHECKING:
    from difftool import Model


class Export(Command, name="export"):
    """Write a trained model for another library, with a card that says what it is and how to run it.

    diffusers: a folder that opens there with `DDIMPipeline.from_pretrained`; the network must be one of diffusers
    (`--backbone diffusers-unet` or `diffusers-dit`).
    """

    path_use = "write"

    model: Model = model_option()
    to: Literal["diffusers"] = option(help="library")
    out: Path = option(help="folder to write, which must not exist")
    dtype: Literal["fp32", "bf16", "fp16"] = option(default="fp32", help="number format of the weights")
    license: str = option(default="", help="licence of the weights for the card, such as mit or cc-by-4.0")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]{0,60}", self.license):
            raise ValueError("license: must be an identifier such as mit or cc-by-4.0")

    def run(self) -> list[str]:
        if find_spec("diffusers") is None:
            raise DifftoolError("--to diffusers: diffusers is not installed; pip install 'difftool[diffusers]'")
        if self.out.name in ("", ".."):
            raise UsageError("--out: must name a new folder")
        from difftool_plugins.exchange.to_diffusers import write_folder

        return write_folder(self.model, self.out, dtype=self.dtype, license=self.license)
