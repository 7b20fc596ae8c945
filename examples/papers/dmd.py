"""Distribution matching distillation (Yin et al., 2024, "One-step diffusion with distribution matching distillation").

The network becomes a generator, x = G(z): its estimate of x_0 for pure noise z. Noise is added to x again, up to x_t.
There two denoisers tell the score: the teacher that of data, and a fake one, trained on what the generator makes, that
of the samples. Their difference moves x as the gradient of the Kullback-Leibler divergence does (eq. 7, weighted by
eq. 8). The paper updates generator and fake denoiser in the same iteration by an optimizer each (algorithm 1). Neither
loss has a gradient in the other's weights, so one Adam for the sum of both losses makes the same steps. All three
networks begin with the weights of --init-from. The regression loss of the paper, on pairs made in advance, is left
out.

    difftool train --schedule cosine --prediction v --steps 4000 --out runs/teacher
    difftool train --plugin examples/papers/dmd.py --init-from runs/teacher --loss dmd \
        --schedule cosine --prediction v --lr 1e-3 --steps 2000 --out runs/dmd
    difftool sample runs/dmd --steps 1
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from difftool import Loss, LossSpec, Predict, TrainingBatch


class Denoisers(nn.Module):
    """The teacher, and the denoiser of the generator's samples, which is trained with it."""

    def __init__(self, spec: LossSpec) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(spec.network).eval().requires_grad_(False)
        self.fake = copy.deepcopy(spec.network).train()
        self.timesteps = len(spec.schedule)


class DistributionMatching(Loss, name="dmd"):
    """The loss of a generator that matches the distribution of its teacher, and of the denoiser of its samples."""

    def build(self, spec: LossSpec) -> Denoisers:
        return Denoisers(spec)

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        assert isinstance(auxiliary, Denoisers)
        T, cond, random = auxiliary.timesteps, batch.cond, batch.generator()
        last = torch.full_like(batch.t, T - 1)
        alpha, sigma = batch.levels(last)
        x = predict.x_0((alpha.square() + sigma.square()).sqrt() * batch.eps, last, cond)

        def noised(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Return the samples without their graph, noised to levels t, and alpha and sigma there."""
            alpha, sigma = batch.levels(t)
            eps = torch.randn(x.shape, generator=random, device=x.device)
            return alpha * x.detach() + sigma * eps, alpha, sigma

        with torch.no_grad():
            t = T // 50 + batch.t * (T - 2 * (T // 50)) // T  # between 2 % and 98 % of the levels
            x_t, _, _ = noised(t)
            real, fake = (predict.x_0(x_t, t, cond, network=net) for net in (auxiliary.teacher, auxiliary.fake))
            scale = (x - real).abs().flatten(1).mean(1).clamp(min=1e-6).view_as(alpha)
            gradient = (fake - real) / scale  # (sigma^2/alpha)/scale of the difference of the scores
        generator_loss = (x - (x - gradient).detach()).square().flatten(1).mean(1) / 2

        t = torch.randint(T, batch.t.shape, generator=random, device=x.device)
        x_t, alpha, sigma = noised(t)
        error = (predict.x_0(x_t, t, cond, network=auxiliary.fake) - x.detach()).square().flatten(1).mean(1)
        return generator_loss + (1 + (alpha / sigma).square()).flatten() * error
