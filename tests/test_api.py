"""The Python door: the same path as the command line."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import POINTS, Run, tree
from torch import Tensor

import difftool
from difftool import Denoise, DifftoolError, Level, Sampler, Step, option
from difftool.errors import InvalidOption, UsageError


class Careful(Sampler, name="careful"):
    """DDIM without noise, written anew and never registered."""

    shrink: float = option(default=1.0, gt=0, le=1, help="factor on x_0")

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = s.alpha * self.shrink * estimate.x_0 + s.sigma * estimate.eps
            yield Step(x, s, estimate)


def test_samples_are_those_of_the_command_line(run: Run, points_run: Path, tmp_path: Path) -> None:
    assert run("sample", points_run, "-n", 50, "--steps", 5, "--seed", 3, "--out", "x.npy").code == 0
    drawn = difftool.load(points_run, device="cpu").sample(50, steps=5, seed=3)
    assert drawn.shape == (50, 2)
    assert np.allclose(np.load(tmp_path / "x.npy"), drawn.numpy(), atol=1e-6)


def test_samplers_of_ones_own_need_no_registration(points_run: Path) -> None:
    model = difftool.load(str(points_run / "model.safetensors"))
    ddim = model.sample(20, sampler="ddim", steps=6)
    assert torch.allclose(model.sample(20, sampler=Careful(), steps=6), ddim, atol=1e-6)
    assert not torch.allclose(model.sample(20, sampler=Careful(shrink=0.5), steps=6), ddim, atol=1e-2)
    eta = difftool.component("sampler", "ddim", eta=1.0)
    assert isinstance(eta, Sampler)
    assert not torch.allclose(model.sample(20, sampler=eta, steps=6), ddim, atol=1e-2)


def test_a_sampler_that_loses_a_step_is_told(points_run: Path) -> None:
    class Short(Careful, name="short"):
        def sample(self, denoise, x, levels, noise):  # type: ignore[no-untyped-def]
            yield from list(super().sample(denoise, x, levels, noise))[:-1]

    with pytest.raises(DifftoolError, match="sampler short made 2 steps of 3"):
        difftool.load(points_run).sample(4, sampler=Short(), steps=3)


@pytest.mark.parametrize(
    ("arguments", "error", "piece"),
    [
        ({"sampler": "nope"}, UsageError, "unknown sampler 'nope'"),
        ({"steps": 1001}, UsageError, "1001 is more than the schedule's 1000 levels"),
        ({"steps": 0}, InvalidOption, "steps: must be greater than or equal to 1"),
        ({"n": 0}, InvalidOption, "num_samples: must be greater than or equal to 1"),
        ({"label": 1}, UsageError, "swiss-roll-mlp has no classes"),
        ({"guidance": 2.0}, UsageError, "swiss-roll-mlp has no classes"),
    ],
)
def test_what_cannot_be_sampled_is_told(
    points_run: Path, arguments: dict[str, object], error: type[Exception], piece: str
) -> None:
    with pytest.raises(error, match=piece):
        difftool.load(points_run).sample(**arguments)  # type: ignore[arg-type]


def test_labels_by_name_and_index_choose_their_class(labels_run: Path) -> None:
    model = difftool.load(labels_run)
    east, west = model.sample(200, label=0, steps=10), model.sample(200, label="2", steps=10)
    assert torch.equal(east, model.sample(200, label="0", steps=10))
    assert float(east[:, 0].mean()) > 0.5
    assert float(west[:, 0].mean()) < -0.5
    with pytest.raises(UsageError, match="there is no class '4'"):
        model.sample(2, label=4)


def test_training_is_that_of_the_command_line(points_run: Path, tmp_path: Path) -> None:
    model = difftool.train(
        dataset=difftool.component("dataset", "swiss-roll", n=500),  # type: ignore[arg-type]
        backbone=difftool.component("backbone", "mlp", width=16, depth=1),  # type: ignore[arg-type]
        batch_size=64,
        steps=30,
        preview_every="0",
        out=tmp_path / "run",
        device="cpu",
    )
    assert model.source == tmp_path / "run" / "model.safetensors"
    assert model.source.read_bytes() == (points_run / "model.safetensors").read_bytes()
    assert torch.equal(model.sample(5, steps=3), difftool.load(points_run).sample(5, steps=3))


def test_training_refuses_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidOption, match="stepz: there is no such option; did you mean 'steps'"):
        difftool.train(stepz=3)
    with pytest.raises(InvalidOption, match="lr: must be a finite number"):
        difftool.train(lr=float("nan"))
    with pytest.raises(UsageError, match="unknown dataset 'nope'"):
        difftool.train(dataset="nope")
    with pytest.raises(UsageError, match="banana"):
        difftool.train(device="banana", steps=1, out=tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(DifftoolError, match="full"):
            difftool.train(steps=1, out=tmp_path / "full", overwrite=overwrite)
    assert tree(tmp_path) == {"full/mine.txt": b"x"}


def test_a_model_survives_a_copy_of_its_file(points_run: Path, tmp_path: Path) -> None:
    shutil.copy(points_run / "model.safetensors", tmp_path / "lone.safetensors")
    a, b = difftool.load(points_run), difftool.load(tmp_path / "lone.safetensors")
    assert torch.equal(a.sample(5, steps=3), b.sample(5, steps=3))
    b.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (points_run / "model.safetensors").read_bytes()
    assert (a.step, a.weights, a.recipe.name) == (30, "ema-0.999", "swiss-roll-mlp")


def test_the_run_of_the_command_line_can_be_loaded(run: Run) -> None:
    outcome = run("train", *POINTS, "--steps", 1)
    assert difftool.load(outcome.out.strip()).step == 1


@pytest.mark.parametrize("progress", [True, False])
def test_training_from_python_shows_its_progress(progress: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    difftool.train(dataset=torch.randn(64, 2), steps=3, batch_size=16, out=tmp_path / "x", progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("training 3/3" in captured.err) == progress
    assert (f"run folder {tmp_path / 'x'}" in captured.err) == progress


def test_a_complete_run_names_the_setting_that_trains_further(
    points_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(points_run, tmp_path / "run")
    assert difftool.train(resume=tmp_path / "run").step == 30
    assert "is complete (30 steps); pass steps=N to train further" in capsys.readouterr().err
    longer = difftool.train(resume=difftool.load(tmp_path / "run").run, steps=32)  # type: ignore[arg-type]
    assert longer.step == 32
    assert f"resuming {tmp_path / 'run'} after step 30" in capsys.readouterr().err


def test_models_and_schedules_describe_themselves_in_a_line(points_run: Path) -> None:
    model = difftool.load(points_run, device="cpu")
    assert repr(model) == "Model(swiss-roll-mlp, step 30, ema-0.999 weights, items 2, on cpu)"
    assert repr(difftool.Schedule.from_alpha_bars(torch.tensor([0.9, 0.5]))) == (
        "Schedule(2 levels, alpha-bar 0.9 to 0.5)"
    )


class Straight(difftool.Backbone, name="straight"):
    """A linear map, never registered."""

    def build(self, spec: difftool.BackboneSpec) -> torch.nn.Module:
        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = torch.nn.Linear(2, 2)

            def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
                return self.linear(x)

        return Net()


class Counts(difftool.Callback, name="counts"):
    """A callback, never registered."""

    @contextlib.contextmanager
    def open(self, run: difftool.RunContext) -> Iterator[Callable[[difftool.Progress], dict[str, float]]]:
        yield lambda progress: {"twice": 2.0 * progress.step}


def test_runs_with_parts_of_ones_own_can_be_resumed(tmp_path: Path) -> None:
    data = torch.randn(32, 2)
    parts = {"dataset": data, "backbone": Straight(), "callbacks": [Counts()], "progress": False, "device": "cpu"}
    straight = difftool.train(**parts, steps=4, batch_size=8, lr_schedule="constant", out=tmp_path / "straight")
    difftool.train(**parts, steps=2, batch_size=8, lr_schedule="constant", out=tmp_path / "run")
    resumed = difftool.train(**parts, steps=4, resume=tmp_path / "run")
    assert torch.equal(resumed.sample(4, steps=2), straight.sample(4, steps=2))
    assert resumed.run is not None
    assert [row["twice"] for row in resumed.run.read_metrics()] == [2.0, 4.0, 6.0, 8.0]
    assert straight.run is not None
    before, after = straight.run.read_config(), resumed.run.read_config()
    assert before["plugins"] == after["plugins"]
    assert before["backbone"] == after["backbone"] == {"name": "straight"}
    with pytest.raises(UsageError, match="unknown callback 'counts'"):
        difftool.train(resume=tmp_path / "run", dataset=data, backbone=Straight())
