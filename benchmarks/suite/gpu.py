"""On a GPU.

U-Nets of 10 and 60 million parameters and a diffusion transformer, each trained in difftool's loop and alone, in the
precisions and compiled, beside diffusers' network of about as many parameters in the loop of its tutorials. Then a
tutorial's small network, where a step launches more kernels than it computes: eagerly, compiled, and as one CUDA graph.
Then 10,000 images by DDIM with 50 steps. All run on one card, by turns. The notes hold its name, the memory that each
takes, and the share of the card's bf16 speed, measured on a matrix product, that each training reaches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import articles, ours, peers, tutorial
from benchmarks.findings import Comparison, Effort, Findings, Table, at_least, digits
from benchmarks.measuring import Contest, Steps
from benchmarks.suite import points
from difftool.components import Dataset
from difftool.options import make
from difftool.runs.recipe import Recipe
from difftool.sampling.loop import draw
from difftool.sampling.plan import Plan
from difftool.settings import Sampling
from difftool.training.prepare import prepare

TIMESTEPS, IMAGES = 1000, 4096
DIFFUSERS, DIFFUSERS_BF16 = "diffusers and accelerate", "diffusers and accelerate, bf16"
DIFFUSERS_COMPILED = f"{DIFFUSERS_BF16}, compiled"
LOOP, LOOP_BF16, LOOP_COMPILED = "difftool", "difftool --precision bf16", "difftool --precision bf16 --compile"
PIPELINE, PIPELINE_FP16, LOOP_FP16 = (
    "diffusers' DDIMPipeline",
    "diffusers' DDIMPipeline, fp16",
    "difftool --precision fp16",
)
BARE_BF16, BARE_COMPILED = "its network alone, bf16", "its network alone, bf16, compiled"
GRAPH = "the network alone, as a CUDA graph"
NEEDS = ("diffusers", "accelerate", "tqdm")
DIT = Path(__file__).resolve().parents[2] / "examples/plugins/difftool-dit/src"


@dataclass(frozen=True)
class Case:
    """A network of ours, and diffusers' network of about its size."""

    title: str
    size: int
    batch: int
    backbone: dict[str, object]
    peer: Callable[[int], Any]
    """From the side of an image in pixels."""


def unet_of(*channels: int) -> Callable[[int], Any]:
    """Return a function that builds diffusers' U-Net with these channels, and attention in its last two stages."""

    def build(size: int) -> Any:
        from diffusers import UNet2DModel

        plain, attentive = len(channels) - 2, 2
        return UNet2DModel(
            sample_size=size,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attentive,
            up_block_types=("AttnUpBlock2D",) * attentive + ("UpBlock2D",) * plain,
        )

    return build


def transformer(size: int) -> Any:
    """Build diffusers' diffusion transformer as difftool's example has it."""
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=64,
        num_layers=12,
        sample_size=size,
        patch_size=2,
        in_channels=3,
        out_channels=3,
        num_embeds_ada_norm=1,
    )


CASES = (
    Case(
        "U-Net of 10 M parameters, 3x32x32, batches of 128",
        32,
        128,
        {"name": "unet", "dim": 64, "dim_mults": (1, 3, 4), "attention": ("none", "full", "full")},
        unet_of(64, 128, 256),
    ),
    Case(
        "U-Net of 60 M parameters, 3x64x64, batches of 64",
        64,
        64,
        {"name": "unet", "dim": 128, "dim_mults": (1, 2, 3, 5), "attention": ("none", "none", "full", "full")},
        unet_of(128, 256, 384, 512),
    ),
    Case(
        "Transformer, 3x32x32 in patches of 2, batches of 128",
        32,
        128,
        {"name": "dit", "dim": 384, "depth": 12, "heads": 6},
        transformer,
    ),
)


def run(effort: Effort) -> Findings:
    if not torch.cuda.is_available():
        return Findings([], ["There is no CUDA device here: nothing was measured."])
    device = torch.device("cuda:0")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # for all alike
    peak = matmul_flops(device)
    notes = [f"{torch.cuda.get_device_name(device)}: {peak / 1e12:.0f} TFLOP/s in a bf16 product of 8192 x 8192."]
    tables = []
    for case in CASES:
        table, lines = training(case, device, effort, peak)
        tables.append(table)
        notes += lines
    tables.append(small(device, effort))
    tables.append(sampling(device, effort))
    return Findings(tables, notes)


