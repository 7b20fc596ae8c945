"""Run the network of this folder with onnxruntime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FOLDER = Path(__file__).parent
_sessions: dict[str, onnxruntime.InferenceSession] = {}


def run(name: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the output of `network` or `decoder`."""
    if name not in _sessions:
        _sessions[name] = onnxruntime.InferenceSession(FOLDER / f"{name}.onnx")
    output: Any = _sessions[name].run(None, dict(inputs))[0]
    return np.asarray(output)
