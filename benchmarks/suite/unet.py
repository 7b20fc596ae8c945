"""A U-Net of ten million parameters.

Images of 3x32x32 in batches of 16, two threads. The three networks are about as large and as costly, by the notes below
the tables; diffusers' and lucidrains' run in their own loops, difftool's in its own and alone. What counts here is how
fast the arithmetic of the network runs. The last table trains difftool's in both precisions, from the same weights on
the same batches and noise; one run tells little, so the goal is the worst of the seeds in full precision.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import articles, ours, peers
from benchmarks.findings import Comparison, Effort, Findings, Table, at_least, at_most, digits
from benchmarks.measuring import Contest, Measured, Steps
from benchmarks.tutorial import EAGER
from difftool import devices
from difftool.components import Dataset
from difftool.runs.recipe import Recipe
from difftool.training.held_out import held_out_loss
from difftool.training.prepare import prepare

DIFFUSERS, LUCIDRAINS = "diffusers", "lucidrains"
BARE, LOOP = "difftool's network alone", EAGER
BARE_BF16, LOOP_BF16 = f"{BARE}, bf16", "difftool --precision bf16"
BATCH, SIZE, THREADS, TIMESTEPS = 16, 32, 2, 1000

DOCUMENT: ours.Document = {
    "dataset": {"name": "gradients", "n": 10_000, "size": (SIZE,)},
    "backbone": {"name": "unet", "dim": 64, "dim_mults": (1, 3, 4), "attention": ("none", "full", "full")},
    "optimizer": {"name": "adam"},
    "training": {"batch_size": BATCH, "threads": THREADS, "seed": 0, "held_out": 64, "lr": 1e-3, "precision": "fp32"},
}
"""As near the peers' sizes and FLOPs as our options come."""


def run(effort: Effort) -> Findings:
    made = ours.recipe(DOCUMENT)
    with devices.threads(THREADS):
        entries = contest(made)
        measured = entries.run(warmup=effort(3, 1), steps=effort(2, 1), rounds=effort(12, 2))
        tables = [speeds(measured), losses(made, steps=effort(100, 2), seeds=effort(3, 1))]
        notes = [*entries.notes, *sizes(made, entries)]
    return Findings(tables, notes)


def contest(made: Recipe) -> Contest:
    """The loops. Nobody compiles: on a CPU that takes a minute, and was measured to make this network no faster."""
    items = ours.data(made[Dataset])[:1000]
    entries, bf16 = Contest(), made.with_training(precision="bf16")
    entries.add(DIFFUSERS, partial(diffusers_loop, items), needs=("diffusers", "accelerate", "tqdm"))
    entries.add(LUCIDRAINS, partial(lucidrains_loop, items), needs=("denoising_diffusion_pytorch", "accelerate"))
    entries.add(BARE, lambda: ours.bare(made))
    entries.add(LOOP, lambda: ours.loop(made))
    entries.add(BARE_BF16, lambda: ours.bare(bf16))
    entries.add(LOOP_BF16, lambda: ours.loop(bf16))
    return entries


def speeds(measured: Measured) -> Table:
    peer = faster_of(measured, DIFFUSERS, LUCIDRAINS)
    against_peer = [Comparison(name, peer) for name in (DIFFUSERS, LUCIDRAINS, BARE) if name != peer]
    return Table(
        title="A training step on two threads",
        unit="ms a step",
        values=measured.times,
        kind="speed",
        comparisons=[
            *against_peer,
            Comparison(LOOP, peer, at_least(1.05)),
            Comparison(LOOP, BARE, at_least(0.99)),
            Comparison(LOOP_BF16, LOOP, at_least(1.3)),
            Comparison(LOOP_BF16, BARE_BF16),
            Comparison(BARE_BF16, BARE),
        ],
    )


