"""A network as a program of `torch.export`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from difftool import Model, UsageError
from difftool_plugins.exchange import graphs
from difftool_plugins.exchange.folders import Use

check = graphs.check


def write(model: Model, folder: Path, dtype: str) -> Use:
    """Write the network, and the decoder of a model of latents, with batches of any size."""
    inputs = graphs.examples(model)
    _write(graphs.NetworkGraph(model, dtype), inputs, folder / "network.pt2")
    if model.latents is not None:
        _write(graphs.DecoderGraph(model), inputs[:1], folder / "decoder.pt2")
    graphs.write_scripts(model, folder, "network_torch.py")
    return Use("pytorch", graphs.use_of(model, "pytorch", "torch numpy"))


def _write(graph: nn.Module, inputs: list[Tensor], path: Path) -> None:
    with torch.no_grad():
        shapes = graphs.with_batch(
            inputs, torch.export.Dim.AUTO
        )  # some networks limit the batch: the script keeps to it
        program = torch.export.export(graph.eval(), tuple(inputs), dynamic_shapes=shapes)
    if not program.range_constraints:
        raise UsageError("--to torch-export: the code of the network fixes the size of a batch, as len(x) does")
    torch.export.save(program, path)
