"""A network as an ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from difftool import Model
from difftool_plugins.exchange import graphs
from difftool_plugins.exchange.folders import Use

check = graphs.check
LARGEST_FILE = 2**30
"""The size in bytes of weights from which they lie in a file of their own; ONNX files end at 2 GiB."""


def write(model: Model, folder: Path, dtype: str) -> Use:
    """Write the network, and the decoder of a model of latents, with batches of any size."""
    inputs = graphs.examples(model)
    names = ["x", "t", *graphs.condition_names(model)]
    _write(graphs.NetworkGraph(model, dtype), inputs, names, folder / "network.onnx")
    if model.latents is not None:
        _write(graphs.DecoderGraph(model), inputs[:1], ["z"], folder / "decoder.onnx")
    graphs.write_scripts(model, folder, "network_onnx.py")
    return Use("onnx", graphs.use_of(model, "onnx", "onnxruntime numpy"))


def _write(graph: nn.Module, inputs: list[Tensor], names: list[str], path: Path) -> None:
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter's own parts
        torch.onnx.export(
            graph.eval(),
            tuple(inputs),
            str(path),
            input_names=names,
            output_names=["output"],
            dynamic_shapes=graphs.with_batch(inputs, torch.export.Dim("batch", min=1)),
            dynamo=True,
            external_data=size > LARGEST_FILE,
        )
