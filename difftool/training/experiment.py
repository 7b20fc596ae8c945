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

import torch

from difftool import devices
from difftool.components import Backbone, Dataset, Logger, NoiseSchedule, Prediction, TimestepSampling, Weighting
from difftool.data.batches import Batches
from difftool.data.facts import DataFacts
from difftool.data.samples import Samples, fingerprint, split
from difftool.diffusion.schedule import Schedule
from difftool.distributed import SINGLE, ProcessGroup
from difftool.errors import DifftoolError, InvalidOption, UsageError
from difftool.files import sweep
from difftool.paths import in_run, relative_to_run
from difftool.plugins.build import build_network, build_schedule, check_shape, load_samples, loading, puts_image_beside
from difftool.rng import key, seed_globally
from difftool.runs.folder import RunFolder, now
from difftool.runs.recipe import Recipe, companion_tables
from difftool.sampling.model import Model
from difftool.settings import AUTO, is_due
from difftool.specs import ObjectiveSpec, Row, RunContext
from difftool.training import loop, state
from difftool.training.batch_size import BatchSizeSearch, check_processes, find_batch_size
from difftool.training.loggers import Loggers, opened
from difftool.training.loss import Objective
from difftool.training.metrics import Meter, Stopwatch, scalars
from difftool.training.state import StateMetadata, TrainState
from difftool.training.step import StepResult

PREVIEWS = 4
"""The number of previews of a run by default."""


