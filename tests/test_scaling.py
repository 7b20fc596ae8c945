"""The scaling of data from outside: the mean and deviation of arrays, and of sources that are read by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import difftool


class Source:
    """A map-style source that records which rows are read."""

    def __init__(self, rows: list[Tensor]) -> None:
        self.rows, self.read = rows, set[int]()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        self.read.add(i)
        return self.rows[i]


def test_moments_are_those_of_each_channel() -> None:
    x = np.random.default_rng(0).normal(3, 2, (50, 2, 4, 5))
    for items in (torch.from_numpy(x), Source([*torch.from_numpy(x)])):
        shift, scale = difftool.moments(items)
        assert shift == pytest.approx(x.mean((0, 2, 3)))
        assert scale == pytest.approx(x.std((0, 2, 3)))


def test_channels_without_a_deviation_stay_as_they_are() -> None:
    x = torch.tensor([[5.0, torch.nan, 1.0], [5.0, 1.0, 3.0]])
    assert difftool.moments(x) == ((5.0, 0.0, 2.0), (1.0, 1.0, 1.0))


def test_large_sources_are_measured_from_end_to_end() -> None:
    source = Source([torch.tensor([float(i)]) for i in range(10_000)])
    shift, scale = difftool.moments(source)
    assert len(source.read) == 4096
    assert shift[0] == pytest.approx(5000, rel=0.001)
    assert scale[0] == pytest.approx(10_000 / 12**0.5, rel=0.001)


def test_wrong_items_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the items differ in shape \(\(2,\), \(3,\)\)"):
        difftool.moments(Source([torch.zeros(2), torch.zeros(3)]))
    with pytest.raises(ValueError, match="the items hold no numbers"):
        difftool.moments(torch.zeros(0, 2))
