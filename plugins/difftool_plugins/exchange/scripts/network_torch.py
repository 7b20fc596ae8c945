"""Run the network of this folder with torch.

`torch.export.load` is made for files that you trust: open none from strangers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent
_programs: dict[str, Any] = {}


@torch.no_grad()
def run(name: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the output of `network` or `decoder`."""
    if name not in _programs:
        _programs[name] = torch.export.load(FOLDER / f"{name}.pt2").module()
    output: torch.Tensor = _programs[name](*(torch.from_numpy(array) for array in inputs.values()))
    return output.numpy()
