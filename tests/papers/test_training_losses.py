"""Losses in examples/papers: couplings, consistency training, learned uncertainty and alignment, beside formulas."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from at_work import PAPERS, Formula, at_work, draws, numbers, script, small
from conftest import IMAGES, POINTS, Run
from torch import Tensor, nn

import difftool
from difftool import BackboneSpec
from difftool.training.minimise import Predictor

ot = script("minibatch_ot")
training = script("consistency_training")
edm2 = script("edm2")
repa = script("repa")
T = 200
FLOW, VE, LINEAR = (difftool.component("schedule", name).build(T) for name in ("flow", "ve", "linear"))


# --- minibatch optimal transport -------------------------------------------------------------------------------------


def test_minibatch_ot_finds_the_cheapest_of_all_assignments() -> None:
    pytest.importorskip("scipy")
    work = at_work(ot.MinibatchOT(), FLOW, small())
    for seed in range(5):
        x_0, eps, t = draws(6, levels=T, seed=seed)
        inputs = work.inputs(x_0, eps, t)
        costs = {order: float((x_0 - eps[list(order)]).square().sum()) for order in permutations(range(6))}
        assert torch.equal(inputs.eps, eps[list(min(costs, key=costs.__getitem__))])
        assert torch.equal(inputs.x_0, x_0)
        assert min(costs.values()) < costs[tuple(range(6))]


def test_minibatch_ot_pairs_numbers_in_their_order() -> None:
    """On a line the optimal coupling is the monotone one."""
    pytest.importorskip("scipy")
    work = at_work(ot.MinibatchOT(), FLOW, small((1,)), shape=(1,))
    x_0, eps, t = draws(100, (1,), levels=T)
    inputs = work.inputs(x_0, eps, t)
    assert torch.equal(inputs.x_0[:, 0].argsort(), inputs.eps[:, 0].argsort())


def test_minibatch_ot_keeps_the_loss_of_flow_matching() -> None:
    pytest.importorskip("scipy")
    work = at_work(ot.MinibatchOT(), FLOW, small(), prediction="flow")
    x_0, eps, t = draws(16, levels=T)
    eps = work.inputs(x_0, eps, t).eps
    u = ((t + 1) / T)[:, None]
    scaled = ((1 - u) * x_0 + u * eps) / torch.hypot(1 - u, u)
    expected = (work.network(scaled, t * 1000 / T, None) - (eps - x_0)).square().mean(1)
    torch.testing.assert_close(work.losses(x_0, eps, t), expected)


# --- consistency training --------------------------------------------------------------------------------------------


def test_consistency_training_has_the_schedules_of_appendix_c() -> None:
    loss = training.ConsistencyTraining(s_0=2, s_1=150)
    for k in (0, 1, 100, 500, 999, 1000):
        n = math.ceil(math.sqrt(k / 1000 * (151**2 - 2**2) + 2**2) - 1) + 1
        assert loss.levels(k, 1000) == n
    assert (loss.levels(0, 1000), loss.levels(1000, 1000)) == (2, 151)
    with pytest.raises(difftool.UsageError, match="infinite at the last level"):
        at_work(loss, FLOW, small())
    work = at_work(training.ConsistencyTraining(s_0=2, mu_0=0.9), VE, small())
    for step in (0, 300, 900):
        work.losses(*draws(4, levels=T), step=step, steps=1000)
        before = [weight.clone() for weight in work.auxiliary.network.parameters()]
        with torch.no_grad():
            for weight in work.network.parameters():
                weight.add_(1.0)
        work.after_step()
        mu = math.exp(2 * math.log(0.9) / loss.levels(step, 1000))
        for old, average, weight in zip(
            before, work.auxiliary.network.parameters(), work.network.parameters(), strict=True
        ):
            torch.testing.assert_close(average, mu * old + (1 - mu) * weight)


def test_consistency_training_compares_neighbouring_levels_of_the_same_noise() -> None:
    """The loss is that of algorithm 3, transcribed; its gradient passes through the noisier estimate alone."""
    work = at_work(training.ConsistencyTraining(s_0=2, s_1=20), VE, small(), prediction="edm", std=0.5)
    with torch.no_grad():
        for weight in work.network.parameters():
            weight.mul_(1.1)
    x_0, eps, t = draws(32, levels=T)
    losses = work.losses(x_0, eps, t, step=9, steps=10)
    N = work.objective.loss.levels(9, 10)  # type: ignore[attr-defined]
    even = (0.002 ** (1 / 7) + torch.arange(N) / (N - 1) * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    rows = torch.searchsorted(VE.sigma.float(), even * (1 - 1e-5)).clamp(max=T - 1)

    def f(network: nn.Module, row: Tensor) -> Tensor:
        """The estimate with the skip connection of EDM (Karras et al., 2022, table 1)."""
        sigma = numbers(VE.sigma, row)
        x = x_0 + sigma * eps
        c_in, c_skip = 1 / torch.sqrt(sigma**2 + 0.25), 0.25 / (sigma**2 + 0.25)
        c_out = -sigma * 0.5 / torch.sqrt(sigma**2 + 0.25)  # difftool's edm predicts the negative
        return c_skip * x + c_out * -network(c_in * x, row * 1000 / T, None)

    n = t * (N - 1) // T
    with torch.no_grad():
        target = f(work.auxiliary.network, rows[n])
    expected = (f(work.network, rows[n + 1]) - target).square().mean(1)
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-5)
    ours, theirs = (
        torch.autograd.grad(value.mean(), list(work.network.parameters()), retain_graph=True)
        for value in (losses, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-5)


def test_consistency_training_leaves_clean_items_as_they_are() -> None:
    """f(x, t) = x at the cleanest level, whatever the network says: the boundary condition."""
    work = at_work(training.ConsistencyTraining(), VE, small(), prediction="edm", std=0.5)
    x_0, eps, t = draws(8, levels=1)
    inputs = work.inputs(x_0, eps, t)
    estimate = Predictor(work.objective, work.network, inputs).x_0(inputs.x_t, t, None)
    assert float((estimate - inputs.x_t).abs().max()) < 0.01
    assert float((work.network(x_0, 0.0 * t, None)).abs().max()) > 0.1


def test_multistep_sampling_adds_fresh_noise() -> None:
    x_0, z = torch.randn(5, 2), torch.randn(5, 2)
    levels = [difftool.Level(9.0, 0.0, 1.0), difftool.Level(5.0, 0.6, 0.8), difftool.CLEAN]
    first, last = training.Multistep().sample(lambda *_: difftool.Estimate(x_0, x_0), x_0, levels, lambda _: z)
    torch.testing.assert_close(first.x, 0.6 * x_0 + 0.8 * z)
    torch.testing.assert_close(last.x, x_0)


GAUSSIAN = (
    *("--dataset", "gaussian-mixture", "--dataset.components", 1, "--dataset.n", 5000, "--backbone.width", 32),
    *("--backbone.depth", 3, "--preview-every", 0, "--schedule", "ve", "--prediction", "edm"),
)


@pytest.mark.slow
def test_consistency_training_draws_a_gaussian_in_one_step(run: Run) -> None:
    """One step gives samples of the deviation of the data, where one step of the denoiser gives their mean."""
    found = {}
    for loss, plugin in (("consistency-training", ("--plugin", PAPERS / "consistency_training.py")), ("mse", ())):
        options = ("--loss.s-0", 10, "--loss.s-1", 20) if plugin else ()  # few steps train few levels
        steps = (*options, "--steps", 1500, "--ema", 0.99, "--out", loss)
        done = run("train", *plugin, *GAUSSIAN, "--loss", loss, *steps)
        assert done.code == 0, done.err
        model = difftool.load(loss)
        found[loss] = model.sample(2000, steps=1, batch_size=2000).std(0) / torch.tensor(model.data.scaling.scale)
    print(found)
    assert float((found["consistency-training"] - 1).abs().max()) < 0.15
    assert float(found["mse"].max()) < 0.3


# --- EDM2 ------------------------------------------------------------------------------------------------------------


def test_edm2_weighs_errors_by_eq_14() -> None:
    """The loss is w e/exp(u) + u with lambda(sigma) = (sigma^2 + sd^2)/(sigma sd)^2 of the denoiser's error."""
    work = at_work(edm2.LearnedUncertainty(), VE, small(), prediction="edm", weighting="edm", std=0.5)
    nn.init.normal_(work.auxiliary.linear.weight)
    x_0, eps, t = draws(32, levels=T)
    sigma = VE.sigma[t].float()
    angles = torch.outer(sigma.log() / 4, work.auxiliary.frequencies) + work.auxiliary.phases
    features = math.sqrt(2) * torch.cos(2 * math.pi * angles)  # of unit magnitude, as MP-Fourier has them
    u = (features @ work.auxiliary.linear.weight[0]) / math.sqrt(128)
    inputs = work.inputs(x_0, eps, t)
    D = Predictor(work.objective, work.network, inputs).x_0(inputs.x_t, t, None)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    expected = weight * (D - x_0).square().mean(1) / u.exp() + u
    torch.testing.assert_close(work.losses(x_0, eps, t), expected, rtol=2e-3, atol=1e-3)


