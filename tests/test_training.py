"""The training loop against hand-written formulas; batches, noise, the average, divergence."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from difftool import Condition, component
from difftool.components import Backbone, Loss, NoiseSchedule, Prediction, TimestepSampling, Weighting
from difftool.data.batches import Batches
from difftool.data.facts import DataFacts
from difftool.data.samples import DatasetContext, Samples, points
from difftool.data.splitting import split
from difftool.diffusion.schedule import Schedule
from difftool.diffusion.self_conditioning import SELF_COND_RANGE
from difftool.errors import DifftoolError, Diverged, UsageError
from difftool.options import make
from difftool.plugins.registry import registry
from difftool.rng import generator, key, permutation
from difftool.runs.recipe import build_recipe
from difftool.sampling.denoiser import Denoiser
from difftool.settings import Training, is_due
from difftool.specs import BackboneSpec, ObjectiveSpec
from difftool.training.ema import Averages
from difftool.training.held_out import REPEATS, held_out_loss
from difftool.training.inputs import BLOCK_STEPS, StepNoise
from difftool.training.loop import MAX_SKIPS, check_finite, train
from difftool.training.loss import Objective
from difftool.training.metrics import Meter
from difftool.training.optimizer import Updater
from difftool.training.rate import learning_rate
from difftool.training.state import TrainState
from difftool.training.step import StepResult

CPU = torch.device("cpu")
T = 100


def schedule() -> Schedule:
    return make(registry().of_kind(NoiseSchedule, "linear"), {}).build(T)


def spec() -> ObjectiveSpec:
    return ObjectiveSpec(schedule=schedule(), sigma_data=1.0)


def objective(
    *,
    prediction: str = "eps",
    weighting: str = "none",
    time: str = "uniform",
    loss: str | Loss = "mse",
    bounds: tuple[float, float] | None = None,
    data: DataFacts | None = None,
    **options: Any,
) -> Objective:
    return Objective(
        spec(),
        make(registry().of_kind(Prediction, prediction), {}),
        make(registry().of_kind(Weighting, weighting), {}),
        make(registry().of_kind(TimestepSampling, time), {}),
        make(registry().of_kind(Loss, loss), {}) if isinstance(loss, str) else loss,
        device=CPU,
        data=data or DataFacts(shape=(2,), shift=(0.0, 0.0), scale=(1.0, 1.0), bounds=bounds),
        **options,
    )


class Net(nn.Module):
    """A small network of x and t that remembers its conditions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.conds: list[Condition | None] = []

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        self.conds.append(cond)
        self.calls += 1
        answer: Tensor = self.last(torch.tanh(self.first(torch.cat([x, t[:, None] / 1000], dim=1))))
        return answer


def cloud(n: int = 50, *, labels: bool = False) -> Samples:
    items = torch.randn(n, 2, generator=generator(3, "cloud")) * torch.tensor([2.0, 0.5]) + 1.0
    return points(items, labels=torch.arange(n) % 3 if labels else None, class_names=("a", "b", "c") if labels else ())


def new_state(network: nn.Module, *, ema: float = 0.9, optimizer: str = "adam") -> TrainState:
    updater = Updater(component("optimizer", optimizer), network.named_parameters(), 1e-3)
    averages = Averages.of(network, make(Training, {"ema": ema}))
    return TrainState(network, updater, averages, torch.amp.GradScaler("cpu", enabled=False))


def settings(**values: Any) -> Training:
    return make(Training, {"batch_size": 16, "lr": 1e-2, "steps": 40, "precision": "fp32", **values})


def loop(
    state: TrainState,
    samples: Samples,
    chosen: Training,
    *,
    steps: int,
    **o: Any,
) -> Iterator[StepResult]:
    assert isinstance(chosen.batch_size, int)
    batches = Batches(samples, chosen.batch_size, seed=chosen.seed)
    return train(state, batches, objective(data=DataFacts.of(samples), **o), chosen, steps=steps)


