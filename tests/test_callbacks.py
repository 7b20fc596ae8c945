"""Callbacks: their numbers join the rows, they stop a run and resume exactly, and a failing one ends no run."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import IMAGES, POINTS, Outcome, Run

import difftool
from difftool import Callback, Progress, RunContext, Stop, hookimpl, option
from difftool.runs.folder import RunFolder
from difftool.specs import Row
from difftool.testing import PluginManager
from difftool.training.callbacks import MOST_NUMBERS, Callbacks, number
from difftool_plugins.callbacks.early_stop import Wait

SMALL = (*POINTS, "--threads", 1)
STOPS = ("--callback", "early-stop", "--callback.metric", "grad_norm", "--callback.patience", 3)
"""A callback that stops a run of `SMALL` after a few steps, since the norm of the gradient goes up and down."""


class Samples(Callback, name="samples"):
    """Measures samples of the model every few steps."""

    every: int = option(default=2, ge=1, help="rows from one measurement to the next")

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Progress], Mapping[str, float] | None]]:
        def see(progress: Progress) -> dict[str, float] | None:
            SEEN.append(progress)
            torch.manual_seed(progress.step)  # whatever it does to the global generators
            torch.randn(3)
            if progress.step % self.every:
                return None
            x = progress.model.sample(8, steps=2)
            return {"spread": float(x.std()), "sample_loss": float(x.abs().mean())}

        yield see


class Does(Callback, name="does"):
    """Does what a test puts into `DOES`, by step."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Progress], Any]]:
        OPENED.append(run)
        yield lambda progress: DOES.get(progress.step, lambda _: None)(progress)


class Closes(Callback, name="closes"):
    """Fails when it is opened, or closed."""

    opening: bool = option(default=False, help="when opened")

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Progress], None]]:
        if self.opening:
            raise ConnectionError("no route")
        yield lambda _: None
        raise ConnectionError("not sent")


class Needs(Callback, name="needs"):
    """Needs a library that is not there."""

    requires: ClassVar[Mapping[str, str]] = {"no_such_thing": "no-such-thing"}

    def open(self, run: RunContext) -> Any:
        raise AssertionError("never opened")


SEEN: list[Progress] = []
OPENED: list[RunContext] = []
DOES: dict[int, Callable[[Progress], Any]] = {}


@pytest.fixture
def others(plugin_manager: PluginManager) -> None:
    SEEN.clear()
    OPENED.clear()
    DOES.clear()
    hook = hookimpl(specname="difftool_callbacks")(lambda: [Samples, Does, Closes, Needs])
    assert not plugin_manager.register(SimpleNamespace(__name__="mine", difftool_callbacks=hook)).problems


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def rows_of(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def model_of(folder: str) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "arguments", [SMALL, (*SMALL, "--ema", 0), (*IMAGES, "--backbone.dropout", 0.2)], ids=["points", "raw", "dropout"]
)
def test_a_callback_that_samples_changes_no_weight(run: Run, others: None, arguments: tuple[object, ...]) -> None:
    ok(run("train", *arguments, "--steps", 4, "--out", "plain"))
    ok(run("train", *arguments, "--steps", 4, "--callback", "samples", "--callback.every", 1, "--out", "watched"))
    assert model_of("watched") == model_of("plain")
    assert len(SEEN) == 4


