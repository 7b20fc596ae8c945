"""What samples are compared with: items of their own data, or others of the same kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from difftool.data.samples import Samples
from difftool.data.splitting import split, subset
from difftool.errors import DifftoolError, UsageError
from difftool.evaluation.settings import HELD_OUT, TRAIN
from difftool.rng import permutation

if TYPE_CHECKING:
    from difftool.sampling.source import Source


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

    @classmethod
    def of(cls, source: Source, against: str = TRAIN) -> Reference:
        """Load the training or held-out items of a source. Raises `DifftoolError`, and `UsageError` without any."""
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

    def of_class(self, label: int | None) -> Reference:
        """Return the reference with the items of one class alone. Raises `UsageError` if it has none."""
        if label is None:
            return self

        def only(samples: Samples) -> Samples:
            assert samples.labels is not None
            indices = (samples.labels == label).nonzero().flatten().tolist()
            if not indices:
                raise UsageError(f"--label: there are no {self.name} items of this class")
            return subset(samples, indices)

        others = None
        if self.others is not None and self.others.labels is not None and bool((self.others.labels == label).any()):
            others = only(self.others)
        return replace(self, samples=only(self.samples), others=others)


def apart(reference: Tensor, others: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Return the rows of data in place of samples, and those of the data that these are compared with.

    No item is among both. Where there are enough other items, up to `count` of them are compared with the whole
    reference, and else one half of the reference, or `count` of its items, with the rest of it.
    """
    half = min(count, len(reference) // 2)
    if others is not None and len(others) >= half:
        return others[permutation(len(others), "floor")[:count]], reference
    order = permutation(len(reference), "floor")
    return reference[order[:half]], reference[order[half:]]
