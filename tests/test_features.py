"""The built-in features: pixels, principal components, scattering, a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from difftool import PIXELS, Features, FeaturesSpec, Samples, component, points
from difftool_plugins.features.wavelets import Bank, filters

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(n: int, *shape: int, seed: int = 0, **fields: Any) -> Samples:
    items = (127.5 + 50 * normal(n, *shape, seed=seed)).round().clamp(0, 255).to(torch.uint8)
    return Samples(items=items, shape=shape, **PIXELS, **fields)


def series(n: int, *shape: int) -> Samples:
    return Samples(items=normal(n, *shape), shape=shape, form="series")


def built(data: Samples, name: str, *, seed: int = 0, **options: Any) -> Callable[[Tensor], Tensor]:
    features = component("features", name, **options)
    assert isinstance(features, Features)
    return features.build(FeaturesSpec(shape=data.shape, form=str(data.form), device=CPU, seed=seed), data)


@pytest.fixture(scope="module")
def digits() -> tuple[Samples, Tensor]:
    """1,200 digits to train on, and others."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    items = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8))[:, None][order]
    labels = torch.from_numpy(found.target)[order]
    names = tuple(map(str, range(10)))
    train = Samples(items=items[:1200], shape=(1, 8, 8), labels=labels[:1200], class_names=names, **PIXELS)
    return train, items[1200:]


# Of all features

OPTIONS: dict[str, dict[str, Any]] = {"pixels": {}, "pca": {}, "scattering": {}, "classifier": {"steps": 20}}


@pytest.mark.parametrize("name", OPTIONS)
def test_features_of_an_item_are_its_own_and_the_same_every_time(name: str) -> None:
    labels = torch.arange(80) % 4
    data = images(80, 3, 12, 12, labels=labels)
    once, again = (built(data, name, **OPTIONS[name]) for _ in range(2))
    rows = once(data.items[:10])
    assert rows.dtype == torch.float32
    assert rows.ndim == 2
    assert torch.equal(rows, again(data.items[:10]))
    torch.testing.assert_close(torch.cat([once(data.items[i : i + 1]) for i in range(10)]), rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"), [("pca", {"components": 20}), ("scattering", {}), ("classifier", {"steps": 100})]
)
def test_better_images_are_nearer_in_features(
    name: str, options: dict[str, Any], digits: tuple[Samples, Tensor]
) -> None:
    """Digits that were held out, such with some noise, with more noise, and blurred ones: by Frechet distances."""
    data, others = digits
    features = built(data, name, **options)
    reference = features(data.items)

    def distance(items: Tensor) -> float:
        return frechet(features(items.round().clamp(0, 255).to(torch.uint8)), reference)

    noise = normal(*others.shape)
    blurred = torch.nn.functional.avg_pool2d(others.float(), 3, 1, 1)
    clean, noisy, noisier = (distance(others + std * noise) for std in (0, 40, 80))
    assert clean < noisy < noisier
    assert clean < 0.5 * distance(blurred)


def frechet(x: Tensor, y: Tensor) -> float:
    """Return the Frechet distance of Gaussians with the moments of two sets."""
    x, y = x.double(), y.double()
    a, b = x.T.cov(), y.T.cov()
    both = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * both)


# Pixels


def test_pixels_are_the_items_in_model_units() -> None:
    data = images(5, 3, 8, 8)
    torch.testing.assert_close(built(data, "pixels")(data.items), (data.items.float() / 127.5 - 1).flatten(1))
    plane = points(normal(9, 2, seed=1) * 3 + 7)
    assert built(plane, "pixels")(plane.items).mean(0).abs().max() < 1e-6  # type: ignore[arg-type]


def test_large_images_are_averaged_down() -> None:
    data = images(3, 3, 64, 32)
    rows = built(data, "pixels", most=3 * 32 * 16)(data.items)
    expected = data.items.float().view(3, 3, 32, 2, 16, 2).mean((3, 5)) / 127.5 - 1  # type: ignore[union-attr]
    torch.testing.assert_close(rows, expected.flatten(1))
    assert built(data, "pixels", most=100)(data.items).shape[1] <= 100
    assert built(series(3, 2, 400), "pixels", most=10)(normal(3, 2, 400)).shape == (3, 800)


def test_films_keep_their_frames() -> None:
    film = Samples(
        items=torch.zeros(2, 1, 5, 8, 8, dtype=torch.uint8), shape=(1, 5, 8, 8), **{**PIXELS, "form": "film"}
    )
    assert built(film, "pixels", most=5 * 16)(film.items).shape == (2, 5 * 16)


# Principal components


def test_principal_components_are_those_of_scikit_learn(digits: tuple[Samples, Tensor]) -> None:
    sklearn = pytest.importorskip("sklearn.decomposition")
    data, others = digits
    pixels = built(data, "pixels")
    for whiten in (False, True):
        reference = sklearn.PCA(n_components=12, whiten=whiten, svd_solver="full").fit(
            pixels(data.items).double().numpy()
        )
        expected = torch.from_numpy(reference.transform(pixels(others).double().numpy()))
        found = built(data, "pca", components=12, whiten=whiten)(others).double()
        signs = (found * expected).sum(0).sign()
        torch.testing.assert_close(found * signs, expected, rtol=1e-3, atol=1e-3)


