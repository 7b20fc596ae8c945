"""The dataset `array`: what `sample --out` writes is read back, keys and columns, layouts, and large files."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import POINTS, Outcome, invoke
from safetensors.torch import save_file

import difftool
from difftool import Samples
from difftool.plugins.build import load_samples
from difftool.runs.folder import RunFolder
from difftool.testing import check_dataset

SMALL = ("--backbone", "mlp", "--backbone.width", 16, "--backbone.depth", 1, "--batch-size", 16, "--preview-every", 0)
SUFFIXES = (".npy", ".npz", ".safetensors", ".csv")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(path: str, **options: Any) -> Samples:
    return load_samples(difftool.component("dataset", "array", path=path, **options), 0)


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=shape)


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def items(samples: Samples) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = samples.take_items(range(len(samples))).numpy()
    return array


# --- what difftool writes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_points_that_were_written_are_read(points_run: Path, suffix: str) -> None:
    out = f"x{suffix}"
    ok(invoke("sample", points_run, "-n", 40, "--steps", 3, "--out", out, "--out", "same.npy"))
    samples = load(out)
    np.testing.assert_array_equal(items(samples), np.load("same.npy"))
    assert (samples.form, samples.labels, samples.column_names) == ("points", None, ())
    ok(invoke("train", "--dataset", "array", "--dataset.path", out, *SMALL, "--steps", 2, "--out", "again"))
    assert RunFolder(Path("again")).model.is_file()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".csv"])
def test_classes_come_back_by_name(shared: Callable[..., Path], suffix: str) -> None:
    moons = ("--dataset", "two-moons", "--dataset.labels", *POINTS, "--steps", 2)
    folder = shared("labelled-moons", *moons)
    ok(invoke("sample", folder, "-n", 6, "--label", "all", "--steps", 2, "--out", f"x{suffix}", "--out", "same.npz"))
    samples, same = load(f"x{suffix}"), np.load("same.npz")
    assert samples.class_names == ("upper", "lower")
    assert samples.labels is not None
    np.testing.assert_array_equal(samples.labels, same["labels"])
    np.testing.assert_array_equal(items(samples), same["samples"])
    assert load(f"x{suffix}", labels="none").labels is None


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_images_that_were_written_are_read(images_run: Path, suffix: str) -> None:
    ok(invoke("sample", images_run, "-n", 4, "--steps", 2, "--out", f"x{suffix}", "--out", "same.npy"))
    samples = load(f"x{suffix}")
    assert samples.is_image
    np.testing.assert_array_equal(items(samples).transpose(0, 2, 3, 1), np.load("same.npy"))


def test_images_in_csv_need_their_shape(images_run: Path) -> None:
    ok(invoke("sample", images_run, "-n", 4, "--steps", 2, "--out", "x.csv", "--out", "same.npy"))
    samples = load("x.csv", shape=(8, 8, 3), form="image")
    np.testing.assert_array_equal(items(samples).transpose(0, 2, 3, 1), np.load("same.npy"))


def test_the_last_states_of_a_trajectory_are_the_samples(points_run: Path) -> None:
    both = ("--out", "x.csv", "--out", "x.npz")
    ok(invoke("sample", points_run, "-n", 5, "--steps", 3, "--trajectory", *both))
    np.testing.assert_array_equal(items(load("x.csv")), np.load("x.npz")["samples"])
    np.testing.assert_array_equal(items(load("x.npz")), np.load("x.npz")["samples"])


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".safetensors"])
def test_column_names_come_back(suffix: str) -> None:
    """From a table through the run, its weights alone, and the samples, into a dataset again."""
    rows = numbers(60, 2)
    Path("t.csv").write_text('height,"width, in cm"\n' + "\n".join(f"{a},{b}" for a, b in rows))
    assert load("t.csv").column_names == ("height", "width, in cm")
    ok(invoke("train", "--dataset", "array", "--dataset.path", "t.csv", *SMALL, "--steps", 2, "--out", "r"))
    Path("r/model.safetensors").rename("m.safetensors")
    ok(invoke("sample", "m.safetensors", "-n", 3, "--steps", 2, "--out", f"x{suffix}"))
    assert load(f"x{suffix}").column_names == ("height", "width, in cm")
    if suffix == ".csv":
        assert Path("x.csv").read_text().splitlines()[0] == 'height,"width, in cm"'


def test_a_model_file_names_no_path_of_this_machine() -> None:
    np.save("secret-name.npy", numbers(40, 2))
    np.save("secret-labels.npy", np.arange(40) % 2)
    data = ("--dataset", "array", "--dataset.path", "secret-name.npy", "--dataset.labels", "secret-labels.npy")
    ok(invoke("train", *data, *SMALL, "--steps", 2, "--out", "r"))
    assert b"secret" not in Path("r/model.safetensors").read_bytes()


# --- keys and columns -----------------------------------------------------------------------------------------------


def test_keys_of_an_archive() -> None:
    x, y, v = numbers(30, 4), np.arange(30) % 3 + 5, numbers(30, 2)
    np.savez("d.npz", x_train=x, y_train=y, extra=v, tokens=numbers(30, 3, 7))
    samples = load("d.npz", items=("x_train",), labels="y_train", vectors=("extra",), tokens="tokens")
    np.testing.assert_allclose(items(samples), x, rtol=1e-6)
    assert samples.class_names == ("5", "6", "7")
    assert samples.labels is not None
    np.testing.assert_array_equal(samples.labels, y - 5)
    _, condition = samples.take([4, 9])
    assert condition is not None
    np.testing.assert_allclose(condition.vector, v[[4, 9]])
    assert samples.row_shapes["tokens"] == (3, 7)


def test_files_beside_an_array() -> None:
    np.save("x.npy", pixels(12, 8, 8, 3))
    np.save("y.npy", np.array(["cat", "dog"] * 6))
    np.save("e.npy", pixels(12, 8, 8))
    samples = load("x.npy", labels="y.npy", condition="e.npy")
    assert samples.class_names == ("cat", "dog")
    assert samples.row_shapes == {"label": (), "image": (1, 8, 8)}


def test_columns_of_a_table() -> None:
    rows = numbers(50, 3)
    lines = [f"{a};{b};{kind};{c}" for (a, b, c), kind in zip(rows, "ab" * 25, strict=True)]
    Path("t.csv").write_text("\ufeffx;y;kind;weight\n" + "\n\n".join(lines) + "\n")
    samples = load("t.csv", labels="kind", vectors=("weight",))
    np.testing.assert_allclose(items(samples), rows[:, :2], rtol=1e-6)
    assert samples.class_names == ("a", "b")
    assert samples.column_names == ("x", "y")
    assert samples.row_shapes["vector"] == (1,)
    with pytest.warns(UserWarning, match="columns without numbers are left out: kind"):
        assert load("t.csv", vectors=("weight",)).labels is None
    assert load("t.csv", items=("[xy]",), labels="none").column_names == ("x", "y")


def test_numbers_without_a_header() -> None:
    np.savetxt("t.csv", numbers(20, 3), delimiter=",")
    samples = load("t.csv")
    np.testing.assert_allclose(items(samples), numbers(20, 3), rtol=1e-6)
    assert samples.column_names == ()


def test_digits_far_from_zero_are_kept() -> None:
    years = 2.0e9 + numbers(30, 1)
    np.save("x.npy", years)
    samples = load("x.npy")
    assert samples.items.dtype == torch.float64  # type: ignore[union-attr]
    assert samples.scaling.to_model(torch.from_numpy(years)).std(correction=0) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("values", "order"), [([10, 9, 10], ("9", "10")), (["10", "9", "9"], ("9", "10"))])
def test_numbers_order_classes_by_value(values: list[Any], order: tuple[str, ...]) -> None:
    np.savez("x.npz", x=numbers(3, 2), labels=np.array(values))
    samples = load("x.npz")
    assert samples.class_names == order
    assert samples.labels is not None
    assert [order[k] for k in samples.labels] == [str(value) for value in values]


def test_classes_without_items_are_left_out() -> None:
    np.savez("x.npz", samples=numbers(4, 2), labels=[0, 2, 2, 0], class_names=np.array(["a", "b", "c"]))
    with pytest.warns(UserWarning, match=r"1 classes without items are left out \(b\)"):
        samples = load("x.npz")
    assert samples.class_names == ("a", "c")
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 1, 0]


# --- layouts and units -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((6, 8, 8, 3), {}, ("image", (3, 8, 8))),
        ((6, 3, 8, 8), {}, ("image", (3, 8, 8))),
        ((6, 8, 9), {}, ("image", (1, 8, 9))),
        ((6, 4, 4, 3), {}, ("image", (3, 4, 4))),
        ((6, 3, 4, 4), {}, ("image", (3, 4, 4))),
        ((6, 5, 8, 8), {}, ("array", (5, 8, 8))),
        ((6, 5, 8, 8), {"form": "image", "layout": "first"}, ("image", (5, 8, 8))),
        ((6, 8, 8, 2), {"form": "array", "layout": "last"}, ("array", (2, 8, 8))),
        ((6, 192), {"shape": (8, 8, 3)}, ("image", (3, 8, 8))),
        ((6, 12), {}, ("points", (12,))),
        ((6, 12), {"form": "array"}, ("array", (12,))),
        ((6,), {}, ("points", (1,))),
    ],
)
def test_layouts(shape: tuple[int, ...], options: dict[str, Any], expected: tuple[str, tuple[int, ...]]) -> None:
    stored = pixels(*shape)
    np.save("x.npy", stored)
    for memory in (None, 0.0):
        samples = load("x.npy", memory=memory, **options)
        assert (samples.form, samples.shape) == expected
        rows = stored.reshape(6, *options.get("shape", shape[1:]))
        if samples.shape == rows.shape[1:]:
            moved = rows
        elif rows.ndim == 4:
            moved = rows.transpose(0, 3, 1, 2)
        else:
            moved = rows.reshape(6, *samples.shape)
        np.testing.assert_array_equal(items(samples), moved)


@pytest.mark.parametrize(
    ("convert", "tolerance"),
    [
        (lambda x: x.astype(np.float32) / 255, 1e-3),
        (lambda x: x / 127.5 - 1, 1e-3),
        (lambda x: x.astype(np.float64), 0),
        (lambda x: x.astype(np.int64), 0),
        (lambda x: x.astype(">u2") * 257, 1e-3),
        (lambda x: x > 127, None),
    ],
    ids=["0..1", "-1..1", "0..255", "int64", "16 bits, big-endian", "bits"],
)
@pytest.mark.parametrize("memory", [None, 0.0], ids=["held", "read"])
def test_units_of_pixels(convert: Callable[[Any], Any], tolerance: float | None, memory: float | None) -> None:
    x = pixels(5, 3, 8, 8)
    np.save("x.npy", convert(x))
    samples = load("x.npy", form="image", memory=memory)
    expected = 255 * (x > 127) if tolerance is None else x
    np.testing.assert_allclose(items(samples), expected, atol=tolerance or 0)


def test_arrays_are_scaled_in_each_channel() -> None:
    x = numbers(50, 2, 6) * np.array([[3.0], [0.1]]) + np.array([[5.0], [-1.0]])
    np.save("x.npy", x)
    samples = load("x.npy")
    model = samples.scaling.to_model(torch.from_numpy(x))
    assert model.mean((0, 2)).abs().max() < 1e-5
    assert (model.std((0, 2), correction=0) - 1).abs().max() < 1e-5


def test_bfloat16_is_read() -> None:
    x = torch.from_numpy(numbers(9, 4)).to(torch.bfloat16)
    save_file({"samples": x}, "x.safetensors")
    for memory in (None, 0.0):
        np.testing.assert_array_equal(items(load("x.safetensors", memory=memory)), x.float().numpy())


def test_columns_first_in_memory() -> None:
    x = np.asfortranarray(numbers(9, 4).astype(np.float32))
    np.save("x.npy", x)
    np.testing.assert_array_equal(items(load("x.npy")), x)


# --- large files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_large_files_are_read_by_row(suffix: str) -> None:
    """The rows of a file are those of memory, also from a pickled copy, as worker processes get one."""
    x = numbers(40, 2, 5).astype(np.float32)
    if suffix == ".npy":
        np.save("x.npy", x)
    elif suffix == ".npz":
        np.savez("x.npz", other=np.arange(7), samples=x, labels=np.arange(40) % 2)
    else:
        save_file({"a": torch.zeros(3), "samples": torch.from_numpy(x)}, "x.safetensors")
    samples = load(f"x{suffix}", memory=0.0)
    assert not samples.in_memory
    np.testing.assert_array_equal(items(samples), x)
    copied = pickle.loads(pickle.dumps(samples.items))
    np.testing.assert_array_equal(copied[7], x[7])
    assert len(pickle.dumps(samples.items)) < 2000


def test_a_run_that_reads_is_the_run_that_holds() -> None:
    """Training from a file, with worker processes, gives the weights of training from memory."""
    np.save("x.npy", pixels(40, 8, 8, 3))
    data = ("--dataset", "array", "--dataset.path", "x.npy", *SMALL, "--steps", 4, "--threads", 1)
    ok(invoke("train", *data, "--out", "held"))
    ok(invoke("train", *data, "--dataset.memory", 0, "--workers", 1, "--out", "read"))
    weights = [difftool.load(name, device="cpu").network.state_dict() for name in ("held", "read")]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))


def test_resuming_is_exact_and_notices_other_data() -> None:
    np.savez("x.npz", samples=numbers(50, 2), labels=np.arange(50) % 2)
    data = ("--dataset", "array", "--dataset.path", "x.npz", *SMALL, "--threads", 1)
    ok(invoke("train", *data, "--steps", 6, "--out", "whole"))
    ok(invoke("train", *data, "--steps", 3, "--out", "parts"))
    ok(invoke("train", "--resume", "parts", "--steps", 6))
    weights = [difftool.load(name, device="cpu").network.state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
    np.savez("x.npz", samples=numbers(50, 2) + 1, labels=np.arange(50) % 2)
    outcome = invoke("train", "--resume", "parts", "--steps", 8)
    assert outcome.code == 1
    assert "changed" in outcome.error


def test_a_file_that_is_cut_off_is_one_line() -> None:
    np.save("x.npy", numbers(40, 2))
    samples = load("x.npy", memory=0.0)
    with open("x.npy", "r+b") as file:
        file.truncate(300)
    with pytest.raises(difftool.DifftoolError, match=r"x\.npy cannot be read: it ends too early"):
        samples.take_items([39])


# --- conditions, laws and the backbone ------------------------------------------------------------------------------


def test_computed_conditions() -> None:
    np.save("x.npy", pixels(6, 8, 8, 3))
    assert load("x.npy", condition="gray").row_shapes["image"] == (1, 8, 8)
    assert load("x.npy", condition="mask").row_shapes["image"] == (4, 8, 8)
    outcome = invoke("train", "--dataset", "array", "--dataset.path", "x.npy", "--dataset.condition", "shrink:3")
    assert "do not divide images of 8x8" in outcome.error


def test_samples_under_conditions_bring_them_back() -> None:
    """A file of samples that were drawn under vectors has the vectors, unless they are not wanted."""
    angle = ("--dataset.condition", "angle", *POINTS, "--steps", 2)
    ok(invoke("train", "--dataset", "swiss-roll", *angle, "--out", "r"))
    ok(invoke("sample", "r", "-n", 4, "--vector", "7.5", "--steps", 2, "--out", "x.npz"))
    _, condition = load("x.npz").take([0])
    assert condition is not None
    assert condition.vector is not None
    assert condition.vector.tolist() == [[7.5]]
    assert load("x.npz", vectors=("none",)).conditions == ()


@pytest.mark.parametrize("memory", [None, 0.0], ids=["held", "read"])
@pytest.mark.parametrize("kind", ["points", "images"])
def test_laws(kind: str, memory: float | None) -> None:
    x = numbers(64, 2) if kind == "points" else pixels(64, 8, 8, 3)
    np.savez("x.npz", samples=x, labels=np.arange(64) % 2, class_names=np.array(["a", "b"]))
    more = {"condition": "shrink:2"} if kind == "images" else {}
    check_dataset(difftool.component("dataset", "array", path="x.npz", memory=memory, **more))


def test_the_backbone_suits_the_form() -> None:
    np.save("images.npy", pixels(9, 8, 8))
    np.save("points.npy", numbers(9, 3))
    names = {name: difftool.component("dataset", "array", path=f"{name}.npy") for name in ("images", "points", "none")}
    assert {name: one.suggested_backbone() for name, one in names.items()} == {
        "images": "unet",
        "points": "mlp",
        "none": "mlp",
    }
    for name, backbone in (("images", "unet"), ("points", "mlp")):
        dry = ok(invoke("train", "--dataset", "array", "--dataset.path", f"{name}.npy", "--dry-run"))
        assert f'[backbone]\nname = "{backbone}"' in dry.out
    named = ("--backbone", "mlp", "--dry-run")
    dry = ok(invoke("train", "--dataset", "array", "--dataset.path", "images.npy", *named))
    assert '[backbone]\nname = "mlp"' in dry.out
    model = difftool.train(dataset=names["points"], steps=1, batch_size=4, device="cpu", out="from-python")
    assert model.data.shape == (3,)


def test_nothing_is_unpickled() -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (open, ("sprung", "w"))

    np.savez("x.npz", samples=np.array([Trap()], dtype=object))
    outcome = invoke("train", "--dataset", "array", "--dataset.path", "x.npz")
    assert "Python objects" in outcome.error
    assert not Path("sprung").exists()


def test_a_column_of_numbers_names_classes_as_it_is_written() -> None:
    Path("t.csv").write_text("x,y,label,class\n0,1,0,8\n1,0,1,3\n2,1,0,8\n")
    assert load("t.csv").class_names == ("8", "3")


def test_the_row_numbers_of_pandas_are_left_out() -> None:
    Path("t.csv").write_text(",x,y\n0,1,2\n1,3,4\n")
    with pytest.warns(UserWarning, match=r"left out: \(unnamed\)"):
        assert load("t.csv").column_names == ("x", "y")


def test_a_first_row_of_numbers_and_texts_counts_as_names_and_says_so() -> None:
    Path("t.tsv").write_text("5.1\tsetosa\n1\ta\n2\tb\n")
    with pytest.warns(UserWarning, match=r"first row of t\.tsv counts as names of columns, 5\.1 among them"):
        assert len(load("t.tsv", labels="setosa")) == 2


# --- parquet ----------------------------------------------------------------------------------------------------------


@pytest.mark.extras
def test_parquet() -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    x, e = numbers(30, 2), numbers(30, 4)
    kinds = ["b", "a"] * 15
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(e.ravel()), 4)
    columns = {"x": x[:, 0], "y": x[:, 1], "kind": kinds, "e": e.tolist(), "f": fixed}
    pq.write_table(pa.table({**columns, "c": pa.array(kinds).dictionary_encode()}), "t.parquet", row_group_size=7)
    samples = load("t.parquet", items=("x", "y"), labels="kind", vectors=("e",))
    np.testing.assert_allclose(items(samples), x, rtol=1e-6)
    assert (samples.class_names, samples.column_names) == (("a", "b"), ("x", "y"))
    _, condition = samples.take([3])
    assert condition is not None
    np.testing.assert_allclose(condition.vector, e[[3]])
    np.testing.assert_allclose(items(load("t.parquet", items=("f",), labels="c")), e, rtol=1e-6)
    assert load("t.parquet", items=("f",), labels="c").class_names == ("a", "b")


@pytest.mark.extras
@pytest.mark.parametrize(
    ("columns", "piece"),
    [
        ({"x": [1.0, None, 2.0]}, "column x: 1 of 3 values are missing"),
        ({"x": [[1.0], [1.0, 2.0], [3.0]]}, "column x: lists differ in length, from 1 to 2 values"),
        ({"x": ["a", "b", "c"]}, "no column of numbers"),
        ({"x": []}, "no rows"),
    ],
)
def test_bad_parquet(columns: dict[str, Any], piece: str) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), "t.parquet")
    outcome = invoke("train", "--dataset", "array", "--dataset.path", "t.parquet")
    assert piece in outcome.error


def test_parquet_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Path("t.parquet").write_bytes(b"PAR1")
    outcome = invoke("train", "--dataset", "array", "--dataset.path", "t.parquet")
    assert "t.parquet needs pyarrow, which is not installed; pip install 'difftool[parquet]'" in outcome.error
