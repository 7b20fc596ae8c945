"""Faults of data: their form, what no model file could describe, data from Python, and data far from 0."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor

import difftool
from difftool import PIXELS, Dataset, DifftoolError, Model, Samples, points
from difftool.data.facts import DataFacts
from difftool.data.scaling import Scaling
from difftool.devices import choose
from difftool.figures.drawing import Drawing
from difftool.figures.images import side_by_side
from difftool.runs.folder import RunFolder
from difftool.runs.recipe import build_recipe
from difftool.specs import OracleSpec
from difftool.testing import datasets as laws
from difftool.testing.laws import Failed, Skipped
from difftool.training import previews
from difftool.training.prepare import prepare
from difftool.training.watched_folder import WatchedFolder

MLP = difftool.component("backbone", "mlp", width=16, depth=1)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def train(data: object, **settings: Any) -> Model:
    return difftool.train(
        **{"dataset": data, "backbone": MLP, "steps": 2, "batch_size": 8, "device": "cpu", **settings}
    )


class Loaded(Dataset, name="loaded"):
    """Data made by a function."""

    def load(self, context: object) -> Samples:
        samples: Samples = self.make()  # type: ignore[attr-defined]
        return samples


def dataset(make: Callable[[], Samples]) -> Dataset:
    return type("Loaded", (Loaded,), {"make": staticmethod(make), "__doc__": "Data."}, name="loaded")()


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fields of two channels, which are no images."""
    folder = tmp_path_factory.mktemp("fields") / "run"
    train(Samples(items=10 * randn(64, 2, 8, 8), shape=(2, 8, 8), scale=(10.0,)), out=folder, steps=20)
    return folder


# --- form ------------------------------------------------------------------------------------------------------------


def test_fields_are_written_in_data_units(run: Run, fields: Path, tmp_path: Path) -> None:
    """Floats of three axes come back as floats in data units from every writer, not as pixels."""
    outs = [f"x{suffix}" for suffix in (".npy", ".npz", ".safetensors", ".csv")]
    assert run("sample", fields, "-n", 5, "--steps", 3, *(part for out in outs for part in ("--out", out))).code == 0
    x = difftool.load(fields, device="cpu").sample(5, steps=3).numpy()
    assert x.dtype == np.float32
    assert x.max() > 255
    np.testing.assert_allclose(np.load("x.npy"), x, rtol=1e-5)
    np.testing.assert_allclose(np.load("x.npz")["samples"], x, rtol=1e-5)
    np.testing.assert_allclose(load_file("x.safetensors")["samples"], x, rtol=1e-5)
    np.testing.assert_allclose(np.loadtxt("x.csv", delimiter=",", skiprows=1), x.reshape(5, -1), rtol=1e-5)


def test_arrays_default_to_an_array_file(run: Run, fields: Path) -> None:
    """`sample` without --out writes 16 samples of an array to .npy, and --raw writes them in model units."""
    outcome = run("sample", fields, "--steps", 2)
    written = np.load(outcome.out.strip())
    assert run("sample", fields, "--steps", 2, "--raw", "--out", "raw.npy").code == 0
    assert written.shape == (16, 2, 8, 8)
    np.testing.assert_allclose(np.load("raw.npy") * 10, written, rtol=1e-5)


@pytest.mark.parametrize("out", ["x.png", "x.gif", "folder"])
def test_no_picture_is_made_of_arrays(run: Run, fields: Path, out: str) -> None:
    """A picture of an array is refused with the files that can hold it, whatever its axes."""
    outcome = run("sample", fields, "-n", 2, "--steps", 2, "--out", out)
    assert outcome.code == 2
    assert "array" in outcome.error
    assert ".npy" in outcome.error


@pytest.mark.parametrize("arguments", [("sample", "--init", "x.png"), ("reconstruct",)])
def test_commands_for_images_name_the_form(run: Run, fields: Path, arguments: tuple[str, ...]) -> None:
    """--init and reconstruct refuse arrays of three axes, and say what the data are."""
    Image.new("RGB", (8, 8)).save("x.png")
    outcome = run(arguments[0], fields, *arguments[1:])
    assert outcome.code in (1, 2)
    assert "array" in outcome.error


