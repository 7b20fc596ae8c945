"""Averages of the weights: their maths, their files, and averages of other lengths made from snapshots."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import POINTS, Outcome, Run, tree
from torch import Tensor, nn

import difftool
from difftool.options import make
from difftool.runs import checkpoint
from difftool.runs.averages import canonical, file_of, files_in
from difftool.runs.folder import RunFolder
from difftool.runs.power import decay_at, gamma_of, inner_products, nearest_sum
from difftool.sampling.posthoc import reconstruct
from difftool.settings import LONGEST, SHORTEST, Training
from difftool.training import vectors
from difftool.training.ema import Average, Averages, warming_decay
from difftool.training.vectors import join


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


# --- averages while training -----------------------------------------------------------------------------------------


class Net(nn.Module):
    """Weights of several shapes, a convolution in channels-last, a frozen weight and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def averages_of(network: nn.Module, **settings: object) -> Averages:
    return Averages.of(network, make(Training, settings))


def exponential(values: Sequence[float], cap: float) -> float:
    """The average by its definition."""
    average = math.nan
    for n, value in enumerate(values):
        decay = min(cap, 1 - (1 + n) ** -0.75)
        average = value if n == 0 else decay * average + (1 - decay) * value
    return average


def profile(length: float, t: int) -> np.ndarray:
    """The weights of steps 1 to t in a power-function average: the integrals of its profile over each step."""
    power = gamma_of(length) + 1
    return np.diff((np.arange(t + 1) / t) ** power)


def test_the_first_update_copies_the_weights_and_the_buffers() -> None:
    network = Net()
    averages = averages_of(network, ema=(0.999, 0.5), ema_lengths=(0.05,))
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.add_(3.0)
    averages.update()
    assert averages.updates == 1
    for average in averages:
        for name, tensor in network.state_dict().items():
            assert torch.equal(average.network.state_dict()[name], tensor)


def test_averages_in_closed_form() -> None:
    network = nn.Linear(1, 1, bias=False)
    averages = averages_of(network, ema=(0.95, 0.99), ema_lengths=(0.05, 0.25))
    assert [average.name for average in averages] == ["ema-0.95", "ema-0.99", "power-0.05", "power-0.25"]
    values = [math.sin(3 * n) + n / 50 for n in range(200)]
    for n, value in enumerate(values, start=1):
        with torch.no_grad():
            network.weight.fill_(value)
        averages.update()
        expected = [exponential(values[:n], cap) for cap in (0.95, 0.99)]
        expected += [float(profile(length, n) @ values[:n]) for length in (0.05, 0.25)]
        assert [float(average.network.weight) for average in averages] == pytest.approx(expected, abs=1e-5)
    assert float(network.weight.detach()) == pytest.approx(values[-1])
    assert warming_decay(10**6, 0.95) == 0.95


def test_a_constant_stays_and_an_average_takes_no_gradient() -> None:
    network = Net()
    averages = averages_of(network, ema=0.99, ema_lengths=0.1)
    for _ in range(50):
        averages.update()
    for average in averages:
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(average.network.state_dict()[name], tensor, rtol=0, atol=1e-6)
        assert not any(p.requires_grad for p in average.network.parameters())
        assert not average.network.training
    assert network.linear.weight.requires_grad


def one_vector(network: Net) -> None:
    assert join([*network.parameters()]) is not None


def two_vectors(network: Net) -> None:
    """Matrices in one vector and the rest in another, as groups of an optimizer may be; frozen weights in none."""
    weights = [p for p in network.parameters() if p.requires_grad]
    for group in ([p for p in weights if p.ndim > 1], [p for p in weights if p.ndim == 1]):
        assert join(group) is not None


def with_others(network: Net) -> None:
    """One vector that also holds the weights of another network, as a trained loss has them."""
    assert join([*network.parameters(), *nn.Linear(2, 2).parameters()]) is not None


def apart(network: Net) -> None:
    """Each weight on its own."""


