"""Distribution matching distillation (Yin et al., 2024, "One-step diffusion with distribution matching distillation",
DMD, and "Improved distribution matching distillation for fast image synthesis", DMD2).

The network becomes a generator, x = G(z): its estimate of x_0 for pure noise z. Noise is added to x again, up to x_t.
There two denoisers tell the score: the teacher that of data, and a fake one, trained on what the generator makes, that
of the samples. Their difference moves x as the gradient of the Kullback-Leibler divergence does (DMD, eqs. 7 and 8).
DMD updates generator and fake denoiser in the same iteration by an optimizer each (algorithm 1). Neither loss has a
gradient in the other's weights, so one Adam for the sum of both losses makes the same steps. DMD2 updates them in turn,
the fake denoiser five times for each time of the generator (section 4.2), since otherwise training is unstable without
the regression loss of DMD, which it drops. A weight without a gradient rests, as --optimizer in-turn sees to. All three
networks begin with the weights of --init-from. The regression loss and the discriminator of DMD2 are left out.

    difftool train --schedule cosine --prediction v --steps 4000 --out runs/teacher
    difftool train --plugin examples/papers/dmd.py --init-from runs/teacher --loss dmd --loss.turns 5 \
        --optimizer in-turn --schedule cosine --prediction v --lr 1e-3 --steps 6000 --out runs/dmd
    difftool sample runs/dmd --steps 1
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from difftool import FusedAdam, Loss, LossSpec, Optimizer, Predict, TrainingBatch, option


class Denoisers(nn.Module):
    """The teacher, and the denoiser of the generator's samples, which is trained with it."""

    def __init__(self, spec: LossSpec) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(spec.network).eval().requires_grad_(False)
        self.fake = copy.deepcopy(spec.network).train()
        self.generator, self.timesteps = [spec.network], len(spec.schedule)  # in a list, it is no submodule


class DistributionMatching(Loss, name="dmd"):
    """The loss of a generator that matches the distribution of its teacher, and of the denoiser of its samples."""

    turns: int = option(default=1, ge=1, help="updates of the fake denoiser for each update of the generator")

    def build(self, spec: LossSpec) -> Denoisers:
        return Denoisers(spec)

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        assert isinstance(auxiliary, Denoisers)
        T, cond, random = auxiliary.timesteps, batch.cond, batch.generator()
        last, its_turn = torch.full_like(batch.t, T - 1), batch.step % self.turns == 0
        alpha, sigma = batch.levels(last)
        with torch.set_grad_enabled(its_turn):
            x = predict.x_0((alpha.square() + sigma.square()).sqrt() * batch.eps, last, cond)

        def noised(t: Tensor) -> Tensor:
            """Return the samples, without their graph, at levels t."""
            alpha, sigma = batch.levels(t)
            return alpha * x.detach() + sigma * torch.randn(x.shape, generator=random, device=x.device)

        t = torch.randint(T, batch.t.shape, generator=random, device=x.device)
        alpha, sigma = batch.levels(t)
        error = (predict.x_0(noised(t), t, cond, network=auxiliary.fake) - x.detach()).square().flatten(1).mean(1)
        fake_loss = (1 + (alpha / sigma).square()).flatten() * error
        if not its_turn:
            if any(weight.grad is not None for weight in auxiliary.generator[0].parameters()):
                raise ValueError("turns: this optimizer moves weights without a gradient; take --optimizer in-turn")
            return fake_loss

        with torch.no_grad():
            t = T // 50 + batch.t * (T - 2 * (T // 50)) // T  # between 2 % and 98 % of the levels
            x_t = noised(t)
            real, fake = (predict.x_0(x_t, t, cond, network=net) for net in (auxiliary.teacher, auxiliary.fake))
            scale = (x - real).abs().flatten(1).mean(1).clamp(min=1e-6).view_as(alpha)
            gradient = (fake - real) / scale  # sigma^2/(alpha scale) times the difference of the scores
        return fake_loss + (x - (x - gradient).detach()).square().flatten(1).mean(1) / 2


class InTurn(Optimizer, name="in-turn"):
    """Adam, in which weights without a gradient rest, since it does not join small ones into vectors."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> FusedAdam:
        return FusedAdam(groups, lr)