def matmul_flops(device: torch.device, n: int = 8192, times: int = 20) -> float:
    """Return the floating-point operations a second of a bf16 matrix product."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    a @ b
    start.record()
    for _ in range(times):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return float(2 * n**3 * times / (start.elapsed_time(end) / 1e3))


# --- training -------------------------------------------------------------------------------------------------------


def recipe(case: Case) -> Recipe:
    """Return the recipe of a case. The transformer is an example of the checkout, and need not be installed."""
    document: ours.Document = {
        "dataset": {"name": "gradients", "n": IMAGES, "size": (case.size,)},
        "training": {"batch_size": case.batch, "seed": 0},
    }
    if case.backbone["name"] != "dit":
        return ours.recipe({**document, "backbone": case.backbone})
    sys.path.insert(0, str(DIT))
    options = {name: value for name, value in case.backbone.items() if name != "name"}
    return ours.recipe(document, parts={"backbone": make(import_module("difftool_dit").DiT, options)})


def training(case: Case, device: torch.device, effort: Effort, peak: float) -> tuple[Table, list[str]]:
    """Measure one training step of everybody, one contender after the other in every round."""
    made, entries = recipe(case), Contest()
    items = ours.data(made[Dataset])
    bf16 = made.with_training(precision="bf16")
    compiled = bf16.with_training(compile=True)

    def theirs(*, bf16: bool = False, compiled: bool = False) -> Steps:
        peers.let_torchvision_load()
        network = Plain(case.peer(case.size), bf16)
        return articles.accelerated(network, items, TIMESTEPS, batch_size=case.batch, cpu=False, compiled=compiled)

    entries.add(DIFFUSERS, theirs, needs=NEEDS)
    entries.add(DIFFUSERS_BF16, partial(theirs, bf16=True), needs=NEEDS)
    entries.add(LOOP, lambda: ours.loop(made, device))
    entries.add(LOOP_BF16, lambda: ours.loop(bf16, device))
    entries.add(BARE_BF16, lambda: ours.bare(bf16, device))
    if not effort.quick:
        entries.add(DIFFUSERS_COMPILED, partial(theirs, bf16=True, compiled=True), needs=NEEDS)
        entries.add(LOOP_COMPILED, lambda: ours.loop(compiled, device))
        entries.add(BARE_COMPILED, lambda: ours.bare(compiled, device))
    memory: dict[str, float] = {}
    entries.entries = {name: partial(weighed, name, start, memory) for name, start in entries.entries.items()}
    measured = entries.run(warmup=3, steps=effort(10, 2), rounds=effort(5, 2), wait=torch.cuda.synchronize)
    table = Table(
        title=case.title,
        unit="ms a step",
        values=measured.times,
        kind="speed",
        comparisons=[
            Comparison(LOOP, DIFFUSERS, at_least(1.5)),
            Comparison(LOOP_BF16, DIFFUSERS_BF16, at_least(1.5)),
            Comparison(LOOP_COMPILED, DIFFUSERS_COMPILED, at_least(1.5)),
            Comparison(LOOP_BF16, BARE_BF16),
            Comparison(LOOP_COMPILED, BARE_COMPILED, at_least(0.97)),
        ],
    )
    flops = step_flops(ours.network_of(made), case)
    lines = [f"{case.title}: {digits(flops / 1e9)} GFLOP a step of difftool's network."]
    for name, values in measured.times.items():
        share = (
            f", {flops / min(values) / peak:.0%} of the card's bf16 speed" if name in (LOOP_BF16, LOOP_COMPILED) else ""
        )
        lines.append(f"{case.title}, {name}: {digits(memory[name])} MiB at most while it warms up{share}.")
    return table, [*entries.notes, *lines]


class Plain(nn.Module):
    """A network of diffusers, called with x_t and t alone, and perhaps in bf16.

    One that needs a class gets the same for all items. Two Accelerators of one process cannot differ in precision, so
    autocast is applied here, as accelerate would.
    """

    def __init__(self, network: nn.Module, bf16: bool) -> None:
        super().__init__()
        self.network, self.bf16, self.needs_class = network, bf16, "DiT" in type(network).__name__

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            output = self.network(x, t, torch.zeros_like(t)) if self.needs_class else self.network(x, t)
        sample: Tensor = output.sample
        return sample.float()


def weighed(name: str, start: Callable[[], Steps], memory: dict[str, float]) -> Iterator[object]:
    """Build a contender, and note the most memory that it takes in its first three steps, beside that of the others."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for number, step in enumerate(start()):
        if number == 2:
            memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        yield step


