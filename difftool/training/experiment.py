"""One training run, from recipe to weights: builds the parts, drives the loop, keeps metrics and states.

The command line and `difftool.train` share it. Both only watch its steps.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from difftool import devices
from difftool.components import Callback, Companion, Dataset, Logger
from difftool.data.batches import Batches
from difftool.data.facts import DataFacts
from difftool.data.samples import Samples
from difftool.distributed import SINGLE, ProcessGroup
from difftool.errors import DifftoolError, UsageError
from difftool.files import sweep
from difftool.paths import in_run, relative_to_run
from difftool.runs.folder import RunFolder, now
from difftool.runs.latents import tensors_of
from difftool.runs.recipe import Recipe, companion_tables
from difftool.runs.recorded import changed_scripts
from difftool.sampling.model import Model
from difftool.settings import is_due
from difftool.specs import Progress, Row, RunContext
from difftool.training import loop, state
from difftool.training.batch_size import BatchSizeSearch
from difftool.training.callbacks import Callbacks
from difftool.training.companions import Loggers, destinations, opened
from difftool.training.frozen import evaluating
from difftool.training.held_out import held_out_loss
from difftool.training.latents import Feed
from difftool.training.loss import Objective
from difftool.training.metrics import NAMES, Meter, Stopwatch, scalars
from difftool.training.snapshots import AverageFiles, remove_later
from difftool.training.state import StateMetadata, TrainState
from difftool.training.step import StepResult
from difftool.training.transfer import Transfer

PREVIEWS = 4
"""The number of previews of a run by default."""


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
    folder: RunFolder = field(init=False)
    """The run folder, once it is open."""
    _find: Callable[[], RunFolder] = field(init=False)
    _describe: Callable[[RunFolder], None] = field(init=False)
    loggers: Loggers = field(default_factory=Loggers)
    callbacks: Callbacks = field(default_factory=Callbacks)
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
    def parameters(self) -> int:
        return sum(p.numel() for p in self.state.network.parameters())

    @property
    def trained(self) -> int:
        """The number of parameters that are not frozen."""
        return sum(p.numel() for p in self.state.network.parameters() if p.requires_grad)

    @property
    def batch_size(self) -> int:
        """The batch size; a search for one is over."""
        size = self.recipe.training.batch_size
        assert isinstance(size, int)
        return size

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.train.epoch_length / self.batch_size)

    @property
    def steps(self) -> int:
        """The step at which training ends."""
        return self.recipe.training.total_steps(self.train.epoch_length)

    @property
    def log_every(self) -> int:
        return max(1, min(50, self.steps // 200))

    @property
    def held_out_every(self) -> str:
        """When the held-out loss is measured: after each epoch, but no more often than rows are logged."""
        return "1ep" if self.steps_per_epoch >= self.log_every else str(self.log_every)

    @property
    def state_bytes(self) -> int:
        """The size of a training state: weights, averages, optimizer, and the networks of the loss and the codec."""
        own = [] if self.state.auxiliary is None else [*self.state.auxiliary.parameters()]
        copies = [*self.state.network.parameters()] * (1 + len(self.state.averages))
        tensors = (*copies, *own, *tensors_of(self.state.latents).values())
        return sum(t.numel() * t.element_size() for t in tensors) + self.state.optimizer.state_bytes

    @contextlib.contextmanager
    def open(
        self,
        folder: Callable[[], RunFolder],
        *,
        resume: bool = False,
        new_data: bool = False,
        companions: Sequence[Companion] = (),
        group: ProcessGroup = SINGLE,
    ) -> Iterator[None]:
        """Open the run folder, loggers and callbacks for a block; write the configuration, or load the newest state.

        The main process calls `folder`, locks the folder and writes to it. The others load the same state. Raises
        `DifftoolError` if that fails, also if the disk has no room for a state.
        """
        self.folder, self.group = group.on_main(folder), group
        with self._open_files(resume, new_data, companions):
            restored = group.on_main(lambda: self.restored_from)
            if not group.is_main and restored >= 0:
                state.restore_step(self.folder, restored, self.state, self.recipe)
            if self.transfer is not None:  # a resumed run needs its source no more
                self.save()
            yield

    @contextlib.contextmanager
    def _open_files(self, resume: bool, new_data: bool, companions: Sequence[Companion]) -> Iterator[None]:
        if not self.group.is_main:
            yield
            return
        folder, document = self.folder, self.recipe.document()
        with folder.lock() as self._find:
            folder.check_room(self.state_bytes, self.averages.bytes_to_come(folder, self.steps))
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
            self._describe = lambda folder: folder.write_config(tables, self.facts, plugins)
            self._describe(folder)
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
            with opened(callbacks, context) as watching, opened(loggers, context) as logging:
                self.callbacks, self.loggers = Callbacks(watching, context.rows), Loggers(logging)
                self.destinations = destinations(loggers, context)
                yield

    def _resume(self, new_data: bool) -> list[dict[str, Any]]:
        """Load the run's newest valid state, and return the rows up to it. Raises `DifftoolError`."""
        before = state.restore(self.folder, self.state, self.recipe)
        if self.steps < self.state.step:
            raise UsageError(f"--steps: the run is at step {self.state.step} already, beyond {self.steps}")
        if before is not None:
            state.check_resumable(before, self._metadata(), self.recipe[Dataset].name, new_data=new_data)
            self.clock.total, self.restored_from = before.elapsed, self.state.step
            for model in (self.model, *self.averages.models):
                model.origin = before.origin
        elif self.folder.model.exists():  # states are written before models
            raise DifftoolError(f"the training states of {self.folder.path} are gone; start a new run")
        else:
            warnings.warn(f"{self.folder.path} has no training state yet; it starts at its first step", stacklevel=2)
        remove_later(self.folder, self.state.step)
        rows = self.folder.read_metrics(up_to=self.state.step)
        self.folder.rewrite_metrics(rows)
        return rows

    def _metadata(self) -> StateMetadata:
        return StateMetadata(
            elapsed=self.clock.total,
            data=self.fingerprint,
            machine=devices.machine(self.device),
            origin=self.model.origin,
        )

    def run(self) -> Iterator[StepResult]:
        """Train to the end, and yield each step. States are saved on the way; previews are the caller's to draw.

        Whatever is due in a step is drawn before its state is saved, so a saved state has everything before it.
        """
        settings = self.recipe.training
        preview_every = settings.preview_every or str(max(1, math.ceil(self.steps / PREVIEWS)))
        due = partial(is_due, items=self.train.epoch_length, batch_size=self.batch_size)
        batches = Batches(
            self.feed.train,
            self.batch_size,
            seed=settings.seed,
            device=self.device,
            workers=settings.workers,
            part=self.group.shard(self.batch_size),
            name=f"dataset {self.recipe[Dataset].name}",
            encode=self.feed.encode,
        )
        steps, log_every = self.steps, self.log_every
        self.meter.start(self.clock.total, self.state.skipped)
        self.clock.start()
        for result in loop.train(self.state, batches, self.objective, settings, steps=steps, group=self.group):
            step, last = result.step, result.step == steps
            self.meter.add(result)
            measure = self.held_out is not None and (due(step, self.held_out_every) or last)
            if step % log_every == 0 or last or measure:
                result.metrics = self._log(result, batches.waited, with_held_out=measure)
                last = last or bool(self.stopped)
            result.preview = due(step, preview_every) and not last
            self.clock.stop()  # neither drawing nor saving is training time
            self._save_snapshots()
            yield result
            if due(step, settings.checkpoint_every) and not last:
                self.save()
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
        folder = self.find_folder()
        folder.append_metrics(row)
        self.loggers(Row(step=step, metrics=scalars(row)))
        if not stopped or step == self.steps:
            return ""
        self.facts["stopped"] = {"step": step, "reason": stopped}
        self._describe(folder)
        return stopped

    def save(self) -> None:
        """Write state and model. Older states are deleted once the new ones are on disk."""
        if self.saved_at != self.state.step:
            loop.check_finite(self.state, self.recipe.training, self.group)
            self._save_snapshots()  # before the state, from which they would not be made again
            self._write_where_it_is(self._write)
            self.saved_at = self.state.step

    def _save_snapshots(self) -> None:
        """Write snapshots of the averages if they are due."""
        if self.averages.is_due(self.state.step):
            loop.check_finite(self.state, self.recipe.training, self.group)
            self._write_where_it_is(lambda: self.averages.write_snapshots(self.folder, self.state.step))
            self.averages.snapshot_step = self.state.step

    def find_folder(self) -> RunFolder:
        """Return the run folder for the next write, also if it was moved. Raises `DifftoolError` if it is gone.

        A folder never gets files without its configuration, so one whose content was moved gets it again.
        """
        if (found := self._find()) != self.folder:
            warnings.warn(
                f"the run folder {self.folder.path} was moved; training goes on in {found.path}", stacklevel=2
            )
            self.folder = found
            sweep(found.path)
        if not found.config.exists():
            warnings.warn(f"{found.config} was removed; it is written again", stacklevel=2)
            self._describe(found)
        return found

    def _write_where_it_is(self, write: Callable[[], None]) -> None:
        """Let the main process write files, and once more if the folder is moved meanwhile."""

        def attempt() -> None:
            folder = self.find_folder()
            try:
                write()
            except DifftoolError:
                if self.find_folder() == folder:
                    raise
                write()

        self.group.on_main(attempt)

    def save_if_whole(self) -> None:
        """Save what an exception from outside has interrupted, unless it struck while the weights were moved."""
        if not self.state.moving:
            self.clock.stop()
            self.save()

    def _write(self) -> None:
        """Write the state first: where there is a model, there is something to resume from."""
        state.save(self.folder.state(self.state.step), self.state, self.recipe, self._metadata())
        self.model.step = self.state.step
        self.model.save(self.folder.model)
        self.averages.write(self.folder, self.state.step)
        for old in self.folder.saved_states()[self.recipe.training.keep :]:
            old.unlink(missing_ok=True)
