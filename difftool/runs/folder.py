"""The run folder: where everything of a run lies, and how runs are found again.

lock                 held while a process trains the run
config.toml          the resolved recipe, and what is recorded with it
model.safetensors    the weights to sample from, with all that sampling needs
state/               training states, to go on from
metrics.jsonl        one JSON object a logged step
previews/ samples/ loss.png
logs/                what loggers keep there
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from difftool.errors import BadFile, DifftoolError, UsageError
from difftool.files import TEMPORARY, check_output, hold, holder, in_use, make_folder, sweep, write_text
from difftool.runs.config import dump_toml, read_toml
from difftool.runs.recipe import Recipe

ROOT = Path("runs")
LOCK = "lock"
DAMAGED = ".damaged"
"""Ends the name of a training state that could not be read."""
LARGEST = 1e300
"""A number in metrics.jsonl stays below this."""
OURS = ("state", "model.safetensors", "metrics.jsonl", "loss.png", "previews", "samples", "logs", "config.toml")
"""What a run writes into its folder: all that --overwrite may remove, the states first, so that what is left of a run
half removed cannot be gone on with."""


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    status: Literal["training", "finished", "stopped"]
    step: int
    """The step that it can go on from; of a run that is trained now, the last one logged."""
    steps: int | None
    """The step that it ends at, where that is recorded."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def loss(self) -> Path:
        return self.path / "loss.png"

    @property
    def states(self) -> Path:
        return self.path / "state"

    @property
    def previews(self) -> Path:
        return self.path / "previews"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @staticmethod
    def state_name(step: int) -> str:
        return f"step-{step:09d}.safetensors"

    def state(self, step: int) -> Path:
        return self.states / self.state_name(step)

    def saved_states(self) -> list[Path]:
        """Training states, the newest first."""
        found = [p for p in self.states.glob("step-*.safetensors") if re.fullmatch(r"step-\d{9,10}", p.stem, re.ASCII)]
        return sorted(found, key=step_of, reverse=True)

    def damaged_states(self) -> list[Path]:
        """States that were set aside."""
        return sorted(self.states.glob(f"step-*{DAMAGED}"))

    def set_aside(self, states: Sequence[Path]) -> None:
        """Give damaged states another name, or they would count as the newest, to be kept before valid ones."""
        for path in states:
            if path.suffix != DAMAGED:
                path.rename(path.with_name(path.name + DAMAGED))

    def write_config(
        self, document: Mapping[str, Any], recorded: Mapping[str, Any], plugins: Mapping[str, str]
    ) -> None:
        """`config.toml`: the tables of recipe and loggers, and what is recorded but not read back."""
        run = {k: v for k, v in recorded.items() if v is not None}
        tables = {"run": run, **document, "plugins": plugins}
        head = "# Written by difftool; `difftool train --config` reads it. [run] and [plugins] only record.\n\n"
        write_text(self.config, head + dump_toml(tables))

    def read_config(self) -> dict[str, Any]:
        return read_toml(self.config)

    def readable_config(self) -> dict[str, Any]:
        """The config file, or nothing where it cannot be read: enough to list a run."""
        try:
            return self.read_config()
        except UsageError:
            return {}

    def recorded(self) -> dict[str, Any]:
        """What the config file only records: when the run began, where, on which data."""
        recorded = self.readable_config().get("run")
        return recorded if isinstance(recorded, dict) else {}

    @property
    def started(self) -> str:
        """When the run began, ISO 8601 in UTC; empty where that is not recorded."""
        return str(self.recorded().get("started", ""))

    def status(self) -> Status:
        """How far the run is, by its lock, its states and its metrics."""
        steps = self.recorded().get("steps")
        steps = steps if type(steps) is int else None
        if self.in_use_by:
            rows = self.read_metrics()
            return Status("training", rows[-1]["step"] if rows else 0, steps)
        step = next((step_of(path) for path in self.saved_states()), 0)
        finished = steps is not None and step >= steps and self.model.is_file()
        return Status("finished" if finished else "stopped", step, steps)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise DifftoolError(f"{self.metrics} could not be written: {error.strerror}") from None

    def read_metrics(self, up_to: int | None = None) -> list[dict[str, Any]]:
        """The logged rows, up to a step; a half-written last line of a killed run is passed over."""
        rows: dict[int, dict[str, Any]] = {}
        if self.metrics.is_file():
            for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    row = json.loads(line)
                    if _is_row(row) and (up_to is None or row["step"] <= up_to):
                        rows[row["step"]] = row
        return list(rows.values())

    def rewrite_metrics(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: a second process is told so. The kernel frees the lock even after kill -9."""
        with hold(self.path / LOCK):
            sweep(self.path)
            yield

    def check_free(self) -> None:
        """Refuse a run that another process trains, before the data are loaded."""
        if process := self.in_use_by:
            raise in_use(self.path, process)

    def check_room(self, state_bytes: int) -> None:
        """Refuse a run whose state cannot be written, before it has cost any time."""
        for folder in (self.states, self.previews, self.samples):
            if folder.exists() and not folder.is_dir():
                raise DifftoolError(f"{folder} is a file; a run needs a folder there")
        for file in (self.config, self.model, self.metrics, self.loss):
            if file.exists() and not file.is_file():
                raise DifftoolError(f"{file} is not a regular file; a run needs one there")
        free = shutil.disk_usage(self.path).free
        if free < state_bytes:
            raise DifftoolError(
                f"{self.path}: its disk has {free / 2**20:.1f} MiB left, and a training state takes "
                f"{state_bytes / 2**20:.1f} MiB; make room, or take another --out"
            )

    @property
    def in_use_by(self) -> str:
        """The number of the process that trains the run now; empty where none does."""
        return holder(self.path / LOCK)


def step_of(state: Path) -> int:
    """The step in the name of a training state."""
    return int(state.stem.removeprefix("step-"))


def create(recipe: Recipe, out: Path | None, *, overwrite: bool) -> RunFolder:
    """A new run folder: `out`, or `runs/<dataset>-<backbone>-NNN`, made exclusively."""
    if out is not None:
        check_run_output(out, overwrite=overwrite)
        make_folder(out)
        folder = RunFolder(out)
        with folder.lock():  # refuses a run that is still training
            _clear(out)
        return folder
    make_folder(ROOT)
    taken = [int(m[1]) for p in ROOT.iterdir() if (m := re.fullmatch(rf"{re.escape(recipe.name)}-(\d{{3,}})", p.name))]
    number = max(taken, default=0) + 1
    while True:
        path = ROOT / f"{recipe.name}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:  # another run was faster
            number += 1
        else:
            return RunFolder(path)


def check_run_output(out: Path | None, *, overwrite: bool) -> None:
    """Refuse, before any work, an --out that cannot become a run folder; without one, runs/ must be able to take it."""
    if out is None:
        check_output(ROOT / "x", overwrite=False)
        return
    if out.exists() and not out.is_dir():
        raise DifftoolError(f"--out: {out} is a file; name a folder")
    check_output(out, overwrite=True, folder=True)
    if out.is_dir():
        if not os.access(out, os.W_OK):
            raise DifftoolError(f"--out: {out} is not writable")
        content = _content(out)
        if content and not overwrite:
            raise DifftoolError(f"--out: {out} is not empty; name a new folder, or --overwrite a run")
        if "config.toml" not in content and not content <= {*OURS}:
            raise DifftoolError(f"--out: {out} is no run folder, so --overwrite leaves it alone; name another")


def _content(folder: Path) -> set[str]:
    """The names in a folder, without those that a run killed at its very beginning leaves."""
    names = {p.name for p in folder.iterdir() if not p.name.startswith(TEMPORARY)} - {LOCK}
    state = folder / "state"
    return names if state.is_file() or (state.is_dir() and any(state.iterdir())) else names - {"state"}


def open_run(path: Path) -> RunFolder:
    """The run folder at a path. Raises `BadFile`."""
    if not path.exists():
        raise BadFile(f"run {path} does not exist")
    if not (path / "config.toml").is_file():
        raise BadFile(f"{path} is no run folder: it has no config.toml")
    return RunFolder(path)


def all_runs(root: Path = ROOT) -> list[RunFolder]:
    """The runs under a folder, the newest first by recorded start."""
    runs = [RunFolder(p.parent) for p in root.glob("*/config.toml") if p.is_file()]
    return sorted(runs, key=lambda run: (run.started, run.path.name), reverse=True)


def find_model(name: Path | None) -> tuple[Path, RunFolder | None]:
    """The model file of a run and the run, or a lone model file and None; by default the newest run's."""
    if name is None:
        for run in all_runs():
            if run.model.is_file():
                return run.model, run
        raise DifftoolError(f"there is no trained run under {ROOT.absolute()}; train one with 'difftool train'")
    if name.is_dir():
        run = open_run(name)
        if not run.model.is_file():
            raise DifftoolError(f"run {name} has no model yet; 'difftool train --resume {name}' goes on with it")
        return run.model, run
    if not name.exists():
        raise BadFile(f"{name} does not exist: it names neither a run folder nor a model file")
    return name, None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _is_row(row: Any) -> bool:
    """Whether something read from metrics.jsonl is a row as it was written there: numbers, or None for none."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or "loss" not in row:
        return False
    quartiles = row.get("loss_quartiles", [None] * 4)
    if not isinstance(quartiles, list) or len(quartiles) != 4:
        return False
    numbers = (value for key, value in row.items() if key != "loss_quartiles")
    return all(v is None or (type(v) in (int, float) and abs(v) < LARGEST) for v in (*numbers, *quartiles))


def _clear(path: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in OURS:
        target = path / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