def test_edm2_learns_the_logarithm_of_the_loss_of_each_level() -> None:
    """u ends at ln(w e). Of the prediction 2 x_t of eps, the error e is (1 - 2 sigma)^2 + (2 alpha)^2 = 5 - 4 sigma."""
    network = Formula(lambda x, t, p: 2 * x + p, T)
    network.p.requires_grad_(False)
    work = at_work(edm2.LearnedUncertainty(), LINEAR, network, prediction="eps", weighting="p2")
    adam = torch.optim.Adam(work.auxiliary.parameters(), lr=0.05)
    for step in range(500):
        adam.param_groups[0]["lr"] = 0.05 if step < 300 else 0.005
        adam.zero_grad()
        work.losses(*draws(512, levels=T, seed=step)).mean().backward()
        adam.step()
    for row in (3, 30, 80, 150, 199):
        alpha, sigma = float(LINEAR.alpha[row]), float(LINEAR.sigma[row])
        u = work.auxiliary(torch.tensor([math.log(sigma / alpha) / 4]))
        assert float(u) == pytest.approx(math.log(sigma**2 * (5 - 4 * sigma)), abs=0.1)  # w = 1/(1 + SNR) = sigma^2


def test_edm2_falls_and_averages_as_the_paper_does(run: Run) -> None:
    """The rate is lr/sqrt(max(step/t_ref, 1)), and a length between the two is reconstructed from the snapshots."""
    rest = ("--lr-schedule", "inverse-sqrt", "--lr-decay-steps", 10, "--warmup", 0, "--lr", 0.01)
    averages = ("--ema-lengths", "0.05,0.10")
    loss = ("--loss", "learned-uncertainty", "--schedule", "ve", "--prediction", "edm", "--weighting", "edm")
    plugin = ("--plugin", PAPERS / "edm2.py")
    done = run("train", *plugin, *POINTS, *loss, *rest, *averages, "--steps", 40, "--out", "r")
    assert done.code == 0, done.err
    for row in map(json.loads, Path("r/metrics.jsonl").read_text().splitlines()):
        assert row["lr"] == pytest.approx(0.01 / math.sqrt(max((row["step"] - 1) / 10, 1)), rel=0.06)
    assert run("sample", "r", "--ema-length", 0.08, "-n", 4, "--steps", 2, "--out", "x.npy").code == 0


