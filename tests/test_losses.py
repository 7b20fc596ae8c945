"""Losses as components: those of papers against closed forms and loops written out, and those that break a contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paper_losses as papers
import pytest
import torch
from conftest import POINTS, Run
from test_testing import failure, rows
from test_training import Mirror, Net, T, by_hand, cloud, objective, same, settings, spec, state_dict
from torch import Tensor, nn

from difftool import Loss, Predict, Samples, TrainingBatch, component, hookimpl
from difftool.data.batches import Batches
from difftool.data.facts import DataFacts
from difftool.distributed import SINGLE, ProcessGroup, World
from difftool.errors import DifftoolError
from difftool.rng import generator
from difftool.runs import checkpoint
from difftool.runs.folder import RunFolder
from difftool.settings import Training
from difftool.testing import PluginManager, check_component
from difftool.testing import losses as laws
from difftool.testing.laws import Failed, Law
from difftool.training.auxiliary import build_auxiliary, trainable
from difftool.training.batch import Moment
from difftool.training.frozen import evaluating
from difftool.training.held_out import held_out_loss
from difftool.training.inputs import inputs_from
from difftool.training.loop import train
from difftool.training.loss import Objective
from difftool.training.metrics import Meter
from difftool.training.minimise import Predictor, batch_of, minimise
from difftool.training.state import TrainState
from difftool.training.step import StepResult

CPU = torch.device("cpu")
ADAM = component("optimizer", "adam")
KEY = (0, "loss", 0, 0)


def started(
    loss: Loss, network: nn.Module, chosen: Training, samples: Samples, **options: Any
) -> tuple[TrainState, Objective]:
    """The state of a run before its first step, and its objective."""
    made = objective(loss=loss, data=DataFacts.of(samples), **options)
    auxiliary = build_auxiliary(network, made, chosen.seed)
    return TrainState.new(network, chosen, CPU, optimizer=ADAM, auxiliary=auxiliary), made


def steps_of(state: TrainState, made: Objective, chosen: Training, samples: Samples, steps: int) -> list[StepResult]:
    assert isinstance(chosen.batch_size, int)
    return [*train(state, Batches(samples, chosen.batch_size, seed=chosen.seed), made, chosen, steps=steps)]


def trained(
    loss: Loss, *, network: nn.Module | None = None, steps: int = 20, **chosen: Any
) -> tuple[TrainState, list[StepResult]]:
    options = {name: chosen.pop(name) for name in ("prediction", "weighting", "self_condition") if name in chosen}
    given, samples = settings(**chosen), cloud()
    state, made = started(loss, network or Net(), given, samples, **options)
    return state, steps_of(state, made, given, samples, steps)


def batch_for(made: Objective, count: int = 9, seed: int = 0) -> Any:
    random = generator(seed, "batch")
    x_0, eps = torch.randn(2, count, 2, generator=random)
    return made.inputs(x_0, eps, torch.randint(T, (count,), generator=random), None)


def number(loss: Loss, network: Any, inputs: Any, made: Objective, auxiliary: nn.Module | None = None) -> Tensor:
    """The loss to minimise."""
    batch = batch_of(made, inputs, Moment(3, 10, KEY))
    return minimise(made, Predictor(made, network, inputs), batch, auxiliary)[0]


# --- the losses of papers ------------------------------------------------------------------------------------------


PASSING = [papers.Consistency(), papers.LearntUncertainty(), papers.Masked(), papers.Elsewhere(), papers.TwoLevels()]


@pytest.mark.parametrize("loss", PASSING, ids=lambda loss: loss.name)
def test_losses_of_papers_pass_the_laws(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("difftool.testing.common.HEAVY", ())  # this module imports torch
    check_component(loss)


def test_optimal_transport_passes_the_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    monkeypatch.setattr("difftool.testing.common.HEAVY", ())
    check_component(papers.MinibatchOT())


def test_minibatch_optimal_transport_pairs_each_step_at_the_least_cost() -> None:
    pytest.importorskip("scipy")
    samples, chosen = cloud(), settings(batch_size=6)
    plain, coupled = (
        inputs_from(3, Batches(samples, 6, seed=0), made, chosen, torch.contiguous_format)
        for made in (objective(data=DataFacts.of(samples), loss=loss) for loss in ("mse", papers.MinibatchOT()))
    )
    for _, before, after in zip(range(20), plain, coupled, strict=False):  # across the end of a block
        assert torch.equal(before.x_0, after.x_0)
        assert torch.equal(before.t, after.t)
        cost = torch.cdist(before.x_0, before.eps).square()
        orders = torch.tensor([*permutations(range(6))])
        best = orders[cost[torch.arange(6), orders].sum(1).argmin()]
        assert torch.equal(after.eps, before.eps[best])
        a, s = (table[after.t][:, None] for table in (spec().schedule.alpha.float(), spec().schedule.sigma.float()))
        torch.testing.assert_close(after.x_t, a * after.x_0 + s * after.eps)
        assert torch.equal(after.target, after.eps)


def test_reflow_learns_stored_pairs() -> None:
    """The loss of pairs that determine each other falls to 0, which that of random noise cannot (Liu et al., 2023).

    Here the noise of an item is twice the item, so the velocity eps - x_0 is x_0 = x_t/(alpha + 2 sigma).
    """
    plain, chosen = cloud(), settings(batch_size=25, ema=(0.0,))
    assert isinstance(plain.items, Tensor)
    stored = replace(plain, noise=2.0 * DataFacts.of(plain).scaling.to_model(plain.items))
    losses, held_out = [], []
    for samples in (plain, stored):
        state, made = started(component("loss", "mse"), Net(), chosen, samples, prediction="flow")
        results = steps_of(state, made, chosen, samples, 300)
        losses.append(float(results[-1].loss))
        held_out.append(held_out_loss(state, samples, made, batch_size=25).mean)
    last = results[-1].inputs
    torch.testing.assert_close(last.eps, 2.0 * last.x_0)
    torch.testing.assert_close(last.target, last.x_0)
    assert losses[0] > 0.2 > 0.02 > losses[1]
    assert held_out[0] > 0.2 > 0.02 > held_out[1]


def test_consistency_training_equals_the_algorithm_written_out() -> None:
    loss, chosen, steps = papers.Consistency(decay=0.7, gap=8), settings(ema=(0.0,)), 15
    state, results = trained(loss, steps=steps, ema=(0.0,))
    network, target = Net(), Net()
    optimizer = torch.optim.Adam(network.parameters(), lr=chosen.lr)
    alpha, sigma = spec().schedule.alpha.float(), spec().schedule.sigma.float()

    def estimate(net: nn.Module, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        a, s = alpha[t][:, None], sigma[t][:, None]
        x_t = a * x_0 + s * eps
        output: Tensor = net(x_t, t * 1000 / T)
        return (x_t - s * output) / a

    for result in results:
        x_0, eps, t = result.inputs.x_0, result.inputs.eps, result.inputs.t
        with torch.no_grad():
            aim = estimate(target, x_0, eps, (t - 8).clamp(min=0))
            aim[t < 8] = x_0[t < 8]
        error = (estimate(network, x_0, eps, t) - aim).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        with torch.no_grad():
            for average, weight in zip(target.parameters(), network.parameters(), strict=True):
                average.copy_(0.7 * average + 0.3 * weight)
        torch.testing.assert_close(result.loss, error.detach(), rtol=1e-4, atol=1e-6)
    assert state.auxiliary is not None
    for trained_part, expected in ((state.network, network), (state.auxiliary, target)):
        for a, b in zip(trained_part.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not any(weight.requires_grad for weight in state.auxiliary.parameters())
    assert len(trainable(state.auxiliary)) == 0


@pytest.mark.parametrize("weighting", ["none", "min-snr"])
def test_the_gradient_of_a_learnt_uncertainty_is_the_closed_form(weighting: str) -> None:
    """d/du of the mean of w e/exp(u) + u is the mean of 1 - w e/exp(u), and 0 where exp(u) is the mean of w e."""
    loss = papers.LearntUncertainty()
    made, network = objective(loss=loss, weighting=weighting), Net()
    inputs = batch_for(made, 64)
    inputs = made.inputs(inputs.x_0, inputs.eps, inputs.t % 4 * 20, None)  # four levels, each several times
    auxiliary = build_auxiliary(network, made, 0)
    assert isinstance(auxiliary, papers.Uncertainty)
    with torch.no_grad():
        auxiliary.u.copy_(torch.linspace(-1, 1, T))
        error = (network(inputs.net_input, inputs.time) - inputs.target).square().mean(1) * made.factor[inputs.t]
    number(loss, network, inputs, made, auxiliary).backward()
    expected = torch.zeros(T).index_add(0, inputs.t, (1 - error / auxiliary.u.detach()[inputs.t].exp()) / 64)
    torch.testing.assert_close(auxiliary.u.grad, expected, rtol=1e-4, atol=1e-6)
    optimizer = torch.optim.Adam(auxiliary.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        number(loss, network, inputs, made, auxiliary).backward()
        optimizer.step()
    for level in inputs.t.unique():
        mean = float(error[inputs.t == level].mean())
        assert float(auxiliary.u.detach()[level].exp()) == pytest.approx(mean, rel=1e-3)


def test_a_learnt_uncertainty_is_trained_with_the_network_and_saved() -> None:
    state, results = trained(papers.LearntUncertainty(), steps=20, accumulate=3, clip=1.0)
    assert isinstance(state.auxiliary, papers.Uncertainty)
    seen = torch.cat([result.inputs.t for result in results]).unique()
    moved = state.auxiliary.u.detach().nonzero().flatten()
    assert set(moved.tolist()) == set(seen.tolist())
    names = state.tensors()
    assert names["loss"].keys() == {"u"}
    assert len(state.optimizer.weights) == len([*Net().parameters()]) + 1


def test_a_masked_loss_has_no_gradient_where_the_mask_is() -> None:
    loss = papers.Masked()
    made = objective(loss=loss, data=DataFacts(shape=(3, 4, 4)))
    random = generator(0, "masked")
    x_0, eps = torch.randn(2, 5, 3, 4, 4, generator=random)
    inputs = made.inputs(x_0, eps, torch.arange(0, 100, 20), None)
    output = torch.randn(5, 3, 4, 4, generator=random).requires_grad_()
    number(loss, lambda *_: output, inputs, made).backward()
    shown = (x_0[:, -1:] > 0).expand_as(x_0).clone()
    shown[:, -1] = False
    assert output.grad is not None
    assert not output.grad[~shown].any()
    counts = shown.flatten(1).sum(1)
    expected = 2 * (output - inputs.target) * shown / counts[:, None, None, None] / 5
    torch.testing.assert_close(output.grad, expected.detach())


# --- what the core does for every loss ------------------------------------------------------------------------------


class Plain(Loss, name="plain"):
    """The squared error, of which the core knows nothing."""

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        return (predict(batch.x_t, batch.t, batch.cond) - batch.target).square().mean(1)


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, {}),
        ({"weighting": "min-snr", "prediction": "v"}, {}),
        ({"weighting": "min-snr"}, {"accumulate": 5, "clip": 0.05}),
    ],
)
def test_a_loss_of_a_stranger_trains_as_the_built_in_one(options: dict[str, str], chosen: dict[str, Any]) -> None:
    state, results = trained(Plain(), **options, **chosen)
    expected = by_hand(cloud(), settings(**chosen), 20, **options)
    for a, b in zip(state.network.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    for result in results:
        assert result.prediction is not None
        assert result.losses is not None
        error = (result.prediction - result.inputs.target).square().mean(1)
        torch.testing.assert_close(result.losses, error)


def test_a_loss_that_declares_it_gets_the_weight_of_each_item() -> None:
    class Weighted(Plain, name="weighted"):
        """The squared error, weighted here."""

        weighted = True

        def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
            return batch.weight * super().loss(predict, batch, auxiliary)

    (state, _), (expected, _) = (trained(loss, weighting="min-snr") for loss in (Weighted(), Plain()))
    assert same(state_dict(state.network), state_dict(expected.network))


def test_parts_of_a_batch_give_the_same_gradient() -> None:
    (state, _), (expected, _) = (trained(papers.Consistency(), steps=5, accumulate=accumulate) for accumulate in (4, 1))
    assert state.auxiliary is not None
    assert expected.auxiliary is not None
    for one, other in ((state.network, expected.network), (state.auxiliary, expected.auxiliary)):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_each_prediction_of_a_self_conditioned_step_has_an_estimate_of_its_own() -> None:
    network, target = Mirror(), Mirror()
    made = objective(loss=papers.Consistency(), self_condition=True, prediction="v")
    inputs = batch_for(made)
    predict = Predictor(made, network, inputs, self_cond=True)
    s = (inputs.t - 5).clamp(min=0)
    x_s = made.noised(inputs.x_0, inputs.eps, s)
    predict(x_s, s, None, network=target)
    predict(inputs.x_t, inputs.t, None)
    for net, x_t, t in ((target, x_s, s), (network, inputs.x_t, inputs.t)):
        (first, _), (second, _) = net.seen
        assert not first[:, 2:].any()
        a, sigma = (table[t].float()[:, None] for table in (spec().schedule.alpha, spec().schedule.sigma))
        output = net.layer(first).detach()
        torch.testing.assert_close(second[:, 2:], (a * x_t - sigma * output).clamp(-4, 4), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(second[:, :2], x_t)


def test_a_prediction_elsewhere_is_scaled_and_timed_for_its_level() -> None:
    made, seen = objective(prediction="edm", loss=Plain()), []

    def network(x: Tensor, time: Tensor, cond: object) -> Tensor:
        seen.append((x, time, cond))
        return x

    made.scale.copy_(torch.linspace(0.5, 2.0, T))
    made.unit_scale = False
    inputs = batch_for(made)
    predict = Predictor(made, network, inputs)
    t, cond = inputs.t.flip(0), torch.zeros(9)
    predict(made.noised(inputs.x_0, inputs.eps, t), t, cond)
    assert predict.output is None
    x_t = made.noised(inputs.x_0, inputs.eps, t)
    torch.testing.assert_close(seen[0][0], made.scale[t][:, None] * x_t)
    torch.testing.assert_close(seen[0][1], t * 1000 / T)
    assert seen[0][2] is cond
    predict(inputs.x_t, inputs.t, inputs.cond)
    assert predict.output is not None


def test_a_batch_knows_its_step_its_levels_and_its_random_numbers() -> None:
    made = objective(weighting="min-snr")
    inputs = batch_for(made)
    batch = batch_of(made, inputs, Moment(3, 10, KEY))
    assert (batch.step, batch.steps) == (3, 10)
    draws = [torch.rand(4, generator=batch.generator(*parts)) for parts in ((), (), ("a",))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.testing.assert_close(batch.noised(batch.t), batch.x_t)
    alpha, sigma = batch.levels(batch.t)
    assert alpha.shape == sigma.shape == (9, 1)
    torch.testing.assert_close(alpha * batch.x_0 + sigma * batch.eps, batch.x_t)
    ends = batch.levels(torch.tensor([-1, T - 1]))
    assert [table[0].item() for table in ends] == [1.0, 0.0]
    torch.testing.assert_close(torch.cat(ends)[[1, 3], 0], torch.tensor([made.alpha[-1], made.sigma[-1]]))
    for t in (-2, T):
        with pytest.raises(IndexError):
            batch.levels(torch.tensor([t]))
    snr = spec().schedule.snr[inputs.t].float()
    torch.testing.assert_close(batch.weight, snr.clamp(max=5) / snr)
    assert batch_of(made, inputs, None, weighted=False).weight.tolist() == [1.0] * 9
    with pytest.raises(RuntimeError, match="compiled as a whole"):
        _ = batch_of(made, inputs, None).step


class Counting(Plain, name="counting"):
    """The squared error, which remembers the steps that it has seen."""

    seen: str = ""
    log = []  # type: ignore[var-annotated]

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        self.log.append((batch.step, batch.steps, float(torch.rand((), generator=batch.generator()))))
        return super().loss(predict, batch, auxiliary)


def test_steps_are_counted_and_each_part_has_random_numbers_of_its_own() -> None:
    Counting.log.clear()
    trained(Counting(), steps=3, accumulate=2)
    assert [row[:2] for row in Counting.log] == [(step, 3) for step in (0, 0, 1, 1, 2, 2)]
    assert len({row[2] for row in Counting.log}) == 6


class Averaged(nn.Module):
    """A module that only some steps train, with a part that is frozen in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Dropout().eval()


