"""difftool as a contender: its real loop, as `difftool train` runs it, and its networks without any loop."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from benchmarks.measuring import Steps
from difftool import devices
from difftool.cli.console import Bar
from difftool.cli.training import BarWords  # the bar's words are part of what is measured
from difftool.components import Backbone, Component, Dataset
from difftool.data.facts import DataFacts
from difftool.diffusion.memory_layout import layout_of
from difftool.plugins.build import build_network, load_samples
from difftool.runs.creation import create
from difftool.runs.recipe import Recipe, build_recipe
from difftool.training.experiment import Experiment
from difftool.training.prepare import prepare

CPU = torch.device("cpu")
Document = Mapping[str, Mapping[str, object]]

ENDLESS: dict[str, object] = {"steps": 10**8, "checkpoint_every": "999999999", "preview_every": "0"}
"""Training that saves and draws nothing on the way: neither do the loops beside it."""


def recipe(document: Document, parts: Mapping[str, Component] | None = None, **training: object) -> Recipe:
    """The recipe of a document's tables, trained without an end, with these settings over its own.

    `parts` are components that are made already.
    """
    settings = {**document.get("training", {}), **ENDLESS, **training}
    return build_recipe({**document, "training": settings}, parts=parts)


def data(part: Dataset) -> Tensor:
    """The items of a dataset as other loops take them: float32 (N, *shape) in model units."""
    samples = load_samples(part, 0)
    assert isinstance(samples.items, Tensor)
    return samples.scaling.to_model(samples.items)


def loop(made: Recipe, device: torch.device = CPU) -> Steps:
    """`difftool train`: batches, network, optimizer, average and metrics, under a terminal's bar that nobody sees."""
    return watched(prepare(made, device))


def watched(experiment: Experiment) -> Generator[None, None, None]:
    """An experiment that is there already, step by step."""
    with tempfile.TemporaryDirectory() as place, open(os.devnull, "w") as nowhere:
        terminal = Console(file=nowhere, force_terminal=True, _environ={"TERM": "xterm"})
        words = BarWords(experiment.batch_size, len(experiment.train), experiment.steps)
        with experiment.open(lambda: create(experiment.recipe, Path(place) / "run", overwrite=False)):
            bar = Bar("training", experiment.steps, terminal)
            try:
                for result in experiment.run():
                    if result.metrics is not None:
                        words.add(result.metrics)
                    bar.update(result.step, words)
                    yield
            finally:
                bar.close()


def bare(made: Recipe, device: torch.device = CPU) -> Steps:
    """The network of a recipe and nothing else: forward, backward and fused Adam on one batch, again and again."""
    experiment = prepare(made, device)
    settings, network = made.training, experiment.state.network.train()
    batch = batch_of(experiment, experiment.batch_size)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr, fused=True)
    context = devices.autocast(device, settings.precision) or nullcontext
    compiled: Any = torch.compile(network) if settings.compile else network
    return steps_of(compiled, batch, optimizer, context)


def batch_of(experiment: Experiment, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, t, eps) as the network gets them, laid out as suits it, on its device."""
    items, device = experiment.data.shape, experiment.device
    layout = layout_of(experiment.state.network, items)
    x_t, eps = (torch.randn(size, *items, device=device).contiguous(memory_format=layout) for _ in range(2))
    return x_t, torch.rand(size, device=device) * 1000, eps


def steps_of(
    network: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    context: Callable[[], Any],
) -> Iterator[None]:
    x_t, t, eps = batch
    while True:
        with context():
            answer = network(x_t, t)
        loss = F.mse_loss(answer.float(), eps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield


def network_of(made: Recipe) -> nn.Module:
    """The untrained network of a recipe."""
    samples = load_samples(made[Dataset], 0)
    return build_network(made[Backbone], DataFacts.of(samples), made.training)
