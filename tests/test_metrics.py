"""The built-in metrics against closed forms and direct computations, and their error bars against repeated draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import difftool
from difftool import PIXELS, Dataset, DatasetContext, Estimate, Level, Metric, Samples, Score, Sets
from difftool.data.samples import Mixture
from difftool.sampling.oracle import OracleSource
from difftool_plugins.metrics import bound, frechet, kernels
from difftool_plugins.metrics.checks import halves_error
from difftool_plugins.metrics.flow import flow
from difftool_plugins.metrics.held_out import HeldOut
from difftool_plugins.metrics.manifolds import prdc
from difftool_plugins.metrics.mixture import Gaussians
from difftool_plugins.metrics.sliced import sliced_w2

OF_FEATURES = ("fid", "kid", "mmd", "prdc", "sliced-w2")
NOTHING = torch.empty(0, 0)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, width: int, seed: int = 0, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn(n, width, generator=random(seed))


def metric(name: str, **options: Any) -> Metric:
    made = difftool.component("metric", name, **options)
    assert isinstance(made, Metric)
    return made


def scores(name: str, x: Tensor, y: Tensor, **options: Any) -> dict[str, Score]:
    return {score.name: score for score in metric(name, **options).measure(Sets(samples=x, reference=y))}


# Frechet distance


def gaussian(mean: Tensor, covariance: Tensor) -> frechet.Gaussian:
    return frechet.Gaussian(mean.double(), covariance.double())


def test_frechet_distance_of_commuting_gaussians() -> None:
    """Then it is |m_1 - m_2|^2 + sum of (s_1 - s_2)^2 over the common axes."""
    axes, _ = torch.linalg.qr(normal(5, 5).double())
    first, second = torch.tensor([1.0, 2, 3, 4, 5]).double(), torch.tensor([2.0, 2, 1, 0.5, 6]).double()
    shift = torch.arange(5.0)
    a = gaussian(torch.zeros(5), axes * first.square() @ axes.T)
    b = gaussian(shift, axes * second.square() @ axes.T)
    expected = float(shift.square().sum() + (first - second).square().sum())
    assert frechet.frechet(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_any_gaussians_has_the_eigenvalues_of_the_product() -> None:
    x, y = normal(50, 6, 1) @ normal(6, 6, 2), normal(70, 6, 3) @ normal(6, 6, 4) + 0.3
    s, t = torch.cov(x.double().T), torch.cov(y.double().T)
    roots = torch.linalg.eigvals(s @ t).sqrt().real.sum()
    expected = float((x.double().mean(0) - y.double().mean(0)).square().sum() + s.trace() + t.trace() - 2 * roots)
    value, _ = frechet.frechet_with_error(x, y)
    assert value == pytest.approx(expected, rel=1e-6)
    assert frechet.frechet_with_error(y, x)[0] == pytest.approx(value, rel=1e-9)


def test_frechet_distance_of_singular_covariances() -> None:
    """Features that are constant, and fewer vectors than features, where roots of tiny eigenvalues may be NaN."""
    a, b = torch.tensor([4.0, 0, 1, 0]), torch.tensor([1.0, 9, 0, 0])
    found = frechet.frechet(gaussian(torch.zeros(4), torch.diag(a)), gaussian(torch.zeros(4), torch.diag(b)))
    assert found == pytest.approx(1 + 9 + 1, rel=1e-4)
    x, y = normal(10, 30), normal(12, 30, 1)
    value, error = frechet.frechet_with_error(x, y)
    s, t = torch.cov(x.double().T), torch.cov(y.double().T)
    nuclear = torch.linalg.svdvals((x - x.mean(0)).double() @ (y - y.mean(0)).double().T).sum() / math.sqrt(9 * 11)
    expected = float((x.mean(0) - y.mean(0)).double().square().sum() + s.trace() + t.trace() - 2 * nuclear)
    assert value == pytest.approx(expected, rel=1e-4)
    assert 0 < error < value
    assert frechet.frechet_with_error(torch.ones(4, 3), torch.zeros(4, 3))[0] == pytest.approx(3)


def test_features_wider_than_the_sets_are_rotated_into_the_space_of_both() -> None:
    x, y = normal(12, 60), normal(15, 60, 1, mean=0.5)
    narrow = frechet.rotated(x, y)
    assert narrow[0].shape == (12, 27)
    for found, expected in zip(frechet.frechet_with_error(*narrow), frechet.frechet_with_error(x, y), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_frechet_refuses_more_features_than_it_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "WIDEST", 16)
    with pytest.raises(ValueError, match="20 features are more than 16; choose smaller ones, such as pca"):
        scores("fid", normal(30, 20), normal(30, 20, 1))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.4, 1.3)], ids=["of one distribution", "of two"])
def test_the_limit_of_the_frechet_distance_has_no_bias_and_its_error_bar_covers(mean: float, std: float) -> None:
    width, truth = 4, 4 * (mean**2 + (std - 1) ** 2)

    def measure(seed: int) -> tuple[float, float]:
        found = scores("fid", normal(150, width, 2 * seed, mean=mean, std=std), normal(200, width, 2 * seed + 1))
        limit, error = found["fid-infinity"], found["fid"].error
        assert error is not None
        assert limit.value < found["fid"].value
        return limit.value, error

    values, errors = torch.tensor([measure(seed) for seed in range(60)], dtype=torch.float64).T
    spread, error = float(values.std()), float(errors.square().mean().sqrt())
    assert abs(float(values.mean()) - truth) < 3 * spread / math.sqrt(60)
    assert 0.75 < error / spread < 1.5


def test_the_limit_of_the_frechet_distance_needs_four_vectors_for_each_feature() -> None:
    assert set(scores("fid", normal(40, 10), normal(40, 10, 1))) == {"fid", "fid-infinity"}
    assert set(scores("fid", normal(39, 10), normal(90, 10, 1))) == {"fid"}


def test_moments_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(50, 4), normal(40, 4, 1, mean=0.3)
    whole = frechet.frechet_with_error(x, y)
    monkeypatch.setattr(frechet, "ROWS", 7)
    assert frechet.frechet_with_error(x, y) == pytest.approx(whole, rel=1e-9)


# Kernel distances


def direct(kernel: kernels.Kernel, x: Tensor, y: Tensor) -> float:
    """The definition, with loops."""
    x, y = x.double(), y.double()

    def mean(a: Tensor, b: Tensor) -> float:
        values = kernel(a, b)
        pairs = [float(values[i, j]) for i in range(len(a)) for j in range(len(b)) if a is not b or i != j]
        return sum(pairs) / len(pairs)

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


KERNELS = {"cubic": kernels.cubic, "gaussians": kernels.gaussians(torch.tensor([0.5, 2.0]))}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


@every_kernel
def test_kernel_distances_are_their_definition_in_blocks_of_any_size(
    kernel: kernels.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = normal(11, 3), normal(9, 3, 1, mean=0.5)
    whole = kernels.mmd_squared(kernel, x, y)
    assert whole[0] == pytest.approx(direct(kernel, x, y), rel=1e-9)
    monkeypatch.setattr(kernels, "BLOCK", 4)
    assert kernels.mmd_squared(kernel, x, y) == pytest.approx(whole, rel=1e-9)


def test_the_cubic_kernel_is_that_of_the_paper() -> None:
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    assert float(kernels.cubic(x.double(), y.double())) == pytest.approx((11 / 2 + 1) ** 3)


def test_the_gaussian_kernel_has_its_bandwidth() -> None:
    x, y = torch.zeros(1, 2).double(), torch.tensor([[3.0, 4.0]]).double()
    assert float(kernels.gaussians(torch.tensor([5.0]))(x, y)) == pytest.approx(math.exp(-0.5))


@every_kernel
@pytest.mark.parametrize("mean", [0.0, 0.5], ids=["of one distribution", "of two"])
def test_error_bars_of_kernel_distances_cover(kernel: kernels.Kernel, mean: float) -> None:
    """Those of one distribution have no first order, and their variance must come from the second."""

    def measure(seed: int) -> tuple[float, float]:
        return kernels.mmd_squared(kernel, normal(60, 2, 2 * seed, mean=mean), normal(90, 2, 2 * seed + 1))

    values, errors = torch.tensor([measure(seed) for seed in range(150)], dtype=torch.float64).T
    spread, error = float(values.std()), float(errors.square().mean().sqrt())
    assert 0.85 < error / spread < 1.45
    if mean == 0:
        assert abs(float(values.mean())) < 3 * spread / math.sqrt(150)


def test_the_median_distance_is_that_of_all_pairs() -> None:
    assert kernels.median_distance(torch.tensor([[0.0], [1.0], [3.0]])) == 2.0  # of 1, 2 and 3


# Neighbours and projections


def direct_prdc(x: Tensor, y: Tensor, k: int) -> list[float]:
    """The definitions, with loops over balls."""

    def reach(z: Tensor) -> list[float]:
        return [float((z - one).norm(dim=1).sort().values[k]) for one in z]

    def counts(points: Tensor, centres: Tensor) -> Tensor:
        radii = reach(centres)
        return torch.tensor([[float((p - c).norm()) <= r for c, r in zip(centres, radii, strict=True)] for p in points])

    inside = counts(x, y)
    precision, recall = inside.any(1), counts(y, x).any(1)
    return [float(v) for v in (precision.double().mean(), recall.double().mean())] + [
        float(inside.sum() / (k * len(x))),
        float(inside.any(0).double().mean()),
    ]


def test_precision_recall_density_and_coverage_are_their_definitions() -> None:
    x, y = normal(30, 3, mean=0.4, std=0.7).double(), normal(40, 3, 1).double()
    assert prdc(x, y, 3).tolist() == pytest.approx(direct_prdc(x, y, 3))
    assert prdc(x, y, 3)[0] == prdc(y, x, 3)[1]  # the recall of the other set


def test_one_mode_of_two_is_precise_and_recalls_half() -> None:
    y = torch.cat([normal(200, 2, std=0.1), normal(200, 2, 1, mean=5, std=0.1)])
    found = scores("prdc", normal(200, 2, 2, std=0.1), y)
    assert found["precision"].value > 0.9
    assert found["recall"].value == pytest.approx(0.5, abs=0.05)
    assert found["coverage"].value == pytest.approx(0.5, abs=0.05)
    assert found["density"].value == pytest.approx(1.0, abs=0.2)
    assert all(score.better == "higher" for score in found.values())


def test_a_share_that_all_halves_agree_on_still_has_an_error_bar() -> None:
    found = scores("prdc", normal(50, 2), normal(50, 2, 1, mean=1000))
    assert found["precision"].value == 0
    assert found["precision"].error == pytest.approx(1 / 52, rel=0.05)


def test_the_error_of_halves_is_that_of_a_difference_of_means() -> None:
    def difference(x: Tensor, y: Tensor) -> Tensor:
        return (x.mean() - y.mean()).view(1)

    squares = [
        float(halves_error(difference, normal(60, 1, 2 * seed), normal(90, 1, 2 * seed + 1), random(seed))) ** 2
        for seed in range(60)
    ]
    assert sum(squares) / len(squares) == pytest.approx(1 / 60 + 1 / 90, rel=0.2)


def test_sliced_distance_of_a_shift_is_its_mean_length_over_directions() -> None:
    y = normal(50, 3)
    shift = torch.tensor([3.0, 0.0, 4.0])
    value, error = sliced_w2(y + shift, y, 1000, random())
    assert value == pytest.approx(5 / math.sqrt(3), rel=0.05)
    assert error > 0


def test_sliced_distance_of_sets_of_any_sizes_is_that_of_their_quantiles() -> None:
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [3.0]])
    # over sixths: 0 0 1 1 2 2 against 0 0 0 3 3 3
    squares = [0, 0, 1, 4, 1, 1]
    assert sliced_w2(x, y, 1, random())[0] == pytest.approx(math.sqrt(sum(squares) / 6))
    assert sliced_w2(x, x.repeat(5, 1), 1, random())[0] == 0
    fine = ((torch.arange(35 * 21) + 0.5) / (35 * 21)).double()
    a, b = normal(35, 1), normal(21, 1, 1)
    sorted_a, sorted_b = (z.flatten().sort().values for z in (a, b))
    expected = (sorted_a[(fine * 35).long()] - sorted_b[(fine * 21).long()]).square().mean().sqrt()
    assert sliced_w2(a, b, 1, random())[0] == pytest.approx(float(expected), rel=1e-5)


# All metrics of features


@pytest.mark.parametrize("name", OF_FEATURES)
def test_a_metric_tells_like_sets_from_unlike_ones(name: str) -> None:
    y = normal(150, 4)
    like, unlike = scores(name, normal(120, 4, 1), y), scores(name, normal(120, 4, 2, mean=1), y)
    for score in like.values():
        other, worse = unlike[score.name], -1 if score.better == "higher" else 1
        assert score.error is not None
        assert other.error is not None
        assert worse * (other.value - score.value) > 2 * math.hypot(score.error, other.error), score.name
        assert score.n == 120


@pytest.mark.parametrize("name", ["fid", "mmd", "prdc"])
def test_a_metric_does_not_change_when_both_sets_are_turned_and_moved(name: str) -> None:
    x, y = normal(40, 3, mean=0.3), normal(50, 3, 1)
    axes, _ = torch.linalg.qr(normal(3, 3, 2).double())
    moved = [(one.double() @ axes + 7.0).float() for one in (x, y)]
    for before, after in zip(scores(name, x, y).values(), scores(name, *moved).values(), strict=True):
        assert after.value == pytest.approx(before.value, rel=1e-4, abs=1e-5), before.name


@pytest.mark.parametrize("name", OF_FEATURES)
def test_a_metric_is_a_function_of_the_seed(name: str) -> None:
    x, y = normal(40, 3), normal(50, 3, 1)
    assert scores(name, x, y) == scores(name, x, y)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_sets_that_cannot_be_compared_are_refused_in_one_line(name: str) -> None:
    x, y = normal(40, 3), normal(50, 3, 1)
    with pytest.raises(ValueError, match=r"needs at least \d+ samples, not 1$"):
        scores(name, x[:1], y)
    with pytest.raises(ValueError, match=r"needs at least \d+ data, not 1$"):
        scores(name, x, y[:1])
    with pytest.raises(ValueError, match="samples have 3 features and data 2"):
        scores(name, x, y[:, :2])
    spoilt = x.clone()
    spoilt[7, 1] = math.nan
    with pytest.raises(ValueError, match=r"features of the samples hold NaN or infinite numbers \(first in row 7\)"):
        scores(name, spoilt, y)


def test_mmd_refuses_data_that_are_all_alike_and_no_bandwidths() -> None:
    with pytest.raises(ValueError, match="half of the data are alike"):
        scores("mmd", normal(9, 2), torch.zeros(9, 2))
    with pytest.raises(difftool.UsageError, match="bandwidths: must have at least one"):
        metric("mmd", bandwidths=())


# Known distributions and likelihood


class Known(Dataset, name="known-in-these-tests"):
    """Points or pixels of two Gaussians."""

    shape: tuple[int, ...] = difftool.option(default=(20,))
    pixels: bool = difftool.option(default=False)

    def load(self, context: DatasetContext) -> Samples:
        means = torch.zeros(2, *self.shape, dtype=torch.float64)
        means[1].flatten()[::2] += 1.0
        scale, centre = (20.0, 100.0) if self.pixels else (1.0, 0.0)
        means = centre + scale * means
        noise = torch.randn(400, *self.shape, generator=context.generator("noise"), dtype=torch.float64)
        items = means[torch.arange(400) % 2] + 0.5 * scale * noise
        if not self.pixels:
            return Samples(
                items=items.float(),
                shape=self.shape,
                shift=(0.5,),
                scale=(0.8,),
                mixture=Mixture(means=means, std=0.5 * scale),
            )
        # rounding adds the variance of a uniform number
        std = math.sqrt((0.5 * scale) ** 2 + 1 / 12)
        rounded = items.round().clamp(0, 255).to(torch.uint8)
        return Samples(items=rounded, shape=self.shape, mixture=Mixture(means=means, std=std), **PIXELS)


def source(schedule: str = "linear", *, timesteps: int = 1000, dataset: Dataset | None = None, **options: Any) -> Any:
    """An oracle that knows the data: by default eight Gaussians in the plane, narrow ones."""
    parts = [difftool.component(kind, name) for kind, name in (("oracle", "closed-form"), ("schedule", schedule))]
    data = dataset or difftool.component("dataset", "gaussian-mixture", n=400, **options)
    return OracleSource.of(parts[0], data, parts[1], timesteps=timesteps)  # type: ignore[arg-type]


def sets_of(model: Any, seed: int = 0) -> Sets:
    return Sets(samples=NOTHING, reference=NOTHING, model=model, held_out=model.load_samples(), seed=seed)


def exact_bits(items: HeldOut) -> Tensor:
    """The bits a dimension of each item (N,), from the formula of the density, in data units."""
    parts = Gaussians.of(items.model.load_samples()).log_parts(items.x.flatten(1))
    return items.bits(-parts.logsumexp(1), density=True)


SCHEDULES = ("linear", "cosine", "flow", "ve")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_flow_has_the_exact_density_of_a_mixture_of_gaussians(schedule: str) -> None:
    sets = sets_of(source(schedule, timesteps=4000))
    items = HeldOut.of(sets, 40)
    found = items.bits(flow(items, 100, sets), density=True)
    assert float((found - exact_bits(items)).mean().abs()) < 1e-3
    assert float((found - exact_bits(items)).abs().max()) < 0.03  # by the noise of the first level


def test_the_flow_of_classes_has_the_density_of_each_items_class() -> None:
    model = source("cosine", components=3, labels=True)  # of linear, 0.6 % of the class's mean is left at the end
    sets = sets_of(model)
    items = HeldOut.of(sets, 10)
    found = items.bits(flow(items, 60, sets), density=True)
    assert items.condition is not None
    mixture = Gaussians.of(model.load_samples())
    own = mixture.log_parts(items.x).gather(1, items.condition.label[:, None]) + math.log(3)  # type: ignore[index]
    assert float((found - items.bits(-own[:, 0], density=True)).abs().max()) < 0.03


def test_the_divergence_of_many_dimensions_is_estimated_without_bias() -> None:
    sets = sets_of(source(dataset=Known()))
    items = HeldOut.of(sets, 200)
    assert items.width > 16
    difference = items.bits(flow(items, 40, sets), density=True) - exact_bits(items)
    error = float(difference.std()) / math.sqrt(len(items))
    assert 1e-4 < error < 0.02
    assert abs(float(difference.mean())) < 3 * error


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_is_above_the_exact_value_and_closes_with_more_levels(schedule: str) -> None:
    gaps = []
    for timesteps in (30, 500):
        sets = sets_of(source(schedule, timesteps=timesteps))
        items = HeldOut.of(sets, 400)
        gap = items.bits(bound.bound(items, timesteps, sets), density=True) - exact_bits(items)
        gaps.append((float(gap.mean()), float(gap.std()) / math.sqrt(len(items))))
    (few, few_error), (many, many_error) = gaps
    assert few > 3 * few_error
    assert -3 * many_error < many < 0.15
    assert many < few - 3 * math.hypot(few_error, many_error)


def test_drawn_levels_estimate_the_sum_over_all_of_them() -> None:
    sets = sets_of(source(timesteps=100))
    items = HeldOut.of(sets, 400)
    assert float(bound.importance(items).sum()) == pytest.approx(1)
    whole, drawn = (items.bits(bound.diffusion(items, levels, sets), density=True) for levels in (100, 10))
    error = math.hypot(float(whole.std()), float(drawn.std())) / math.sqrt(len(items))
    assert abs(float(whole.mean() - drawn.mean())) < 3 * error
    assert error < 0.2


def test_a_learned_variance_of_beta_is_that_of_white_data() -> None:
    """Of a variance-preserving table, for data of deviation 1."""
    model = source(timesteps=30)
    sets = sets_of(model)
    items = HeldOut.of(sets, 20)
    assert model.data.std == pytest.approx(1, abs=1e-3)
    fixed = bound.terms(items, torch.arange(20), 10, sets)
    plain = model.denoiser

    def learned(count: int, **settings: Any) -> Callable[[Tensor, Level], Estimate]:
        denoise = plain(count, **settings)

        def with_fraction(x: Tensor, level: Level) -> Estimate:
            return replace(denoise(x, level), variance_fraction=torch.ones_like(x))

        return with_fraction

    model.denoiser = learned
    assert bound.terms(items, torch.arange(20), 10, sets).tolist() == pytest.approx(fixed.tolist(), rel=1e-3)


def test_pixels_have_the_bits_of_their_distribution_by_bound_and_flow() -> None:
    """The entropy of rounded numbers is that of their density, which is wide beside a bin."""
    model = source("cosine", dataset=Known(shape=(1, 5, 5), pixels=True))
    sets = sets_of(model)
    items = HeldOut.of(sets, 60)
    assert items.pixels is not None
    by_bound = items.bits(bound.bound(items, 200, sets), density=False)
    by_flow = items.bits(flow(items, 30, sets), density=True)
    exact = exact_bits(items)
    assert 4.5 < float(exact.mean()) < 6  # of a density in pixels: log2(10 sqrt(2 pi e)) = 5.4
    assert float((by_flow - exact).mean()) == pytest.approx(0, abs=0.02)
    assert -0.03 < float((by_bound - exact).mean()) < 0.15


def test_the_bins_of_a_pixel_have_probability_one_together() -> None:
    edges = torch.cat([torch.tensor([-math.inf]), torch.linspace(-40, 60, 400), torch.tensor([math.inf])]).double()
    logs = bound.log_normal_between(edges[:-1], edges[1:])
    assert bool(logs.isfinite().all())
    assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert float(bound.log_normal_between(*torch.tensor([[30.0], [31.0]]).double())) == pytest.approx(-454.32, abs=0.01)


def test_a_schedule_that_begins_without_noise_has_no_bound() -> None:
    model = source("flow", timesteps=10)
    model.schedule = difftool.Schedule(*(torch.linspace(*ends, 10).double() for ends in ((1, 0.1), (0, 1))))
    with pytest.raises(ValueError, match="no noise at its first level"):
        metric("likelihood").measure(sets_of(model))


def test_likelihood_scores_have_error_bars_over_items() -> None:
    found = metric("likelihood", items=50, levels=20, steps=30).measure(sets_of(source()))
    assert [(score.name, score.unit, score.n) for score in found] == [
        ("bits-per-dim-vb", "bits/dim", 50),
        ("bits-per-dim-flow", "bits/dim", 50),
    ]
    assert all(score.error is not None and 0 < score.error < 0.5 for score in found)


def test_likelihood_refuses_latents_and_items_of_another_shape() -> None:
    model = source()
    with pytest.raises(ValueError, match="needs a model"):
        metric("likelihood").measure(replace(sets_of(model), model=None))
    with pytest.raises(ValueError, match=r"the items are \(3,\), and those of the model \(2,\)"):
        metric("likelihood").measure(replace(sets_of(model), held_out=difftool.points(normal(9, 3))))
    model.latents = object()
    with pytest.raises(ValueError, match="works in the latents of a codec"):
        metric("likelihood").measure(sets_of(model))


def known_scores(x: Tensor, samples: Samples, seed: int = 0) -> dict[str, Score]:
    sets = Sets(samples=x, reference=x, held_out=samples, seed=seed)
    return {score.name: score for score in metric("known", draws=1000).measure(sets)}


def test_draws_of_a_known_mixture_are_as_good_as_can_be() -> None:
    samples = source().load_samples()
    mixture = Gaussians.of(samples)
    found = known_scores(mixture.draw(500, random()).float(), samples)
    assert found["known-density"].value < 3 * found["known-density"].error  # type: ignore[operator]
    assert found["known-modes"].value < 0.1
    assert found["known-w2"].value < 0.2


def test_a_lost_mode_and_a_wide_one_are_told_apart() -> None:
    samples = source().load_samples()
    mixture = Gaussians.of(samples)
    x = mixture.draw(800, random())
    lost = x[(x - mixture.means[0]).norm(dim=1) > 8 * float(mixture.std[0])]
    found = known_scores(lost.float(), samples)
    assert found["known-modes"].value == pytest.approx(1 / 8, abs=0.04)
    assert found["known-density"].value < 3 * found["known-density"].error  # type: ignore[operator]
    wide = mixture.means[torch.arange(800) % 8] + 2 * mixture.std * normal(800, 2)
    # a deviation twice as large costs (4 - 1) / 2 nats in each dimension
    assert known_scores(wide.float(), samples)["known-density"].value == pytest.approx(1.5 / math.log(2), rel=0.1)


def test_known_refuses_data_without_a_formula() -> None:
    with pytest.raises(ValueError, match="no formula is known of these data"):
        known_scores(normal(9, 2), difftool.points(normal(9, 2)))
    at_points = source(std=0.0).load_samples()
    with pytest.raises(ValueError, match="single points, which have no density"):
        known_scores(normal(9, 2), at_points)