@pytest.mark.parametrize(("joined", "tensors"), [(one_vector, 1), (two_vectors, 3), (with_others, 1), (apart, 5)])
def test_averages_of_joined_weights(joined: Callable[[Net], None], tensors: int) -> None:
    network = Net()
    joined(network)
    average = Average(network, "ema-0.5", lambda t: warming_decay(t, 0.5))
    assert len(average._averaged) == len(average._live) == tensors
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    for t in range(1, 7):
        with torch.no_grad():
            for p in network.parameters():  # frozen ones too, which a network may move by itself
                p.add_(1.0)
        average.update(t)
    shift = exponential([*range(1, 7)], 0.5)
    for name, before in start.items():
        torch.testing.assert_close(average.network.get_parameter(name), before + shift, msg=name)
        torch.testing.assert_close(network.get_parameter(name), before + 6)


def test_weights_too_many_for_a_vector_are_averaged_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "SMALL", 10)
    network = Net()
    assert join([*network.parameters()]) is None
    average = Average(network, "ema-0.5", lambda t: 0.0)
    assert len(average._averaged) == 5
    with torch.no_grad():
        network.linear.weight.add_(1.0)
    average.update(1)
    assert torch.equal(average.network.get_parameter("linear.weight"), network.linear.weight)


# --- the maths of power functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [SHORTEST, 0.01, 0.05, 0.07, 0.1, 0.2, LONGEST])
def test_gamma_solves_its_equation_and_the_profile_has_its_deviation(length: float) -> None:
    gamma = gamma_of(length)
    assert gamma >= 0
    assert math.sqrt(gamma + 1) / (gamma + 2) / math.sqrt(gamma + 3) == pytest.approx(length, rel=1e-9)
    t = 100_000
    weights, places = profile(length, t), (np.arange(t) + 0.5) / t
    assert weights.sum() == pytest.approx(1.0)
    assert math.sqrt(weights @ places**2 - (weights @ places) ** 2) == pytest.approx(length, rel=1e-4)
    decays = [decay_at(n, gamma) for n in range(1, 9)]
    by_steps = np.array([(1 - b) * math.prod(decays[n + 1 :]) for n, b in enumerate(decays)])
    assert by_steps == pytest.approx(profile(length, 8), abs=1e-9)


def test_the_longest_average_weighs_all_steps_alike() -> None:
    assert gamma_of(1 / math.sqrt(12)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [((0.05, 0.6), (0.1, 1.0)), ((0.2, 1.0), (0.05, 0.3)), ((0.1, 0.5), (0.1, 0.5))])
def test_inner_products_are_the_integrals(a: tuple[float, float], b: tuple[float, float]) -> None:
    tau = (np.arange(10**6) + 0.5) / 10**6
    ps = [
        np.where(tau <= t, (gamma_of(length) + 1) * tau ** gamma_of(length) / t ** (gamma_of(length) + 1), 0.0)
        for length, t in (a, b)
    ]
    expected = float((ps[0] * ps[1]).mean())
    product = inner_products(gamma_of(a[0]), a[1], gamma_of(b[0]), b[1])
    assert float(product) == pytest.approx(expected, rel=1e-4)
    assert float(inner_products(gamma_of(b[0]), b[1], gamma_of(a[0]), a[1])) == pytest.approx(float(product))


def snapshots(count: int, each: int = 100) -> list[tuple[float, int]]:
    return [(length, each * k) for k in range(1, count + 1) for length in (0.05, 0.10)]


@pytest.mark.parametrize(
    ("count", "length", "error"),
    [(16, 0.07, 3.79e-3), (64, 0.07, 2.46e-4), (16, 0.15, 8.98e-3), (64, 0.15, 5.78e-4), (64, 0.01, 5.8e-2)],
)
def test_the_nearest_sum_leaves_the_error_of_least_squares(count: int, length: float, error: float) -> None:
    c, left = nearest_sum(snapshots(count), (length, 100 * count))
    assert left == pytest.approx(error, rel=0.01)
    assert sum(c) == pytest.approx(1.0, abs=1e-9)
    t = 100 * count  # numerically, on the profiles step by step, without the sum of 1
    columns = np.stack([np.pad(profile(*one), (0, t - one[1])) for one in snapshots(count)], axis=1)
    wanted = profile(length, t)
    free = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    norm = np.linalg.norm(wanted)
    assert np.linalg.norm(columns @ c - wanted) / norm == pytest.approx(left, rel=0.02)
    assert np.linalg.norm(columns @ free - wanted) / norm == pytest.approx(left, rel=0.02)