def faster_of(measured: Measured, *names: str) -> str:
    """The one of lower median; the first where none took part."""
    present = [name for name in names if name in measured.times]
    return min(present, key=lambda name: statistics.median(measured.times[name]), default=names[0])


def losses(made: Recipe, *, steps: int, seeds: int) -> Table:
    """What both precisions have learned after as many steps."""
    values: dict[str, list[float]] = {LOOP: [], LOOP_BF16: []}
    for seed in range(seeds):
        seeded = made.with_training(seed=seed)
        values[LOOP].append(loss_after(seeded, steps))
        values[LOOP_BF16].append(loss_after(seeded.with_training(precision="bf16"), steps))
    return Table(
        title=f"Held-out loss after {steps} steps",
        unit="loss",
        values=values,
        comparisons=[
            Comparison(LOOP),
            Comparison(LOOP_BF16, None, at_most(max(values[LOOP]))),
            Comparison(LOOP_BF16, LOOP),
        ],
    )


def loss_after(made: Recipe, steps: int) -> float:
    """Of the averaged weights, the ones that are sampled; judged in full precision on images kept apart."""
    experiment = prepare(made, ours.CPU)
    loop = ours.watched(experiment)
    for _ in range(steps):
        next(loop)
    loop.close()
    assert experiment.held_out is not None
    averaged = replace(experiment.state, network=experiment.model.network)
    loss = held_out_loss(averaged, experiment.held_out, experiment.objective, batch_size=BATCH).mean
    return math.nan if loss is None else loss


# ── the networks of others, in their loops ──────────────────────────────────────────────────────


def diffusers_network() -> Any:
    peers.let_torchvision_load()
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(64, 128, 256),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def diffusers_loop(items: Tensor) -> Steps:
    network = diffusers_network()
    return articles.accelerated(network, items, TIMESTEPS, batch_size=BATCH, answer_of=lambda output: output.sample)


def lucidrains_network() -> Any:
    peers.let_torchvision_load()
    from denoising_diffusion_pytorch import Unet

    return Unet(dim=64, dim_mults=(1, 2, 4))


def lucidrains_loop(items: Tensor) -> Iterator[None]:
    """The inner loop of their Trainer (accelerate, clipping, EMA, tqdm), which itself takes only folders of images."""
    from accelerate import Accelerator
    from denoising_diffusion_pytorch import GaussianDiffusion
    from ema_pytorch import EMA
    from tqdm.auto import tqdm

    accelerator = Accelerator(cpu=True)
    diffusion = GaussianDiffusion(lucidrains_network(), image_size=SIZE, timesteps=TIMESTEPS)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10)
    batches = accelerator.prepare(articles.loader((items + 1) / 2, BATCH))
    model, optimizer = accelerator.prepare(diffusion, optimizer)
    with open(os.devnull, "w") as nowhere, tqdm(file=nowhere) as bar:
        while True:
            for images in batches:
                with accelerator.autocast():
                    loss = model(images)
                bar.set_description(f"loss: {loss.item():.4f}")
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                average.update()
                bar.update(1)
                yield


# ── how large they are ──────────────────────────────────────────────────────────────────────────


def sizes(made: Recipe, entries: Contest) -> list[str]:
    """A line for each network: parameters, and floating-point operations of forward and backward of a batch."""
    networks: dict[str, Callable[[], Any]] = {
        DIFFUSERS: diffusers_network,
        LUCIDRAINS: lucidrains_network,
        LOOP: lambda: ours.network_of(made),
    }
    return [size_line(name, network()) for name, network in networks.items() if name in entries.entries]


def size_line(name: str, network: nn.Module) -> str:
    x_t, t = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(0, TIMESTEPS, (BATCH,))
    with FlopCounterMode(display=False) as counter:
        answer = network(x_t, t)
        getattr(answer, "sample", answer).square().mean().backward()
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    return f"{name}: {digits(parameters)} M parameters, {digits(counter.get_total_flops() / 1e9)} GFLOP a step."
