"""Is it a copy? Nearest items, what is expected by chance, the verdicts, and the picture of the pairs."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import difftool
from difftool import PIXELS, Samples, component
from difftool.data.scaling import Scaling
from difftool.evaluation import neighbours
from difftool.evaluation.copies import Copies, copies, distinct, limit_by_chance
from difftool.evaluation.neighbours import nearest, square_blocks
from difftool.figures.pairs import Pairs
from difftool.figures.style import render

SCALING = Scaling((127.5,), (127.5,))


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


# Nearest items


@pytest.mark.parametrize("d", [1, 3, 50])
def test_nearest_items_are_those_of_all_differences(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS", 7)
    queries, items = normal(20, d), normal(33, d, seed=1)
    expected = (queries[:, None].double() - items.double()).square().sum(2).sqrt().sort(dim=1)
    distances, indices = nearest(queries, items, 4)
    torch.testing.assert_close(distances, expected.values[:, :4], rtol=1e-12, atol=0)
    assert torch.equal(indices, expected.indices[:, :4])


def test_a_copy_has_distance_0_far_from_the_origin() -> None:
    """float32 has 1e-3 of room at 1e4, where |x|^2 - 2 x y + |y|^2 would be wrong by more than the distances."""
    items = 1e4 + normal(500, 8)
    queries = items[::5] + torch.where(torch.arange(8) == 0, 2e-3, 0.0)
    queries[0] = items[0]
    distances, indices = nearest(queries, items)
    assert torch.equal(indices[:, 0], torch.arange(0, 500, 5))
    assert distances[0, 0] == 0
    assert distances[1:].max() < 4e-3


def test_no_item_is_its_own_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS", 4)
    items = torch.tensor([[0.0], [1.0], [1.0], [5.0], [7.0]])
    distances, indices = nearest(items, items, others=True)
    assert distances[:, 0].tolist() == [1, 0, 0, 2, 2]
    assert indices[1:, 0].tolist() == [2, 1, 4, 3]
    with pytest.raises(ValueError, match="there are 4 items, of which 5 cannot be found"):
        nearest(items, items, 5, others=True)


def test_blocks_stay_small_however_long_vectors_are() -> None:
    x = normal(3, neighbours.NUMBERS // 2)
    assert [squares.shape for _, _, squares in square_blocks(x, x)] == [(2, 2), (2, 1), (1, 2), (1, 1)]


# What comes by chance


@pytest.mark.parametrize(("n", "unseen", "rank"), [(50, 20, 1), (500, 99, 5), (1000, 1000, 50)])
def test_the_limit_is_that_of_the_beta_binomial_distribution(n: int, unseen: int, rank: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    limit = limit_by_chance(n, unseen, rank)
    assert limit is not None
    below = stats.betabinom(n, rank, unseen + 1 - rank)
    assert below.sf(round(limit * n) - 1) < 2e-3 <= below.sf(round(limit * n) - 2)


def test_few_samples_reach_no_limit() -> None:
    """All n samples lie below the smallest of m unseen values with probability 1 / C(n + m, n)."""
    assert limit_by_chance(1, 400, 1) is None
    assert comb(2 + 30, 2) == 496
    assert limit_by_chance(2, 30, 1) is None
    assert comb(2 + 31, 2) == 528
    assert limit_by_chance(2, 31, 1) == 1.0


@pytest.mark.parametrize(("train", "held_out"), [(300, 100), (20, 100), (1000, 0)])
def test_new_samples_are_no_copies(train: int, held_out: int) -> None:
    runs = [
        copies(
            normal(200, 6, seed), normal(train, 6, seed + 1000), normal(held_out, 6, seed + 2000) if held_out else None
        )
        for seed in range(20, 50)
    ]
    assert {run.verdict for run in runs} == {"no copies found"}
    assert np.mean([run.share.value for run in runs]) == pytest.approx(runs[0].share.expected, abs=0.012)
    assert runs[0].baseline == ("held-out" if held_out else "train")


# Verdicts


def with_copies(count: int, *, noise: float = 0.1, d: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Return 500 samples of which so many are noisy copies, the training items, and those held out."""
    train = normal(1000, d, 1)
    samples = normal(500, d, 2)
    samples[:count] = train[:count] + noise * normal(count, d, 3)
    return samples, train, normal(300, d, 4)


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("count", [20, 200, 500])
def test_noisy_copies_are_found(count: int, held_out: bool) -> None:
    samples, train, unseen = with_copies(count)
    found = copies(samples, train, unseen if held_out else None)
    assert found.verdict == "copies found"
    assert found.share.value >= count / 500
    assert all(pair.sample == pair.item < count for pair in found.nearest)
    assert [pair.relative for pair in found.nearest] == sorted(pair.relative for pair in found.nearest)


def test_each_training_item_is_shown_once() -> None:
    samples, train, held_out = with_copies(40)
    samples[20:40] = train[:20] + 0.01 * normal(20, 16, 5)  # nearer than the first ones
    pairs = copies(samples, train, held_out).nearest
    assert len({pair.item for pair in pairs}) == len(pairs) == 12
    assert all(pair.sample == pair.item + 20 for pair in pairs)


def test_copies_of_what_the_training_data_repeat_are_found() -> None:
    samples, train, _ = with_copies(100)
    repeated = torch.cat([train[:100].repeat(20, 1), train])
    assert copies(samples, repeated).verdict == "copies found"
    assert distinct(repeated).tolist() == [*range(100), *range(2100, 3000)]


def test_smooth_samples_are_near_to_everything_and_no_copies() -> None:
    _, train, held_out = with_copies(0, d=64)
    smooth = copies(0.5 * normal(500, 64, 9), train, held_out)
    assert smooth.absolute > 0.9
    assert smooth.verdict == copies(0.5 * normal(500, 64, 9), train).verdict == "no copies found"