def test_evaluation_gives_each_part_its_own_mode_back() -> None:
    network, auxiliary = Net(), Averaged()
    with evaluating(network, None, auxiliary):
        assert not any(part.training for part in (network, auxiliary, auxiliary.frozen))
    assert [part.training for part in (network, auxiliary, auxiliary.frozen)] == [True, True, False]


def test_the_held_out_loss_is_that_of_the_loss_at_its_step() -> None:
    pytest.importorskip("scipy")
    samples, chosen = cloud(), settings()
    for loss in (papers.Consistency(), papers.MinibatchOT(), Counting()):
        state, made = started(loss, Net(), chosen, samples)
        state.step = 7
        Counting.log.clear()
        values = [held_out_loss(state, samples, made, batch_size=20, steps=9) for _ in range(2)]
        assert values[0] == values[1]
        assert values[0].mean is not None
        assert state.network.training
        assert {row[:2] for row in Counting.log} <= {(7, 9)}
    plain, coupled = (
        held_out_loss(state, samples, made, batch_size=20)
        for state, made in (started(loss, Net(), chosen, samples) for loss in (Plain(), papers.MinibatchOT()))
    )
    assert plain != coupled


def test_two_processes_average_what_the_auxiliary_receives() -> None:
    """A group of one leaves gradients alone; tests/test_processes.py has two."""
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    SINGLE.average_gradients([weight])
    ProcessGroup(World()).average_gradients([weight])
    assert weight.grad.tolist() == [1.0, 2.0]


