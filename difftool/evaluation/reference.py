"""The items that samples are compared with: those of their own data, or others of the same kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from difftool.data.samples import Samples
from difftool.data.splitting import split, subset
from difftool.errors import DifftoolError, UsageError, counted, printable
from difftool.evaluation.settings import HELD_OUT, TRAIN, is_stored
from difftool.evaluation.stored import read_stored
from difftool.rng import permutation

if TYPE_CHECKING:
    from difftool.sampling.source import Source

WORDS = {TRAIN: "training", HELD_OUT: HELD_OUT}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The items that samples are compared with."""

    name: str
    """`train`, `held-out`, or a path."""
    samples: Samples
    others: Samples | None = None
    """Items of the same data that are not among `samples`, if there are any."""
    train: Samples
    """The training items, which features are fitted on."""
    held_out: Samples | None = None
    own: bool = True
    """True if `train` are the items that the model was trained on, as far as is known."""

    @classmethod
    def of(cls, source: Source, against: str = TRAIN) -> Reference:
        """Load the training or held-out items of a source, or what lies at a path.

        Raises `UsageError` for something else, and `DifftoolError` for what cannot be read.
        """
        if against not in WORDS:
            return cls._at(source, Path(against))
        samples = source.load_samples()
        try:
            train, held_out = split(samples, source.held_out)
        except ValueError as error:
            raise DifftoolError(f"the data of {source.name} are not those it was trained on: {error}") from None
        if against == TRAIN:
            return cls(name=TRAIN, samples=train, others=held_out, train=train, held_out=held_out)
        if held_out is None:
            raise UsageError(
                f"--against: {source.name} has no held-out items; train with --held-out N, or compare with {TRAIN}"
            )
        return cls(name=HELD_OUT, samples=held_out, others=train, train=train, held_out=held_out)

    @classmethod
    def given(cls, source: Source, against: str | Path | Samples) -> Reference:
        """Return what Python code gives: what `of` takes, or samples. Raises `TypeError` for anything else."""
        if isinstance(against, Samples):
            if (against.shape, against.form) != (source.data.shape, source.data.form):
                raise UsageError(f"against: {against} are no {source.data.words}, as {source.name} has")
            return cls.of_others(source, "memory", against)
        if not isinstance(against, (str, Path)):
            raise TypeError(f"against is {TRAIN}, {HELD_OUT}, a path or Samples, not {type(against).__name__}")
        return cls.of(source, str(against))

    @classmethod
    def _at(cls, source: Source, path: Path) -> Reference:
        """Load the samples at a path, or the training items of the run there."""
        if not path.exists():
            words = f"{TRAIN}, {HELD_OUT}, or the path of a run, of an array or of a folder of images"
            raise UsageError(f"--against: must be {words}; {printable(str(path))} does not exist")
        if is_stored(path):
            return cls.of_others(source, str(path), read_stored(path, source.data))
        other = source.open_other(path, "ema")
        if (other.data.shape, other.data.form) != (source.data.shape, source.data.form):
            raise UsageError(
                f"--against: {printable(str(path))} has {other.data.words}, and {source.name} {source.data.words}"
            )
        return cls.of_others(source, str(path), cls.of(other).samples)

    @classmethod
    def of_others(cls, source: Source, name: str, samples: Samples) -> Reference:
        """Return other items than a source's own, which are still what features are fitted on if they are here."""
        try:
            return replace(cls.of(source), name=name, samples=samples, others=None)
        except DifftoolError:
            return cls(name=name, samples=samples, train=samples, own=False)

    def of_class(self, label: int | None) -> Reference:
        """Return the reference with the items of one class alone. Raises `UsageError` if it has none."""
        if label is None:
            return self
        samples = only(self.samples, label)
        if samples is None:
            raise UsageError(f"--label: there are no {WORDS.get(self.name, self.name)} items of this class")
        return replace(self, samples=samples, others=None if self.others is None else only(self.others, label))

    def at_most(self, count: int) -> Reference:
        """Return the reference with at most so many items, picked at random, the same ones every time.

        Of the rest, as many are items of the same data beside it, if there were fewer of these.
        """
        if len(self.samples) <= count:
            return self
        order = permutation(len(self.samples), "reference").tolist()
        kept, rest = (subset(self.samples, sorted(part)) for part in (order[:count], order[count : 2 * count]))
        others = rest if self.others is None or len(self.others) < len(rest) else self.others
        return replace(self, samples=kept, others=others)

    @property
    def words(self) -> str:
        """The items in words, such as `1,437 training items`."""
        what = WORDS.get(self.name)
        count = len(self.samples)
        return f"{count:,} {what} items" if what else f"{counted(count, 'item')} of {printable(self.name)}"


def only(samples: Samples, label: int) -> Samples | None:
    """Return the items of a class, or None if there are none."""
    indices = [] if samples.labels is None else (samples.labels == label).nonzero().flatten().tolist()
    return subset(samples, indices) if indices else None


def some(samples: Samples, count: int) -> Samples:
    """Return at most so many items, picked at random, the same ones every time."""
    if len(samples) <= count:
        return samples
    return subset(samples, sorted(permutation(len(samples), "floor")[:count].tolist()))


def apart(reference: Tensor, others: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Return the rows of data in place of samples, and those of the data that these are compared with.

    No item is among both. Where there are enough other items, up to `count` of them are compared with the whole
    reference, and else one half of the reference, or `count` of its items, with the rest of it.
    """
    half = min(count, len(reference) // 2)
    if others is not None and len(others) >= half:
        return others[:count], reference
    order = permutation(len(reference), "floor")
    return reference[order[:half]], reference[order[half:]]
