"""dreambooth.py: the share of images that the model drew, and a class that is not forgotten while another is learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Run
from PIL import Image
from torch import Tensor

import difftool
from difftool.scripts import Script

PAPER = Path(__file__).resolve().parents[2] / "examples" / "papers" / "dreambooth.py"
dreambooth = Script.read(PAPER).load()

NETWORK = (
    *("--backbone", "unet", "--backbone.dim", 8, "--backbone.dim-mults", "1,2", "--backbone.groups", 4),
    *("--batch-size", 16, "--preview-every", 0, "--threads", 1, "--prediction", "v"),
)


def pictures(folder: Path, colour: tuple[int, int, int], count: int) -> None:
    """Write images of one colour, a little lighter and darker."""
    folder.mkdir(parents=True)
    for i in range(count):
        shade = tuple(value + 2 * (i % 9) for value in colour)
        Image.new("RGB", (8, 8), shade).save(folder / f"{i}.png")


@pytest.fixture
def base(run: Run, tmp_path: Path) -> Path:
    """A model of dark and light images that was hardly trained, and a folder of a red subject."""
    pictures(tmp_path / "images" / "dark", (40, 40, 40), 20)
    pictures(tmp_path / "images" / "light", (200, 200, 200), 20)
    pictures(tmp_path / "subject", (210, 40, 40), 4)
    data = ("--dataset", "image-folder", "--dataset.path", "images", "--dataset.size", 8)
    outcome = run("train", *data, *NETWORK, "--steps", 300, "--lr", 3e-3, "--out", "base")
    assert outcome.code == 0, outcome.err
    return tmp_path / "base"


def distance(samples: Tensor, colour: tuple[int, int, int]) -> float:
    """Return the mean distance of pixels from a colour."""
    return float((samples - torch.tensor(colour).view(3, 1, 1)).abs().mean())


@pytest.mark.slow
def test_a_new_class_is_learnt_and_the_old_one_is_not_forgotten(run: Run, base: Path) -> None:
    """With images that the model drew itself, its old class moves less than without them."""

    def data(**options: object) -> tuple[object, ...]:
        words = {"model": base, "subject": "subject", "label": "dark", "called": "red", **options}
        return tuple(word for name, value in words.items() for word in (f"--dataset.{name}", value))

    moved, before = [], difftool.load(base).sample(64, label="dark", steps=10)
    for number, weight in enumerate((1.0, 0.001)):
        loaded = dreambooth.DreamBooth(model=base, subject=Path("subject"), label="dark", n=40, weight=weight)
        drawn = (loaded.load(difftool.DatasetContext(seed=0)).labels == 0).float().mean()
        assert abs(float(drawn) - weight / (1 + weight)) < 1e-3  # lambda/(1 + lambda)
        tune = ("--init-from", base, "--steps", 200, "--lr", 1e-3, "--condition-dropout", 0, "--out", f"run{number}")
        options = data(n=40, weight=weight)
        outcome = run("train", "--plugin", PAPER, "--dataset", "dreambooth", *options, *NETWORK, *tune)
        assert outcome.code == 0, outcome.err
        tuned = difftool.load(f"run{number}")
        red = tuned.sample(64, label="red", steps=10)
        assert distance(red, (218, 48, 48)) < 40
        moved.append(float((tuned.sample(64, label="dark", steps=10) - before).abs().mean()))
    assert moved[0] < 0.5 * moved[1]
    refused = run("train", "--plugin", PAPER, "--dataset", "dreambooth", *data(label="grey"), *NETWORK, "--steps", 1)
    assert "label and called: must be an old class and a new one" in refused.error
