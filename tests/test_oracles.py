"""Oracles against brute force, integrals and known posteriors; then as a source, and on the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from torch import Tensor

from difftool import Condition, DatasetContext, Level, Oracle, OracleSpec, Samples, component, points
from difftool.data.samples import Mixture
from difftool.errors import UsageError
from difftool.sampling.loop import draw
from difftool.sampling.oracle import OracleSource
from difftool.sampling.plan import Plan
from difftool.settings import Sampling
from difftool_plugins.oracles import difftool_oracles
from difftool_plugins.oracles.exact import ClosedForm, Ideal
from difftool_plugins.oracles.mixture import BLOCK, CHUNK, FEW_COORDINATES, MixtureDenoiser


def spec(label: int | None = None) -> OracleSpec:
    """Return the setting of an oracle, or of its denoiser of one class, on the linear schedule."""
    return OracleSpec(schedule=component("schedule", "linear").build(1000), label=label, device=torch.device("cpu"))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def level(sigma: float, alpha: float | None = None) -> Level:
    """Variance preserving unless alpha is given."""
    return Level(0.0, math.sqrt(1 - sigma * sigma) if alpha is None else alpha, sigma)


LEVELS = [level(0.002), level(0.1), level(0.7), level(0.9999), level(1.0, 0.0), level(80.0, 1.0), level(0.3, 0.7)]
every_level = pytest.mark.parametrize("at", LEVELS, ids=lambda at: f"{at.alpha:.3g}-{at.sigma:.3g}")


def source(oracle: str, dataset: str, *, timesteps: int = 1000, **options: object) -> OracleSource:
    data = component("dataset", dataset, **options)
    return OracleSource.of(component("oracle", oracle), data, component("schedule", "linear"), timesteps=timesteps)  # type: ignore[arg-type]


def test_what_there_is() -> None:
    assert [oracle.name for oracle in difftool_oracles()] == ["ideal", "closed-form"]


# The formula


def brute_force(x: Tensor, items: Tensor, at: Level) -> Tensor:
    """Written out: the weighted mean of the items, one sample at a time, with big numbers kept by math.fsum."""
    found = []
    for row in x:
        logits = [-float((row - at.alpha * item).square().sum()) / (2 * at.sigma**2) for item in items]
        top = max(logits)
        weights = [math.exp(logit - top) for logit in logits]
        columns = items.T.tolist()
        found.append([math.fsum(w * v for w, v in zip(weights, c, strict=True)) / math.fsum(weights) for c in columns])
    return torch.tensor(found, dtype=torch.float64)


@every_level
@pytest.mark.parametrize("width", [1, 2, FEW_COORDINATES + 1])
def test_ideal_is_the_formula(at: Level, width: int) -> None:
    items = normal(40, width)
    x = at.alpha * items[:10] + at.sigma * normal(10, width, seed=1)
    found = MixtureDenoiser(items, torch.zeros(1, dtype=torch.float64))(x, at)
    assert found.x_0.dtype == torch.float64
    torch.testing.assert_close(found.x_0, brute_force(x, items, at), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(at.alpha * found.x_0 + at.sigma * found.eps, x, rtol=1e-9, atol=1e-9)


@every_level
def test_float32_is_as_good_as_its_input(at: Level) -> None:
    items = normal(2000, 2)
    x = (at.alpha * items[:200] + at.sigma * normal(200, 2, seed=1)).float()
    exact = MixtureDenoiser(items.float().double(), torch.zeros(1))(x.double(), at)
    found = MixtureDenoiser(items.float(), torch.zeros(1))(x, at)
    assert found.x_0.dtype == torch.float32
    assert float((found.x_0 - exact.x_0).abs().max()) < 6e-6  # of values up to 4; machines differ in the last digits
    assert float((found.eps - exact.eps).abs().max()) < 6e-6 / at.sigma + 1e-5


def test_limits() -> None:
    items = normal(500, 2)
    ideal = MixtureDenoiser(items, torch.zeros(1))
    x = normal(50, 2, seed=1)
    nearest = items[torch.cdist(x, items).argmin(dim=1)]
    for sigma in (1e-5, 1e-12):
        torch.testing.assert_close(ideal(x, Level(0.0, 1.0, sigma)).x_0, nearest)
    mean = items.mean(0).expand_as(x)
    torch.testing.assert_close(ideal(x, Level(0.0, 0.0, 1.0)).x_0, mean)
    torch.testing.assert_close(ideal(x, Level(0.0, 1.0, 1e9)).x_0, mean, atol=1e-6, rtol=0)
    small = MixtureDenoiser(items.float(), torch.zeros(1))(x.float(), Level(0.0, 1.0, 1e-5))
    torch.testing.assert_close(small.x_0, nearest.float())
    assert bool(small.eps.isfinite().all())


def test_one_item() -> None:
    item = normal(1, 3, 4, 4)
    for at in LEVELS:
        x = normal(5, 3, 4, 4, seed=1)
        found = MixtureDenoiser(item, torch.zeros(1))(x, at)
        assert found.x_0.shape == x.shape
        torch.testing.assert_close(found.x_0, item.expand_as(x))


@every_level
def test_pieces_change_nothing(at: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    items, x = normal(300, 2), normal(70, 2, seed=1)
    whole = MixtureDenoiser(items, torch.zeros(1))(x, at).x_0
    assert CHUNK > 300 * 70
    assert BLOCK > 300 * 2
    for chunk, block in ((1, BLOCK), (900, BLOCK), (CHUNK, 1), (900, 2 * 77)):
        monkeypatch.setattr("difftool_plugins.oracles.mixture.CHUNK", chunk)
        monkeypatch.setattr("difftool_plugins.oracles.mixture.BLOCK", block)
        torch.testing.assert_close(MixtureDenoiser(items, torch.zeros(1))(x, at).x_0, whole)


@every_level
def test_one_gaussian_has_a_known_posterior(at: Level) -> None:
    mean, std = torch.tensor([[0.3, -2.0]]).double(), torch.tensor([0.5, 0.05]).double()
    x = at.alpha * mean + normal(20, 2) * (at.alpha**2 * std**2 + at.sigma**2).sqrt()
    gain = at.alpha * std**2 / (at.alpha**2 * std**2 + at.sigma**2)
    found = MixtureDenoiser(mean, std)(x, at)
    torch.testing.assert_close(found.x_0, mean + gain * (x - at.alpha * mean), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(at.alpha * found.x_0 + at.sigma * found.eps, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("at", [level(0.05), level(0.5), level(0.95), level(3.0, 1.0)])
def test_a_mixture_against_the_integral(at: Level) -> None:
    means, std = torch.tensor([[-1.0], [0.4], [2.0]]).double(), 0.2
    x = torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None]
    x_0 = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    density = torch.exp(-((x_0 - means) ** 2) / (2 * std**2)).sum(0)
    joint = density * torch.exp(-((x - at.alpha * x_0) ** 2) / (2 * at.sigma**2))
    expected = (joint * x_0).sum(1) / joint.sum(1)
    found = MixtureDenoiser(means, torch.tensor([std]).double())(x, at)
    torch.testing.assert_close(found.x_0[:, 0], expected, rtol=1e-7, atol=1e-7)


def test_closed_form_is_the_limit_of_many_items() -> None:
    """The ideal denoiser of 20,000 items estimates the posterior mean of what they were drawn from."""
    options = {"n": 20_000, "std": 0.2}
    closed, ideal = (source(name, "gaussian-mixture", **options) for name in ("closed-form", "ideal"))
    torch.testing.assert_close(closed.samples.items, ideal.samples.items)
    for at in (level(0.5), level(0.9)):
        x = at.alpha * closed.data.scaling.to_model(closed.samples.items[:400]) + at.sigma * normal(400, 2).float()
        apart = (closed.denoiser(400)(x, at).x_0 - ideal.denoiser(400)(x, at).x_0).norm(dim=1)
        assert float(apart.median()) < 0.02  # about 2,000 items share the weight


# The data they are told


def labelled(shape: tuple[int, ...] = (2,)) -> Samples:
    items = torch.arange(12 * math.prod(shape)).view(12, *shape)
    return Samples(items=items, shape=shape, shift=(4.0,), scale=(2.0,), labels=torch.arange(12) % 3)


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
def test_items_in_model_units_of_one_class(shape: tuple[int, ...]) -> None:
    samples, pure = labelled(shape), Level(0.0, 0.0, 1.0)
    items = (samples.items.float() - 4) / 2  # type: ignore[union-attr]
    x = torch.zeros(1, *shape)
    torch.testing.assert_close(Ideal().denoiser(samples, spec())(x, pure).x_0[0], items.mean(0))
    torch.testing.assert_close(Ideal().denoiser(samples, spec(1))(x, pure).x_0[0], items[1::3].mean(0))
    four = Ideal(items=4).denoiser(samples, spec()).means.tolist()  # type: ignore[attr-defined]
    assert len({tuple(item) for item in four} & {tuple(item) for item in items.flatten(1).tolist()}) == 4
    assert len(Ideal(items=2).denoiser(samples, spec(1)).means) == 2  # type: ignore[attr-defined]
    assert len(Ideal(items=99).denoiser(samples, spec()).means) == 12  # type: ignore[attr-defined]


def test_a_source_of_items_is_read() -> None:
    class Squares:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, i: int) -> Tensor:
            return torch.full((1, 2, 2), i * i, dtype=torch.uint8)

    samples = Samples(items=Squares(), shape=(1, 2, 2), shift=(127.5,), scale=(127.5,))
    x_0 = Ideal().denoiser(samples, spec())(torch.zeros(2, 1, 2, 2), Level(0.0, 0.0, 1.0)).x_0
    torch.testing.assert_close(x_0, torch.full_like(x_0, 6 / 127.5 - 1))


def test_the_mixture_says_what_it_is() -> None:
    for labels in (False, True):
        dataset = component("dataset", "gaussian-mixture", n=60_000, components=3, radius=2.0, std=0.3, labels=labels)
        samples = dataset.load(DatasetContext())  # type: ignore[attr-defined]
        mixture = samples.mixture
        assert mixture.std == 0.3
        assert (mixture.labels is not None) == labels
        if labels:
            for k in range(3):
                own = samples.items[samples.labels == k]
                torch.testing.assert_close(own.mean(0).double(), mixture.means[k], atol=0.01, rtol=0)
                torch.testing.assert_close(own.std(0), torch.full((2,), 0.3), atol=0.01, rtol=0)


def test_a_mixture_is_checked() -> None:
    for wrong in ({"means": torch.zeros(0, 2)}, {"std": -1.0}, {"labels": torch.zeros(1, dtype=torch.int64)}):
        with pytest.raises(ValueError):
            Mixture(**{"means": torch.zeros(2, 2), "std": 0.1, **wrong})  # type: ignore[arg-type]
    assert points(torch.zeros(3, 2)).mixture is None


# As a source


@pytest.mark.parametrize("oracle", ["ideal", "closed-form"])
def test_samples_come_in_data_units(oracle: str) -> None:
    made = source(oracle, "gaussian-mixture", n=2000, components=2, radius=3.0, std=0.25)
    x = draw(made, Plan.of(made, Sampling(num_samples=2000, steps=40), sampler="ddim", spacing="log-snr"))
    assert x.dtype == torch.float32
    right = x[:, 0] > 0
    assert float(right.float().mean()) == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(x[right].mean(0), torch.tensor([3.0, 0.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(x[right].std(0), torch.tensor([0.25, 0.25]), atol=0.03, rtol=0)


def test_what_a_source_says() -> None:
    made = source("ideal", "swiss-roll", n=100, timesteps=50)
    assert (made.name, made.schedule_name, made.title) == (
        "swiss-roll-ideal",
        "linear",
        "swiss-roll-ideal, linear T = 50",
    )
    assert not made.needs_condition
    assert made.load_samples() is made.samples
    assert len(made.schedule) == 50
    with pytest.raises(UsageError, match="--label: swiss-roll-ideal has no classes"):
        made.label_index("1")


def of_class(labels: Tensor) -> Condition:
    return Condition.of_labels(labels, 4)


def test_each_sample_of_its_own_class() -> None:
    made = source("closed-form", "gaussian-mixture", n=400, components=4, labels=True)
    x, at = normal(6, 2).float(), level(0.5)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    both = made.denoiser(6, condition=of_class(labels))(x, at)
    for k in range(4):
        own = made.denoiser(6, condition=of_class(torch.full((6,), k)))(x, at)
        torch.testing.assert_close(both.x_0[labels == k], own.x_0[labels == k])
        torch.testing.assert_close(both.eps[labels == k], own.eps[labels == k])
    x = draw(made, Plan.of(made, Sampling(num_samples=50, label="1", steps=10), spacing="log-snr"))
    torch.testing.assert_close(x.mean(0), torch.tensor([0.0, 1.0]), atol=0.1, rtol=0)


def test_what_an_oracle_cannot_know() -> None:
    with pytest.raises(UsageError, match=r"oracle closed-form, dataset swiss-roll: no formula .* take --oracle ideal"):
        source("closed-form", "swiss-roll", n=10)
    made = source("ideal", "gaussian-mixture", n=2, components=3, labels=True)
    with pytest.raises(UsageError, match="class 2 has no items"):
        made.denoiser(1, condition=of_class(torch.tensor([2])))
    with pytest.raises(ValueError, match="no classes"):
        ClosedForm().denoiser(source("closed-form", "gaussian-mixture", n=9).samples, spec(0))


def test_the_contract_of_third_parties() -> None:
    class Mean(Oracle, name="mean"):
        """Says 0 always."""

        def denoiser(self, samples: Samples, spec: OracleSpec):  # type: ignore[no-untyped-def]
            raise ZeroDivisionError("oops")

    data, schedule = component("dataset", "swiss-roll", n=9), component("schedule", "linear")
    with pytest.raises(Exception, match="oracle mean, dataset swiss-roll failed: ZeroDivisionError: oops"):
        OracleSource.of(Mean(), data, schedule)  # type: ignore[arg-type]


def test_an_oracle_is_given_the_schedule_and_the_device() -> None:
    settings = []

    class Recording(Oracle, name="recording"):
        """Remember the setting."""

        def denoiser(self, samples: Samples, spec: OracleSpec):  # type: ignore[no-untyped-def]
            settings.append(spec)

    data, schedule = component("dataset", "swiss-roll", n=9), component("schedule", "cosine")
    made = OracleSource.of(Recording(), data, schedule, timesteps=50)  # type: ignore[arg-type]
    assert (settings[0].schedule, settings[0].label, settings[0].device) == (made.schedule, None, torch.device("cpu"))
    assert len(settings[0].schedule) == 50


# On the command line

FEW_ITEMS = ("--dataset.n", 300, "-n", 20, "--steps", 5)


def test_sample_from_an_oracle(run: Run, tmp_path: Path) -> None:
    outcome = run("sample", "--oracle", "ideal", *FEW_ITEMS, "--out", "x.npy", "--out", "x.png", "--json")
    assert outcome.code == 0, outcome.err
    assert "sampling an oracle (swiss-roll-ideal, linear T = 1000, untrained): 20 samples, ddim, 5 steps" in outcome.err
    facts = json.loads(outcome.out)
    assert facts["files"] == ["x.npy", "x.png"]
    assert facts["oracle"] == {"name": "ideal"}
    assert (facts["dataset"]["name"], facts["dataset"]["n"], facts["timesteps"]) == ("swiss-roll", 300, 1000)
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (20, 2)
    assert np.all(np.hypot(*x.T) < 1.6)
    again = ("--oracle", "ideal", "--oracle.items", 300, "--dataset", "swiss-roll", "--schedule", "linear")
    assert run("sample", *again, "--timesteps", 1000, *FEW_ITEMS, "--out", "y.npy", "--batch-size", 7).code == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), x, atol=1e-5)


def test_default_output_lies_here(run: Run, tmp_path: Path) -> None:
    for number in (1, 2):
        outcome = run("sample", "--oracle", "closed-form", "--dataset", "gaussian-mixture", "-n", 5, "--steps", 2)
        assert outcome.out == f"gaussian-mixture-closed-form-ddim-2-00{number}.png\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_images_from_an_oracle(run: Run, tmp_path: Path) -> None:
    images = ("--dataset", "gradients", "--dataset.n", 10, "--dataset.size", 8, "-n", 4, "--steps", 20)
    assert run("sample", "--oracle", "ideal", *images, "--spacing", "log-snr", "--out", "x.npy").code == 0
    x = np.load(tmp_path / "x.npy")
    assert (x.shape, x.dtype) == ((4, 8, 8, 3), np.uint8)
    data = source("ideal", "gradients", n=10, size=8).samples
    items = torch.stack([data.items[i] for i in range(10)]).movedim(1, -1).float().flatten(1)
    apart = torch.cdist(torch.from_numpy(x).float().flatten(1), items).amin(dim=1) / math.sqrt(items.shape[1])
    assert float(apart.max()) < 3  # grey values: it gives back the items


ORACLE = ("--oracle", "ideal")
REFUSED = [
    ((*ORACLE, "runs/x"), "--oracle: give either an oracle or a run, not both (runs/x)"),
    ((*ORACLE, "--weights", "ema"), "--weights: an oracle has none"),
    ((*ORACLE, "--compile"), "--compile: an oracle has no network"),
    ((*ORACLE, "--precision", "bf16"), "--precision: an oracle has no network"),
    (("--dataset", "swiss-roll"), "--dataset: a trained model has its own; this option is for --oracle"),
    (("--schedule", "linear"), "--schedule: a trained model has its own; this option is for --oracle"),
    (("--timesteps", 10), "--timesteps: a trained model has its own; this option is for --oracle"),
    (("--oracle", "idael"), "unknown oracle 'idael'; did you mean 'ideal'?"),
    ((*ORACLE, "--oracle.items", 0), "--oracle.items: must be greater than or equal to 1"),
    ((*ORACLE, "--dataset.n", 0), "--dataset.n: must be greater than or equal to 1"),
    ((*ORACLE, "--timesteps", 10, "--steps", 11), "--steps: 11 is more than the schedule's 10 levels"),
    ((*ORACLE, "--dataset.n", 9, "--label", 1), "--label: swiss-roll-ideal has no classes"),
    (("--oracle", "closed-form", "--dataset.n", 9), "dataset swiss-roll: no formula is known of this dataset; take"),
    (("--oracle.items", 5), "--oracle.items is an option of the oracle ideal; choose it with --oracle ideal"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else None)
def test_wrong_usage_is_one_line(run: Run, tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    outcome = run("sample", *arguments)
    assert outcome.code == 2
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_help_offers_the_options_of_what_is_chosen(run: Run) -> None:
    plain = run("sample", "--help").out
    assert "--oracle" in plain
    assert "--oracle.items" not in plain
    assert "--dataset.n" not in plain
    chosen = run("sample", *ORACLE, "--dataset", "gaussian-mixture", "--help").out
    for flag in ("--oracle.items", "--dataset.components", "--timesteps"):
        assert flag in chosen
