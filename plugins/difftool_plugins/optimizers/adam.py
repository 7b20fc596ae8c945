"""Adam and AdamW, on torch's fused kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from difftool import Optimizer, option

if TYPE_CHECKING:
    from torch import nn

    from difftool import FusedAdam


class Adam(Optimizer, name="adam"):
    """Adam (Kingma & Ba, 2015)."""

    elementwise = True
    decoupled: ClassVar[bool] = False
    """True if the decay of the weights does not pass through the averages of the gradient."""

    betas: tuple[float, float] = option(
        default=(0.9, 0.999), ge=0, lt=1, help="decays of the averages of the gradient and of its square"
    )
    eps: float = option(default=1e-8, gt=0, le=1, help="added to the root of the mean square, against division by 0")
    weight_decay: float = option(
        default=0.0, ge=0, le=10, help="share of the weights added to their gradient, except for norms and biases"
    )

    def build(self, groups: list[dict[str, Any]], lr: float) -> FusedAdam:
        from difftool import FusedAdam

        return FusedAdam(groups, lr, betas=self.betas, eps=self.eps, decoupled=self.decoupled)


class AdamW(Adam, name="adamw"):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    decoupled = True

    weight_decay: float = option(
        default=0.01, ge=0, le=10, help="decay of the weights in a step, times the learning rate"
    )
    decay_all: bool = option(default=False, help="decay norms and biases too, as torch does by itself")

    def groups(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        if self.decay_all:
            return [{"params": [p for _, p in parameters], "weight_decay": self.weight_decay}]
        return super().groups(parameters)
