"""Run folders, and how to find them.

lock                 locked while a process trains the run, and the mark of a run folder
config.toml          the resolved recipe, and a record of the run
model.safetensors    the weights to sample from, with all that sampling needs
best.safetensors     the same after the step with the best held-out loss, or the best value of a metric
averages/            other averages of the weights; see `difftool.runs.averages`
state/               training states, from which the run can be resumed; see `difftool.runs.states`
metrics.jsonl        one JSON object per logged step
previews/ samples/ loss.png
evaluations.jsonl    one JSON object per evaluation; see `difftool.runs.evaluations`
evaluations/         pictures of evaluations
report.html          the page that `difftool report` writes
trace.json.gz        the trace of `train --profile`
results/             files of commands that plugins add
logs/                files of loggers

`difftool.runs.creation` creates new ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from difftool.display import Displayed
from difftool.errors import BadFile, DifftoolError, UsageError
from difftool.files import open_regular, parse_json, sweep, write_text
from difftool.locks import followed, hold, holder, in_use
from difftool.paths import check_inside, check_links
from difftool.runs.config import dump_toml, read_toml
from difftool.runs.losses import losses
from difftool.runs.rows import LONGEST_ROW, is_row
from difftool.runs.tail import read_tail
from difftool.runs.verdict import Verdict, verdict
from difftool.settings import LARGEST_STEP

ROOT = Path("runs")
LOCK = "lock"
INDEX = "index.json"
"""The file that makes a folder of shards a training state; see `difftool.runs.states`."""
DAMAGED = ".damaged"
"""The suffix of a training state that could not be read."""
FOLDERS = ("state", "averages", "previews", "samples", "evaluations", "results")
STATE = re.compile(r"step-\d{9,10}(\.safetensors)?", re.ASCII)


@dataclass(frozen=True)
class Status:
    """The progress of a run."""

    status: Literal["training", "finished", "stopped", "stopped early"]
    step: int
    """The step from which it can be resumed, or the last logged one if it is being trained."""
    steps: int | None
    """The last step, if it is recorded."""
    reason: str | None = None
    """The callback that stopped the run early, and its reason."""


class _Inside:
    """A path with a fixed name inside a run folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunFolder, _owner: object = None) -> Path:
        return run.path / self.name


