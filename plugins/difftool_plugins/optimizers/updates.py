"""The updates of SGD and Muon. A step is masked on the device where `found_inf` is not 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""The coefficients of the quintic iteration (Jordan et al., 2024), chosen for the steepest slope at 0."""
SMALLEST_NORM = 1e-7
"""The norm below which a matrix is not scaled to 1."""


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
        finite = None if self.found_inf is None else self.found_inf == 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                buffer = self.state[parameter].get("momentum_buffer")
                moved, momentum = self.moved(parameter, parameter.grad, buffer, group)
                parameter.copy_(moved if finite is None else torch.where(finite, moved, parameter))
                if buffer is not None and momentum is not None:
                    buffer.copy_(momentum if finite is None else torch.where(finite, momentum, buffer))

    def moved(
        self, parameter: Tensor, gradient: Tensor, buffer: Tensor | None, group: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the parameter and the momentum buffer after a step."""
        raise NotImplementedError


class SGDUpdate(MomentumUpdate):
    """m <- momentum m + g, and w <- w - lr m, as `torch.optim.SGD` defines them, without its dampening."""

    def moved(
        self, parameter: Tensor, gradient: Tensor, buffer: Tensor | None, group: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        if buffer is None:
            return parameter.sub(gradient, alpha=group["lr"]), None
        momentum = buffer.mul(group["momentum"]).add_(gradient)
        direction = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        return parameter.sub(direction, alpha=group["lr"]), momentum


class MuonUpdate(MomentumUpdate):
    """Muon (Jordan et al., 2024): the momentum of each matrix, made orthogonal. It equals `torch.optim.Muon`.

    A tensor of more axes, such as the weight of a convolution, is taken as the matrix (out, everything else).
    """

    def moved(
        self, parameter: Tensor, gradient: Tensor, buffer: Tensor | None, group: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        lr, beta = group["lr"], group["momentum"]
        momentum = gradient if buffer is None else buffer.lerp(gradient, 1 - beta)
        direction = gradient.lerp(momentum, beta) if group["nesterov"] else momentum
        matrix = orthogonalized(direction.flatten(1), group["iterations"])
        rows, columns = matrix.shape
        scale = 0.2 * math.sqrt(max(rows, columns)) if group["scale"] == "rms" else math.sqrt(max(1, rows / columns))
        moved = parameter.mul(1 - lr * group["weight_decay"])
        return moved.add_(matrix.view(parameter.shape), alpha=-lr * scale), momentum


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 arithmetic of its own."""
    check: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    return device.type != "cpu" or check()


def orthogonalized(matrix: Tensor, iterations: int) -> Tensor:
    """Return U V^T of a matrix U S V^T, up to singular values between about 0.7 and 1.2.

    Newton-Schulz iteration of the smaller Gram matrix, in bfloat16, or in float32 on processors that only emulate it.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16() if multiplies_bfloat16(matrix.device) else matrix.float()
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x = x / x.norm().clamp(min=SMALLEST_NORM)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
