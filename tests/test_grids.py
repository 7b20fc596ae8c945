"""Several classes and several guidances in one call: the samples, and the pictures and arrays that tell them apart."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import POINTS, Run
from matplotlib.figure import Figure
from PIL import Image
from safetensors import safe_open

import difftool
from difftool import Samples, component
from difftool.data.facts import PIXEL_SCALING
from difftool.data.samples import PIXELS
from difftool.data.scaling import Scaling
from difftool.devices import choose
from difftool.errors import UsageError
from difftool.figures import image_tables, style
from difftool.figures.axes import Axis
from difftool.figures.drawing import FILM_IMAGES, Drawing
from difftool.figures.groups import CAPTIONS, PANELS, ROWS, SAMPLES, Groups
from difftool.figures.image_tables import LARGE, Sheet
from difftool.runs.folder import RunFolder
from difftool.runs.recipe import build_recipe
from difftool.sampling.plan import Plan
from difftool.sampling.source import split_names
from difftool.sampling.writers import write
from difftool.settings import Sampling
from difftool.training import previews
from difftool.training.prepare import prepare
from difftool.training.watched_folder import WatchedFolder
from difftool_plugins.writers import CSV, NPZ

NAMES = ("cat", "cat, dog", "all cats")
"""Class names that a comma must not split."""
QUICK: dict[str, Any] = {"batch_size": 16, "preview_every": "0", "progress": False}


def pixels(*shape: int, seed: int = 0) -> Any:
    """Random images (N, H, W, C), never white."""
    return np.random.default_rng(seed).integers(0, 250, shape, dtype=np.uint8)


def labelled_images(count: int = 48, names: Sequence[str] = NAMES, **columns: Any) -> Samples:
    items = torch.from_numpy(pixels(count, 1, 4, 4))
    labels = torch.arange(count) % len(names)
    return Samples(items=items, shape=(1, 4, 4), labels=labels, class_names=tuple(names), **PIXELS, **columns)


@pytest.fixture(scope="module")
def pictures_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of images of three classes."""
    path = tmp_path_factory.mktemp("pictures") / "run"
    backbone = component("backbone", "mlp", width=8, depth=1)
    difftool.train(dataset=labelled_images(), backbone=backbone, steps=2, out=path, **QUICK)
    return path


# ── the classes that a text names ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat", ["cat"]),
        ("cat, dog", ["cat, dog"]),
        ("cat, dog,cat", ["cat, dog", "cat"]),
        ("cat,cat, dog", ["cat", "cat, dog"]),
        ("all cats , cat", ["all cats", "cat"]),
        ("cat,,", ["cat", "", ""]),
        ("bird,cat, dog,", ["bird", "cat, dog", ""]),
        ("", [""]),
    ],
)
def test_a_name_with_a_comma_wins_over_splitting(text: str, words: list[str]) -> None:
    assert split_names(text, NAMES) == words


def test_splitting_a_long_text_is_quick() -> None:
    assert len(split_names("x," * 200_000, NAMES)) == 200_001


def test_classes_by_name_index_and_all(pictures_run: Path) -> None:
    model = difftool.load(pictures_run)
    assert model.label_indices("all") == [0, 1, 2]
    assert model.label_indices("2,cat, dog,0") == [2, 1, 0]
    assert model.label_indices(["all cats", 0, "all cats"]) == [2, 0, 2]
    for text, words in (("cat,0", "names class 'cat' twice"), ("cat,dog", "no class 'dog'"), (",", "''")):
        with pytest.raises(UsageError, match=words):
            model.label_indices(text)
    with pytest.raises(UsageError, match="must name at least one"):
        model.sample(2, label=[])


def test_a_class_called_all_is_that_class(tmp_path: Path) -> None:
    backbone = component("backbone", "mlp", width=8, depth=1)
    data = labelled_images(names=("all", "other"))
    model = difftool.train(dataset=data, backbone=backbone, steps=1, out=tmp_path / "r", **QUICK)
    assert model.label_indices("all") == [0]
    assert model.label_indices("other,all") == [1, 0]


# ── samples ─────────────────────────────────────────────────────────────────────────────────────


def test_each_class_has_as_many_samples_by_default(pictures_run: Path, labels_run: Path) -> None:
    def count(run: Path, **settings: Any) -> int:
        return Plan.of(difftool.load(run), Sampling(**settings)).num_samples

    assert (count(pictures_run, label="none"), count(pictures_run, label="cat")) == (16, 16)
    assert (count(pictures_run), count(pictures_run, label="all")) == (15, 15)
    assert (count(labels_run, label="0"), count(labels_run, label="0,1,2"), count(labels_run)) == (2000, 1998, 2000)
    assert count(labels_run, label="all", num_samples=7) == 7