@dataclass(frozen=True, repr=False)
class RunFolder(Displayed):
    """The files of a run. It can be used as a path, and a notebook shows its loss."""

    path: Path
    config = _Inside("config.toml")
    model = _Inside("model.safetensors")
    best = _Inside("best.safetensors")
    metrics = _Inside("metrics.jsonl")
    loss = _Inside("loss.png")
    report = _Inside("report.html")
    trace = _Inside("trace.json.gz")
    averages = _Inside("averages")
    states = _Inside("state")
    previews = _Inside("previews")
    samples = _Inside("samples")
    evaluations = _Inside("evaluations.jsonl")
    evaluation_pictures = _Inside("evaluations")
    results = _Inside("results")
    logs = _Inside("logs")

    def __repr__(self) -> str:
        status = self.status()
        total = "" if status.steps is None else f" of {status.steps}"
        return f"RunFolder({self.path}, {status.status}, step {status.step}{total})"

    def __fspath__(self) -> str:
        return str(self.path)

    @staticmethod
    def state_name(step: int) -> str:
        return f"step-{step:09d}.safetensors"

    def state(self, step: int) -> Path:
        return self.states / self.state_name(step)

    def shards(self, step: int) -> Path:
        """Return the folder of a state of shards."""
        return self.states / f"step-{step:09d}"

    def saved_states(self) -> list[Path]:
        """Return the training states, the newest first: files, and folders of shards with their index."""
        paths = (self.states / name for name in names_in(self.states) if STATE.fullmatch(name))
        found = [path for path in paths if path.suffix or (path / INDEX).is_file()]
        return sorted(found, key=step_of, reverse=True)

    def damaged_states(self) -> list[Path]:
        """Return the states that were set aside."""
        paths = (self.states / name for name in names_in(self.states) if name.endswith(DAMAGED))
        return sorted(path for path in paths if STATE.fullmatch(path.stem))

    def set_aside(self, states: Sequence[Path]) -> None:
        """Rename damaged states, which would otherwise count among the newest and be kept instead of valid ones."""
        for path in states:
            if path.suffix != DAMAGED:
                path.rename(path.with_name(path.name + DAMAGED))

    def write_config(
        self, document: Mapping[str, Any], recorded: Mapping[str, Any], plugins: Mapping[str, str]
    ) -> None:
        """Write `config.toml`: the tables of recipe and loggers, and a record of the run that is not read back."""
        tables = {"run": {k: v for k, v in recorded.items() if v is not None}, **document, "plugins": plugins}
        head = "# Written by difftool; `difftool train --config` reads it. [run] and [plugins] only record.\n\n"
        write_text(self.config, head + dump_toml(tables))

    def read_config(self) -> dict[str, Any]:
        return read_toml(self.config)

    def readable_config(self) -> dict[str, Any]:
        """Return the config file, or an empty dictionary if it cannot be read, so that the run can be listed."""
        try:
            return self.read_config()
        except UsageError:
            return {}

    def recorded(self) -> dict[str, Any]:
        """Return the record of the run in its config file: when it began, on which machine, with which data."""
        return recorded_in(self.readable_config())

    @property
    def started(self) -> str:
        """The time when the run began, ISO 8601, or an empty text where the config file holds no time."""
        return started_in(self.recorded())

    def status(self, recorded: Mapping[str, Any] | None = None) -> Status:
        """Return the progress of the run, by its lock, its states and its metrics.

        `recorded` is the record of the run in its config file, if that has been read already.
        """
        recorded = self.recorded() if recorded is None else recorded
        steps = recorded.get("steps")
        steps = steps if type(steps) is int and 0 <= steps <= LARGEST_STEP else None
        if self.in_use_by:
            last = read_tail(self.metrics).last
            return Status("training", last["step"] if last else 0, steps)
        step = next((step_of(path) for path in self.saved_states()), 0)
        finished = steps is not None and step >= steps and self.model.is_file()
        early = recorded.get("stopped")
        if not finished and isinstance(early, dict) and early.get("step") == step and self.model.is_file():
            return Status("stopped early", step, steps, str(early.get("reason")))
        return Status("finished" if finished else "stopped", step, steps)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise DifftoolError(f"{self.metrics} could not be written: {error.strerror}") from None

    def read_metrics(self, up_to: int | None = None) -> list[dict[str, Any]]:
        """Return the logged rows, up to a step. A killed run may leave half a line, which is skipped."""
        rows: dict[int, dict[str, Any]] = {}
        with contextlib.suppress(OSError), open_regular(self.metrics) as file:
            while line := file.readline(LONGEST_ROW):
                with contextlib.suppress(ValueError):
                    row = parse_json(line)
                    if is_row(row) and (up_to is None or row["step"] <= up_to):
                        rows[row["step"]] = row
        return list(rows.values())

    def losses(self, up_to: int | None = None) -> dict[str, float | None]:
        """Return the losses at the last logged row, up to a step: smoothed, and of held-out items."""
        return losses(self.read_metrics(up_to))

    def verdict(self) -> Verdict:
        """Return what the losses tell: whether they still fall, and whether the model memorises its items."""
        return verdict(self.read_metrics())

    def rewrite_metrics(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    @contextlib.contextmanager
    def lock(self) -> Iterator[Callable[[], RunFolder]]:
        """Lock the run for a block. Raises `DifftoolError` if another process trains it.

        The block gets a function that returns the run where it lies by then, since somebody may move it.
        """
        with hold(self.path / LOCK), followed(self.path) as place:
            sweep(self.path)
            yield lambda: RunFolder(place())

    def check_free(self) -> None:
        """Check that no other process trains the run. Raises `DifftoolError`."""
        if process := self.in_use_by:
            raise in_use(self.path, process)

    def check_room(self, state_bytes: int, average_bytes: int = 0) -> None:
        """Check, before any work, that the files of a run can be written, and in its folder. Raises `DifftoolError`."""
        check_links(self.logs, self.path)
        for folder in (self.path / name for name in FOLDERS):
            check_inside(folder, self.path)
            if folder.exists() and not folder.is_dir():
                raise DifftoolError(f"{folder} is a file; a run needs a folder there")
        for file in (self.config, self.model, self.best, self.metrics, self.loss, self.evaluations):
            if file.exists() and not file.is_file():
                raise DifftoolError(f"{file} is not a regular file; a run needs one there")
        free = shutil.disk_usage(self.path).free
        if free < state_bytes + average_bytes:
            averages = f", and the averages to come {average_bytes / 2**20:.1f} MiB" if average_bytes else ""
            raise DifftoolError(
                f"{self.path}: its disk has {free / 2**20:.1f} MiB left, and a training state takes "
                f"{state_bytes / 2**20:.1f} MiB{averages}; free some space, or choose another --out"
            )

    @property
    def in_use_by(self) -> str:
        """The number of the process that trains the run, or an empty text."""
        return holder(self.path / LOCK)


INSIDE = RunFolder(Path())
"""The paths of the files inside a run folder."""


def recorded_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a run in its config file, or an empty dictionary where the file has none."""
    recorded = config.get("run")
    return recorded if isinstance(recorded, dict) else {}


def started_in(recorded: Mapping[str, Any]) -> str:
    """Return the time when a run began, ISO 8601, or an empty text where its record holds no time."""
    try:
        return datetime.fromisoformat(str(recorded.get("started"))).isoformat(timespec="milliseconds")
    except ValueError:
        return ""


def step_of(state: Path) -> int:
    """Return the step in the name of a training state."""
    return int(state.stem.removeprefix("step-"))


def is_run(path: Path) -> bool:
    """Return whether a path is a run folder: it has a configuration."""
    return os.path.isfile(os.path.join(path, "config.toml"))


def open_run(path: Path) -> RunFolder:
    """Return the run folder at a path. Raises `BadFile`."""
    if not path.exists():
        raise BadFile(f"run {path} does not exist")
    if not is_run(path):
        raise BadFile(f"{path} is not a run folder: it has no config.toml")
    return RunFolder(path)


def all_runs(root: Path = ROOT) -> list[RunFolder]:
    """Return the runs in a folder, the newest first by their recorded start."""
    return sorted(runs_in(root), key=lambda run: (run.started, run.path.name), reverse=True)


def runs_in(root: Path) -> list[RunFolder]:
    """Return the runs in a folder, in any order."""
    return [RunFolder(root / name) for name in names_in(root) if is_run(root / name)]


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, none if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def find_model(name: Path | None) -> tuple[Path, RunFolder | None]:
    """Return the model file of a run, by default the newest, and the run; or a single model file and None.

    Raises `DifftoolError`, or `BadFile` for a wrong path.
    """
    if name is None:
        for run in all_runs():
            if run.model.is_file():
                return run.model, run
        raise DifftoolError(f"there is no trained run under {ROOT.absolute()}; train one with 'difftool train'")
    if name.is_dir():
        run = open_run(name)
        if not run.model.is_file():
            raise DifftoolError(f"run {name} has no model yet; continue it with 'difftool train --resume {name}'")
        return run.model, run
    if not name.exists():
        raise BadFile(f"{name} does not exist: it names neither a run folder nor a model file")
    return name, None


def now() -> str:
    """Return the time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