def state_dict(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def average_of(state: TrainState) -> dict[str, Tensor]:
    """The weights of the only average."""
    (average,) = state.averages
    return state_dict(average.network)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_parameters_that_train_have_a_part_in_the_loss() -> None:
    network = Net()
    network.requires_grad_(False)
    network.unused = nn.Parameter(torch.zeros(2))
    state = TrainState.new(network, settings(), CPU, optimizer=component("optimizer", "adam"))
    with pytest.raises(DifftoolError, match="no parameter that trains has a part in the loss; train others too"):
        next(loop(state, cloud(), settings(), steps=1))


class Fading(Net):
    """Notes what a number below the smallest normal one is in a step."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        self.faded = faded()
        return super().forward(x, t, cond)


def faded() -> float:
    return float(torch.tensor(2e-38) * 0.1)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor knows no such mode")
def test_denormal_numbers_are_0_in_a_step_alone() -> None:
    network = Fading()
    for _ in loop(new_state(network), cloud(), settings(), steps=1):
        assert network.faded == 0.0 < faded()
    torch.set_flush_denormal(True)  # as a program may have chosen
    try:
        list(loop(new_state(network), cloud(), settings(), steps=1))
        assert faded() == 0.0
    finally:
        torch.set_flush_denormal(False)


# --- noise ---------------------------------------------------------------------------------------------------------


def test_noise_of_a_step_does_not_depend_on_where_one_enters() -> None:
    straight = StepNoise(7, 4, (2,), objective())
    assert straight.block == BLOCK_STEPS
    whole = [[x.clone() for x in straight(step)] for step in range(40)]
    for step in (39, 5, 16, 15, 17, 31, 0):
        fresh = StepNoise(7, 4, (2,), objective())(step)
        again = straight(step)
        for a, b, c in zip(whole[step], fresh, again, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)
    eps, t, u = (torch.stack([row[i] for row in whole]) for i in range(3))
    assert (eps.shape, t.shape, u.shape, t.dtype) == ((40, 4, 2), (40, 4), (40, 4), torch.int64)
    assert len(eps.flatten(0, 1).unique(dim=0)) == 160
    assert not torch.equal(StepNoise(8, 4, (2,), objective())(0)[0], whole[0][0])


def test_levels_cover_the_whole_table_evenly() -> None:
    noise = StepNoise(0, 5000, (2,), objective())
    t = torch.cat([noise(step)[1] for step in range(16)])
    counts = torch.bincount(t, minlength=T)
    assert (int(t.min()), int(t.max())) == (0, T - 1)
    assert (counts - 80_000 / T).abs().max() < 5 * math.sqrt(80_000 / T)


def test_large_batches_are_drawn_in_smaller_blocks() -> None:
    noise = StepNoise(0, 64, (3, 128, 128), objective())
    assert noise.block == 2**22 // (64 * 3 * 128 * 128) == 1


# --- learning rate and counts --------------------------------------------------------------------------------------


def test_learning_rates() -> None:
    flat = settings(lr=0.5)
    assert [learning_rate(step, 10, flat) for step in (0, 5, 9)] == [0.5] * 3
    warm = settings(lr=0.5, warmup=4)
    assert [learning_rate(step, 10, warm) for step in range(6)] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    cosine = settings(lr=0.5, lr_schedule="cosine")
    rates = [learning_rate(step, 100, cosine) for step in range(100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.5, rel=1e-3)
    assert rates[50] == pytest.approx(0.25, rel=0.05)
    assert 0.0 <= rates[99] < 0.5 * 0.01
    linear = settings(lr=0.5, lr_schedule="linear", warmup=2)
    expected = [0.25, 0.5, 0.5, 0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125, 0.0625]
    assert [learning_rate(step, 10, linear) for step in range(10)] == pytest.approx(expected)


def test_the_inverse_square_root_of_edm2() -> None:
    """lr / sqrt(max(step / decay, 1)), times the warm-up (Karras et al., 2024)."""
    chosen = settings(lr=0.5, lr_schedule="inverse-sqrt", lr_decay_steps=100, warmup=10)
    for step in (0, 4, 9, 10, 99, 100, 101, 400, 10_000):
        expected = 0.5 / math.sqrt(max(step / 100, 1)) * min((step + 1) / 10, 1)
        assert learning_rate(step, 20_000, chosen) == pytest.approx(expected)
    short = settings(lr=0.5, lr_schedule="inverse-sqrt", lr_decay_steps=4, warmup=8)  # both at once
    assert learning_rate(5, 100, short) == pytest.approx(0.5 / math.sqrt(5 / 4) * 6 / 8)
    transformer = settings(lr=0.5, lr_schedule="inverse-sqrt", warmup=16)  # falls from the end of the warm-up
    assert [learning_rate(step, 100, transformer) for step in (15, 16, 64)] == pytest.approx([0.5, 0.5, 0.25])


def test_what_is_due_is_counted_in_steps_or_epochs() -> None:
    """100 items in batches of 64: an epoch ends in the step that uses its last item, also across batches."""

    def due(every: str) -> list[int]:
        return [step for step in range(1, 17) if is_due(step, every, items=100, batch_size=64)]

    assert due("5") == [5, 10, 15]
    assert due("0") == due("0ep") == []
    assert due("1ep") == [2, 4, 5, 7, 8, 10, 11, 13, 15, 16]
    assert due("2ep") == [4, 7, 10, 13, 16]
    assert [s for s in range(1, 4) if is_due(s, "1ep", items=1, batch_size=64)] == [1, 2, 3]


# --- the loop ------------------------------------------------------------------------------------------------------


def by_hand(
    samples: Samples,
    chosen: Training,
    steps: int,
    *,
    weighting: str = "none",
    prediction: str = "eps",
    loss: str = "mse",
) -> Net:
    """The same training, written out."""
    network = Net()
    optimizer = torch.optim.Adam(network.parameters(), lr=chosen.lr)
    bars = schedule().alpha_bars
    raw, n = samples.items, len(samples)
    assert isinstance(raw, Tensor)
    order = torch.cat([permutation(n, chosen.seed, "order", epoch) for epoch in range(30)])
    for step in range(steps):
        random = generator(chosen.seed, "noise", step // BLOCK_STEPS)
        eps = torch.randn(BLOCK_STEPS, chosen.batch_size, 2, generator=random)[step % BLOCK_STEPS]
        t = (torch.rand(BLOCK_STEPS, chosen.batch_size, generator=random)[step % BLOCK_STEPS].double() * T).long()
        x = raw[order[step * chosen.batch_size : (step + 1) * chosen.batch_size]]
        x = (x - torch.tensor(samples.shift)) / torch.tensor(samples.scale)
        a = bars[t].float()[:, None]
        output = network(a.sqrt() * x + (1 - a).sqrt() * eps, t * 1000 / T)
        target = {"eps": eps, "x0": x, "v": a.sqrt() * eps - (1 - a).sqrt() * x}[prediction]
        e = output - target
        huber = torch.where(e.abs() <= 1, e**2 / 2, e.abs() - 0.5)
        error = {"mse": e**2, "l1": e.abs(), "huber": huber}[loss].mean(1)
        snr = (a / (1 - a))[:, 0]
        if weighting == "min-snr":
            error = error * snr.clamp(max=5) / {"eps": snr, "x0": 1.0, "v": snr + 1}[prediction]
        optimizer.zero_grad()
        error.mean().backward()
        if chosen.clip:
            total = math.sqrt(sum(float((p.grad**2).sum()) for p in network.parameters()))  # type: ignore[operator]
            for p in network.parameters():
                assert p.grad is not None
                p.grad *= min(1.0, chosen.clip / (total + 1e-6))
        optimizer.step()
    return network


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, {}),
        ({"weighting": "min-snr"}, {}),
        ({"weighting": "min-snr", "prediction": "v"}, {}),
        ({"weighting": "min-snr", "prediction": "x0"}, {}),
        ({"loss": "l1"}, {}),
        ({"loss": "huber", "weighting": "min-snr"}, {}),
        ({}, {"clip": 0.05}),
        ({}, {"batch_size": 64, "seed": 3}),  # more than there are items
        ({}, {"accumulate": 4}),
        ({"weighting": "min-snr"}, {"accumulate": 5, "clip": 0.05}),  # parts of 4, 4, 4 and 4
        ({"loss": "l1"}, {"accumulate": 3}),  # parts of 6, 6 and 4
    ],
)
def test_training_equals_the_formulas_written_out(options: dict[str, str], chosen: dict[str, Any]) -> None:
    samples, config = cloud(), settings(**chosen)
    state = new_state(Net())
    records = list(loop(state, samples, config, steps=20, **options))
    expected = by_hand(samples, config, 20, **options)
    for a, b in zip(state.network.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(next(state.network.parameters()), next(Net().parameters()), atol=1e-3)
    assert [r.step for r in records] == list(range(1, 21))
    assert state.step == 20
    assert {r.lr for r in records} == {config.lr}


def test_the_loss_is_the_weighted_mean_of_the_items() -> None:
    state, chosen = new_state(Net()), settings()
    (record,) = islice(loop(state, cloud(), chosen, steps=5, weighting="min-snr"), 1)
    snr = schedule().snr[record.inputs.t]
    factor = snr.clamp(max=5) / snr
    assert record.prediction is not None
    losses = (record.prediction - record.inputs.target).square().mean(1)
    assert record.losses is not None
    torch.testing.assert_close(record.losses, losses)
    assert float(record.loss) == pytest.approx(float((losses * factor).mean()), rel=1e-5)
    assert float(record.loss) != pytest.approx(float(losses.mean()), rel=1e-3)


@pytest.mark.parametrize("stops", [[1], [5, 16], [17, 18, 33]])
def test_stopping_and_going_on_changes_nothing(stops: list[int]) -> None:
    straight, broken, samples, chosen = new_state(Net()), new_state(Net()), cloud(labels=True), settings()
    for _ in loop(straight, samples, chosen, steps=40):
        pass
    for stop in [*stops, 40]:
        steps = loop(broken, samples, chosen, steps=40)
        for record in steps:
            if record.step == stop:
                break
        steps.close()
        assert broken.step == stop
    assert same(state_dict(broken.network), state_dict(straight.network))
    assert same(average_of(broken), average_of(straight))
    assert broken.averages.updates == straight.averages.updates == 40


def test_nothing_is_left_to_do_at_the_end() -> None:
    state = new_state(Net())
    before = state_dict(state.network)
    assert list(loop(state, cloud(), settings(), steps=0)) == []
    assert same(state_dict(state.network), before)


def test_a_yield_leaves_gradients_on() -> None:
    for _ in loop(new_state(Net()), cloud(), settings(precision="bf16"), steps=2):
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")


def test_labels_are_hidden_at_their_share() -> None:
    network, chosen = Net(), settings(batch_size=400, condition_dropout=0.3)
    samples = cloud(400, labels=True)
    for _ in loop(new_state(network), samples, chosen, steps=20):
        pass
    conds = torch.cat([c.class_index(3) for c in network.conds if c is not None])
    hidden = (conds == 3).float().mean()
    assert abs(float(hidden) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / len(conds))
    assert set(conds.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(("dropout", "seen"), [(0.0, {0, 1, 2}), (1.0, {3})])
def test_no_label_or_every_label_is_hidden(dropout: float, seen: set[int]) -> None:
    network = Net()
    for _ in loop(new_state(network), cloud(labels=True), settings(condition_dropout=dropout), steps=8):
        pass
    assert {int(i) for c in network.conds if c is not None for i in c.class_index(3)} == seen


def test_the_labels_are_those_of_the_items() -> None:
    network, samples, chosen = Net(), cloud(labels=True), settings(condition_dropout=0.0)
    batches = Batches(samples, 16, seed=0)
    for _ in loop(new_state(network), samples, chosen, steps=6):
        pass
    for step, cond in enumerate(network.conds):
        assert cond is not None
        assert torch.equal(cond.class_index(3), batches.indices(step) % 3)


class Fragile(Net):
    """Breaks at its third call, in the value given."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        answer = super().forward(x, t, cond)
        return answer * self.value if int(self.calls) == 3 else answer


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_divergence_changes_no_weight_and_is_reported_at_the_next_check(value: float) -> None:
    state = new_state(Fragile(value))
    steps = loop(state, cloud(), settings(), steps=40)
    next(steps), next(steps)
    check_finite(state, settings())
    good = {**state_dict(state.network), "calls": torch.tensor(3.0)}
    average = average_of(state)
    assert not math.isfinite(float(next(steps).grad_norm))
    assert same(state_dict(state.network), good)
    for name, weight in average_of(state).items():
        assert name == "calls" or bool(((weight - good[name]).abs() <= (average[name] - good[name]).abs()).all())
    next(steps)  # what comes after goes on from sound weights
    with pytest.raises(Diverged, match="in step 3; try a lower --lr or --clip 1"):
        check_finite(state, settings())
    assert all(bool(w.isfinite().all()) for w in (*state_dict(state.network).values(), *average.values()))


class Overflowing(Net):
    """Answers so much, at the calls given, that the gradient of the scaled loss overflows while the loss does not."""

    def __init__(self, calls: range) -> None:
        super().__init__()
        self.overflows = calls

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        answer = super().forward(x, t, cond)
        return answer * 1e18 if int(self.calls) in self.overflows else answer


def scaled_state(network: nn.Module, optimizer: str = "adam") -> TrainState:
    return replace(new_state(network, optimizer=optimizer), scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "muon"])