@pytest.mark.parametrize("wanted", [(0.05, 6400), (0.10, 6400), (0.10, 3200)])
def test_the_nearest_sum_to_a_snapshot_is_the_snapshot(wanted: tuple[float, int]) -> None:
    c, left = nearest_sum(snapshots(64), wanted)
    place = snapshots(64).index(wanted)
    assert c[place] == pytest.approx(1.0, abs=1e-9)
    assert max(map(abs, (*c[:place], *c[place + 1 :]))) < 1e-9
    assert left < 1e-6


# --- the averages of a run -------------------------------------------------------------------------------------------

STEPS = 64
SEVERAL = ("--ema", "0.9,0.99", "--ema-lengths", "0.05,0.1", "--lr", 0.02, "--warmup", 0, "--lr-schedule", "constant")


@pytest.fixture(scope="session")
def averaged_run(shared: Callable[..., Path]) -> Path:
    """A trained run with several averages, that keeps the state of every step."""
    every = ("--steps", STEPS, "--checkpoint-every", 1, "--keep", STEPS, "--snapshot-every", 4)
    return shared("averaged", *POINTS, *SEVERAL, *every)


@pytest.fixture
def copied(averaged_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(averaged_run, tmp_path / "r"))


@pytest.fixture(scope="module")
def trajectory(averaged_run: Path) -> dict[str, Tensor]:
    """The trained weights after each step, (steps, ...) in double precision."""
    states = [checkpoint.load(path)[0] for path in reversed(RunFolder(averaged_run).saved_states())]
    assert len(states) == STEPS
    names = [name for name in states[0] if name.startswith("network.")]
    return {name.removeprefix("network."): torch.stack([state[name].double() for state in states]) for name in names}


def direct(trajectory: dict[str, Tensor], weights: Sequence[float] | np.ndarray) -> dict[str, Tensor]:
    """The average of a trajectory with a weight for each step."""
    factors = torch.tensor(np.asarray(weights))
    return {name: torch.tensordot(factors, values[: len(weights)], dims=1) for name, values in trajectory.items()}


def largest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize(("weights", "cap"), [("ema", 0.9), ("ema-0.9", 0.9), ("ema-.990", 0.99)])
def test_exponential_averages_of_a_run(
    averaged_run: Path, trajectory: dict[str, Tensor], weights: str, cap: float
) -> None:
    model = difftool.load(averaged_run, weights=weights)
    assert (model.weights, model.step) == (f"ema-{cap}", STEPS)
    factors = [exponential([float(n == one) for n in range(STEPS)], cap) for one in range(STEPS)]
    assert largest(model.network.state_dict(), direct(trajectory, factors)) < 1e-5


@pytest.mark.parametrize("length", [0.05, 0.1])
def test_a_stored_length_is_the_average_itself(
    averaged_run: Path, trajectory: dict[str, Tensor], length: float
) -> None:
    model = difftool.load(averaged_run, ema_length=length)
    assert (model.weights, model.step) == (f"power-{length}", STEPS)
    assert largest(model.network.state_dict(), direct(trajectory, profile(length, STEPS))) < 1e-5
    stored = difftool.load(averaged_run, weights=f"power-{length}")
    assert largest(model.network.state_dict(), stored.network.state_dict()) < 1e-6


