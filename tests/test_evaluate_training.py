"""Metrics that are measured while a run trains: they change no step, resume exactly, and choose the best model."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import POINTS, Outcome, Run

import difftool
from difftool import component
from difftool.errors import DifftoolError, InvalidOption, UsageError
from difftool.evaluation.evaluation import Evaluator
from difftool.figures.loss import loss_figure
from difftool.options import make
from difftool.runs.best import best_row
from difftool.runs.checkpoint import load
from difftool.runs.evaluations import read_evaluations
from difftool.runs.folder import RunFolder
from difftool.settings import Training
from difftool.training.best import best_of

SMALL = (*POINTS, "--threads", 1, "--held-out", 40, "--steps", 12, "--checkpoint-every", 4, "--preview-every", 0)
MEASURED = ("--evaluate", "kid", "--evaluate-samples", 20, "--evaluate-every", 3)
CLOCK = ("elapsed", "waiting", "steps_per_second")


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def rows_of(run: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a run without times."""
    rows = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def numbers_of(run: str, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in rows_of(run) if row.get(name) is not None}


def best_of_run(run: str) -> tuple[bytes, int]:
    path = Path(run) / "best.safetensors"
    return path.read_bytes(), load(path)[1]["step"]


@pytest.fixture
def measured(run: Run) -> Run:
    ok(run("train", *SMALL, *MEASURED, "--out", "r"))
    return run


def test_a_measured_run_makes_the_same_steps_as_another(measured: Run) -> None:
    ok(measured("train", *SMALL, "--out", "plain"))
    states = [Path(name) / "state" / RunFolder.state_name(12) for name in ("r", "plain")]
    one, other = (load(state)[0] for state in states)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    plain = [{**row, "kid": None, "kid_error": None} for row in rows_of("plain")]
    assert [{**row, "kid": None, "kid_error": None} for row in rows_of("r")] == plain


def test_the_numbers_are_in_rows_evaluations_and_logs_and_those_of_evaluate(measured: Run) -> None:
    kid = numbers_of("r", "kid")
    assert [*kid] == [3, 6, 9, 12]
    assert all(row.keys() >= {"kid", "kid_error"} for row in rows_of("r"))
    found = read_evaluations(RunFolder(Path("r")))
    assert {one["step"]: one["scores"][0]["value"] for one in found} == kid
    assert {(one["n"], one["against"], one["reference"]) for one in found} == {(20, "held-out", 40)}
    outcome = ok(measured("evaluate", "r", "--metric", "kid", "-n", 20, "--against", "held-out", "--json"))
    (again,) = json.loads(outcome.out)["evaluations"]
    assert again["scores"][0]["value"] == pytest.approx(kid[12], rel=1e-4, abs=1e-6)


def test_the_output_names_what_is_measured_and_the_last_numbers(run: Run) -> None:
    names = ("--evaluate", "kid,sliced-w2", "--metric.directions", 20)
    two = (*names, "--evaluate-samples", 20, "--evaluate-against", "train")
    err = ok(run("train", *SMALL, *two, "--out", "r", "--logger", "csv")).err
    assert "measures kid, sliced-w2 by pixels on 20 samples of 50 steps against 460 training items" in err
    assert re.search(r"^kid \S+ ± \S+, sliced_w2 \S+ ± \S+$", err, re.MULTILINE)
    assert tomllib.loads(Path("r/config.toml").read_text())["metrics"]["sliced-w2"] == {"directions": 20}
    assert {"kid", "kid_error", "sliced_w2"} <= set(Path("r/logs/metrics.csv").read_text().splitlines()[0].split(","))


def test_a_resumed_run_measures_what_it_did_before(measured: Run) -> None:
    ok(measured("train", *SMALL[:-6], *SMALL[-4:], *MEASURED, "--steps", 8, "--out", "s"))
    assert [*numbers_of("s", "kid")] == [3, 6, 8]
    shutil.copytree("r", "killed")
    Path("killed/state", RunFolder.state_name(12)).unlink()  # as if it had been killed in step 12
    ok(measured("train", "--resume", "killed"))
    assert rows_of("killed") == rows_of("r")
    assert Path("killed/evaluations.jsonl").read_text() == Path("r/evaluations.jsonl").read_text()
    assert best_of_run("killed") == best_of_run("r")