def test_a_step_that_overflows_is_skipped_and_counted(optimizer: str) -> None:
    state, chosen = scaled_state(Overflowing(range(3, 5)), optimizer), settings(clip=1.0)
    steps = loop(state, cloud(), chosen, steps=6)
    next(steps), next(steps)
    good = state_dict(state.network)
    records = [next(steps), next(steps)]
    assert not any(math.isfinite(float(r.grad_norm)) for r in records)
    assert all(math.isfinite(float(r.loss)) for r in records)
    check_finite(state, chosen)
    assert (state.step, state.skipped, state.skipped_in_a_row) == (4, 2, 2)
    assert state.scaler.get_scale() == 2.0**14
    assert same({**state_dict(state.network), "calls": good["calls"]}, good)
    if "adam" in optimizer:
        assert {float(slots["step"]) for slots in state.optimizer.weight_state().values()} == {2.0}
    next(steps)
    check_finite(state, chosen)
    assert (state.skipped, state.skipped_in_a_row) == (2, 0)
    assert not torch.equal(state.network.get_parameter("last.bias"), good["last.bias"])


@pytest.mark.parametrize("every", [1, 7, 100])
def test_a_row_of_skipped_steps_ends_the_run(every: int) -> None:
    state, chosen = scaled_state(Overflowing(range(3, 1000))), settings()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)

    def run() -> None:
        for record in loop(state, cloud(), chosen, steps=1000):
            if record.step % every == 0:
                check_finite(state, chosen)

    with pytest.raises(Diverged, match=f"overflowed in {MAX_SKIPS} steps in a row, up to step 22; try --precision"):
        run()


