"""What features learn from data: means and deviations, and principal components."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from difftool import FeaturesSpec, Samples

Function = Callable[[Tensor], Tensor]

BATCH = 256
MEASURED = 4096
"""The largest number of items whose features are measured to scale them."""
LONG = 4096
"""The numbers of an item from which on components are found among so many items, and not in a matrix of its numbers."""
NOTHING = 1e-10
"""The share of the largest variance below which a direction has none."""


@dataclass(frozen=True)
class Described:
    """A function of items, with facts about it that are shown and recorded."""

    function: Function
    facts: Mapping[str, float | str] = field(default_factory=dict)

    def __call__(self, items: Tensor) -> Tensor:
        return self.function(items)


def batches(function: Function, spec: FeaturesSpec, data: Samples, chosen: Sequence[int]) -> Iterator[Tensor]:
    """Yield the features of items at indices, in batches, as float64 on the CPU."""
    for first in range(0, len(chosen), BATCH):
        items = data.take_items(chosen[first : first + BATCH])
        yield function(items.to(spec.device)).cpu().double()


def some(spec: FeaturesSpec, data: Samples, most: int) -> list[int]:
    """Return the indices of all items, or of so many random ones, in their order."""
    if len(data) <= most:
        return list(range(len(data)))
    chosen: list[int] = torch.randperm(len(data), generator=spec.generator("items"))[:most].sort().values.tolist()
    return chosen


def standardised(function: Function, spec: FeaturesSpec, data: Samples) -> Function:
    """Return the function with its features shifted and scaled to mean 0 and deviation 1 over the data.

    A feature that is the same for all items becomes 0 for all of them, and for others it is only shifted.
    """
    with torch.no_grad():
        features = torch.cat(list(batches(function, spec, data, some(spec, data, MEASURED))))
    mean, std = features.mean(0), features.std(0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0)
    return lambda items: ((function(items).cpu().double() - mean) / std).float()


def principal_components(
    function: Function, spec: FeaturesSpec, data: Samples, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean (D,) of features, their first components (D, K), and the deviations (K,) along these, float64.

    K is `count`, or fewer if the data vary in fewer directions. The largest entry of each component is positive.
    Raises `ValueError` for data that do not vary.
    """
    length = function(data.take_items([0]).to(spec.device)).shape[1]
    if length > LONG:
        features = torch.cat(list(batches(function, spec, data, some(spec, data, LONG))))
        mean = features.mean(0)
        variances, across = torch.linalg.eigh((features - mean) @ (features - mean).T / len(features))
        axes = (features - mean).T @ across / (len(features) * variances.clamp(min=0)).sqrt()
    else:
        mean, covariance = moments(lambda: batches(function, spec, data, range(len(data))))
        variances, axes = torch.linalg.eigh(covariance)
    variances, axes = variances.flip(0)[:count], axes.flip(1)[:, :count]
    varied = variances > NOTHING * variances[0]
    if not bool(varied.any()):
        raise ValueError("all training items are equal, so they have no principal components")
    axes = axes[:, varied]
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return mean, axes * signs, variances[varied].sqrt()


def moments(rows: Callable[[], Iterator[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and the covariance (D, D) of rows, which are read twice."""
    count, total = 0, None
    for batch in rows():
        count, total = count + len(batch), batch.sum(0) if total is None else total + batch.sum(0)
    assert total is not None
    mean = total / count
    covariance = torch.zeros(len(mean), len(mean), dtype=mean.dtype, device=mean.device)
    for batch in rows():
        covariance.addmm_((batch - mean).T, batch - mean)
    return mean, covariance / count
