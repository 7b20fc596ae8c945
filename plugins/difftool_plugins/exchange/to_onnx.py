"""A network as an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difftool import DifftoolError, Model, printable
from difftool_plugins.exchange import graphs
from difftool_plugins.exchange.folders import Use

check = graphs.check
LARGEST_FILE = 2**30
"""The size in bytes of weights from which they lie in a file of their own; ONNX files end at 2 GiB."""


def write(model: Model, folder: Path, dtype: str) -> Use:
    """Write the network, and the decoder of a model of latents. Raises `DifftoolError`."""
    for name, what, graph, inputs in graphs.graphs_of(model, dtype):
        path = folder / f"{name}.onnx"
        _write(graph, graphs.traced(graph, inputs, what), [*inputs], path)
        if find_spec("onnxruntime") is not None:
            graphs.check_same(name, graph, inputs, output_of(path, inputs))
    graphs.write_scripts(model, folder, "network_onnx.py")
    return Use("onnx", graphs.use_of(model, "onnxruntime numpy"))


def _write(graph: nn.Module, program: Any, names: list[str], path: Path) -> None:
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    try:
        with graphs.quiet():
            made: Any = torch.onnx.export(program, dynamo=True, input_names=names, output_names=["output"])
            clear(made.model)
            made.save(path, external_data=size > LARGEST_FILE)
    except Exception as error:
        text = printable(" ".join(str(error).split()))
        raise DifftoolError(
            f"--to onnx: {path.stem} cannot be translated ({type(error).__name__}: {text[:200]})"
        ) from None


def clear(model: Any) -> None:
    """Remove what names files of this machine: each node has the lines of code that it came from."""
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
    for part in (model, model.graph, *model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        part.metadata_props.clear()


def output_of(path: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the output of an ONNX file on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0])