@pytest.mark.parametrize(
    ("make", "drawn"),
    [
        (lambda: points(randn(50, 1)), 2),
        (lambda: points(randn(50, 300)), 2),
        (lambda: Samples(items=pixels(16, 1, 8, 8), shape=(1, 8, 8), **PIXELS), 2),
        (lambda: Samples(items=pixels(16, 2, 8, 8), shape=(2, 8, 8), **PIXELS), 2),
        (lambda: Samples(items=pixels(16, 5, 8, 8), shape=(5, 8, 8), **PIXELS), 2),
        (lambda: Samples(items=randn(16, 1, 8, 8), shape=(1, 8, 8)), 0),
        (lambda: Samples(items=randn(16, 5, 8, 8), shape=(5, 8, 8)), 0),
        (lambda: Samples(items=randn(16, 1, 64), shape=(1, 64)), 0),
        (lambda: Samples(items=randn(16, 64, 3), shape=(64, 3)), 0),
        (lambda: Samples(items=randn(16, 8), shape=(8,), form="array"), 0),
    ],
)
def test_previews_fit_the_form(tmp_path: Path, make: Callable[[], Samples], drawn: int) -> None:
    """Previews of numbers are histograms, those of any image show its channels, and arrays have none; none fails."""
    training = {"steps": 1, "batch_size": 4}
    recipe = build_recipe({"training": training}, parts={"dataset": dataset(make), "backbone": MLP})
    experiment = prepare(recipe, choose("cpu"))
    experiment.watched = WatchedFolder(RunFolder(tmp_path))
    paths = previews.draw(experiment)
    assert len(paths) == drawn
    assert all(Image.open(path).width > 100 for path in paths)


@pytest.mark.parametrize("channels", [2, 5])
def test_images_of_any_channels_are_drawn(tmp_path: Path, run: Run, channels: int) -> None:
    """Images of 2 or 5 channels are drawn as gray pictures side by side, and written as pixels."""
    model = train(Samples(items=pixels(16, channels, 8, 8), shape=(channels, 8, 8), **PIXELS), out=tmp_path / "r")
    assert model.data.is_image
    outs = ("--out", "x.png", "--out", "x.gif", "--out", "x.npy")
    assert run("sample", tmp_path / "r", "-n", 3, "--steps", 2, *outs).code == 0
    assert run("sample", tmp_path / "r", "-n", 3, "--steps", 2, "--strip", 2, "--out", "strip.png").code == 0
    x = np.load("x.npy")
    assert (x.dtype, x.shape) == (np.uint8, (3, 8, 8, channels))
    np.testing.assert_array_equal(side_by_side(x)[1, :, 8:16, 0], x[1, :, :, 1])


def test_single_numbers_are_drawn(tmp_path: Path, run: Run) -> None:
    """Points of one dimension are drawn as histograms: a picture, a strip and a film; compare measures them."""
    train(randn(100, 1) * 3 + 5, out=tmp_path / "r")
    assert run("sample", tmp_path / "r", "-n", 50, "--steps", 3, "--out", "x.png", "--out", "x.gif").code == 0
    assert run("sample", tmp_path / "r", "-n", 50, "--steps", 3, "--strip", 3, "--out", "strip.png").code == 0
    arguments = ("-n", 20, "--samplers", "ddim", "--spacings", "trailing", "--calls", 3, "--reference", 10)
    assert run("compare", tmp_path / "r", *arguments).code == 0
    with Image.open("x.gif") as film:
        assert film.n_frames == 4  # type: ignore[attr-defined]


def test_the_histogram_of_a_strip_is_that_of_the_numbers() -> None:
    """The bars of a strip of single numbers hold all of them: their areas sum to 1."""
    x = torch.linspace(-1, 1, 400).unsqueeze(1)
    drawing = Drawing(x=x, scaling=Scaling((5.0,), (2.0,)), title="", states=torch.stack([x, x]), strip=2)
    for axes in drawing.figure().axes:
        (bars,) = axes.patches
        heights, edges, _ = bars.get_data()  # type: ignore[attr-defined]
        assert np.sum(heights * np.diff(edges)) == pytest.approx(1.0)
        assert edges[0] < 5 < edges[-1]