def test_long_items_have_the_components_of_their_own_differences() -> None:
    """30 series of 2 x 3,000 numbers vary in 29 directions, in which no distance is lost."""
    data = series(30, 2, 3000)
    rows = built(data, "pca", components=64)(data.items)
    assert rows.shape == (30, 29)
    numbers = data.items.flatten(1).double()  # type: ignore[union-attr]
    torch.testing.assert_close(
        torch.cdist(rows.double(), rows.double()), torch.cdist(numbers, numbers), rtol=1e-4, atol=1e-3
    )
    whitened = built(data, "pca", components=64, whiten=True)(data.items)
    torch.testing.assert_close(whitened.T.cov(correction=0), torch.eye(29), rtol=0, atol=1e-4)


def test_equal_items_have_no_components() -> None:
    data = Samples(items=torch.full((5, 1, 8, 8), 7, dtype=torch.uint8), shape=(1, 8, 8), **PIXELS)
    with pytest.raises(ValueError, match="all training items are equal"):
        built(data, "pca")


# Scattering


@pytest.mark.parametrize(
    ("sides", "scales", "directions"), [((8, 8), 2, 6), ((33, 24), 3, 4), ((48, 48), 4, 8), ((256,), 6, 1)]
)
def test_the_first_order_keeps_all_energy(sides: tuple[int, ...], scales: int, directions: int) -> None:
    """|x|^2 = |x * phi|^2 + sum over psi of |x * psi|^2, a tight frame."""
    low, wavelets = filters(sides, scales, directions)
    assert wavelets.shape == (scales, directions, *sides)
    x = normal(*sides).double()
    axes = tuple(range(len(sides)))
    spectrum = torch.fft.fftn(x)
    parts = torch.cat([low[None], wavelets.flatten(0, 1)]) * spectrum
    energy = torch.fft.ifftn(parts, dim=tuple(a + 1 for a in axes)).abs().square().sum()
    assert float(energy) == pytest.approx(float(x.square().sum()), rel=1e-10)
    assert float(low[(0,) * len(sides)]) == pytest.approx(1, abs=1e-4)
    assert float(wavelets[(..., *(0,) * len(sides))].abs().max()) < 1e-6  # wavelets have mean 0


def smooth(*sides: int, seed: int = 0) -> Tensor:
    """Return noise (1, 1, *sides) on a torus whose power falls with the square of the frequency, as that of photos."""
    frequencies = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(n) * n for n in sides], indexing="ij"))
    spectrum = torch.fft.fftn(normal(*sides, seed=seed)) / frequencies.square().sum(0).sqrt().clamp(min=1)
    return torch.fft.ifftn(spectrum).real[None, None]


def torus(sides: tuple[int, ...], scales: int, directions: int) -> Bank:
    low, wavelets = filters(sides, scales, directions)
    return Bank(low.float(), wavelets.float(), [0] * len(sides))


def test_two_orders_hold_nearly_all_energy_of_a_photo() -> None:
    """Bruna and Mallat (2013, table 1) find 98 % and more for photos and J up to 4."""
    photo = pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg")[:420, :420].mean(2)
    x = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(photo, dtype=torch.float32)[None, None], 64)
    energies = [float(path.square().sum() / x.square().sum()) for path in torus((64, 64), 3, 6).paths(x)]
    assert len(energies) == 1 + 18 + 3 * 36
    assert 0.98 < sum(energies) <= 1 + 1e-5


def test_scattering_is_a_contraction() -> None:
    bank, x = torus((32, 32), 3, 6), smooth(32, 32)
    for y in (smooth(32, 32, seed=1), x + 0.1 * normal(1, 1, 32, 32), x.roll(1, -1)):
        moved = sum(float((a - b).square().sum()) for a, b in zip(bank.paths(x), bank.paths(y), strict=True))
        assert moved <= float((x - y).square().sum())


def test_small_shifts_hardly_matter() -> None:
    """Two crops of one picture, a pixel apart, are nearer to each other, as pictures go, than they are in pixels."""
    pictures = [255 * (smooth(64, 64, seed=k) / 4 + 0.5).clamp(0, 1) for k in range(60)]

    def crops(at: int) -> Tensor:
        return torch.cat([p[..., 10 : 10 + 24, at : at + 24] for p in pictures]).round().to(torch.uint8)

    data = Samples(items=crops(10), shape=(1, 24, 24), **PIXELS)
    features, pixels = built(data, "scattering"), built(data, "pixels")

    def shift(function: Callable[[Tensor], Tensor]) -> float:
        here, there = function(crops(10)), function(crops(11))
        return float((here - there).square().sum() / (here - here.roll(1, 0)).square().sum())

    assert shift(features) < 0.15
    assert shift(features) < 0.5 * shift(pixels)


