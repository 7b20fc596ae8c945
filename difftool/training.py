"""The training loop: a generator of records. The caller owns the state, draws bars, saves and stops.

A yielded record means that its step is complete, average and all. Everything random is a function of (seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difftool.data import Batches, Samples, Scaling
from difftool.device import autocast
from difftool.ema import EMA
from difftool.errors import DifftoolError, Diverged
from difftool.keys import generator, sample_noise, seed_globally

if TYPE_CHECKING:
    from difftool.components import Prediction, Weighting
    from difftool.schedule import Schedule
    from difftool.settings import Training

NOISE_STEPS = 16
"""Noise is drawn for up to this many steps at once: one large call is far cheaper than many small ones."""
NOISE_ELEMENTS = 2**22
"""... as long as the block stays below about this many numbers."""

LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}


@dataclass
class TrainState:
    """What changes while training: network, optimizer, average, step."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    scaler: torch.amp.GradScaler
    step: int = 0
    """Completed steps."""


@dataclass(frozen=True)
class Record:
    """One completed step. Tensors stay on the device."""

    step: int
    """Completed steps, this one included."""
    loss: Tensor = field(repr=False)
    """Weighted loss of the batch, a scalar."""
    item_losses: Tensor = field(repr=False)
    """Unweighted loss of each item (B,)."""
    t: Tensor = field(repr=False)
    """Level of each item (B,), int64."""
    grad_norm: Tensor = field(repr=False)
    lr: float
    x_t: Tensor = field(repr=False)
    """The noised items (B, *shape), before they are normalised for the network."""
    output: Tensor = field(repr=False)
    """The network's answer."""


class Objective:
    """What is minimised: schedule, prediction type, weighting and loss as tables on the device."""

    def __init__(
        self,
        schedule: Schedule,
        prediction: Prediction,
        weighting: Weighting,
        loss: str,
        *,
        device: torch.device,
    ) -> None:
        self.prediction, self.loss = prediction, LOSSES[loss]
        native: Any = prediction.native_weight(schedule.alpha, schedule.sigma)
        factor = weighting.factor(schedule.snr, native)
        norm = torch.hypot(schedule.alpha, schedule.sigma)
        self.alpha, self.sigma, self.norm, self.factor = (
            table.to(device, torch.float32) for table in (schedule.alpha, schedule.sigma, norm, factor)
        )
        self.time = schedule.time(1.0)
        self.unit_norm = bool((norm - 1.0).abs().max() < 1e-6)
        self.weighted = bool((factor != 1.0).any())

    def noised(self, x_0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, alpha_t, sigma_t), the latter two shaped to broadcast."""
        ends = (1,) * (x_0.ndim - 1)
        alpha, sigma = self.alpha[t].view(-1, *ends), self.sigma[t].view(-1, *ends)
        return alpha * x_0 + sigma * eps, alpha, sigma

    def losses(
        self, network: Callable[..., Tensor], x_0: Tensor, eps: Tensor, t: Tensor, cond: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(losses of the items (B,), x_t, output)."""
        x_t, alpha, sigma = self.noised(x_0, eps, t)
        net_input = x_t if self.unit_norm else x_t / self.norm[t].view(alpha.shape)
        output = network(net_input, t * self.time, cond)
        target = self.prediction.target(x_0, eps, alpha, sigma)
        if output.shape != target.shape:
            raise DifftoolError(f"the network answered {tuple(output.shape)}, not {tuple(target.shape)}")
        losses = self.loss(output.float(), target, reduction="none").flatten(1).mean(1)
        return losses, x_t, output

    def weigh(self, losses: Tensor, t: Tensor) -> Tensor:
        """The mean of the weighted losses."""
        return (losses * self.factor[t]).mean() if self.weighted else losses.mean()