@pytest.mark.parametrize("length", [0.06, 0.07, 0.085, 0.15])
def test_another_length_is_nearer_than_its_bound(
    averaged_run: Path, trajectory: dict[str, Tensor], length: float
) -> None:
    """The difference of two profiles is the error times the norm, and its sum is 0 (Cauchy and Schwarz)."""
    model = difftool.load(averaged_run, ema_length=length)
    assert (model.weights, model.step) == (f"power-{length}", STEPS)
    error = nearest_sum(snapshots(16, each=4), (length, STEPS))[1]
    gamma = gamma_of(length)
    norm = math.sqrt(float(inner_products(gamma, STEPS, gamma, STEPS)))
    expected = direct(trajectory, profile(length, STEPS))
    moved = 0.0
    for name, found in model.network.state_dict().items():
        spread = (trajectory[name] - trajectory[name].mean(0)).square().sum(0).sqrt()
        assert bool(((found.double() - expected[name]).abs() <= error * norm * spread + 1e-6).all())
        moved = max(moved, float((expected[name] - trajectory[name][-1]).abs().max()))
    assert largest(model.network.state_dict(), expected) < 0.02 * moved


def test_a_length_far_from_the_snapshots_is_warned_of(averaged_run: Path) -> None:
    with pytest.warns(UserWarning, match=r"--ema-length 0.01: the snapshots of lengths 0.05, 0.1 .* within 36"):
        difftool.load(averaged_run, ema_length=0.01)


def test_the_files_of_averages(averaged_run: Path) -> None:
    files = files_in(averaged_run / "averages")
    kept = [None, *range(4, STEPS + 1, 4)]
    assert [(f.name, f.step) for f in files] == [
        ("ema-0.99", None),
        *((f"power-{length}", step) for length in (0.05, 0.1) for step in kept),
    ]
    assert {f.path.name for f in files} == {path.name for path in (averaged_run / "averages").iterdir()}
    for file in files:
        _, document = checkpoint.load(file.path)
        assert (document["kind"], document["weights"]) == ("model", file.name)
        assert document["step"] == (file.step or STEPS)


def test_a_run_of_one_average_has_no_folder_for_more(points_run: Path) -> None:
    assert not (points_run / "averages").exists()


def test_info_lists_the_averages(run: Run, averaged_run: Path) -> None:
    facts = json.loads(ok(run("info", averaged_run, "--json")).out)
    assert facts["model"]["weights"] == "ema-0.9"
    powers = [
        {"weights": f"power-{length}", "step": STEPS, "valid": True, "snapshots": "16, of steps 4 to 64"}
        for length in (0.05, 0.1)
    ]
    assert facts["averages"] == [{"weights": "ema-0.99", "step": STEPS, "valid": True}, *powers]


def test_sample_takes_any_average(run: Run, averaged_run: Path) -> None:
    for arguments, weights in (
        ((), "ema-0.9"),
        (("--weights", "raw"), "raw"),
        (("--weights", "ema-0.99"), "ema-0.99"),
        (("--weights", "power-0.05"), "power-0.05"),
        (("--ema-length", 0.07), "power-0.07"),
    ):
        drawn = ok(run("sample", averaged_run, *arguments, "-n", 3, "--steps", 2, "--out", f"{weights}.npy", "--json"))
        assert json.loads(drawn.out)["weights"] == weights
        assert f"step {STEPS}, {weights} weights" in drawn.err
    files = [np.load(path) for path in sorted(Path().glob("*.npy"))]
    assert len(files) == 5
    assert all(not np.array_equal(files[i], files[j]) for i in range(5) for j in range(i))
    assert (
        "power-0.07 weights"
        in ok(
            run("compare", averaged_run, "--ema-length", 0.07, "--samplers", "ddim", "--calls", 2, "-n", 8, "--json")
        ).err
    )


