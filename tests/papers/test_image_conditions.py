"""sr3.toml and palette.py: the network sees the condition image beside x_t, and hidden pixels alone count."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Run
from PIL import Image
from torch import Tensor

import difftool
from difftool import Condition
from difftool.scripts import Script

PAPERS = Path(__file__).resolve().parents[2] / "examples" / "papers"
palette = Script.read(PAPERS / "palette.py").load()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat_images(folder: Path, count: int = 120, size: int = 8) -> None:
    """Write images of one gray level each, so that any pixel of one tells all others."""
    folder.mkdir()
    for i, level in enumerate(torch.randint(256, (count,), generator=generator()).tolist()):
        Image.new("RGB", (size, size), (level, level, level)).save(folder / f"{i:03d}.png")


SMALL = (
    *("--backbone.dim", 8, "--backbone.dim-mults", "1,2", "--backbone.groups", 4, "--batch-size", 16),
    *("--preview-every", 0, "--threads", 1),
)


def test_sr3_concatenates_the_shrunk_image(run: Run, tmp_path: Path) -> None:
    """The first channels of the input are noise, the others are means of squares of the image; the loss is L1."""
    (tmp_path / "photographs").mkdir()
    for i in range(16):
        pixels = torch.randint(256, (8, 8, 3), generator=generator(i), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(f"photographs/{i}.png")
    outcome = run("train", "--config", PAPERS / "sr3.toml", "--dataset.size", 8, *SMALL, "--steps", 2, "--out", "run")
    assert outcome.code == 0, outcome.err
    model = difftool.load("run")
    assert model.recipe.parts["loss"].name == "l1"
    items, cond = model.load_samples().take([0, 1])
    assert cond is not None
    means = items.float().view(2, 3, 2, 4, 2, 4).mean((3, 5)).round()
    assert torch.equal(cond.image.float(), means.repeat_interleave(4, 2).repeat_interleave(4, 3))
    inputs: list[Tensor] = []
    model.network.first.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0].clone()))
    model.sample(2, image=cond.image, steps=3)
    assert len(inputs) == 3
    for x in inputs:
        torch.testing.assert_close(x[:, 3:], cond.image.float() / 127.5 - 1, rtol=0, atol=1e-6)
    assert 0.7 < float(inputs[0][:, :3].std()) < 1.3  # of x_T


def test_palette_fills_holes_with_standard_normal_noise_and_keeps_the_rest() -> None:
    images = torch.randint(256, (50, 4, 16, 16), generator=generator(), dtype=torch.uint8)
    images[:, 3] = 255 * (images[:, 3] > 127)
    found = palette.filled(images, generator(1))
    seen = (images[:, 3:] > 0).expand_as(found)
    assert torch.equal(found[seen], (images[:, :3].float() / 127.5 - 1)[seen])
    assert abs(float(found[~seen].mean())) < 0.02
    assert abs(float(found[~seen].std()) - 1) < 0.02


def test_palette_counts_what_is_hidden_alone() -> None:
    """The loss is the mean squared error over hidden pixels; where all is hidden, over all."""
    x_0, target, prediction = (torch.randn(3, 2, 4, 4, generator=generator(seed)) for seed in range(3))
    hidden = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    hidden[0, :, :2], hidden[1] = True, True
    image = torch.where(hidden, torch.randn(3, 2, 4, 4, generator=generator(3)), x_0)
    cond = Condition(image=image, hidden=torch.zeros(3, dtype=torch.bool))
    prediction.requires_grad_()
    batch = SimpleNamespace(x_0=x_0, x_t=x_0, t=torch.zeros(3), cond=cond, target=target)
    losses = palette.Hidden().loss(lambda *_: prediction, batch, None)
    error = (prediction - target).square()
    torch.testing.assert_close(losses, torch.stack([error[0, :, :2].mean(), error[1].mean(), torch.tensor(0.0)]))
    losses.sum().backward()
    assert prediction.grad is not None
    assert not prediction.grad[0, :, 2:].any()
    assert bool(prediction.grad[0, :, :2].all())


@pytest.mark.slow
def test_palette_continues_what_is_seen(run: Run, tmp_path: Path) -> None:
    """In images of one gray level each, hidden pixels get the level of the pixels that are seen."""
    flat_images(tmp_path / "flat")
    script = ("--plugin", PAPERS / "palette.py")
    data = ("--dataset", "holes", "--dataset.path", "flat", "--dataset.size", 8, "--loss", "hidden")
    train = ("--steps", 400, "--lr", 3e-3, "--prediction", "v", "--condition-dropout", 0)
    outcome = run("train", *script, *data, *SMALL, *train, "--out", "run")
    assert outcome.code == 0, outcome.err
    levels = torch.linspace(-0.8, 0.8, 9)
    images = levels.view(9, 1, 1, 1).expand(9, 3, 8, 8).repeat(8, 1, 1, 1)
    images[:, :, :, 4:] = torch.randn(72, 3, 8, 4, generator=generator())
    model = difftool.load("run")
    drawn = model.data.scaling.to_model(model.sample(72, image=images, steps=10))[..., 4:].mean((1, 2, 3))
    error = (drawn.view(8, 9) - levels).abs().mean()
    assert error < 0.5 * (drawn.view(8, 9) - levels.roll(4)).abs().mean()
    Image.new("RGBA", (8, 8), (200, 200, 200, 0)).save("hidden.png")
    outcome = run("sample", "run", *script, "--image", "hidden.png", "-n", 2, "--steps", 2, "--out", "x.png")
    assert outcome.code == 0, outcome.err


def test_a_network_is_told_what_it_lacks(run: Run) -> None:
    outcome = run("train", "--plugin", PAPERS / "palette.py", "--loss", "hidden", "--steps", 1)
    assert "loss hidden: the data have no condition image" in outcome.error
