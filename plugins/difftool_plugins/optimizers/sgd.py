"""Stochastic gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from difftool import Optimizer, option

if TYPE_CHECKING:
    from difftool_plugins.optimizers.updates import SGDUpdate


class SGD(Optimizer, name="sgd"):
    """Stochastic gradient descent with momentum (Sutskever et al., 2013), as `torch.optim.SGD` defines it."""

    elementwise = True

    momentum: float = option(default=0.9, ge=0, lt=1, help="decay of the sum of gradients; 0: the gradient alone")
    nesterov: bool = option(default=False, help="Nesterov momentum: look one step ahead")
    weight_decay: float = option(
        default=0.0, ge=0, le=10, help="share of the weights added to their gradient, except for norms and biases"
    )

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs momentum; raise it above 0")

    def build(self, groups: list[dict[str, Any]], lr: float) -> SGDUpdate:
        from difftool_plugins.optimizers.updates import SGDUpdate

        return SGDUpdate(groups, lr, momentum=self.momentum, nesterov=self.nesterov)
