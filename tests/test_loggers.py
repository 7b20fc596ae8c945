"""Loggers: what they write, that a resumed run goes on where it stopped, and that a failing one ends no run."""

from __future__ import annotations

import contextlib
import csv
import importlib.machinery
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import POINTS, Run

import difftool
from difftool import Logger, Row, RunContext, hookimpl, option
from difftool.runs.folder import RunFolder
from difftool.testing import PluginManager

SMALL = (*POINTS, "--threads", 1, "--checkpoint-every", 4)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_row_a_logged_step(run: Run) -> None:
    outcome = run("train", *SMALL, "--steps", 6, "--held-out", 50, "--logger", "csv", "--out", "r")
    assert outcome.code == 0, outcome.err
    rows, metrics = rows_of(Path("r/logs/metrics.csv")), RunFolder(Path("r")).read_metrics()
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, known in zip(rows, metrics, strict=True):
        assert float(row["loss"]) == known["loss"]
        quartiles = [row[f"loss_quartile_{i}"] for i in (1, 2, 3, 4)]
        assert [float(q) if q else None for q in quartiles] == known["loss_quartiles"]
    assert [row["held_out_loss"] != "" for row in rows] == [False] * 5 + [True]


def test_a_resumed_run_logs_nothing_twice_and_needs_no_flag(run: Run) -> None:
    """After a kill: rows beyond the last state, and half a line."""
    assert run("train", *SMALL, "--steps", 8, "--logger", "csv", "--out", "r").code == 0
    table = Path("r/logs/metrics.csv")
    straight = table.read_text().splitlines()
    for state in RunFolder(Path("r")).saved_states():
        if state.stem.endswith("8"):
            state.unlink()
    Path("r/model.safetensors").unlink()
    with table.open("a") as file:
        file.write("9,576,0.0")
    outcome = run("train", "--resume", "r")
    assert outcome.code == 0, outcome.err
    again = table.read_text().splitlines()
    assert [line.split(",")[0] for line in again] == ["step", *"12345678"]
    assert again[:5] == straight[:5]
    losses = [[row["loss"] for row in csv.DictReader(lines)] for lines in (straight, again)]
    assert losses[0] == losses[1]


def test_config_remembers_loggers_and_the_model_does_not(run: Run, tmp_path: Path) -> None:
    jsonl = ("--logger", "jsonl", "--logger.path", "all.jsonl")
    assert run("train", *SMALL, "--steps", 2, "--logger", "csv", *jsonl, "--out", "r").code == 0
    config = tomllib.loads(Path("r/config.toml").read_text())
    assert config["loggers"] == {"csv": {}, "jsonl": {"path": str(tmp_path / "all.jsonl")}}
    assert "jsonl" not in json.dumps(difftool.load("r").recipe.document())
    again = run("train", "--config", "r/config.toml", "--out", "s", "--logger.path", "all.jsonl")
    assert again.code == 0, again.err
    assert f"logging to jsonl: path {tmp_path / 'all.jsonl'}" in again.err
    assert len(rows_of(Path("s/logs/metrics.csv"))) == 2
    lines = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert [(Path(line["run"]).name, line["step"]) for line in lines] == [("r", 1), ("r", 2), ("s", 1), ("s", 2)]
    assert all(line["loss"] > 0 and line["started"].startswith("20") for line in lines)


