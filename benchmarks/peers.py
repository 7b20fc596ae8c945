"""Other people's packages, and what it takes to import them here."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import torch

NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declared: list[torch.library.Library] = []
"""A declaration lasts as long as its library."""


def let_torchvision_load() -> None:
    """Import torchvision, also beside a torch for CPUs alone.

    PyPI's torchvision is built for CUDA: beside such a torch its compiled operators are missing, and the import fails
    on the first that its Python part mentions. Nothing that is timed calls them, so declaring two lets the rest load.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}{NMS}")  # type: ignore[no-untyped-call]
        _declared.append(library)
        import torchvision  # noqa: F401
