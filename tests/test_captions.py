"""Captions in words at sampling, with each of the datasets that have them, through the real command line."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome, Run
from PIL import Image

from difftool_plugins.datasets.columns.captions import tokens_of

COLOURS = ("red", "green", "blue", "black")
NETWORK = ("--backbone", "unet", "--backbone.dim", 8, "--backbone.dim-mults", 1, "--backbone.groups", 4)
SETTINGS = (
    *("--steps", 8, "--lr", 0.01, "--warmup", 0, "--ema", 0, "--prediction", "x0"),
    *("--batch-size", 4, "--preview-every", 0, "--threads", 1, "--held-out", 0),
)
WORDS = 4


def encoded(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def files(folder: Path) -> tuple[object, ...]:
    for i, colour in enumerate(COLOURS):
        (folder / f"{i}.png").write_bytes(encoded(colour))
        (folder / f"{i}.txt").write_text(f"a {colour} square")
    return ("image-folder", "--dataset.captions", "txt")


def shards(folder: Path) -> tuple[object, ...]:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i, colour in enumerate(COLOURS):
            for name, content in ((f"{i}.png", encoded(colour)), (f"{i}.txt", f"a {colour} square".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return ("webdataset", "--dataset.captions", "txt")


def table(folder: Path) -> tuple[object, ...]:
    library = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": encoded(c), "path": None} for c in COLOURS], "text": [f"a {c} square" for c in COLOURS]}
    features = library.Features(image=library.Image(), text=library.Value("string"))
    library.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return ("hf", "--dataset.captions", "text")


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.mark.parametrize("make", [files, shards, pytest.param(table, marks=pytest.mark.extras)])
def test_a_model_of_captions_takes_a_prompt_in_words(
    run: Run, tmp_path: Path, make: Callable[[Path], tuple[object, ...]]
) -> None:
    (tmp_path / "data").mkdir()
    name, *more = make(tmp_path / "data")
    data = ("--dataset", name, "--dataset.path", "data", "--dataset.size", 8, *more, "--dataset.words", WORDS)
    ok(run("train", *data, *NETWORK, *SETTINGS, "--out", "r"))
    sample = ("sample", "r", "-n", 2, "--steps", 4)
    for prompt in ("a red square", "A  RED square", "something else"):
        ok(run(*sample, "--tokens", prompt, "--out", f"{prompt}.npy"))
    assert same(tmp_path, "a red square", "A  RED square")
    assert not same(tmp_path, "a red square", "something else")
    np.save(tmp_path / "prompt.npy", tokens_of("a red square", WORDS).numpy())
    ok(run(*sample, "--tokens", "prompt.npy", "--out", "file.npy"))
    assert same(tmp_path, "a red square", "file")
    longer = ok(run(*sample, "--tokens", " ".join(["red"] * (WORDS + 2)), "--out", "longer.npy"))
    assert f"the model takes {WORDS} words, so the last 2 are left out" in longer.err


def same(folder: Path, one: str, other: str) -> bool:
    """Return whether the samples of two files are equal."""
    arrays: list[Any] = [torch.from_numpy(np.load(folder / f"{name}.npy")) for name in (one, other)]
    return torch.equal(*arrays)
