"""Small weights joined into vectors, so that an optimizer or an average moves all of them in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

SMALL = 2**18
"""The largest number of weights that are joined: 1 MiB, which stays in the cache."""


def join(weights: Sequence[Tensor]) -> Tensor | None:
    """Move small weights into one vector (N,), of which they become views, and return it.

    Joined again, they give the same vector. Return None, and leave the weights as they are, if they have more than
    `SMALL` numbers, another dtype than float32, several devices, or gaps in memory.
    """
    size = sum(w.numel() for w in weights)
    if not weights or size > SMALL or not all(map(is_dense, weights)) or len({w.device for w in weights}) > 1:
        return None
    if not are_joined(weights):
        vector = torch.cat([w.detach().as_strided((w.numel(),), (1,), w.storage_offset()) for w in weights])
        for weight, view in zip(weights, views_of(vector, weights), strict=True):
            weight.data = view
    return weights[0].detach().as_strided((size,), (1,), 0)


def join_alike(copies: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Join copies of weights as the weights are joined, and return the tensors to move: (of copies, of weights).

    Where weights lie in one vector, that vector takes their place in both lists. Others appear as they are.
    """
    by_storage: dict[int, list[int]] = {}
    for index, weight in enumerate(weights):
        by_storage.setdefault(weight.untyped_storage()._cdata, []).append(index)
    moved: list[Tensor] = []
    followed: list[Tensor] = []
    for members in by_storage.values():
        members.sort(key=lambda index: weights[index].storage_offset())
        ours, theirs = ([tensors[index] for index in members] for tensors in (copies, weights))
        if len(members) > 1 and are_joined(theirs) and (vector := join(ours)) is not None:
            ours, theirs = [vector], [theirs[0].detach().as_strided(vector.shape, (1,), 0)]
        moved += ours
        followed += theirs
    return moved, followed


def views_of(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of the vector, one after the other, with the shapes and memory layouts of these tensors."""
    pieces = torch.split(vector, [tensor.numel() for tensor in like])
    return [
        piece.view(t.shape) if t.is_contiguous() else piece.view(t.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        for piece, t in zip(pieces, like, strict=True)
    ]


def is_dense(weight: Tensor) -> bool:
    """Return whether a weight is float32 and fills its part of memory without gaps."""
    channels_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return weight.dtype == torch.float32 and (weight.is_contiguous() or channels_last)


def are_joined(weights: Sequence[Tensor]) -> bool:
    """Return whether weights lie one after the other from the start of one storage."""
    storage = weights[0].untyped_storage().data_ptr()
    starts = accumulate((w.numel() for w in weights), initial=0)
    return all(
        w.untyped_storage().data_ptr() == storage and w.storage_offset() == start
        for w, start in zip(weights, starts, strict=False)
    )


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this process holds only a part of a tensor, some of its rows. Its shape is that of the whole."""
    return hasattr(tensor, "to_local")


def own_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, with the same memory: all of it, unless it is sharded."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return part.detach()


def own_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts of some tensors that this process holds, by their names."""
    return {name: own_part(tensor) for name, tensor in tensors.items()}
