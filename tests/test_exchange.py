"""Models to and from diffusers: the same outputs as the original, and the same samples as through its own scheduler."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image

import difftool
from difftool import Condition, DifftoolError, Model, component
from difftool.rng import sample_noise
from difftool.testing import check_component
from difftool_plugins.exchange import to_diffusers
from difftool_plugins.exchange.from_diffusers import read_folder
from difftool_plugins.exchange.schedulers import betas_of, scheduler_config, table_of

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.extras

CLOSE = 1e-5
ROUNDED, EXACT = 1e-4, 1e-10
"""The largest differences of samples in float32 if the network predicts eps, and in float64. The first step from pure
noise enlarges the rounding of such an output 158 times, here and in diffusers alike."""
UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
DIT = {
    "sample_size": 8,
    "in_channels": 3,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_embeds_ada_norm": 3,
}
TRAIN = ("--steps", 2, "--batch-size", 2, "--preview-every", 0, "--dataset", "gradients", "--dataset.size", 8)
SMALL_UNET = ("--backbone", "diffusers-unet", "--backbone.block-out-channels", "8,16", "--backbone.norm-num-groups", 4)
SMALL_DIT = (
    *("--backbone", "diffusers-dit", "--backbone.num-layers", 1, "--backbone.num-attention-heads", 2),
    *("--backbone.attention-head-dim", 8),
)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(folder: Path, *, scheduler: Any = None, seed: int = 0, **changes: Any) -> Any:
    """Write a pipeline of diffusers with random weights, and return its network."""
    torch.manual_seed(seed)
    network = diffusers.UNet2DModel(**{**UNET, **changes}).eval()
    scheduler = scheduler or diffusers.DDPMScheduler()
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(folder)
    return network


def saved_dit(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(**{**DIT, **changes}).eval()
    network.save_pretrained(folder / "transformer")
    diffusers.DDIMScheduler().save_pretrained(folder / "scheduler")
    return network


def trajectory(network: Any, scheduler: Any, x: torch.Tensor, steps: int, **labels: Any) -> torch.Tensor:
    """Return samples by the scheduler of diffusers from x_T."""
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = network(x, t.expand(len(x)), **labels).sample[:, : x.shape[1]]
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample  # eps follows a clipped x_0
    return x


def ours(model: Model, x: torch.Tensor, steps: int) -> torch.Tensor:
    """Return samples by DDIM here from x_T, clipped as the schedulers of diffusers clip."""
    from difftool.diffusion.schedule import CLEAN
    from difftool.sampling.denoiser import clipped

    denoise = model.denoiser(len(x))
    if model.data.bounds is not None:
        denoise = clipped(denoise, model.data.bounds)
    levels = [*component("spacing", "trailing").levels(model.schedule, steps), CLEAN]  # type: ignore[attr-defined]
    for step in component("sampler", "ddim").sample(denoise, x, levels, noise=None):  # type: ignore
        x = step.x
    return x


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference, of numbers beyond 1 relative to the largest."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1.0))


def compare(model: Model, network: Any, scheduler: Any, **labels: Any) -> None:
    """Require the same samples from the same x_T: in float32, in float32 with a network that hardly rounds, in float64.

    The latter two take the table of the scheduler before diffusers rounds it to float32.
    """
    x = torch.randn(4, 3, 8, 8)
    most = ROUNDED if scheduler.config.prediction_type == "epsilon" else CLOSE
    assert difference(ours(model, x, 10), trajectory(network, scheduler, x, 10, **labels)) <= most
    scheduler.alphas_cumprod = model.schedule.alpha_bars
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    model.network.double()
    network.double()
    with exact(model.network), exact(network):
        assert difference(ours(model, x, 10), trajectory(network, scheduler, x, 10, **labels)) <= CLOSE
    x = x.double()
    assert difference(ours(model, x, 10), trajectory(network, scheduler, x, 10, **labels)) <= EXACT


@contextmanager
def exact(network: Any) -> Iterator[None]:
    """Let a network of float64 take float32, and round its output to float32 alone."""
    original = network.forward

    def forward(x: torch.Tensor, t: torch.Tensor, *rest: Any, **labels: Any) -> Any:
        output = original(x.double(), t, *rest, **labels)
        return output.float() if isinstance(output, torch.Tensor) else SimpleNamespace(sample=output.sample.float())

    network.forward = forward
    try:
        yield
    finally:
        network.forward = original


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_head_dim": None},
        {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"},
        {"freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "norm_eps": 1e-6, "act_fn": "mish"},
        {"add_attention": False, "mid_block_scale_factor": 2.0, "time_embedding_dim": 24, "center_input_sample": True},
        {"in_channels": 1, "out_channels": 1, "sample_size": (8, 16)},
    ],
)
def test_an_imported_unet_gives_the_outputs_of_the_original(tmp_path: Path, changes: dict[str, Any]) -> None:
    network = saved(tmp_path / "d", **changes)
    model = read_folder(tmp_path / "d")
    x, t = torch.randn(3, *model.data.shape), torch.tensor([0.0, 500.0, 999.0])
    with torch.no_grad():
        assert difference(model.network(x, t), network(x, t).sample) <= CLOSE


def test_classes_of_an_imported_unet_are_those_of_the_original(tmp_path: Path) -> None:
    network = saved(tmp_path / "d", num_class_embeds=3)
    model = read_folder(tmp_path / "d")
    x, t, labels = torch.randn(3, 3, 8, 8), torch.tensor([1.0, 500.0, 999.0]), torch.tensor([2, 0, 1])
    cond = Condition(label=labels, hidden=torch.zeros(3, dtype=torch.bool))
    with torch.no_grad():
        assert difference(model.network(x, t, cond), network(x, t, class_labels=labels).sample) <= CLOSE
    assert (model.data.class_names, model.needs_condition) == (("0", "1", "2"), True)


@pytest.mark.parametrize("changes", [{}, {"out_channels": 6}, {"patch_size": 4, "activation_fn": "geglu"}])
def test_an_imported_transformer_gives_the_outputs_of_the_original(tmp_path: Path, changes: dict[str, Any]) -> None:
    network = saved_dit(tmp_path / "d", **changes)
    model = read_folder(tmp_path / "d")
    x, t, labels = torch.randn(4, 3, 8, 8), torch.tensor([1.0, 500.0, 999.0, 3.0]), torch.tensor([2, 0, 1, 3])
    cond = Condition(label=labels.clamp(max=2), hidden=labels == 3)  # the last row stands for a hidden class
    with torch.no_grad():
        assert difference(model.network(x, t, cond), network(x, t, class_labels=labels).sample) <= CLOSE
    assert model.recipe.training.learn_variance == (changes.get("out_channels") == 6)


SCHEDULES = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"num_train_timesteps": 200},
    {"clip_sample": False},
    {"clip_sample_range": 2.5},
    {"trained_betas": torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist()},
]


@pytest.mark.parametrize("config", SCHEDULES)
def test_an_imported_model_draws_the_samples_of_its_own_scheduler(tmp_path: Path, config: dict[str, Any]) -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", **config)
    network = saved(tmp_path / "d", scheduler=scheduler)
    model = read_folder(tmp_path / "d")
    compare(model, network, scheduler)


@pytest.mark.parametrize(
    "options",
    [
        SMALL_UNET,
        (*SMALL_UNET, "--schedule", "cosine"),
        (*SMALL_UNET, "--schedule", "laplace", "--prediction", "v"),
        (*SMALL_UNET, "--timesteps", 200, "--backbone.times", 200),
        (*SMALL_UNET, "--prediction", "x0", "--schedule", "quadratic"),
        SMALL_DIT,
        (*SMALL_DIT, "--learn-variance"),
    ],
)
def test_an_exported_model_draws_the_same_samples_in_diffusers(run: Run, options: tuple[Any, ...]) -> None:
    run("train", *TRAIN, *options, "--out", "r")
    files = run("export", "r", "--to", "diffusers", "--out", "d").out.splitlines()
    assert str(Path("d/README.md")) in files
    model = difftool.load("r")
    part = "transformer" if "diffusers-dit" in options else "unet"
    cls = diffusers.DiTTransformer2DModel if part == "transformer" else diffusers.UNet2DModel
    network = cls.from_pretrained("d", subfolder=part).eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained("d", subfolder="scheduler")
    again, x = read_folder(Path("d")), torch.randn(4, 3, 8, 8)
    labels = {"class_labels": torch.zeros(4, dtype=torch.int64)} if part == "transformer" else {}
    compare(model, network, scheduler, **labels)
    model.network.float()
    assert difference(ours(model, x, 10), ours(again, x, 10)) == 0.0
    assert again.data.shape == model.data.shape


def test_a_pipeline_of_diffusers_opens_an_exported_folder(run: Run) -> None:
    run("train", *TRAIN, *SMALL_UNET, "--out", "r")
    run("export", "r", "--to", "diffusers", "--out", "d", "--license", "mit")
    for cls in (diffusers.DDIMPipeline, diffusers.DDPMPipeline, diffusers.DiffusionPipeline):
        pipeline = cls.from_pretrained("d")
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
        assert images.shape == (2, 8, 8, 3)
    card = Path("d/README.md").read_text()
    assert card.startswith('---\nlicense: "mit"\nlibrary_name: diffusers\n')
    assert str(Path.cwd()) not in card + "".join(file.read_text() for file in Path("d").rglob("*.json"))


def test_half_size_weights_are_half_as_large_and_leave_the_model_as_it_is(run: Run) -> None:
    run("train", *TRAIN, *SMALL_UNET, "--out", "r")
    for dtype in ("fp32", "bf16", "fp16"):
        run("export", "r", "--to", "diffusers", "--out", dtype, "--dtype", dtype)
    size = {
        name: Path(name, "unet/diffusion_pytorch_model.safetensors").stat().st_size for name in ("fp32", "bf16", "fp16")
    }
    assert max(size["bf16"], size["fp16"]) < 0.7 * size["fp32"]
    model = difftool.load("r")
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    Path("again").mkdir()
    to_diffusers.write(model, Path("again"), "bf16")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    half = read_folder(Path("fp16")).network.state_dict()
    assert all(torch.allclose(half[name], before[name], rtol=1e-3, atol=1e-6) for name in before)


SCHEDULERS: dict[str, Any] = {
    "DDPMScheduler": {},
    "DDIMScheduler": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "PNDMScheduler": {"beta_schedule": "scaled_linear"},
    "DPMSolverMultistepScheduler": {"beta_schedule": "squaredcos_cap_v2"},  # it writes -Infinity, which no JSON has
    "UniPCMultistepScheduler": {},
    "EulerDiscreteScheduler": {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_folder_of_each_scheduler_is_sampled_compared_and_fine_tuned(run: Run, name: str) -> None:
    saved(Path("d"), scheduler=getattr(diffusers, name)(**SCHEDULERS[name]))
    imported = run("import", "d", "--out", "m.safetensors")
    assert imported.out.strip() == "m.safetensors", imported.err
    clips = name in ("DDPMScheduler", "DDIMScheduler")
    assert difftool.load("m.safetensors").data.bounds == ((-1.0, 1.0) if clips else None)
    assert run("sample", "m.safetensors", "--sampler", "unipc", "--steps", 3, "-n", 2, "--out", "s.npy").code == 0
    assert np.isfinite(np.load("s.npy")).all()
    if name != "DDPMScheduler":
        return
    few = ("--samplers", "ddim,unipc", "--spacings", "trailing", "--calls", 3, "--reference", 5, "-n", 2)
    assert run("compare", "m.safetensors", *few, "--out", "c.png").code == 0
    Path("pictures").mkdir()
    for k in range(4):
        Image.fromarray(np.full((8, 8, 3), 60 * k, np.uint8)).save(f"pictures/{k}.png")
    line = next(line for line in imported.err.splitlines() if line.startswith("fine-tune it with: difftool "))
    words = [word.replace("FOLDER", "pictures") for word in shlex.split(line.partition("difftool ")[2])]
    trained = run(*words, *TRAIN[:6], "--out", "r")
    count = len(difftool.load("m.safetensors").network.state_dict())
    assert f"took {count} of {count} tensors from imported-diffusers-unet" in trained.err
    assert (trained.code, "warning" in trained.err) == (0, False)


def test_classes_of_imported_models_and_their_guidance(run: Run) -> None:
    saved_dit(Path("dit"))
    saved(Path("unet"), num_class_embeds=3)
    for name in ("dit", "unet"):
        assert run("import", name, "--out", f"{name}.safetensors").code == 0
    some = ("--steps", 2, "-n", 2, "--out", "s.npy", "--overwrite")
    assert run("sample", "dit.safetensors", *some, "--label", 1, "--guidance", 2).code == 0
    assert run("sample", "unet.safetensors", *some, "--label", 1).code == 0
    assert (
        "has nothing to guide away from"
        in run("sample", "unet.safetensors", *some, "--label", 1, "--guidance", 2).error
    )
    assert "--label" in run("sample", "unet.safetensors", *some, "--label", "none").error


def test_guidance_of_an_imported_transformer_is_that_of_its_null_class(tmp_path: Path) -> None:
    network, w = saved_dit(tmp_path / "d"), 3.0
    model = read_folder(tmp_path / "d")
    x = sample_noise(0, 4, (3, 8, 8), 0, "x_T")
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "d", subfolder="scheduler")
    scheduler.config.timestep_spacing = "trailing"
    label, null = torch.full((4,), 1), torch.full((4,), 3)

    def guided(x: torch.Tensor, t: torch.Tensor, **_: Any) -> Any:
        u, c = (network(x, t, class_labels=labels).sample for labels in (null, label))
        return SimpleNamespace(sample=u + w * (c - u))

    expected = trajectory(guided, scheduler, x, 10)
    found = model.sample(4, steps=10, label="1", guidance=w) / 127.5 - 1
    assert difference(found, expected) <= ROUNDED


def test_dynamic_thresholding_is_pointed_out(run: Run) -> None:
    saved(Path("d"), scheduler=diffusers.DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9))
    assert "sample with --threshold 0.9" in run("import", "d", "--out", "m.safetensors").err


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [
        component("backbone", "diffusers-unet", block_out_channels=(16, 32)),
        component("backbone", "diffusers-dit", num_layers=2),
    ],
    ids=lambda made: made.name,
)
def test_the_backbones_pass_the_laws(made: Any) -> None:
    check_component(made)


def test_the_commands_pass_the_laws() -> None:
    check_component(component("command", "export", to="diffusers", out=Path("d")))
    check_component(component("command", "import", path=Path("d")))


def test_schedules_are_recognised_and_others_written_as_betas() -> None:
    for config in SCHEDULES[:3]:
        table = table_of({"beta_schedule": "linear", **config})
        options = {key: value for key, value in table.items() if key != "name"}
        schedule: Any = component("schedule", table["name"], **options)
        written = scheduler_config(schedule.build(1000), "eps", (-1.0, 1.0))
        assert (written["beta_schedule"], written["trained_betas"]) == (config.get("beta_schedule", "linear"), None)
    laplace: Any = component("schedule", "laplace")
    written = scheduler_config(laplace.build(1000), "v", None)
    assert torch.allclose(betas_of(written), laplace.build(1000).betas)


def edit(file: str, **changes: Any) -> Any:
    def do(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return do


def pickled(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


SCHEDULER = "scheduler/scheduler_config.json"
BAD = [
    (pickled, ".bin may run code, so it is never opened"),
    (lambda d: (d / "unet/config.json").write_text("{"), "config.json cannot be read"),
    (lambda d: (d / "unet/config.json").write_text("[]"), "config.json is no JSON object"),
    (lambda d: (d / "unet/config.json").unlink(), "it has no network of diffusers"),
    (lambda d: (d / SCHEDULER).unlink(), "its noise schedule is not known"),
    (lambda d: (d / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"x"), "its network cannot be loaded"),
    (edit("unet/config.json", _class_name="UNet2DConditionModel"), "its network is 'UNet2DConditionModel'"),
    (edit("unet/config.json", block_out_channels=[8, 24]), "cannot be loaded"),
    (lambda d: saved(d, time_embedding_type="fourier"), "its network has time_embedding_type 'fourier'"),
    (
        lambda d: saved(d, dropout=0.5, num_class_embeds=2, class_embed_type="timestep"),
        "its network has class_embed_type",
    ),
    (edit("unet/config.json", sample_size=None), "give --size"),
    (edit(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"), "is of flow matching"),
    (edit(SCHEDULER, _class_name="ScoreSdeVeScheduler"), "is none of difftool's kind"),
    (edit(SCHEDULER, prediction_type="flow"), "its prediction_type is 'flow'"),
    (edit(SCHEDULER, beta_schedule="laplace"), "beta_schedule must be one of"),
    (edit(SCHEDULER, beta_start=0.5), "must rise between 0 and 1"),
    (edit(SCHEDULER, clip_sample_range="wide"), "clip_sample_range must be a number"),
    (lambda d: (d / SCHEDULER).write_text("[" * 100_000), "scheduler_config.json cannot be read"),
    (edit(SCHEDULER, num_train_timesteps=10**9), "num_train_timesteps must be"),
    (edit(SCHEDULER, trained_betas=[0.1]), "trained_betas has 1 entries for 1000"),
    (edit(SCHEDULER, trained_betas=[0.1 + 0.0001 * (k % 7) for k in range(1000)]), "trained_betas are of none"),
]


@pytest.mark.parametrize(("damage", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_folder_that_cannot_be_imported_is_refused(run: Run, damage: Any, reason: str) -> None:
    saved(Path("d"))
    damage(Path("d"))
    refused = run("import", "d", "--out", "m.safetensors")
    assert refused.code == 1
    assert reason in refused.error
    assert not Path("m.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--backbone", "unet", "--backbone.dim", 8), "the network unet is none of diffusers"),
        ((*SMALL_UNET, "--timesteps", 200), "train with --backbone.times 200"),
        ((*SMALL_UNET, "--self-condition"), "conditions on itself"),
        ((*SMALL_UNET, "--schedule", "ve"), "does not preserve variance"),
        ((*SMALL_UNET, "--prediction", "flow"), "the prediction is flow"),
        ((*SMALL_UNET, "--codec", "patch", "--codec.size", 2), "works in latents"),
    ],
)
def test_a_model_that_no_pipeline_runs_is_not_exported(run: Run, options: tuple[Any, ...], reason: str) -> None:
    assert run("train", *TRAIN, *options, "--out", "r").code == 0
    refused = run("export", "r", "--to", "diffusers", "--out", "d")
    assert (refused.code, reason in refused.error, Path("d").exists()) == (2, True, False)


def test_an_existing_folder_is_not_replaced(run: Run) -> None:
    run("train", *TRAIN, *SMALL_UNET, "--out", "r")
    Path("d").mkdir()
    refused = run("export", "r", "--to", "diffusers", "--out", "d")
    assert (refused.code, "d already exists" in refused.error) == (1, True)


def test_without_diffusers_the_install_line_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("d").mkdir()
    for module in ("import_model", "export"):
        monkeypatch.setattr(f"difftool_plugins.commands.{module}.find_spec", lambda _: None)
    assert "pip install 'difftool[diffusers]'" in run("import", "d").error


def test_a_changed_record_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    saved(folder)
    (folder / "difftool.json").write_text(json.dumps({"schedule": 3}))
    with pytest.raises(DifftoolError, match="remove it to import the rest"):
        read_folder(folder)