def test_a_lone_file_remembers_its_average(run: Run, averaged_run: Path) -> None:
    shutil.copy(file_of(averaged_run / "averages", "ema-0.99"), "lone.safetensors")
    assert "ema-0.99 weights" in ok(run("sample", "lone.safetensors", "-n", 2, "--steps", 1)).err
    assert ok(run("sample", "lone.safetensors", "--weights", "ema-0.99", "-n", 2, "--steps", 1))
    assert json.loads(ok(run("info", "lone.safetensors", "--json")).out)["weights"] == "ema-0.99"
    for arguments in (("--weights", "ema-0.9"), ("--ema-length", "0.07")):
        refused = run("sample", "lone.safetensors", *arguments)
        assert refused.code == 2
        assert f"{arguments[0]}" in refused.error
        assert "lone.safetensors holds ema-0.99 alone; name its run folder" in refused.error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--weights", "best"), "unknown weights 'best'; r has ema, raw, ema-0.9, ema-0.99, power-0.05, power-0.1"),
        (("--weights", "ema-0.5"), "unknown weights 'ema-0.5'; r has ema, raw, ema-0.9, "),
        (("--weights", "ema-../x"), "unknown weights"),
        (("--weights", "ema-nan"), "unknown weights"),
        (("--weights", "power-0.05-step-000000004"), "unknown weights"),
        (("--ema-length", "0"), "--ema-length: must be a number from 0.001 to 0.28, not 0.0"),
        (("--ema-length", "nan"), "--ema-length: must be a number from 0.001 to 0.28, not nan"),
        (("--ema-length", "0.05,0.1"), "--ema-length"),
        (("--ema-length", "0.07", "--weights", "raw"), "--ema-length: names an average by itself"),
    ],
)
def test_averages_that_are_not_there(run: Run, copied: Path, arguments: tuple[str, ...], words: str) -> None:
    refused = run("sample", "r", *arguments)
    assert refused.code == 2
    assert words in refused.error


def test_a_run_without_power_functions_says_how_to_have_them(run: Run, points_run: Path) -> None:
    refused = run("sample", points_run, "--ema-length", 0.07)
    assert refused.code == 2
    assert "has no power-function averages; train with --ema-lengths 0.05,0.10" in refused.error
    refused = run("sample", "--oracle", "ideal", "--ema-length", 0.07)
    assert "--ema-length: an oracle has none" in refused.error