# --- metrics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [Plain(), papers.Elsewhere(), papers.Consistency()])
def test_a_row_has_the_losses_of_any_loss(loss: Loss) -> None:
    samples, chosen = cloud(), settings()
    state, made = started(loss, Net(), chosen, samples)
    meter = Meter(made, 16)
    results = steps_of(state, made, chosen, samples, 8)
    for result in results:
        meter.add(result)
    row = meter.row(results[-1], 1.0)
    losses = torch.cat([result.losses for result in results if result.losses is not None])
    assert row["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert row["weighted_loss"] == pytest.approx(row["loss"], rel=1e-5)
    t = torch.cat([result.inputs.t for result in results])
    for quartile, value in enumerate(row["loss_quartiles"]):
        assert value == pytest.approx(float(losses[t * 4 // T == quartile].mean()), rel=1e-4)
    if isinstance(loss, papers.Elsewhere):
        assert row["eps_loss"] is None
        assert (row["prediction_mean"], row["prediction_var"]) == (None, None)
    else:
        errors = [(r.prediction - r.inputs.eps).square().mean(1) for r in results if r.prediction is not None]
        assert row["eps_loss"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-4)


# --- exact resume ---------------------------------------------------------------------------------------------------


PAPERS = (*POINTS, "--threads", 1, "--held-out", 30, "--checkpoint-every", 5, "--loss")


@pytest.fixture
def paper_losses(plugin_manager: PluginManager) -> None:
    assert not plugin_manager.register(papers.PLUGIN).problems


@pytest.mark.usefixtures("paper_losses")
@pytest.mark.parametrize("name", ["consistency", "learnt-uncertainty", "minibatch-ot", "elsewhere"])
def test_a_resumed_run_equals_an_unbroken_one(run: Run, name: str) -> None:
    if name == "minibatch-ot":
        pytest.importorskip("scipy")
    assert run("train", *PAPERS, name, "--steps", 20, "--out", "straight").code == 0
    assert run("train", *PAPERS, name, "--steps", 7, "--out", "broken").code == 0
    outcome = run("train", "--resume", "broken", "--steps", 20)
    assert outcome.code == 0, outcome.err
    (ours, _), (theirs, _) = (checkpoint.load(RunFolder(Path(r)).saved_states()[0]) for r in ("broken", "straight"))
    assert ours.keys() == theirs.keys()
    if name in ("consistency", "learnt-uncertainty"):
        assert any(key.startswith("loss.") for key in ours)
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    rows = [json.loads(line) for line in Path("broken/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert run("sample", "broken", "-n", 4, "--out", "x.npy").code == 0


@pytest.mark.usefixtures("paper_losses")
def test_a_state_without_its_auxiliary_is_refused(run: Run) -> None:
    """A state must have each tensor of the loss, and no other."""
    changes: dict[str, Callable[[dict[str, Tensor]], object]] = {
        "consistency": lambda tensors: tensors.pop(next(key for key in tensors if key.startswith("loss."))),
        "mse": lambda tensors: tensors.update({"loss.u": torch.zeros(3)}),
    }
    for loss, change in changes.items():
        assert run("train", *PAPERS, loss, "--steps", 5, "--keep", 1, "--out", loss).code == 0
        path = RunFolder(Path(loss)).saved_states()[0]
        tensors, document = checkpoint.load(path)
        change(tensors)
        checkpoint.save(path, tensors, document)
        refused = run("train", "--resume", loss, "--steps", 9)
        assert refused.code == 1
        assert "its loss does not fit" in refused.error


@pytest.mark.usefixtures("paper_losses")
def test_a_model_is_sampled_where_its_loss_is_not_installed(run: Run, tmp_path: Path) -> None:
    assert run("train", *PAPERS, "consistency", "--steps", 3, "--out", "r").code == 0
    with PluginManager().active():
        assert run("sample", "r", "-n", 4, "--out", "x.npy").code == 0
        refused = run("train", "--resume", "r", "--steps", 6)
    assert refused.code != 0
    assert "consistency" in refused.error


@pytest.mark.usefixtures("paper_losses")
def test_the_search_for_a_batch_size_leaves_the_auxiliary_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("difftool.training.batch_size.LARGEST", 4)
    found = run("train", *PAPERS, "consistency", "--steps", 0, "--batch-size", "auto", "--out", "r")
    assert found.code == 0, found.err
    tensors, _ = checkpoint.load(RunFolder(Path("r")).saved_states()[0])
    weights = {key: tensor for key, tensor in tensors.items() if key.startswith("network.")}
    assert all(torch.equal(tensor, tensors[key.replace("network.", "loss.", 1)]) for key, tensor in weights.items())


# --- broken contracts -----------------------------------------------------------------------------------------------


def raising(error: Exception) -> Callable[..., Any]:
    def method(*_: object) -> Any:
        raise error

    return method


def shared(self: Loss, spec: Any) -> nn.Module:
    return nn.ModuleList([spec.network])


class Extra(nn.Linear):
    """A module whose state is more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}


def in_place(self: Loss, predict: Predict, batch: TrainingBatch, auxiliary: object) -> Tensor:
    error = (predict(batch.x_t, batch.t, batch.cond) - batch.target).exp()
    return (error.square() + error.mul_(2.0)).mean(1)


def of(**methods: Any) -> type[Loss]:
    """A loss like `Plain` but for these methods."""
    return type(Loss)("Broken", (Plain,), {"__doc__": "Breaks its contract.", **methods}, name="broken")


ITEMS = "not a loss for each item, (64,)"
BROKEN: dict[str, tuple[type[Loss], str]] = {
    "a mean": (of(loss=lambda s, p, b, a: Plain.loss(s, p, b, a).mean()), f"loss() returned () float32, {ITEMS}"),
    "a map": (of(loss=lambda s, p, b, a: p(b.x_t, b.t, b.cond)), f"loss() returned (64, 2) float32, {ITEMS}"),
    "a number": (of(loss=lambda *_: 1.0), f"loss() returned a float, {ITEMS}"),
    "nothing": (of(loss=lambda *_: None), f"loss() returned None, {ITEMS}"),
    "a KeyError": (of(loss=raising(KeyError("x"))), "loss broken failed: KeyError: 'x'"),
    "a refusal": (of(loss=raising(ValueError("points\nonly"))), "loss broken: points only"),
    "no gradient": (of(loss=lambda s, p, b, a: b.x_0.mean(1)), "its losses do not depend on the network"),
    "no mean": (of(mean_loss=Plain.loss), "mean_loss() returned (64,) float32, not a scalar"),
    "a mean elsewhere": (
        of(mean_loss=lambda s, p, b, a: p(b.noised(b.t), b.t, b.cond).mean()),
        "mean_loss() makes no prediction at batch.x_t",
    ),
    "a wrong x_t": (
        of(loss=lambda s, p, b, a: p(b.x_t[:, :1], b.t, b.cond)),
        "predict() takes x_t (B, 2) and t (B,), not (64, 1) and (64,)",
    ),
    "a wrong t": (
        of(loss=lambda s, p, b, a: p(b.x_t, b.t[:3], b.cond)),
        "predict() takes x_t (B, 2) and t (B,), not (64, 2) and (3,)",
    ),
    "a change in place": (
        of(loss=in_place),
        "the backward pass of loss broken and backbone mlp failed: RuntimeError: one of the",
    ),
    "a level below the first": (of(loss=lambda s, p, b, a: p.x_0(b.x_t, b.t - T, b.cond).mean(1)), "out of range"),
    "noise of no level": (of(loss=lambda s, p, b, a: p(b.noised(-1 - b.t), b.t, b.cond).mean(1)), "out of range"),
    "no pairing": (of(pair=lambda *_: None), "pair() returned None, not a Pairing"),
    "short pairs": (
        of(pair=lambda s, p: replace(p, eps=p.eps[:3])),
        "pair() returned eps as (3, 2) float32, not (64, 2) float32",
    ),
    "float levels": (
        of(pair=lambda s, p: replace(p, t=p.t.float())),
        "pair() returned t as (64,) float32, not (64,) int64",
    ),
    "a failing pair": (of(pair=raising(IndexError("y"))), "loss broken failed: IndexError: y"),
    "no module": (of(build=lambda *_: "teacher"), "loss broken built a str, not a module"),
    "a failing build": (of(build=raising(OSError("it is gone"))), "loss broken failed: OSError: it is gone"),
    "a refusing build": (of(build=raising(ValueError("needs images"))), "loss broken: needs images"),
    "the network itself": (of(build=shared), "its module holds weights of the trained network; copy.deepcopy"),
    "more than tensors": (of(build=lambda *_: Extra(2, 2)), "_extra_state of its module is no tensor"),
    "a failing after_step": (of(after_step=raising(TypeError("z"))), "loss broken failed: TypeError: z"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_loss_that_breaks_its_contract_is_one_line_before_anything_is_trained(
    run: Run, plugin_manager: PluginManager, what: str
) -> None:
    loss, words = BROKEN[what]
    assert not plugin_manager.register(SimpleNamespace(difftool_losses=hookimpl(lambda: [loss]))).problems
    outcome = run("train", *POINTS, "--steps", 5, "--loss", "broken", "--out", "r")
    assert outcome.code == (2 if what == "a refusing build" else 1), outcome.err
    assert words in outcome.error
    assert "broken" in outcome.error
    assert RunFolder(Path("r")).saved_states() == []


def test_a_variance_needs_a_prediction_at_the_batchs_own_levels(run: Run, plugin_manager: PluginManager) -> None:
    assert not plugin_manager.register(papers.PLUGIN).problems
    words = (*POINTS, "--steps", 3, "--learn-variance", "--loss")
    refused = run("train", *words, "elsewhere", "--out", "r")
    assert refused.code == 1
    assert "loss elsewhere: it makes no prediction at batch.x_t, which --learn-variance needs" in refused.error
    for loss in ("consistency", "learnt-uncertainty", "huber"):
        assert run("train", *words, loss, "--out", f"r-{loss}").code == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_computed_in_float32(precision: str) -> None:
    class Dtypes(Plain, name="dtypes"):
        """Remembers types."""

        def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
            output = predict(batch.x_t, batch.t, batch.cond)
            seen.append((output.dtype, torch.is_autocast_enabled("cpu")))
            return (output - batch.target).square().mean(1)

    seen: list[tuple[torch.dtype, bool]] = []
    trained(Dtypes(), steps=1, precision=precision)
    assert seen == [(torch.float32, False)]


def test_a_mean_that_predicts_elsewhere_too_is_found_by_the_metrics() -> None:
    class Both(Plain, name="both"):
        """Two predictions, of which the metrics know one."""

        def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
            t = (batch.t - 1).clamp(min=0)
            return super().loss(predict, batch, auxiliary) + predict(batch.noised(t), t, batch.cond).mean(1)

        def mean_loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
            return self.loss(predict, batch, auxiliary).mean()

    state, results = trained(Both(), steps=2)
    meter = Meter(objective(loss=Both()), 16)
    meter.add(results[-1])
    with pytest.raises(DifftoolError, match="loss both: it overrides mean_loss"):
        meter.row(results[-1], 1.0)
    assert state.step == 2


# --- laws ----------------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """A module whose count is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0


def count_up(self: Loss, network: nn.Module, auxiliary: Any) -> None:
    auxiliary.steps += 1


def scaled_by_count(self: Loss, predict: Predict, batch: TrainingBatch, auxiliary: Any) -> Tensor:
    return Plain.loss(self, predict, batch, auxiliary) * (1 + auxiliary.steps)  # type: ignore[arg-type]


def noisy(self: Loss, predict: Predict, batch: TrainingBatch, auxiliary: object) -> Tensor:
    return (predict(batch.x_t, batch.t, batch.cond) - torch.randn_like(batch.x_0)).square().flatten(1).mean(1)


def relative(self: Loss, predict: Predict, batch: TrainingBatch, auxiliary: object) -> Tensor:
    losses = (predict(batch.x_t, batch.t, batch.cond) - batch.target).square().flatten(1).mean(1)
    return losses / losses.detach().mean()


def overwriting(self: Loss, predict: Predict, batch: TrainingBatch, auxiliary: object) -> Tensor:
    return predict(batch.x_t, batch.t, batch.cond).sub(batch.target.mul_(0.5)).square().flatten(1).mean(1)


def square(self: Loss, predict: Predict, batch: TrainingBatch, auxiliary: object) -> Tensor:
    return (predict(batch.x_t, batch.t, batch.cond) - batch.target).square().flatten(1).mean(1)


FAILING = {
    laws.returns_the_loss_of_each_item: {
        "from nan to nan": of(loss=lambda s, p, b, a: square(s, p, b, a).sub(1e9).sqrt())(),
    },
    laws.trains_the_network: {
        "the gradient in the network has the norm 0.0": of(loss=lambda s, p, b, a: 0.0 * square(s, p, b, a))(),
        "weight receives no gradient; requires_grad_(False)": of(loss=square, build=lambda *_: nn.Linear(2, 2))(),
    },
    laws.is_reproducible: {"two calls give losses that differ by": of(loss=noisy)()},
    laws.treats_items_independently: {"the loss of an item changes by": of(loss=relative)()},
    laws.changes_no_tensor_in_place: {"it changes eps, target": of(loss=overwriting)()},
    laws.pairs_reproducibly: {
        "different pairs": of(loss=square, pair=lambda s, p: replace(p, eps=torch.randn_like(p.eps)))(),
    },
    laws.agrees_with_its_mean: {
        "mean_loss is": of(loss=square, mean_loss=lambda s, p, b, a: 2 * square(s, p, b, a).mean())(),
    },
    laws.applies_the_weight: {"three times the weight changes nothing": of(loss=square, weighted=True)()},
    laws.resumes_exactly: {
        "everything that changes must be a parameter or a buffer": of(
            loss=scaled_by_count, build=lambda *_: Restless(), after_step=count_up
        )(),
    },
}


@pytest.mark.parametrize(("component", "law", "words"), rows(FAILING))
def test_losses_that_fail_a_law(component: Loss, law: Law, words: str) -> None:
    assert words in failure(component, law)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            of(loss=raising(ValueError("tokens alone"))),
            "it accepts none of the shapes that were tried: 2: tokens alone; 3x8x8: tokens alone",
        ),
        (of(loss=raising(KeyError("x"))), "2: raised KeyError: 'x'"),
        (of(loss=lambda *_: None), "loss() returned None, not a loss for each item, (6,)"),
    ],
)
def test_a_loss_that_cannot_be_tried_fails_in_one_line(loss: type[Loss], words: str) -> None:
    with pytest.raises(Failed) as failed:
        laws.prepare(loss())
    assert words in str(failed.value)


def test_a_loss_of_images_is_tried_with_images() -> None:
    def images(self: Loss, predict: Predict, batch: TrainingBatch, auxiliary: object) -> Tensor:
        if batch.x_0.ndim != 4:
            raise ValueError("needs images")
        return square(self, predict, batch, auxiliary)

    assert laws.prepare(of(loss=images)()).shape == (3, 8, 8)