def test_metrics_count_the_skipped_steps() -> None:
    state, meter, chosen = scaled_state(Overflowing(range(3, 5))), Meter(objective(), 16), settings()
    rows = []
    for record in loop(state, cloud(), chosen, steps=6):
        meter.add(record)
        if record.step % 3 == 0:
            check_finite(state, chosen)
            rows.append(meter.row(record, 1.0, skipped=state.skipped)["skipped_steps"])
    assert rows == [1, 1]


# --- self-conditioning ---------------------------------------------------------------------------------------------


class Mirror(nn.Module):
    """Linear in what it sees, which it remembers, with whether gradients were on."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.layer, self.gain = nn.Linear(4, 2), gain
        self.seen: list[tuple[Tensor, bool]] = []

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        self.seen.append((x.detach().clone(), torch.is_grad_enabled()))
        answer: Tensor = self.gain * self.layer(x)
        return answer


def noised_batch() -> tuple[Tensor, Tensor, Tensor]:
    random = generator(1, "batch")
    return torch.randn(9, 2, generator=random), torch.randn(9, 2, generator=random), torch.arange(0, T, 11)[:9]


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "edm"])
@pytest.mark.parametrize(("bounds", "limit"), [(None, SELF_COND_RANGE), ((-0.5, 0.5), 0.5)])
def test_the_first_of_two_passes_estimates_x_0(
    prediction: str, bounds: tuple[float, float] | None, limit: float
) -> None:
    network, made = Mirror(gain=9.0), objective(prediction=prediction, self_condition=True, bounds=bounds)
    x_0, eps, t = noised_batch()
    inputs = made.inputs(x_0, eps, t, None)
    output = made.predict(network, inputs, self_cond=True)
    losses, x_t = (output - inputs.target).square().mean(1), inputs.x_t
    (first, first_grad), (second, second_grad) = network.seen
    assert (first_grad, second_grad) == (False, True)
    assert torch.equal(first[:, :2], second[:, :2])
    assert not first[:, 2:].any()
    # the estimate is x_0 of the first output, by the formulas of the papers, kept within bounds
    with torch.no_grad():
        answer = network.gain * network.layer(first)
    a = schedule().alpha_bars[t].float()[:, None]
    unclamped = {
        "eps": (x_t - (1 - a).sqrt() * answer) / a.sqrt(),
        "v": a.sqrt() * x_t - (1 - a).sqrt() * answer,
        "x0": answer,
        "edm": a.sqrt() * x_t + (1 - a).sqrt() * answer,  # with data of unit variance it asks for -v
    }[prediction]
    torch.testing.assert_close(second[:, 2:], unclamped.clamp(-limit, limit), rtol=1e-4, atol=1e-4)
    assert bool((unclamped.abs() > limit).any())  # or clamping would not have been seen
    # the gradient is that of the second pass alone
    losses.sum().backward()
    weight, bias = network.layer.weight.grad, network.layer.bias.grad
    assert weight is not None
    assert bias is not None
    slope = 2 * (output.detach() - made.target(x_0, eps, t)) / 2 * network.gain
    torch.testing.assert_close(weight, slope.T @ second, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias, slope.sum(0), rtol=1e-4, atol=1e-4)


def test_without_an_estimate_the_network_sees_zeros() -> None:
    network, made = Mirror(), objective(self_condition=True)
    made.predict(network, made.inputs(*noised_batch(), None))
    ((seen, grad),) = network.seen
    assert grad
    assert seen.shape == (9, 4)
    assert not seen[:, 2:].any()


def test_no_room_is_made_without_self_conditioning() -> None:
    seen: list[Tensor] = []
    made = objective()
    made.predict(lambda x, t, cond: seen.append(x) or x, made.inputs(*noised_batch(), None))  # type: ignore[func-returns-value]
    assert seen[0].shape == (9, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_other_step_has_two_passes_wherever_one_enters(precision: str) -> None:
    network, chosen = Mirror(), settings(seed=5, precision=precision)
    state, before = new_state(network), state_dict(network)
    for _ in loop(state, cloud(), chosen, steps=40, self_condition=True):
        assert network.layer.weight.grad is not None
        assert bool(network.layer.weight.grad.any())  # the pass without gradients must not take them from the other
    passes = [2 if key(5, "self_cond", step) % 2 == 0 else 1 for step in range(40)]
    assert len(network.seen) == sum(passes)
    assert 50 < sum(passes) < 70
    assert not same(before, state_dict(network))
    broken = new_state(Mirror())
    for stop in (7, 8, 40):
        for record in loop(broken, cloud(), chosen, steps=40, self_condition=True):
            if record.step == stop:
                break
    assert same(state_dict(broken.network), state_dict(network))


def test_a_sampler_shows_the_last_estimate() -> None:
    network, eps = Mirror(gain=5.0), make(registry().of_kind(Prediction, "eps"), {})
    denoise = Denoiser(network, eps, spec(), self_condition=True)
    x = torch.randn(6, 2, generator=generator(2, "x"))
    first = denoise(x, schedule()[99])
    second = denoise(x, schedule()[50])
    denoise(x, schedule()[10])
    estimates = [seen[:, 2:] for seen, _ in network.seen]
    assert not estimates[0].any()
    assert bool((first.x_0.abs() > SELF_COND_RANGE).any())
    torch.testing.assert_close(estimates[1], first.x_0.clamp(-SELF_COND_RANGE, SELF_COND_RANGE))
    torch.testing.assert_close(estimates[2], second.x_0.clamp(-SELF_COND_RANGE, SELF_COND_RANGE))
    bounded = Denoiser(network, eps, spec(), self_condition=True, bounds=(-1.0, 1.0))
    found = bounded(x, schedule()[99])
    bounded(x, schedule()[50])
    torch.testing.assert_close(network.seen[-1][0][:, 2:], found.x_0.clamp(-1, 1))


class NoRoom(Backbone, name="no-room"):
    """Declares no room for the last estimate."""

    def build(self, spec: BackboneSpec) -> nn.Module:
        return nn.Identity()


def test_a_backbone_without_room_is_refused() -> None:
    asked = {"training": {"self_condition": True}}
    with pytest.raises(UsageError, match="--self-condition: the backbone no-room has no room for it"):
        build_recipe(asked, parts={"backbone": NoRoom()})
    assert build_recipe({}, parts={"backbone": NoRoom()})[Backbone] == NoRoom()
    for name in ("mlp", "unet"):
        assert registry().of_kind(Backbone, name).self_conditioning
        build_recipe({**asked, "backbone": {"name": name}})


def test_backbones_with_room_take_twice_the_channels() -> None:
    about = BackboneSpec(shape=(2,), out_channels=2, self_condition=True)
    assert about.in_channels == 4
    network = make(registry().of_kind(Backbone, "mlp"), {"width": 16, "depth": 1}).build(about)
    assert network(torch.randn(3, 4), torch.zeros(3)).shape == (3, 2)
    pixels = BackboneSpec(shape=(3, 8, 8), out_channels=3, self_condition=True)
    options = {"dim": 8, "dim_mults": (1, 2), "groups": 4}
    network = make(registry().of_kind(Backbone, "unet"), options).build(pixels)
    assert network(torch.randn(2, 6, 8, 8), torch.zeros(2)).shape == (2, 3, 8, 8)


# --- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(50, 16), (50, 50), (48, 16), (3, 16), (1, 4), (50, 1)])
def test_every_epoch_visits_every_item_once(n: int, size: int) -> None:
    batches = Batches(points(torch.randn(n, 2)), size, seed=4)
    steps = math.lcm(n, size) // size
    drawn = [batches.indices(step) for step in range(steps)]
    assert {len(indices) for indices in drawn} == {size}
    epochs = torch.cat(drawn).view(-1, n)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(n))
    if n > 10 and len(epochs) > 1:
        assert not torch.equal(epochs[0], epochs[1])
    for step in (steps - 1, 0, steps // 2):
        assert torch.equal(Batches(batches.samples, size, seed=4).indices(step), drawn[step])


def test_batches_hold_the_items_and_labels_of_their_indices() -> None:
    samples = cloud(labels=True)
    assert isinstance(samples.items, Tensor)
    batches = Batches(samples, 8, seed=1)
    for step, batch in zip(range(5, 9), batches.start(5), strict=False):
        indices = batches.indices(step)
        assert torch.equal(batch.items, samples.items[indices])
        assert batch.condition is not None
        assert torch.equal(batch.condition.label, indices % 3)
    assert not torch.equal(batches.indices(0), Batches(samples, 8, seed=2).indices(0))


class Source:
    """A map-style source that counts nothing and keeps nothing."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor([float(i), float(i) ** 2])