# --- representation alignment ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen encoder of images 3x8x8, with 4 x 4 patches of 6 numbers."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt2"
    network, batch = nn.Sequential(nn.Conv2d(3, 6, 2, stride=2), nn.Tanh()), torch.export.Dim("batch")
    program = torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


def unet() -> Any:
    torch.manual_seed(0)
    spec = BackboneSpec(shape=(3, 8, 8), out_channels=3)
    return difftool.component("backbone", "unet", dim=8, dim_mults=(1, 2), groups=4).build(spec)


def test_repa_adds_the_cosine_of_projected_patches(encoder: Path) -> None:
    """The loss is the velocity's minus lambda times the mean cosine, written out patch by patch."""
    loss = repa.REPA(encoder=encoder, layer="downs.1", weight=0.5, width=16)
    work = at_work(loss, FLOW, unet(), prediction="flow", shape=(3, 8, 8))
    x_0, eps, t = draws(4, (3, 8, 8), levels=T)
    losses = work.losses(x_0, eps, t)
    inputs, hidden = work.inputs(x_0, eps, t), list[Tensor]()
    handle = work.network.get_submodule("downs.1").register_forward_hook(lambda _m, _i, output: hidden.append(output))
    prediction = work.network(inputs.net_input, inputs.time, None)
    handle.remove()
    y = torch.export.load(encoder).module()(x_0)
    cosines = torch.zeros(4)
    for row in range(4):
        for column in range(4):
            h = work.auxiliary.h(hidden[0][:, :, row, column])
            z = y[:, :, row, column]
            cosines += (h * z).sum(1) / h.norm(dim=1) / z.norm(dim=1) / 16
    expected = (prediction - (eps - x_0)).square().flatten(1).mean(1) - 0.5 * cosines
    torch.testing.assert_close(losses, expected)


