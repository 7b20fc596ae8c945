"""What the two benchmarks of tutorials share: who takes part, and what is expected of difftool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from benchmarks import articles, ours
from benchmarks.findings import Comparison, Effort, Findings, Table, at_least, digits
from benchmarks.measuring import Contest, Measured
from difftool import devices
from difftool.components import Dataset
from difftool.runs.recipe import Recipe

ARTICLE, ACCELERATE = "the tutorial's loop", "accelerate and diffusers' scheduler"
BARE, EAGER, COMPILED = "the network alone", "difftool", "difftool --compile"

COMPILER = ("c++",)
"""What torch.compile needs on a CPU."""

SETTINGS: Mapping[str, object] = {
    "batch_size": articles.BATCH,
    "lr": articles.RATE,
    "lr_schedule": "constant",
    "warmup": 0,
    "ema": 0.999,
    "stratified": False,
    "seed": 0,
}
"""The tutorials' settings, and the average that difftool keeps beside them."""


def contest(made: Recipe, *, depth: int, statistics: bool) -> Contest:
    """The loops of a tutorial, with one and the same network."""
    items, timesteps = ours.data(made[Dataset]), made.training.timesteps
    network = partial(articles.PlainTime, tuple(items.shape[1:]), depth=depth)
    check_same_size(made, network())
    entries = Contest()
    entries.add(ARTICLE, lambda: articles.article(network(), items, timesteps, statistics=statistics), needs=("tqdm",))
    entries.add(
        ACCELERATE,
        lambda: articles.accelerated(network(), items, timesteps),
        needs=("accelerate", "diffusers", "tqdm"),
    )
    entries.add(BARE, lambda: ours.bare(made))
    entries.add(EAGER, lambda: ours.loop(made))
    entries.add(COMPILED, lambda: ours.loop(made.with_training(compile=True)), programs=COMPILER)
    return entries


def check_same_size(made: Recipe, network: nn.Module) -> None:
    """Loops can be compared only where they train the same network."""
    theirs, own = (sum(p.numel() for p in one.parameters()) for one in (network, ours.network_of(made)))
    if theirs != own:
        raise ValueError(f"the tutorial's network has {theirs} parameters, difftool's {own}")


@dataclass(frozen=True)
class Goals:
    """How many times as fast difftool should be."""

    eager: float
    """As the tutorial's loop."""
    compiled: float
    """As the tutorial's loop, with --compile."""
    of_network: float
    """As the network alone."""


def compare(made: Recipe, effort: Effort, *, depth: int, statistics: bool, goals: Goals) -> Findings:
    """Run the contest on one thread."""
    with devices.threads(1):
        entries = contest(made, depth=depth, statistics=statistics)
        measured = entries.run(warmup=effort(100, 10), steps=effort(200, 20), rounds=effort(25, 3))
    table = Table(
        title="A training step on one thread",
        unit="us a step",
        values=measured.times,
        kind="speed",
        comparisons=[
            Comparison(ACCELERATE, ARTICLE),
            Comparison(BARE, ARTICLE),
            Comparison(EAGER, ARTICLE, at_least(goals.eager)),
            Comparison(COMPILED, ARTICLE, at_least(goals.compiled)),
            Comparison(EAGER, BARE, at_least(goals.of_network)),
            Comparison(COMPILED, BARE),
        ],
    )
    return Findings([table], [*entries.notes, *compiling(measured)])


def compiling(measured: Measured) -> list[str]:
    """How long the first step took, in which the network is compiled; nothing where none was."""
    return [
        f"The first step of {name}, in which it compiles with an empty cache, took {digits(seconds)} s."
        for name, seconds in measured.first.items()
        if name == COMPILED
    ]
