"""The settings of an evaluation."""

from __future__ import annotations

from pathlib import Path

from difftool.errors import UsageError
from difftool.options import Options, option
from difftool.runs.folder import is_run
from difftool.settings import LARGEST_SEED, Precision, Sampling

TRAIN, HELD_OUT = "train", "held-out"
"""The words of --against for the parts of a run's own data."""


COPIED = ("image", "film", "sound")
"""The forms of items of which copies are looked for."""
ARRAYS = (".npy", ".npz")
"""The suffixes of arrays of samples."""


def is_stored(path: Path) -> bool:
    """Return whether a path leads to samples, an array or a folder of images, and not to a run or a model."""
    if path.is_dir():
        return not is_run(path)
    return path.suffix.lower() in ARRAYS


class Evaluating(Options):
    """The settings of an evaluation."""

    num_samples: int = option(default=5_000, ge=2, le=10**7, short="-n", help="number of samples")
    against: str = option(
        default=TRAIN,
        help="what samples are compared with: train or held-out (the items of the first run), or the path of another "
        "run, whose training items are taken, of an array (.npy, .npz), or of a folder of images",
    )
    reference: int = option(
        default=10_000, ge=4, le=10**7, help="items that samples are compared with, at most; picked at random"
    )
    copies: bool | None = option(
        default=None,
        help="compare samples with the training items one by one, to find copies",
        otherwise="for images, films and sounds",
    )
    steps: int | None = option(
        default=None, ge=1, le=100_000, help="sampling steps", otherwise="what suits the sampler"
    )
    batch_size: int | None = option(
        default=None, ge=1, le=10**7, help="samples computed at once; changes only their last digits"
    )
    seed: int = option(
        default=0, ge=0, le=LARGEST_SEED, help="seed of the samples, and of whatever metrics draw at random"
    )
    label: str | None = option(
        default=None, help="compare one class alone: its name, or its index if no name is a number"
    )
    clip: bool = option(default=True, help="clip estimates of x_0 to the range of the data, if it has one")
    threshold: float | None = option(
        default=None, gt=0, le=1, help="instead of clipping, threshold at this quantile of |x_0|, such as 0.995"
    )
    precision: Precision = option(
        default="auto",
        help="number format of the network; auto: the one it was trained in, or fp32 where bf16 is slow",
    )
    compile: bool = option(default=False, help="compile the network with torch.compile")
    threads: int | None = option(default=None, ge=1, le=1024, help="CPU threads", otherwise="what suits the network")

    def __post_init__(self) -> None:
        if self.threshold is not None and not self.clip:
            raise ValueError("threshold: takes the place of clipping; give either --threshold or --no-clip")

    def looks_for_copies(self, form: str | None, *, own: bool) -> bool:
        """Return whether samples of a form are compared one by one with the training items, if these are known.

        Raises `UsageError` if they are not, and the user wants it.
        """
        if self.copies and not own:
            raise UsageError("--copies: the items that the model was trained on are not available here")
        return own and (form in COPIED if self.copies is None else self.copies)

    @property
    def sampling(self) -> Sampling:
        """The settings with which the samples are drawn."""
        return Sampling(
            num_samples=self.num_samples,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            label=self.label,
            clip=self.clip,
            threshold=self.threshold,
            precision=self.precision,
            compile=self.compile,
            threads=self.threads,
        )