def test_a_few_exact_copies_are_found_among_few_held_out_items() -> None:
    samples, train, held_out = with_copies(10, noise=0)
    assert copies(samples, train, held_out[:110]).verdict == "copies found"


def test_a_slight_excess_is_called_nothing_worse() -> None:
    """Half of the samples have gone a tenth of their way to the nearest training item."""
    train, held_out = normal(3000, 8, 1), normal(3000, 8, 2)
    samples = normal(4000, 8, 3)
    near = train[nearest(samples, train)[1][:, 0]]
    samples[:2000] += 0.1 * (near - samples)[:2000]
    found = copies(samples, train, held_out)
    assert found.verdict == "nearer than new data"
    assert found.share.limit is not None
    assert found.share.limit <= found.share.value < 2 * found.share.expected


@pytest.mark.parametrize(("n", "train"), [(500, 20), (3, 1000), (500, 5), (500, 2), (500, 1)])
def test_too_few_items_clear_no_model(n: int, train: int) -> None:
    found = copies(normal(n, 4), normal(train, 4, 1))
    assert found.verdict == "too few to tell"
    assert found.words("images").startswith("too few to tell: ")
    assert f"{train:,} training images" in found.words("images")


def test_a_few_held_out_items_are_not_used_beside_many_training_items() -> None:
    samples, train, held_out = with_copies(0)
    assert copies(samples, train, held_out[:60]).baseline == "train"
    assert copies(samples, train[:40], held_out[:60]).baseline == "held-out"


def test_held_out_items_that_are_trained_on_tell_nothing() -> None:
    samples, train, _ = with_copies(100)
    found = copies(samples, train, train[:200])
    assert found.verdict == "cannot tell"
    assert "200 held-out images are among the training images" in found.words("images")


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="the features of the samples are not finite"):
        copies(torch.full((5, 2), torch.nan), normal(30, 2))


def test_the_result_in_words() -> None:
    samples, train, held_out = with_copies(50, noise=0)
    words = copies(samples, train, held_out).words("images")
    assert words.startswith("copies found: 1")
    assert " % of 500 samples are nearer to one of the training images than 95 % of 300 held-out images (by ch" in words
    assert words.endswith("; 10 % equal one")


# Trained models


def digits() -> Tensor:
    images = pytest.importorskip("sklearn.datasets").load_digits().images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy((images * (255 / 16)).round().astype(np.uint8))[:, None][order]


def trained_on(count: int, folder: Path) -> Copies:
    """Train on so many digits, and judge samples in pixels."""
    images = digits()
    model = difftool.train(
        dataset=Samples(items=images[:count], shape=(1, 8, 8), **PIXELS),
        backbone=component("backbone", "mlp", width=128, depth=3),
        prediction="x0",
        steps=1000,
        lr=3e-3,
        batch_size=32,
        out=folder / "run",
        progress=False,
    )
    samples = model.sample(200, sampler="ddim", steps=20, seed=1)
    return copies(*(SCALING.to_model(each).flatten(1) for each in (samples, images[:count], images[1437:])))


def test_a_model_that_overfits_twenty_images_is_caught(tmp_path: Path) -> None:
    found = trained_on(20, tmp_path)
    assert found.verdict == "copies found"
    assert found.share.value > 0.3


def test_a_model_that_was_trained_on_many_images_is_cleared(tmp_path: Path) -> None:
    found = trained_on(1437, tmp_path)
    assert found.verdict == "no copies found"
    assert found.share.value < 0.05


# The picture


@pytest.mark.parametrize(("form", "shape"), [("image", (1, 8, 8)), ("image", (3, 6, 9)), ("film", (3, 6, 8, 8))])
def test_samples_are_drawn_above_their_items(form: str, shape: tuple[int, ...]) -> None:
    """Each sample and each item has one brightness, by which it is found again in the picture."""
    levels = torch.arange(10, 250, 10, dtype=torch.float32)
    x, items = (SCALING.to_model(each.view(12, *(1,) * len(shape)).expand(12, *shape)) for each in levels.chunk(2))
    captions = [f"0.1 ({k}) name" for k in range(12)]
    figure = Pairs(x=x, items=items, captions=captions, scaling=SCALING, form=form, title="Nearest").figure()  # type: ignore[arg-type]
    assert figure is not None
    assert {"Nearest", "sample", "nearest in training"} <= {text.get_text() for text in figure.texts}
    assert [t for t in (text.get_text().replace("\n", " ") for text in figure.texts) if "name" in t] == captions
    pixels = render(figure).astype(int)
    places = {}
    for level in levels.int().tolist():
        rows, columns = np.nonzero((pixels == level).all(axis=2))
        places[level] = rows.mean(), columns.mean()
    for k in range(12):
        above, below = places[10 + 10 * k], places[130 + 10 * k]
        assert above[0] < below[0]
        assert above[1] == pytest.approx(below[1], abs=3)


def test_series_are_drawn_and_points_are_not(tmp_path: Path) -> None:
    unit = Scaling((0.0,), (1.0,))
    points = Pairs(x=normal(3, 2), items=normal(3, 2), captions=["a"] * 3, scaling=unit, title="")
    assert points.figure() is None
    assert not points.save(tmp_path / "points.png")
    x = normal(3, 20).view(3, 1, 20)
    series = Pairs(x=x, items=x, captions=["a"] * 3, scaling=unit, title="", form="series")
    assert series.save(tmp_path / "series.png")
    assert [path.name for path in tmp_path.iterdir()] == ["series.png"]
