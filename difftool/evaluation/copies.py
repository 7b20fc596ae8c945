"""Is it a copy? The distance of each sample to the nearest training item, judged by that of items never trained on.

A distance by itself tells little: a smooth sample is near to everything, and one from a sparse region is far from
everything. Each distance is therefore divided by another one, to items that the model was not trained to repeat: the
nearest held-out item, as in Meehan et al. (2020, "A non-parametric test to detect data-copying"), or without held-out
items the mean over the next nearest training items, as in Carlini et al. (2023, "Extracting training data from
diffusion models", section 5.1). What is left is judged by ranks alone, since for a model that copies nothing, samples
and held-out items are alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from difftool.evaluation.neighbours import nearest

Verdict = Literal["copies found", "nearer than new data", "no copies found", "too few to tell", "cannot tell"]

QUANTILE = 0.95
PAIRS = 12
"""The largest number of nearest pairs that are kept."""
NEXT = 5
"""The number of further training items to whose mean distance the nearest one is compared, without held-out items."""
FEW = 100
"""Fewer held-out items are not used if there are more training items, whose own distances then say more."""
FAR = 1e9
"""The largest relative distance."""
PAIRED = 0.5
"""The weight of distances among training items: two that are nearest to each other have the same one."""
RARE = 2e-3
"""The probability below which a share is not put down to chance."""
BLIND = 0.25
"""No verdict clears a model of which this share could be copies by chance."""
MARKED = 2.0
"""The multiple of the expected share from which on samples are called copies."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A sample and the training item that is nearest to it."""

    sample: int
    item: int
    distance: float
    relative: float
    """The distance divided by that to held-out items, or to the next nearest training items: about 0 for a copy."""

    def caption(self, name: str) -> str:
        """Return the distance, the relative one in brackets, and the name of the item."""
        return f"{self.distance:.3g} ({self.relative:.2g}) {name}"


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of the samples, and that of a model which copies nothing: samples and unseen items are then alike."""

    value: float
    expected: float
    limit: float | None
    """The smallest share that such a model reaches less often than `RARE`, or None if there are too few to tell."""

    @property
    def rare(self) -> bool:
        return self.limit is not None and self.value >= self.limit


@dataclass(frozen=True, kw_only=True)
class Copies:
    """The nearness of samples to the training items, by their relative distances (see `Pair.relative`)."""

    verdict: Verdict
    share: Share
    """The share of the samples that are nearer to a training item than `quantile` of the unseen items are."""
    closest: Share
    """The share of the samples that are nearer to a training item than every unseen item that does not equal one."""
    absolute: float
    """`share` by the distances themselves, of which smooth samples have smaller ones."""
    identical: Share
    """The share of the samples that equal a training item. Held-out and training items are the unseen ones here."""
    n: int
    """The number of samples."""
    unseen: int
    """The number of unseen items."""
    baseline: Literal["held-out", "train"]
    """The unseen items: held-out ones, or training items, of which each is compared with the others."""
    quantile: float = QUANTILE
    nearest: tuple[Pair, ...]
    """The pairs with the smallest relative distances, the smallest first, of which each training item has one."""

    def words(self, noun: str = "items") -> str:
        """Return the result in words; `noun` is the plural of an item, such as `images`."""
        unseen = f"held-out {noun}" if self.baseline == "held-out" else f"training {noun} are to the others"
        if self.share.limit is None:
            return f"{self.verdict}: {self.n:,} samples, compared with {self.unseen:,} {unseen}"
        if self.verdict == "cannot tell":
            return f"{self.verdict}: too many of the {self.unseen:,} held-out {noun} are among the training {noun}"
        return (
            f"{self.verdict}: {_percent(self.share.value)} of {self.n:,} samples are nearer to one of the training "
            f"{noun} than {_percent(self.quantile)} of {self.unseen:,} {unseen} ({_by_chance(self.share)}), and "
            f"{_percent(self.closest.value)} nearer than all of them ({_by_chance(self.closest)})"
        ) + (f"; {_percent(self.identical.value)} equal one" if self.identical.value else "")


def copies(samples: Tensor, train: Tensor, held_out: Tensor | None = None, *, quantile: float = QUANTILE) -> Copies:
    """Compare the distances of samples (N, D) to training items (M, D) with those of held-out items (H, D).

    Without held-out items, or with few, the training items are compared, each with the others, and equal ones count
    once. Raises `ValueError` for features that are not finite.
    """
    for name, features in (("samples", samples), ("training items", train), ("held-out items", held_out)):
        if features is not None and not bool(features.isfinite().all()):
            raise ValueError(f"the features of the {name} are not finite, so they have no distances")
    kept = distinct(train)
    items, repeated = train[kept], len(train) - len(kept)
    if held_out is not None and _rank(len(held_out), quantile) and len(held_out) >= min(FEW, len(train)):
        sample, unseen = (_beside(each, items, held_out) for each in (samples, held_out))
        baseline: Literal["held-out", "train"] = "held-out"
    else:
        sample, unseen = _among(samples, items), _among(items, items)
        baseline = "train"
    sample = replace(sample, items=kept[sample.items])
    return _judged(sample, unseen, baseline, quantile, train=len(train), repeated=repeated)


@dataclass(frozen=True)
class _Neighbours:
    """The nearest training item of each of N vectors."""

    distances: Tensor
    items: Tensor
    """(N,) int64 indices."""
    relative: Tensor
    """(N,) relative distances."""

    @classmethod
    def of(cls, distances: Tensor, items: Tensor, others: Tensor) -> _Neighbours:
        """Divide distances (N,) by others. Equally near to both is 1, also if both are 0, and nothing is infinite."""
        return cls(distances, items, torch.where(distances == others, 1.0, distances / others).clamp(max=FAR))


def _beside(queries: Tensor, train: Tensor, held_out: Tensor) -> _Neighbours:
    """Compare the distance to the nearest training item with that to the nearest held-out item."""
    distances, items = nearest(queries, train)
    others, _ = nearest(queries, held_out, others=queries is held_out)
    return _Neighbours.of(distances[:, 0], items[:, 0], others[:, 0])


def _among(queries: Tensor, train: Tensor) -> _Neighbours:
    """Compare the distance to the nearest training item with the mean of those to the next nearest."""
    found = min(1 + NEXT, len(train) - 1)
    if found < 2:  # two items have no other distance to compare theirs with
        zeros = torch.zeros(len(queries), dtype=torch.float64)
        return _Neighbours(zeros, zeros.long(), zeros)
    distances, items = nearest(queries, train, found, others=queries is train)
    return _Neighbours.of(distances[:, 0], items[:, 0], distances[:, 1:].mean(1))


def distinct(items: Tensor) -> Tensor:
    """Return the indices (K,) of the first of each set of equal rows of items (M, D)."""
    first: dict[bytes, int] = {}
    for i, row in enumerate(items.numpy()):
        first.setdefault(hashlib.sha256(row.tobytes()).digest(), i)
    return torch.tensor(list(first.values()))


def _judged(
    samples: _Neighbours,
    unseen: _Neighbours,
    baseline: Literal["held-out", "train"],
    quantile: float,
    *,
    train: int,
    repeated: int,
) -> Copies:
    """Compare samples and unseen items, where `repeated` of so many training items equal an earlier one."""
    n, count = len(samples.relative), len(unseen.relative)
    rank, equal = _rank(count, quantile), int((unseen.distances == 0).sum())
    weight = 1.0 if baseline == "held-out" else PAIRED
    share, closest = (_share(samples.relative, unseen.relative, each, weight) for each in (rank, min(1 + equal, rank)))
    all_unseen, all_equal = train + (count if baseline == "held-out" else 0), repeated + equal
    identical = Share(
        value=float((samples.distances == 0).double().mean()),
        expected=all_equal / all_unseen,
        limit=limit_by_chance(n, all_unseen, 1 + all_equal),
    )
    return Copies(
        verdict=_verdict(share, closest, identical, equal=0 < rank <= equal),
        share=share,
        closest=closest,
        absolute=_share(samples.distances, unseen.distances, rank, weight).value,
        identical=identical,
        n=n,
        unseen=count,
        baseline=baseline,
        quantile=quantile,
        nearest=_pairs(samples),
    )


def _pairs(samples: _Neighbours) -> tuple[Pair, ...]:
    """Return the pairs with the smallest relative distances, of which each item has one."""
    pairs: dict[int, Pair] = {}
    for i in samples.relative.argsort(stable=True).tolist():
        item, distance, relative = int(samples.items[i]), float(samples.distances[i]), float(samples.relative[i])
        pairs.setdefault(item, Pair(sample=i, item=item, distance=distance, relative=relative))
        if len(pairs) == PAIRS:
            break
    return tuple(pairs.values())


def _verdict(share: Share, closest: Share, identical: Share, *, equal: bool) -> Verdict:
    if identical.rare:
        return "copies found"
    if equal:
        return "cannot tell"
    if closest.rare or (share.rare and share.value >= MARKED * share.expected):
        return "copies found"
    if share.limit is None or share.limit > BLIND:
        return "too few to tell"
    return "nearer than new data" if share.rare else "no copies found"


def _rank(unseen: int, quantile: float) -> int:
    """Return how many of the unseen items are beyond the quantile: 0 if there are too few of them."""
    return int((1 - quantile) * (unseen + 1) + 1e-9)


def _smallest(values: Tensor, rank: int) -> float:
    return float(values.kthvalue(rank).values)


def _share(samples: Tensor, unseen: Tensor, rank: int, weight: float) -> Share:
    """Return the share of the samples that lie below the unseen value of a rank, counted from 1.

    Unseen values count as `weight` times as many.
    """
    n, count = len(samples), len(unseen)
    if rank == 0:
        return Share(value=0.0, expected=0.0, limit=None)
    below = float((samples < _smallest(unseen, rank)).double().mean())
    return Share(value=below, expected=rank / (count + 1), limit=limit_by_chance(n, count, rank, weight))


def limit_by_chance(n: int, unseen: int, rank: int, weight: float = 1.0) -> float | None:
    """Return the smallest share of n samples below an unseen value of a rank that is rarer than `RARE`, or None.

    If samples and unseen items are alike, the number below is beta-binomial, with n, rank and unseen + 1 - rank: the
    share of the distribution below an order statistic has a beta distribution. It is as wide as that of `weight`
    times as many unseen items.
    """
    k = torch.arange(n + 1, dtype=torch.float64)
    a, b = k.new_tensor(weight * rank), k.new_tensor(weight * (unseen + 1 - rank))
    log = torch.lgamma
    choose = log(k.new_tensor(n + 1.0)) - log(k + 1) - log(n - k + 1)
    probability = choose + log(k + a) + log(n - k + b) - log(n + a + b) + log(a + b) - log(a) - log(b)
    at_least = probability.exp().flip(0).cumsum(0).flip(0)
    rare = (at_least < RARE).nonzero()
    return float(rare[0]) / n if len(rare) else None


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _by_chance(share: Share) -> str:
    seldom = "" if share.limit is None else f", seldom {_percent(share.limit)}"
    return f"by chance {_percent(share.expected)}{seldom}"
