"""Forms of data that are neither points nor images: series, sound, films and clouds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from difftool.data.facts import DataFacts
from difftool.data.forms import FILM_RATE, Form, backbone_of, form_of
from difftool.data.samples import PIXELS, DatasetContext, Samples
from difftool.data.scaling import Scaling
from difftool.errors import UsageError
from difftool.figures.axes import Axis
from difftool.figures.clouds import project
from difftool.figures.drawing import Drawing
from difftool.figures.formats import FILMS, DrawingSpec, undrawable
from difftool.figures.images import side_by_side_frames
from difftool.figures.waves import DECIBELS, spectrogram
from difftool.sampling.writers import check, write, writer_of
from difftool_plugins.datasets.array import Array

SHAPES: dict[Form, tuple[int, ...]] = {
    "series": (2, 32),
    "sound": (1, 512),
    "film": (1, 12, 6, 5),
    "cloud": (3, 20),
}
RATES: dict[Form, float] = {"sound": 8000.0, "film": 8.0}


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def drawing(form: Form, count: int = 5, /, **changes: Any) -> Drawing:
    x = noise((count, *SHAPES[form]))
    scaling = Scaling((127.5,), (127.5,)) if form == "film" else Scaling((0.5,), (2.0,))
    given: dict[str, Any] = {
        "x": x,
        "scaling": scaling,
        "title": "a title",
        "form": form,
        "rate": RATES.get(form),
        "states": torch.stack([noise(tuple(x.shape), 1), x]),
        "state_labels": ["t = 9", "x_0"],
    }
    return Drawing(**{**given, **changes})


def samples(form: Form, /, **changes: Any) -> Samples:
    units = {**PIXELS, "form": "film"} if form == "film" else {"form": form}
    items = torch.randint(0, 256, (6, *SHAPES[form])) if form == "film" else noise((6, *SHAPES[form]))
    given: dict[str, Any] = {"items": items, "shape": SHAPES[form], "rate": RATES.get(form), **units}
    return Samples(**{**given, **changes})


@pytest.mark.parametrize("form", SHAPES)
def test_the_facts_keep_form_and_rate(form: Form) -> None:
    facts = DataFacts.of(samples(form))
    assert (facts.form, facts.rate) == (form, RATES.get(form))
    assert DataFacts.read(facts.document()) == facts


def test_films_have_a_rate_of_their_own_and_words_name_it() -> None:
    assert DataFacts.of(samples("film", rate=None)).rate == FILM_RATE
    assert DataFacts.of(samples("film")).words == "films of 1x12x6x5 at 8 frames a second"
    assert DataFacts.of(samples("sound")).words == "sounds of 1x512 at 8000 Hz"
    assert DataFacts.of(samples("series")).words == "series of 2x32"


@pytest.mark.parametrize(
    ("form", "changes", "words"),
    [
        ("sound", {"rate": None}, "sound needs its rate in Hz"),
        ("sound", {"rate": 0.5}, "a whole number of Hz"),
        ("sound", {"rate": -1}, "above 0"),
        ("film", {"rate": float("nan")}, "above 0"),
        ("series", {"rate": 10}, "only sound and films have one, and the form is 'series'"),
        ("series", {"form": "film"}, "films have the axes (channels, frames, height, width), but the shape is (2, 32)"),
        ("film", {"form": "cloud"}, "clouds have the axes (coordinates, points)"),
    ],
)
def test_forms_and_rates_that_do_not_fit(form: Form, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        samples(form, **changes)
    assert words in str(caught.value)


def test_the_rate_in_a_file_is_checked() -> None:
    document = DataFacts.of(samples("sound")).document()
    for rate in (0, -3.0, 1e9, "x", None):
        with pytest.raises(ValueError, match="rate"):
            DataFacts.read({**document, "rate": rate})


def test_what_has_neighbours_gets_a_unet() -> None:
    assert [form for form in SHAPES if backbone_of(form, "mlp") == "unet"] == ["series", "sound", "film"]
    assert form_of(None, (2, 32)) == "array"


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strip": 2},
        {"labels": torch.tensor([0, 1, 1, 0, 1]), "class_names": ("a", "b")},
        {"axes": [Axis("guidance", ("1", "3"))], "x": None},
    ],
    ids=["grid", "strip", "classes", "guidances"],
)
def test_pictures(tmp_path: Path, form: Form, changes: dict[str, Any]) -> None:
    if "x" in changes:
        changes = {**changes, "x": noise((6, *SHAPES[form]))}
    path = tmp_path / "a.png"
    write(writer_of(path)(), drawing(form, **changes), path, overwrite=False)
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert min(picture.shape[:2]) > 60
    assert picture.std() > 5


@pytest.mark.parametrize("suffix", FILMS)
@pytest.mark.parametrize("form", SHAPES)
def test_moving_pictures(tmp_path: Path, form: Form, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(writer_of(path)(), drawing(form), path, overwrite=False)
    picture: Any
    with Image.open(path) as picture:
        assert picture.n_frames == (12 if form == "film" else 2)
        picture.seek(1)
        picture.load()
        if form == "film":  # at its own rate, in hundredths of a second for GIF
            assert picture.info["duration"] == (120 if suffix == ".gif" else 125)


def test_the_frames_of_a_film_file_are_those_of_the_film(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    one = drawing("film", 1)
    write(writer_of(path)(), one, path, overwrite=False)
    pixels = one.pixels()[0, ..., 0]
    with Image.open(path) as picture:
        for k in range(12):
            picture.seek(k)
            frame = np.asarray(picture.convert("RGB"))[..., 0]
            side = 60  # 360 / 6, the largest factor
            window = np.lib.stride_tricks.sliding_window_view(frame, (6 * side, 5 * side))
            assert any((window[y, x, ::side, ::side] == pixels[k]).all() for y, x in _corners(frame, side))


def _corners(frame: Any, side: int) -> list[tuple[int, int]]:
    return [(y, x) for y in range(frame.shape[0] - 6 * side + 1) for x in range(frame.shape[1] - 5 * side + 1)]


def test_frames_side_by_side() -> None:
    films = np.arange(2 * 3 * 1 * 2 * 1, dtype=np.uint8).reshape(2, 3, 1, 2, 1)
    assert side_by_side_frames(films, 2)[..., 0].tolist() == [
        [[0, 1, 255, 4, 5, 255, 255], [255] * 7],
        [[6, 7, 255, 10, 11, 255, 255], [255] * 7],
    ]


def test_arrays_of_films_are_pixels_with_channels_last() -> None:
    one = drawing("film", 2)
    assert one.arrays()["samples"].shape == (2, 12, 6, 5, 1)
    assert one.arrays()["samples"].dtype == np.uint8
    expected = (one.x * 127.5 + 127.5).round().clamp(0, 255)[:, 0].numpy()
    np.testing.assert_array_equal(one.arrays()["samples"][..., 0], expected)
    assert drawing("sound", 2).arrays()["samples"].dtype == np.float32


def test_a_spectrogram_peaks_at_the_frequency_of_a_tone() -> None:
    rate, frequency, length = 8000, 1250.0, 4096
    tone = 0.5 * np.sin(2 * np.pi * frequency * np.arange(length) / rate)
    decibels = spectrogram(tone[None])
    middle = decibels[:, decibels.shape[1] // 2]
    assert abs(middle.argmax() / (len(middle) - 1) * rate / 2 - frequency) < rate / 2 / len(middle)
    assert middle.max() == pytest.approx(20 * np.log10(0.5), abs=1.5)  # of its amplitude
    assert np.median(middle) < middle.max() - DECIBELS / 2
    assert spectrogram(np.zeros((1, 5))).max() == -120


def test_the_view_of_a_cloud_is_a_rotation() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3))
    places, near = project(points)
    rotated = np.concatenate([places * 1.5, near[:, None]], axis=1)
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=1), np.linalg.norm(points, axis=1))
    np.testing.assert_allclose(rotated @ rotated.T, points @ points.T, atol=1e-12)


@pytest.mark.parametrize(("form", "shape", "words"), [("array", (2, 3), "2x3"), ("cloud", (1, 9), "one dimension")])
def test_what_cannot_be_drawn_is_refused_in_one_line(form: Form, shape: tuple[int, ...], words: str) -> None:
    assert words in undrawable(form, shape)
    with pytest.raises(UsageError) as caught:
        check(writer_of(Path("a.png"))(), Path("a.png"), DrawingSpec(shape=shape, steps=2, form=form))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def array(tmp_path: Path) -> Any:
    def load(items: Any, **options: Any) -> Samples:
        np.save(tmp_path / "a.npy", items)
        return Array(path=tmp_path / "a.npy", **options).load(DatasetContext())

    return load


@pytest.mark.parametrize(
    ("form", "stored", "options", "shape"),
    [
        ("series", (4, 50), {}, (1, 50)),
        ("series", (4, 50, 3), {}, (3, 50)),
        ("series", (4, 3, 50), {}, (3, 50)),
        ("series", (4, 12, 50), {"layout": "last"}, (50, 12)),
        ("sound", (4, 50), {"rate": 100.0}, (1, 50)),
        ("film", (4, 6, 8, 8), {"rate": 5.0}, (1, 6, 8, 8)),
        ("film", (4, 6, 8, 8, 3), {}, (3, 6, 8, 8)),
        ("cloud", (4, 50, 3), {}, (3, 50)),
        ("cloud", (4, 2, 50), {}, (2, 50)),
    ],
)
def test_arrays_of_each_form(
    array: Any, form: Form, stored: tuple[int, ...], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    items = noise(stored).abs().numpy()
    found = array(items, form=form, **options)
    assert (found.form, found.shape) == (form, shape)
    assert found.rate == options.get("rate", FILM_RATE if form == "film" else None)
    expected = items * 255 if form == "film" else items
    assert found.items.sum() == pytest.approx(expected.sum(), rel=1e-5)
    assert DataFacts.of(found).form == form


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8"])
def test_sound_of_whole_numbers_becomes_amplitudes(array: Any, kind: str) -> None:
    info = np.iinfo(kind)
    found = array(np.array([[info.min, info.max, 0], [0, 0, 0]], kind), form="sound", rate=8000)
    expected = [-1, 1, -1] if kind == "uint8" else [-1, 1, 0]
    assert found.items[0, 0].tolist() == pytest.approx(expected, abs=0.01)
    assert found.scaling.to_model(found.items).std(correction=0) == pytest.approx(1, abs=0.3)
    assert found.bounds == pytest.approx((-1 / found.scale[0], 1 / found.scale[0]))


@pytest.mark.parametrize(
    ("stored", "options", "words"),
    [
        ((4, 50), {"form": "sound"}, "sound needs its rate"),
        ((4, 50), {"form": "series", "rate": 3.0}, "only sound and films have one"),
        ((4, 50), {"form": "sound", "rate": 8000.0, "factor": 4}, "the amplitudes reach from"),
        ((4, 50), {"form": "cloud"}, "clouds have the axes coordinates and points"),
        ((4, 3, 3), {"form": "cloud"}, "may come first or last"),
        ((4, 6, 8), {"form": "film"}, "films have the axes frames, height, width and channels"),
    ],
)
def test_arrays_that_do_not_fit_their_form(
    array: Any, stored: tuple[int, ...], options: dict[str, Any], words: str
) -> None:
    factor = options.get("factor", 1)
    with pytest.raises(ValueError, match=words):
        array(noise(stored).numpy() * factor, **{k: v for k, v in options.items() if k != "factor"})


def test_a_form_suggests_its_backbone(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 3, 50)))
    suggested = {form: Array(path=path, form=form).suggested_backbone() for form in ("series", "cloud", "array")}
    assert suggested == {"series": "unet", "cloud": "mlp", "array": "mlp"}


def test_a_folder_of_films(tmp_path: Path) -> None:
    one = drawing("film", 2)
    write(writer_of(tmp_path / "x")(), one, tmp_path / "x", overwrite=False)
    picture: Any
    with Image.open(tmp_path / "x" / "0001.webp") as picture:
        assert picture.n_frames == 12
        picture.seek(11)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB"))[..., 0], one.pixels()[1, 11, ..., 0])


@pytest.mark.extras
@pytest.mark.parametrize(("form", "frames", "rate"), [("film", 12, 8), ("series", 2 + 30, 20)])
def test_mp4(tmp_path: Path, form: Form, frames: int, rate: int) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    write(writer_of(path)(), drawing(form), path, overwrite=False)
    with av.open(str(path)) as film:
        pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == rate
    assert len(pictures) == frames
    still = next(drawing(form).frames(60))
    height, width = still.shape[:2]
    assert np.abs(pictures[0][:height, :width].astype(float) - still).mean() < 4


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"a.mp4: needs av, .*pip install 'difftool\[film\]'; write .*\.npy"):
        check(writer_of(Path("a.mp4"))(), Path("a.mp4"), DrawingSpec(shape=(2, 9), steps=2, form="series"))
