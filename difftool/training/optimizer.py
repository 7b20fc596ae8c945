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
from torch.optim.adam import adam

BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8
SMALL = 2**18
"""The largest number of weights that are joined: 1 MiB, which stays in the cache."""
SLOTS = ("step", "exp_avg", "exp_avg_sq")
"""The names of Adam's state of each weight."""


class Adam:
    """Adam (Kingma & Ba, 2015). It updates the weights of a small network as one vector.

    It calls the function behind `torch.optim.Adam`. The class itself imports torch's compiler, which takes a second,
    and costs a small network a sixth of its step.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.weights = [*weights]
        vector = join(self.weights)
        self.vector = None if vector is None else nn.Parameter(vector)
        """The vector of which the weights are views, or None."""
        self.parameters = self.weights if self.vector is None else [self.vector]
        """The tensors to update: the vector alone, or each weight."""
        self.param_groups = [{"params": self.parameters}]
        """The attribute of an optimizer that torch's `GradScaler` reads."""
        self._state = [
            dict(zip(SLOTS, (torch.zeros((), device=p.device), *(torch.zeros_like(p) for _ in range(2))), strict=True))
            for p in self.parameters
        ]
        if self.vector is not None:
            self.vector.grad = torch.zeros_like(self.vector)
            for weight, grad in zip(self.weights, views_of(self.vector.grad, self.weights), strict=True):
                weight.grad = grad

    def clear_gradients(self) -> None:
        """Set the gradient of the vector to zero, or those of the weights to None."""
        if self.vector is not None and self.vector.grad is not None:
            self.vector.grad.zero_()
            return
        for weight in self.weights:
            weight.grad = None

    def gradient_norm(self) -> Tensor:
        """Return the norm of all gradients together, a scalar on the device. Unused weights have no gradient."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(gradients[0]) if len(gradients) == 1 else get_total_norm(gradients)
        return norm

    @torch.no_grad()
    def update(self, lr: float, finite: Tensor) -> None:
        """Update the weights. If `finite`, a boolean on the device, is false, nothing changes."""
        used = [(p, p.grad, slots) for p, slots in zip(self.parameters, self._state, strict=True) if p.grad is not None]
        adam(
            [parameter for parameter, _, _ in used],
            [gradient for _, gradient, _ in used],
            [slots["exp_avg"] for _, _, slots in used],
            [slots["exp_avg_sq"] for _, _, slots in used],
            [],
            [slots["step"] for _, _, slots in used],
            fused=True,
            found_inf=(~finite).float(),  # the kernel skips the step where it is 1, as for torch's own GradScaler
            amsgrad=False,
            beta1=BETA_1,
            beta2=BETA_2,
            lr=lr,
            weight_decay=0.0,
            eps=EPS,
            maximize=False,
        )

    def weight_state(self) -> dict[int, dict[str, Tensor]]:
        """Return the optimizer state by the index of the weight. Weights that never received a gradient are omitted."""
        return {i: slots for i, slots in enumerate(self._slots()) if float(slots["step"]) > 0}

    @torch.no_grad()
    def load_weight_state(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Load what `weight_state` returned, also if the weights were joined then and are not now, or vice versa."""
        own = self._slots()
        for i, slots in state.items():
            for slot, tensor in slots.items():
                own[i][slot].copy_(tensor)

    def _slots(self) -> list[dict[str, Tensor]]:
        """Return the state of each weight, as views of that of the vector."""
        if self.vector is None:
            return self._state
        step, *moments = (self._state[0][slot] for slot in SLOTS)
        views = zip(*(views_of(moment, self.weights) for moment in moments), strict=True)
        return [dict(zip(SLOTS, (step, *moments), strict=True)) for moments in views]


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
