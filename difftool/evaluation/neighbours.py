"""Exact distances between many vectors, block by block, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NUMBERS, ROWS = 2**22, 2048
"""The largest numbers of float64 values and of rows of a block of vectors: 32 MiB, as its distances at most."""


def nearest(queries: Tensor, items: Tensor, k: int = 1, *, others: bool = False) -> tuple[Tensor, Tensor]:
    """Return the Euclidean distances (N, k) float64 of queries (N, D) to their k nearest items (M, D), and the indices.

    The nearest comes first. With `others` the queries are the items, and none is its own neighbour. The search is
    exact, and the distance of equal vectors is 0. Raises `ValueError` if there are fewer than k items to find.
    """
    found = len(items) - others
    if not 1 <= k <= found:
        raise ValueError(f"there are {max(0, found)} items, of which {k} cannot be found")
    nearest_squares = torch.full((len(queries), k), torch.inf, dtype=torch.float64)
    indices = torch.zeros(len(queries), k, dtype=torch.int64)
    for rows, columns, squares in square_blocks(queries, items):
        if others:
            squares[torch.arange(rows.start, rows.stop)[:, None] == torch.arange(columns.start, columns.stop)] = (
                torch.inf
            )
        best, at = squares.topk(min(k, squares.shape[1]), largest=False)
        both = torch.cat([nearest_squares[rows], best], 1), torch.cat([indices[rows], at + columns.start], 1)
        nearest_squares[rows], chosen = both[0].topk(k, largest=False)
        indices[rows] = both[1].gather(1, chosen)
    distances = paired_distances(queries, items, indices)
    order = distances.argsort(dim=1, stable=True)
    return distances.gather(1, order), indices.gather(1, order)


def square_blocks(queries: Tensor, items: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield squared distances (rows, columns) float64 of queries (N, D) and items (M, D), with their two slices.

    They are |x|^2 - 2 x y + |y|^2, from a common centre, so a distance far below the spread of the items is rounded:
    equal vectors have about 1e-15 of it. See `paired_distances`.
    """
    centre = items.mean(0, dtype=torch.float64)
    size = max(1, min(ROWS, NUMBERS // max(1, items.shape[1])))
    for first in range(0, len(queries), size):
        x = queries[first : first + size].double() - centre
        for start in range(0, len(items), size):
            y = items[start : start + size].double() - centre
            squares = torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1, keepdim=True))
            yield slice(first, first + len(x)), slice(start, start + len(y)), squares.clamp_(min=0)


def paired_distances(queries: Tensor, items: Tensor, indices: Tensor) -> Tensor:
    """Return the distances (N, k) float64 of queries (N, D) to the items at indices (N, k), from their differences."""
    size = max(1, NUMBERS // max(1, items.shape[1]))
    distances = torch.empty(indices.shape, dtype=torch.float64)
    for column in range(indices.shape[1]):
        for first in range(0, len(queries), size):
            rows = slice(first, first + size)
            differences = queries[rows].double() - items[indices[rows, column]].double()
            distances[rows, column] = differences.square_().sum(1).sqrt_()
    return distances
