"""Training and sampling on a GPU. Without one, everything here is skipped.

`make test-gpu` runs these tests, also on a machine without network: `python tests/wheels.py` packs what it lacks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import POINTS, Outcome, Run, invoke, spawn
from PIL import Image

from difftool import devices, names
from difftool.data.batches import Batches
from difftool.distributed import SINGLE
from difftool.runs.checkpoint import load
from difftool.runs.folder import RunFolder
from difftool.runs.recipe import build_recipe
from difftool.training.estimate import state_memory
from difftool.training.fake_step import fake_step
from difftool.training.loop import train
from difftool.training.prepare import prepare

CARDS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CARDS == 0, reason="there is no CUDA device here: nothing was tested"),
]

GPU = ("--device", "cuda:0")
IMAGES = (
    *("--backbone", "unet", "--dataset", "gradients", "--dataset.n", 256, "--dataset.size", 16, "--batch-size", 32),
    *("--backbone.dim", 32, "--backbone.dim-mults", "1,2", "--preview-every", 0),
)
NETWORKS = {"mlp": POINTS, "unet": IMAGES}


def done(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def weights(run: str) -> dict[str, torch.Tensor]:
    return load(Path(run) / "model.safetensors")[0]


def same(a: str, b: str) -> bool:
    """Return whether the models of two runs are equal to the last bit."""
    return all(torch.equal(tensor, weights(b)[name]) for name, tensor in weights(a).items())


def gap(a: str, b: str) -> float:
    """Return the largest difference between the weights of two runs."""
    return max(float((tensor - weights(b)[name]).abs().max()) for name, tensor in weights(a).items())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_is_repeated_and_resumed_to_the_last_bit(network: str, run: Run) -> None:
    options = NETWORKS[network]
    done(run("train", *options, *GPU, "--steps", 40, "--out", "whole"))
    done(run("train", *options, *GPU, "--steps", 40, "--out", "again"))
    done(run("train", *options, *GPU, "--steps", 20, "--out", "parts"))
    done(run("train", "--resume", "parts", "--steps", 40, *GPU))
    assert same("whole", "again")
    assert same("whole", "parts")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_precision_learns(network: str, precision: str, run: Run) -> None:
    done(run("train", *NETWORKS[network], *GPU, "--precision", precision, "--steps", 60, "--out", "run"))
    rows = RunFolder(Path("run")).read_metrics()
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert all(tensor.dtype == torch.float32 for tensor in weights("run").values())
    done(run("sample", "run", *GPU, "-n", 4, "--steps", 5, "--precision", precision, "--out", "x.npy"))
    assert np.isfinite(np.load("x.npy").astype(np.float32)).all()


def test_fp16_resumes_with_the_scale_of_its_loss(run: Run) -> None:
    done(run("train", *IMAGES, *GPU, "--precision", "fp16", "--steps", 40, "--out", "whole"))
    done(run("train", *IMAGES, *GPU, "--precision", "fp16", "--steps", 20, "--out", "parts"))
    (state,) = RunFolder(Path("parts")).saved_states()[:1]
    assert load(state)[1]["scaler"]["scale"] > 0
    done(run("train", "--resume", "parts", "--steps", 40, *GPU))
    assert same("whole", "parts")


def test_tf32_changes_only_the_last_digits(run: Run) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            done(run("train", *POINTS, *GPU, "--steps", 20, "--out", precision))
    finally:
        torch.set_float32_matmul_precision(before)
    assert gap("highest", "high") < 0.02


def test_convolutions_run_in_channels_last(tmp_path: Path) -> None:
    experiment = prepare(recipe("gradients", "unet"), devices.choose("cuda:0"))
    layouts = set()
    for module in experiment.state.network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_hook(
                lambda _, __, output: layouts.add(output.is_contiguous(memory_format=torch.channels_last))
            )
    next(steps_of(experiment))
    assert layouts == {True}


def recipe(dataset: str, backbone: str, **settings: object):
    sizes = {"n": 512, "size": 16} if dataset == "gradients" else {"n": 512}
    training = {"batch_size": 32, "steps": 1_000, **settings}
    return build_recipe({"dataset": {"name": dataset, **sizes}, "backbone": {"name": backbone}, "training": training})


def steps_of(experiment) -> Iterator[object]:
    settings = experiment.recipe.training
    batches = Batches(experiment.train, experiment.batch_size, seed=0, device=experiment.device)
    return train(experiment.state, batches, experiment.objective, settings, steps=experiment.steps)


@pytest.mark.parametrize(("dataset", "backbone"), [("swiss-roll", "mlp"), ("gradients", "unet")])
@pytest.mark.parametrize("settings", [{}, {"clip": 1.0}, {"precision": "bf16"}, {"self_condition": True}])
def test_no_step_waits_for_the_device(dataset: str, backbone: str, settings: dict[str, object]) -> None:
    """Several blocks of steps, so that batches and noise of the next block are made too."""
    steps = steps_of(prepare(recipe(dataset, backbone, **settings), devices.choose("cuda:0")))
    list(islice(steps, 3))  # the first steps choose kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(islice(steps, 40))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("network", NETWORKS)
def test_compiled_training_agrees_with_eager(network: str, run: Run) -> None:
    done(run("train", *NETWORKS[network], *GPU, "--steps", 10, "--out", "eager"))
    done(run("train", *NETWORKS[network], *GPU, "--steps", 10, "--compile", "--out", "compiled"))
    assert gap("eager", "compiled") < 1e-2
    done(run("sample", "eager", *GPU, "-n", 4, "--steps", 3, "--compile", "--out", "x.npy"))


def test_the_results_of_a_graph_last() -> None:
    """A small network's compiled step is a CUDA graph, which writes into the same memory in each step."""
    eager, compiled = (
        list(islice(steps_of(prepare(recipe("swiss-roll", "mlp", compile=chosen), devices.choose("cuda:0"))), 20))
        for chosen in (False, True)
    )
    for field in ("loss", "prediction"):
        expected, found = (torch.stack([getattr(step, field) for step in steps]) for steps in (eager, compiled))
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_too_little_memory_is_told_in_one_line(run: Run) -> None:
    outcome = run("train", *IMAGES, *GPU, "--dataset.size", 256, "--batch-size", 100_000, "--steps", 1)
    assert outcome.code == 1
    assert "out of memory" in outcome.error
    assert "--batch-size" in outcome.error
    done(run("train", *POINTS, *GPU, "--steps", 1, "--out", "after"))  # the memory is free again