def test_numbers_join_the_rows(run: Run, others: None) -> None:
    callback = ("--callback", "samples", "--logger", "csv", "--held-out", 20)
    ok(run("train", *SMALL, "--steps", 5, *callback, "--out", "r"))
    rows = rows_of("r")
    assert [row.get("spread", "no name yet") is not None for row in rows] == [True, True, False, True, False]
    assert "spread" not in rows[0]
    with Path("r/logs/metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table] == ["1", "2", "3", "4", "5"]
    assert [row["spread"] for row in table] == ["", str(rows[1]["spread"]), "", str(rows[3]["spread"]), ""]
    assert [row["sample_loss"] != "" for row in table] == [False, True, False, True, False]
    ok(run("train", "--resume", "r", "--steps", 6))
    assert RunFolder(Path("r")).read_metrics()[-1]["spread"] > 0


def test_progress_and_context(run: Run, others: None) -> None:
    DOES[2] = lambda progress: SEEN.append(progress)
    ok(run("train", *SMALL, "--steps", 3, "--callback", "does", "--out", "r"))
    ok(run("train", "--resume", "r", "--steps", 4))
    first, second = OPENED
    assert (first.step, first.steps, first.rows, first.name) == (0, 3, [], "swiss-roll-mlp")
    assert first.config["callbacks"] == {"does": {}}
    assert (second.step, second.steps, [row.step for row in second.rows]) == (3, 4, [1, 2, 3])
    (progress,) = SEEN
    assert (progress.step, progress.steps) == (2, 3)
    assert tuple(progress.row) == tuple(first.metrics)
    assert dict(second.rows[1].metrics) == progress.row
    assert isinstance(progress.model, difftool.Model)
    assert progress.model.weights == "ema-0.999"


def test_later_callbacks_see_the_numbers_of_earlier_ones(run: Run, others: None) -> None:
    DOES[2] = lambda progress: {"twice": 2 * progress.row["spread"]}
    ok(run("train", *SMALL, "--steps", 2, "--callback", "samples", "--callback", "does", "--out", "r"))
    assert rows_of("r")[1]["twice"] == 2 * rows_of("r")[1]["spread"]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (1, 1),
        (0.5, 0.5),
        (None, None),
        (np.float32(0.5), 0.5),
        (torch.tensor([0.25]), 0.25),
        (float("nan"), None),
        (-float("inf"), None),
        (10**400, None),
    ],
)
def test_numbers_become_plain(value: object, plain: object) -> None:
    assert number("x", value) == plain


@pytest.mark.parametrize("value", ["1", True, [1], np.zeros(2), torch.zeros(2), 1j, {}])
def test_others_are_no_numbers(value: object) -> None:
    with pytest.raises(ValueError, match=r"its 'x' is a \w+, not a number"):
        number("x", value)


WRONG: dict[str, tuple[Any, str]] = {
    "a row's own name": ({"loss": 1.0}, "it returned 'loss', which is the name of another number of the row"),
    "the step": ({"step": 1.0}, "it returned 'step', which is the name of another number of the row"),
    "another callback's": ({"spread": 1.0}, "it returned 'spread', which is the name of another number"),
    "a number alone": (0.5, "it returned a float, not numbers by name, a Stop or None"),
    "a text": ({"a": "b"}, "its 'a' is a str, not a number"),
    "no name": ({3: 1.0}, "it named a number 3; a name is a printable text"),
    "an unprintable name": ({"a\n": 1.0}, "it named a number 'a\\n'; a name is a printable text"),
    "a long name": ({"a" * 200: 1.0}, "a name is a printable text"),
    "too many": ({str(i): 1.0 for i in range(101)}, f"it returned 101 numbers; a row has room for {MOST_NUMBERS}"),
}


