"""Reflow for difftool: pairs of noise and samples, a dataset that reads them, and a measure of how straight paths are.

A rectified flow learns straight paths between data and noise (Liu, Gong & Liu, 2023). Trained again on its own pairs of
noise and sample, its paths become straighter, until a single step is enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from difftool import (
    Command,
    Dataset,
    Sampler,
    UsageError,
    component_option,
    hookimpl,
    model_option,
    option,
    output_option,
)

if TYPE_CHECKING:
    from difftool import DatasetContext, Output, Samples, Source

difftool_api = 2


class Pairs(Dataset, name="pairs"):
    """Samples of a model with the noise that each was drawn from, as `difftool pairs` writes them."""

    path: Path = option(help="an .npz file that `difftool pairs` wrote")

    def load(self, context: DatasetContext) -> Samples:
        from difftool_reflow.paths import read_pairs

        return read_pairs(self.path)


class DrawPairs(Command, name="pairs"):
    """Draw samples of a model, and write each with the noise that it came from, to train another model on."""

    model: Source = model_option(oracle=True)
    sampler: Sampler = component_option(default="heun", help="Sampler that draws no noise.")
    steps: int = option(default=25, ge=1, le=10_000, help="steps of the sampler")
    n: int = option(default=10_000, short="-n", ge=1, help="number of pairs")
    batch_size: int = option(default=1000, ge=1, help="pairs that are drawn at once")
    seed: int = option(default=0, ge=0, help="seed of the noise")
    out: Output = output_option(suffixes=(".npz",), default="pairs.npz", help="File to write.")

    def run(self) -> dict[str, int]:
        from difftool_reflow.paths import draw_pairs, write_pairs

        check(self.model)
        noise, x = draw_pairs(self.model, self.sampler, self.steps, self.n, self.batch_size, self.seed)
        with self.out.writing() as path:
            write_pairs(path, self.model, noise, x)
        return {"pairs": self.n}


class Straightness(Command, name="straightness"):
    """Measure how far the paths of a flow are from straight lines: 0 where one step is enough."""

    model: Source = model_option(oracle=True)
    steps: int = option(default=100, ge=2, le=10_000, help="steps of each path")
    n: int = option(default=2000, short="-n", ge=1, help="number of paths")
    seed: int = option(default=0, ge=0, help="seed of the noise")

    def run(self) -> dict[str, float]:
        from difftool_reflow.paths import noise_of, straightness

        check(self.model)
        x = noise_of(self.model, self.seed, 0, self.n)
        return {"straightness": straightness(self.model.denoiser(self.n), x, self.model.schedule, self.steps)}


def check(model: Source) -> None:
    """Raise `UsageError` for a model of latents, or of which nothing can be drawn without a condition."""
    if model.latents is not None:
        raise UsageError(f"{model.name} works on latents, whose noise has another shape than the data")
    if model.needs_condition:
        raise UsageError(f"{model.name} was trained with --condition-dropout 0 and draws nothing without a condition")


@hookimpl
def difftool_datasets() -> list[type[Dataset]]:
    return [Pairs]


@hookimpl
def difftool_commands() -> list[type[Command]]:
    return [DrawPairs, Straightness]
