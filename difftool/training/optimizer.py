"""Adam (Kingma & Ba, 2015) by torch's fused kernel, without what an optimizer of torch does around it.

For a small network that is half of a step. Nothing here waits for the device: a gradient that is not finite is known
there, and masks the step there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
    """What Adam keeps of a vector of weights: mean and mean square of its gradients (N,), and how many there were."""

    mean: Tensor
    square: Tensor
    steps: Tensor


def adam(weights: Tensor, gradient: Tensor, moments: Moments, lr: Tensor, bias: Tensor) -> tuple[Tensor, Moments]:
    """One step written out (algorithm 1), for a compiler to fuse: the weights moved, and the moments after it.

    The two moments began at 0, and are divided by their `bias` 1 - beta^steps (2,). It comes from outside, since a
    compiler would take its powers anew for each weight.
    """
    mean = torch.lerp(moments.mean, gradient, 1 - BETA1)
    square = torch.lerp(moments.square, gradient * gradient, 1 - BETA2)
    of_mean, of_square = bias
    moved = weights - lr / of_mean * mean / ((square / of_square).sqrt() + EPS)
    return moved, Moments(mean, square, moments.steps + 1)


def shrinking(largest: float, norm: Tensor) -> Tensor:
    """What gradients of this norm are multiplied by so that it is at most so large."""
    return (largest / (norm + 1e-6)).clamp(max=1.0)


class Adam:
    """The moments of every weight, and the step they make. Small networks' are kept in one vector."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [*parameters]
        self.param_groups = [{"params": self.parameters}]
        """For torch's `GradScaler`, which asks an optimizer for no more."""
        self._weights = joined(self.parameters)
        self._means, self._squares = ([torch.zeros_like(w) for w in self._weights] for _ in range(2))
        self._counts = [torch.zeros((), device=w.device) for w in self._weights]
        self._gradient: Tensor | None = None
        if len(self._weights) < len(self.parameters):
            self._gradient = torch.zeros_like(self._weights[0])
            for parameter, view in zip(self.parameters, laid_out(self._gradient, self.parameters), strict=True):
                parameter.grad = view

    def vectors(self) -> tuple[Tensor, Moments] | None:
        """The weights and their moments as they are kept, where they are one vector."""
        if self._gradient is None:
            return None
        return self._weights[0], Moments(self._means[0], self._squares[0], self._counts[0])

    def clear(self) -> None:
        """Forget the gradients."""
        if self._gradient is not None:
            self._gradient.zero_()
            return
        for parameter in self.parameters:
            parameter.grad = None

    def norm(self) -> Tensor:
        """Of all gradients together, a scalar on the device."""
        gradients = [*self._gradients().values()]
        of_each: Tensor = gradients[0] if len(gradients) == 1 else torch.stack(torch._foreach_norm(gradients))
        norm: Tensor = torch.linalg.vector_norm(of_each)
        return norm

    def clip(self, largest: float, norm: Tensor) -> None:
        """Shrink the gradients so that their norm, given as it is now, is at most so large."""
        torch._foreach_mul_([*self._gradients().values()], shrinking(largest, norm))

    def step(self, lr: float, sound: Tensor) -> None:
        """Move the weights; where `sound`, a boolean on the device, is false, nothing changes."""
        moving = sound.to(torch.float32)
        gradients = self._gradients()
        if not gradients:
            return
        counts = [self._counts[i] for i in gradients]
        torch._foreach_add_(counts, moving)
        with torch.no_grad():
            torch._fused_adam_(
                [self._weights[i] for i in gradients],
                [*gradients.values()],
                [self._means[i] for i in gradients],
                [self._squares[i] for i in gradients],
                [],
                counts,
                lr=lr,
                beta1=BETA1,
                beta2=BETA2,
                eps=EPS,
                weight_decay=0.0,
                amsgrad=False,
                maximize=False,
                found_inf=1.0 - moving,
            )

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Of each weight, by its index: `step`, `exp_avg` and `exp_avg_sq`. Of one that never had a gradient, none."""
        means, squares = self._by_parameter(self._means), self._by_parameter(self._squares)
        counts = self._counts if self._gradient is None else self._counts * len(self.parameters)
        return {
            i: {"step": count, "exp_avg": mean, "exp_avg_sq": square}
            for i, (count, mean, square) in enumerate(zip(counts, means, squares, strict=True))
            if float(count) > 0
        }

    @torch.no_grad()
    def load(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take up what `state` gave."""
        means, squares = self._by_parameter(self._means), self._by_parameter(self._squares)
        for i, slots in state.items():
            self._counts[0 if self._gradient is not None else i].copy_(slots["step"])
            means[i].copy_(slots["exp_avg"])
            squares[i].copy_(slots["exp_avg_sq"])

    def _gradients(self) -> dict[int, Tensor]:
        """By the index of what is moved; of a weight that is never used there is none."""
        if self._gradient is not None:
            return {0: self._gradient}
        return {i: p.grad for i, p in enumerate(self.parameters) if p.grad is not None}

    def _by_parameter(self, moments: list[Tensor]) -> list[Tensor]:
        return moments if self._gradient is None else laid_out(moments[0], self.parameters)


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