@pytest.mark.parametrize(("result", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_result_is_refused_once(run: Run, others: None, result: object, message: str) -> None:
    for step in (2, 3):
        DOES[step] = lambda _: result
    callbacks = ("--callback", "samples", "--callback", "does")
    outcome = ok(run("train", *SMALL, "--steps", 4, *callbacks, "--out", "r"))
    assert outcome.err.count("callback does failed at step 2 and is dropped (ValueError: ") == 1
    assert outcome.err.count("callback does") == 1
    assert message in outcome.err
    assert len(SEEN) == len(rows_of("r")) == 4


def test_a_name_stays_with_its_callback() -> None:
    """It does so also in rows where the first callback measures nothing."""
    first: list[Any] = [{"a": 1.0}, None]
    callbacks = Callbacks(
        [("callback x", lambda _: first.pop(0)), ("callback y", lambda p: {"a": 2.0} if p.step else 0)]
    )
    progress = Progress(step=1, steps=9, row={"loss": 1.0}, model=None)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="callback y failed at step 1 and is dropped .*'a', which is the name"):
        assert callbacks(progress) == ({"a": 1.0}, "")
    assert callbacks(progress) == ({"a": None}, "")


def test_rows_before_a_resume_give_names_too() -> None:
    callbacks = Callbacks([("callback x", lambda _: None)], [Row(step=1, metrics={"loss": 1.0, "a": 3.0})])
    assert callbacks(Progress(step=2, steps=9, row={"loss": 1.0}, model=None)) == ({"a": None}, "")  # type: ignore[arg-type]


# ── callbacks that fail ─────────────────────────────────────────────────────────────────────────


def test_a_callback_that_raises_ends_no_run(run: Run, others: None) -> None:
    def raises(_: Progress) -> None:
        raise ConnectionError("line cut")

    DOES[2] = raises
    outcome = ok(run("train", *SMALL, "--steps", 4, "--callback", "does", "--out", "r"))
    assert outcome.err.count("callback does failed at step 2 and is dropped (ConnectionError: line cut)") == 1
    ok(run("train", *SMALL, "--steps", 4, "--out", "plain"))
    assert model_of("r") == model_of("plain")
    outcome = ok(run("train", *SMALL, "--steps", 2, "--callback", "closes", "--out", "s"))
    assert outcome.err.count("callback closes could not be closed (ConnectionError: not sent)") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--callback", "closes", "--callback.opening"), 1, "callback closes failed: ConnectionError: no route"),
        (("--callback", "needs"), 1, "callback needs: needs the module 'no_such_thing', which is not installed"),
        (("--callback", "early-stop", "--callback", "difftool:early-stop"), 2, "callback early-stop: named twice"),
        (("--callback", "early-stopp"), 2, "unknown callback 'early-stopp'; did you mean 'early-stop'?"),
        (("--callback", "early-stop", "--callback.patience", 0), 2, "--callback.patience: "),
        (("--callback.patience", 3), 2, "--callback.patience is an option of the callback early-stop; choose it with"),
        (
            ("--config", "c.toml"),
            2,
            "c.toml, line 2: callbacks.early-stop.patience: must be greater than or equal to 1",
        ),
        (
            ("--callback", "early-stop", "--callback.metric", "held_out_loss"),
            1,
            "callback early-stop: no items are held out, so held_out_loss is never measured; add --held-out N",
        ),
        (
            ("--callback", "early-stop", "--callback.metric", "los"),
            1,
            "callback early-stop: there is no metric 'los'; there are samples, elapsed, loss, ",
        ),
    ],
)
def test_refused_before_training(
    run: Run, others: None, arguments: tuple[object, ...], code: int, message: str
) -> None:
    Path("c.toml").write_text("[callbacks.early-stop]\npatience = 0\n")
    outcome = run("train", *SMALL, "--steps", 2, *arguments, "--out", "r")
    assert message in outcome.error
    assert outcome.code == code
    assert not Path("r/metrics.jsonl").exists()


# ── stopping ────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_ends_the_run_as_its_last_step_would(run: Run, others: None) -> None:
    DOES[3] = lambda _: Stop("enough\nof it")
    outcome = ok(run("train", *SMALL, "--steps", 9, "--callback", "does", "--out", "r", "--json"))
    reason = "callback does stopped the run: enough of it"
    assert f"{reason} (after step 3 of 9)" in outcome.err.splitlines()
    facts = json.loads(outcome.out)
    assert (facts["step"], facts["stopped"]) == (3, reason)
    assert Path("r/loss.png").exists()
    assert [path.name for path in RunFolder(Path("r")).saved_states()] == ["step-000000003.safetensors"]
    assert tomllib.loads(Path("r/config.toml").read_text())["run"]["stopped"] == {"step": 3, "reason": reason}
    (facts,) = json.loads(run("runs", ".", "--json").out)["runs"]
    assert (facts["status"], facts["step"], facts["steps"], facts["reason"]) == ("stopped early", 3, 9, reason)
    assert reason in run("info", "r").out
    assert "difftool train --resume r" in run("info", "r").out
    outcome = ok(run("train", "--resume", "r"))
    assert "resuming r after step 3" in outcome.err
    ok(run("train", *SMALL, "--steps", 9, "--out", "plain"))
    assert model_of("r") == model_of("plain")
    assert json.loads(run("info", "r", "--json").out)["status"] == "finished"
    assert "stopped" not in tomllib.loads(Path("r/config.toml").read_text())["run"]


def test_a_stop_at_the_last_step_is_none(run: Run, others: None) -> None:
    DOES[3] = lambda _: Stop("enough")
    outcome = ok(run("train", *SMALL, "--steps", 3, "--callback", "does", "--out", "r"))
    assert "stopped" not in outcome.err
    assert json.loads(run("info", "r", "--json").out)["status"] == "finished"


def test_all_callbacks_see_the_last_row(run: Run, others: None) -> None:
    DOES[2] = lambda _: Stop("enough")
    ok(run("train", *SMALL, "--steps", 9, "--callback", "does", "--callback", "samples", "--out", "r"))
    assert [progress.step for progress in SEEN] == [1, 2]
    assert rows_of("r")[-1]["spread"] > 0


