"""The updates of SGD and Muon. A step is masked on the device where `found_inf` is not 0."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""The coefficients of the quintic iteration (Jordan et al., 2024), chosen for the steepest slope at 0."""
SMALLEST_NORM = 1e-7
"""The norm below which a matrix is not scaled to 1."""
LARGEST_STACK = 2**22
"""The numbers that tensors hold at most which are updated together: what that takes lies beside the weights."""


class MomentumUpdate:
    """An optimizer with a momentum buffer for each parameter, whose steps can be masked."""

    def __init__(self, groups: Iterable[Mapping[str, Any]], lr: float, **options: Any) -> None:
        defaults = {"lr": lr, "weight_decay": 0.0, **options}
        self.param_groups: list[dict[str, Any]] = [
            {**defaults, **group, "params": [*group["params"]]} for group in groups
        ]
        self.state: dict[Tensor, dict[str, Tensor]] = {
            p: {"momentum_buffer": torch.zeros_like(p, requires_grad=False)} if group["momentum"] else {}
            for group in self.param_groups
            for p in group["params"]
        }
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            for parameters in stacks(p for p in group["params"] if p.grad is not None):
                gradients = [p.grad for p in parameters if p.grad is not None]
                buffers = [self.state[p]["momentum_buffer"] for p in parameters] if group["momentum"] else []
                with masked([*parameters, *buffers], self.found_inf):
                    self.update(parameters, gradients, buffers, group)

    def update(
        self, parameters: list[Tensor], gradients: list[Tensor], buffers: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        """Change parameters of one shape in place, and their momentum buffers, if they have any."""
        raise NotImplementedError


class SGDUpdate(MomentumUpdate):
    """m <- momentum m + g, and w <- w - lr m, as `torch.optim.SGD` defines them, without its dampening."""

    def update(
        self, parameters: list[Tensor], gradients: list[Tensor], buffers: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        directions = gradients
        if group["weight_decay"]:
            directions = [*torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])]
        if buffers:
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, directions)
            nesterov = group["nesterov"]
            directions = [*torch._foreach_add(directions, buffers, alpha=group["momentum"])] if nesterov else buffers
        torch._foreach_sub_(parameters, directions, alpha=group["lr"])


class MuonUpdate(MomentumUpdate):
    """Muon (Jordan et al., 2024): the momentum of each matrix, made orthogonal, as `torch.optim.Muon` does it.

    A tensor of more axes, such as the weight of a convolution, is taken as the matrix (out, everything else). Matrices
    of one shape are multiplied together, since small ones are multiplied in less time than a call takes.
    """

    def update(
        self, parameters: list[Tensor], gradients: list[Tensor], buffers: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        lr, directions = group["lr"], gradients
        if buffers:
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            nesterov = group["nesterov"]
            directions = [*torch._foreach_lerp(gradients, buffers, group["momentum"])] if nesterov else buffers
        matrices = orthogonalized([direction.flatten(1) for direction in directions], group["iterations"])
        rows, columns = matrices.shape[1:]
        scale = 0.2 * math.sqrt(max(rows, columns)) if group["scale"] == "rms" else math.sqrt(max(1, rows / columns))
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        for parameter, matrix in zip(parameters, matrices, strict=True):
            parameter.add_(matrix.view(parameter.shape), alpha=-lr * scale)


@contextlib.contextmanager
def masked(tensors: Sequence[Tensor], found_inf: Tensor | None) -> Iterator[None]:
    """Give tensors that change in a block their old values back if `found_inf`, a number on the device, is not 0."""
    if found_inf is None:
        yield
        return
    before = [tensor.clone() for tensor in tensors]
    yield
    for new, old in zip(tensors, before, strict=True):
        new.copy_(torch.where(found_inf == 0, new, old))


def stacks(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield parameters of one shape together, so many that they hold at most `LARGEST_STACK` numbers, or one alone."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    for shape, alike in by_shape.items():
        most = max(1, LARGEST_STACK // max(1, shape.numel()))
        yield from (alike[first : first + most] for first in range(0, len(alike), most))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 arithmetic of its own."""
    check: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    return device.type != "cpu" or check()


def orthogonalized(matrices: Sequence[Tensor], iterations: int) -> Tensor:
    """Return U V^T of each matrix U S V^T, up to singular values between about 0.7 and 1.2, for N matrices (N, m, n).

    Newton-Schulz iteration of the smaller Gram matrix, in bfloat16, or in float32 on processors that only emulate it.
    """
    a, b, c = NEWTON_SCHULZ
    dtype = torch.bfloat16 if multiplies_bfloat16(matrices[0].device) else torch.float32
    x = torch.stack([matrix.to(dtype) for matrix in matrices])
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
