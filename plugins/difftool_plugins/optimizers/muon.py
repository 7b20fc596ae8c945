"""Muon for matrices, with AdamW for everything else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from difftool import Optimizer, option

if TYPE_CHECKING:
    from torch import nn

    from difftool import FusedAdam
    from difftool_plugins.optimizers.updates import MuonUpdate


class Muon(Optimizer, name="muon"):
    """Momentum made orthogonal, for matrices and convolutions (Jordan et al., 2024); AdamW moves all other weights."""

    momentum: float = option(default=0.95, ge=0, lt=1, help="decay of the average of the gradient")
    nesterov: bool = option(default=True, help="Nesterov momentum: look one step ahead")
    iterations: int = option(default=5, ge=1, le=99, help="Newton-Schulz iterations that make a matrix orthogonal")
    scale: Literal["rms", "shape"] = option(
        default="rms",
        help="rms: updates as large as AdamW's, so that both share a learning rate (Liu et al., 2025); "
        "shape: by the root of rows / columns, as in the first Muon",
    )
    weight_decay: float = option(
        default=0.0,
        ge=0,
        le=10,
        help="decay of the weights in a step, times the learning rate; not of biases and norms",
    )
    adamw: str = option(default="embed", help="regular expression: AdamW also moves matrices whose name holds it")
    adamw_lr: float = option(default=1.0, gt=0, le=1000, help="learning rate of AdamW, as a multiple of --lr")
    betas: tuple[float, float] = option(default=(0.9, 0.999), ge=0, lt=1, help="betas of AdamW")
    eps: float = option(default=1e-8, gt=0, le=1, help="eps of AdamW")

    def __post_init__(self) -> None:
        try:
            re.compile(self.adamw)
        except re.error as error:
            raise ValueError(f"adamw: not a regular expression ({error})") from None

    def groups(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        named = re.compile(self.adamw) if self.adamw else None
        by_muon = [p for name, p in parameters if p.ndim >= 2 and not (named and named.search(name))]
        chosen = {id(p) for p in by_muon}
        groups = super().groups([(name, p) for name, p in parameters if id(p) not in chosen])
        rest = [{**group, "lr_scale": self.adamw_lr} for group in groups if group["params"]]
        return [{"params": by_muon, "weight_decay": self.weight_decay, "muon": True}] * bool(by_muon) + rest

    def build(self, groups: list[dict[str, Any]], lr: float) -> list[MuonUpdate | FusedAdam]:
        from difftool import FusedAdam
        from difftool_plugins.optimizers.updates import MuonUpdate

        optimizers: list[MuonUpdate | FusedAdam] = []
        if matrices := [group for group in groups if group.get("muon")]:
            momentum = {"momentum": self.momentum, "nesterov": self.nesterov}
            optimizers.append(MuonUpdate(matrices, lr, **momentum, iterations=self.iterations, scale=self.scale))
        if rest := [group for group in groups if not group.get("muon")]:
            optimizers.append(FusedAdam(rest, lr, betas=self.betas, eps=self.eps, decoupled=True))
        return optimizers
