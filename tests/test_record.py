"""The record of how samples were made: what files carry, what `info` tells of it, and `sample --again`."""

from __future__ import annotations

import builtins
import contextlib
import csv
import io
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMAGES, POINTS, Outcome, Run, tree
from PIL import Image, PngImagePlugin

import difftool
from difftool.errors import BadFile
from difftool.sampling import embedded
from difftool.sampling.record import LARGEST, Record, read_record

ORACLE = ("--oracle", "closed-form", "--dataset", "gaussian-mixture", "--dataset.n", 50, "--schedule", "cosine")
"""An oracle that draws at once."""
FORMATS = ("png", "jpg", "svg", "pdf", "gif", "webp", "apng", "npz", "safetensors", "csv")
STEPS, FEW = ("--steps", 3), ("--steps", 3, "--num-samples", 5)
SAME = "bit for bit"


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def again(run: Run, file: str, *others: object, out: str = "") -> Outcome:
    """Make a file again in the folder `again`, and check that it is the same and said to be."""
    path = Path("again", out or file)
    outcome = ok(run("sample", *others, "--again", file, "--out", path, "--overwrite"))
    assert "not the same" not in outcome.err
    if Path(file).is_dir():
        assert {k: v for k, v in tree(path).items() if k[0] != "."} == {
            k: v for k, v in tree(Path(file)).items() if k[0] != "."
        }
    else:
        assert path.read_bytes() == Path(file).read_bytes()
        assert f"{path} is the same as {file}, {SAME}" in outcome.err
    return outcome


def document_of(path: str | Path) -> dict[str, Any]:
    return read_record(Path(path)).document()


def write_png(path: str | Path, text: str | bytes) -> Path:
    """Write a picture with this text in place of a record."""
    info = PngImagePlugin.PngInfo()
    info.add(b"tEXt", b"difftool\0" + (text.encode() if isinstance(text, str) else text))
    Image.new("L", (1, 1)).save(path, pnginfo=info)
    return Path(path)


