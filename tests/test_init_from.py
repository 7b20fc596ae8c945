"""Weights from elsewhere: what is taken, what stays frozen, and what a run remembers of it."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import POINTS, Run
from torch import Tensor, nn

import difftool
from difftool.errors import InvalidOption
from difftool.options import make
from difftool.runs import checkpoint
from difftool.runs.folder import RunFolder
from difftool.runs.origin import Origin
from difftool.settings import Training
from difftool.training.frozen import freeze, train_mode
from difftool.training.transfer import common_classes, copy_channels

ONLY = ("--train-only", "^last")


def model_of(folder: Path | str) -> dict[str, Tensor]:
    tensors = checkpoint.load(Path(folder) / "model.safetensors")[0]
    return {name.removeprefix("network."): tensor for name, tensor in tensors.items()}


def state_of(folder: Path | str) -> dict[str, Tensor]:
    """The newest training state."""
    return checkpoint.load(RunFolder(Path(folder)).saved_states()[0])[0]


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    """The names of the tensors that are not bit-equal."""
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


class TestStart:
    def test_weights_and_average_start_from_the_average_of_the_source(self, run: Run, points_run: Path) -> None:
        outcome = run("train", *POINTS, "--init-from", points_run, "--steps", 0, "--seed", 3, "--out", "r")
        assert outcome.code == 0, outcome.err
        assert f"took 8 of 8 tensors from swiss-roll-mlp, step 30, ema-0.999 weights ({points_run}" in outcome.err
        source = model_of(points_run)
        assert not differing(model_of("r"), source)
        state = state_of("r")
        for group in ("network", "averages.0"):
            assert not differing({name: state[f"{group}.{name}"] for name in source}, source)

    def test_the_trained_weights_can_be_taken_instead(self, run: Run, points_run: Path) -> None:
        raw = ("--init-from", points_run, "--init-weights", "raw")
        assert run("train", *POINTS, *raw, "--steps", 0, "--out", "r").code == 0
        state = state_of(points_run)
        assert not differing(model_of("r"), {name: state[f"network.{name}"] for name in model_of("r")})
        assert differing(model_of("r"), model_of(points_run))

    def test_another_dataset_schedule_and_prediction_start_from_them(self, run: Run, points_run: Path) -> None:
        other = ("--dataset", "two-moons", "--schedule", "cosine", "--prediction", "v", "--ema", 0)
        outcome = run("train", *POINTS, *other, "--init-from", points_run / "model.safetensors", "--steps", 0)
        assert outcome.code == 0, outcome.err
        assert "predicts eps, and this run v" in outcome.err
        assert not differing(model_of(outcome.lines[0]), model_of(points_run))

    def test_a_wider_network_keeps_what_fits_and_says_so(self, run: Run, points_run: Path) -> None:
        outcome = run("train", *POINTS, "--backbone.width", 24, "--init-from", points_run, "--steps", 0, "--out", "r")
        assert outcome.code == 0, outcome.err
        (line,) = [line for line in outcome.err.splitlines() if line.startswith("took")]
        assert "took 1 of 8 tensors" in line
        assert "fresh: embedding.inner.weight (16x64 there, 24x64 here), " in line
        assert line.endswith(" and 4 more")
        assert torch.equal(model_of("r")["last.bias"], model_of(points_run)["last.bias"])

    def test_a_deeper_network_says_what_was_not_there(self, run: Run, points_run: Path) -> None:
        outcome = run("train", *POINTS, "--backbone.depth", 2, "--init-from", points_run, "--steps", 0, "--out", "deep")
        assert "took 8 of 10 tensors" in outcome.err
        assert "fresh: hidden.0.weight (not there), hidden.0.bias (not there)" in outcome.err
        outcome = run("train", *POINTS, "--init-from", "deep", "--steps", 0, "--out", "r")
        assert "took 8 of 8 tensors" in outcome.err
        assert "left behind: hidden.0.weight, hidden.0.bias" in outcome.err
        assert not differing(model_of("r"), model_of(points_run))

    def test_new_input_channels_start_at_zero(self, run: Run, points_run: Path) -> None:
        """The network with self-conditioning starts as the one without."""
        outcome = run("train", *POINTS, "--init-from", points_run, "--self-condition", "--steps", 0, "--out", "r")
        assert "in part: first.weight (2 of 4 input channels)" in outcome.err
        weight = model_of("r")["first.weight"]
        assert torch.equal(weight[:, :2], model_of(points_run)["first.weight"])
        assert not weight[:, 2:].any()

    def test_new_output_channels_stay_fresh(self, run: Run, points_run: Path) -> None:
        """The network that also learns a variance predicts what the other one did."""
        learns = ("--learn-variance", "--dataset", "swiss-roll")
        outcome = run("train", *POINTS, *learns, "--init-from", points_run, "--steps", 0, "--out", "r")
        assert "in part: last.weight (2 of 4 output channels), last.bias (2 of 4 output channels)" in outcome.err
        assert torch.equal(model_of("r")["last.weight"][:2], model_of(points_run)["last.weight"])
        assert model_of("r")["last.weight"][2:].any()

    def test_classes_are_found_by_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

        def train(*names: str, **more: object) -> dict[str, Tensor]:
            items = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
            labels = torch.arange(60) % len(names)
            data = difftool.Samples(items=items, shape=(2,), labels=labels, class_names=names)
            mlp = difftool.component("backbone", "mlp", width=16, depth=1)
            model = difftool.train(dataset=data, backbone=mlp, steps=0, progress=False, **more)
            assert model.run is not None
            return model_of(model.run.path) | {"run": model.run.path}  # type: ignore[dict-item]

        old = train("ant", "bee", "cat")
        fresh = train("bee", "cat", "dog", "emu", seed=4)["embedding.label.weight"]
        new = train("bee", "cat", "dog", "emu", seed=4, init_from=old["run"])["embedding.label.weight"]
        before = old["embedding.label.weight"]
        assert torch.equal(new[[0, 1, 4]], before[[1, 2, 3]])
        assert torch.equal(new[[2, 3]], fresh[[2, 3]])
        others = train("x", "y", "z", init_from=str(old["run"]))["embedding.label.weight"]
        assert torch.equal(others, before)


@pytest.mark.parametrize(
    ("there", "here", "rows"),
    [
        (["a", "b"], ["a", "b"], {}),
        (["a", "b"], ["b", "c", "a"], {0: 2, 1: 0, 2: 3}),
        (["a", "b"], ["b", "a"], {0: 1, 1: 0, 2: 2}),
        (["a", "b"], ["x", "y"], {}),
        (["a", "b"], ["x"], {2: 1}),
        ([], ["a"], {}),
        (["a"], [], {}),
    ],
)
def test_common_classes(there: list[str], here: list[str], rows: dict[int, int]) -> None:
    assert common_classes(there, here) == rows


def test_channels_are_copied_only_where_they_are_the_channels() -> None:
    channels = [(3, 6), (3, 4)]
    there, here = torch.randn(8, 3, 3, 3), torch.full((8, 4, 3, 3), 7.0)
    assert copy_channels(here, there, channels) == "3 of 4 input channels"
    assert torch.equal(here, torch.cat([there, torch.zeros(8, 1, 3, 3)], 1))
    there, here = torch.randn(3, 8), torch.full((6, 8), 7.0)
    assert copy_channels(here, there, channels) == "3 of 6 output channels"
    assert torch.equal(here, torch.cat([there, torch.full((3, 8), 7.0)]))
    for other in (torch.zeros(3, 9), torch.zeros(4, 8), torch.zeros(3), torch.zeros(3, 8, 1)):
        assert copy_channels(here, other, channels) == ""
    assert copy_channels(torch.zeros(8, 2), torch.ones(8, 3), [(2, 2), (3, 2)]) == "2 of 2 input channels"


class TestFrozen:
    @pytest.mark.parametrize("more", [(), ("--ema", 0), ("--clip", 0.1, "--accumulate", 2)], ids=str)
    def test_all_other_tensors_stay_bit_equal(self, run: Run, points_run: Path, more: tuple[object, ...]) -> None:
        only = ("--init-from", points_run, *ONLY, "--steps", 50)
        outcome = run("train", *POINTS, *only, *more, "--out", "r")
        assert outcome.code == 0, outcome.err
        assert "parameters, 34 trained)" in outcome.err
        last, source = {"last.weight", "last.bias"}, model_of(points_run)
        assert differing(model_of("r"), source) == last
        state = state_of("r")
        assert differing({name: state[f"network.{name}"] for name in source}, source) == last
        optimizer = [tensor for name, tensor in state.items() if name.startswith("optimizer.") and tensor.ndim]
        assert sorted(tensor.shape for tensor in optimizer) == [(2,), (2,), (2, 16), (2, 16)]

    def test_freeze_is_the_opposite(self, run: Run, points_run: Path) -> None:
        for name, choice in (("a", ONLY), ("b", ("--freeze", "^(?!last)"))):
            assert run("train", *POINTS, "--init-from", points_run, *choice, "--steps", 8, "--out", name).code == 0
        assert (Path("a") / "model.safetensors").stat().st_size > 0
        assert not differing(model_of("a"), model_of("b"))

    def test_fresh_weights_can_be_frozen_too(self, run: Run) -> None:
        for steps in (0, 5):
            assert run("train", *POINTS, "--freeze", "first", "--steps", steps, "--out", f"r{steps}").code == 0
        assert {name for name in model_of("r0") if name not in differing(model_of("r0"), model_of("r5"))} == {
            "first.weight",
            "first.bias",
        }

    def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(self, run: Run, points_run: Path) -> None:
        """It needs its source no more, wherever it stopped, before its first step too."""
        source = shutil.copytree(points_run, "source")
        long = (*POINTS, "--lr-schedule", "constant", "--checkpoint-every", 7, "--keep", 9, *ONLY)
        assert run("train", *long, "--init-from", source, "--steps", 20, "--out", "straight").code == 0
        assert run("train", *long, "--init-from", source, "--steps", 14, "--out", "r").code == 0
        shutil.rmtree(source)
        for step in (14, 0):
            for state in RunFolder(Path("r")).saved_states():
                if int(state.stem[5:]) > step:
                    state.unlink()
            outcome = run("train", "--resume", "r", "--steps", 20)
            assert outcome.code == 0, outcome.err
            assert f"resuming r after step {step}" in outcome.err
            assert (Path("r") / "model.safetensors").read_bytes() == Path("straight/model.safetensors").read_bytes()

    @pytest.mark.slow
    def test_a_compiled_step_leaves_them_alone(self, run: Run, points_run: Path) -> None:
        for name, more in (("eager", ()), ("compiled", ("--compile",))):
            only = ("--init-from", points_run, *ONLY, "--steps", 5)
            outcome = run("train", *POINTS, *only, *more, "--out", name)
            assert outcome.code == 0, outcome.err
        assert differing(model_of("compiled"), model_of(points_run)) == {"last.weight", "last.bias"}
        for name, tensor in model_of("compiled").items():
            torch.testing.assert_close(tensor, model_of("eager")[name])

    def test_norm_statistics_stand_still_where_all_of_the_norm_is_frozen(self) -> None:
        network = nn.Sequential(
            nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3)
        )
        settings = make(Training, {"freeze": r"^[123]\."})
        freeze(network, settings)
        train_mode(network.eval(), settings)
        assert [module.training for module in network] == [True, False, True, False, True]
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network(torch.randn(8, 2))
        assert {name.partition(".")[0] for name in differing(before, network.state_dict())} == {"4"}

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"train_only": "conv"}, "--train-only: 'conv' matches none of the 2 parameters: weight, bias"),
            ({"freeze": "conv"}, "--freeze: 'conv' matches none of the 2 parameters: weight, bias"),
            ({"freeze": "w|b"}, "--freeze: 'w|b' matches all of the 2 parameters: weight, bias"),
        ],
    )
    def test_a_pattern_selects_something(self, values: dict[str, str], message: str) -> None:
        with pytest.raises(InvalidOption) as caught:
            freeze(nn.Linear(2, 2), make(Training, values))
        assert str(caught.value) == message


class TestRecord:
    def test_the_run_says_where_its_weights_came_from(self, run: Run, points_run: Path) -> None:
        assert run("train", *POINTS, "--init-from", points_run, *ONLY, "--steps", 2, "--out", "r").code == 0
        digest = checkpoint.load_with_digest(points_run / "model.safetensors")[2]
        origin = {"name": "swiss-roll-mlp", "weights": "ema-0.999", "step": 30, "sha256": digest}
        for _ in ("new", "resumed"):
            config = tomllib.loads(Path("r/config.toml").read_text())
            assert config["run"]["init_from"] == origin
            assert config["training"]["init_from"] == str(points_run)
            assert config["training"]["train_only"] == "^last"
            for target in ("r", "r/model.safetensors"):
                facts = json.loads(run("info", target, "--json").out)
                assert facts["init_from"] == origin
            assert digest in run("info", "r").out
            assert run("train", "--resume", "r", "--steps", 4).code == 0
        for file in (Path("r/model.safetensors"), *RunFolder(Path("r")).saved_states()):
            assert str(points_run.parent).encode() not in file.read_bytes()
        assert difftool.load("r").origin == Origin(**origin)  # type: ignore[arg-type]

    def test_its_config_starts_from_them_again(self, run: Run, points_run: Path) -> None:
        assert run("train", *POINTS, "--init-from", points_run, "--steps", 2, "--out", "r").code == 0
        outcome = run("train", "--config", "r/config.toml", "--out", "again")
        assert "took 8 of 8 tensors" in outcome.err
        assert Path("r/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()

    @pytest.mark.parametrize("origin", [3, {}, {"name": "x"}, ["a"], "x"], ids=str)
    def test_a_record_of_a_stranger_is_checked(self, run: Run, points_run: Path, origin: object) -> None:
        tensors, document = checkpoint.load(points_run / "model.safetensors")
        checkpoint.save(Path("m.safetensors"), tensors, {**document, "init_from": origin})
        assert "m.safetensors: its metadata are malformed: init_from must " in run("sample", "m.safetensors").error

    @pytest.mark.parametrize(
        "change", [{"name": 3}, {"step": -1}, {"step": True}, {"sha256": "x" * 64}, {"weights": ""}, {"path": "/x"}]
    )
    def test_each_entry_of_a_record_is_checked(self, change: dict[str, object]) -> None:
        origin = Origin(name="a-b", weights="ema", step=3, sha256="0" * 64)
        assert Origin.read(origin.document()) == origin
        with pytest.raises(ValueError, match="init_from must"):
            Origin.read({**origin.document(), **change})


REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "no file": (("--init-from", "nope"), "--init-from: nope does not exist: it names neither a run folder nor"),
    "a training state": (
        ("--init-from", "run/state/step-000000030.safetensors"),
        "--init-from: run/state/step-000000030.safetensors holds a training state, not a model",
    ),
    "no model": (("--init-from", "run/config.toml"), "--init-from: run/config.toml is not a safetensors file"),
    "unknown weights": (
        ("--init-from", "run", "--init-weights", "best"),
        "--init-from: unknown weights 'best'; run has ema, raw, ema-0.999",
    ),
    "weights of nothing": (("--init-weights", "raw"), "--init-weights: belongs to --init-from; add --init-from"),
    "nothing fits": (
        ("--init-from", "run", "--backbone", "unet", "--dataset", "gradients", "--dataset.size", 8),
        "--init-from: run/model.safetensors holds no weight that fits this network: embedding.inner.weight (16x64",
    ),
    "both": (("--train-only", "a", "--freeze", "b"), "--freeze: give either --train-only or --freeze"),
    "no pattern": (("--freeze", "("), "--freeze: must be a regular expression (missing )"),
    "matches none": (
        ("--train-only", "nope"),
        "--train-only: 'nope' matches none of the 8 parameters: embedding.inner.weight, embedding.inner.bias, ",
    ),
    "matches all": (("--freeze", "."), "--freeze: '.' matches all of the 8 parameters: "),
    "resumed": (("--resume", "run", "--init-from", "run"), "--init-from: a resumed run goes on from its own weights"),
    "resumed, another pattern": (
        ("--resume", "run", "--freeze", "first"),
        "--resume run: --freeze is not set in the run, not first",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(run: Run, points_run: Path, arguments: tuple[object, ...], message: str) -> None:
    shutil.copytree(points_run, "run")
    sizes = () if "--resume" in arguments else ("--dataset.n", 64)
    sizes += () if "--resume" in arguments or "unet" in arguments else POINTS[2:]
    outcome = run("train", *sizes, "--steps", 40, *arguments)
    assert message in outcome.error
    assert not Path("runs").exists()


def test_refused_in_python(run: Run, points_run: Path) -> None:
    with pytest.raises(difftool.UsageError, match="init_from: a resumed run goes on from its own weights"):
        difftool.train(resume=points_run, init_from=points_run)


def test_python_says_what_was_taken(
    run: Run, points_run: Path, capfd: pytest.CaptureFixture[str], shared: Callable[..., Path]
) -> None:
    mlp = difftool.component("backbone", "mlp", width=16, depth=1)
    model = difftool.train(
        dataset=torch.randn(100, 2), backbone=mlp, init_from=points_run, train_only="last", steps=1, out="r"
    )
    assert "took 8 of 8 tensors" in capfd.readouterr().err
    assert model.origin is not None
    assert model.origin.step == 30
    assert differing(dict(model.network.state_dict()), model_of(points_run)) == {"last.weight", "last.bias"}


def test_norms_behind_frozen_layers_train(run: Run) -> None:
    """torch's GroupNorm on the CPU crashes where its weights need a gradient and its channels-last input none."""
    unet = ("--backbone", "unet", "--backbone.dim", 8, "--backbone.dim-mults", 1, "--backbone.groups", 4)
    data = ("--dataset", "gradients", "--dataset.n", 16, "--dataset.size", 8, "--batch-size", 8, "--preview-every", 0)
    outcome = run("train", *data, *unet, "--train-only", "norm", "--steps", 3, "--out", "r")
    assert outcome.code == 0, outcome.err
