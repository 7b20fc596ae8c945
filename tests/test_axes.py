"""Series and films, from training to samples: what images can do, they can, or one line says why not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome, Run
from PIL import Image
from torch import Tensor, nn

import difftool
from difftool import BackboneSpec, ConditionSpec, UsageError
from difftool.data.samples import PIXELS, Samples
from difftool.diffusion.memory_layout import arrange, layout_of
from difftool_plugins.backbones import UNet

SMALL = (
    *("--backbone", "unet", "--backbone.dim", 8, "--backbone.groups", 4, "--backbone.head-dim", 8),
    *("--backbone.dim-mults", "1,2", "--batch-size", 16, "--lr", 5e-3, "--warmup", 5, "--preview-every", 0),
    *("--optimizer", "adam", "--schedule", "linear"),
)
FRAMES, SIDE = 4, 8


def sines(n: int = 256, length: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sines (n, 1, length) of 1 to 3 periods, their number of periods less 1 (n,), and their phases (n, 2)."""
    random = np.random.default_rng(0)
    periods, phase = random.integers(1, 4, (n, 1)), random.uniform(0, 2 * np.pi, (n, 1))
    time = np.linspace(0, 2 * np.pi, length, endpoint=False)
    items = np.sin(periods * time + phase)[:, None].astype(np.float32)
    return items, periods[:, 0] - 1, np.concatenate([np.cos(phase), np.sin(phase)], axis=1).astype(np.float32)


def dots(n: int = 128) -> np.ndarray:
    """Return films (n, frames, side, side) of a white dot that moves right by a pixel a frame, round and round."""
    random = np.random.default_rng(0)
    row, column = random.integers(0, SIDE, (2, n))
    films = np.zeros((n, FRAMES, SIDE, SIDE), np.uint8)
    for frame in range(FRAMES):
        films[np.arange(n), frame, row, (column + frame) % SIDE] = 255
    return films


@pytest.fixture
def series(tmp_path: Path) -> tuple[object, ...]:
    items, labels, vectors = sines()
    np.savez(tmp_path / "sines.npz", x=items, labels=labels, vectors=vectors, tokens=vectors[:, :, None])
    return ("--dataset", "array", "--dataset.path", "sines.npz", "--dataset.form", "series", *SMALL)


@pytest.fixture
def films(tmp_path: Path) -> tuple[object, ...]:
    np.save(tmp_path / "dots.npy", dots())
    return ("--dataset", "array", "--dataset.path", "dots.npy", "--dataset.form", "film", *SMALL)


class Frames(nn.Module):
    """A network of films with weights of four and of five axes: one convolution of each frame, and one of all."""

    def __init__(self) -> None:
        super().__init__()
        self.space, self.time = nn.Conv2d(1, 1, 3, padding=1), nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        frames = self.space(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)
        output: Tensor = self.time(frames)
        return output


def test_only_images_are_laid_out_with_channels_last() -> None:
    network = Frames()
    arrange(network)
    assert network.space.weight.is_contiguous(memory_format=torch.channels_last)
    assert network.time.weight.is_contiguous()
    assert layout_of(network, (1, 8, 8)) == torch.channels_last
    assert layout_of(network, (1, 4, 8, 8)) == layout_of(network, (1, 8)) == torch.contiguous_format
    assert layout_of(nn.Linear(2, 2), (1, 8, 8)) == torch.contiguous_format


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def loss_of(outcome: Outcome) -> float:
    """Return the mean loss of the last steps, which the prediction of no noise at all has at 1."""
    return float(outcome.err.rpartition("loss ")[2].split()[0])


def test_sines_are_learnt_with_their_classes_and_phases(run: Run, series: tuple[object, ...]) -> None:
    conditions = ("--dataset.vectors", "vectors", "--dataset.tokens", "tokens")
    assert loss_of(ok(run("train", *series, *conditions, "--steps", 80, "--out", "r"))) < 0.4
    np.save("tokens.npy", [[1.0], [0.0]])
    drawn = ("--label", 2, "--vector", "1,0", "--tokens", "tokens.npy", "--guidance", 2, "--steps", 3)
    ok(run("sample", "r", "-n", 4, *drawn, "--out", "a.npz"))
    assert np.load("a.npz")["samples"].shape == (4, 1, 32)
    ok(run("reconstruct", "r", "--out", "b.png"))


