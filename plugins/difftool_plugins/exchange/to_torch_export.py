"""A network as a program of `torch.export`."""

from __future__ import annotations

from pathlib import Path

import torch

from difftool import Model
from difftool_plugins.exchange import graphs
from difftool_plugins.exchange.folders import Use

check = graphs.check
WARNING = "\nWhoever wrote a `.pt2` file can have torch run code when it is opened: open none from strangers.\n"


def write(model: Model, folder: Path, dtype: str) -> Use:
    """Write the network, and the decoder of a model of latents. Raises `DifftoolError`."""
    for name, what, graph, inputs in graphs.graphs_of(model, dtype):
        program = graphs.traced(graph, inputs, what)
        with graphs.quiet(), torch.no_grad():
            graphs.check_same(name, graph, inputs, program.module()(**inputs))
            torch.export.save(program, folder / f"{name}.pt2")
    graphs.write_scripts(model, folder, "network_torch.py")
    return Use("pytorch", graphs.use_of(model, "torch numpy") + WARNING)
