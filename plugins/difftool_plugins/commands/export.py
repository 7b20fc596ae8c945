"""`difftool export` writes a model for another library."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from difftool import Command, DifftoolError, model_option, option

if TYPE_CHECKING:
    from difftool import Model

NEEDS = {
    "diffusers": ("diffusers",),
    "torch-export": (),
    "onnx": ("onnx", "onnxscript"),
    "difftool": (),
}
"""The libraries that each target needs, which its extra brings."""


class Export(Command, name="export"):
    """Write a trained model for other software, with a card that says what it is and how to run it.

    diffusers: a folder that opens there with `DDIMPipeline.from_pretrained`; the network must be one of diffusers
    (`--backbone diffusers-unet` or `diffusers-dit`). torch-export, onnx: the network as a graph, and a script that
    samples with it without difftool. difftool: the model file, also with weights of half the size.
    """

    path_use = "write"

    model: Model = model_option()
    to: Literal["diffusers", "torch-export", "onnx", "difftool"] = option(help="kind of folder")
    out: Path = option(help="folder to write, which must not exist")
    dtype: Literal["fp32", "bf16", "fp16"] = option(default="fp32", help="number format of the weights")
    license: str = option(default="", help="licence of the weights for the card, such as mit or cc-by-4.0")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]{0,60}", self.license):
            raise ValueError("license: must be an identifier such as mit or cc-by-4.0")

    def run(self) -> list[str]:
        if missing := [name for name in NEEDS[self.to] if find_spec(name) is None]:
            raise DifftoolError(
                f"--to {self.to}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
                f"pip install 'difftool[{self.to}]'"
            )
        from difftool_plugins.exchange.card import write_card
        from difftool_plugins.exchange.folders import new_folder

        target = import_module(f"difftool_plugins.exchange.to_{self.to.replace('-', '_')}")
        target.check(self.model)
        with new_folder(self.out) as folder:
            use = target.write(self.model, folder, self.dtype)
            write_card(self.model, folder, use, name=self.out.name, license=self.license, dtype=self.dtype)
        return sorted(str(file) for file in self.out.rglob("*") if file.is_file())
