"""The settings of `difftool compare`, and what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difftool.components import Features, Guidance, Metric, Sampler, Spacing
from difftool.options import Options, option
from difftool.settings import LARGEST_SEED


class Comparing(Options):
    """The settings of a comparison."""

    samplers: tuple[str, ...] | None = option(
        default=None, help="names joined by commas", otherwise="all that add no noise; of several runs ddim"
    )
    spacings: tuple[str, ...] | None = option(
        default=None, help="names joined by commas", otherwise="trailing,log-snr; of several runs trailing"
    )
    calls: tuple[int, ...] | None = option(
        default=None,
        ge=1,
        le=100_000,
        help="network calls; as many steps as they allow",
        otherwise="5,10,20,40,80,160; of several runs 10,20,50",
    )
    num_samples: int | None = option(
        default=None,
        ge=2,
        le=10**7,
        short="-n",
        help="number of samples",
        otherwise="16 images or arrays, 256 of several runs; 2000 points, 1000 with an oracle",
    )
    batch_size: int | None = option(
        default=None, ge=1, le=10**7, help="samples drawn at once; changes only their last digits"
    )
    seed: int = option(default=0, ge=0, le=LARGEST_SEED, help="seed of the noise that all trajectories start from")
    seeds: tuple[int, ...] | None = option(
        default=None,
        ge=0,
        le=LARGEST_SEED,
        help="several seeds, such as 0..2 or 0,1,5, for means with their deviations",
    )
    label: str | None = option(default=None, help="class to sample: its name or index")
    against: Literal["train", "held-out"] | None = option(
        default=None,
        help="data of the first run that --metric compares with",
        otherwise="held-out if there are any",
    )
    reference: int | None = option(
        default=None, ge=2, le=100_000, help="steps of the exact solution, of one run", otherwise="1000"
    )
    threads: int | None = option(
        default=None, ge=1, le=1024, help="CPU threads", otherwise="the number that suits the network"
    )

    def __post_init__(self) -> None:
        for name in ("samplers", "spacings", "calls"):
            if getattr(self, name) == ():
                raise ValueError(f"{name}: must name at least one")
        if self.seeds is not None and self.seed:
            raise ValueError("seeds: give either --seed or --seeds")
        if self.seeds is not None and not 0 < len(set(self.seeds)) == len(self.seeds):
            raise ValueError("seeds: must be different seeds, such as 0..2 or 0,1,5")


@dataclass(frozen=True)
class Wanted:
    """A comparison as the command line asks for it: its parts, and the files to write."""

    settings: Comparing
    samplers: list[Sampler]
    """Empty for all that add no noise."""
    spacings: list[Spacing]
    guidances: list[Guidance | None]
    calls: list[int]
    metrics: list[Metric]
    """Empty for the sliced Wasserstein-2 distance to fresh data."""
    features: Features
    out: Path | None
    table: Path | None
    overwrite: bool
    json: bool