def test_others_can_be_named_on_the_way(run: Run) -> None:
    assert run("train", *SMALL, "--steps", 2, "--logger", "csv", "--out", "r").code == 0
    assert run("train", "--resume", "r", "--steps", 3, "--logger", "none").code == 0
    assert len(rows_of(Path("r/logs/metrics.csv"))) == 2
    assert "none" in tomllib.loads(Path("r/config.toml").read_text())["loggers"]
    replaced = run("train", *SMALL, "--steps", 2, "--out", "r", "--overwrite")
    assert replaced.code == 0
    assert not Path("r/logs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--logger", "cvs"), 2, "unknown logger 'cvs'; did you mean 'csv'?"),
        (
            ("--logger", "csv", "--logger.path", "x"),
            2,
            "an option of the logger jsonl; choose it with --logger jsonl",
        ),
        (("--logger", "csv", "--logger.pth", "x"), 2, "there is no option --logger.pth"),
        (("--config", "unknown.toml"), 2, "unknown.toml: loggers: unknown logger 'prom'"),
        (("--config", "flat.toml"), 2, "flat.toml, line 1: loggers: csv must be a table, [loggers.csv]"),
        (("--logger", "csv", "--logger", "difftool:csv"), 2, "logger csv: named twice; name it once"),
        (("--logger", "nested"), 1, "logger nested: needs the module 'no_such_thing.part', which is not installed"),
        (("--config", "option.toml"), 2, "option.toml, line 3: loggers.jsonl.pth: there is no such option"),
        (
            ("--logger", "absent"),
            1,
            "logger absent: needs the module 'no_such_thing', which is not installed",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    run: Run, plugin_manager: PluginManager, arguments: tuple[str, ...], code: int, message: str
) -> None:
    plugin_manager.register(module(Absent, Nested))
    Path("unknown.toml").write_text("[loggers.prom]\n[plugins]\ndifftool-prom = '1.2'\n")
    Path("flat.toml").write_text("[loggers]\ncsv = 3\n")
    Path("option.toml").write_text("[loggers.jsonl]\npath = 'x'\npth = 'y'\n")
    outcome = run("train", *SMALL, "--steps", 2, *arguments)
    assert outcome.code == code
    assert message in outcome.error
    assert not Path("runs").exists()


def test_a_missing_package_of_a_logger_is_named(run: Run) -> None:
    Path("c.toml").write_text("[loggers.prom]\n[plugins]\ndifftool-prom = '1.2'\n")
    outcome = run("train", "--config", "c.toml", "--steps", 1)
    assert "difftool-prom 1.2, which is not installed: pip install difftool-prom==1.2" in outcome.error


# ── loggers that fail ───────────────────────────────────────────────────────────────────────────


class Absent(Logger, name="absent"):
    """Needs what is not there."""

    requires = {"no_such_thing": "no-such-thing"}

    def open(self, run: RunContext) -> Any:
        raise AssertionError("never opened")


class Nested(Absent, name="nested"):
    """Needs a part of what is not there."""

    requires = {"no_such_thing.part": "no-such-thing"}


class Leaves(Logger, name="leaves"):
    """Raises what is no `Exception`, at a step or when closed."""

    closing: bool = option(default=False, help="when closed")

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        def log(row: Row) -> None:
            if not self.closing:
                raise SystemExit(0)

        yield log
        raise KeyboardInterrupt


class NeverOpens(Logger, name="never-opens"):
    """Ends the program when it is opened."""

    def open(self, run: RunContext) -> Any:
        raise SystemExit(0)


class OtherCsv(Logger, name="csv"):
    """Of the same name as a built-in."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        yield TOLD.append


class Fails(Logger, name="fails"):
    """Fails at a step, when opened, or when closed."""

    at: int = option(default=3, help="step; 0: when opened; -1: when closed")

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        if self.at == 0:
            raise ConnectionError("no route")

        def log(row: Row) -> None:
            if row.step == self.at:
                raise ConnectionError("line cut")

        yield log
        if self.at == -1:
            raise ConnectionError("not sent")


class Remembers(Logger, name="remembers"):
    """What it was told, for the test to see."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        TOLD.append(run)
        try:
            yield TOLD.append
        except BaseException as error:
            TOLD.append(type(error).__name__)
            raise


TOLD: list[Any] = []


def module(*loggers: type[Logger]) -> Any:
    made = ModuleType("mine")
    made.difftool_loggers = hookimpl(lambda: list(loggers))  # type: ignore[attr-defined]
    return made


