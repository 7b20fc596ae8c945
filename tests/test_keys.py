"""Randomness is a function of (seed, purpose, counter) and of nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from difftool.rng import generator, key, permutation, sample_noise

PINNED = 720894899041660260


def test_keys_differ() -> None:
    parts: list[tuple[int | str, ...]] = [
        (-1,), (-2,), (1,), ("1",), (1, 2), (12,), (2, 1), ("a", "b"), ("ab",), ("a,b",), (), ("",),
        (0, "noise", 0), (0, "noise", 1), (1, "noise", 0), (0, "order", 0),
    ]  # fmt: skip
    assert len({key(*p) for p in parts}) == len(parts)
    assert hash(-1) == hash(-2)  # why Python's own hash does not serve


def test_keys_have_63_bits() -> None:
    keys = [key(i) for i in range(200)]
    assert all(0 <= k < 2**63 for k in keys)
    assert max(keys) > 2**62


def test_a_key_is_the_same_in_every_process() -> None:
    """Saved runs resume by it: this number must never change."""
    assert key(0, "noise", 0) == PINNED
    code = "from difftool.rng import key; print(key(0, 'noise', 0))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(printed.stdout) == PINNED


def test_generators_repeat_themselves() -> None:
    first, again, other = (torch.randn(5, generator=generator(3, "x", i)) for i in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_permutation_is_one() -> None:
    for n in (0, 1, 2, 1000):
        order = permutation(n, 0, "order", 4)
        assert order.dtype == torch.int64
        assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(permutation(1000, 0, "order", 4), permutation(1000, 0, "order", 4))
    assert not torch.equal(permutation(1000, 0, "order", 4), permutation(1000, 0, "order", 5))


@pytest.mark.parametrize(
    ("shape", "total", "ranges"),
    [
        ((2,), 20_000, [(0, 1), (0, 20_000), (8191, 1), (8191, 2), (8192, 1), (100, 17_000), (19_999, 1)]),
        ((3, 32, 32), 17, [(0, 1), (4, 1), (4, 2), (5, 5), (3, 14), (0, 17), (16, 1)]),
        ((3, 512, 512), 3, [(0, 1), (1, 1), (0, 2), (1, 2), (2, 1)]),
    ],
)  # fmt: skip
def test_any_range_is_a_slice_of_the_whole(shape: tuple[int, ...], total: int, ranges: list[tuple[int, int]]) -> None:
    whole = sample_noise(0, total, shape, 7, "start")
    assert whole.shape == (total, *shape)
    for first, count in ranges:
        assert torch.equal(sample_noise(first, count, shape, 7, "start"), whole[first : first + count])


@pytest.mark.parametrize(("shape", "size"), [((2,), 8192), ((3, 32, 32), 5), ((3, 512, 512), 1)])
def test_blocks_keep_their_size(shape: tuple[int, ...], size: int) -> None:
    """Another size would give other samples for the same seed."""
    second = torch.randn(size, *shape, generator=generator(7, "start", 1))
    assert torch.equal(sample_noise(size, 1, shape, 7, "start"), second[:1])


def test_noise_is_normal_and_depends_on_every_part() -> None:
    noise = sample_noise(0, 50_000, (2,), 0, "start")
    assert abs(float(noise.mean())) < 4 / 100_000**0.5
    assert abs(float(noise.var()) - 1) < 4 * (2 / 100_000) ** 0.5
    assert len(noise.unique(dim=0)) == len(noise)  # no block is drawn twice
    for parts in ((1, "start"), (0, "step"), (0, "start", 0)):
        assert not torch.equal(sample_noise(0, 8, (2,), *parts), noise[:8])