def spoil(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def swap(path: Path) -> None:
    shutil.copy(file_of(path.parent, "power-0.1", 8), path)


def foreign(path: Path) -> None:
    tensors, document = checkpoint.load(path)
    checkpoint.save(path, {name: torch.zeros(3) for name in tensors}, document)


@pytest.mark.parametrize(
    ("change", "words"),
    [(spoil, "is damaged"), (swap, "is not the average that its name says"), (foreign, "its weights do not fit")],
)
def test_a_snapshot_that_is_not_one(run: Run, copied: Path, change: Callable[[Path], None], words: str) -> None:
    path = file_of(copied / "averages", "power-0.05", 60)
    change(path)
    refused = run("sample", "r", "--ema-length", 0.07, "-n", 2)
    assert refused.code == 1
    assert f"{path.relative_to(copied.parent)}" in refused.error
    assert words in refused.error


def test_an_average_under_another_name(run: Run, copied: Path) -> None:
    averages = copied / "averages"
    file_of(averages, "ema-0.99").rename(file_of(averages, "ema-0.7"))
    refused = run("sample", "r", "--weights", "ema-0.7", "-n", 2)
    assert refused.code == 1
    assert "ema-0.7.safetensors holds ema-0.99: it was renamed" in refused.error


# --- runs that go on -------------------------------------------------------------------------------------------------


def steps_of(run: Path) -> list[int]:
    return [f.step for f in files_in(run / "averages") if f.name == "power-0.05" and f.step is not None]


SHORT = (*POINTS, *SEVERAL, "--ema-lengths", "0.05,0.1")


def test_a_later_end_keeps_the_snapshots_and_spaces_the_new_ones_for_it(run: Run) -> None:
    ok(run("train", *SHORT, "--steps", 5, "--out", "r"))
    assert steps_of(Path("r")) == [1, 2, 3, 4, 5]
    ok(run("train", "--resume", "r", "--steps", 150))
    assert steps_of(Path("r")) == [1, 2, 3, 4, 5, *range(6, 150, 3), 150]
    assert "power-0.07 weights" in ok(run("sample", "r", "--ema-length", 0.07, "-n", 2, "--steps", 1)).err


def test_a_run_that_is_stopped_and_resumed_has_the_same_averages(run: Run) -> None:
    every = ("--snapshot-every", 3)
    ok(run("train", *SHORT, *every, "--steps", 10, "--out", "straight"))
    ok(run("train", *SHORT, *every, "--steps", 7, "--out", "broken"))
    assert steps_of(Path("broken")) == [3, 6]
    ok(run("train", "--resume", "broken", "--steps", 10))
    averages = [
        {f.path.name: checkpoint.load(f.path)[0] for f in files_in(Path(name, "averages"))}
        for name in ("straight", "broken")
    ]
    assert averages[0].keys() == averages[1].keys()
    for name, tensors in averages[0].items():
        assert all(torch.equal(tensor, averages[1][name][key]) for key, tensor in tensors.items()), name


def test_snapshots_by_epochs_and_none(run: Run) -> None:
    ok(run("train", *SHORT, "--epochs", 3, "--snapshot-every", "1ep", "--out", "epochs"))  # of 500 items by 64
    assert steps_of(Path("epochs")) == [8, 16, 24]
    ok(run("train", *SHORT, "--steps", 4, "--snapshot-every", 0, "--out", "none"))
    assert steps_of(Path("none")) == []
    assert sorted(p.name for p in Path("none/averages").iterdir()) == [
        "ema-0.99.safetensors",
        "power-0.05.safetensors",
        "power-0.1.safetensors",
    ]
    assert "power-0.1 weights" in ok(run("sample", "none", "--ema-length", 0.1, "-n", 2, "--steps", 1)).err


def test_snapshots_of_a_later_step_are_gone_when_a_run_goes_on_before_it(run: Run, copied: Path) -> None:
    for state in RunFolder(copied).saved_states()[:10]:
        state.unlink()
    ok(run("train", "--resume", "r", "--steps", 54, "--snapshot-every", 20))
    assert steps_of(copied) == [*range(4, 53, 4)]


def test_an_average_of_the_state_alone(run: Run) -> None:
    """Without an exponential average, the model file holds the trained weights."""
    ok(run("train", *SHORT, "--ema", 0, "--steps", 4, "--out", "r"))
    assert difftool.load("r").weights == difftool.load("r", weights="raw").weights == "raw"
    assert difftool.load("r", ema_length=0.05).weights == "power-0.05"
    refused = run("sample", "r", "--weights", "ema-0.9")
    assert "r has ema, raw, power-0.05, power-0.1" in refused.error


def test_overwrite_removes_the_averages_and_nothing_else(run: Run, copied: Path) -> None:
    note = copied / "averages" / "notes.txt"
    note.write_text("mine")
    ok(run("train", *POINTS, "--steps", 1, "--out", "r", "--overwrite"))
    assert [*tree(copied / "averages")] == ["notes.txt"]


def test_a_state_holds_all_averages_and_its_size_counts_them(run: Run, averaged_run: Path) -> None:
    document = json.loads(ok(run("train", *SHORT, "--steps", 4, "--dry-run", "--json")).out)
    assert document["state_bytes"] == 4 * (3 + 4) * document["parameters"]
    tensors, _ = checkpoint.load(RunFolder(averaged_run).saved_states()[0])
    assert sum(name.startswith("averages.") for name in tensors) == 4 * sum(n.startswith("network.") for n in tensors)


def test_a_disk_without_room_for_the_snapshots(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=500_000))
    ok(run("train", *SHORT, "--steps", 1000, "--snapshot-every", 0, "--ema-lengths", 0.05, "--dry-run"))
    refused = run("train", *SHORT, "--steps", 10**6, "--out", "r")
    assert refused.code == 1
    assert "a training state takes 0.0 MiB, and the averages to come 0.7 MiB; free some space" in refused.error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ema", "0,0.9"), "--ema: must be decays such as 0.999,0.9999, or 0 alone"),
        (("--ema", ","), "--ema: must be decays"),
        (("--ema", "0.9,0.9"), "--ema: must not name a number twice"),
        (("--ema", "0.9,1"), "--ema: must be less than 1"),
        (("--ema-lengths", "0.05,0.5"), "--ema-lengths: must be less than or equal to 0.28"),
        (("--ema-lengths", "0"), "--ema-lengths: must be greater than or equal to 0.001"),
        (("--ema-lengths", "0.05,0.05"), "--ema-lengths: must not name a number twice"),
        (("--snapshot-every", "5"), "--snapshot-every: there is no average to keep snapshots of; add --ema-lengths"),
        (("--ema-lengths", "0.05", "--snapshot-every", "x"), "--snapshot-every: must be a number of steps"),
    ],
)
def test_settings_that_are_none(run: Run, arguments: tuple[str, ...], words: str) -> None:
    refused = run("train", *arguments)
    assert refused.code == 2
    assert words in refused.error