def test_films_of_a_moving_dot_are_learnt(run: Run, films: tuple[object, ...]) -> None:
    assert loss_of(ok(run("train", *films, "--steps", 60, "--out", "r"))) < 0.4
    ok(run("sample", "r", "-n", 2, "--steps", 2, "--out", "a.npz"))
    assert np.load("a.npz")["samples"].shape == (2, FRAMES, SIDE, SIDE, 1)
    ok(run("sample", "r", "--interpolate", "0,1", "-n", 3, "--steps", 2, "--out", "c.png"))


OPTIONS = ("--self-condition", "--learn-variance", "--checkpoint-activations", "--held-out", 8, "--steps", 2)


@pytest.mark.parametrize("kind", ["series", "films"])
def test_options_of_training_take_any_axes(run: Run, request: pytest.FixtureRequest, kind: str) -> None:
    ok(run("train", *request.getfixturevalue(kind), *OPTIONS, "--out", "r"))
    ok(run("sample", "r", "-n", 2, "--sampler", "ddpm", "--steps", 2, "--out", "a.npz"))


@pytest.mark.parametrize("kind", ["series", "films"])
@pytest.mark.parametrize("codec", ["patch", "pca"])
def test_codecs_take_any_axes(run: Run, request: pytest.FixtureRequest, kind: str, codec: str) -> None:
    """Latents have no rate, and the samples that are decoded from them have that of the data."""
    few = ("--codec", codec, "--steps", 2)
    ok(run("train", *request.getfixturevalue(kind), *few, "--out", "r"))
    ok(run("sample", "r", "-n", 2, "--steps", 2, "--out", "a.png"))
    model = difftool.load("r")
    assert model.data.rate == (10.0 if kind == "films" else None)
    assert model.sample(2, steps=2).shape[1:] == model.data.shape


@pytest.mark.parametrize("kind", ["series", "films"])
def test_files_of_images_are_refused(run: Run, request: pytest.FixtureRequest, kind: str) -> None:
    Image.new("L", (8, 8), 99).save("a.png")
    ok(run("train", *request.getfixturevalue(kind), "--steps", 1, "--out", "r"))
    assert (
        f"--init: array-unet is not an image model; its samples are {kind} of"
        in run("sample", "r", "--init", "a.png").error
    )
    refused = run("sample", "r", "--inpaint", "a.png", "--mask", "a.png")
    assert f"--inpaint: array-unet is not an image model; its samples are {kind} of" in refused.error


def test_films_that_cannot_be_halved_are_refused(run: Run, films: tuple[object, ...]) -> None:
    deep = ["1,2,4,8,16" if value == "1,2" else value for value in films]
    refused = run("train", *deep, "--out", "r")
    assert "the U-Net halves the film 4 times, and 4x8x8 does not fit; the nearest size is 4x16x16" in refused.error


@pytest.mark.parametrize("kind", ["series", "film"])
def test_condition_images_belong_to_images(kind: str) -> None:
    items = torch.zeros(4, 1, 16) if kind == "series" else torch.zeros(4, 1, 4, 8, 8, dtype=torch.uint8)
    units: dict[str, Any] = {"form": "series"} if kind == "series" else {**PIXELS, "form": "film"}
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises((UsageError, ValueError), match="images must be as high and wide as the items"):
        difftool.train(dataset=Samples(items=items, shape=tuple(items.shape[1:]), images=images, **units), steps=1)


@pytest.mark.parametrize(
    ("kind", "condition"), [("series", "gray"), ("series", "mask"), ("films", "shrink:2"), ("films", "gray")]
)
def test_condition_images_made_of_items_belong_to_images(
    run: Run, request: pytest.FixtureRequest, kind: str, condition: str
) -> None:
    refused = run("train", *request.getfixturevalue(kind), "--dataset.condition", condition, "--out", "r")
    assert f"condition: {condition} is computed from images" in refused.error


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({}, "0401989875fc534d"),
        (
            {"downsample": "unshuffle", "standardize": True, "block": "pre", "grow": "after", "blocks": 2},
            "b91f6c642d7b0c6b",
        ),
        ({"attention": ("linear-norm",), "time": "shift"}, "d3aa520c3b52de3e"),
    ],
)
def test_networks_of_images_keep_the_names_and_shapes_of_their_weights(options: dict[str, Any], digest: str) -> None:
    """A model file of an image network from before series and films were taken must load."""
    condition = ConditionSpec(classes=3, vector=2, tokens=(4, 5))
    network = UNet(dim=16, dim_mults=(1, 2, 4), groups=4, **options).build(
        BackboneSpec(shape=(3, 8, 8), out_channels=3, condition=condition)
    )
    layout = [(name, tuple(weight.shape)) for name, weight in network.state_dict().items()]
    assert hashlib.sha256(repr(layout).encode()).hexdigest()[:16] == digest
