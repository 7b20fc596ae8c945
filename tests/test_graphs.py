"""Networks as graphs: the same outputs as the model, and the same samples by the script beside them."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from safetensors import safe_open

import difftool
from difftool import CLEAN, Model, component
from difftool_plugins.exchange.graphs import NetworkGraph, examples

CLOSE = 1e-5
TRAIN = ("--steps", 3, "--batch-size", 4, "--preview-every", 0, "--threads", 1)
SMALL = ("--backbone", "unet", "--backbone.dim", 8, "--backbone.dim-mults", "1,2", "--backbone.groups", 4)
IMAGES = (*TRAIN, "--dataset", "gradients", "--dataset.n", 32, "--dataset.size", 8, *SMALL)
MODELS: dict[str, tuple[Any, ...]] = {
    "points of classes": (*TRAIN, "--dataset", "gaussian-mixture", "--dataset.labels"),
    "images": IMAGES,
    "v and learned variance": (*IMAGES, "--prediction", "v", "--learn-variance"),
    "edm": (*IMAGES, "--prediction", "edm", "--schedule", "ve"),
    "latents": (*IMAGES, "--codec", "pca", "--codec.size", 2, "--codec.components", 4),
}
TARGETS = ["torch-export", pytest.param("onnx", marks=pytest.mark.extras)]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def randomized(run: Run, *options: Any) -> Model:
    """Train a model for a few steps, give it weights that have an effect everywhere, and save it."""
    assert run("train", *options, "--out", "r").code == 0
    model = difftool.load("r")
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save("m.safetensors")
    return model


def exported(run: Run, target: str, *options: Any) -> dict[str, Any]:
    """Export the model, and return the names of its `sample.py`."""
    if target == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(module)
    outcome = run("export", "m.safetensors", "--to", target, "--out", "d", *options)
    assert outcome.code == 0, outcome.err
    folder = str(Path("d").resolve())
    sys.path.insert(0, folder)
    try:
        return runpy.run_path("d/sample.py")
    finally:
        sys.path.remove(folder)
        sys.modules.pop("network", None)


def difference(a: Any, b: Any) -> float:
    """Return the largest difference, of numbers beyond 1 relative to the largest."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(1.0, float(np.abs(np.asarray(b)).max())))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_the_script_draws_the_samples_of_the_model(run: Run, target: str, options: tuple[Any, ...]) -> None:
    model = randomized(run, *options)
    script = exported(run, target)
    inputs = [*examples(model, 3)]
    with torch.no_grad():
        expected = NetworkGraph(model, "fp32")(*inputs)
    names = ["x", "t", *([*model.space.condition.shapes, "hidden"] if model.space.condition.shapes else [])]
    arrays = dict(zip(names, (each.numpy() for each in inputs), strict=True))
    assert difference(script["run"]("network", arrays), expected) <= CLOSE
    one = script["run"]("network", {name: array[:1] for name, array in arrays.items()})
    assert difference(one, expected[:1]) <= CLOSE

    eps = np.random.default_rng(0).standard_normal((5, *model.space.shape))
    drawn = script["sample"](eps, 4, script["conditions"](5, None, {}))
    spacing: Any = component("spacing", "trailing")
    levels = [*spacing.levels(model.schedule, 4), CLEAN]
    sampler: Any = component("sampler", "ddim")
    from difftool.sampling.denoiser import clipped

    denoise: Any = model.denoiser(5)
    if model.space.bounds is not None:
        denoise = clipped(denoise, model.space.bounds)
    x = torch.from_numpy(eps).double() * levels[0].norm
    for step in sampler.sample(lambda x, level: denoise(x.float(), level), x, levels, None):
        x = step.x
    assert difference(drawn, x) <= 1e-4
    data = model.data.scaling.to_data(model.decode(x.float()).clamp(*model.data.bounds or (-1e9, 1e9)))
    assert difference(script["in_data_units"](drawn), data) <= 1e-4