def test_a_number_and_a_list_of_one_are_the_same(run: Run) -> None:
    Path("one.toml").write_text("[training]\nema = 0.9\nema_lengths = 0.05\n")
    Path("list.toml").write_text("[training]\nema = [0.9]\nema_lengths = [0.05]\n")
    for name in ("one", "list"):
        document = json.loads(ok(run("train", "--config", f"{name}.toml", "--dry-run", "--json")).out)
        assert (document["training"]["ema"], document["training"]["ema_lengths"]) == ([0.9], [0.05])


def test_names_of_averages() -> None:
    assert [canonical(text) for text in ("ema-.9990", "ema-0.9999999", "power-5e-2")] == [
        "ema-0.999",
        "ema-0.9999999",
        "power-0.05",
    ]
    for text in ("ema", "raw", "ema-", "ema-1", "ema-0", "ema--0.5", "ema-nan", "ema-inf", "best-0.5", "ema-0.5/x", ""):
        assert canonical(text) is None, text


class Tied(nn.Module):
    """One weight under two names, batch norm's counter, and a complex weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.last.weight = self.first.weight
        self.norm = nn.BatchNorm1d(2)
        self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64) * 1j)


def test_tied_and_complex_weights_are_summed_and_buffers_are_the_newest(tmp_path: Path) -> None:
    network, run = Tied(), RunFolder(tmp_path)
    averages = averages_of(network, ema=0, ema_lengths=(0.05, 0.1, 0.07))
    for t in range(1, 21):
        with torch.no_grad():
            network.first.weight.fill_(math.sin(t / 3))
            network.phase.fill_(complex(t, -t))
            assert network.norm.num_batches_tracked is not None
            network.norm.num_batches_tracked.fill_(t)
        averages.update()
        for average in [*averages][:2]:
            about = {"kind": "model", "weights": average.name, "step": t}
            checkpoint.save(
                file_of(run.averages, average.name, t),
                checkpoint.ungrouped({"network": average.network.state_dict()}),
                about,
            )
    tensors, step, path = reconstruct(run, 0.07, network)
    assert (step, path.name) == (20, "power-0.05-step-000000020.safetensors")
    for name, expected in [*averages][2].network.state_dict().items():
        torch.testing.assert_close(tensors[name], expected, rtol=1e-3, atol=1e-3, msg=name)
    assert int(tensors["norm.num_batches_tracked"]) == 20


def test_a_run_that_has_made_no_step_has_no_average_of_another_length(run: Run) -> None:
    ok(run("train", *SHORT, "--steps", 0, "--out", "r"))
    assert steps_of(Path("r")) == []
    refused = run("sample", "r", "--ema-length", 0.05)
    assert refused.code == 2
    assert "r has no power-function averages" in refused.error


def test_snapshots_after_the_last_save_wait_for_it(run: Run, copied: Path) -> None:
    """The average reaches as far as the model, also while a run that trains has newer snapshots."""
    for length in (0.05, 0.1):
        file_of(copied / "averages", f"power-{length}").unlink()
        file_of(copied / "averages", f"power-{length}", 40).rename(file_of(copied / "averages", f"power-{length}"))
    assert difftool.load("r", ema_length=0.07).step == 40
