"""Randomness without state: all random numbers are a function of (seed, purpose, counter).

Therefore a resumed run continues exactly, and neither the batch size nor the number of processes changes a result.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import lru_cache

import torch
from torch import Tensor

BLOCK_ELEMENTS = 16_384
"""Sampling noise is drawn in whole blocks of samples with about this many numbers. The first numbers of `torch.randn`
depend on how many are drawn, and the noise of a sample must not depend on the samples beside it."""


def key(*parts: int | str) -> int:
    """Return 63 bits of SHA-256 over the parts: Python's own `hash` collides (-1 and -2) and varies by process."""
    text = ", ".join(str(part) if type(part) is int else _quoted(part) for part in parts)
    digest = hashlib.sha256(f"[{text}]".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


_quoted = lru_cache(maxsize=64)(json.dumps)


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by the parts, conventionally (seed, purpose, counter, ...)."""
    return torch.Generator(device=device).manual_seed(key(*parts))


def seed_globally(device: torch.device, seed: int) -> None:
    """Seed the global generators, which initialisation and dropout draw from.

    `torch.manual_seed` would also queue a call, with a stack trace, for every kind of device that is absent.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def permutation(n: int, *parts: int | str) -> Tensor:
    """Return a permutation of 0..n-1, int64, on the CPU."""
    return torch.randperm(n, generator=generator(*parts))


def sample_noise(
    first: int, count: int, shape: tuple[int, ...], *parts: int | str, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the standard normal noise (count, *shape) of the samples numbered first..first+count-1.

    Sample k gets the same numbers in every range that it is drawn in.
    """
    if count == 0:
        return torch.empty(0, *shape, device=device)
    size = max(1, BLOCK_ELEMENTS // max(1, math.prod(shape)))
    blocks = []
    for block in range(first // size, (first + count - 1) // size + 1):
        noise = torch.randn(size, *shape, generator=generator(*parts, block, device=device), device=device)
        start = block * size
        blocks.append(noise[max(first - start, 0) : first + count - start])
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
