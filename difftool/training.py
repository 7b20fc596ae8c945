"""The training loop: a generator of records. The caller owns the state, draws bars, saves and stops.

A yielded record means that its step is complete, average and all. Everything random is a function of (seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difftool.contracts import ObjectiveSpec
from difftool.data import Batches, Samples, Scaling
from difftool.denoiser import bounded_guess, with_guess
from difftool.device import autocast
from difftool.ema import EMA
from difftool.errors import DifftoolError, Diverged
from difftool.keys import generator, key, sample_noise, seed_globally
from difftool.prediction import native_weight, tables
from difftool.processes import ALONE, Team
from difftool.variance import VarianceBound, split_answer

if TYPE_CHECKING:
    from difftool.components import Prediction, TimeDensity, Weighting
    from difftool.facts import DataFacts
    from difftool.settings import Training

NOISE_STEPS = 16
"""Noise is drawn for up to this many steps at once: one large call is far cheaper than many small ones."""
NOISE_ELEMENTS = 2**22
"""... as long as the block stays below about this many numbers."""

MOST_SKIPS = 20
"""Steps in a row that fp16 may skip: its first scale of 2^16 is halved in each, and below 1 that helps no more."""

VARIANCE_WEIGHT = 0.001
"""Of the bound beside the plain loss: so small that it guides the variance alone."""

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
    skipped: int = 0
    """Of these, how many changed nothing, since a gradient overflowed in fp16."""
    skipped_in_a_row: int = 0


@dataclass(frozen=True)
class Record:
    """One completed step. Tensors stay on the device."""

    step: int
    """Completed steps, this one included."""
    loss: Tensor = field(repr=False)
    """Weighted loss of the batch, a scalar; of several processes, that whose mean over them is."""
    item_losses: Tensor = field(repr=False)
    """Unweighted loss of each item (B,)."""
    t: Tensor = field(repr=False)
    """Level of each item (B,), int64."""
    grad_norm: Tensor = field(repr=False)
    """Of all gradients together, before they are clipped."""
    lr: float
    skipped: bool
    """Whether fp16 overflowed, so that the step changed nothing."""
    x_t: Tensor = field(repr=False)
    """The noised items (B, *shape), before they are normalised for the network."""
    output: Tensor = field(repr=False)
    """The network's answer."""