def test_the_form_travels_with_the_weights(tmp_path: Path, fields: Path) -> None:
    """The form is in the model file, and a file without a known one is refused."""
    facts = difftool.load(fields, device="cpu").data
    assert facts.form == "array"
    assert DataFacts.read(facts.document()) == facts
    for form in ("crowd", None, 3):
        with pytest.raises(ValueError, match="form"):
            DataFacts.read({**facts.document(), "form": form})
    with pytest.raises(ValueError, match="images have the axes"):
        DataFacts.read({**facts.document(), "shape": [2, 8], "form": "image"})


@pytest.mark.parametrize(("form", "shape"), [("image", (2,)), ("points", (2, 3)), ("crowd", (2, 3)), ("", (2,))])
def test_forms_that_do_not_fit(form: Any, shape: tuple[int, ...]) -> None:
    """A form that is unknown, or that does not go with the shape, is refused."""
    with pytest.raises(ValueError, match=r"form|axis|axes"):
        Samples(items=randn(4, *shape), shape=shape, form=form)


def test_the_laws_obey_the_form() -> None:
    """`check` holds images alone to the law of pixels, and lets floats of three axes be."""
    floats = laws.Case(dataset(lambda: Samples(items=randn(64, 3, 8, 8), shape=(3, 8, 8))))
    for law in laws.LAWS:
        with contextlib.suppress(Skipped):
            law(floats)
    with pytest.raises(Skipped, match="form 'array'"):
        laws.stores_images_as_pixels(floats)
    dark = laws.Case(dataset(lambda: Samples(items=pixels(64, 2, 8, 8) / 255, shape=(2, 8, 8), **PIXELS)))
    with pytest.raises(Failed, match="give pixels from 0 to 255"):
        laws.stores_images_as_pixels(dark)


# --- what no file could describe -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 88200), (2, 2, 2, 2, 2), (1,) * 9, (70000,)], ids=str)
def test_shapes_that_train_can_be_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Long series, five axes and more are trained and read back, with a scale for each channel."""
    train(randn(4, *shape), steps=1, out=tmp_path / "r", ema=0.0)
    assert difftool.load(tmp_path / "r", device="cpu").sample(1, steps=1).shape == (1, *shape)


X = randn(20, 2)
NORMALISED: dict[str, dict[str, Any]] = {
    "numpy scale and shape": {"scale": tuple(X.numpy().std(0)), "shape": tuple(np.array([2]))},
    "arrays": {"items": X.numpy(), "shift": X.mean(0), "scale": X.numpy().std(0), "shape": torch.Size([2])},
    "a scalar": {"scale": 2, "shift": np.float32(0.5)},
    "numpy bounds": {"bounds": np.array([-9.0, 9.0])},
    "numpy labels": {"labels": np.arange(20) % 3},
    "int32 labels": {"labels": torch.arange(20, dtype=torch.int32) % 2, "class_names": ["a", "b"]},
    "a list of labels": {"labels": [0, 1] * 10},
    "a gradient": {"items": X.clone().requires_grad_()},
    "a transposed tensor": {"items": randn(2, 20).T},
    "reversed": {"items": X.numpy()[::-1]},
    "big-endian": {"items": X.numpy().astype(">f8")},
    "read-only": {"items": np.broadcast_to(X.numpy()[:1], (20, 2))},
    "a list of tensors": {"items": list(X)},
    **{str(dtype): {"items": (X * 3).to(dtype)} for dtype in (torch.float64, torch.float16, torch.bfloat16)},
    **{str(dtype): {"items": (X > 0).to(dtype)} for dtype in (torch.bool, torch.uint8, torch.uint16, torch.int64)},
}


@pytest.mark.parametrize("changes", NORMALISED.values(), ids=NORMALISED)
def test_samples_are_brought_into_plain_types(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Numbers and arrays of NumPy, other types of numbers and items with a gradient train and are read back."""
    train(Samples(**{"items": X, "shape": (2,), **changes}), out=tmp_path / "r")
    assert difftool.load(tmp_path / "r", device="cpu").sample(2, steps=1).isfinite().all()