@pytest.mark.parametrize(
    ("shape", "form", "count"),
    [
        ((1, 8, 8), "image", 1 + 12 + 36),
        ((3, 40, 60), "image", 3 * (1 + 18 + 108)),
        ((2, 64), "series", 2 * (1 + 5 + 10)),
    ],
)
def test_the_number_of_features(shape: tuple[int, ...], form: str, count: int) -> None:
    data = images(6, *shape) if form == "image" else series(6, *shape)
    rows = built(data, "scattering")(data.items)
    assert rows.shape == (6, count)
    torch.testing.assert_close(rows.mean(0), torch.zeros(count), rtol=0, atol=1e-5)
    assert built(data, "scattering", grid=2)(data.items).shape == (6, count * 2 ** (len(shape) - 1))


def test_tones_differ_by_their_pitch_and_not_by_their_phase() -> None:
    time = torch.arange(256) / 256
    tones = torch.stack([torch.sin(2 * math.pi * (f * time + p)) for f in (6, 12, 24, 48) for p in (0.0, 0.2, 0.4)])
    _, *wavelets = (path.mean(2).view(4, 3) for path in torus((256,), 5, 1).paths(tones[:, None]))
    first = torch.stack([path for path in wavelets if path.max() > 0.1])
    torch.testing.assert_close(first, first[..., :1].expand_as(first), rtol=1e-4, atol=1e-4)
    assert first[..., 0].argmax(1).tolist() == [3, 3, 2, 1, 0]  # the smaller a wavelet, the higher the tone it hears


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (points(normal(9, 2)), "not points; take --features pixels"),
        (images(3, 1, 3, 9), "at least 4 numbers along each side, not 3x9"),
        (images(3, 1, 8, 9), "scales: at most 2 fit into 8x9, not 3"),
    ],
    ids=["points", "narrow", "small"],
)
def test_what_has_no_wavelets_is_refused(data: Samples, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        built(data, "scattering", scales=3)


# The classifier


def test_the_classifier_learns_classes_and_says_how_well(digits: tuple[Samples, Tensor]) -> None:
    data, _ = digits
    features = built(data, "classifier", steps=150)
    assert features.facts["tested"] == 120  # type: ignore[attr-defined]
    assert features.facts["accuracy"] > 0.85  # type: ignore[attr-defined]
    rows = features(data.items)
    assert rows.shape == (1200, 64)
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(64), rtol=1e-3, atol=1e-3)


def test_the_classifier_is_a_function_of_its_seed_alone() -> None:
    data = images(50, 1, 8, 8, labels=torch.arange(50) % 2)
    before = torch.get_rng_state()
    first = built(data, "classifier", steps=5)(data.items)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(built(data, "classifier", steps=5)(data.items), first)
    assert not torch.equal(built(data, "classifier", steps=5, seed=1)(data.items), first)


@pytest.mark.parametrize("data", [points(normal(30, 2), labels=torch.arange(30) % 3), series(30, 2, 40)], ids=str)
def test_the_classifier_takes_points_and_series(data: Samples) -> None:
    if data.labels is None:
        data = Samples(items=data.items, shape=data.shape, form=data.form, labels=torch.arange(30) % 3)
    assert built(data, "classifier", steps=3, width=8)(data.items).shape == (30, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [None, torch.zeros(20, dtype=torch.int64)], ids=["none", "one"])
def test_the_classifier_needs_classes(labels: Tensor | None) -> None:
    with pytest.raises(ValueError, match="needs data with two classes or more; take --features scattering"):
        built(images(20, 1, 8, 8, labels=labels), "classifier")


def test_the_classifier_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from difftool_plugins.features.learning import FILE, Training

    data = images(50, 1, 8, 8, labels=torch.arange(50) % 2)
    spec = FeaturesSpec(shape=data.shape, form="image", device=CPU, cache=tmp_path / "cache")
    features: Any = component("features", "classifier", steps=5)
    first = features.build(spec, data)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [FILE]

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_train", fail)
        again = features.build(spec, data)
    assert again.facts == first.facts
    assert torch.equal(again(data.items), first(data.items))
    (tmp_path / "cache" / FILE).write_bytes(b"damaged")
    assert torch.equal(features.build(spec, data)(data.items), first(data.items))


def test_facts_of_features_are_part_of_the_key_of_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, other features: rows in the cache belong to the facts too."""
    from difftool.evaluation.views import features_view

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keys = set()
    for size in (20, 21):
        data = images(size, 1, 8, 8, labels=torch.arange(size) % 2)
        view = features_view(component("features", "classifier", steps=2), data, device=CPU)  # type: ignore[arg-type]
        assert set(view.facts) == {"accuracy", "tested"}
        assert str(view.facts["accuracy"]) in view.key
        keys.add(view.key)
    assert len(keys) == 2
