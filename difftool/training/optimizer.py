"""The optimizer: torch's fused Adam, over one vector of weights where the network is small.

A small network spends most of an optimizer step on its many small tensors. Joined into one vector they take a single
call. Nothing here waits for the device: a gradient that is not finite is found there, and masks the step there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

SMALL = 2**18
"""The largest number of weights that are joined: 1 MiB, which stays in the cache."""
SLOTS = ("step", "exp_avg", "exp_avg_sq")
"""The names of Adam's state of each weight."""


class Adam(torch.optim.Adam):
    """Adam (Kingma & Ba, 2015). It updates the weights of a small network as one vector."""

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.weights = [*weights]
        vector = join(self.weights)
        self.vector = None if vector is None else nn.Parameter(vector)
        """The vector of which the weights are views, or None."""
        super().__init__(self.weights if self.vector is None else [self.vector], fused=True)
        if self.vector is not None:
            self.vector.grad = torch.zeros_like(self.vector)
            for weight, grad in zip(self.weights, views_of(self.vector.grad, self.weights), strict=True):
                weight.grad = grad

    def clear_gradients(self) -> None:
        """Set the gradient of the vector to zero, or those of the weights to None."""
        if self.vector is None:
            self.zero_grad(set_to_none=True)
        else:
            self.gradients()[0].zero_()

    def parameters(self) -> list[nn.Parameter]:
        """Return what is updated: the vector alone, or each weight."""
        return self.weights if self.vector is None else [self.vector]

    def gradients(self) -> list[Tensor]:
        """Return all gradients. Weights that are not used have none."""
        return [parameter.grad for parameter in self.parameters() if parameter.grad is not None]

    def gradient_norm(self) -> Tensor:
        """Return the norm of all gradients together, a scalar on the device."""
        gradients = self.gradients()
        return get_total_norm(gradients) if self.vector is None else torch.linalg.vector_norm(gradients[0])

    def update(self, lr: float, finite: Tensor) -> None:
        """Update the weights. If `finite`, a boolean on the device, is false, nothing changes."""
        for group in self.param_groups:
            group["lr"] = lr
        self.found_inf = (~finite).float()  # the kernel skips the step where it is 1, as for torch's own GradScaler
        self.step()

    def weight_state(self) -> dict[int, dict[str, Tensor]]:
        """Return the optimizer state by the index of the weight. Weights that never received a gradient are omitted."""
        if self.vector is None:
            return {i: dict(self.state[w]) for i, w in enumerate(self.weights) if w in self.state}
        if self.vector not in self.state:
            return {}
        step, *moments = (self.state[self.vector][slot] for slot in SLOTS)
        of_weights = zip(*(views_of(moment, self.weights) for moment in moments), strict=True)
        return {i: dict(zip(SLOTS, (step, *slots), strict=True)) for i, slots in enumerate(of_weights)}

    @torch.no_grad()
    def load_weight_state(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Load what `weight_state` returned, also if the weights were joined then and are not now, or vice versa."""
        owners = [self.weights[i] for i in state] if self.vector is None else [self.vector][: len(state)]
        for owner in owners:
            moments = (torch.zeros_like(owner), torch.zeros_like(owner))
            self.state[owner] = dict(zip(SLOTS, (torch.zeros((), device=owner.device), *moments), strict=True))
        own = self.weight_state()
        for i, slots in state.items():
            for slot, tensor in slots.items():
                own[i][slot].copy_(tensor)


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