class StepNoise:
    """Noise, levels and hidden labels of every step, drawn for several steps at once."""

    def __init__(self, seed: int, batch: int, shape: tuple[int, ...], levels: int, *, device: torch.device) -> None:
        self.seed, self.batch, self.shape, self.levels, self.device = seed, batch, shape, levels, device
        self.block = max(1, min(NOISE_STEPS, NOISE_ELEMENTS // (batch * math.prod(shape))))
        self._number = -1

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(eps (B, *shape), t (B,) int64, u (B,) uniform) of a step."""
        number, at = divmod(step, self.block)
        if number != self._number:
            random = generator(self.seed, "noise", number, device=self.device)
            size, device = (self.block, self.batch), self.device
            self._eps = torch.randn(*size, *self.shape, generator=random, device=device)
            self._t = torch.randint(self.levels, size, generator=random, device=device)
            self._u = torch.rand(*size, generator=random, device=device)
            self._number = number
        return self._eps[at], self._t[at], self._u[at]


def learning_rate(step: int, total: int, settings: Training) -> float:
    """The rate of step 0, 1, ...: linear warm-up, then constant or half a cosine down to 0."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.lr_schedule == "constant" or step < settings.warmup:
        return settings.lr * warm
    part = (step - settings.warmup) / max(1, total - settings.warmup)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, part)))


def train(
    state: TrainState,
    batches: Batches,
    objective: Objective,
    settings: Training,
    *,
    steps: int,
    scaling: Scaling,
    classes: int | None,
    device: torch.device,
    forward: Callable[..., Tensor] | None = None,
) -> Iterator[Record]:
    """Train from `state.step` up to `steps`. Raises `Diverged` before a non-finite gradient touches the weights.

    `forward` stands in for the network where it was compiled.
    """
    network: Callable[..., Tensor] = state.network if forward is None else forward
    parameters = list(state.network.parameters())
    context = autocast(device, settings.precision) or nullcontext
    noise = StepNoise(settings.seed, batches.batch_size, batches.samples.shape, len(objective.alpha), device=device)
    layout = torch.channels_last if len(batches.samples.shape) == 3 else torch.contiguous_format
    state.network.train()
    for batch in batches.start(state.step) if state.step < steps else ():
        seed_globally(device, settings.seed, "step", state.step)  # dropout
        eps, t, u = noise(state.step)
        x_0 = scaling.to_model(batch.items).contiguous(memory_format=layout)  # what an augmentation gave may be a view
        cond = None
        if classes is not None and batch.labels is not None:
            cond = torch.where(u < settings.label_dropout, classes, batch.labels)
        with context():
            losses, x_t, output = objective.losses(network, x_0, eps, t, cond)
        loss = objective.weigh(losses, t)
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        state.scaler.unscale_(state.optimizer)
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        # the one wait of a step: nothing may touch the weights before it is known; fp16 skips overflows by itself
        overflow = not math.isfinite(norm.item())
        if overflow and (not state.scaler.is_enabled() or not math.isfinite(loss.item())):
            raise Diverged(_divergence(state.step, float(loss.detach()), settings))
        if settings.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
        lr = learning_rate(state.step, steps, settings)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema is not None:
            state.ema.update()
        state.step += 1
        yield Record(state.step, loss.detach(), losses.detach(), t, norm, lr, x_t, output.detach())
        if state.step >= steps:
            return


def _divergence(step: int, loss: float, settings: Training) -> str:
    what = "the gradient became infinite or NaN" if math.isfinite(loss) else f"the loss became {loss}"
    advice = ["a lower --lr"]
    if not settings.clip:
        advice.append("--clip 1")
    if settings.precision != "fp32":
        advice.append("--precision fp32")
    return f"{what} in step {step + 1}; try {' or '.join(advice)}"


@torch.no_grad()
def held_out_loss(
    network: nn.Module,
    samples: Samples,
    objective: Objective,
    *,
    batch_size: int,
    scaling: Scaling,
    classes: int | None,
    repeats: int = 4,
) -> float:
    """Mean unweighted loss over all held-out items, each at `repeats` stratified levels: the same ones every time."""
    network.eval()
    total, n, levels, device = 0.0, len(samples), len(objective.alpha), objective.alpha.device
    for start in range(0, n, batch_size):
        indices = list(range(start, min(n, start + batch_size)))
        items, labels = samples.take(indices)
        x_0 = scaling.to_model(items.to(device))
        cond = labels.to(device) if labels is not None and classes is not None else None
        for repeat in range(repeats):
            eps = sample_noise(start, len(indices), samples.shape, 0, "held-out", repeat, device=device)
            u = (torch.tensor(indices, device=device) + 0.5) / n + repeat / repeats
            t = ((u % 1.0) * levels).long().clamp(max=levels - 1)
            total += float(objective.losses(network, x_0, eps, t, cond)[0].sum())
    return total / (n * repeats)