class Objective:
    """What is minimised: schedule, prediction type, weighting, time density and loss as tables on the device.

    Raises `ValueError` where they do not go together.
    """

    def __init__(
        self,
        spec: ObjectiveSpec,
        prediction: Prediction,
        weighting: Weighting,
        time: TimeDensity,
        loss: str,
        *,
        device: torch.device,
        self_condition: bool = False,
        learn_variance: bool = False,
        data: DataFacts,
    ) -> None:
        self.spec, self.loss, self.device = spec, LOSSES[loss], device
        self.self_condition, self.bounds = self_condition, data.bounds
        schedule = spec.schedule
        a, b, det = tables(prediction, spec)
        native = native_weight(det, schedule.sigma)
        factor = weighting.weight(native, spec) / native
        if factor.shape != native.shape or not bool(torch.isfinite(factor).all()) or bool((factor < 0).any()):
            raise ValueError(f"weighting {weighting.name} gives no finite weight at some level of this schedule")
        scale = torch.tensor([prediction.input_scale(level, spec) for level in schedule], dtype=torch.float64)

        def table(values: Tensor) -> Tensor:
            return values.to(device, torch.float32)

        self.alpha, self.sigma, self.factor, self.scale = map(table, (schedule.alpha, schedule.sigma, factor, scale))
        self.a, self.b = Table.of(table(a)), Table.of(table(b))
        self.x_0_of_x_t, self.x_0_of_output = table(b / det), table(-schedule.sigma / det)
        self.distribution = table(distribution(time, spec))
        self.bound: VarianceBound | None = None
        if learn_variance:
            pixels = data.bounds if data.is_image else None
            self.bound = VarianceBound(schedule, device=device, pixel_range=pixels)
        self.time = schedule.time(1.0)
        self.unit_scale = bool((scale - 1.0).abs().max() < 1e-6)
        self.weighted = bool((factor != 1.0).any())

    def __len__(self) -> int:
        return len(self.alpha)

    def draw(self, u: Tensor) -> Tensor:
        """The levels t, int64, that uniform numbers in [0, 1) stand for."""
        return torch.searchsorted(self.distribution, u, right=True).clamp_(max=len(self) - 1)

    def noised(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps."""
        return per_item(self.alpha[t], x_0) * x_0 + per_item(self.sigma[t], x_0) * eps

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should answer: a x_0 + b eps. What is 0 or 1 at every level costs nothing."""
        if self.a.constant == 0.0:
            return self.b.times(eps, t)
        if self.b.constant == 0.0:
            return self.a.times(x_0, t)
        return self.a.times(x_0, t) + self.b.times(eps, t)

    def losses(
        self,
        network: Callable[..., Tensor],
        x_0: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Tensor | None,
        *,
        guess: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(losses of the items (B,), x_t, output). `guess`: self-conditioned, the network is first asked for x_0."""
        x_t = self.noised(x_0, eps, t)
        net_input = x_t if self.unit_scale else per_item(self.scale[t], x_t) * x_t
        time = t * self.time
        if self.self_condition:
            net_input = with_guess(net_input, self._guess(network, net_input, time, x_t, t, cond) if guess else None)
        output = network(net_input, time, cond)
        target = self.target(x_0, eps, t)
        answer = self.answer(output)
        if answer.shape != target.shape:
            raise DifftoolError(f"the network answered {tuple(output.shape)}, not {tuple(target.shape)}")
        losses = self.loss(answer.float(), target, reduction="none").flatten(1).mean(1)
        return losses, x_t, output

    @torch.no_grad()
    def _guess(
        self,
        network: Callable[..., Tensor],
        net_input: Tensor,
        time: Tensor,
        x_t: Tensor,
        t: Tensor,
        cond: Tensor | None,
    ) -> Tensor:
        output = network(with_guess(net_input, None), time, cond).float()
        torch.clear_autocast_cache()  # or weights cast without a gradient would be used again with one (torch < 2.10)
        return bounded_guess(self.estimate(self.answer(output), x_t, t), self.bounds, self.spec.sigma_data)

    def answer(self, output: Tensor) -> Tensor:
        """What the network says of x_0 and eps, without what it says of the variance."""
        return output if self.bound is None else split_answer(output)[0]

    def estimate(self, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 from the network's answer."""
        return per_item(self.x_0_of_x_t[t], x_t) * x_t + per_item(self.x_0_of_output[t], x_t) * answer

    def variance_loss(self, x_0: Tensor, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """What learning the variance adds to the loss: 0.001 of the bound, summed over the levels.

        Nichol & Dhariwal (2021), eq. 16; the mean takes no gradient from it.
        """
        assert self.bound is not None
        answer, part = split_answer(output.float())
        x_0_hat = self.estimate(answer.detach(), x_t, t)
        if self.bounds is not None:
            x_0_hat = x_0_hat.clamp(*self.bounds)
        return VARIANCE_WEIGHT * len(self) * self.bound(x_0, x_0_hat, part, t).mean()

    def weigh(self, losses: Tensor, t: Tensor) -> Tensor:
        """The mean of the weighted losses."""
        return (losses * self.factor[t]).mean() if self.weighted else losses.mean()


@dataclass(frozen=True)
class Table:
    """A number for each level, and the number itself where it is one for all."""

    values: Tensor
    constant: float | None

    @classmethod
    def of(cls, values: Tensor) -> Table:
        first = float(values[0])
        return cls(values, first if bool((values == first).all()) else None)

    def times(self, x: Tensor, t: Tensor) -> Tensor:
        if self.constant is None:
            return per_item(self.values[t], x) * x
        return x if self.constant == 1.0 else self.constant * x


def per_item(values: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped to broadcast over x (B, ...)."""
    return values.view(-1, *(1,) * (x.ndim - 1))


def distribution(time: TimeDensity, spec: ObjectiveSpec) -> Tensor:
    """The distribution function over the levels: P(t <= i). Raises `ValueError`."""
    density = time.density(spec).to(torch.float64)
    total = float(density.sum())
    if density.shape != spec.schedule.alpha.shape or not bool((density >= 0).all()) or not 0.0 < total < math.inf:
        raise ValueError(f"time {time.name} gives no distribution over the levels of this schedule")
    cumulative = density.cumsum(0)
    return cumulative / cumulative[-1]


class StepNoise:
    """Noise, levels and hidden labels of every step, drawn for several steps at once."""

    def __init__(
        self, seed: int, batch: int, shape: tuple[int, ...], objective: Objective, *, stratified: bool = False
    ) -> None:
        self.seed, self.batch, self.shape = seed, batch, shape
        self.objective, self.stratified, self.device = objective, stratified, objective.device
        self.block = max(1, min(NOISE_STEPS, NOISE_ELEMENTS // (batch * math.prod(shape))))
        self._number = -1

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(eps (B, *shape), t (B,) int64, u (B,) uniform) of a step."""
        number, at = divmod(step, self.block)
        if number != self._number:
            random = generator(self.seed, "noise", number, device=self.device)
            size, device = (self.block, self.batch), self.device
            self._eps = torch.randn(*size, *self.shape, generator=random, device=device)
            where = torch.rand(*size, generator=random, device=device)
            if self.stratified:  # one item in each of B equal parts: the same mean loss at a lower variance
                where = (where + torch.arange(self.batch, device=device)) / self.batch
            self._t = self.objective.draw(where)
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
    team: Team = ALONE,
) -> Iterator[Record]:
    """Train from `state.step` up to `steps`. Raises `Diverged` before a non-finite gradient touches the weights.

    `forward` stands in for the network where it was compiled, or wrapped by the `team` whose part of the batches this
    is; records tell of that part.
    """
    network: Callable[..., Tensor] = state.network if forward is None else forward
    parameters = list(state.network.parameters())
    context = autocast(device, settings.precision) or nullcontext
    noise = StepNoise(
        settings.seed, batches.batch_size, batches.samples.shape, objective, stratified=settings.stratified
    )
    balance = team.balance(batches.batch_size)
    layout = torch.channels_last if len(batches.samples.shape) == 3 else torch.contiguous_format
    state.network.train()
    for batch in batches.start(state.step) if state.step < steps else ():
        seed_globally(device, settings.seed, "step", state.step, *team.own)  # dropout
        eps, t, u = noise(state.step)
        if team.size > 1:
            eps, t, u = (drawn[batches.part] for drawn in (eps, t, u))
        x_0 = scaling.to_model(batch.items).contiguous(memory_format=layout)  # what an augmentation gave may be a view
        cond = None
        if classes is not None and batch.labels is not None:
            cond = torch.where(u < settings.label_dropout, classes, batch.labels)
        guess = objective.self_condition and key(settings.seed, "guess", state.step) % 2 == 0  # every other step
        with context():
            losses, x_t, output = objective.losses(network, x_0, eps, t, cond, guess=guess)
        loss = objective.weigh(losses, t)
        if objective.bound is not None:
            loss = loss + objective.variance_loss(x_0, x_t, output, t)
        if balance != 1.0:
            loss = loss * balance
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        state.scaler.unscale_(state.optimizer)
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        # the one wait of a step: nothing may touch the weights before it is known; fp16 skips overflows by itself
        overflow = not math.isfinite(norm.item())
        if overflow:
            loss = loss.new_tensor(team.mean(loss.item()))
        if overflow and not (state.scaler.is_enabled() and _scaled_too_far(loss, grads)):
            raise Diverged(_divergence(state.step, float(loss.detach()), settings))
        state.skipped += overflow
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if overflow else 0
        if state.skipped_in_a_row == MOST_SKIPS:
            raise Diverged(
                f"the gradient overflowed in {MOST_SKIPS} steps in a row, up to step {state.step + 1}; "
                "try --precision bf16 or fp32, or a lower --lr"
            )
        if settings.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
        lr = learning_rate(state.step, steps, settings)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema is not None and not overflow:
            state.ema.update()
        state.step += 1
        yield Record(
            state.step, loss.detach(), losses.detach(), t, norm, lr, overflow, x_t, objective.answer(output).detach()
        )
        if state.step >= steps:
            return


def _scaled_too_far(loss: Tensor, grads: list[Tensor]) -> bool:
    """Whether a gradient overflowed though the loss did not: then fp16 skips the step and halves its scale."""
    return math.isfinite(loss.item()) and not all(bool(g.isfinite().all()) for g in grads)


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
    team: Team = ALONE,
) -> float:
    """Mean unweighted loss over all held-out items, each at `repeats` stratified levels: the same ones every time."""
    network.eval()
    total, n, levels, device = 0.0, len(samples), len(objective), objective.device
    for start in range(0, n, batch_size)[team.world.rank :: team.size]:
        indices = list(range(start, min(n, start + batch_size)))
        items, labels = samples.take(indices)
        x_0 = scaling.to_model(items.to(device))
        cond = labels.to(device) if labels is not None and classes is not None else None
        for repeat in range(repeats):
            eps = sample_noise(start, len(indices), samples.shape, 0, "held-out", repeat, device=device)
            u = (torch.tensor(indices, device=device) + 0.5) / n + repeat / repeats
            t = ((u % 1.0) * levels).long().clamp(max=levels - 1)
            total += float(objective.losses(network, x_0, eps, t, cond)[0].sum())
    return team.sum(total) / (n * repeats)
