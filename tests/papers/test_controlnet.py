"""controlnet.py: it starts as the locked network to the last bit, and control alone trains and acts."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from conftest import Run
from torch import Tensor, nn

import difftool
from difftool import BackboneSpec, Condition, ConditionSpec
from difftool.plugins.registry import scripts_added
from difftool.scripts import Script
from difftool.testing import check_backbone

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "examples" / "papers" / "controlnet.py"
controlnet = Script.read(PAPER).load()


def spec(image: tuple[int, int, int] | None) -> BackboneSpec:
    return BackboneSpec(shape=(3, 8, 8), out_channels=3, condition=ConditionSpec(image=image))


def networks() -> tuple[nn.Module, nn.Module]:
    """A locked network, and one that is controlled by an image of one channel and has the same locked weights."""
    torch.manual_seed(0)
    locked = controlnet.Locked(dim=8).build(spec(None))
    controlled = controlnet.ControlNet(dim=8).build(spec((1, 8, 8)))
    missing, unexpected = controlled.load_state_dict(locked.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("control_") for name in missing)
    return locked, controlled


def batch(count: int = 3) -> tuple[Tensor, Tensor, Condition]:
    random = torch.Generator().manual_seed(1)
    x, image = torch.randn(count, 3, 8, 8, generator=random), torch.randn(count, 1, 8, 8, generator=random)
    return x, 300.0 * torch.ones(count), Condition(image=image, hidden=torch.zeros(count, dtype=torch.bool))


def test_it_starts_as_the_locked_network() -> None:
    locked, controlled = networks()
    x, t, cond = batch()
    assert torch.equal(controlled(x, t, cond), locked(x, t))


def test_the_copy_starts_as_a_copy_and_the_gradient_reaches_it_after_the_zero_convolutions() -> None:
    _, controlled = networks()
    x, t, cond = batch()
    controlled(x, t, cond).square().sum().backward()
    gradients = {name: float(weight.grad.abs().max()) for name, weight in controlled.named_parameters()}
    assert all(gradients[name] > 0 for name in gradients if name.startswith("control_out"))
    assert all(gradients[name] == 0 for name in gradients if name.startswith(("control_in", "control_copy")))
    with torch.no_grad():
        for zero in controlled.control_out:
            zero.weight.copy_(torch.eye(8)[:, :, None, None])  # features of the copy are added as they are
        time = torch.stack([t / 1000, (t / 1000).square()], dim=1)
        for twice, once in zip(controlled.encode(x, time, cond), controlled.encoder(x, time), strict=True):
            torch.testing.assert_close(twice, 2 * once)
    controlled.zero_grad()
    controlled(x, t, cond).square().sum().backward()
    assert all(bool(weight.grad.any()) for weight in controlled.parameters())


def test_where_the_image_is_hidden_it_is_the_locked_network() -> None:
    locked, controlled = networks()
    with torch.no_grad():
        for weight in (*controlled.control_in.parameters(), *controlled.control_out.parameters()):
            weight.normal_()
    x, t, cond = batch()
    hidden = torch.tensor([False, True, False])
    output = controlled(x, t, cond.hide(hidden))
    assert [torch.equal(a, b) for a, b in zip(output, locked(x, t), strict=True)] == [False, True, False]
    assert torch.equal(controlled(x, t), locked(x, t))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Locked", "ControlNet"])
def test_laws(name: str) -> None:
    check_backbone(getattr(controlnet, name)(dim=16), shape=(1, 4, 4))


@pytest.mark.slow
def test_samples_follow_the_image_and_locked_weights_stay(run: Run) -> None:
    """Digits that are shrunk again are nearer to their small image than to another one."""
    assert runpy.run_path(str(ROOT / "examples" / "tutorials" / "digits.py"))["main"](["digits", "--size", "8"]) == 0
    data = ("--dataset", "image-folder", "--dataset.path", "digits", "--dataset.size", 8, "--dataset.labels", "none")
    small = ("--plugin", PAPER, *data, "--dataset.channels", 1, "--backbone.dim", 16, "--batch-size", 32)
    small = (*small, "--lr", 3e-3, "--preview-every", 0, "--ema", 0.98, "--steps", 300)
    outcome = run("train", *small, "--backbone", "locked", "--out", "locked")
    assert outcome.code == 0, outcome.err
    control = ("--backbone", "controlnet", "--dataset.condition", "shrink:4", "--train-only", "control")
    outcome = run("train", *small, *control, "--init-from", "locked", "--out", "tuned")
    assert outcome.code == 0, outcome.err
    with scripts_added([PAPER]):
        locked, tuned = difftool.load("locked", weights="raw"), difftool.load("tuned")
        weights, start = tuned.network.state_dict(), difftool.load("locked").network.state_dict()
    assert set(start) == set(locked.network.state_dict())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in start.items())

    def shrunk(images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 4)

    items = tuned.load_samples().take_items(range(0, 1792, 28))  # of all digits
    small_images = shrunk(tuned.data.scaling.to_model(items))
    images = nn.functional.interpolate(small_images, scale_factor=4)
    drawn = shrunk(tuned.data.scaling.to_model(tuned.sample(64, image=images, steps=10)))
    own, other = ((drawn - target).square().mean() for target in (small_images, small_images.roll(1, 0)))
    assert own < 0.5 * other
