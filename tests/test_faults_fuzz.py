"""Mutated files: each is refused in one line, or read as a file that difftool could have written.

The mutations are functions of a fixed seed. They replace bits, bytes and words of a valid file, cut it, repeat parts of
it, and put values into it that are hard on a reader: huge numbers, NaN, deep nesting, long texts, control characters.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome, Run, invoke, write_signed
from PIL import Image

from difftool.data.images import BadImage, read_image
from difftool.errors import LONGEST_LINE, DifftoolError
from difftool.files import read_json
from difftool.runs import checkpoint
from difftool.runs.folder import RunFolder
from difftool.sampling.model import Model
from difftool.training import state

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

VALUES = [0, -1, 1, 2**31, 2**63, 10**12, 10**400, 1e308, -0.0, float("nan"), float("inf"), True, None, "", "x" * 5_000]
VALUES += ["../../x", "os:system", "\x1b[31m\n", "\ud800", [], {}, [[]], [1] * 100, {"name": "mlp"}, "NaN", "1e999"]
WORDS = [
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"0x" + b"f" * 300,
    b"9" * 400,
    b'""',
    b"[" * 200,
    b"{}",
    b"\xff\xfe",
    b"\0",
    b"\n",
]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to three small changes."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(result) + 1), rng.choice([1, 2, 8, 64])
        match rng.randrange(5):
            case 0 if at < len(result):
                result[at] ^= 1 << rng.randrange(8)
            case 1:
                del result[at : at + length]
            case 2:
                result[at:at] = result[at : at + length]
            case 3:
                result[at : at + length] = rng.choice(WORDS)
            case _:
                del result[at:]
    return bytes(result)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value within a document."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def changed(document: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return the document with one value replaced, removed or doubled."""
    document = json.loads(json.dumps(document))
    *way, last = rng.choice(list(places(document)))
    parent: Any = document
    for key in way:
        parent = parent[key]
    match rng.randrange(4):
        case 0 if isinstance(parent, dict):
            del parent[last]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(["extra", "name", "step", ""])] = rng.choice(VALUES)
        case _:
            parent[last] = rng.choice(VALUES)
    return document


def check(outcome: Outcome) -> None:
    """Check that a command did its work or refused it in one short line."""
    assert outcome.code in (0, 1, 2), outcome.err
    assert "this is a bug" not in outcome.err, outcome.err
    if outcome.code:
        assert len(outcome.error) < LONGEST_LINE + 50
    for text in (outcome.out, outcome.err):
        assert "\x1b" not in text


@pytest.mark.parametrize("name", ["model", "state"])
def test_mutated_bytes_of_weights(name: str, points_run: Path, tmp_path: Path) -> None:
    """A file of weights with mutated bytes is refused, or its content is the same."""
    folder = RunFolder(points_run)
    source = folder.model if name == "model" else folder.saved_states()[0]
    data, (tensors, document) = source.read_bytes(), checkpoint.load(source)
    rng, path = random.Random(0), tmp_path / source.name
    for _ in range(1_500):
        path.write_bytes(mutated(data, rng))
        with contextlib.suppress(DifftoolError):
            found, text = checkpoint.load(path)
            assert text == document
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_mutated_documents_of_models(points_run: Path, labels_run: Path, run: Run) -> None:
    """A model with another document, and the digest that fits, is refused in one line or is a model that samples."""
    rng, path = random.Random(1), Path("m.safetensors")
    for trial in range(250):
        source = RunFolder((points_run, labels_run)[trial % 2]).model
        tensors, document = checkpoint.load(source)
        write_signed(path, tensors, json.dumps(changed(document, rng)))
        with contextlib.suppress(DifftoolError):
            Model.read(path)
        if trial % 5 == 0:
            check(run("info", path, "--json"))
            check(run("sample", path, "-n", 2, "--steps", 1, "--out", "x.npz", "--overwrite"))