def test_more_classes_than_samples_have_one_each(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(40)]
    backbone = component("backbone", "mlp", width=8, depth=1)
    data = labelled_images(80, names)
    model = difftool.train(dataset=data, backbone=backbone, steps=1, out=tmp_path / "r", **QUICK)
    assert Plan.of(model, Sampling(label="all")).num_samples == 40
    with pytest.warns(UserWarning, match="10 samples of 40 classes leave 30 classes: class 10, .* without one"):
        Plan.of(model, Sampling(label="all", num_samples=10))
    assert [len(Plan.of(model, Sampling(num_samples=n)).rows["label"]) for n in (1, 10, 50)] == [1, 10, 40]


def test_samples_without_a_choice_are_of_all_classes_in_turn(labels_run: Path, points_run: Path) -> None:
    model = difftool.load(labels_run)
    torch.testing.assert_close(model.sample(6, steps=5), model.sample(6, label="all", steps=5), rtol=0, atol=0)
    torch.testing.assert_close(model.sample(2, steps=5), model.sample(2, label=[0, 1], steps=5), rtol=0, atol=0)
    nothing = model.sample(6, label="none", steps=5)
    assert Plan.of(model, Sampling(label="none")).rows == Plan.of(difftool.load(points_run), Sampling()).rows == {}
    assert float((nothing - model.sample(6, steps=5)).abs().max()) > 0.01


def test_sample_k_has_class_k(labels_run: Path) -> None:
    model = difftool.load(labels_run)
    several = model.sample(7, label="2,0,3", steps=5)
    for place, label in enumerate((2, 0, 3)):
        alone = model.sample(7, label=label, steps=5)
        torch.testing.assert_close(several[place::3], alone[place::3], rtol=1e-4, atol=1e-5)
    for same in ([2, 0, 3], ("2", "0", "3"), np.array([2, 0, 3]), torch.tensor([2, 0, 3])):
        assert torch.equal(model.sample(7, label=same, steps=5), several)


def test_each_guidance_draws_the_same_samples(run: Run, labels_run: Path) -> None:
    base = ("sample", labels_run, "--label", "1,2", "-n", 5, "--steps", 4, "--sampler", "ddpm", "--batch-size", 2)
    outcome = run(*base, "--guidance", "1,3", "--trajectory", "--out", "x.npz", "--json")
    assert outcome.code == 0, outcome.err
    facts, both = json.loads(outcome.out), np.load("x.npz")
    assert (facts["num_samples"], facts["calls"]) == (5, [4, 8])
    assert [table["scale"] for table in facts["guidance"]] == [1.0, 3.0]
    assert "5 samples of classes 1 and 2, each with guidance 1 and 3, ddpm" in outcome.err
    assert "10 samples in" in outcome.err
    assert "10/10 samples" in outcome.err
    for place, scale in enumerate((1, 3)):
        assert run(*base, "--guidance", scale, "--trajectory", "--out", f"{scale}.npz").code == 0
        alone, rows = np.load(f"{scale}.npz"), slice(5 * place, 5 * place + 5)
        assert np.array_equal(both["samples"][rows], alone["samples"])
        assert np.array_equal(both["states"][:, rows], alone["states"])
        assert np.array_equal(both["labels"][rows], alone["labels"])
    assert np.array_equal(both["states"][0, :5], both["states"][0, 5:]), "from the same noise"
    assert not np.array_equal(both["samples"][:5], both["samples"][5:])


# ── arrays ──────────────────────────────────────────────────────────────────────────────────────