def test_a_source_gives_the_batches_of_memory() -> None:
    lazy = Samples(items=Source(), shape=(2,), labels=torch.arange(11))
    eager = Samples(items=torch.stack([Source()[i] for i in range(11)]), shape=(2,), labels=torch.arange(11))
    for workers in (0, 1):
        a = Batches(lazy, 4, seed=0, workers=workers).start(2)
        for left, right in zip(islice(a, 4), Batches(eager, 4, seed=0).start(2), strict=False):
            assert torch.equal(left.items, right.items)
            assert left.condition is not None
            assert right.condition is not None
            assert torch.equal(left.condition.label, right.condition.label)


def test_augmentation_is_a_function_of_the_step() -> None:
    def jitter(x: Tensor, random: torch.Generator) -> Tensor:
        return x + torch.rand(len(x), 1, generator=random)

    items = torch.zeros(20, 2)
    samples = Samples(items=items, shape=(2,), augment=jitter)
    straight = [b.items for b in islice(Batches(samples, 5, seed=0).start(0), 6)]
    late = [b.items for b in islice(Batches(samples, 5, seed=0).start(3), 3)]
    assert all(torch.equal(a, b) for a, b in zip(straight[3:], late, strict=True))
    assert not torch.equal(straight[0], straight[1])


def test_what_is_held_out_depends_on_the_items_alone() -> None:
    items = torch.arange(40.0).view(20, 2)
    ids = [f"{i}.png" for i in range(20)]
    kept, out = split(Samples(items=items, shape=(2,), item_ids=ids, labels=torch.arange(20)), 5)
    assert out is not None
    assert (len(kept), len(out)) == (15, 5)
    assert out.labels is not None
    assert out.item_ids is not None
    turned = Samples(items=items.flip(0), shape=(2,), item_ids=ids[::-1], labels=torch.arange(20).flip(0))
    again = split(turned, 5)[1]
    assert again is not None
    assert again.item_ids is not None
    assert set(again.item_ids) == set(out.item_ids)  # whatever their order
    assert [ids[i] for i in out.labels.tolist()] == list(out.item_ids)
    assert kept.labels is not None
    assert sorted(kept.labels.tolist() + out.labels.tolist()) == list(range(20))
    larger = split(Samples(items=items, shape=(2,), item_ids=ids), 6)[1]
    assert larger is not None
    assert set(out.item_ids) < set(larger.item_ids or ())
    for wrong in (20, 21):
        with pytest.raises(ValueError, match=f"cannot hold out {wrong} of 20 items"):
            split(Samples(items=items, shape=(2,)), wrong)
    assert split(kept, 0) == (kept, None)


