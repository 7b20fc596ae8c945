"""Run the network of this folder with torch.

Whoever wrote a `.pt2` file can have `torch.export.load` run code: open none from strangers.
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
    """Return the output of `network` or `decoder`, computed in batches of the sizes that the program takes."""
    if name not in _programs:
        program = torch.export.load(FOLDER / f"{name}.pt2")
        (sizes,) = set(program.range_constraints.values())
        _programs[name] = program.module(), int(sizes.lower), int(min(sizes.upper, 2**20))
    network, least, most = _programs[name]
    tensors = {key: torch.from_numpy(array) for key, array in inputs.items()}
    n, outputs = len(next(iter(tensors.values()))), []
    for start in range(0, n, most):
        count = min(most, n - start)
        rows = torch.arange(start, start + max(count, least)) % n  # too small a batch is filled with other rows
        outputs.append(network(**{key: tensor[rows] for key, tensor in tensors.items()})[:count])
    return torch.cat(outputs).numpy()