def test_early_stop_watches_the_held_out_loss(run: Run) -> None:
    stops = ("--held-out", 50, "--callback", "early-stop", "--callback.min-delta", 10, "--callback.patience", 2)
    outcome = ok(run("train", *SMALL, "--steps", 200, *stops, "--out", "r"))
    measured = [row for row in rows_of("r") if row.get("held_out_loss") is not None]
    assert len(measured) == 3
    best = measured[0]
    assert (
        "callback early-stop stopped the run: held_out_loss has not fallen in 2 measurements "
        f"(best {best['held_out_loss']:.4g} at step {best['step']}) (after step {measured[-1]['step']} of 200)"
    ) in outcome.err
    ok(run("train", "--resume", "r"))
    assert len([row for row in rows_of("r") if row.get("held_out_loss") is not None]) == 5


def test_early_stop_says_if_its_metric_never_came(run: Run, others: None) -> None:
    two = ("--callback", "early-stop", "--callback.metric", "spread", "--callback", "samples")
    assert "no row had" not in ok(run("train", *SMALL, "--steps", 4, *two)).err
    outcome = ok(run("train", *SMALL, "--steps", 4, *two, "--callback.every", 9))
    assert outcome.err.count("callback early-stop: no row had a metric 'spread', so it stopped nothing") == 1


@pytest.mark.parametrize("killed", [1, 4, 7])
def test_a_run_that_was_killed_stops_where_it_would_have(run: Run, killed: int) -> None:
    long = (*SMALL, "--steps", 60, "--checkpoint-every", 1, "--keep", 99, *STOPS)
    ok(run("train", *long, "--out", "straight"))
    last = rows_of("straight")[-1]["step"]
    assert 8 <= last < 60
    shutil.copytree("straight", "r")
    for state in RunFolder(Path("r")).saved_states():
        if int(state.stem[5:]) > killed:
            state.unlink()
    outcome = ok(run("train", "--resume", "r"))
    assert f"resuming r after step {killed}" in outcome.err
    assert "callback early-stop stopped the run: grad_norm has not fallen in 3 measurements" in outcome.err
    assert [row["step"] for row in rows_of("r")] == [*range(1, last + 1)]
    assert model_of("r") == model_of("straight")


def test_wait() -> None:
    wait = Wait(2, 0.1)
    values = [1.0, None, 0.95, 0.8, 0.75, None, 0.71, 0.72, 0.74, 0.6, 0.6, 0.6]
    assert [i for i, value in enumerate(values) if wait.see(value, i)] == [6, 8, 11]
    assert (wait.best, wait.step) == (0.6, 9)


# ── from Python, and on the way ─────────────────────────────────────────────────────────────────


def test_python_takes_callbacks(run: Run, others: None, capfd: pytest.CaptureFixture[str]) -> None:
    DOES[2] = lambda _: Stop("enough")
    mlp = difftool.component("backbone", "mlp", width=16, depth=1)
    model = difftool.train(dataset=torch.randn(100, 2), backbone=mlp, callbacks=[Does(), "none"], steps=9, out="r")
    assert model.step == 2
    assert "callback does stopped the run: enough (after step 2 of 9)" in capfd.readouterr().err
    data = torch.randn(100, 2)
    again = difftool.train(dataset=data, backbone=mlp, callbacks=["early-stop"], steps=3, out="s", progress=False)
    assert again.step == 3
    assert tomllib.loads(Path("s/config.toml").read_text())["callbacks"]["early-stop"]["patience"] == 10
    difftool.train(resume="s", dataset=data, steps=4)
    assert "callbacks" in tomllib.loads(Path("s/config.toml").read_text())
    difftool.train(resume="s", dataset=data, steps=5, callbacks=[])
    assert "callbacks" not in tomllib.loads(Path("s/config.toml").read_text())
    for wrong, message in ((Does(), "callbacks are a list of names"), ([3], "a callback is given by its name")):
        with pytest.raises(TypeError, match=message):
            difftool.train(dataset=data, backbone=mlp, callbacks=wrong, steps=1)


def test_none_replaces_the_callbacks_of_a_run(run: Run) -> None:
    ok(run("train", *SMALL, "--steps", 60, *STOPS, "--logger", "csv", "--out", "r"))
    ok(run("train", "--resume", "r", "--callback", "none"))
    config = tomllib.loads(Path("r/config.toml").read_text())
    assert (config["callbacks"], config["loggers"]) == ({"none": {}}, {"csv": {}})
    assert rows_of("r")[-1]["step"] == 60