def changed(path: str | Path, new: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write a picture with the record of another file, changed."""
    document = document_of(path)
    change(document)
    return write_png(new, json.dumps(document))


@pytest.fixture
def made(run: Run) -> Path:
    """A picture of an oracle."""
    ok(run("sample", *ORACLE, *FEW, "--out", "x.png"))
    return Path("x.png")


# ── what is recorded ────────────────────────────────────────────────────────────────────────────


def test_every_format_carries_the_record(run: Run) -> None:
    outs = [word for suffix in FORMATS for word in ("--out", f"x.{suffix}")]
    ok(run("sample", *ORACLE, *FEW, "--seed", 3, *outs))
    documents = {suffix: document_of(f"x.{suffix}") for suffix in FORMATS}
    for suffix, document in documents.items():
        assert document["settings"] | {"num_samples": 5, "steps": [3], "seed": [3]} == document["settings"], suffix
        assert document["oracle"]["dataset"]["n"] == 50
        assert document["writer"]["name"] == {"csv": "csv", "npz": "npz"}.get(suffix, document["writer"]["name"])
        assert ("matplotlib" in document["versions"]) == (suffix not in ("npz", "safetensors", "csv"))
    assert documents["gif"]["writer"] == {"name": "film", "frames": 60, "fps": 20.0, "hold": 1.5}
    for suffix in FORMATS:
        again(run, f"x.{suffix}")


def test_the_record_of_a_model(run: Run, labels_run: Path) -> None:
    outs = ("--out", "x.png", "--out", "x.npz")
    ok(run("sample", labels_run, *FEW, "--label", "1,2", "--guidance", "2,3", "--sampler.eta", 0.5, *outs))
    model = json.loads(run("info", labels_run / "model.safetensors", "--json").out)
    document = document_of("x.png")
    assert document["model"]["name"] == "gaussian-mixture-mlp"
    assert document["model"]["step"] == model["step"] == 400
    assert re.fullmatch("[0-9a-f]{64}", document["model"]["digest"])
    assert document["sampler"] == [{"name": "ddim", "eta": 0.5}]
    assert [table["scale"] for table in document["guidance"]] == [2.0, 3.0]
    assert document["settings"]["label"] == "1,2"
    assert document["settings"]["threads"] == 1
    assert document["machine"]["device"] == "cpu"
    assert document["plugins"] == {"difftool": document["versions"]["difftool"]}
    assert document["display"]["reference"] is True
    assert "reference" not in document_of("x.npz")["display"]
    assert sorted(np.load("x.npz")) == ["class_names", "guidance_names", "guidances", "labels", "samples"]
    for name in ("x.png", "x.npz"):
        again(run, name, labels_run)


def test_a_record_names_no_time_no_host_and_no_path(run: Run, images_run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save("from.png")
    ok(run("sample", images_run, "-n", 2, "--init", tmp_path / "from.png", "--steps", 4, "--out", tmp_path / "x.png"))
    text = json.dumps(document_of("x.png"))
    assert str(tmp_path) not in text
    assert str(images_run) not in text
    assert "/" not in text
    assert document_of("x.png")["inputs"]["init"]["name"] == "from.png"
    assert "init" not in document_of("x.png")["settings"]


def test_csv_files_have_no_comment(run: Run, made: Path) -> None:
    pandas = pytest.importorskip("pandas")
    outcome = ok(run("sample", *ORACLE, *FEW, "--out", "x.csv"))
    assert "how x.csv was made is written in x.csv.json" in outcome.err
    table = pandas.read_csv("x.csv")
    assert (table.shape, list(table.columns), table.isna().sum().sum()) == ((5, 2), ["x0", "x1"], 0)
    with open("x.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 6
    data = ("--dataset", "array", "--dataset.path", "x.csv")
    ok(run("train", *POINTS[2:], *data, "--batch-size", 4, "--steps", 1, "--out", "r"))


def test_the_record_beside_a_csv_file_belongs_to_it(run: Run, made: Path) -> None:
    ok(run("sample", *ORACLE, *FEW, "--out", "x.csv"))
    Path("y.csv").write_text("x0,x1\n1,2\n")
    assert run("info", "y.csv").error.endswith("y.csv carries no record of how it was made")
    shutil.copy("x.csv.json", "y.csv.json")
    assert "it was written with another y.csv than this one" in run("info", "y.csv").error
    Path("z.csv.json").write_text("mine")
    refused = run("sample", *ORACLE, *FEW, "--out", "z.csv")
    assert "z.csv.json exists already" in refused.error
    assert not Path("z.csv").exists()
    ok(run("sample", *ORACLE, *FEW, "--out", "z.csv", "--overwrite"))
    assert document_of("z.csv") == document_of("x.csv")


def test_samples_of_a_run_carry_the_record(run: Run, points_run: Path) -> None:
    shutil.copytree(points_run, "runs/p")
    (line,) = ok(run("sample", *FEW)).lines
    assert document_of(line)["settings"]["num_samples"] == 5
    (other,) = ok(run("sample", "--again", line)).lines
    assert Path(other).read_bytes() == Path(line).read_bytes()
    assert other != line


def test_writers_of_strangers_may_take_the_record_and_need_not(run: Run) -> None:
    Path("mine.py").write_text(
        "from difftool import Writer\n\n\n"
        'class Plain(Writer, name="plain"):\n    """Says nothing."""\n\n    suffixes = (".plain",)\n\n'
        "    def write(self, drawing, path):\n        path.write_text(str(drawing.numbers().tolist()))\n\n\n"
        'class Telling(Plain, name="telling"):\n    """Tells it."""\n\n    suffixes = (".telling",)\n\n'
        "    def write(self, drawing, path):\n        path.write_text(drawing.record)\n\n\n"
        'class Beside(Plain, name="beside"):\n    """Has no place."""\n\n    suffixes = (".beside",)\n'
        "    record_beside = True\n"
    )
    outs = [word for suffix in ("plain", "telling", "beside") for word in ("--out", f"x.{suffix}")]
    ok(run("--plugin", "mine.py", "sample", *ORACLE, *FEW, *outs))
    assert run("info", "x.plain").error.endswith("x.plain carries no record of how it was made")
    record = Record.read(json.loads(Path("x.telling").read_text()))
    assert record.plugins["mine.py"].startswith("sha256:")
    assert record.writer == {"name": "telling"}
    ok(run("info", "x.beside"))
    assert not Path("x.plain.json").exists()
    for suffix in ("plain", "telling"):
        write_png("x.png", json.dumps(record.document()))
        outcome = ok(run("--plugin", "mine.py", "sample", "--again", "x.png", "--out", f"again/x.{suffix}"))
        assert "not the same" not in outcome.err
        assert Path(f"again/x.{suffix}").read_bytes() == Path(f"x.{suffix}").read_bytes()


# ── once more ───────────────────────────────────────────────────────────────────────────────────

POINTS_CASES: Mapping[str, tuple[Sequence[object], Sequence[str]]] = {
    "a stochastic sampler in batches": (
        ("--sampler", "ddpm", "--num-samples", 20, "--batch-size", 7),
        ("x.npz", "x.gif"),
    ),
    "a strip": (("--strip", 3), ("x.png", "x.svg")),
    "a trajectory": (("--trajectory", "--raw"), ("x.npz", "x.csv", "x.safetensors")),
    "a path": (("--interpolate", "3,5", "--num-samples", 4), ("x.png", "x.npz")),
    "another spacing": (("--spacing", "log-snr", "--sampler", "dpmpp-2m"), ("x.npz",)),
    "threads": (("--threads", 2, "--num-samples", 40), ("x.npz",)),
    "half precision": (("--precision", "bf16"), ("x.npz",)),
    "a film of few frames": (("--out", "x.mp", "--writer.frames", 2, "--writer.fps", 4), ("x.gif",)),
    "samplers by steps": (("--sampler", "ddim,heun", "--steps", "2,4"), ("x.png", "x.csv")),
    "seeds": (("--seed", "3..5"), ("x.png", "x.gif", "x.npz")),
    "raw weights": (("--weights", "raw"), ("x.npz",)),
}


@pytest.mark.parametrize("case", POINTS_CASES)
def test_points_again(run: Run, points_run: Path, case: str) -> None:
    options, outs = POINTS_CASES[case]
    words = [word for word in options if word not in ("--out", "x.mp")]
    ok(run("sample", points_run, *FEW, *words, *(word for out in outs for word in ("--out", out))))
    for out in outs:
        again(run, out, points_run)


IMAGES_CASES: Mapping[str, tuple[Sequence[object], Sequence[str]]] = {
    "a grid and a folder": ((), ("x.png", "folder")),
    "a film": ((), ("x.gif", "x.webp")),
    "columns": (("--columns", 2), ("x.png",)),
    "thresholding": (("--threshold", 0.9), ("x.npz",)),
    "no clipping": (("--no-clip",), ("x.npz",)),
}


@pytest.mark.parametrize("case", IMAGES_CASES)
def test_images_again(run: Run, images_run: Path, case: str) -> None:
    options, outs = IMAGES_CASES[case]
    ok(run("sample", images_run, *FEW, *options, *(word for out in outs for word in ("--out", out))))
    for out in outs:
        again(run, out, images_run)


def test_one_sample_of_a_folder_again(run: Run, images_run: Path) -> None:
    ok(run("sample", images_run, *FEW, "--out", "folder"))
    assert document_of("folder/0003.png")["index"] == 3
    assert "index" not in document_of("folder")
    assert ok(run("info", "folder/0003.png")).out.count("index") == 1
    again(run, "folder/0003.png", images_run, out="three.png")
    outcome = ok(run("sample", images_run, "--again", "folder/0003.png", "--out", "all"))
    assert len(list(Path("all").glob("*.png"))) == 5
    assert SAME not in outcome.err
    refused = run("sample", images_run, "--again", "folder/0003.png", "-n", 2, "--out", "y.png")
    assert "there are 2 samples, and the file is number 3" in refused.error


def test_sounds_again(run: Run) -> None:
    from difftool_plugins.sounds.wav import write_wav

    Path("sounds").mkdir()
    for k in range(4):
        write_wav(Path("sounds", f"{k}.wav"), np.sin(np.arange(64)[None] / (k + 1)), 100)
    data = ("--dataset", "sound-folder", "--dataset.path", "sounds", "--dataset.length", 64, "--dataset.rate", 100)
    network = ("--backbone", "mlp", "--backbone.width", 8, "--backbone.depth", 1)
    ok(run("train", *data, *network, "--batch-size", 2, "--steps", 1, "--preview-every", 0, "--out", "runs/r"))
    ok(run("sample", "-n", 3, *STEPS, "--out", "x.wav", "--out", "folder", "--out", "x.png"))
    for name in ("x.wav", "folder", "x.png"):
        again(run, name)


def test_what_samples_were_made_from_is_given_again(run: Run, images_run: Path) -> None:
    Image.new("RGB", (8, 8), "red").save("photo.png")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) // 32 * 255).save("mask.png")
    ok(run("sample", images_run, "-n", 2, "--steps", 4, "--init", "photo.png", "--strength", 0.5, "--out", "x.png"))
    refused = run("sample", images_run, "--again", "x.png", "--out", "y.png")
    assert re.search(
        r"--init: x\.png was made from photo\.png \(SHA-256 [0-9a-f]{12}\.\.\.\), .*give it again", refused.error
    )
    again(run, "x.png", images_run, "--init", "photo.png")
    Image.new("RGB", (8, 8), "blue").save("other.png")
    told = ok(run("sample", images_run, "--again", "x.png", "--init", "other.png", "--out", "z.png"))
    assert "not the same as x.png: --init other.png is not photo.png" in told.err
    shutil.copy("photo.png", "renamed.png")
    told = ok(run("sample", images_run, "--again", "x.png", "--init", "renamed.png", "--out", "w.png"))
    assert "not the same as x.png: --init is called renamed.png in titles (was photo.png)" in told.err
    given = ("--inpaint", "photo.png", "--mask", "mask.png")
    ok(run("sample", images_run, "-n", 2, *STEPS, *given, "--out", "painted.png", "--out", "painted.npz"))
    assert "--inpaint: painted.npz was made from photo.png" in run("sample", images_run, "--again", "painted.npz").error
    for name in ("painted.png", "painted.npz"):
        again(run, name, images_run, *given)


def test_conditions_of_files_again(run: Run) -> None:
    data = ("--dataset", "swiss-roll", "--dataset.condition", "angle", *POINTS)
    ok(run("train", *data, "--steps", 1, "--out", "runs/r"))
    ok(run("sample", *STEPS, "--vector", 0.5, "-n", 3, "--out", "x.npz"))
    assert document_of("x.npz")["settings"]["vector"] == "0.5"
    again(run, "x.npz")
    np.save("angles.npy", np.linspace(0, 1, 4)[:, None])
    ok(run("sample", *STEPS, "--vector", "angles.npy", "--out", "y.npz"))
    assert "vector" not in document_of("y.npz")["settings"]
    assert "--vector: y.npz was made from angles.npy" in run("sample", "--again", "y.npz").error
    again(run, "y.npz", "--vector", "angles.npy")


def test_images_of_a_folder_as_conditions_again(run: Run) -> None:
    Path("photos").mkdir()
    for k in range(3):
        Image.fromarray(np.full((8, 8), 80 * k, np.uint8)).save(Path("photos", f"{k}.png"))
    Path("photos/notes.txt").write_text("not an image")
    data = ("--dataset", "image-folder", "--dataset.path", "photos", "--dataset.condition", "gray", *IMAGES[4:])
    ok(run("train", *data, "--steps", 1, "--batch-size", 2, "--out", "runs/r", "--backbone", "unet"))
    ok(run("sample", *STEPS, "--image", "photos", "--out", "x.png"))
    Path("photos/notes.txt").write_text("still none")
    again(run, "x.png", "--image", "photos")


def test_latents_again(run: Run) -> None:
    codec = ("--codec", "pca", "--codec.size", 4, "--codec.components", 6)
    ok(run("train", *IMAGES, *codec, "--steps", 1, "--out", "runs/r"))
    ok(run("sample", *FEW, "--out", "x.png", "--out", "x.npz"))
    for name in ("x.png", "x.npz"):
        again(run, name)


def test_guidance_by_another_run_is_named_again(run: Run, points_run: Path) -> None:
    ok(run("train", *POINTS, "--backbone.width", 8, "--steps", 1, "--out", "worse"))
    guided = ("--guidance", "autoguidance", "--guidance.run", "worse")
    ok(run("sample", points_run, *FEW, *guided, "--out", "x.npz"))
    assert document_of("x.npz")["guides"][0]["step"] == 1
    refused = run("sample", points_run, "--again", "x.npz", "--out", "y.npz")
    assert "--guidance.run: x.npz names no path; give it again" in refused.error
    again(run, "x.npz", points_run, "--guidance.run", "worse")
    ok(run("train", *POINTS, "--backbone.width", 8, "--steps", 2, "--out", "other"))
    told = ok(run("sample", points_run, "--again", "x.npz", "--guidance.run", "other", "--out", "z.npz"))
    assert re.search(r"the model of --guidance swiss-roll-mlp, step 2, .* \(was swiss-roll-mlp, step 1, ", told.err)


def test_compiled_samples_again(run: Run, points_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The back end is plain torch, which takes no time."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda what: compiler(what, backend="eager"))
    ok(run("sample", points_run, *FEW, "--compile", "--out", "x.npz"))
    again(run, "x.npz", points_run)


# ── the model ───────────────────────────────────────────────────────────────────────────────────


def test_the_model_is_found_by_its_digest(run: Run, points_run: Path, labels_run: Path) -> None:
    ok(run("sample", points_run, *FEW, "--out", "x.npz"))
    error = run("sample", "--again", "x.npz", "--out", "y.npz").error
    assert re.search(r"no run here holds the model of x\.npz \(swiss-roll-mlp, step 30, .*digest [0-9a-f]{12}\)", error)
    assert "difftool sample RUN --again x.npz" in error
    shutil.copytree(labels_run, "runs/labels")
    shutil.copytree(points_run, "runs/points")
    again(run, "x.npz")
    again(run, "x.npz", points_run / "model.safetensors")


def test_weights_of_an_earlier_state_and_of_an_average_are_found(run: Run) -> None:
    train = (*POINTS, "--ema", "0.5,0.9", "--ema-lengths", 0.05, "--snapshot-every", 2, "--checkpoint-every", 2)
    ok(run("train", *train, "--steps", 2, "--out", "runs/r"))
    for name, weights in (("raw", "raw"), ("average", "ema-0.9"), ("first", "ema")):
        ok(run("sample", *FEW, "--weights", weights, "--out", f"{name}.npz"))
    ok(run("sample", *FEW, "--ema-length", 0.06, "--out", "length.npz"))
    shutil.copy("runs/r/model.safetensors", "runs/r/best.safetensors")
    for name in ("raw", "average", "first", "length"):
        again(run, f"{name}.npz")
    ok(run("train", "--resume", "runs/r", "--steps", 4))
    for name in ("raw", "first"):  # in a state, and in best.safetensors
        again(run, f"{name}.npz", *(["runs/r"] if name == "raw" else []))
    told = ok(run("sample", "runs/r", "--again", "average.npz", "--out", "other.npz"))
    assert re.search(r"not the same as average\.npz: model .*step 4, .*was .*step 2", told.err)


def test_an_oracle_with_files_is_named_again(run: Run) -> None:
    np.save("points.npy", np.random.default_rng(0).normal(size=(20, 2)))
    data = ("--dataset", "array", "--dataset.path", "points.npy")
    ok(run("sample", "--oracle", "ideal", *data, *FEW, "--out", "x.npz"))
    assert "path" not in document_of("x.npz")["oracle"]["dataset"]
    assert (
        "which it does not open by itself; name them again by --dataset array"
        in run("sample", "--again", "x.npz").error
    )
    again(run, "x.npz", *data)
    np.save("points.npy", np.random.default_rng(1).normal(size=(20, 2)))
    told = ok(run("sample", "--again", "x.npz", *data, "--out", "y.npz"))
    assert "not the same as x.npz: the data of the oracle are others" in told.err
    refused = run("sample", "runs/r", "--again", "x.npz")
    assert "RUN: x.npz was drawn from an oracle; leave RUN out" in refused.error


def test_checkpoints_again(run: Run) -> None:
    ok(run("train", *POINTS, "--steps", 3, "--checkpoint-every", 1, "--keep", 5, "--out", "runs/r"))
    ok(run("sample", *FEW, "--checkpoints", "1,3", "--seed", "0,1", "--out", "x.png", "--out", "x.csv"))
    assert list(document_of("x.png")["checkpoints"]) == ["1", "3"]
    for name in ("x.png", "x.csv"):
        again(run, name)
    told = ok(run("sample", "--again", "x.csv", "--checkpoints", 2, "--out", "y.csv"))
    assert re.search(r"checkpoint 1 none \(was [0-9a-f]{12}\); .*checkpoint 2 [0-9a-f]{12} \(was none\)", told.err)


# ── what is not the same ────────────────────────────────────────────────────────────────────────


def test_options_beside_again_take_the_place_of_recorded_ones(run: Run, made: Path) -> None:
    words = ("--seed", 1, "--sampler", "heun", "--no-clip", "--columns", 3, "-n", 4)
    told = ok(run("sample", "--again", made, *words, "--out", "y.png"))
    for row in ("--sampler heun (was ddim)", "--seed 1 (was 0)", "--clip off (was on)", "--num-samples 4 (was 5)"):
        assert row in told.err
    assert "--columns 3 (was not set)" in told.err
    ok(
        run(
            "sample",
            *ORACLE,
            *STEPS,
            *words,
            "--batch-size",
            document_of(made)["settings"]["batch_size"],
            "--out",
            "z.png",
        )
    )
    assert Path("y.png").read_bytes() == Path("z.png").read_bytes()
    told = ok(run("sample", "--again", made, "--sampler.eta", 0.5, "--dataset.n", 60, "--out", "w.png"))
    assert "--sampler.eta 0.5 (was 0.0)" in told.err
    assert "--dataset.n 60 (was 50); the data of the oracle are others" in told.err


def test_another_format_shows_the_same_samples(run: Run, made: Path) -> None:
    outcome = ok(run("sample", "--again", made, "--out", "y.npz"))
    assert "not the same" not in outcome.err
    ok(run("sample", *ORACLE, *FEW, "--out", "z.npz"))
    assert np.array_equal(np.load("y.npz")["samples"], np.load("z.npz")["samples"])


def test_another_machine_is_said(run: Run, made: Path) -> None:
    def elsewhere(document: dict[str, Any]) -> None:
        document["machine"] |= {"device": "NVIDIA H100", "cpu": "arm64 DEFAULT"}
        document["versions"]["torch"] = "2.6.0"
        document["settings"]["threads"] = 3
        document["plugins"]["difftool"] = "0.0.9"

    told = ok(run("sample", "--again", changed(made, "y.png", elsewhere), "--threads", 1, "--out", "z.png"))
    for row in ("--threads 1 (was 3)", "device cpu (was NVIDIA H100)", "(was arm64 DEFAULT)", "(was 2.6.0)"):
        assert row in told.err
    assert f"difftool {difftool.__version__} (was 0.0.9)" in told.err
    assert SAME not in told.err


def test_a_file_that_was_changed_is_said(run: Run, made: Path) -> None:
    told = ok(run("sample", "--again", changed(made, "y.png", lambda _: None), "--out", "z.png"))
    assert "z.png differs from y.png, which was changed since" in told.err


def test_a_missing_plugin_is_said(run: Run) -> None:
    from test_scripts import SAMPLER

    Path("mine.py").write_text(SAMPLER)
    plugin = ("--plugin", "mine.py")
    ok(run(*plugin, "sample", *ORACLE, *FEW, "--sampler", "mine", "--sampler.factor", 0.5, "--out", "x.npz"))
    outcome = ok(run(*plugin, "sample", "--again", "x.npz", "--out", "y.npz"))
    assert SAME in outcome.err
    error = run("sample", "--again", "x.npz", "--out", "z.npz").error
    assert "x.npz: unknown sampler 'mine'" in error
    assert "a script that is not loaded: --plugin mine.py, if you trust it" in error
    Path("mine.py").write_text(SAMPLER + "\n# changed\n")
    told = ok(run(*plugin, "sample", "--again", "x.npz", "--out", "w.npz"))
    assert re.search(r"not the same as x\.npz: mine\.py sha256:\S+ \(was sha256:", told.err)
    Path("mine.py").write_text(SAMPLER.replace("factor", "other"))
    assert (
        "x.npz: its record is refused: --sampler.factor: there is no such option"
        in run(*plugin, "sample", "--again", "x.npz", "--out", "v.npz").error
    )


# ── info ────────────────────────────────────────────────────────────────────────────────────────


def test_info_tells_how_samples_were_made(run: Run, made: Path) -> None:
    out = ok(run("info", made)).out
    for words in ("name gaussian-mixture", "seed 0", "steps 3", "difftool sample --again x.png --out FILE"):
        assert words in out
    facts = json.loads(ok(run("info", made, "--json")).out)
    assert facts["samples"] == "x.png"
    assert facts["sampler"] == [{"name": "ddim", "eta": 0.0}]
    assert Record.read(facts).settings == document_of(made)["settings"]


def test_info_says_where_there_is_no_record(run: Run) -> None:
    Image.new("L", (3, 3)).save("plain.png")
    Image.new("L", (3, 3)).save("plain.gif")
    np.savez("plain.npz", a=np.zeros(3))
    np.save("plain.npy", np.zeros(3))
    Path("plain.csv").write_text("a,b\n1,2\n")
    Path("empty.png").touch()
    for name in ("plain.png", "plain.gif", "plain.npz", "plain.npy", "plain.csv", "empty.png"):
        for command in (("info", name), ("sample", "--again", name)):
            assert run(*command).error == f"difftool: error: {name} carries no record of how it was made"
    Path("none").mkdir()
    assert "none is not a run folder" in run("info", "none").error
    assert "nowhere does not exist" in run("info", "nowhere").error
    assert "nowhere.png does not exist" in run("sample", "--again", "nowhere.png").error


def test_reading_opens_nothing_else(run: Run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`info` on a record opens the file itself alone."""
    ok(run("info", made))
    opened: list[str] = []
    for module in (os, builtins, io):
        original = os.open if module is os else builtins.open

        def watch(path: Any, *args: Any, _original: Any = original, **named: Any) -> Any:
            opened.append(str(path))
            return _original(path, *args, **named)

        monkeypatch.setattr(module, "open", watch)
    ok(run("info", made))
    assert {path for path in opened if Path(path).is_file() and ".dist-info" not in path} == {"x.png"}


# ── files of strangers ──────────────────────────────────────────────────────────────────────────


def bomb(kind: bytes) -> bytes:
    """A PNG file whose compressed text is 100 MB long."""
    compressor = zlib.compressobj(9)
    data = b"".join(compressor.compress(b" " * 2**20) for _ in range(100)) + compressor.flush()
    head = {b"zTXt": b"difftool\0\0", b"iTXt": b"difftool\0\1\0\0\0"}[kind]
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)) + chunk(kind, head + data)
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