def test_a_resumed_run_can_measure_something_else(measured: Run) -> None:
    ok(measured("train", "--resume", "r", "--steps", 15, "--evaluate", "sliced-w2", "--evaluate-every", 15))
    assert [*numbers_of("r", "sliced_w2")] == [15]
    assert [*numbers_of("r", "kid")] == [3, 6, 9, 12]
    ok(measured("train", "--resume", "r", "--steps", 16, "--evaluate", "none"))
    assert [*numbers_of("r", "sliced_w2")] == [15]
    assert "metrics" not in tomllib.loads(Path("r/config.toml").read_text())


def test_the_best_model_is_that_of_the_best_row(measured: Run) -> None:
    kid = numbers_of("r", "kid")
    content, step = best_of_run("r")
    assert step == min(kid, key=lambda step: kid[step])
    assert load(Path("r/best.safetensors"))[1]["best"] == {"name": "kid", "value": kid[step]}
    ok(measured("train", *SMALL[:-6], *SMALL[-4:], *MEASURED, "--steps", step, "--out", "s"))
    one, other = (load(Path(path))[0] for path in ("r/best.safetensors", "s/model.safetensors"))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert difftool.load("r", weights="best").step == step
    facts = json.loads(ok(measured("info", "r", "--json")).out)["best"]
    assert (facts["step"], facts["valid"], facts["best"]["name"]) == (step, True, "kid")
    shutil.copy("r/best.safetensors", "kept")
    ok(measured("train", "--resume", "r", "--steps", 13, "--keep-best", "none"))
    assert best_of_run("r")[0] == content == Path("kept").read_bytes()


def test_a_best_model_of_a_later_step_is_not_taken_for_an_earlier_one(measured: Run) -> None:
    late = rows_of("r")
    shutil.copytree("r", "back")
    for step in (8, 12):
        Path("back/state", RunFolder.state_name(step)).unlink(missing_ok=True)
    shutil.copy("r/model.safetensors", "back/best.safetensors")  # of step 12
    if not RunFolder(Path("back")).saved_states():
        Path("back/model.safetensors").unlink()
    ok(measured("train", "--resume", "back"))
    assert rows_of("back") == late
    assert best_of_run("back") == best_of_run("r")