def test_mutated_documents_of_states(points_run: Path, run: Run) -> None:
    """A training state with another document is refused in one line or is a state to go on from."""
    rng = random.Random(2)
    for trial in range(250):
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(points_run, "run")
        path = RunFolder(Path("run")).saved_states()[0]
        tensors, document = checkpoint.load(path)
        write_signed(path, tensors, json.dumps(changed(document, rng)))
        state.check(path)
        if trial % 10 == 0:
            check(run("info", "run"))
            check(run("train", "--resume", "run", "--steps", 31))


@pytest.mark.parametrize("by", ["bytes", "values"])
def test_mutated_configs(by: str, points_run: Path, run: Run) -> None:
    """A mutated config is refused in one line or trains within the bounds, and `runs` lists its run."""
    shutil.copytree(points_run, "runs/run")
    folder, rng = RunFolder(Path("runs/run")), random.Random(3)
    text, document = folder.config.read_bytes(), folder.read_config()
    import tomli_w

    for trial in range(200):
        if by == "bytes":
            folder.config.write_bytes(mutated(text, rng))
        else:
            try:
                folder.config.write_text(tomli_w.dumps(changed(document, rng)), encoding="utf-8")
            except (TypeError, UnicodeEncodeError):  # TOML has no null and no lone surrogate
                continue
        listed = run("runs", "--json")
        check(listed)
        assert listed.code == 0
        assert len(json.loads(listed.out)["runs"]) == 1
        check(run(*(("info", folder.path), ("train", "--config", folder.config, "--dry-run"))[trial % 2]))


def test_mutated_metrics(points_run: Path, run: Run) -> None:
    """A mutated metrics.jsonl gives rows that are whole, and no failure."""
    shutil.copytree(points_run, "runs/run")
    folder, rng = RunFolder(Path("runs/run")), random.Random(4)
    data = folder.metrics.read_bytes()
    for trial in range(800):
        folder.metrics.write_bytes(mutated(data, rng))
        rows = folder.read_metrics()
        assert all(type(row["step"]) is int and row["step"] >= 0 for row in rows)
        if trial % 40 == 0:
            check(run("info", "runs/run"))
            check(run("runs"))


def test_mutated_indexes(tmp_path: Path) -> None:
    """A mutated index of checked images is read as an index or refused."""
    rng, path = random.Random(5), tmp_path / "index.json"
    data = json.dumps({f"{i}.png": [i, 10**18 + i] for i in range(20)}).encode()
    for _ in range(800):
        path.write_bytes(mutated(data, rng))
        with contextlib.suppress(ValueError):
            read_json(path)


SAVERS: dict[str, Callable[[Image.Image, Path], None]] = {
    "png": lambda image, path: image.save(path),
    "jpg": lambda image, path: image.convert("RGB").save(path),
    "gif": lambda image, path: image.convert("P").save(path),
    "tif": lambda image, path: image.save(path, compression="tiff_lzw"),
    "webp": lambda image, path: image.save(path),
    "bmp": lambda image, path: image.convert("RGB").save(path),
}


@pytest.mark.parametrize("suffix", SAVERS)
def test_mutated_images(suffix: str, tmp_path: Path) -> None:
    """A mutated image is refused, or read with the shape that was asked for."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    path, rng = tmp_path / f"image.{suffix}", random.Random(6)
    SAVERS[suffix](Image.fromarray(pixels), path)
    data = path.read_bytes()
    for _ in range(800):
        path.write_bytes(mutated(data, rng))
        with contextlib.suppress(BadImage):
            found = read_image(path, size=(8, 8))
            assert found.shape == (3, 8, 8)
            assert found.dtype == torch.uint8


def test_mutated_images_in_a_folder(run: Run) -> None:
    """A folder of mutated images trains with --dataset.skip-bad, or is refused in one line."""
    rng = random.Random(7)
    Path("photos").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("photos/good.png")
    data = Path("photos/good.png").read_bytes()
    for i in range(60):
        Path(f"photos/{i}.png").write_bytes(mutated(data, rng))
    train = ("train", "--dataset", "image-folder", "--dataset.path", "photos", "--dataset.size", 8, "--steps", 1)
    train += ("--backbone", "mlp", "--preview-every", 0, "--out", "run")
    outcome = invoke(*train, "--dataset.skip-bad")
    assert outcome.code == 0, outcome.err
    check(invoke(*train, "--overwrite"))