TEXTS = {
    "no JSON": ("hello", "the text is not JSON"),
    "no UTF-8": (b"{\xff\xfe}", "cannot be read"),
    "a list": ("[1]", "it has no format"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "deep dictionaries": ('{"a":' * 60 + "1" + "}" * 60, "nested too deeply"),
    "two keys": ('{"format": 1, "format": 1}', "two keys are equal"),
    "NaN": ('{"format": 1, "settings": {"threshold": NaN}}', "must be a finite number"),
    "huge": ('{"format": ' + "9" * 300 + "}", "more than 64 bits"),
    "newer": ('{"format": 99}', "written by a newer difftool (format 99); upgrade difftool"),
    "nothing": ('{"format": 1}', "its sampler is missing"),
    "long": ("x" * (embedded.LONGEST + 1), "it is larger than 256 KiB"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_malformed_record_is_one_clear_line(run: Run, case: str) -> None:
    text, words = TEXTS[case]
    write_png("x.png", text)
    for command in (("info", "x.png"), ("info", "x.png", "--json"), ("sample", "--again", "x.png", "--out", "y.png")):
        assert words in run(*command).error
    assert not Path("y.png").exists()


WRONG: Mapping[str, Callable[[dict[str, Any]], object]] = {
    "sampler": lambda d: d.update(sampler={"name": "ddim"}),
    "spacing": lambda d: d.update(spacing=[{"name": 3}]),
    "guidance": lambda d: d.update(guidance=[]),
    "settings": lambda d: d["settings"].update(vector="secret.npy"),
    "inputs": lambda d: d.update(inputs={"init": {"name": "x", "sha256": "zz"}}),
    "display": lambda d: d.update(display=[]),
    "writer": lambda d: d.update(writer={"name": "../x"}),
    "machine": lambda d: d.update(machine=1),
    "versions": lambda d: d.update(versions={"torch": 2}),
    "plugins": lambda d: d.update(plugins={"x": []}),
    "index": lambda d: d.update(index=-1),
    "oracle": lambda d: d["oracle"].update(timesteps=True),
    "checkpoints": lambda d: d.update(checkpoints={"1": "z"}),
    "guides": lambda d: d.update(guides=[1]),
    "model": lambda d: d.update(model={"name": "x", "weights": "raw", "digest": "0" * 64, "step": -1}),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_are_refused(run: Run, made: Path, name: str) -> None:
    changed(made, "y.png", WRONG[name])
    for command in (("info", "y.png"), ("sample", "--again", "y.png", "--out", "z.png")):
        assert f"y.png: its record is malformed: its {name} is malformed" in run(*command).error


REFUSED: Mapping[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an unknown sampler": (lambda d: d["sampler"][0].update(name="os.system"), "unknown sampler 'os.system'"),
    "an unknown option": (lambda d: d["sampler"][0].update(evil=1), "there is no such option"),
    "an option out of bounds": (lambda d: d["sampler"][0].update(eta=7), "--sampler.eta"),
    "steps without end": (lambda d: d["settings"].update(steps=[10**9]), "steps"),
    "too many seeds": (lambda d: d["settings"].update(seed=list(range(100))), "at most 64 entries"),
    "samples without end": (lambda d: d["settings"].update(num_samples=10**18), "num_samples"),
    "display": (lambda d: d["display"].update(columns="x"), "columns"),
    "no model": (lambda d: d.pop("oracle"), "neither a model nor an oracle"),
    "timesteps without end": (lambda d: d["oracle"].update(timesteps=10**12), "its oracle is malformed"),
    "three axes": (
        lambda d: d["settings"].update(steps=[1, 2], seed=[1, 2]) or d["sampler"].append({"name": "heun"}),
        "two axes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_record_asks_for_is_checked_as_any_request(run: Run, made: Path, case: str) -> None:
    change, words = REFUSED[case]
    changed(made, "y.png", change)
    assert words in run("sample", "--again", "y.png", "--out", "z.png").error
    assert not Path("z.png").exists()


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_bomb_is_not_unpacked(run: Run, kind: bytes) -> None:
    Path("x.png").write_bytes(bomb(kind))
    assert Path("x.png").stat().st_size < 2**18
    assert "it is larger than 256 KiB" in run("info", "x.png").error


def test_records_that_other_programs_wrote_anew_are_read(made: Path) -> None:
    text = json.dumps(document_of(made))
    for kind, data in (
        (b"zTXt", b"\0" + zlib.compress(text.encode())),
        (b"iTXt", b"\0\0\0\0" + text.encode()),
        (b"iTXt", b"\1\0\0\0" + zlib.compress(text.encode())),
    ):
        info = PngImagePlugin.PngInfo()
        info.add(kind, b"difftool\0" + data)
        Image.new("L", (1, 1)).save("y.png", pnginfo=info)
        assert document_of("y.png") == document_of(made)


def test_damaged_files_end_in_one_line(run: Run) -> None:
    outs = [word for suffix in FORMATS for word in ("--out", f"x.{suffix}")]
    ok(run("sample", *ORACLE, *FEW, *outs))
    random = np.random.default_rng(0)
    for suffix in FORMATS:
        whole = Path(f"x.{suffix}").read_bytes()
        for trial in range(12):
            data = bytearray(whole[: int(random.integers(len(whole)))] if trial % 2 else whole)
            for place in random.integers(max(1, min(len(data), 1200)), size=8):
                if data:
                    data[int(place)] = int(random.integers(256))
            Path("y").with_suffix(f".{suffix}").write_bytes(data)
            with contextlib.suppress(BadFile):
                read_record(Path(f"y.{suffix}"))


def test_a_record_that_is_too_long_is_left_out(run: Run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("difftool.sampling.record.LARGEST", 100)
    assert LARGEST < 2**16
    outs = [word for suffix in FORMATS for word in ("--out", f"y.{suffix}")]
    outcome = ok(run("sample", *ORACLE, *FEW, *outs))
    assert "the record of how y.png was made is too long for a file, and is left out" in outcome.err
    for suffix in FORMATS:
        with pytest.raises(BadFile, match="carries no record"):
            read_record(Path(f"y.{suffix}"))
    assert not Path("y.csv.json").exists()


def test_control_characters_of_a_record_never_reach_the_terminal(run: Run, made: Path) -> None:
    def evil(document: dict[str, Any]) -> None:
        document["versions"]["torch"] = "\x1b[31m[bold]evil\n"
        document["machine"]["device"] = "\x1b]0;evil\x07"

    changed(made, "y.png", evil)
    outcomes = (run("info", "y.png"), run("sample", "--again", "y.png", "--out", "z.png"))
    for outcome in map(ok, outcomes):
        assert "\x1b" not in outcome.out + outcome.err
        assert "evil" in outcome.out + outcome.err


def test_the_archive_of_arrays_is_as_numpy_wrote_it(run: Run, made: Path) -> None:
    ok(run("sample", *ORACLE, *FEW, "--out", "x.npz"))
    with zipfile.ZipFile("x.npz") as archive:
        assert archive.namelist() == ["samples.npy"]
        assert json.loads(archive.comment)["format"] == 1
    buffer = io.BytesIO()
    np.savez(buffer, samples=np.load("x.npz")["samples"])
    assert len(buffer.getvalue()) + len(zipfile.ZipFile("x.npz").comment) == Path("x.npz").stat().st_size
