"""Training and sampling on devices that hold no numbers, where a host tensor or a wait for a number fails.

A training step runs on the meta device, and a sampler on fake CUDA tensors. Both work without a GPU. A step that mixes
devices, or asks for a number that only the device has, fails there as it would fail, or wait, on a GPU.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paper_losses
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import difftool
import difftool_plugins
from difftool import Condition, ConditionSpec, Denoise, GuidanceSpec, ObjectiveSpec, component, names
from difftool.data.batches import Batch
from difftool.data.facts import DataFacts
from difftool.data.latents import LatentSpace
from difftool.data.scaling import Scaling
from difftool.options import make
from difftool.plugins.build import build_codec, build_network, build_schedule
from difftool.sampling.denoiser import Denoiser, clipped
from difftool.settings import Training
from difftool.training.auxiliary import build_auxiliary
from difftool.training.latents import encoder
from difftool.training.loss import Objective
from difftool.training.state import TrainState
from difftool.training.step import StepResult, make_step
from difftool_plugins.datasets.columns.conditions import function_of

META = torch.device("meta")
T, BATCH = 100, 8
SHAPES = {"mlp": (2,), "unet": (3, 16, 16)}


def step_on_meta(
    backbone: str = "mlp",
    *,
    options: dict[str, Any] | None = None,
    prediction: str = "eps",
    weighting: str = "none",
    loss: difftool.Loss | None = None,
    optimizer: str = "adam",
    optimizer_options: dict[str, Any] | None = None,
    classes: int = 0,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    **settings: Any,
) -> StepResult:
    """Make one training step on the meta device: forward, backward, optimizer, average."""
    training = make(Training, {"timesteps": T, "batch_size": BATCH, **settings})
    shape = SHAPES[backbone]
    data = DataFacts(shape=shape, bounds=(-1.0, 1.0), class_names=tuple(map(str, range(classes))))
    with META:
        network = wrap(build_network(component("backbone", backbone, **(options or {})), data, training))
    kind = component("prediction", prediction)
    objective = Objective(
        ObjectiveSpec(schedule=build_schedule(component("schedule", "linear"), T, kind)),
        kind,
        component("weighting", weighting),
        component("timestep-sampling", "uniform"),
        loss or component("loss", "mse"),
        device=META,
        self_condition=training.self_condition,
        learn_variance=training.learn_variance,
        data=data,
    )
    chosen = component("optimizer", optimizer, **(optimizer_options or {}))
    auxiliary = build_auxiliary(network, objective, 0)
    state = TrainState.new(network, training, META, optimizer=chosen, auxiliary=auxiliary)
    x_0 = torch.empty(BATCH, *shape, device=META)
    t = torch.empty(BATCH, dtype=torch.int64, device=META)
    cond = Condition(label=t, hidden=torch.empty(BATCH, dtype=torch.bool, device=META)) if classes else None
    inputs = objective.inputs(x_0, torch.empty_like(x_0), t, cond)
    return make_step(state, objective, training, 10)(inputs, 1e-3, training.self_condition)


PAPERS = [paper_losses.Consistency(), paper_losses.LearntUncertainty(), paper_losses.Masked()]
ATTENTION = {"dim": 16, "dim_mults": (1, 2), "groups": 8}
STEPS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "mlp, joined to one vector, clipped": {"clip": 1.0},
    "mlp with classes": {"classes": 3},
    "unet": {"backbone": "unet"},
    "unet with classes": {"backbone": "unet", "classes": 3},
    "unet, checkpointed": {"backbone": "unet", "checkpoint_activations": True},
    "unet, unshuffled": {"backbone": "unet", "options": {**ATTENTION, "downsample": "unshuffle"}},
    "unet, learned variance": {"backbone": "unet", "learn_variance": True},
    "self-conditioning": {"self_condition": True},
    "accumulated": {"accumulate": 2},
    "no average": {"ema": 0.0},
    "several averages": {"ema": (0.999, 0.9999), "ema_lengths": (0.05, 0.1)},
    **{f"loss {name}": {"loss": component("loss", name)} for name in names("loss")},
    **{f"loss {name}, weighted": {"loss": component("loss", name), "weighting": "min-snr"} for name in names("loss")},
    **{f"optimizer {name}": {"optimizer": name} for name in names("optimizer")},
    **{f"optimizer {name} of a unet": {"optimizer": name, "backbone": "unet"} for name in names("optimizer")},
    "nesterov": {"optimizer": "sgd", "optimizer_options": {"nesterov": True, "weight_decay": 0.1}},
    **{f"loss of a paper, {loss.name}": {"loss": loss} for loss in PAPERS},
    "loss of a paper, self-conditioned, in parts": {"loss": PAPERS[0], "self_condition": True, "accumulate": 2},
    **{f"prediction {name}": {"prediction": name} for name in names("prediction")},
    **{f"weighting {name}": {"weighting": name} for name in names("weighting")},
}


@pytest.mark.parametrize("what", STEPS)
def test_a_training_step_stays_on_the_device(what: str) -> None:
    result = step_on_meta(**STEPS[what])
    assert {result.loss.device, result.grad_norm.device, result.finite.device} == {META}
    assert result.step == 1


IMAGES = {"gray": (1, 8, 8), "shrink:4": (3, 8, 8), "mask": (4, 8, 8)}


@pytest.mark.parametrize("word", IMAGES)
def test_condition_images_are_computed_on_the_device(word: str) -> None:
    items = torch.empty(BATCH, 3, 8, 8, dtype=torch.uint8, device=META)
    no_generator: Any = None  # the meta device has none
    images = function_of(word)(items, no_generator)
    assert (images.device, images.shape[1:], images.dtype) == (META, IMAGES[word], torch.uint8)


def test_conditions_get_their_units_on_the_device() -> None:
    spec = ConditionSpec(vector=2, image=(3, 8, 8), tokens=(4, 5))
    data = DataFacts(shape=(3, 8, 8), condition=spec, vector_shift=(1e9, 0.0), vector_scale=(1.0, 2.0))
    raw = {name: torch.empty(BATCH, *shape, device=META).double() for name, shape in spec.shapes.items()}
    raw["image"] = raw["image"].to(torch.uint8)
    cond = data.model_condition(Condition.shown(raw))
    assert cond is not None
    hidden = cond.hide(torch.empty(BATCH, device=META) < 0.1)
    for name, tensor in hidden.tensors().items():
        assert (tensor.device, tensor.dtype) == (META, torch.bool if name == "hidden" else torch.float32)


class Planted(nn.Module):
    """A network with a fault that only a GPU would show."""

    def __init__(self, network: nn.Module, fault: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.fault = network, fault

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.network(self.fault(x), t, cond)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "item": lambda x: x * x.abs().max().item(),
    "float": lambda x: x / float(x.detach().std()),
    "branch": lambda x: x if x.isfinite().all() else torch.zeros_like(x),
    "host tensor": lambda x: x + torch.ones(2),
    "host index": lambda x: torch.where(torch.zeros(2, dtype=torch.bool), x, 2 * x),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_in_a_network_fails_on_the_meta_device(fault: str) -> None:
    with pytest.raises((RuntimeError, NotImplementedError, difftool.DifftoolError)):
        step_on_meta(wrap=lambda network: Planted(network, FAULTS[fault]))


class PlantedLoss(difftool.Loss, name="planted"):
    """The squared error, with a fault that only a GPU would show."""

    fault: str = ""

    def loss(self, predict: difftool.Predict, batch: difftool.TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        error = predict(batch.x_t, batch.t, batch.cond) - batch.target
        return FAULTS[self.fault](error).square().mean(1)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_in_a_loss_fails_on_the_meta_device(fault: str) -> None:
    with pytest.raises(difftool.DifftoolError, match="loss planted"):
        step_on_meta(loss=PlantedLoss(fault=fault))


GUIDANCES: dict[str, dict[str, Any]] = {
    "cfg": {"rescale": 0.5},
    "autoguidance": {"run": Path("worse")},
    "apg": {"norm": 1.0, "parallel": 0.5},
}
"""The built-in guidances, with options under which they do all that they can."""


def sample_on_fake_cuda(sampler: str, fault: Callable[[Tensor], Tensor] = lambda x: x, *, guidance: str = "cfg") -> int:
    """Sample with fake CUDA tensors, guided and clipped, and return the number of steps."""
    kind = component("prediction", "eps")
    schedule = build_schedule(component("schedule", "linear"), T, kind)
    levels = component("spacing", "trailing").levels(schedule, 5)
    steps = 0
    with FakeTensorMode(), torch.no_grad():

        def network(x: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
            # a network of the built-ins would index its times, which needs a CUDA build even on fake tensors
            return fault(x) * t.view(-1, 1)

        spec = ObjectiveSpec(schedule=schedule)
        label = torch.zeros(BATCH, dtype=torch.int64, device="cuda")
        cond = Condition(label=label, hidden=label.bool())
        guide = component("guidance", guidance, scale=2.0, **GUIDANCES[guidance])
        samples = GuidanceSpec(
            shape=(2,),
            schedule=schedule,
            is_image=True,
            condition=cond,
            count=BATCH,
            decode=lambda x: x,
            scaling=Scaling((0.0,), (1.0,)),
            device=torch.device("cuda"),
        )

        def predict(*, hidden: bool = False, **_: object) -> Denoise:
            return Denoiser(network, kind, spec, cond=None if hidden else cond)

        denoise = clipped(guide.denoiser(predict, samples), (-1.0, 1.0))
        x = torch.empty(BATCH, 2, device="cuda")
        for step in component("sampler", sampler).sample(denoise, x, levels, lambda _: torch.empty_like(x)):
            assert step.x.device == x.device
            steps += 1
    return steps


@pytest.mark.parametrize("sampler", names("sampler"))
def test_a_sampler_stays_on_the_device(sampler: str) -> None:
    assert sample_on_fake_cuda(sampler) > 0


@pytest.mark.parametrize("guidance", names("guidance"))
def test_a_guidance_stays_on_the_device(guidance: str) -> None:
    assert sample_on_fake_cuda("ddim", guidance=guidance) > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_in_a_network_fails_on_fake_cuda(fault: str) -> None:
    with pytest.raises(difftool.DifftoolError, match=r"DataDependent|DeviceMismatch|cuda"):
        sample_on_fake_cuda("ddim", FAULTS[fault])


# --- codecs ----------------------------------------------------------------------------------------------------------


def encode_on_meta(codec: str, fault: Callable[[Tensor], Tensor] = lambda x: x) -> Batch:
    """Encode a batch as a step does where items are augmented, and decode the latents."""
    data = DataFacts(shape=(3, 16, 16), shift=(127.5,), scale=(127.5,), bounds=(-1.0, 1.0), form="image")
    with META:
        module = build_codec(component("codec", codec), data.shape)
    assert module is not None
    shape = tuple(module.encode(torch.empty(1, 3, 16, 16, device=META)).shape[1:])  # type: ignore[operator]
    space = LatentSpace(module, data, DataFacts(shape=shape, shift=(0.5,) * shape[0], scale=(2.0,)), f"codec {codec}")
    pixels = torch.empty(BATCH, 3, 16, 16, dtype=torch.uint8, device=META)
    batch = encoder(space)(Batch(fault(pixels), None))
    assert batch.items.shape == (BATCH, *shape)
    assert space.decode(batch.items).shape == (BATCH, *data.shape)
    return batch


@pytest.mark.parametrize("codec", sorted({*names("codec")} - {"none", "autoencoder-kl"}))
def test_a_batch_is_encoded_on_the_device(codec: str) -> None:
    assert encode_on_meta(codec).items.device == META


@pytest.mark.parametrize("fault", ["item", "branch"])
def test_a_fault_planted_before_a_codec_fails_on_the_meta_device(fault: str) -> None:
    with pytest.raises((RuntimeError, NotImplementedError, difftool.DifftoolError)):
        encode_on_meta("pca", lambda x: FAULTS[fault](x.float()))


# --- what a step and a sampler ask of the host -----------------------------------------------------------------------

CORE, PLUGINS = Path(difftool.__file__).parent, Path(difftool_plugins.__file__).parent
FILES = [
    *(
        CORE / "training" / f"{name}.py"
        for name in (
            "step",
            "inputs",
            "batch",
            "minimise",
            "loss",
            "optimizer",
            "fused_adam",
            "rate",
            "vectors",
            "ema",
            "loop",
        )
    ),
    *(CORE / "sampling" / f"{name}.py" for name in ("denoiser", "matching", "predictions", "loop")),
    *(CORE / "diffusion" / f"{name}.py" for name in ("estimate", "forward", "self_conditioning", "variance")),
    *(CORE / "data" / f"{name}.py" for name in ("batches", "latents")),
    PLUGINS / "codecs" / "patches.py",
    PLUGINS / "codecs" / "diffusers_kl.py",
    *sorted((PLUGINS / "samplers").glob("*.py")),
    *sorted((PLUGINS / "guidances").glob("*.py")),
    PLUGINS / "optimizers" / "updates.py",
    *sorted((PLUGINS / "backbones" / "networks").glob("*.py")),
]
METHODS, FUNCTIONS = {"to", "cpu", "item", "tolist", "numpy"}, {"float", "int", "bool"}
ONCE = "before the first step, from tables on the CPU"
DTYPE = "a change of dtype on the same device"
HARMLESS = {
    "loss.Objective.__init__": ONCE,
    "loss.Objective.__init__.table": ONCE,
    "loss.Table.of": ONCE,
    "loss.distribution": ONCE,
    "variance.VarianceBound.__init__": ONCE,
    "optimizer.Updater.update": "for optimizers that cannot mask a step, of which no built-in is one",
    "updates.orthogonalized": "to another number format, not to another device",
    "optimizer.made_step": "when a state is saved",
    "optimizer.Updater.load": "when a state is loaded",
    "rate.factor_of": "of a Python number",
    "step.compiled_backward.backward": "in the first step alone",
    "loop.check_finite": "when metrics are logged or a state is saved, for all steps since then at once",
    "loop.slerp": "once for --interpolate, before the first step",
    "batches.Batches._from_memory": "once a block of steps, from pinned memory, without a wait",
    "batches.Batches._from_source": "of indices on the CPU",
    "batches.Batches._own_draws": "of indices on the CPU",
    "batches._on_device": "rows come from pinned memory, without a wait; float64 for Apple GPUs alone",
    "latents.check_latents": "when latents are measured, and when they are made before the first step",
    "latents.latent_facts": "when a run begins",
    "latents._deviation": "when a run begins",
    "patches.PrincipalComponents.__init__": "when the codec is built",
    "patches.PrincipalComponents.error": "when a run begins",
    "patches.PrincipalComponents.fit": "when a run begins",
    "forward.moments": "for `noise --iterative` alone",
    "denoiser.Denoiser._estimate": DTYPE,
    "matching.matched": "once a batch, before the first step",
    "predictions.BatchPredictions.__init__": "once a batch, before the first step",
    "cross_attention.Context.forward": DTYPE,
    "embeddings.Embedding.forward": DTYPE,
    "embeddings.VectorEmbedding.forward": DTYPE,
    "mlp.MLPNetwork.columns": DTYPE,
    "unet.Block.modulate": DTYPE,
}
"""Each function that copies to or from the host, or asks for a number, and why a GPU does not wait for it in a step."""


def calls_of(node: ast.AST, name: str) -> Iterator[str]:
    """Yield the name of the function around each call that a GPU might wait for."""
    for child in ast.iter_child_nodes(node):
        inner = f"{name}.{child.name}" if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else name
        if isinstance(child, ast.Call):
            function = ast.unparse(child.func)
            plain = function in FUNCTIONS and child.args and not isinstance(child.args[0], ast.Constant)
            made = function in ("torch.tensor", "torch.as_tensor")
            if plain or made or (isinstance(child.func, ast.Attribute) and child.func.attr in METHODS):
                yield name
        yield from calls_of(child, inner)


def test_each_copy_and_each_number_from_the_device_is_known() -> None:
    found = {name for path in FILES for name in calls_of(ast.parse(path.read_text(encoding="utf-8")), path.stem)}
    assert found - HARMLESS.keys() == set(), "say in HARMLESS why no step waits for it, or make it on the device"
    assert HARMLESS.keys() - found == set(), "these are gone"


COMPILER = """
import sys
from difftool.testing import invoke

done = invoke("sample", sys.argv[1], "-n", "4", "--steps", "1", "--out", "x.npy")
assert done.code == 0, done.err
sys.exit("torch._dynamo" in sys.modules)
"""


def test_a_model_is_loaded_without_the_compiler(labels_run: Path, tmp_path: Path) -> None:
    """Its weights are compared on the meta device first, where torch fills an embedding by code that imports it."""
    code = [sys.executable, "-c", COMPILER, labels_run]
    assert subprocess.run(code, cwd=tmp_path, check=False).returncode == 0
