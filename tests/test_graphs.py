"""Networks as graphs: the same outputs as the model, and the same samples by the script beside them."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from safetensors import safe_open
from torch import nn

import difftool
from difftool import Condition, Model, UsageError, component
from difftool.rng import sample_noise
from difftool.runs import checkpoint
from difftool_plugins.exchange.graphs import NetworkGraph, examples, write_scripts

CLOSE = 1e-5
TRAIN = ("--steps", 3, "--batch-size", 4, "--preview-every", 0, "--threads", 1)
SMALL = ("--backbone", "unet", "--backbone.dim", 8, "--backbone.dim-mults", "1,2", "--backbone.groups", 4)
IMAGES = (*TRAIN, "--dataset", "gradients", "--dataset.n", 32, "--dataset.size", 8, *SMALL)
MODELS: dict[str, tuple[Any, ...]] = {
    "points of classes": (*TRAIN, "--dataset", "gaussian-mixture", "--dataset.labels", "--self-condition"),
    "images": IMAGES,
    "v and learned variance": (*IMAGES, "--prediction", "v", "--learn-variance"),
    "edm": (*IMAGES, "--prediction", "edm", "--schedule", "ve"),
    "latents": (*IMAGES, "--codec", "pca", "--codec.size", 2, "--codec.components", 4),
    "series": (*TRAIN, "--dataset", "array", "--dataset.path", "series.npy", "--dataset.form", "series", *SMALL),
    "everything": (
        *(*TRAIN, *SMALL, "--dataset", "array", "--dataset.path", "all.npz", "--dataset.items", "items"),
        *("--dataset.form", "image", "--dataset.vectors", "vectors", "--dataset.condition", "condition"),
        *("--dataset.tokens", "tokens"),
    ),
}
FAST = ("points of classes", "images")
"""The models that are tried in every run of the tests."""
CONDITIONS: dict[str, dict[str, str]] = {
    "points of classes": {"label": "3,1"},
    "everything": {"label": "2", "vector": "4,1", "image": "image.npy", "tokens": "tokens.npy"},
}
TARGETS = ["torch-export", pytest.param("onnx", marks=pytest.mark.extras)]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def randomized(run: Run, *options: Any) -> Model:
    """Train a model for a few steps, give it weights that have an effect everywhere, and save it."""
    np.save("series.npy", np.sin(np.arange(32)[None, :] + np.arange(20)[:, None])[:, None].astype(np.float32))
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
    return imported("d")


def imported(name: str) -> dict[str, Any]:
    """Return the names of the script in an exported folder."""
    folder = str(Path(name).resolve())
    sys.path.insert(0, folder)
    try:
        return runpy.run_path(f"{name}/sample.py")
    finally:
        sys.path.remove(folder)
        sys.modules.pop("network", None)


def everything(path: Path) -> None:
    """Write images with classes, vectors, condition images and tokens, and one of each condition to sample under."""
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (2, 20, 3, 8, 8), dtype=np.uint8)
    tokens = numbers.normal(0.0, 1.0, (20, 2, 5)).astype(np.float32)
    vectors = numbers.normal(3.0, 2.0, (20, 2)).astype(np.float32)
    labels = np.arange(20) % 3
    np.savez(path, items=images[0], labels=labels, vectors=vectors, condition=images[1], tokens=tokens)
    np.save("image.npy", images[1, 0])
    np.save("tokens.npy", tokens[0])


def difference(a: Any, b: Any) -> float:
    """Return the largest difference, of numbers beyond 1 relative to the largest."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(1.0, float(np.abs(np.asarray(b)).max())))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name not in FAST)]
)
def test_the_script_draws_the_samples_of_the_model(run: Run, target: str, name: str) -> None:
    if name == "everything":
        everything(Path("all.npz"))
    model = randomized(run, *MODELS[name])
    script = exported(run, target)
    graph = NetworkGraph(model, "fp32").eval()
    for count in (1, 2, 7):
        inputs = examples(model, count)
        with torch.no_grad():
            expected = graph(**inputs)
        arrays = {key: tensor.numpy() for key, tensor in inputs.items()}
        assert difference(script["run"]("network", arrays), expected) <= CLOSE

    settings = CONDITIONS.get(name, {})
    guidance = {"guidance": 3.0} if settings else {}
    wanted = model.sample(
        4, steps=4, **{k: np.load(v) if v.endswith(".npy") else v for k, v in settings.items()}, **guidance
    )
    eps = sample_noise(0, 4, model.space.shape, 0, "x_T").numpy()
    found = script["in_data_units"](script["sample"](eps, 4, script["conditions"](4, settings), **guidance))
    if model.data.is_image:  # a pixel may be rounded the other way
        assert np.abs(found.astype(float) - wanted.round().clamp(0, 255).numpy()).max() <= 1
    else:
        assert difference(found, wanted) <= CLOSE