def test_a_dry_run_says_the_memory_of_the_card() -> None:
    before = torch.cuda.memory_allocated()
    document = {"dataset": {"name": "gradients", "n": 256, "size": 32}, "backbone": {"name": "unet"}}
    made = prepare(build_recipe({**document, "training": {"batch_size": 256}}), torch.device("cuda:0"))
    expected = {**state_memory(made), **fake_step(made, SINGLE).peak}
    torch.cuda.reset_peak_memory_stats()
    for _ in train(made.state, made.batches(256, SINGLE), made.objective, made.recipe.training, steps=3):
        pass
    assert sum(expected.values()) == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.2)


def test_a_batch_size_is_found(run: Run) -> None:
    done(run("train", *IMAGES, "--batch-size", "auto", *GPU, "--steps", 2, "--out", "run"))
    assert RunFolder(Path("run")).read_config()["training"]["batch_size"] >= 16


@pytest.mark.parametrize("workers", [0, 2])
def test_readers_fill_pinned_memory(workers: int, run: Run) -> None:
    Path("photos").mkdir()
    for i in range(64):
        Image.new("RGB", (16, 16), (4 * i, 0, 255 - 4 * i)).save(f"photos/{i}.png")
    photos = ("--dataset", "image-folder", "--dataset.path", "photos", "--dataset.size", 16, "--dataset.memory", 0)
    options = (*IMAGES[:2], *photos, *IMAGES[10:], "--batch-size", 16, "--workers", workers)
    done(spawn("train", *options, *GPU, "--steps", 20, "--out", "read", cwd=Path.cwd()))
    done(
        run(
            "train",
            *IMAGES[:2],
            *photos[:-1],
            1,
            *IMAGES[10:],
            "--batch-size",
            16,
            *GPU,
            "--steps",
            20,
            "--out",
            "held",
        )
    )
    assert same("read", "held")