@dataclass
class Experiment:
    """The parts of a run, and its changing state."""

    recipe: Recipe
    data: DataFacts
    train: Samples
    held_out: Samples | None
    objective: Objective
    state: TrainState
    model: Model
    """The model to save: the average, if there is one."""
    device: torch.device
    fingerprint: str
    """The fingerprint of the data."""
    search: BatchSizeSearch | None = None
    """The search for a batch size, if there was one."""
    folder: RunFolder = field(init=False)
    """The run folder, once it is open."""
    _find: Callable[[], RunFolder] = field(init=False)
    _describe: Callable[[RunFolder], None] = field(init=False)
    loggers: Loggers = field(init=False)
    """The open loggers, once the run folder is open."""
    group: ProcessGroup = SINGLE
    """The processes that train together. Only the main one writes."""
    clock: Stopwatch = field(default_factory=Stopwatch)
    saved_at: int = -1
    """The step of the last saved state."""
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.objective, self.batch_size)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.state.network.parameters())

    @property
    def batch_size(self) -> int:
        """The batch size; a search for one is over."""
        size = self.recipe.training.batch_size
        assert isinstance(size, int)
        return size

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train) / self.batch_size)

    @property
    def steps(self) -> int:
        """The step at which training ends."""
        settings = self.recipe.training
        if settings.epochs is not None:
            return math.ceil(settings.epochs * len(self.train) / self.batch_size)
        return settings.steps if settings.steps is not None else 0

    @property
    def log_every(self) -> int:
        return max(1, min(50, self.steps // 200))

    @property
    def state_bytes(self) -> int:
        """The size of a training state: weights, two moments of Adam, average."""
        return sum(p.numel() * p.element_size() for p in self.state.network.parameters()) * (4 if self.state.ema else 3)

    @contextlib.contextmanager
    def open(
        self,
        folder: Callable[[], RunFolder],
        *,
        resume: bool = False,
        new_data: bool = False,
        loggers: Sequence[Logger] = (),
        group: ProcessGroup = SINGLE,
    ) -> Iterator[None]:
        """Open the run folder and the loggers for a block; write the configuration, or resume from the newest state.

        The main process calls `folder`, locks the folder and writes to it. The others load the same state. Raises
        `DifftoolError` if that fails, also if the disk has no room for a state.
        """
        self.folder, self.group = group.on_main(folder), group
        with self._open_files(resume, new_data, loggers) as self.loggers:
            step = group.on_main(lambda: self.state.step)
            if not group.is_main and step:
                state.restore_step(self.folder, step, self.state, self.recipe)
            yield

    @contextlib.contextmanager
    def _open_files(self, resume: bool, new_data: bool, loggers: Sequence[Logger]) -> Iterator[Loggers]:
        if not self.group.is_main:
            yield Loggers({})
            return
        folder, document = self.folder, self.recipe.document()
        with folder.lock() as self._find:
            folder.check_room(self.state_bytes)
            if resume:
                self._resume(new_data)
            started = (folder.started if resume else "") or now()
            loggers = [relative_to_run(logger, folder.path) for logger in loggers]
            placed = [in_run(logger, folder.path) for logger in loggers]
            facts = {"started": started, **devices.machine(self.device), "steps": self.steps, "data": self.fingerprint}
            tables, plugins = {**document, **companion_tables(loggers)}, self.recipe.plugins(loggers)
            self._describe = lambda folder: folder.write_config(tables, facts, plugins)
            self._describe(folder)
            context = RunContext(
                folder=folder.path,
                logs=folder.logs,
                name=self.recipe.name,
                config=document,
                started=started,
                step=self.state.step,
            )
            with opened(placed, context) as open_loggers:
                yield open_loggers

    def _resume(self, new_data: bool) -> None:
        """Load the run's newest valid state. Raises `DifftoolError`."""
        before = state.restore(self.folder, self.state, self.recipe)
        if self.steps < self.state.step:
            raise UsageError(f"--steps: the run is at step {self.state.step} already, beyond {self.steps}")
        if before is not None:
            self._compare(before, new_data)
            self.clock.total = before.elapsed
        elif self.folder.model.exists():  # states are written before models
            raise DifftoolError(f"the training states of {self.folder.path} are gone; start a new run")
        else:
            warnings.warn(f"{self.folder.path} has no training state yet; it starts at its first step", stacklevel=2)
        self.folder.rewrite_metrics(self.folder.read_metrics(up_to=self.state.step))

    def _compare(self, before: StateMetadata, new_data: bool) -> None:
        """Refuse to resume with other data, and warn if another machine may give other last digits."""
        if before.data != self.fingerprint and not new_data:
            raise DifftoolError(
                f"dataset {self.recipe[Dataset].name}: its data have changed since the run was trained "
                f"({before.data}; now {self.fingerprint}); put them back, or pass --new-data to train on these"
            )
        then, here = {"processes": 1, **before.machine}, devices.machine(self.device)
        if rows := [f"{name} {then.get(name)}, now {value}" for name, value in here.items() if value != then.get(name)]:
            warnings.warn(
                f"the run was trained with {'; '.join(rows)}: its last digits may differ from those of a run that was "
                "never interrupted",
                stacklevel=2,
            )

    def run(self) -> Iterator[StepResult]:
        """Train to the end, and yield each step. States are saved on the way; previews are the caller's to draw.

        Whatever is due in a step is drawn before its state is saved, so a saved state has everything before it.
        """
        settings = self.recipe.training
        preview_every = settings.preview_every or str(max(1, math.ceil(self.steps / PREVIEWS)))
        due = partial(is_due, items=len(self.train), batch_size=self.batch_size)
        batches = Batches(
            self.train,
            self.batch_size,
            seed=settings.seed,
            device=self.device,
            workers=settings.workers,
            part=self.group.shard(self.batch_size),
            name=f"dataset {self.recipe[Dataset].name}",
        )
        steps, log_every = self.steps, self.log_every
        self.meter.start(self.clock.total, self.state.skipped)
        self.clock.start()
        for result in loop.train(self.state, batches, self.objective, settings, steps=steps, group=self.group):
            step, last = result.step, result.step == steps
            self.meter.add(result)
            measure = self.held_out is not None and (due(step, "1ep") or last)
            if step % log_every == 0 or last or measure:
                result.metrics = self._log(result, batches.waited, with_held_out=measure)
            result.preview = due(step, preview_every) and not last
            self.clock.stop()  # neither drawing nor saving is training time
            yield result
            if due(step, settings.checkpoint_every) and not last:
                self.save()
            self.clock.start()
        self.clock.stop()

    def _log(self, result: StepResult, waited: float, *, with_held_out: bool) -> dict[str, object]:
        """Log a row of metrics, and return it."""
        loop.check_finite(self.state, self.recipe.training, self.group)
        row = self.meter.row(result, self.clock.elapsed, skipped=self.state.skipped, waited=waited, group=self.group)
        if with_held_out:
            assert self.held_out is not None
            row["held_out_loss"] = loop.held_out_loss(
                self.state.network, self.held_out, self.objective, batch_size=self.batch_size, group=self.group
            )
            self.state.network.train()
        if self.group.is_main:
            self.find_folder().append_metrics(row)
            self.loggers(Row(step=result.step, metrics=scalars(row)))
        return row

    def save(self) -> None:
        """Write state and model. Older states are deleted once the new ones are on disk."""
        if self.saved_at != self.state.step:
            loop.check_finite(self.state, self.recipe.training, self.group)
            self.group.on_main(self._write_where_it_is)
            self.saved_at = self.state.step

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

    def _write_where_it_is(self) -> None:
        """Write state and model, and once more if the folder is moved meanwhile."""
        folder = self.find_folder()
        try:
            self._write()
        except DifftoolError:
            if self.find_folder() == folder:
                raise
            self._write()

    def save_if_whole(self) -> None:
        """Save what an exception from outside has interrupted, unless it struck while the weights were moved."""
        if not self.state.moving:
            self.clock.stop()
            self.save()

    def _write(self) -> None:
        """Write the state first: where there is a model, there is something to resume from."""
        metadata = StateMetadata(elapsed=self.clock.total, data=self.fingerprint, machine=devices.machine(self.device))
        state.save(self.folder.state(self.state.step), self.state, self.recipe, metadata)
        self.model.step = self.state.step
        self.model.save(self.folder.model)
        for old in self.folder.saved_states()[self.recipe.training.keep :]:
            old.unlink(missing_ok=True)


def prepare(recipe: Recipe, device: torch.device) -> Experiment:
    """Load the data and build the parts of a recipe. Nothing is written. Raises `UsageError` and `DifftoolError`."""
    settings = recipe.training
    devices.check_precision(device, settings.precision)
    check_processes(settings)
    schedule = build_schedule(recipe[NoiseSchedule], settings.timesteps, recipe[Prediction])
    if (shape := recipe[Dataset].item_shape()) is not None:  # refuse a size that does not fit before reading the data
        check_shape(recipe[Backbone], shape, settings)
    samples = load_samples(recipe[Dataset], settings.seed)
    try:
        train, held_out = split(samples, settings.held_out)
    except ValueError as error:
        raise InvalidOption("held_out", str(error), where="--held-out") from None
    with loading(recipe[Dataset]):
        data = DataFacts.of(samples)
    if device.type == "mps" and data.scaling.dtype == torch.float64:
        raise DifftoolError("the data are so far from 0 that they need float64, which mps lacks; pass --device cpu")
    seed_globally(device, key(settings.seed, "weights"))
    network = build_network(recipe[Backbone], data, settings).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # weights of four axes alone
    objective = build_objective(recipe, schedule, data, device)
    search = None
    if settings.batch_size == AUTO:
        search = find_batch_size(network, train, objective, settings)
        recipe = recipe.with_training(batch_size=search.batch_size)
    train_state = TrainState.new(network, recipe.training, device)
    weights, averaged = ("ema", train_state.ema.network) if train_state.ema else ("raw", network)
    return Experiment(
        recipe=recipe,
        data=data,
        train=train,
        held_out=held_out,
        objective=objective,
        state=train_state,
        model=Model(recipe, data, schedule, averaged, weights, device=device),
        device=device,
        fingerprint=fingerprint(samples),
        search=search,
    )


def build_objective(recipe: Recipe, schedule: Schedule, data: DataFacts, device: torch.device) -> Objective:
    """Build the objective of a recipe. Raises `UsageError` if its parts do not fit together."""
    settings = recipe.training
    return Objective(
        ObjectiveSpec(schedule=schedule, sigma_data=data.std),
        recipe[Prediction],
        recipe[Weighting],
        recipe[TimestepSampling],
        settings.loss,
        device=device,
        self_condition=settings.self_condition,
        learn_variance=settings.learn_variance,
        data=data,
        image_beside=puts_image_beside(recipe[Backbone], data),
        network=f"backbone {recipe[Backbone].name}",
    )