@pytest.mark.parametrize("target", ["torch-export", "difftool", pytest.param("onnx", marks=pytest.mark.extras)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_weights_of_half_size(run: Run, target: str, dtype: str) -> None:
    options = (*TRAIN, "--dataset", "swiss-roll", "--backbone.width", 128)
    model = randomized(run, *options)
    run("export", "m.safetensors", "--to", target, "--out", "whole")
    (run if target == "difftool" else lambda *a: exported(run, target, "--dtype", dtype))(
        "export", "m.safetensors", "--to", target, "--out", "d", "--dtype", dtype
    )
    names = {"torch-export": "network.pt2", "onnx": "network.onnx", "difftool": "model.safetensors"}
    whole, half = (Path(folder, names[target]).stat().st_size for folder in ("whole", "d"))
    assert half < 0.7 * whole
    if target == "difftool":
        again = difftool.load(Path("d/model.safetensors"))
        for name, weight in model.network.state_dict().items():
            assert torch.allclose(again.network.state_dict()[name].float(), weight, rtol=1e-2, atol=1e-3)
        assert torch.isfinite(again.sample(4, steps=3)).all()
        with safe_open("d/model.safetensors", "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {  # noqa: SIM118
                {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
            }


def test_a_network_that_limits_its_batch(run: Run) -> None:
    """The code of diffusers takes another way from 64 items on."""
    pytest.importorskip("diffusers")
    small = ("--backbone", "diffusers-unet", "--backbone.block-out-channels", "8,16", "--backbone.norm-num-groups", 4)
    model = randomized(run, *TRAIN, "--dataset", "gradients", "--dataset.n", 32, "--dataset.size", 8, *small)
    script = exported(run, "torch-export")
    x, t = torch.randn(130, 3, 8, 8), torch.linspace(0, 999, 130)
    with torch.no_grad():
        expected = model.network(x, t)
    assert difference(script["run"]("network", {"x": x.numpy(), "t": t.numpy()}), expected) <= CLOSE


@pytest.mark.parametrize("target", TARGETS)
def test_the_script_takes_conditions(run: Run, target: str) -> None:
    randomized(run, *MODELS["points of classes"])
    script = exported(run, target)
    shown, hidden = (script["conditions"](3, label, {}) for label in ("2", None))
    assert (shown["label"].tolist(), shown["hidden"].any(), hidden["hidden"].all()) == ([2, 2, 2], False, True)
    x = np.random.default_rng(0).standard_normal((3, 2))
    assert not np.allclose(script["sample"](x, 3, shown), script["sample"](x, 3, hidden))


def test_the_card_says_what_the_model_is(run: Run) -> None:
    assert run("train", *IMAGES, "--preview-every", 3, "--out", "r").code == 0
    assert run("export", "r", "--to", "difftool", "--out", "d", "--license", "cc-by-4.0").code == 0
    card = Path("d/README.md").read_text(encoding="utf-8")
    assert card.startswith('---\nlicense: "cc-by-4.0"\nlibrary_name: difftool\n')
    for line in ("| network | unet", "| training | 3 steps of 4", "| loss |", "![Samples", "hf upload YOUR-NAME/d . ."):
        assert line in card
    assert Path("d/samples.png").is_file()
    assert str(Path.cwd()) not in card


def test_a_model_that_conditions_on_itself_is_refused(run: Run) -> None:
    assert run("train", *IMAGES, "--self-condition", "--out", "r").code == 0
    refused = run("export", "r", "--to", "torch-export", "--out", "d")
    assert (refused.code, "conditions on itself" in refused.error, Path("d").exists()) == (2, True, False)


def test_the_missing_library_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("train", *TRAIN, "--out", "r").code == 0
    monkeypatch.setattr("difftool_plugins.commands.export.find_spec", lambda _: None)
    refused = run("export", "r", "--to", "onnx", "--out", "d")
    assert "onnx and onnxscript are not installed; pip install 'difftool[onnx]'" in refused.error


def test_the_numbers_of_the_levels_are_those_of_the_schedule(run: Run) -> None:
    model = randomized(run, *MODELS["images"])
    assert run("export", "m.safetensors", "--to", "torch-export", "--out", "d").code == 0
    levels = json.loads(Path("d/model.json").read_text())["levels"]
    np.testing.assert_array_equal(levels["alpha"], model.schedule.alpha)
    np.testing.assert_array_equal(levels["sigma"], model.schedule.sigma)