def test_two_runs_share_a_card(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "difftool", "train", *map(str, (*IMAGES, *GPU, "--steps", 20, "--out"))]
    both = [subprocess.Popen([*command, name], cwd=tmp_path, stderr=subprocess.PIPE) for name in ("a", "b")]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err.decode()
    assert same(str(tmp_path / "a"), str(tmp_path / "b"))


def test_devices_are_chosen_by_name(run: Run) -> None:
    for name in ("auto", "cuda", "cuda:0"):
        outcome = done(run("train", *POINTS, "--device", name, "--steps", 1, "--out", f"run-{name.replace(':', '-')}"))
        assert "cuda:0" in outcome.err
    for name in (f"cuda:{CARDS}", "mps"):
        outcome = run("train", *POINTS, "--device", name, "--steps", 1)
        assert outcome.code == 2
        assert "cuda:0" in outcome.error


NOTHING_TO_MOVE = {"none", "autoencoder-kl"}
"""Codecs that leave items as they are, or need a folder of weights."""


@pytest.mark.parametrize("kind", ["backbone", "codec", "sampler"])
def test_every_component_works_on_the_device(kind: str, run: Run) -> None:
    """The law of devices, which is skipped where there is no accelerator, passes for each component of the kind."""
    for name in sorted({*names(kind)} - NOTHING_TO_MOVE):
        outcome = done(run("check", name, "--json"))
        (law,) = re.findall(r'"law": "works on every device",\s+"verdict": "(\w+)"', outcome.out)
        assert law == "passed"


def test_noise_is_a_function_of_seed_and_device(run: Run) -> None:
    """The same on one card in any batch size; another draw of the same distribution than on the CPU."""
    done(run("train", *POINTS, *GPU, "--steps", 600, "--out", "run"))
    sample = ("sample", "run", "-n", 2_000, "--steps", 20, "--seed", 3)
    done(run(*sample, *GPU, "--out", "a.npy"))
    done(run(*sample, *GPU, "--batch-size", 300, "--out", "b.npy"))
    done(run(*sample, "--device", "cpu", "--out", "c.npy"))
    a, b, c = (np.load(f"{name}.npy") for name in "abc")
    assert np.abs(a - b).max() < 1e-3
    assert np.abs(a - c).max() > 0.1
    assert np.abs(a.mean(0) - c.mean(0)).max() < 0.1
    assert np.abs(a.std(0) - c.std(0)).max() < 0.1


@pytest.mark.skipif(CARDS < 2, reason="one card alone cannot show NCCL")
def test_two_cards_train_one_model(tmp_path: Path) -> None:
    options = tuple(map(str, (*IMAGES, "--steps", 20, "--out")))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*torchrun, "-m", "difftool", "train", *options, "two"], cwd=tmp_path, check=True, env={**os.environ}
    )
    outcome = invoke("train", *options, tmp_path / "one", *GPU)
    assert outcome.code == 0, outcome.err
    assert gap(str(tmp_path / "one"), str(tmp_path / "two")) < 1e-3


@pytest.mark.skipif(CARDS < 2, reason="takes two GPUs")
@pytest.mark.parametrize("name", NETWORKS)
def test_two_gpus_with_parts_make_the_model_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And go on exactly, from parts in the memory of their hosts."""
    monkeypatch.chdir(tmp_path)
    words = ("train", *NETWORKS[name], "--clip", 0.5, "--checkpoint-every", 4)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for arguments in ((*words, "--steps", 8, "--shard", "--out", "two"), ("train", "--resume", "two", "--steps", 12)):
        subprocess.run([*torchrun, "-m", "difftool", *map(str, arguments)], check=True)
    done(invoke(*words, *GPU, "--steps", 12, "--out", "one"))
    assert gap("two", "one") <= 1e-4
    assert RunFolder(Path("two")).saved_states()[0].is_dir()