def test_a_graph_is_the_network_under_its_conditions(run: Run) -> None:
    everything(Path("all.npz"))
    model = randomized(run, *MODELS["everything"])
    inputs = examples(model, 3)
    cond = Condition(**{name: inputs[name] for name in ("label", "vector", "tokens", "hidden")})
    with torch.no_grad():
        wanted = model.network(torch.cat([inputs["x"], inputs["image"]], dim=1), inputs["t"], cond)
        assert difference(NetworkGraph(model, "fp32").eval()(**inputs), wanted) <= CLOSE


@pytest.mark.parametrize("target", TARGETS)
def test_files_name_no_path_of_this_machine(run: Run, target: str) -> None:
    randomized(run, *MODELS["points of classes"])
    exported(run, target)
    here = [str(Path.cwd()).encode(), str(Path(difftool.__file__).parent).encode(), b"site-packages"]
    for file in Path("d").rglob("*.*"):
        contents = [file.read_bytes()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents = [archive.read(name) for name in archive.namelist()]
        assert not [word for word in here for content in contents if word in content], file


def test_a_model_of_latents_is_sampled_after_its_export(run: Run) -> None:
    model = randomized(run, *MODELS["latents"])
    before = model.sample(2, steps=2)
    for folder in ("d", "e"):
        component("command", "export", model=model, to="torch-export", out=Path(folder)).run()  # type: ignore[attr-defined]
    assert torch.equal(model.sample(2, steps=2), before)


class Undecided(nn.Module):
    """A network whose course depends on numbers, which no graph can follow."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: object = None) -> torch.Tensor:
        return x if bool(x.sum() > 0) else -x


def test_a_network_that_cannot_be_traced_is_refused(run: Run) -> None:
    model = randomized(run, *MODELS["points of classes"])
    model.network = Undecided()
    command: Any = component("command", "export", model=model, to="torch-export", out=Path("d"))
    with pytest.raises(UsageError, match="backbone mlp cannot be traced"):
        command.run()
    assert not Path("d").exists()


def test_a_weight_that_fp16_cannot_hold_is_refused(run: Run) -> None:
    model = randomized(run, *TRAIN, "--dataset.n", 200)
    with torch.no_grad():
        next(model.network.parameters())[0] = 1e5
    model.save("m.safetensors")
    refused = run("export", "m.safetensors", "--to", "difftool", "--out", "d", "--dtype", "fp16")
    assert (refused.code, "--dtype: fp16 cannot hold" in refused.error, Path("d").exists()) == (2, True, False)
    assert run("export", "m.safetensors", "--to", "difftool", "--out", "d", "--dtype", "bf16").code == 0


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("--steps", "0"), 2, "--steps from 1 to 1000"),
        (("--label", "9"), 1, "--label: there is no class '9'; there are 0, 1"),
        (("--vector", "1"), 2, "unrecognized arguments"),
        (("--guidance", "2"), 1, "--guidance: needs a condition"),
        (("--out", "nowhere/s.npy"), 1, "nowhere/s.npy"),
    ],
)
def test_bad_input_of_the_script_is_refused_in_a_line(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    reason: str,
) -> None:
    model = randomized(run, *MODELS["points of classes"])
    Path("d").mkdir()
    write_scripts(model, Path("d"), "network_torch.py")
    script = imported("d")
    monkeypatch.setitem(script["main"].__globals__, "run", lambda name, inputs: inputs["x"])
    monkeypatch.setattr(sys, "argv", ["sample.py", "--steps", "1", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        script["main"]()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sample.py: ")]
    assert (ended.value.code, len(lines), reason in lines[0]) == (code, 1, True), lines


@pytest.mark.extras
def test_the_script_of_onnx_needs_neither_torch_nor_difftool(run: Run) -> None:
    randomized(run, *MODELS["points of classes"])
    exported(run, "onnx")
    code = "import runpy, sys; sys.modules['difftool'] = sys.modules['torch'] = None; sys.path.insert(0, 'd'); "
    code += "runpy.run_path('d/sample.py', run_name='__main__')"
    words = ("-n", "3", "--label", "0,1", "--steps", "4")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "samples.npy: (3, 2)\n"), done.stderr


@pytest.mark.parametrize(
    ("target", "dtype"),
    [
        ("torch-export", "bf16"),
        *(("difftool", dtype) for dtype in ("bf16", "fp16")),
        *(pytest.param("onnx", dtype, marks=pytest.mark.extras) for dtype in ("bf16", "fp16")),
    ],
)
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


def test_the_card_says_what_the_model_is_and_how_to_train_it(run: Run) -> None:
    assert run("train", *IMAGES, "--preview-every", 2, "--held-out", 4, "--out", "r").code == 0
    assert run("export", "r", "--to", "difftool", "--out", "d", "--license", "cc-by-4.0").code == 0
    card = Path("d/README.md").read_text(encoding="utf-8")
    assert card.startswith('---\nlicense: "cc-by-4.0"\nlibrary_name: difftool\n')
    lines = (
        "| network | unet",
        "| training | 3 steps of 4",
        "| loss |",
        "| held-out loss |",
        "![Samples",
        "hf upload YOUR",
    )
    assert [line for line in lines if line not in card] == []
    assert Path("d/samples.png").read_bytes() == max(Path("r/previews").glob("samples-*.png")).read_bytes()
    assert str(Path.cwd()) not in card
    Path("again.toml").write_text(card.partition("```toml\n")[2].partition("```")[0])
    assert run("train", "--config", "again.toml", "--out", "again").code == 0
    weights = [difftool.load(folder).network.state_dict() for folder in ("r", "again")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_the_card_of_a_model_file_has_samples_of_its_own(run: Run) -> None:
    randomized(run, *TRAIN, "--dataset.n", 200)
    assert run("export", "m.safetensors", "--to", "difftool", "--out", "d").code == 0
    assert Path("d/samples.png").read_bytes().startswith(b"\x89PNG")


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


def test_a_model_file_of_half_size_says_so_and_is_trained_on(run: Run) -> None:
    options = (*TRAIN, "--dataset.n", 200)
    run("train", *options, "--out", "r")
    assert run("export", "r", "--to", "difftool", "--out", "d", "--dtype", "bf16").code == 0
    half = Path("d/model.safetensors")
    assert json.loads(run("info", half, "--json").out)["dtype"] == "bf16"
    assert run("train", *options, "--init-from", half, "--out", "again").code == 0
    difftool.load(half).save("wide.safetensors")
    assert Path("wide.safetensors").stat().st_size > 1.5 * half.stat().st_size


def test_a_model_file_that_does_not_name_its_number_format_is_refused(run: Run) -> None:
    randomized(run, *TRAIN, "--dataset.n", 200)
    tensors, document = checkpoint.load(Path("m.safetensors"))
    for dtype in ("fp8", 16, ["bf16"]):
        checkpoint.save(Path("bad.safetensors"), tensors, {**document, "dtype": dtype})
        assert "dtype is no number format" in run("sample", "bad.safetensors").error
    checkpoint.save(Path("bad.safetensors"), {k: t.half() for k, t in tensors.items()}, {**document, "dtype": "bf16"})
    assert "is float16, not float32" in run("sample", "bad.safetensors").error