def test_held_out_items_keep_the_best_model_by_default(run: Run) -> None:
    ok(run("train", *SMALL, "--out", "r"))
    losses = numbers_of("r", "held_out_loss")
    assert best_of_run("r")[1] == min(losses, key=lambda step: losses[step])
    ok(run("train", *SMALL, "--keep-best", "none", "--out", "none"))
    ok(run("train", *POINTS, "--steps", 3, "--out", "plain"))
    assert not any(Path(name, "best.safetensors").exists() for name in ("none", "plain"))
    assert "--weights: unknown weights 'best'" in run("sample", "plain", "--weights", "best").err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--evaluate", "kidd"), "unknown metric 'kidd'; did you mean 'kid'?"),
        (("--evaluate", "kid", "--features", "pixel"), "unknown features 'pixel'; did you mean 'pixels'?"),
        (("--evaluate", "kid,"), "--evaluate: must be names joined by commas, such as kid,fid"),
        (("--features", "pixels"), "--features: nothing is measured; add --evaluate METRIC"),
        (("--evaluate-every", "5ep"), "--evaluate-every: nothing is measured; add --evaluate METRIC"),
        (("--evaluate", "kid", "--evaluate-every", "0"), "--evaluate-every: must be at least 1"),
        (("--evaluate", "kid", "--evaluate-samples", "2"), "metric kid: needs at least 4 samples, not 2"),
        (("--evaluate-against", "held-out"), "--evaluate-against: nothing is held out; add --held-out N"),
        (("--evaluate", "kid", "--keep-best", "kit"), "--keep-best: nothing measures 'kit'; did you mean 'kid'?"),
        (("--keep-best", "held-out-loss"), "nothing measures 'held-out-loss'; add --held-out N or --evaluate METRIC"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_there_is_a_run(
    run: Run, options: tuple[str, ...], reason: str
) -> None:
    outcome = run("train", *POINTS, "--steps", 3, *options, "--out", "r")
    assert outcome.code == 2
    assert reason in outcome.err
    assert not Path("r").exists()


def test_an_evaluation_that_fails_does_not_end_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Evaluator.evaluate

    def fail(self: Evaluator, source: Any, plan: Any) -> Any:
        if source.step == 6:
            raise DifftoolError("samples are not finite")
        return real(self, source, plan)

    monkeypatch.setattr(Evaluator, "evaluate", fail)
    outcome = ok(run("train", *SMALL, *MEASURED, "--out", "r"))
    assert "step 6 was not evaluated: samples are not finite" in outcome.err
    assert [*numbers_of("r", "kid")] == [3, 9, 12]


def test_python_measures_too(tmp_path: Path) -> None:
    items = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    model = difftool.train(
        dataset=items,
        backbone=component("backbone", "mlp", width=16),
        metrics=["kid", component("metric", "sliced-w2", directions=10)],
        features="pixels",
        evaluate_every="4",
        evaluate_samples=10,
        keep_best="sliced-w2",
        steps=8,
        batch_size=8,
        out=tmp_path / "r",
        progress=False,
        device="cpu",
    )
    assert [one["step"] for one in read_evaluations(RunFolder(tmp_path / "r"))] == [4, 8]
    assert {"kid", "sliced_w2"} <= rows_of(tmp_path / "r")[-1].keys()
    assert load(tmp_path / "r" / "best.safetensors")[1]["best"]["name"] == "sliced_w2"
    assert model.run is not None
    with pytest.raises(UsageError, match="features: nothing is measured; name metrics"):
        difftool.train(dataset=items, features="pixels", steps=1, out=tmp_path / "s", progress=False)
    with pytest.raises(TypeError, match="features"):
        difftool.train(dataset=items, metrics=["kid"], features=3, steps=1, out=tmp_path / "s", progress=False)


def test_the_best_row_is_the_first_with_the_best_value() -> None:
    rows = [{"step": step, "a": value} for step, value in enumerate([3.0, 1.0, None, 1.0, 5.0])]
    assert best_row(rows, "a") == rows[1]
    assert best_row(rows, "a", "higher") == rows[4]
    assert best_row(rows, "b") is None


def test_the_first_metric_chooses_the_best_unless_another_number_is_named() -> None:
    def name(wish: str | None = None, held_out: int = 9, better: Any = None, **facts: Any) -> str | None:
        evaluation: Any = None if better is None else SimpleNamespace(better=better, **{"complete": True, **facts})
        best = best_of(make(Training, {"held_out": held_out, "keep_best": wish}), evaluation)
        return None if best is None else best.name

    better = {"recall": "higher", "fid_infinity": "lower"}
    assert name(better=better) == "recall"
    assert name("fid-infinity", better=better) == "fid_infinity"
    assert name("held-out-loss", better=better) == name() == "held_out_loss"
    assert name(held_out=0) is name("none") is None
    with pytest.raises(InvalidOption):
        name("bits", better=better)
    assert name("bits", better={}, complete=False) == "bits"


def test_metrics_are_drawn_below_the_losses() -> None:
    rows = [{"step": s, "loss": 1.0, "kid": None if s % 2 else 1.0 / (s + 1), "kid_error": 0.1} for s in range(8)]
    loss, kid = loss_figure(rows, title="run").axes
    assert (loss.get_ylabel(), kid.get_ylabel(), kid.get_xlabel()) == ("loss", "kid", "step")
    assert [*kid.lines[0].get_xdata()] == [0, 2, 4, 6]
    assert len(loss_figure([{"step": 1, "loss": 1.0}], title="run").axes) == 1