@pytest.fixture
def others(plugin_manager: PluginManager) -> None:
    TOLD.clear()
    assert not plugin_manager.register(module(Fails, Remembers, Leaves, NeverOpens)).problems


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (3, "logger fails failed at step 3 and is dropped (ConnectionError: line cut)"),
        (-1, "logger fails could not be closed (ConnectionError: not sent)"),
    ],
)
def test_a_logger_that_fails_ends_no_run(run: Run, others: None, at: int, words: str) -> None:
    loggers = ("--logger", "fails", "--logger.at", at, "--logger", "csv")
    outcome = run("train", *SMALL, "--steps", 6, *loggers, "--out", "r")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count(words) == 1
    assert len(rows_of(Path("r/logs/metrics.csv"))) == 6
    straight = run("train", *SMALL, "--steps", 6, "--out", "s")
    assert straight.code == 0
    assert Path("r/model.safetensors").read_bytes() == Path("s/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "logger leaves failed at step 1 and is dropped (SystemExit: 0)"),
        (("--logger.closing",), "logger leaves could not be closed (KeyboardInterrupt)"),
    ],
)
def test_a_logger_that_would_end_the_program_ends_no_run(
    run: Run, others: None, options: tuple[str, ...], words: str
) -> None:
    outcome = run("train", *SMALL, "--steps", 3, "--logger", "leaves", *options, "--out", "r")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count(words) == 1
    assert Path("r/model.safetensors").exists()
    refused = run("train", *SMALL, "--steps", 3, "--logger", "never-opens", "--out", "s")
    assert refused.code == 1
    assert "logger never-opens failed: SystemExit: 0" in refused.error


@pytest.mark.parametrize("names", [("csv", "other:csv"), ("other:csv", "csv")])
def test_two_loggers_of_one_name_get_their_own_rows(
    run: Run, plugin_manager: PluginManager, names: tuple[str, str]
) -> None:
    TOLD.clear()
    plugin_manager.register(module(OtherCsv), "other")
    named = [word for name in names for word in ("--logger", name)]
    assert run("train", *SMALL, "--steps", 3, *named, "--out", "r").code == 0
    assert [row.step for row in TOLD if row.metrics] == [1, 2, 3]
    assert [row["step"] for row in rows_of(Path("r/logs/metrics.csv"))] == ["1", "2", "3"]
    assert set(tomllib.loads(Path("r/config.toml").read_text())["loggers"]) == {"csv", "other:csv"}


def test_a_logger_that_cannot_be_opened_ends_the_run_before_training(run: Run, others: None) -> None:
    outcome = run("train", *SMALL, "--steps", 6, "--logger", "fails", "--logger.at", 0, "--out", "r")
    assert outcome.code == 1
    assert "logger fails failed: ConnectionError: no route" in outcome.error
    assert not Path("r/model.safetensors").exists()


def test_a_logger_is_told_of_the_run_its_rows_and_pictures(run: Run, others: None) -> None:
    pictures = ("--preview-every", 2)
    outcome = run("train", *SMALL, "--steps", 4, *pictures, "--logger", "remembers", "--out", "r")
    assert outcome.code == 0, outcome.err
    context, *rows = TOLD
    assert (context.folder, context.logs, context.name) == (Path("r"), Path("r/logs"), "swiss-roll-mlp")
    assert context.step == 0
    assert context.config["training"]["steps"] == 4
    assert context.started == RunFolder(Path("r")).started
    numbers = [row for row in rows if row.metrics]
    assert [row.step for row in numbers] == [1, 2, 3, 4]
    assert len({tuple(row.metrics) for row in numbers}) == 1  # the same names in each
    drawn = [(row.step, [path.name for path in row.pictures]) for row in rows if row.pictures]
    assert drawn == [(step, [f"samples-{step:06d}.png", f"panel-{step:06d}.png"]) for step in (2, 4)]
    TOLD.clear()
    assert run("train", "--resume", "r", "--steps", 5).code == 0
    assert (TOLD[0].step, TOLD[0].started) == (4, context.started)
    assert [row.step for row in TOLD[1:] if row.metrics] == [5]


def test_a_logger_learns_that_a_run_failed(run: Run, others: None) -> None:
    wild = ("--lr", 10, "--backbone.depth", 64, "--backbone.activation", "relu", "--warmup", 0)
    outcome = run("train", *SMALL, "--steps", 50, *wild, "--logger", "remembers")
    assert outcome.code == 1
    assert TOLD[-1] == "Diverged"


