"""Numbers, nesting, lengths and pixels of files are bounded where they are read."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, write_signed
from PIL import Image

from difftool import read_image
from difftool.data import images
from difftool.errors import LONGEST_LINE
from difftool.files import DEEPEST, parse_json
from difftool.runs import checkpoint

HUGE = "0x" + "f" * 4_000


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "9" * 30, '{"a": 1, "a": 2}', "[" * 900 + "]" * 900])
def test_json_of_files_is_bounded(text: str) -> None:
    """A JSON file with NaN, infinite or huge numbers, equal keys or deep nesting is refused."""
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_within_the_bounds_is_read() -> None:
    """Values at the bounds of JSON files are read as they are."""
    value = {"a": [2**63 - 1, -(2**63), 1e308, "text", None, True]}
    assert parse_json(json.dumps(value)) == value
    nested = "[" * DEEPEST + "]" * DEEPEST
    assert parse_json(nested) == json.loads(nested)


CONFIGS = {
    "huge number": lambda text: re.sub(r"^steps = 30$", f"steps = {HUGE}", text, flags=re.M),
    "nan": lambda text: re.sub(r"^steps = 30$", "steps = nan", text, flags=re.M),
    "nested lists": lambda text: f"{text}\n[x]\ny = {'[' * 900}{']' * 900}\n",
    "nested tables": lambda text: f"{text}\n[{'.'.join('a' * 3000)}]\n",
    "bytes": lambda text: "\0\1\2",
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_broken_config_hides_no_other_run(what: str, run: Run, points_run: Path) -> None:
    """A run with a broken config is listed beside the others, and refused in one line when it is named."""
    for name in ("good", "broken"):
        shutil.copytree(points_run, Path("runs", name))
    config = Path("runs/broken/config.toml")
    config.write_text(CONFIGS[what](config.read_text()))
    listed = run("runs", "--json")
    assert listed.code == 0, listed.err
    rows = json.loads(listed.out)["runs"]
    assert sorted(row["run"] for row in rows) == ["runs/broken", "runs/good"]
    for command in (("info", "runs/broken"), ("train", "--resume", "runs/broken")):
        refused = run(*command)
        assert refused.code == 2
        assert "runs/broken/config.toml" in refused.error


def test_metadata_with_nan_are_refused(run: Run, points_run: Path) -> None:
    """A model whose metadata hold NaN is refused in one line by every command."""
    tensors, document = checkpoint.load(points_run / "model.safetensors")
    write_signed(Path("m.safetensors"), tensors, json.dumps({**document, "x": float("nan")}))
    for command in (("info", "m.safetensors", "--json"), ("sample", "m.safetensors", "-n", 1, "--out", "x.npy")):
        refused = run(*command)
        assert refused.code == 1
        assert "metadata" in refused.error


def test_metrics_out_of_bounds_are_skipped(run: Run, points_run: Path) -> None:
    """Rows of metrics.jsonl that are too long, nested too deeply or out of range are skipped."""
    shutil.copytree(points_run, "run")
    metrics = Path("run/metrics.jsonl")
    good = metrics.read_text()
    bad = ['{"step": %s, "loss": 1}' % ("9" * 400), '{"step": 1e999, "loss": 1}', '{"step": -1, "loss": 1}', "[" * 900]
    bad += ['{"step": 31, "loss": NaN}', '{"step": 32, "loss": 1, "x": "' + "y" * 10**6 + '"}']
    metrics.write_text("\n".join(bad) + "\n" + good)
    before = json.loads(run("info", points_run, "--json").out)["progress"]
    assert json.loads(run("info", "run", "--json").out)["progress"] == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.toml", "model.safetensors"])
def test_a_pipe_in_a_run_is_not_waited_for(name: str, run: Run, points_run: Path) -> None:
    """A pipe in the place of a run's file never blocks a command."""
    shutil.copytree(points_run, "runs/run")
    Path("runs/run", name).unlink()
    os.mkfifo(Path("runs/run", name))
    assert run("runs").code == 0
    assert run("info", "runs/run").code in (0, 1, 2)


def test_an_index_of_checked_images_is_bounded(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged index of checked images, or a pipe in its place, is made anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("photos").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(f"photos/{i}.png")
    train = (
        "train",
        "--dataset",
        "image-folder",
        "--dataset.path",
        "photos",
        "--dataset.size",
        8,
        "--dataset.memory",
        0,
    )
    train += ("--backbone", "mlp", "--steps", 1, "--workers", 0, "--preview-every", 0, "--out", "run", "--overwrite")
    assert run(*train).code == 0
    (index,) = (tmp_path / "cache").rglob("image-folder-*.json")
    content = index.read_text()
    for damage in ("[" * 100_000, '{"0.png": NaN}', "[1]", "\0"):
        index.write_text(damage)
        assert run(*train).code == 0
        assert index.read_text() == content
    index.unlink()
    os.mkfifo(index)
    assert run(*train).code == 0


def test_lines_have_a_length(run: Run, points_run: Path) -> None:
    """Error lines and the values of `info` are shortened, whatever a file holds."""
    shutil.copytree(points_run, "run")
    config = Path("run/config.toml")
    text = config.read_text()
    config.write_text(re.sub(r"^command = .*$", f'command = "{"word " * 100_000}"', text, count=1, flags=re.M))
    lines = run("info", "run").out.splitlines()
    assert sum(map(len, lines)) < 40_000
    config.write_text(text.replace('name = "swiss-roll"', f'name = "{"w o r d " * 50_000}"'))
    refused = run("train", "--resume", "run")
    assert "dataset.name" in refused.error
    assert len(refused.error) < LONGEST_LINE + 50


def test_pixels_in_flight_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that read large images wait for each other, so that the pixels they hold are bounded."""
    Image.new("RGB", (20, 10)).save(tmp_path / "image.png")
    held, peak, lock, decoded = 0, 0, threading.Lock(), images._decoded

    def counted(image: Image.Image, *rest: object) -> object:
        nonlocal held, peak
        with lock:
            held += image.width * image.height
            peak = max(peak, held)
        try:
            return decoded(image, *rest)  # type: ignore[arg-type]
        finally:
            with lock:
                held -= image.width * image.height

    monkeypatch.setattr(images, "_decoded", counted)
    monkeypatch.setattr(images, "_in_flight", images._Budget(500))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_image(tmp_path / "image.png"), range(200)))
    assert 0 < peak <= 500
    monkeypatch.setattr(images, "_in_flight", images._Budget(100))  # one image alone may be larger
    assert read_image(tmp_path / "image.png").shape == (3, 10, 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "I;16", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pieces_change_no_pixel(mode: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image is converted piece by piece, to the same pixels as in one go."""
    values = np.random.default_rng(0).integers(0, 256, (13, 7, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(values).convert(mode)
    name = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(name, **({"transparency": 3} if mode == "P" else {}))
    whole = read_image(name, channels=channels)
    monkeypatch.setattr(images, "PIECE", 4)
    assert torch.equal(read_image(name, channels=channels), whole)
