"""examples/papers/latent_diffusion.toml beside diffusers: its latents, their scale, the loss, and what is decoded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from torch import Tensor, nn

import difftool
from difftool.data.facts import DataFacts
from difftool.sampling.loop import sample
from difftool.sampling.plan import Plan
from difftool.settings import Sampling

CONFIG = Path(__file__).resolve().parents[2] / "examples" / "papers" / "latent_diffusion.toml"
pytestmark = pytest.mark.skipif(not CONFIG.is_file(), reason="the examples are not beside the tests")
SMALL = (
    *("--dataset.n", 24, "--dataset.size", 16, "--backbone.dim", 8, "--backbone.dim-mults", "1,2"),
    *("--backbone.groups", 4, "--batch-size", 8, "--preview-every", 0, "--threads", 1),
)


def trained(run: Run, *arguments: object) -> difftool.Model:
    outcome = run("train", "--config", CONFIG, *SMALL, *arguments, "--out", "run")
    assert outcome.code == 0, outcome.err
    return difftool.load("run")


def images(model: difftool.Model) -> Tensor:
    """The images that the model learned, in model units."""
    samples = model.load_samples()
    return DataFacts.of(samples).scaling.to_model(samples.take_items(range(len(samples))))


def test_latents_scale_and_samples_are_those_of_the_paper(run: Run) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    options = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4}
    types = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    autoencoder = diffusers.AutoencoderKL(**options, **types).eval()
    autoencoder.save_pretrained("vae")
    model = trained(run, "--codec", "autoencoder-kl", "--codec.path", "vae", "--steps", 2)
    space = model.latents
    assert space is not None
    x = images(model)
    with torch.no_grad():
        z = autoencoder.encode(x).latent_dist.mode()
    centred = z - z.mean(dim=(0, 2, 3), keepdim=True)
    sigma = centred.square().mean().sqrt()  # appendix G, with b c h w in the denominator
    torch.testing.assert_close(space.encode(x), centred / sigma, atol=1e-4, rtol=0)
    (last,) = (step for step in sample(model, Plan.of(model, Sampling(steps=3, num_samples=4))) if step.done)
    with torch.no_grad():
        theirs = autoencoder.decode(last.x * sigma + z.mean(dim=(0, 2, 3), keepdim=True)).sample
    torch.testing.assert_close(model.sample(4, steps=3).div(127.5).sub(1).clamp(-1, 1), theirs.clamp(-1, 1))


def test_the_loss_is_that_of_eq_2(run: Run) -> None:
    """A network that predicts 0, as a new U-Net does, has the mean square of eps as its loss: 1."""
    model = trained(run, "--steps", 1, "--lr", 1e-12)
    assert next(p for n, p in model.network.named_parameters() if "output" in n).abs().max() < 1e-6
    row = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert row["loss"] == row["eps_loss"] == pytest.approx(1.0, abs=0.05)


def test_the_schedule_is_linear_in_the_root_of_beta(run: Run) -> None:
    schedule = trained(run, "--steps", 0).schedule
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    np.testing.assert_allclose(schedule.alpha_bars, np.cumprod(1 - betas), rtol=1e-10)


def test_the_codec_is_the_linear_one_that_loses_least(run: Run) -> None:
    """No subspace of as many dimensions holds more of the squares of patches (Eckart & Young, 1936)."""
    model = trained(run, "--steps", 0)
    assert model.latents is not None
    x = images(model)
    codec: nn.Module = model.latents.codec
    patches = torch.pixel_unshuffle(x, 4).transpose(0, 1).flatten(1).double()
    values = torch.linalg.svdvals(patches - patches.mean(dim=1, keepdim=True))
    kept = model.latents.facts.shape[0]
    least = values[kept:].square().sum().div(patches.numel()).sqrt()
    restored = model.decode(model.latents.encode(x))
    assert float((restored - x).square().mean().sqrt()) == pytest.approx(float(least), rel=1e-2)
    assert codec.error == pytest.approx(float(least), rel=1e-3)
