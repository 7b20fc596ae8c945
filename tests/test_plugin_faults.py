"""Plugins that misbehave while they work: one line that names the component, and no half-told success."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from difftool import (
    Backbone,
    BackboneSpec,
    Condition,
    Dataset,
    DatasetContext,
    DifftoolError,
    Level,
    Model,
    NoiseSchedule,
    Sampler,
    Samples,
    Schedule,
    Spacing,
    Step,
    UsageError,
    Writer,
    hookimpl,
    load,
    points,
)
from difftool.figures.formats import DrawingSpec
from difftool.runs.config import dump_toml
from difftool.runs.recipe import build_recipe
from difftool.sampling.writers import needed_states, write
from difftool.testing import PluginManager


class Raises(Sampler, name="raises"):
    def sample(
        self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        yield Step(x, levels[1], denoise(x, levels[0]))
        raise KeyError("x")


class Shrinks(Sampler, name="shrinks"):
    def sample(
        self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        yield Step(x[:, :1], levels[1], denoise(x, levels[0]))


class Stops(Sampler, name="stops"):
    def sample(
        self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        yield Step(x, levels[1], denoise(x, levels[0]))


class Crooked(Spacing, name="crooked"):
    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        return [schedule[t] for t in range(steps)]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Raises(), "sampler raises failed: KeyError: 'x'"),
        (Shrinks(), "sampler shrinks: step 1 gave no state shaped"),
        (Stops(), "sampler stops made 1 steps of 3"),
    ],
)
def test_samplers(points_run: Any, sampler: Sampler, message: str) -> None:
    model: Model = load(points_run)
    with pytest.raises(DifftoolError, match=message):
        model.sample(4, sampler=sampler, steps=3)


def test_spacings(points_run: Any) -> None:
    with pytest.raises(DifftoolError, match="spacing crooked did not give 3 strictly falling levels"):
        load(points_run).sample(4, spacing=Crooked(), steps=3)


class Cloud(Dataset, name="cloud"):
    def load(self, context: DatasetContext) -> Samples:
        return points(torch.randn(20, 2, generator=context.generator("points")))


class Nothing(Dataset, name="nothing"):
    def load(self, context: DatasetContext) -> Samples:
        return None  # type: ignore[return-value]


class Leaves(Dataset, name="leaves"):
    def load(self, context: DatasetContext) -> Samples:
        raise SystemExit(0)


class Short(NoiseSchedule, name="short"):
    def build(self, timesteps: int) -> Schedule:
        return Schedule.from_betas(torch.full((3,), 0.5, dtype=torch.float64))


class Narrow(Backbone, name="narrow"):
    def build(self, spec: BackboneSpec) -> nn.Module:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(2, 1)

            def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
                return self.layer(x)

        return Net()


class Broken(Backbone, name="broken"):
    def build(self, spec: BackboneSpec) -> nn.Module:
        raise RuntimeError("no\nway")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"dataset": Nothing()}, "dataset nothing returned NoneType, not Samples"),
        ({"dataset": Leaves()}, "dataset leaves failed: SystemExit"),
        ({"schedule": Short()}, "schedule short returned 3 levels, not 1000"),
        ({"backbone": Broken()}, "backbone broken failed: RuntimeError: no way"),
        ({"backbone": Narrow()}, r"the network returned \(8, 1\), not \(8, 2\)"),
    ],
)
def test_training(tmp_path: Any, parts: dict[str, Any], message: str) -> None:
    import difftool

    given = {"dataset": Cloud(), **parts}
    with pytest.raises(DifftoolError, match=message):
        difftool.train(**given, steps=2, batch_size=8, out=tmp_path / "run")


def test_a_backbone_without_defaults_is_trained() -> None:
    recipe = build_recipe({}, parts={"dataset": Cloud(), "backbone": Narrow()})
    assert recipe.training.steps is not None
    assert recipe.training.steps > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": torch.tensor([0, 2]), "class_names": ("a", "b")},
            "indices of the 2 classes, from 0 on; they reach",
        ),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels must be int64, not float32"),
        ({"item_ids": ["a"]}, "1 item_ids for 2 items"),
        ({"scale": (1.0, 0.0)}, "no scale may be 0"),
        ({"shift": (0.0, 0.0, 0.0)}, "one entry, or one for each channel"),
    ],
)
def test_samples(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Samples(**{"items": torch.zeros(2, 2), "shape": (2,), **changes})


def test_a_model_that_never_saw_no_class_wants_a_label(tmp_path: Any) -> None:
    import difftool

    mixture = difftool.component("dataset", "gaussian-mixture", n=64, labels=True)
    small = {"steps": 2, "batch_size": 8, "condition_dropout": 0.0, "out": tmp_path / "run"}
    model = difftool.train(dataset=mixture, **small)
    assert model.sample(4, label=0, steps=2).shape == model.sample(4, steps=2).shape == (4, 2)
    with pytest.raises(UsageError, match="--condition-dropout 0"):
        model.sample(4, steps=2, label="none")


def test_a_model_is_sampled_where_its_dataset_is_not_installed(points_run: Any, tmp_path: Any) -> None:
    from difftool.runs import checkpoint

    tensors, document = checkpoint.load(points_run / "model.safetensors")
    absent = {"dataset": {"name": "scans", "colour": 3}, "weighting": {"name": "learned"}}
    checkpoint.save(tmp_path / "m.safetensors", tensors, {**document, **absent})
    model, own = load(tmp_path / "m.safetensors"), load(points_run)
    assert torch.equal(model.sample(5, steps=3), own.sample(5, steps=3))
    assert model.recipe.name == "scans-mlp"


class Odd(BaseException):
    pass


def leave(error: BaseException) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text("half")
        raise error

    return write


def writer(does: Callable[[Path], Any], **space: Any) -> Writer:
    methods = {"write": lambda self, drawing, path: does(path), **space}
    return type("Made", (Writer,), {"suffixes": (".foo", ""), **methods}, name="made")()


def nothing(path: Path) -> None: ...


@pytest.mark.parametrize("name", ["out.foo", "folder"])
@pytest.mark.parametrize(
    ("does", "message"),
    [
        (nothing, "writer made wrote nothing"),
        (lambda path: _inside(path).mkdir(), "which is not a regular file"),
        (lambda path: os.symlink("secret", _inside(path)), "which is not a regular file"),
        (lambda path: leave(SystemExit(0))(_inside(path)), "writer made failed: SystemExit: 0"),
        (lambda path: leave(Odd("x"))(_inside(path)), "writer made failed: Odd: x"),
        (lambda path: leave(ValueError("no"))(_inside(path)), "was not written: no"),
    ],
)
def test_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, does: Callable[[Path], Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    drawing: Any = SimpleNamespace(x=torch.zeros(1, 2))
    with pytest.raises(DifftoolError, match=message):
        write(writer(does), drawing, Path(name), overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert secret.stat().st_mode & 0o777 == 0o600


def _inside(path: Path) -> Path:
    """Where to write: a path without a suffix is a folder that is there already."""
    return path / "0.foo" if path.is_dir() else path


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (lambda self, spec: 1 / 0, "writer made failed: ZeroDivisionError"),
        (lambda self, spec: None, "writer made failed: TypeError: 'NoneType'"),
        (lambda self, spec: ["a", 1.5], "writer made failed: TypeError: 'str' object cannot be interpreted"),
        (lambda self, spec: int("x"), "writer made: invalid literal"),
    ],
)
def test_states_that_a_writer_needs(states: Any, message: str) -> None:
    with pytest.raises(DifftoolError, match=message):
        needed_states([writer(nothing, states=states)], DrawingSpec(shape=(2,), steps=3))


class Unsuited(NoiseSchedule, name="unsuited"):
    """Goes with what nobody has."""

    default_prediction = "nope"

    def build(self, timesteps: int) -> Schedule:
        raise AssertionError


def test_a_default_that_is_not_here_is_told_with_who_asks_for_it(plugin_manager: PluginManager) -> None:
    plugin_manager.register(SimpleNamespace(difftool_schedules=hookimpl(lambda: [Unsuited])))
    with pytest.raises(
        UsageError,
        match=r"schedule unsuited suggests a prediction that is not installed: unknown prediction .*--prediction",
    ):
        build_recipe({"schedule": {"name": "unsuited"}})


def test_no_config_says_null() -> None:
    with pytest.raises(TypeError, match="None"):
        dump_toml({"plugins": {"p": None}})
