"""One training run, from recipe to weights: builds the parts, drives the loop, keeps metrics and states.

The command line and `difftool.train` share it. Both only watch its steps.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from difftool import devices
from difftool.components import Callback, Component, Dataset, Logger, Metric
from difftool.data.batches import Batches
from difftool.data.facts import DataFacts
from difftool.data.samples import Samples
from difftool.distributed import SINGLE, ProcessGroup
from difftool.errors import DifftoolError, UsageError
from difftool.paths import in_run, relative_to_run
from difftool.runs.evaluations import remove_later_evaluations
from difftool.runs.folder import RunFolder, now
from difftool.runs.recipe import Recipe, companion_tables
from difftool.runs.recorded import changed_scripts
from difftool.sampling.model import Model
from difftool.specs import Progress, Row, RunContext
from difftool.training import loop, state
from difftool.training.batch_size import BatchSizeSearch
from difftool.training.best import Best, best_of
from difftool.training.callbacks import Callbacks
from difftool.training.companions import Loggers, destinations, opened
from difftool.training.evaluation import Evaluation, with_features
from difftool.training.frozen import evaluating
from difftool.training.held_out import held_out_loss
from difftool.training.latents import Feed
from difftool.training.loss import Objective
from difftool.training.metrics import NAMES, Meter, Stopwatch, scalars
from difftool.training.saves import Saves
from difftool.training.saving import Saver
from difftool.training.snapshots import AverageFiles, remove_later
from difftool.training.state import StateMetadata, TrainState
from difftool.training.step import StepResult
from difftool.training.timetable import Timetable
from difftool.training.transfer import Transfer
from difftool.training.watched_folder import WatchedFolder


@dataclass
class Experiment:
    """The parts of a run, and its changing state."""

    recipe: Recipe
    data: DataFacts
    train: Samples
    held_out: Samples | None
    feed: Feed
    """The items that the network learns: the data, or their latents."""
    objective: Objective
    state: TrainState
    model: Model
    """The model to save: the first average, if there is one."""
    averages: AverageFiles
    """The files of the other averages."""
    device: torch.device
    fingerprint: str
    """The fingerprint of the data."""
    search: BatchSizeSearch | None = None
    """The search for a batch size, if there was one."""
    transfer: Transfer | None = None
    """The weights that the run starts from, if it takes them from another model."""
    watched: WatchedFolder = field(init=False)
    """The run folder, once it is open."""
    saver: Saver = field(init=False)
    """The thread that writes the run's saves, in the main process."""
    loggers: Loggers = field(default_factory=Loggers)
    callbacks: Callbacks = field(default_factory=Callbacks)
    metrics: Sequence[Metric] = ()
    """The metrics that are measured while the run trains."""
    evaluation: Evaluation | None = None
    """The metrics at work, in the main process."""
    best: Best | None = None
    """The best model so far, in the main process, if it is kept."""
    destinations: Sequence[str] = ()
    """Where the loggers write, such as `csv: runs/swiss-roll-mlp-001/logs`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The record of the run in its configuration."""
    stopped: str = ""
    """The callback that stopped the run, and its reason."""
    group: ProcessGroup = SINGLE
    """The processes that train together. Only the main one writes."""
    clock: Stopwatch = field(default_factory=Stopwatch)
    saved_at: int = -1
    """The step of the last saved state."""
    restored_from: int = -1
    """The step of the state that the run goes on from, or -1."""
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.objective, self.batch_size)

    @property
    def folder(self) -> RunFolder:
        """The run folder, where it was last found."""
        return self.watched.folder

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.state.network.parameters())

    @property
    def trained(self) -> int:
        """The number of parameters that are not frozen."""
        return sum(p.numel() for p in self.state.network.parameters() if p.requires_grad)

    @property
    def timetable(self) -> Timetable:
        """The timetable: what is due after a step."""
        held_out, evaluated = self.held_out is not None, bool(self.metrics)
        return Timetable(self.recipe.training, self.train.epoch_length, held_out=held_out, evaluated=evaluated)

    @property
    def batch_size(self) -> int:
        return self.timetable.batch_size

    @property
    def steps(self) -> int:
        """The step at which training ends."""
        return self.timetable.steps

    @contextlib.contextmanager
    def open(
        self,
        folder: Callable[[], RunFolder],
        *,
        resume: bool = False,
        new_data: bool = False,
        companions: Sequence[Component] = (),
        group: ProcessGroup = SINGLE,
    ) -> Iterator[None]:
        """Open the run folder and what accompanies the run for a block; write the configuration, or load a state.

        The main process calls `folder`, locks the folder and writes to it. The others load the same state. Raises
        `DifftoolError` if that fails, also if the disk has no room for a state.
        """
        companions = with_features(companions)
        self.metrics = [one for one in companions if isinstance(one, Metric)]
        group.on_main(lambda: self._prepare_evaluation(companions))  # before there is a folder
        self.watched, self.group = WatchedFolder(group.on_main(folder)), group
        self.saver = Saver(self.watched)
        with self._open_files(resume, new_data, companions):
            restored = group.on_main(lambda: self.restored_from)
            if not group.is_main and restored >= 0:
                state.restore_step(self.folder, restored, self.state, self.recipe)
            if self.transfer is not None:  # a resumed run needs its source no more
                self.save()
            yield

    def _prepare_evaluation(self, companions: Sequence[Component]) -> None:
        """Prepare the metrics, and what keeps the best model. Raises `UsageError` and `DifftoolError`."""
        if self.metrics:
            parts = (self.model, self.train, self.held_out, companions)
            self.evaluation = Evaluation(*parts, due=self.timetable.evaluates, folder=lambda: self.watched.find())
        self.best = best_of(self.recipe.training, self.evaluation)

    @contextlib.contextmanager
    def _open_files(self, resume: bool, new_data: bool, companions: Sequence[Component]) -> Iterator[None]:
        if not self.group.is_main:
            yield
            return
        folder, document = self.folder, self.recipe.document()
        with folder.lock() as self.watched.locked:
            folder.check_room(self.state.bytes, self.averages.bytes_to_come(folder, self.steps))
            rows = self._resume(new_data) if resume else []
            started = (folder.started if resume else "") or now()
            companions = [relative_to_run(companion, folder.path) for companion in companions]
            placed = [in_run(companion, folder.path) for companion in companions]
            measured = {"steps": self.steps, "data": self.fingerprint}
            self.facts = {"started": started, **devices.machine(self.device), **measured}
            if self.model.origin is not None:
                self.facts["init_from"] = self.model.origin.document()
            tables, plugins = {**document, **companion_tables(companions)}, self.recipe.plugins(companions)
            for change in changed_scripts(folder.readable_config().get("plugins"), plugins) if resume else ():
                warnings.warn(change, stacklevel=2)
            self.watched.describe = lambda folder: folder.write_config(tables, self.facts, plugins)
            self.watched.describe(folder)
            context = RunContext(
                folder=folder.path,
                logs=folder.logs,
                name=self.recipe.name,
                config=tables,
                started=started,
                step=self.state.step,
                steps=self.steps,
                metrics=NAMES,
                rows=[Row(step=row["step"], metrics=scalars(row)) for row in rows],
            )
            loggers = [companion for companion in placed if isinstance(companion, Logger)]
            callbacks = [companion for companion in placed if isinstance(companion, Callback)]
            callbacks.sort(key=lambda callback: callback.last)
            with self.saver, opened(callbacks, context) as watching, opened(loggers, context) as logging:
                measuring = [] if self.evaluation is None else [("evaluation", self.evaluation)]
                self.callbacks = Callbacks([*measuring, *watching], context.rows)
                self.loggers = Loggers(logging)
                self.destinations = destinations(loggers, context)
                yield

    def _resume(self, new_data: bool) -> list[dict[str, Any]]:
        """Load the run's newest valid state, and return the rows up to it. Raises `DifftoolError`."""
        before = state.restore(self.folder, self.state, self.recipe)
        if self.steps < self.state.step:
            raise UsageError(f"--steps: the run is at step {self.state.step} already, beyond {self.steps}")
        if before is not None:
            state.check_resumable(before, self.metadata(), self.recipe[Dataset].name, new_data=new_data)
            self.clock.total, self.restored_from = before.elapsed, self.state.step
            for model in (self.model, *self.averages.models):
                model.origin = before.origin
        elif self.folder.model.exists():  # states are written before models
            raise DifftoolError(f"the training states of {self.folder.path} are gone; start a new run")
        else:
            warnings.warn(f"{self.folder.path} has no training state yet; it starts at its first step", stacklevel=2)
        remove_later(self.folder, self.state.step)
        remove_later_evaluations(self.folder, self.state.step)
        rows = self.folder.read_metrics(up_to=self.state.step)
        if self.evaluation is not None:
            self.evaluation.restore(self.folder)
        if self.best is not None:
            self.best.restore(rows, self.folder)
        self.folder.rewrite_metrics(rows)
        return rows

    def metadata(self) -> StateMetadata:
        """Return what a state records beside its tensors."""
        return StateMetadata(
            elapsed=self.clock.total,
            data=self.fingerprint,
            machine=devices.machine(self.device),
            origin=self.model.origin,
        )

    def batches(self, batch_size: int, group: ProcessGroup) -> Batches:
        """Return the batches of the run, or those of another size."""
        return Batches(
            self.feed.train,
            batch_size,
            seed=self.recipe.training.seed,
            device=self.device,
            workers=self.recipe.training.workers,
            part=group.shard(batch_size),
            name=f"dataset {self.recipe[Dataset].name}",
            encode=self.feed.encode,
        )

    def run(self) -> Iterator[StepResult]:
        """Train to the end, and yield each step. States are saved on the way; previews are the caller's to draw.

        Whatever is due in a step is drawn before its state is saved, so a saved state has everything before it.
        """
        settings = self.recipe.training
        batches = self.batches(self.batch_size, self.group)
        times, steps = self.timetable, self.steps
        self.meter.start(self.clock.total, self.state.skipped, self.state.window if self.group.size == 1 else None)
        self.clock.start()
        for result in loop.train(self.state, batches, self.objective, settings, steps=steps, group=self.group):
            self.saver.check()
            step, last = result.step, result.step == steps
            self.meter.add(result)
            if times.logs(step):
                result.metrics = self._log(result, batches.waited, with_held_out=times.measures(step))
                last = last or bool(self.stopped)
            result.preview = times.draws(step) and not last
            self.clock.stop()  # neither drawing nor saving is training time
            self._save_snapshots()
            yield result
            if times.saves(step) and not last:
                self.save(wait=False)
            if self.stopped:
                return
            self.clock.start()
        self.clock.stop()

    def _log(self, result: StepResult, waited: float, *, with_held_out: bool) -> dict[str, object]:
        """Log a row of metrics, and return it."""
        loop.check_finite(self.state, self.recipe.training, self.group)
        row = self.meter.row(result, self.clock.elapsed, skipped=self.state.skipped, waited=waited, group=self.group)
        if with_held_out:
            assert self.feed.held_out is not None
            measure = partial(held_out_loss, batch_size=self.batch_size, steps=self.steps, group=self.group)
            loss = measure(self.state, self.feed.held_out, self.objective)
            row |= {"held_out_loss": loss.mean, "held_out_quartiles": loss.quartiles}
        self.stopped = self.group.on_main(lambda: self._record(row))
        return row

    def _record(self, row: dict[str, Any]) -> str:
        """Show a row to the callbacks, write it with their numbers, and return their reason to stop, if any."""
        step, stopped = row["step"], ""
        if self.callbacks:
            self.clock.stop()
            self.model.step = step
            progress = Progress(step=step, steps=self.steps, row=scalars(row), model=self.model)
            with evaluating(self.model.network):
                numbers, stopped = self.callbacks(progress)
            row |= numbers
            self.clock.start()
        if self.best is not None:
            self.best.see(row, self.model)
        folder = self.watched.find()
        folder.append_metrics(row)
        self.loggers(Row(step=step, metrics=scalars(row)))
        if not stopped or step == self.steps:
            return ""
        self.facts["stopped"] = {"step": step, "reason": stopped}
        self.watched.describe(folder)
        return stopped

    def save(self, *, wait: bool = True) -> None:
        """Write state and model, before this returns or else by a thread. Older states are deleted after that."""
        if self.saved_at != self.state.step:
            loop.check_finite(self.state, self.recipe.training, self.group)
            self._save_snapshots()  # before the state, from which they would not be made again
            self.state.window = self.meter.window() if self.group.size == 1 else {}
            parts = (self.recipe, self.state, self.model, self.averages, self.best)
            Saves(*parts, self.saver, self.group).write(self.metadata(), wait=wait)
            self.saved_at = self.state.step
        elif wait:
            self.group.on_main(self.saver.wait)

    def _save_snapshots(self) -> None:
        """Write snapshots of the averages if they are due."""
        if self.averages.is_due(self.state.step):
            loop.check_finite(self.state, self.recipe.training, self.group)
            self.group.on_main(
                lambda: self.watched.write(lambda: self.averages.write_snapshots(self.folder, self.state.step))
            )
            self.averages.snapshot_step = self.state.step

    def save_if_whole(self) -> None:
        """Save what an exception from outside has interrupted, unless it struck while the weights were moved."""
        if not self.state.moving:
            self.clock.stop()
            self.save()
