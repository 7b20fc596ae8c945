"""Recipes of others as config files: they run, and rates and weights are those of the others' own code."""

from __future__ import annotations

import ast
import importlib.util
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from torch import nn

from difftool import Optimizer
from difftool.runs.recipe import build_recipe
from difftool.training.optimizer import Updater
from difftool.training.rate import learning_rate

FOLDER = Path(__file__).parent.parent / "examples" / "recipes"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the checkout")
NAMES = ("diffusers", "dit", "edm2", "lucidrains")
TINY = (
    *("--dataset.n", 16, "--dataset.size", 8, "--backbone.dim", 8, "--backbone.dim-mults", "1,2"),
    *("--backbone.groups", 4, "--batch-size", 8, "--preview-every", 0, "--threads", 1, "--steps", 3),
)


def document(name: str, **training: Any) -> dict[str, Any]:
    tables = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    if "steps" in training:
        tables["training"].pop("epochs", None)
    return {**tables, "training": {**tables["training"], **training}}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 4))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def losses(net: nn.Module, random: torch.Generator) -> torch.Tensor:
    loss: torch.Tensor = net(torch.randn(4, 3, 8, 8, generator=random)).square().mean()
    return loss


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs(run: Run, name: str) -> None:
    outcome = run("train", "--config", FOLDER / f"{name}.toml", *TINY)
    assert outcome.code == 0, outcome.err


def diffusers_rate(step: int, warmup: int, steps: int) -> float:
    """The rate of diffusers at its step 0, 1, ..., which a warm-up begins with 0."""
    optimization = pytest.importorskip("diffusers.optimization")
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1e-4)
    schedule = optimization.get_scheduler("cosine", other, num_warmup_steps=warmup, num_training_steps=steps)
    rate: float = schedule.lr_lambdas[0](step)
    return 1e-4 * rate


def edm2_rate(step: int, warmup: int, decay: int) -> float:
    """The rate of EDM2 at a step, from its count of images (Karras et al., 2024, appendix)."""
    batch_size = 2048
    images, rising = step * batch_size, warmup * batch_size
    return 0.012 / math.sqrt(max(images / (decay * batch_size), 1)) * min(images / rising, 1)


Theirs = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
STEPS, WARMUP, DECAY = 12, 4, 6
RECIPES: dict[str, tuple[Theirs, Callable[[int], float], dict[str, int]]] = {
    "diffusers": (
        lambda w: torch.optim.AdamW(w, lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8),
        # the warm-up of diffusers is one step behind; after it both are equal
        lambda k: diffusers_rate(k + 1 if k < WARMUP else k, WARMUP, STEPS),
        {"warmup": WARMUP},
    ),
    "dit": (lambda w: torch.optim.AdamW(w, lr=1e-4, weight_decay=0), lambda _: 1e-4, {}),
    "edm2": (
        lambda w: torch.optim.Adam(w, lr=0.012, betas=(0.9, 0.99)),
        lambda k: edm2_rate(k + 1 if k < WARMUP else k, WARMUP, DECAY),  # here as well
        {"warmup": WARMUP, "lr_decay_steps": DECAY},
    ),
    "lucidrains": (lambda w: torch.optim.Adam(w, lr=1e-4, betas=(0.9, 0.99)), lambda _: 1e-4, {}),
}


@pytest.mark.parametrize("name", NAMES)
def test_rates_and_weights_are_those_of_the_others(name: str) -> None:
    """On the same gradients, over a whole course of the rate: warm-up, fall and end."""
    make, rate, changes = RECIPES[name]
    recipe = build_recipe(document(name, steps=STEPS, **changes))
    settings, component = recipe.training, recipe[Optimizer]
    ours, theirs = network(), network()
    updater, optimizer = Updater(component, ours.named_parameters(), settings.lr), make([*theirs.parameters()])
    a, b = (torch.Generator().manual_seed(1) for _ in range(2))
    for step in range(STEPS):
        lr = learning_rate(step, STEPS, settings, component)
        assert lr == pytest.approx(rate(step), rel=1e-12)
        updater.clear_gradients()
        losses(ours, a).backward()
        updater.update(lr, updater.gradient_norm() < math.inf)
        optimizer.zero_grad()
        losses(theirs, b).backward()
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.step()
        for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


def test_the_trainer_of_lucidrains_has_these_defaults() -> None:
    """They are read from the source of the package, which needs a torchvision that fits to be imported."""
    found = importlib.util.find_spec("denoising_diffusion_pytorch")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("denoising-diffusion-pytorch is not installed")
    source = Path(found.submodule_search_locations[0], "denoising_diffusion_pytorch.py").read_text(encoding="utf-8")
    (trainer,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Trainer")
    (init,) = (n for n in trainer.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    values = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    theirs = {
        name.arg: ast.literal_eval(value) for name, value in values if isinstance(value, (ast.Constant, ast.Tuple))
    }
    ours = document("lucidrains")
    assert theirs["train_lr"] == ours["training"]["lr"]
    assert theirs["train_batch_size"] == ours["training"]["batch_size"]
    assert [*theirs["adam_betas"]] == ours["optimizer"]["betas"]
    assert theirs["max_grad_norm"] == ours["training"]["clip"]
    assert theirs["ema_decay"] == ours["training"]["ema"]
    assert theirs["train_num_steps"] == ours["training"]["steps"]


def test_the_real_courses_agree_after_the_warm_up() -> None:
    for step in (500, 501, 10_000, 62_499):
        settings = build_recipe(document("diffusers", steps=62_500)).training
        assert learning_rate(step, 62_500, settings) == pytest.approx(diffusers_rate(step, 500, 62_500), rel=1e-9)
    settings = build_recipe(document("edm2")).training
    for step in (4882, 4883, 69_999, 70_000, 70_001, 1_000_000):
        assert learning_rate(step, 1_048_576, settings) == pytest.approx(edm2_rate(step, 4883, 70_000), rel=1e-3)