def test_arrays_name_classes_and_guidances(run: Run, pictures_run: Path) -> None:
    outs = [word for suffix in ("npz", "csv", "safetensors", "npy") for word in ("--out", f"x.{suffix}")]
    command = ("sample", pictures_run, "--label", "all", "-n", 4, "--steps", 2, "--guidance", "2,cfg,0.5", *outs)
    outcome = run(*command, "--guidance.interval", "0.1,5", "--out", "folder")
    assert outcome.code == 0, outcome.err
    guidances = [f"{scale}, only for sigma/alpha of 0.1 to 5" for scale in ("2", "0.5")]
    arrays = np.load("x.npz", allow_pickle=False)
    assert arrays["class_names"].tolist() == [*NAMES]
    assert arrays["labels"].tolist() == [0, 1, 2, 0] * 2
    assert arrays["guidance_names"].tolist() == guidances
    assert arrays["guidances"].tolist() == [0] * 4 + [1] * 4
    with open("x.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [NAMES[i] for i in (0, 1, 2, 0)] * 2
    assert [row["label"] for row in rows] == ["0", "1", "2", "0"] * 2
    assert [row["guidance"] for row in rows] == [guidances[0]] * 4 + [guidances[1]] * 4
    assert [[int(row[f"x{i}"]) for i in range(16)] for row in rows] == arrays["samples"].reshape(8, 16).tolist()
    with safe_open("x.safetensors", "np") as file:
        facts = json.loads(file.metadata()["samples"])
        assert file.get_tensor("guidances").tolist() == arrays["guidances"].tolist()
    assert (facts["class_names"], facts["guidance_names"]) == ([*NAMES], guidances)
    files = sorted(Path("folder").glob("*.png"))
    assert [np.asarray(Image.open(file)).tolist() for file in files] == arrays["samples"][..., 0].tolist()


def test_one_guidance_leaves_no_trace_in_arrays(run: Run, labels_run: Path) -> None:
    command = ("sample", labels_run, "--label", 1, "--guidance", 2, "-n", 3, "--steps", 2)
    assert run(*command, "--out", "x.npz", "--out", "x.csv").code == 0
    assert sorted(np.load("x.npz")) == ["class_names", "labels", "samples"]
    assert Path("x.csv").read_text().splitlines()[0] == "x0,x1,label,class"


def test_any_name_survives_a_csv_file(tmp_path: Path) -> None:
    names = ["plain", 'say "cheese"', "a,b", "two\nlines", "\r", "", " space ", "=1+1", "Grüße", "tab\t", ";"]
    drawing = Drawing(
        x=torch.zeros(2 * len(names), 2),
        scaling=Scaling((0.0,), (1.0,)),
        title="",
        labels=torch.arange(len(names)).repeat(2),
        class_names=names,
        axes=[Axis("guidance", names[:2])],
    )
    write(CSV(), drawing, tmp_path / "x.csv", overwrite=False)
    with open(tmp_path / "x.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == names * 2
    assert [row["guidance"] for row in rows] == [names[0]] * len(names) + [names[1]] * len(names)
    write(NPZ(), drawing, tmp_path / "x.npz", overwrite=False)
    assert np.load(tmp_path / "x.npz")["class_names"].tolist() == names


# ── rows and columns ────────────────────────────────────────────────────────────────────────────


def groups(keys: Sequence[str], guidances: Sequence[str] = (), *, apart: bool = True, count: int = 0) -> Any:
    axes = [Axis("guidance", guidances)] if guidances else []
    return Groups.of(keys, "class" if keys else "", axes, count or len(keys), apart=apart)


def test_a_single_group_is_none() -> None:
    assert groups([], count=9) is None
    assert groups(["a"] * 9) is None
    assert groups(["a"] * 9, ["2"]) is None


def test_rows_are_classes_and_columns_guidances() -> None:
    made = groups(["a", "b", "a", "b", "a"], ["1", "2"])
    assert (made.rows, made.columns, made.axes) == (["a", "b"], ["1", "2"], ("class", "guidance"))
    assert made.cells == [[[0, 2, 4], [5, 7, 9]], [[1, 3], [6, 8]]]
    assert made.largest == 3
    assert made.limited(4).cells == [[[0], [5]], [[1], [6]]]
    assert made.renumbered().cells == [[[0, 1, 2], [3, 4, 5]], [[6, 7], [8, 9]]]
    assert made.with_first(2).cells[1] == [[0, 1, 3, 5], [0, 1, 8, 10]]


def test_rows_are_samples_if_they_are_few() -> None:
    made = groups(["a"] * 3, ["1", "2"])
    assert (made.rows, made.axes, made.cells[2]) == (["0", "1", "2"], ("sample", "guidance"), [[2], [5]])
    for many in (groups([], ["1", "2"], count=SAMPLES + 1), groups([], ["1", "2"], count=3, apart=False)):
        assert (many.rows, len(many.cells), many.axes) == ((), 1, ("", "guidance"))


def test_one_image_a_class_has_a_caption() -> None:
    made = groups(["a", "b", "c"])
    assert (made.rows, made.columns, made.axes, made.captions) == ((), ["a", "b", "c"], ("", "class"), True)
    assert groups(["a", "b", "a"]).rows == ["a", "b"]
    assert groups(["a", "b", "a"], apart=False).columns == ["a", "b"]


def test_too_many_classes_are_left_out_in_words() -> None:
    many = [str(i) for i in range(1000)]
    assert groups(many).omitted == f"first {CAPTIONS} of 1,000 classes"
    assert len(groups(many * 2).cells) == ROWS
    assert len(groups(many, ["1", "2"], apart=False).cells) == PANELS // 2
    assert groups(many[:9]).omitted == ""


# ── pictures ────────────────────────────────────────────────────────────────────────────────────


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def check_texts(figure: Figure) -> None:
    """No text lies outside the figure, over a picture or over another text."""
    style.render(figure)
    renderer = style.agg_of(figure).get_renderer()
    width, height = style.size_of(figure)
    boxes = [text.get_window_extent(renderer) for text in figure.texts if text.get_text()]
    for box in boxes:
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
    for a, b in itertools.combinations([*boxes, *(axes.get_window_extent() for axes in figure.axes)], 2):
        assert a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1


def drawing_of(labels: Sequence[int], guidances: Sequence[str] = (), **changes: Any) -> Drawing:
    count = len(labels) * max(1, len(guidances))
    x = torch.from_numpy(pixels(count, 3, 5, 4)).float() / 127.5 - 1
    given: dict[str, Any] = {
        "x": x,
        "scaling": PIXEL_SCALING,
        "form": "image",
        "title": "a title",
        "labels": torch.tensor([*labels] * max(1, len(guidances))),
        "class_names": NAMES,
        "axes": [Axis("guidance", guidances)] if guidances else [],
        "states": torch.stack([-x, 0.5 * x, x]),
        "state_labels": ["t = 9", "t = 5", "result"],
    }
    return Drawing(**{**given, **changes})


@pytest.mark.parametrize(
    ("labels", "guidances", "columns"),
    [
        ([0, 1, 2], (), None),
        ([0, 1, 2], (), 2),
        ([0, 1, 2] * 4, (), None),
        ([0, 1, 2, 0], (), None),
        ([0, 1] * 3, ("1", "2", "4"), None),
        ([0, 1, 2], ("1", "2", "4"), None),
        ([0, 0, 0], ("1", "2"), None),
        ([1] * 30, ("1", "2"), 4),
    ],
)
def test_every_image_stands_in_its_cell(labels: list[int], guidances: tuple[str, ...], columns: int | None) -> None:
    drawing = drawing_of(labels, guidances, columns=columns)
    figure, found = drawing.figure(), drawing._groups()
    check_texts(figure)
    assert found is not None
    sheet = Sheet.of(found, (5, 4), titles=[""], across=columns)
    mosaic, images = sheet.mosaic, drawing.pixels()
    (width, height), gap = mosaic.block_size, mosaic.gap + mosaic.space
    across = mosaic.columns // mosaic.block[1]
    assert mosaic.factor * 4 >= LARGE
    for r, row in enumerate(found.cells):
        for k, cell in enumerate(row):
            picture = sheet.compose(images, k // across)
            y, x = r * (height + gap), k % across * (width + gap)
            block = picture[y : y + height, x : x + width]
            for i, number in enumerate(cell):
                down, right = divmod(i, mosaic.block[1])
                size, step = 5 * mosaic.factor, (5 * mosaic.factor + mosaic.gap, 4 * mosaic.factor + mosaic.gap)
                shown = block[down * step[0] :, right * step[1] :][:size, : size * 4 // 5]
                expected = images[number].repeat(mosaic.factor, 0).repeat(mosaic.factor, 1)
                np.testing.assert_array_equal(shown, expected)
    names = [NAMES[label] for label in dict.fromkeys(labels)]
    assert not guidances or {"guidance", *guidances} <= {*texts(figure)}
    assert len(names) == 1 or "class" in texts(figure)
    assert len(names) == 1 or len([text for text in texts(figure) if text.replace("\n", " ") in names]) == len(names)


def test_drawings_of_one_class_look_as_before() -> None:
    assert texts(drawing_of([1] * 4).figure()) == ["a title"]
    assert texts(drawing_of([1] * 4, ("2",)).figure()) == ["a title"]


LONG_NAMES = ("a" * 300, "word " * 100, "日本語 $x^2$", "x")


@pytest.mark.parametrize(
    "guidances", [(), ("1", "autoguidance small-run-with-a-long-name, scale 2.5"), ("y" * 200, "2")]
)
@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("form", ["image", "points"])
def test_long_names_keep_their_places(guidances: tuple[str, ...], each: int, form: str) -> None:
    changes: dict[str, Any] = {"class_names": LONG_NAMES}
    if form == "points":
        points = torch.randn(4 * each * max(1, len(guidances)), 2, generator=torch.Generator().manual_seed(0))
        changes |= {"x": points, "form": "points", "scaling": Scaling((0.0,), (1.0,)), "states": None}
    check_texts(drawing_of([*range(4)] * each, guidances, **changes).figure())


@pytest.mark.parametrize("each", [1, 2])
def test_a_hundred_classes_stay_readable(each: int) -> None:
    names = tuple(f"class {i} of a hundred" for i in range(100))
    figure = drawing_of([*range(100)] * each, class_names=names).figure()
    check_texts(figure)
    assert len({text.replace("\n", " ") for text in texts(figure)} & {*names}) == 100
    assert max(style.size_of(figure)) < 8000


def test_points_have_a_panel_for_each_class_and_guidance() -> None:
    x = torch.arange(24.0).reshape(12, 2)
    changes: dict[str, Any] = {"x": x, "form": "points", "scaling": Scaling((0.0,), (1.0,)), "states": None}
    figure = drawing_of([0, 1, 2] * 2, ("1", "3"), **changes).figure()
    shown = [np.asarray(axes.collections[-1].get_offsets()).tolist() for axes in figure.axes]
    expected = [x[first + 6 * g :][:4:3].tolist() for first in range(3) for g in range(2)]
    assert shown == expected
    assert len(drawing_of([0, 1] * 6, **changes).figure().axes) == 2
    assert len(drawing_of([0, 0] * 6, **changes).figure().axes) == 1


def test_points_beyond_the_panels_are_counted() -> None:
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    data, far = x.clone(), x.clone()
    far[:3] += 1e4
    changes: dict[str, Any] = {"form": "points", "scaling": Scaling((0.0,), (1.0,)), "states": None, "reference": data}
    assert "a title\n3 of 40 samples lie outside" in texts(drawing_of([0, 1] * 20, **changes, x=far).figure())
    assert "a title" in texts(drawing_of([0, 1] * 20, **changes, x=x).figure())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_films_and_strips_of_points_show_each_group(dimensions: int) -> None:
    x = torch.randn(12, dimensions, generator=torch.Generator().manual_seed(0))
    states = torch.stack([x + 1, x])
    changes: dict[str, Any] = {"x": x, "form": "points", "scaling": Scaling((0.0,), (1.0,)), "states": states}
    drawing = drawing_of([0, 1] * 3, ("1", "3"), **changes)
    frames = list(drawing.frames(10))
    assert len(frames) == 2
    assert (frames[0] != frames[1]).any()
    figure = drawing_of([0, 1] * 3, ("1", "3"), **changes, strip=2).figure()
    assert len(figure.axes) == 8
    assert "class cat, guidance 1" in [text.replace("\n", " ") for text in texts(figure)]


def test_films_of_images_show_each_group() -> None:
    drawing = drawing_of([0, 1, 2] * 10, ("1", "2"))
    frames = list(drawing.frames(10))
    assert len(frames) == 3
    found = drawing._groups()
    assert found is not None
    limited = found.limited(FILM_IMAGES)
    assert sorted(limited.numbers) == [*range(18), *range(30, 48)]
    titles = [f"a title (36 of 60)\n{label}" for label in drawing.state_labels]
    sheet = Sheet.of(limited, (5, 4), titles=titles, size=image_tables.FILM)
    left, top = sheet.board.left, sheet.board.top
    assert drawing.states is not None
    for frame, state in zip(frames, drawing.states, strict=True):
        picture = sheet.compose(drawing.pixels(state), 0)
        assert np.array_equal(frame[top : top + picture.shape[0], left : left + picture.shape[1]], picture)


def test_a_strip_of_images_shows_each_group() -> None:
    figure = drawing_of([0, 1, 2] * 4, ("1", "2"), strip=3).figure()
    shown = [text.replace("\n", " ") for text in texts(figure)]
    assert [text for text in shown if "class" in text] == [f"class {c}, guidance {g}" for c in NAMES for g in (1, 2)]
    alone = drawing_of([0, 1, 2] * 4, strip=3).figure()
    assert texts(alone).count("class cat") == 2


def test_a_folder_of_condition_images_names_them(run: Run, tmp_path: Path) -> None:
    Path("photos").mkdir()
    for name in ("b.png", "a cat.png", "c.jpg"):
        Image.fromarray(pixels(4, 4)).save(Path("photos", name))
    items = torch.from_numpy(pixels(16, 1, 4, 4))
    data = Samples(items=items, shape=(1, 4, 4), images=255 - items, **PIXELS)
    backbone = component("backbone", "mlp", width=8, depth=1)
    model = difftool.train(dataset=data, backbone=backbone, steps=1, out="r", **QUICK)
    assert Plan.of(model, Sampling(image=Path("photos"))).names == ("a cat", "b", "c")
    assert Plan.of(model, Sampling(image=Path("photos/b.png"))).names == ()
    Image.fromarray(pixels(4, 4)).save("photos/b.jpg")
    assert Plan.of(model, Sampling(image=Path("photos"))).names == ("a cat.png", "b.jpg", "b.png", "c.jpg")
    for count in (4, 8):
        outcome = run("sample", "r", "--image", "photos", "-n", count, "--steps", 2, "--out", f"{count}.png")
        assert outcome.code == 0, outcome.err
    assert Image.open("8.png").height > Image.open("4.png").height  # rows instead of captions


def test_images_that_samples_start_from_stand_first_in_each_cell(run: Run, pictures_run: Path) -> None:
    Image.fromarray(pixels(4, 4)).save("from.png")
    base = ("sample", pictures_run, "--label", "cat,2", "--guidance", "1,2", "--steps", 4, "-n", 4)
    assert run(*base, "--init", "from.png", "--out", "x.png", "--out", "x.gif", "--out", "x.npy").code == 0
    assert len(np.load("x.npy")) == 8


def test_a_path_under_several_guidances(run: Run, pictures_run: Path) -> None:
    base = ("sample", pictures_run, "--label", 0, "--steps", 3, "--interpolate", "0,1", "-n", 3)
    assert run(*base, "--guidance", "1,2", "--out", "x.npy", "--out", "x.png").code == 0
    assert run(*base, "--guidance", "2", "--out", "y.npy").code == 0
    assert np.array_equal(np.load("x.npy")[3:], np.load("y.npy"))


# ── previews ────────────────────────────────────────────────────────────────────────────────────


def preview_of(data: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawing:
    """The drawing of a preview."""
    seen: list[Drawing] = []

    def saved(drawing: Drawing, path: Path) -> None:
        seen.append(drawing)
        style.save(drawing.figure(), path)

    monkeypatch.setattr(Drawing, "save_figure", saved)
    name = f"data-of-{tmp_path.name}"
    cls = type("Data", (difftool.Dataset,), {"load": lambda self, context: data, "__doc__": "Data."}, name=name)
    backbone = component("backbone", "mlp", width=8, depth=1)
    recipe = build_recipe({"training": {"steps": 1, "batch_size": 4}}, parts={"dataset": cls(), "backbone": backbone})
    experiment = prepare(recipe, choose("cpu"))
    experiment.watched = WatchedFolder(RunFolder(tmp_path))
    previews.draw(experiment)
    return seen[0]


@pytest.mark.parametrize(("classes", "counts"), [(1, [16]), (3, [5] * 3), (10, [1] * 10), (40, [1] * 16)])
def test_a_preview_shows_each_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, counts: list[int]
) -> None:
    data = labelled_images(80, [f"name {i}" for i in range(classes)])
    drawing = preview_of(data, tmp_path, monkeypatch)
    assert drawing.labels is not None
    assert drawing.labels.bincount().tolist() == counts
    assert drawing.originals is None
    words = {1: "class name 0", 3: "classes name 0, name 1 and name 2", 10: "all 10 classes", 40: "16 of 40 classes"}
    assert drawing.title.endswith(words[classes])


def test_a_preview_under_images_shows_items_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = torch.from_numpy(pixels(81, 1, 4, 4))
    labels = torch.arange(81) % 3
    data = Samples(
        items=items, shape=(1, 4, 4), labels=labels, class_names=("a", "b", "c"), images=255 - items, **PIXELS
    )
    drawing = preview_of(data, tmp_path, monkeypatch)
    assert drawing.labels is not None
    assert drawing.labels.bincount().tolist() == [5, 5, 5]
    assert drawing.condition_images is not None
    assert drawing.originals is not None
    torch.testing.assert_close(PIXEL_SCALING.to_pixels(drawing.originals), 255 - drawing.condition_images)


def test_items_are_spread_within_each_class() -> None:
    labels = torch.tensor([1] * 100 + [0] * 3)
    chosen = previews.spread_by_class(labels, 10)
    assert [int(labels[i]) for i in chosen] == [0, 1] * 5
    assert chosen[1::2] == [0, 20, 40, 60, 80]
    assert {*chosen[::2]} == {100, 101, 102}, "few items are repeated"


# ── labels on both axes ─────────────────────────────────────────────────────────────────────────

TWO = (Axis("sampler", ["ddim", "heun"]), Axis("steps", ["5", "10", "20"], [5, 10, 20]))


def test_two_axes_are_rows_and_columns() -> None:
    made = Groups.of([], "", TWO, 2, apart=True)
    assert made is not None
    assert (made.rows, made.columns, made.axes) == (["ddim", "heun"], ["5", "10", "20"], ("sampler", "steps"))
    assert [[list(cell) for cell in row] for row in made.cells] == [
        [[0, 1], [2, 3], [4, 5]],
        [[6, 7], [8, 9], [10, 11]],
    ]
    seeds = [Axis("steps", [str(k) for k in range(120)]), Axis("seed", ["0", "1"])]
    assert [Groups.of([], "", seeds, 1, apart=apart).omitted for apart in (True, False)] == [  # type: ignore[union-attr]
        f"first {ROWS} of 120 steps",
        f"first {PANELS // 2} of 120 steps",
    ]


@pytest.mark.parametrize("form", ["image", "points"])
@pytest.mark.parametrize("each", [1, 4])
def test_labels_of_two_axes_are_legible(form: str, each: int) -> None:
    axes = [Axis("checkpoint", ["500", "best", "100000"]), Axis("guidance", ["1", "w" * 60, "autoguidance a, scale 2"])]
    changes: dict[str, Any] = {"labels": None, "axes": axes}
    if form == "points":
        x = torch.randn(9 * each, 2, generator=torch.Generator().manual_seed(0))
        changes |= {"x": x, "form": "points", "scaling": Scaling((0.0,), (1.0,)), "states": None}
    figure = replace(drawing_of([0] * 9 * each), **changes).figure()
    check_texts(figure)
    shown = [text.replace("\n", " ") for text in texts(figure)]
    assert {"checkpoint", "guidance", "500", "best", "100000", "1"} <= {*shown}
    if form == "points":
        offsets = [np.asarray(axes.collections[-1].get_offsets()) for axes in figure.axes]
        assert np.array_equal(np.concatenate(offsets), changes["x"].numpy())


def test_each_cell_holds_the_samples_of_its_own_call(run: Run, labels_run: Path) -> None:
    base = ("sample", labels_run, "--num-samples", 3, "--batch-size", 2)
    outs = [word for suffix in ("npz", "csv", "png", "safetensors") for word in ("--out", f"x.{suffix}")]
    outcome = run(*base, "--sampler", "ddim,heun", "--steps", "2,5", "--sampler.eta", 0.3, *outs, "--json")
    assert outcome.code == 0, outcome.err
    assert "3 samples of classes 0, 1 and 2, each with sampler ddim and heun by steps 2 and 5, trailing" in outcome.err
    facts, both = json.loads(outcome.out), np.load("x.npz")
    assert (facts["sampler"], facts["steps"], facts["seed"]) == (["ddim", "heun"], [2, 5], 0)
    assert facts["calls"] == [2, 5, 3, 9]
    assert both["samplers"].tolist() == [0] * 6 + [1] * 6
    assert both["sampler_names"].tolist() == ["ddim", "heun"]
    assert both["steps"].tolist() == [2] * 3 + [5] * 3 + [2] * 3 + [5] * 3
    with open("x.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["sampler"], row["steps"]) for row in rows[::3]] == [*itertools.product(("ddim", "heun"), ("2", "5"))]
    for place, (sampler, steps) in enumerate(itertools.product(("ddim", "heun"), (2, 5))):
        options = ("--sampler.eta", 0.3) if sampler == "ddim" else ()
        assert run(*base, "--sampler", sampler, "--steps", steps, *options, "--out", "y.npz", "--overwrite").code == 0
        assert np.array_equal(both["samples"][3 * place : 3 * place + 3], np.load("y.npz")["samples"])


def test_checkpoints_are_the_model_as_it_was(run: Run) -> None:
    train = ("train", *POINTS, "--ema", "0.5,0.9", "--checkpoint-every", 1, "--keep", 9)
    assert run(*train, "--steps", 3, "--out", "r").code == 0
    sample = ("--steps", 2, "--num-samples", 4)
    for weights in ("ema", "ema-0.9", "raw"):
        name = f"{weights}.npz"
        outcome = run(
            "sample", "r", "--checkpoints", "1,3", "--seed", "7,5", "--weights", weights, *sample, "--out", name
        )
        assert outcome.code == 0, outcome.err
        grid = np.load(name)
        assert grid["checkpoint_names"].tolist() == ["1", "3"]
        assert grid["checkpoints"].tolist() == [0] * 8 + [1] * 8
        assert grid["seeds"].tolist() == ([7] * 4 + [5] * 4) * 2
        for place, steps in enumerate((1, 3)):
            run(*train, "--steps", steps, "--out", f"r{steps}")
            alone = ("sample", f"r{steps}", "--weights", weights, "--seed", 5, *sample)
            assert run(*alone, "--out", "y.npz", "--overwrite").code == 0
            assert np.array_equal(grid["samples"][8 * place + 4 :][:4], np.load("y.npz")["samples"]), (weights, steps)


def test_all_checkpoints_snapshots_and_the_best(run: Run) -> None:
    train = ("train", *POINTS, "--ema-lengths", 0.1, "--snapshot-every", 2, "--checkpoint-every", 3)
    assert run(*train, "--steps", 6, "--keep", 1, "--out", "r").code == 0

    def names(*words: object) -> list[str]:
        outcome = run(
            "sample", "r", "--checkpoints", *words, "--steps", 2, "-n", 2, "--out", "x.npz", "--overwrite", "--json"
        )
        assert outcome.code == 0, outcome.err
        found: list[str] = json.loads(outcome.out)["checkpoints"]
        return found

    assert names("all") == ["6"]
    assert names("all", "--weights", "power-0.1") == ["2", "4", "6"]
    Path("r/best.safetensors").write_bytes(Path("r/averages/power-0.1-step-000000002.safetensors").read_bytes())
    assert names("best,6") == ["best", "6"]
    assert np.load("x.npz")["checkpoint_names"].tolist() == ["best", "6"]
    assert run("sample", "r", "--checkpoints", 4, "--weights", "power-0.1", "--steps", 2, "--out", "y.npz").code == 0
    assert sorted(np.load("y.npz")) == ["samples"], "one checkpoint is no axis"


def test_a_cell_of_two_axes_has_one_image(run: Run, pictures_run: Path) -> None:
    command = ("sample", pictures_run, "--steps", "2,3", "--out", "x.npz", "--overwrite")
    assert run(*command, "--seed", "0..2").code == 0
    assert np.load("x.npz")["seeds"].tolist() == [0, 1, 2] * 2
    assert {*np.load("x.npz")["labels"]} == {0}
    assert run(*command).code == 0
    assert len(np.load("x.npz")["samples"]) == 30
    assert run(*command, "--label", "none").code == 0
    assert len(np.load("x.npz")["samples"]) == 32
    assert run(*command, "--label", "all").code == 0
    assert len(np.load("x.npz")["samples"]) == 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--label", "all", "--steps", "2,3", "--seed", "0,1"), "--label, --steps and --seed: have several values"),
        (("--sampler", "ddim,heun", "--steps", "2,3", "--seed", "0,1"), "give one value of --seed"),
        (("--steps", "1..40", "--seed", "0..39"), "make 1,600 sets of samples, and a grid has 400 at most"),
        (("--steps", "3..1"), "must be whole numbers joined by commas, such as 1,2,4 or 0..3, not '3..1'"),
        (("--seed", "0..100000000000000"), "must have at most 64 entries"),
        (("--seed", ","), "--seed: must be a whole number, or several"),
        (("--steps", "2,3", "--strip", 2), "--steps: a film, a strip or a trajectory shows the same steps"),
        (("--spacing", "trailing,karras", "--out", "x.gif"), "--spacing: a film, a strip or a trajectory"),
        (("--sampler", "ddim,,heun"), "--sampler: must be names joined by commas"),
        (("--sampler", "ddim,hein"), "unknown sampler 'hein'; did you mean 'heun'"),
        (("--checkpoints", "7"), "has 2 of ema-0.999 weights, and no '7'; train with a higher --keep"),
        (("--interpolate", "0,1", "--sampler", "ddim,ddpm"), "the sampler ddpm draws noise"),
    ],
)
def test_what_makes_no_grid(run: Run, pictures_run: Path, words: tuple[object, ...], message: str) -> None:
    outcome = run("sample", pictures_run, *words, *(() if "--out" in words else ("--out", "x.png")))
    assert message in outcome.error
    assert not list(Path().iterdir())


def test_checkpoints_need_a_run(run: Run, pictures_run: Path) -> None:
    assert (
        "is one file; name a run folder"
        in run("sample", pictures_run / "model.safetensors", "--checkpoints", "all").error
    )
    assert "--checkpoints: an oracle has none" in run("sample", "--oracle", "ideal", "--checkpoints", "all").error
