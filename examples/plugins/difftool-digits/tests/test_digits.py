"""The plugin keeps difftool's contract, and the digits are digits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from difftool_digits import Digits, difftool_datasets
from sklearn.datasets import load_digits

from difftool import DatasetContext, Samples


def load(size: int = 8) -> tuple[Samples, torch.Tensor]:
    samples = Digits(size=size).load(DatasetContext())
    assert isinstance(samples.items, torch.Tensor)
    return samples, samples.items


def test_hook_returns_the_dataset() -> None:
    assert [component.name for component in difftool_datasets()] == ["digits"]


def test_import_is_light() -> None:
    code = "import sys, difftool_digits; print([m for m in ('torch', 'numpy', 'sklearn') if m in sys.modules])"
    path = os.pathsep.join([str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert run.stdout.split() == [b"[]"], run.stderr


def test_scans_survive_as_pixels() -> None:
    samples, items = load()
    assert items.dtype == torch.uint8
    assert (items.min(), items.max()) == (0, 255)
    assert len(items.unique()) == 17  # every one of the values 0..16 is kept apart
    assert np.array_equal((items[:, 0].double() * 16 / 255).round(), load_digits().images)
    assert samples.bounds == (-1.0, 1.0)


def test_labels() -> None:
    samples, _ = load()
    assert samples.labels is not None
    assert samples.labels.dtype == torch.int64
    assert samples.class_names == tuple("0123456789")
    assert np.array_equal(samples.labels, load_digits().target)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_scaled_up(size: int) -> None:
    samples, items = load(size)
    assert samples.shape == Digits(size=size).item_shape() == tuple(items.shape[1:]) == (1, size, size)
    back = torch.nn.functional.adaptive_avg_pool2d(items.double(), 8)
    assert (back - load()[1]).abs().mean() < 12  # of 255: the same pictures, only larger