def test_repa_moves_the_layers_before_its_own_and_the_projection(encoder: Path) -> None:
    """Beside the plain loss, its gradient differs up to the layer and in no layer behind it; nothing is left behind."""
    found = []
    for weight in (0.0, 2.0):
        work = at_work(
            repa.REPA(encoder=encoder, layer="downs.1", weight=weight, width=16),
            FLOW,
            unet(),
            prediction="flow",
            shape=(3, 8, 8),
        )
        work.losses(*draws(4, (3, 8, 8), levels=T)).mean().backward()
        found.append({name: p.grad for name, p in work.network.named_parameters()})
    plain, aligned = found
    changed = {name for name in plain if not torch.equal(plain[name], aligned[name])}
    assert any(name.startswith("downs.0") for name in changed)
    assert any(name.startswith("downs.1") for name in changed)
    assert not {name for name in changed if name.startswith(("ups", "last", "middle", "output"))}
    assert all(not module._forward_hooks for module in work.network.modules())
    assert {name.partition(".")[0] for name in work.auxiliary.state_dict()} == {"h"}


def test_repa_refuses_layers_of_another_size(encoder: Path) -> None:
    with pytest.raises(difftool.UsageError, match=r"downs\.0 has 64 patches, and the encoder 16"):
        at_work(repa.REPA(encoder=encoder, layer="downs.0", width=16), FLOW, unet(), shape=(3, 8, 8))


@pytest.mark.slow
def test_repa_aligns_hidden_states_in_training(run: Run, encoder: Path) -> None:
    """After a short run hidden states of new images predict the encoder's, and a resumed run goes on."""
    loss = ("--loss", "repa", "--loss.encoder", encoder, "--loss.layer", "downs.1", "--loss.width", 32)
    train = ("train", "--plugin", PAPERS / "repa.py", *IMAGES, *loss, "--schedule", "flow", "--lr", 3e-3)
    done = run(*train, "--dataset.n", 512, "--steps", 200, "--batch-size", 32, "--out", "r")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    done = run("train", "--plugin", PAPERS / "repa.py", "--resume", "r", "--steps", 205)
    assert done.code == 0, done.err