NAN = torch.cat([randn(5000, 2), torch.tensor([[0.0, math.nan]]), randn(99, 2)])
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a negative scale": ({"scale": (-1.0,)}, "no scale may be 0"),
    "a scale of 0": ({"scale": (1.0, 0.0)}, "no scale may be 0"),
    "a scale of NaN": ({"scale": (math.nan,)}, "scale must be finite"),
    "an infinite shift": ({"shift": (math.inf,)}, "shift must be finite"),
    "a huge scale": ({"scale": (1e31,)}, "no model file could describe"),
    "no scale": ({"scale": ()}, "scale must be finite"),
    "a text as scale": ({"scale": "1"}, "scale must be finite"),
    "reversed bounds": ({"bounds": (1.0, -1.0)}, "bounds must be a low and a high"),
    "one bound": ({"bounds": (1.0,)}, "bounds must be a low and a high"),
    "bounds of NaN": ({"bounds": (math.nan, 1.0)}, "bounds must be finite"),
    "labels of four columns": ({"labels": torch.zeros(20, 4, dtype=torch.int64)}, r"shape \(N,\), not \(20, 4\)"),
    "floats as labels": ({"labels": torch.zeros(20)}, "labels must be int64, not float32"),
    "texts as labels": ({"labels": ["a"] * 20}, "labels must be int64"),
    "a negative label": ({"labels": np.arange(20) - 1}, "from 0 on"),
    "labels beyond the names": ({"labels": torch.arange(20), "class_names": ("a", "b")}, "they reach from 0 to 19"),
    "enormous labels": ({"labels": torch.arange(20) * 10**12}, "there are 19,000,000,000,001 classes"),
    "a text of names": ({"labels": [0, 1] * 10, "class_names": "ab"}, "must be a tuple of texts"),
    "numbers as names": ({"labels": [0, 1] * 10, "class_names": (1, 2)}, "must be a tuple of texts"),
    "no names": ({"labels": [0, 1] * 10, "class_names": None}, "must be a tuple of texts"),
    "a name twice": ({"labels": [0, 1] * 10, "class_names": ("a", "a")}, "two classes have the same name"),
    "a number as augmentation": ({"augment": 3}, "augment must be a function"),
    "a number of ids": ({"item_ids": 20}, "item_ids must be texts"),
    "numbers as ids": ({"item_ids": list(range(20))}, "item_ids must be texts"),
    "NaN anywhere": ({"items": NAN}, r"NaN or infinite numbers \(first in item 5000\)"),
    "infinity": ({"items": X.double() / 0}, "NaN or infinite"),
    "too large for float32": ({"items": X.double() * 1e300}, "too large for float32"),
    "complex": ({"items": X.to(torch.complex64)}, "complex"),
    "texts": ({"items": np.array([["a", "b"]])}, "must be numbers"),
    "objects": ({"items": np.array([[1, 2]], dtype=object)}, "must be numbers"),
    "masked": ({"items": np.ma.masked_less(X.numpy(), 0)}, "masked"),
    "sparse": ({"items": torch.eye(2).to_sparse()}, "dense"),
    "nothing": ({"items": torch.zeros(0, 2)}, "empty"),
    "None": ({"items": None}, "not NoneType"),
    "lists": ({"items": [[1.0, 2.0]]}, "item 0 is not a tensor, but of type list"),
    "ragged": ({"items": [randn(2), randn(3)]}, "differ in shape"),
    "an axis of 0": ({"items": torch.zeros(3, 0), "shape": (0,)}, "must have a shape"),
    "a shape of floats": ({"shape": (2.0,)}, "whole numbers"),
    "too many axes": ({"items": randn(2, *(1,) * 17), "shape": (1,) * 17}, "no model file could describe"),
    "names too long": (
        {"labels": [0, 1] * 10, "class_names": tuple(f"{i}{'x' * 900}" for i in range(10_000))},
        "too long for a model file",
    ),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_what_could_not_be_read_back_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """Data that no run could read back, or train on, are refused before the first step, and no folder is made."""
    data = dataset(lambda: Samples(**{"items": X, "shape": (2,), **changes}))
    with pytest.raises(DifftoolError, match=words):
        train(data, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_items_that_are_read_late_are_checked(tmp_path: Path) -> None:
    """NaN and other shapes in an item that is read during training end the run by naming the item."""

    class Late:
        def __init__(self, bad: Tensor) -> None:
            self.bad = bad

        def __len__(self) -> int:
            return 1000

        def __getitem__(self, i: int) -> Tensor:
            return self.bad if i == 501 else torch.tensor([float(i % 5), 1.0 - i % 3])

    settings = {"batch_size": 100, "steps": 10, "workers": 0}
    for bad, words in ((torch.full((2,), math.nan), "NaN or infinite numbers"), (torch.zeros(3), "the shape says")):
        with pytest.raises(DifftoolError, match=rf"{words}.*\(item 501\)"):
            train(Samples(items=Late(bad), shape=(2,)), out=tmp_path / words, **settings)


def test_augmentations_keep_the_shape(tmp_path: Path) -> None:
    """An augmentation that changes the shape of a batch is refused, instead of being broadcast over the noise."""
    with pytest.raises(DifftoolError, match=r"augment\(\) of the dataset made \(8, 1\) of \(8, 2\)"):
        train(Samples(items=X, shape=(2,), augment=lambda items, _: items[:, :1]), out=tmp_path / "r")


# --- from Python -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (X, (2,)),
        (X.numpy(), (2,)),
        (X.tolist(), (2,)),
        (list(X), (2,)),
        (300 * randn(20, 3, 8, 8) + 7, (3, 8, 8)),
        (pixels(20, 3, 8, 8), (3, 8, 8)),
        (points(X), (2,)),
    ],
    ids=["tensor", "array", "list", "tensors", "fields", "bytes", "samples"],
)
def test_data_in_memory_are_trained_on(tmp_path: Path, data: Any, shape: tuple[int, ...]) -> None:
    """`difftool.train(dataset=...)` takes tensors, arrays, lists and Samples as the data, and scales them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = train(data, out=tmp_path / "r")
    facts = model.data
    assert (facts.shape, facts.form) == (shape, "array" if len(shape) == 3 else "points")
    assert facts.std == pytest.approx(1.0, abs=0.02)
    assert difftool.load(tmp_path / "r", device="cpu").recipe.document()["dataset"]["name"] == "memory"


def test_a_run_on_data_in_memory_is_resumed_from_python(tmp_path: Path, run: Run) -> None:
    """A run on data in memory can be sampled from folder and file; the command line names the call that resumes it."""
    whole = train(X, out=tmp_path / "whole", steps=8)
    train(X, out=tmp_path / "half", steps=4)
    for arguments in (
        ("train", "--resume", tmp_path / "half"),
        ("train", "--config", tmp_path / "half" / "config.toml"),
    ):
        outcome = run(*arguments, "--steps", 8)
        assert outcome.code == 1
        assert "difftool.train(resume=RUN, dataset=DATA)" in outcome.error
    with pytest.raises(DifftoolError, match=r"--dataset.fingerprint is 20 items, 2, \w+ in the run, not 20 items"):
        difftool.train(resume=tmp_path / "half", dataset=X + 1e-3)
    with pytest.raises(DifftoolError, match="--lr is"):
        difftool.train(resume=tmp_path / "half", dataset=X, lr=0.5)
    resumed = difftool.train(resume=tmp_path / "half", dataset=X, steps=8, device="cpu")
    assert torch.equal(resumed.sample(5, steps=3), whole.sample(5, steps=3))
    for source in (tmp_path / "half", tmp_path / "half" / "model.safetensors"):
        assert run("sample", source, "-n", 4, "--steps", 2, "--out", "x.png", "--overwrite").code == 0
        difftool.load(source).save(str(tmp_path / "copy.safetensors"))
        assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "half/model.safetensors").read_bytes()
    assert "unknown dataset 'memory'" in run("train", "--dataset", "memory").error


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a dict": ({"dataset": {"name": "swiss-roll"}}, TypeError, "as Samples, as an array of items .* not as dict"),
    "a tuple": ({"dataset": (X, X)}, TypeError, "not as tuple"),
    "None": ({"dataset": None}, TypeError, "not as NoneType"),
    "a path": ({"dataset": Path("photos")}, TypeError, "not as"),
    "a ragged list": ({"dataset": [[1.0, 2.0], [3.0]]}, TypeError, "items of one shape"),
    "a list of texts": ({"dataset": ["a", "b"]}, TypeError, "not str"),
    "numbers without an axis": ({"dataset": randn(9)}, DifftoolError, r"\(N, 1\)"),
    "no items": ({"dataset": []}, DifftoolError, "array of items"),
    "NaN": ({"dataset": NAN}, DifftoolError, "NaN or infinite"),
    "a class of datasets": ({"dataset": Loaded}, TypeError, r"write Loaded\(\)"),
    "schedule=3": ({"schedule": 3}, TypeError, "a schedule is given by its name or as a NoiseSchedule, not as int"),
    "schedule=None": ({"schedule": None}, TypeError, "not as NoneType"),
    "a class": ({"backbone": type(MLP)}, TypeError, r"write MLP\(\)"),
    "a module": ({"backbone": torch.nn.Linear(2, 2)}, TypeError, "not as Linear"),
    "another kind": ({"sampler": "ddim"}, DifftoolError, "sampler: there is no such option"),
    "a wrong option": ({"backbone": type(MLP)(width="10")}, DifftoolError, "width: must be a whole number"),  # type: ignore[call-arg]
    "an option out of range": ({"backbone": type(MLP)(width=-1)}, DifftoolError, "width: must be greater"),  # type: ignore[call-arg]
    "loggers as text": ({"loggers": "csv"}, TypeError, "loggers are a list of names"),
    "no list of loggers": ({"loggers": None}, TypeError, "loggers are a list of names"),
    "a number as logger": ({"loggers": [3]}, TypeError, "a logger is given by its name"),
    "steps as text": ({"steps": "10"}, DifftoolError, "steps: must be a whole number"),
    "an unknown setting": ({"stepz": 10}, DifftoolError, "did you mean 'steps'"),
    "out=3": ({"out": 3}, TypeError, "out is a path"),
    "overwrite='no'": ({"overwrite": "no"}, TypeError, "overwrite is True or False"),
    "device=3": ({"device": 3}, TypeError, "a device is given by its name"),
}


@pytest.mark.parametrize(("arguments", "error", "words"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_arguments_that_are_not_understood(
    run: Run, tmp_path: Path, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Whatever `difftool.train` does not understand is refused with what it takes; nothing falls back to a default."""
    with pytest.raises(error, match=words):
        difftool.train(**{"steps": 1, "device": "cpu", **arguments})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"sampler": {"name": "ddim"}}, TypeError, "a sampler is given by its name or as a Sampler, not as dict"),
        ({"sampler": type(difftool.component("sampler", "ddim"))}, TypeError, r"write DDIM\(\)"),
        ({"sampler": difftool.component("spacing", "karras")}, TypeError, "not as Karras"),
        ({"sampler": None}, TypeError, "not as NoneType"),
        ({"spacing": 3}, TypeError, "a spacing is given by its name"),
        ({"n": None}, TypeError, "as n"),
        ({"num_samples": 7}, TypeError, "as n"),
        ({"n": "2"}, DifftoolError, "num_samples: must be a whole number"),
        ({"steps": "10"}, DifftoolError, "steps: must be a whole number"),
        ({"stepz": 10}, DifftoolError, "did you mean 'steps'"),
    ],
)
def test_arguments_of_sample_that_are_not_understood(
    points_run: Path, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A sampler that is a dict, a class or another kind, and other odd arguments of `sample`, are refused."""
    with pytest.raises(error, match=words):
        difftool.load(points_run).sample(**{"n": 2, **arguments})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run: difftool.load(3), "path"),
        (lambda run: difftool.load(None), "path"),
        (lambda run: difftool.load(run, weights="live"), "has ema, raw, ema-0.999"),
        (lambda run: difftool.load(run, weights=3), "unknown weights 3; "),
        (lambda run: difftool.load(run, device=3), "a device is given by its name"),
        (lambda run: difftool.component("backbone", type(MLP)), "named by a text, not by type"),
        (lambda run: difftool.component(3, "mlp"), "a kind is named by a text"),
        (lambda run: difftool.names([]), "a kind is named by a text"),
        (lambda run: difftool.component("backbone", "mlp", width="10"), "width: must be a whole number"),
    ],
)
def test_other_arguments_that_are_not_understood(points_run: Path, call: Callable[[Any], object], words: str) -> None:
    """`load`, `component` and `names` refuse what they do not take: nothing falls back to a default."""
    with pytest.raises((TypeError, DifftoolError), match=words):
        call(points_run)


def test_numbers_of_numpy_and_torch_are_options(tmp_path: Path) -> None:
    """Options and settings may be numbers of NumPy or torch, also of a component made by its class."""
    backbone = type(MLP)(width=np.int64(16), depth=1)  # type: ignore[call-arg]
    train(
        X, backbone=backbone, steps=np.int64(2), lr=torch.tensor(0.01), out=tmp_path / "r", device=torch.device("cpu")
    )
    model = difftool.load(tmp_path / "r")
    assert model.sample(np.int64(3), steps=np.int32(2), seed=np.int64(1)).shape == (3, 2)  # type: ignore[arg-type]


# --- far from 0 ------------------------------------------------------------------------------------------------------


def test_points_far_from_zero_keep_their_shape(tmp_path: Path, run: Run) -> None:
    """Points at 1e6 that deviate by 1e-3 are shifted in float64, and so are their samples, in every file."""
    data = 1e6 + 1e-3 * randn(500, 2, dtype=torch.float64)
    samples = points(data)
    x = samples.scaling.to_model(samples.take(range(500))[0])
    assert x.std(0).tolist() == pytest.approx([1.0, 1.0], rel=1e-2)
    torch.testing.assert_close(samples.scaling.to_data(x), data, rtol=0, atol=1e-9)
    train(samples, out=tmp_path / "r", steps=200, batch_size=128)
    drawn = difftool.load(tmp_path / "r", device="cpu").sample(200, steps=10)
    assert drawn.dtype == torch.float64
    assert 1e-4 < float(drawn.std()) < 1e-1
    outs = ("--out", "x.npy", "--out", "x.csv", "--out", "x.png", "--out", "x.gif")
    assert run("sample", tmp_path / "r", "-n", 200, "--steps", 10, *outs).code == 0
    np.testing.assert_allclose(np.load("x.npy"), drawn.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.loadtxt("x.csv", delimiter=",", skiprows=1), np.load("x.npy"))


@pytest.mark.parametrize(
    ("dtype", "mean", "std"), [(torch.float32, 1e6, 0.1), (torch.float16, 100.0, 0.1), (torch.float64, 1e15, 0.5)]
)
def test_points_that_lost_their_digits_are_refused(dtype: torch.dtype, mean: float, std: float) -> None:
    """Floats that lie so far from 0 that their type rounds them to a few values are refused, with the cure."""
    with pytest.raises(ValueError, match=r"channel 0 of the items deviates by .* less than float\d\d can hold"):
        DataFacts.of(points((mean + std * randn(500, 2, dtype=torch.float64)).to(dtype)))


def test_large_integers_are_shifted_exactly() -> None:
    """Integers beyond 2^24 are shifted before they become float32, by the oracles as well."""
    data = 10**12 + torch.arange(-50, 50).unsqueeze(1)
    samples = points(data)
    x = samples.scaling.to_model(data)
    assert len(x.unique()) == 100
    ideal: Any = difftool.component("oracle", "ideal")
    linear: Any = difftool.component("schedule", "linear")
    spec = OracleSpec(schedule=linear.build(10), device=torch.device("cpu"))
    torch.testing.assert_close(ideal.denoiser(samples, spec).means, x)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"items": 5e5 + 1e4 * X}, r"mean 4.99e\+05 and standard deviation .* difftool.points"),
        ({"items": 1e-4 * X}, "standard deviation"),
        ({"items": 1e3 * X}, "standard deviation"),
        ({"items": X, "bounds": (-0.1, 0.1)}, "beyond their bounds"),
        ({"items": pixels(9, 8, 8, 3), "shape": (8, 8, 3), **PIXELS}, "channels come first"),
        ({"items": pixels(9, 3, 8, 8) / 255, "shape": (3, 8, 8), **PIXELS}, "standard deviation"),
    ],
)
def test_a_scaling_that_no_network_learns_from_is_told(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """Data of mean 5e5 with scale 1, bounds that cut data off and channels that come last are warned of in one line."""
    with pytest.warns(UserWarning, match=words) as told:
        train(Samples(**{"shape": (2,), **changes}), out=tmp_path / "r", steps=0)
    assert len(told) == 1


@pytest.mark.parametrize("items", [torch.full((9, 2), 1e6), torch.ones(1, 2), randn(9, 2), 5 + randn(9, 2).round()])
def test_ordinary_data_are_not_warned_of(items: Tensor) -> None:
    """Constant data, a single point and scaled points train without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DataFacts.of(points(items))