def test_the_held_out_loss_is_the_same_every_time() -> None:
    network, samples = Net(), cloud()
    before = copy.deepcopy(network.first.weight)
    made = objective(data=DataFacts.of(samples))
    losses = [held_out_loss(new_state(network), samples, made, batch_size=50) for _ in range(3)]
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(network.first.weight, before)

    class Zero(Net):
        def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
            return torch.zeros_like(x)

    zero = held_out_loss(new_state(Zero()), samples, made, batch_size=50)
    assert zero.mean == pytest.approx(1.0, abs=5 * math.sqrt(2 / (50 * REPEATS * 2)))  # E eps^2


def test_data_are_a_function_of_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = (DatasetContext(seed=s).generator("u").initial_seed() for s in (0, 0, 1))
    assert a == b != c


class Torn:
    """Items of which the third can no longer be read."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> Tensor:
        if i == 2:
            raise ValueError("c.png: cannot be\ndecoded")
        return torch.zeros(2)


def test_items_that_cannot_be_read_are_no_bug() -> None:
    samples = Samples(items=Torn(), shape=(2,))
    assert len(samples.take([0, 1, 3])[0]) == 3
    with pytest.raises(DifftoolError, match=r"^c\.png: cannot be decoded$"):
        samples.take([1, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": torch.tensor([[0.0, math.nan]] * 3)}, "items hold NaN or infinite numbers"),
        ({"items": torch.full((3, 2), math.inf)}, "items hold NaN or infinite numbers"),
        ({"class_names": ("a", "x" * 1001)}, "class 1 has a name that a model file cannot hold"),
        ({"class_names": ("bad\udcff", "b")}, "class 0 has a name that a model file cannot hold"),
        ({"class_names": tuple(map(str, range(100_001)))}, "there are 100,001 classes"),
    ],
)
def test_data_that_no_file_could_describe_are_refused_before_training(changes: dict[str, Any], message: str) -> None:
    fine: dict[str, Any] = {"items": torch.eye(3)[:, :2], "shape": (2,), "labels": torch.tensor([0, 1, 0])}
    with pytest.raises(ValueError, match=message):
        DataFacts.of(Samples(**{**fine, **changes}))


def test_a_source_must_keep_its_word_about_shapes() -> None:
    with pytest.raises(ValueError, match=r"items are \(2,\), but the shape says \(3,\)"):
        DataFacts.of(Samples(items=Source(), shape=(3,)))
