"""The settings of training and sampling: records of options, as components are."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

from difftool.options import Options, option

LARGEST_SEED = 2**63 - 1
LARGEST_STEP = 10**9
SHORTEST, LONGEST = 0.001, 0.28
"""The bounds of the length of a power-function average; at 12^(-1/2) = 0.289 all steps would weigh the same."""
AUTO = "auto"
"""The value of --batch-size that starts a search for a suitable size, and of --precision that leaves it to difftool."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""The values of --precision."""
NO_CONDITION = "none"
"""The value of --condition that leaves all conditions of the data out."""
STRENGTH = 0.6
"""The default of --strength: the share of the steps that are made from an image."""


class Training(Options):
    """The settings of training. A backbone may have other defaults."""

    timesteps: int = option(default=1000, ge=1, le=100_000, help="T, the number of noise levels")
    steps: int | None = option(default=None, ge=0, le=LARGEST_STEP, help="optimizer steps")
    epochs: int | None = option(default=None, ge=1, le=10**7, help="passes over the data, instead of --steps")
    batch_size: int | Literal["auto"] = option(
        default=128,
        ge=1,
        le=10**6,
        help="batch size; auto picks the smallest batch that trains at nearly full speed",
    )
    accumulate: int = option(
        default=1,
        ge=1,
        le=10**6,
        help="split each batch into this many parts, computed one after another, to save memory",
    )
    checkpoint_activations: bool = option(
        default=False, help="save memory: compute blocks of the network again in the backward pass"
    )
    shard: bool = option(
        default=False,
        help="several processes: leave each a part of weights, averages and optimizer, for networks that fit none",
    )
    lr: float = option(default=1e-3, gt=0, le=10, help="learning rate")
    lr_schedule: Literal["constant", "cosine", "linear", "inverse-sqrt"] = option(
        default="constant",
        help="course of the learning rate; cosine and linear fall to 0 at the last step, inverse-sqrt ever more slowly",
    )
    warmup: int = option(default=0, ge=0, le=LARGEST_STEP, help="steps in which the learning rate rises from 0")
    lr_decay_steps: int | None = option(
        default=None,
        ge=1,
        le=LARGEST_STEP,
        help="step from which inverse-sqrt falls: lr / sqrt(step / N)",
        otherwise="--warmup",
    )
    clip: float = option(default=0.0, ge=0, help="gradient norm to clip at; 0: no clipping")
    ema: tuple[float, ...] = option(
        default=(0.999,),
        ge=0,
        lt=1,
        help="decays of averages of the weights (EMA), at most; the model file holds the first; 0: no average",
    )
    ema_lengths: tuple[float, ...] = option(
        default=(),
        ge=SHORTEST,
        le=LONGEST,
        help="lengths (relative deviations) of power-function averages, such as 0.05,0.10, for sample --ema-length",
    )
    snapshot_every: str | None = option(
        default=None,
        help="keep snapshots of the --ema-lengths every N steps, or N epochs (2ep); 0: never",
        otherwise="64 times",
    )
    held_out: int = option(
        default=0, ge=0, le=10**9, help="number of items kept out of training, for the held-out loss"
    )
    stratified: bool = option(default=False, help="spread the noise levels of a batch evenly, for a steadier loss")
    self_condition: bool = option(
        default=False, help="self-conditioning: also feed the network its own estimate of x_0"
    )
    learn_variance: bool = option(default=False, help="also learn the variance of DDPM's steps")
    condition: tuple[Literal["none", "label", "vector", "image", "tokens"], ...] | None = option(
        default=None,
        help="conditions of the data that the network learns, such as label,vector, or none",
        otherwise="all that the dataset brings",
    )
    condition_dropout: float = option(
        default=0.1, ge=0, le=1, help="share of the items whose condition is hidden, which guidance needs"
    )
    seed: int = option(default=0, ge=0, le=LARGEST_SEED, help="random seed; the same seed gives the same model")
    precision: Precision = option(
        default="auto", help="number format of the network; auto: bf16 for large networks where it is fast, else fp32"
    )
    compile: bool = option(default=False, help="compile the network with torch.compile")
    threads: int | None = option(default=None, ge=1, le=1024, help="CPU threads", otherwise="what suits the network")
    workers: int = option(default=2, ge=0, le=256, help="worker processes that read data too large for memory")
    checkpoint_every: str = option(default="500", help="save the training state every N steps, or N epochs (2ep)")
    keep: int = option(default=2, ge=1, le=10**6, help="number of training states kept")
    preview_every: str | None = option(
        default=None, help="draw samples every N steps, or N epochs (2ep); 0: never", otherwise="4 times"
    )
    evaluate_every: str | None = option(
        default=None, help="measure the metrics of --evaluate every N steps, or N epochs (2ep)", otherwise="10 times"
    )
    evaluate_samples: int = option(default=1_000, ge=2, le=10**7, help="number of samples that --evaluate draws")
    evaluate_against: Literal["train", "held-out"] | None = option(
        default=None, help="items that --evaluate compares samples with", otherwise="held-out, or train without any"
    )
    keep_best: str | None = option(
        default=None,
        help="keep the model at the best value of held-out-loss, or of a metric such as kid, in best.safetensors; "
        "none: keep no such model",
        otherwise="the first metric of --evaluate, or else held-out-loss",
    )

    init_from: Path | None = option(default=None, help="run or model file whose weights training starts from")
    init_weights: str | None = option(
        default=None, help="weights of --init-from, as sample --weights names them", otherwise="ema"
    )
    train_only: str | None = option(default=None, help="train the parameters whose names match this pattern, no others")
    freeze: str | None = option(default=None, help="leave the parameters whose names match this pattern as they are")

    def __post_init__(self) -> None:
        if self.init_weights is not None and self.init_from is None:
            raise ValueError("init_weights: belongs to --init-from; add --init-from")
        if self.train_only is not None and self.freeze is not None:
            raise ValueError("freeze: give either --train-only or --freeze")
        for name in ("train_only", "freeze"):
            try:
                re.compile(getattr(self, name) or "")
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"{name}: must be a regular expression ({error})") from None
        for name in ("checkpoint_every", "preview_every", "snapshot_every", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"\d{1,9}(ep)?", value):
                raise ValueError(
                    f"{name}: must be a number of steps such as 500, or of epochs such as 2ep, not {value!r}"
                )
        for name in ("checkpoint_every", "evaluate_every"):
            if is_never(getattr(self, name) or "1"):
                raise ValueError(f"{name}: must be at least 1")
        if self.evaluate_against == "held-out" and not self.held_out:
            raise ValueError("evaluate_against: nothing is held out; add --held-out N")
        if not self.ema or (0.0 in self.ema and len(self.ema) > 1):
            raise ValueError("ema: must be decays such as 0.999,0.9999, or 0 alone for no average")
        for name in ("ema", "ema_lengths"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: must not name a number twice")
        if self.snapshot_every is not None and not self.ema_lengths:
            raise ValueError("snapshot_every: there is no average to keep snapshots of; add --ema-lengths")
        if isinstance(self.batch_size, int) and self.batch_size < self.accumulate:
            raise ValueError(f"accumulate: a batch of {self.batch_size} has no {self.accumulate} parts")
        if self.lr_schedule != "inverse-sqrt" and self.lr_decay_steps is not None:
            raise ValueError("lr_decay_steps: belongs to --lr-schedule inverse-sqrt")
        if self.lr_schedule == "inverse-sqrt" and not (self.lr_decay_steps or self.warmup):
            raise ValueError("lr_schedule: inverse-sqrt needs the step from which it falls; add --lr-decay-steps N")
        if self.condition is not None and (
            not self.condition or (NO_CONDITION in self.condition and len(self.condition) > 1)
        ):
            raise ValueError("condition: must be none, or names of conditions such as label,vector")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("epochs: give either --steps or --epochs")

    def total_steps(self, items: int) -> int:
        """Return the step at which training on so many items ends. A search for a batch size must be over."""
        assert isinstance(self.batch_size, int)
        if self.epochs is not None:
            return math.ceil(self.epochs * items / self.batch_size)
        return self.steps if self.steps is not None else 0


class Sampling(Options):
    """The settings of sampling."""

    steps: int | None = option(
        default=None, ge=1, le=100_000, help="sampling steps", otherwise="what suits the sampler"
    )
    num_samples: int | None = option(
        default=None,
        ge=1,
        le=10**9,
        short="-n",
        help="number of samples",
        otherwise="16 images or arrays, 2000 points, as many of each class, 9 on a path, or one for each row of "
        "conditions",
    )
    batch_size: int | None = option(
        default=None, ge=1, le=10**7, help="samples computed at once; changes only their last digits"
    )
    seed: int = option(default=0, ge=0, le=LARGEST_SEED, help="random seed; sample k of a seed is always the same")
    label: str | None = option(
        default=None,
        help="class to sample: its name, or its index if no name is a number; several joined by commas, all, or none",
        otherwise="all classes in turn, of a model that knows no other condition",
    )
    vector: str | None = option(
        default=None,
        help="vector to sample under: numbers such as 0.3,1.2, or a .npy file of one or a row for each sample",
    )
    image: Path | None = option(
        default=None, help="condition image to sample under, or a folder of one for each sample"
    )
    tokens: Path | None = option(
        default=None, help=".npy file of tokens to sample under, (L,D) or a row for each sample"
    )
    clip: bool = option(default=True, help="clip estimates of x_0 to the range of the data, if it has one")
    threshold: float | None = option(
        default=None, gt=0, le=1, help="instead of clipping, threshold at this quantile of |x_0|, such as 0.995"
    )
    interpolate: tuple[int, ...] | None = option(
        default=None,
        ge=0,
        le=LARGEST_SEED,
        help="A,B: interpolate between the noise of two seeds, without adding noise",
    )
    init: Path | None = option(default=None, help="image to start from, with noise added, instead of pure noise")
    strength: float | None = option(
        default=None, gt=0, le=1, help="share of the steps made from --init; 1: all", otherwise=f"{STRENGTH}"
    )
    inpaint: Path | None = option(default=None, help="image of which a part is painted anew; see --mask")
    mask: Path | None = option(
        default=None, help="image of the same proportions: white where --inpaint paints, black where it keeps"
    )
    precision: Precision = option(
        default="auto",
        help="number format of the network; auto: the one it was trained in, or fp32 where bf16 is slow",
    )
    compile: bool = option(default=False, help="compile the network with torch.compile")
    threads: int | None = option(default=None, ge=1, le=1024, help="CPU threads", otherwise="what suits the network")

    def __post_init__(self) -> None:
        seeds = self.interpolate
        if self.threshold is not None and not self.clip:
            raise ValueError("threshold: takes the place of clipping; give either --threshold or --no-clip")
        if seeds is not None and not (len(seeds) == 2 and seeds[0] != seeds[1]):
            raise ValueError("interpolate: must be two different seeds, A,B, such as 0,1")
        if seeds is not None and self.num_samples == 1:
            raise ValueError("num_samples: a path needs at least 2 samples, since --interpolate draws both ends")
        if self.strength is not None and self.init is None:
            raise ValueError("strength: belongs to --init; add --init")
        if self.inpaint is not None and self.mask is None:
            raise ValueError("inpaint: needs a mask for the part to paint; add --mask")
        if self.mask is not None and self.inpaint is None:
            raise ValueError("mask: belongs to an image; add --inpaint")


def is_never(every: str) -> bool:
    """Return whether something that is done every so many steps or epochs is never done: `0`."""
    return int(every.removesuffix("ep")) == 0


def is_due(step: int, every: str, *, items: int, batch_size: int) -> bool:
    """Return whether something that is done every `500` steps or `2ep` epochs is due after this step; `0` is never."""
    interval = items_between(every, items, batch_size)
    return interval > 0 and step * batch_size % interval < batch_size


def times_due(steps: int, every: str, *, items: int, batch_size: int) -> int:
    """Return how often something that is done every `500` steps or `2ep` epochs comes due in so many steps.

    A step may use several epochs; they count.
    """
    interval = items_between(every, items, batch_size)
    return steps * batch_size // interval if interval else 0


def items_between(every: str, items: int, batch_size: int) -> int:
    """Return the items of `500` steps or `2ep` epochs. Batches run across the ends of epochs of so many items."""
    count = int(every.removesuffix("ep"))
    return count * (items if every.endswith("ep") else batch_size)