def step_flops(network: nn.Module, case: Case) -> float:
    """Return the floating-point operations of forward and backward of a batch, counted on the meta device."""
    network = network.to("meta")
    x = torch.empty(case.batch, 3, case.size, case.size, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(x, torch.empty(case.batch, device="meta")).square().mean().backward()
    return float(counter.get_total_flops())


# --- a small network ------------------------------------------------------------------------------------------------


def small(device: torch.device, effort: Effort) -> Table:
    """Measure a step of a tutorial's network on points, where launching kernels takes the time."""
    made, entries = ours.recipe(points.DOCUMENT), Contest()
    items = ours.data(made[Dataset])
    network = partial(articles.PlainTime, tuple(items.shape[1:]), depth=4)
    entries.add(
        tutorial.ARTICLE,
        lambda: articles.article(network(), items, made.training.timesteps, device=device),
        needs=("tqdm",),
    )
    entries.add(tutorial.BARE, lambda: ours.bare(made, device))
    entries.add(tutorial.EAGER, lambda: ours.loop(made, device))
    entries.add(tutorial.COMPILED, lambda: ours.loop(made.with_training(compile=True), device))
    entries.add(GRAPH, lambda: graphed(made, device))
    measured = entries.run(
        warmup=effort(60, 20), steps=effort(500, 20), rounds=effort(9, 2), wait=torch.cuda.synchronize
    )
    return Table(
        title="A small network on points",
        unit="us a step",
        values=measured.times,
        kind="speed",
        comparisons=[
            Comparison(tutorial.EAGER, tutorial.ARTICLE),
            Comparison(tutorial.EAGER, tutorial.BARE),
            Comparison(tutorial.COMPILED, tutorial.EAGER, at_least(5.0)),
            Comparison(GRAPH, tutorial.EAGER),
        ],
    )


def graphed(made: Recipe, device: torch.device) -> Iterator[None]:
    """Replay a training step of the network alone, captured as one CUDA graph: the most that graphs could give."""
    experiment = prepare(made, device)
    network = experiment.state.network.train()
    x_t, t, eps = ours.batch_of(experiment, experiment.batch_size)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True, capturable=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(network(x_t, t), eps).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # memory and kernels are chosen before the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    while True:
        graph.replay()
        yield


# --- sampling -------------------------------------------------------------------------------------------------------


def sampling(device: torch.device, effort: Effort) -> Table:
    """Measure drawing images by DDIM with 50 steps, with the untrained U-Nets of the first case."""
    case, count = CASES[0], effort(10_000, 64)
    model = prepare(recipe(case), device).model.to(device)
    entries = Contest()
    batch = min(count, 1_000)

    def own(precision: str) -> Iterator[None]:
        settings = Sampling(steps=50, num_samples=count, batch_size=batch, precision=precision)  # type: ignore[arg-type]
        while True:
            draw(model, Plan.of(model, settings, sampler="ddim"))
            yield

    def theirs(dtype: torch.dtype) -> Iterator[None]:
        peers.let_torchvision_load()
        from diffusers import DDIMPipeline, DDIMScheduler

        network = case.peer(case.size).to(device, dtype)
        pipeline = DDIMPipeline(network, DDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        while True:
            for start in range(0, count, batch):
                pipeline(batch_size=min(batch, count - start), num_inference_steps=50, output_type="np")
            yield

    entries.add(PIPELINE, partial(theirs, torch.float32), needs=("diffusers",))
    entries.add(PIPELINE_FP16, partial(theirs, torch.float16), needs=("diffusers",))
    entries.add(LOOP, partial(own, "fp32"))
    entries.add(LOOP_FP16, partial(own, "fp16"))
    measured = entries.run(warmup=0, steps=1, rounds=effort(2, 1), wait=torch.cuda.synchronize)
    return Table(
        title=f"{count:,} images of 3x32x32 by DDIM with 50 steps",
        unit="s",
        values=measured.times,
        kind="speed",
        comparisons=[
            Comparison(LOOP, PIPELINE, at_least(2.0)),
            Comparison(LOOP_FP16, PIPELINE_FP16, at_least(2.0)),
        ],
    )