def test_python_takes_loggers_too(run: Run, others: None) -> None:
    small = {"backbone": difftool.component("backbone", "mlp", width=8), "steps": 2, "batch_size": 8, "out": "r"}
    difftool.train(dataset=difftool.component("dataset", "swiss-roll", n=50), loggers=["csv", Remembers()], **small)
    assert len(rows_of(Path("r/logs/metrics.csv"))) == 2
    assert TOLD[0].folder == Path("r")


# ── services ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.extras
def test_tensorboard_reads_what_was_logged(run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pictures = ("--preview-every", 3)
    assert run("train", *SMALL, "--steps", 6, *pictures, "--logger", "tensorboard", "--out", "r").code == 0
    assert run("train", "--resume", "r", "--steps", 9).code == 0
    events = EventAccumulator("r/logs/tensorboard", size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    known = {row["step"]: row["loss"] for row in RunFolder(Path("r")).read_metrics()}
    assert {event.step: event.value for event in events.Scalars("loss")} == pytest.approx(known, rel=1e-6)
    assert [event.step for event in events.Images("samples")] == [3, 6, 9]
    assert events.Images("samples")[0].width > 300
    assert b"swiss-roll" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


class Wandb(ModuleType):
    """What difftool uses of the library, as it behaved when it was tried (0.31): the real one is not installed here."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.closed: list[Any] = []
        self.known = True

    def login(self, *, prompt: bool) -> bool:
        assert not prompt
        return self.known

    def init(self, **about: Any) -> Wandb:
        self.started.append(about)
        return self

    def __enter__(self) -> Wandb:
        return self

    def __exit__(self, *ending: Any) -> None:
        self.closed.append(ending[0])

    def log(self, values: dict[str, Any], *, step: int) -> None:
        self.logged.append((step, values))

    def Image(self, path: str) -> str:
        return f"image {Path(path).name}"


def test_wandb_is_told_of_one_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    about = ("--logger", "wandb", "--logger.project", "rolls", "--preview-every", 2)
    assert run("train", *SMALL, "--steps", 4, *about, "--out", "r").code == 0
    assert run("train", "--resume", "r", "--steps", 5).code == 0
    first, second = wandb.started
    assert (first["project"], first["name"], first["mode"], first["resume"]) == ("rolls", "r", "online", "allow")
    assert first["id"] == second["id"]
    assert first["config"]["dataset"]["name"] == "swiss-roll"
    assert [step for step, values in wandb.logged if "loss" in values] == [1, 2, 3, 4, 5]
    assert all(value is not None for _, values in wandb.logged for value in values.values())
    assert (2, {"samples": "image samples-000002.png", "panel": "image panel-000002.png"}) in wandb.logged
    assert wandb.closed == [None, None]
    wandb.known = False
    refused = run("train", *SMALL, "--steps", 4, *about, "--out", "s")
    assert refused.code == 1
    assert "you are not logged in; run 'wandb login', or choose --logger.mode offline" in refused.error
    assert run("train", *SMALL, "--steps", 1, *about, "--logger.mode", "offline", "--out", "t").code == 0


@pytest.mark.extras
def test_the_real_wandb_keeps_an_offline_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it keeps holds the loss of every step, and a resumed run has the same identity."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    offline = ("--logger", "wandb", "--logger.mode", "offline")
    assert run("train", *SMALL, "--steps", 3, *offline, "--out", "r").code == 0
    assert run("train", "--resume", "r", "--steps", 5).code == 0
    kept = sorted(Path("r/logs/wandb").glob("offline-run-*/run-*.wandb"))
    first, second = (path.read_bytes() for path in kept)  # a log of records with their numbers as JSON
    assert len({path.stem for path in kept}) == 1
    for row in RunFolder(Path("r")).read_metrics():
        assert json.dumps(row["loss"]).encode() in (first if row["step"] <= 3 else second)
