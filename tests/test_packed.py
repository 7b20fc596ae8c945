"""Data sets of Hugging Face and tar shards: their columns, their order after a kill, and bad content."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image

from difftool.data.samples import DatasetContext, Samples
from difftool.errors import DifftoolError
from difftool.testing import check_dataset
from difftool_plugins.datasets import HuggingFace, WebDataset
from difftool_plugins.datasets.columns.captions import tokens_of
from difftool_plugins.datasets.packed.shards import shard_paths

CONTEXT = DatasetContext(seed=3)
EXTRA = pytest.mark.extras
"""Tests that need the library of an extra."""
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
WORDS = ("a red cat", "a dog", "two cats")


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def shard(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar file of these members, in this order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shards(folder: Path) -> Path:
    """Three shards of four samples each."""
    folder.mkdir(exist_ok=True)
    for k in range(3):
        members: dict[str, bytes] = {}
        for i in range(4 * k, 4 * k + 4):
            numbers = b'{"kind": "k%d", "size": [%d, 1.5]}' % (i % 2, i)
            members |= {f"{i:03}.png": png(PIXELS[i]), f"{i:03}.cls": b"%d" % (7 * (i % 3)), f"{i:03}.json": numbers}
            members[f"{i:03}.txt"] = WORDS[i % 3].encode()
        shard(folder / f"s-{k:02}.tar", members)
    return folder


def pixels(samples: Samples) -> torch.Tensor:
    return samples.take_items(range(len(samples)))


EXPECTED = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


# -- tar shards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, 0.0])
def test_shards_hold_the_pixels_that_went_in(tmp_path: Path, memory: float | None) -> None:
    data = WebDataset(path=shards(tmp_path / "s"), size=(8,), memory=memory, vectors=("json:size",), captions="txt")
    samples = data.load(CONTEXT)
    assert torch.equal(pixels(samples), EXPECTED)
    assert samples.in_memory == (memory is None)
    assert samples.class_names == ("0", "7", "14")
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2] * 4
    assert isinstance(samples.vectors, torch.Tensor)
    assert samples.vectors.tolist() == [[i, 1.5] for i in range(12)]
    _, condition = samples.take([4])
    assert condition is not None
    assert condition.tokens is not None
    assert torch.equal(condition.tokens[0], tokens_of(WORDS[1], 32))
    assert samples.item_ids is not None
    assert samples.item_ids[5] == "s-01.tar/005"
    check_dataset(data)


def test_labels_may_be_texts_in_json(tmp_path: Path) -> None:
    samples = WebDataset(path=shards(tmp_path / "s"), size=(8,), labels="json:kind").load(CONTEXT)
    assert samples.class_names == ("k0", "k1")
    assert WebDataset(path=tmp_path / "s", size=(8,), labels="none").load(CONTEXT).labels is None


def test_members_may_be_arrays(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(3, 2, (6, 2, 5)).astype(np.float32)
    shard(tmp_path / "a.tar", {f"{i}.npy": npy(row) for i, row in enumerate(rows)})
    for memory in (None, 0.0):
        samples = WebDataset(path=tmp_path / "a.tar", memory=memory).load(CONTEXT)
        assert torch.equal(pixels(samples), torch.from_numpy(rows))
        assert samples.shift == pytest.approx(rows.mean((0, 2)), abs=1e-5)
        assert samples.scale == pytest.approx(rows.std((0, 2)), abs=1e-5)


def test_patterns_name_shards_in_order(tmp_path: Path) -> None:
    shards(tmp_path)
    every = [str(tmp_path / f"s-0{k}.tar") for k in range(3)]
    assert shard_paths(str(tmp_path)) == every
    assert shard_paths(str(tmp_path / "s-{00..02}.tar")) == every
    assert shard_paths(str(tmp_path / "s-*.tar")) == every
    assert shard_paths(str(tmp_path / "s-{02,00}.tar")) == [every[2], every[0]]
    assert shard_paths(every[1]) == [every[1]]


def test_an_index_is_made_once_and_again_when_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from difftool_plugins.datasets.packed import shards as module

    scanned: list[str] = []
    scan = module._scanned
    monkeypatch.setattr(module, "_scanned", lambda path, size: scanned.append(path) or scan(path, size))
    context = DatasetContext(seed=0, cache=tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    data = WebDataset(path=shards(tmp_path / "s"), size=(8,))
    first = data.load(context)
    second = data.load(context)
    assert len(scanned) == 3
    assert torch.equal(pixels(first), pixels(second))
    assert first.fingerprint == second.fingerprint
    shard(tmp_path / "s" / "s-01.tar", {"x.png": png(PIXELS[0]), "x.cls": b"7"})
    third = data.load(context)
    assert len(scanned) == 4
    assert len(third) == 9
    assert third.fingerprint != first.fingerprint
    for file in (tmp_path / "cache").iterdir():
        file.write_text('{"stamp": 3')
    assert len(data.load(context)) == 9


def cut(folder: Path) -> None:
    path = shards(folder) / "s-02.tar"
    path.write_bytes(path.read_bytes()[:3000])


def cut_between(folder: Path) -> None:
    """Cut a shard where a member ends, so that nothing but its end mark is missing."""
    path = shards(folder) / "s-02.tar"
    with tarfile.open(path) as tar:
        path.write_bytes(path.read_bytes()[: tar.getmembers()[4].offset])


def cut_in_a_header(folder: Path) -> None:
    path = shards(folder) / "s-02.tar"
    with tarfile.open(path) as tar:
        path.write_bytes(path.read_bytes()[: tar.getmembers()[4].offset + 200])


def zipped(folder: Path) -> None:
    with tarfile.open(shards(folder) / "s-00.tar", "w:gz"):
        pass


BAD: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "a shard that is cut off": (cut, {}, "s-02.tar.* cut off"),
    "a shard that is cut off between samples": (cut_between, {}, "s-02.tar is cut off"),
    "a shard that is cut off in a header": (cut_in_a_header, {}, "s-02.tar is cut off"),
    "a compressed shard": (zipped, {}, "s-00.tar is not a tar file .it is compressed"),
    "no shards": (lambda f: f.mkdir(), {}, "no .tar files in"),
    "a missing file": (shards, {"path": "nowhere.tar"}, "nowhere.tar does not exist"),
    "a pattern without files": (shards, {"path": "x-*.tar"}, "no file matches"),
    "an unknown suffix": (shards, {"labels": "foo"}, "no sample has a member foo; there are cls, json, png, txt"),
    "an unknown key": (shards, {"labels": "json:foo"}, "000.json: has no key 'foo'"),
    "labels that are lists": (
        shards,
        {"labels": "json:size"},
        "labels: json:size must be whole numbers or texts, not .0",
    ),
    "vectors that are texts": (shards, {"vectors": ("json:kind",)}, "must hold numbers"),
    "items that are texts": (shards, {"items": "txt"}, "items: must be images"),
    "a member that is missing": (
        lambda f: shard(shards(f) / "s-00.tar", {"a.png": png(PIXELS[0]), "b.png": png(PIXELS[1]), "b.cls": b"0"}),
        {},
        "a.cls: is missing",
    ),
    "two suffixes of images": (
        lambda f: (f.mkdir(), shard(f / "a.tar", {"a.png": b"x", "a.jpg": b"y"})),
        {},
        "several suffixes could be learned .jpg, png",
    ),
    "an array that is a pickle": (
        lambda f: (f.mkdir(), shard(f / "a.tar", {"a.npy": npy(np.array([{}], dtype=object))})),
        {},
        "a.tar: a.npy",
    ),
    "arrays of two shapes": (
        lambda f: (f.mkdir(), shard(f / "a.tar", {"a.npy": npy(np.zeros(2)), "b.npy": npy(np.zeros(3))})),
        {},
        "b.npy is .3,., but the first one .2,.",
    ),
    "a damaged image": (
        lambda f: (f.mkdir(), shard(f / "a.tar", {"a.png": png(PIXELS[0])[:50], "b.png": png(PIXELS[1])})),
        {},
        "a.png: .*skip-bad",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_shards_are_named(tmp_path: Path, name: str) -> None:
    make, options, words = BAD[name]
    make(tmp_path / "s")
    path = tmp_path / "s" / str(options.get("path", ""))
    with pytest.raises((ValueError, DifftoolError), match=words):
        WebDataset(**{"size": (8,), **options, "path": path}).load(CONTEXT)


def test_bad_samples_are_left_out_and_counted(tmp_path: Path) -> None:
    members = {"a.png": png(PIXELS[0])[:50], "b.png": png(PIXELS[1]), "c.txt": b"x", "d.png": png(PIXELS[2])}
    shard(tmp_path / "a.tar", members)
    (tmp_path / "cache").mkdir()
    context = DatasetContext(cache=tmp_path / "cache")
    for memory in (None, 0.0, 0.0):
        data = WebDataset(path=tmp_path / "a.tar", size=(8,), skip_bad=True, memory=memory)
        with pytest.warns(UserWarning, match="left out 1 of 4 items: .*c.png: is missing"):
            samples = data.load(context)
        assert torch.equal(pixels(samples), EXPECTED[1:3])
        assert list(samples.item_ids or ()) == ["a.tar/b", "a.tar/d"]


# -- Hugging Face ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with its cache in a folder of the test."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    library.disable_progress_bars()
    return library


def table(library: Any) -> Any:
    """Twelve rows of an image, a class, a text, three numbers and an array."""
    features = library.Features(
        image=library.Image(),
        label=library.ClassLabel(names=["x", "y", "z"]),
        text=library.Value("string"),
        v=library.Sequence(library.Value("float32")),
        grid=library.Array2D((2, 5), "float32"),
    )
    numbers = np.random.default_rng(2).normal(size=(12, 3)).astype(np.float32)
    columns = {
        "image": [Image.fromarray(p) for p in PIXELS],
        "label": [0, 1, 2] * 4,
        "text": [WORDS[i % 3] for i in range(12)],
        "v": numbers,
        "grid": np.random.default_rng(3).normal(2, 3, (12, 2, 5)).astype(np.float32),
    }
    return library.Dataset.from_dict(columns, features=features)


def stored(library: Any, folder: Path, kind: str) -> Path:
    """The table in a folder or file of a kind."""
    rows = table(library)
    if kind == "saved":
        rows.save_to_disk(folder / "saved")
    elif kind == "splits":
        library.DatasetDict(train=rows, test=rows.select(range(3))).save_to_disk(folder / "splits")
    elif kind == "file":
        rows.to_parquet(folder / "file")
        return (folder / "file").rename(folder / "file.parquet")
    else:
        (folder / kind).mkdir()
        rows.to_parquet(folder / kind / "train.parquet")
    return folder / kind


@EXTRA
@pytest.mark.parametrize("kind", ["saved", "splits", "file", "folder"])
@pytest.mark.parametrize("memory", [None, 0.0])
def test_tables_hold_the_pixels_that_went_in(tmp_path: Path, hub: Any, kind: str, memory: float | None) -> None:
    path = str(stored(hub, tmp_path, kind))
    data = HuggingFace(path=path, size=(8,), memory=memory, vectors=("v",), captions="text")
    samples = data.load(CONTEXT)
    assert torch.equal(pixels(samples), EXPECTED)
    assert samples.in_memory == (memory is None)
    assert samples.class_names == ("x", "y", "z")
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2] * 4
    assert isinstance(samples.vectors, torch.Tensor)
    assert torch.equal(samples.vectors, torch.tensor(np.array(table(hub)["v"][:]), dtype=torch.float32))
    if kind == "saved":
        check_dataset(data)
    if kind == "splits":
        assert len(HuggingFace(path=path, size=(8,), split="test").load(CONTEXT)) == 3


@EXTRA
@pytest.mark.parametrize("memory", [None, 0.0])
def test_columns_may_be_arrays(tmp_path: Path, hub: Any, memory: float | None) -> None:
    path = str(stored(hub, tmp_path, "saved"))
    samples = HuggingFace(path=path, items="grid", labels="text", memory=memory).load(CONTEXT)
    expected = np.random.default_rng(3).normal(2, 3, (12, 2, 5)).astype(np.float32)
    assert torch.equal(pixels(samples), torch.from_numpy(expected))
    assert samples.shift == pytest.approx(expected.mean((0, 2)), abs=1e-5)
    assert samples.class_names == tuple(sorted(WORDS))
    assert samples.form == "array"


@EXTRA
def test_a_folder_of_images_is_a_data_set(tmp_path: Path, hub: Any) -> None:
    for i, name in enumerate(("cat", "cat", "dog")):
        (tmp_path / "f" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[i]).save(tmp_path / "f" / name / f"{i}.png")
    samples = HuggingFace(path=str(tmp_path / "f"), size=(8,)).load(CONTEXT)
    assert samples.class_names == ("cat", "dog")
    assert torch.equal(pixels(samples), EXPECTED[:3])


@EXTRA
def test_a_copy_has_the_same_fingerprint_and_other_rows_another(tmp_path: Path, hub: Any) -> None:
    (tmp_path / "copy").mkdir()
    paths = [stored(hub, tmp_path, "saved"), stored(hub, tmp_path / "copy", "saved")]
    table(hub).select([1, 0, *range(2, 12)]).save_to_disk(tmp_path / "other")
    marks = [HuggingFace(path=str(p), size=(8,)).load(CONTEXT).fingerprint for p in (*paths, tmp_path / "other")]
    assert marks[0] == marks[1] != marks[2]


WRONG = {
    "an unknown column": ({"items": "foo"}, "items: there is no column foo; choose from image, label"),
    "items that are texts": ({"items": "text"}, "items: text holds .*neither images nor arrays"),
    "vectors that are texts": ({"vectors": ("text",)}, "row 0, column text: holds no array of numbers"),
    "captions that are numbers": ({"captions": "label"}, "captions: column label must hold texts, not 0"),
    "images beside arrays": ({"items": "grid", "images": "image"}, "images: belong to items that are images"),
    "an unknown split": ({"split": "foo"}, "it has no split 'foo', but train, test"),
    "an unknown file": ({"path": "./nowhere.parquet"}, "nowhere.parquet does not exist"),
}


@EXTRA
@pytest.mark.parametrize("name", WRONG)
def test_wrong_columns_are_named(tmp_path: Path, hub: Any, name: str) -> None:
    options, words = WRONG[name]
    path = str(stored(hub, tmp_path, "splits"))
    with pytest.raises((ValueError, DifftoolError), match=words):
        HuggingFace(**{"path": path, "size": (8,), **options}).load(CONTEXT)


@EXTRA
def test_damaged_rows_are_named_or_left_out(tmp_path: Path, hub: Any) -> None:
    rows = [{"bytes": png(PIXELS[0]), "path": None}, {"bytes": b"no image", "path": None}, None]
    hub.Dataset.from_dict({"image": rows}, features=hub.Features(image=hub.Image())).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match=r"row 1, column image: is not an image .*skip-bad"):
        HuggingFace(path=str(tmp_path / "d"), size=(8,)).load(CONTEXT)
    with pytest.warns(UserWarning, match="left out 2 of 3 items"):
        samples = HuggingFace(path=str(tmp_path / "d"), size=(8,), skip_bad=True).load(CONTEXT)
    assert torch.equal(pixels(samples), EXPECTED[:1])


@EXTRA
def test_a_part_of_a_split_that_was_saved(tmp_path: Path, hub: Any) -> None:
    rows = table(hub)
    rows.save_to_disk(tmp_path / "one")
    hub.DatasetDict(train=rows, test=rows.select(range(3))).save_to_disk(tmp_path / "two")
    for path, split, count in (("one", "train[:4]", 4), ("two", "test", 3), ("two", "train[50%:]", 6)):
        assert len(HuggingFace(path=str(tmp_path / path), split=split, size=(8,)).load(CONTEXT)) == count
    for path in ("one", "two"):
        with pytest.raises(ValueError, match=r"it has no split 'wrong', but train"):
            HuggingFace(path=str(tmp_path / path), split="wrong", size=(8,)).load(CONTEXT)


@EXTRA
def test_images_in_a_parquet_file_of_other_software(tmp_path: Path, hub: Any) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = [{"bytes": png(PIXELS[i]), "path": None} for i in range(3)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "x.parquet")
    samples = HuggingFace(path=str(tmp_path / "x.parquet"), size=(8,)).load(CONTEXT)
    assert torch.equal(pixels(samples), EXPECTED[:3])


@EXTRA
def test_a_damaged_file_is_one_line(tmp_path: Path, hub: Any, run: Run) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    assert "x.parquet cannot be opened" in run("train", "--dataset", "hf", "--dataset.path", "x.parquet").error


@EXTRA
def test_without_network_a_name_is_one_line(hub: Any, cli: Run, tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    failed = cli("train", "--dataset", "hf", "--dataset.path", "ylecun/mnist", env=env)
    assert "the hub cannot be reached" in failed.error


def test_without_the_library_its_install_line_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from difftool_plugins.datasets.packed import hub as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    failed = run("train", "--dataset", "hf", "--dataset.path", "ylecun/mnist")
    assert "pip install 'difftool[hf]'" in failed.error


# -- options of images -------------------------------------------------------------------------------------------------

WIDE = np.random.default_rng(5).integers(0, 65536, (3, 6, 10), dtype=np.uint16)
"""Three gray images of 16 bits, wider than high."""
KINDS = ["webdataset", pytest.param("hf", marks=EXTRA)]


def deep(kind: str, folder: Path, request: pytest.FixtureRequest) -> Callable[..., WebDataset | HuggingFace]:
    """Return a function of options that makes the dataset of the wide images, and of the same as condition images."""
    files = []
    for i, values in enumerate(WIDE):
        Image.fromarray(values).save(folder / f"{i}.png")
        files.append((folder / f"{i}.png").read_bytes())
    if kind == "hf":
        library = request.getfixturevalue("hub")
        rows = [{"bytes": content, "path": None} for content in files]
        features = library.Features(image=library.Image(), other=library.Image())
        library.Dataset.from_dict({"image": rows, "other": rows}, features=features).save_to_disk(folder / "t")
        return lambda **options: HuggingFace(path=str(folder / "t"), items="image", channels=1, size=(6,), **options)
    shard(folder / "t.tar", {f"{i}.{end}": c for i, c in enumerate(files) for end in ("png", "other.png")})
    return lambda **options: WebDataset(path=folder / "t.tar", items="png", channels=1, size=(6,), **options)


@pytest.mark.parametrize("memory", [None, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_keep_the_precision(tmp_path: Path, kind: str, memory: float | None, request: Any) -> None:
    samples = deep(kind, tmp_path, request)(bits=16, memory=memory).load(CONTEXT)
    assert pixels(samples)[:, 0].numpy() == pytest.approx(WIDE[:, :, 2:8] / 257, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_border_shows_the_whole_image(tmp_path: Path, kind: str, request: Any) -> None:
    make = deep(kind, tmp_path, request)
    samples = make(crop="pad").load(CONTEXT)
    assert bool((pixels(samples)[:, :, [0, -1]] == 255).all())
    assert samples.fingerprint != make().load(CONTEXT).fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_random_crops_move_an_image_and_its_condition_alike(tmp_path: Path, kind: str, request: Any) -> None:
    other = "other" if kind == "hf" else "other.png"
    samples: Any = deep(kind, tmp_path, request)(crop="random", images=other, augment=("flip",)).load(CONTEXT)
    assert samples.drawn
    drawn = [samples.items.draw(1, seed * 2**20) for seed in range(2**11)[:: 2**8]]
    assert len({row.numpy().tobytes() for row in drawn}) > 1
    for seed, row in enumerate(drawn):
        assert torch.equal(row, samples.images.draw(1, seed * 2**28))
    items, condition = samples.take([0, 1, 2])
    moved, images = samples.augment(items, torch.Generator().manual_seed(1), condition.image)
    assert torch.equal(moved, images)
    assert not torch.equal(moved, items)


@pytest.mark.parametrize("options", [{"augment": ("flip",)}, {"crop": "pad"}, {"bits": 16}])
def test_arrays_have_no_options_of_images(tmp_path: Path, options: dict[str, Any]) -> None:
    shard(tmp_path / "a.tar", {"a.npy": npy(np.zeros((1, 4, 4)))})
    with pytest.raises(ValueError, match=f"{next(iter(options))}: changes items that are images"):
        WebDataset(path=tmp_path / "a.tar", **options).load(CONTEXT)


def test_a_condition_image_of_other_proportions_is_refused(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"a.png": png(PIXELS[0]), "a.mask.png": png(PIXELS[0][:4])})
    data = WebDataset(path=tmp_path / "a.tar", size=(8,), items="png", images="mask.png")
    with pytest.raises(ValueError, match=r"a\.mask\.png: is 8x4 pixels, and its item is 8x8"):
        data.load(CONTEXT)
