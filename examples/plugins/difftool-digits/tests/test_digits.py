"""The dataset passes the laws of its kind, and its images and labels are those of scikit-learn."""

from __future__ import annotations

import difftool_digits
import numpy as np
import pytest
import torch
from difftool_digits import Digits
from sklearn.datasets import load_digits

import difftool
from difftool import DatasetContext, Samples
from difftool.testing import PluginManager, check_dataset


def load(size: int = 8) -> tuple[Samples, torch.Tensor]:
    samples = Digits(size=size).load(DatasetContext())
    assert isinstance(samples.items, torch.Tensor)
    return samples, samples.items


@pytest.mark.parametrize("size", [8, 16])
def test_laws(size: int) -> None:
    check_dataset(Digits(size=size))


def test_registration(plugin_manager: PluginManager) -> None:
    assert not plugin_manager.register(difftool_digits).problems
    assert difftool.component("dataset", "digits", size=16) == Digits(size=16)


def test_pixels_are_the_scans() -> None:
    samples, items = load()
    assert items.dtype == torch.uint8
    assert (items.min(), items.max()) == (0, 255)
    assert len(items.unique()) == 17  # the values 0 to 16 stay distinct
    assert np.array_equal((items[:, 0].double() * 16 / 255).round(), load_digits().images)
    assert samples.bounds == (-1.0, 1.0)


def test_labels_are_the_digits() -> None:
    samples, _ = load()
    assert samples.class_names == tuple("0123456789")
    assert samples.labels is not None
    assert np.array_equal(samples.labels, load_digits().target)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_enlarged_images_show_the_same_digits(size: int) -> None:
    samples, items = load(size)
    assert samples.shape == (1, size, size)
    back = torch.nn.functional.adaptive_avg_pool2d(items.double(), 8)
    assert (back - load()[1]).abs().mean() < 12  # of 255
