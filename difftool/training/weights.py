"""The weights of a small network as one vector: what is done to all of them then costs one call, not one a tensor.

A network of ten small layers spends as long on the calls of an optimizer step as on their arithmetic. Large ones gain
nothing, and copying their gradients into a vector would cost more than it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

SMALL = 2**18
"""Numbers that a network may have for its weights to be joined: 1 MiB, which stays in the cache."""


def joined(weights: Sequence[Tensor]) -> list[Tensor]:
    """The weights, without their gradients: as one vector (N,) that they become views of, or as they are.

    Joined again they give the same vector. Those of a large network, of several devices or of other dtypes stay apart.
    """
    if not _alike(weights) or sum(w.numel() for w in weights) > SMALL:
        return [w.detach() for w in weights]
    if not _joined_already(weights):
        vector = torch.cat([torch.empty(0, device=weights[0].device), *(_flat(w) for w in weights)])
        for weight, view in zip(weights, laid_out(vector, weights), strict=True):
            weight.data = view
    first, size = weights[0].detach(), sum(w.numel() for w in weights)
    return [first.as_strided((size,), (1,), 0)]


def laid_out(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a vector, one after the other, each of the shape and layout of its tensor."""
    pieces = torch.split(vector, [tensor.numel() for tensor in like])
    return [
        piece.view(t.shape) if t.is_contiguous() else piece.view(t.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        for piece, t in zip(pieces, like, strict=True)
    ]


def _flat(weight: Tensor) -> Tensor:
    """The numbers in the order of memory."""
    return weight.detach().as_strided((weight.numel(),), (1,), weight.storage_offset())


def _alike(weights: Sequence[Tensor]) -> bool:
    """Whether all are float32 on one device, and each fills its part of memory without gaps."""
    return bool(weights) and all(
        w.dtype == torch.float32
        and w.device == weights[0].device
        and (w.is_contiguous() or (w.ndim == 4 and w.is_contiguous(memory_format=torch.channels_last)))
        for w in weights
    )


def _joined_already(weights: Sequence[Tensor]) -> bool:
    storage = weights[0].untyped_storage().data_ptr()
    starts = accumulate((w.numel() for w in weights), initial=0)
    return all(
        w.untyped_storage().data_ptr() == storage and w.storage_offset() == start
        for w, start in zip(weights, starts, strict=False)
    )
