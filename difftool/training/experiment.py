"""One training run from recipe to weights: builds the parts, drives the loop, keeps metrics, states and previews.

The command line and `difftool.train` share it; both only watch.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from difftool import devices
from difftool.components import Backbone, Dataset, Logger, NoiseSchedule, Prediction, TimestepSampling, Weighting
from difftool.data.batches import Batches
from difftool.data.facts import DataFacts
from difftool.data.samples import Samples, fingerprint, split
from difftool.diffusion.schedule import Schedule
from difftool.distributed import SINGLE, ProcessGroup, world
from difftool.errors import DifftoolError, InvalidOption, UsageError
from difftool.plugins.build import build_network, build_schedule, load_samples, loading
from difftool.rng import key, seed_globally
from difftool.runs.folder import RunFolder, now
from difftool.runs.recipe import Recipe, companion_tables
from difftool.sampling.model import Model
from difftool.settings import AUTO, is_due
from difftool.specs import ObjectiveSpec, Row, RunContext
from difftool.training import loop as training
from difftool.training import state
from difftool.training.batch_size import Found, fitting_batch
from difftool.training.loggers import Loggers, opened
from difftool.training.loop import Record
from difftool.training.loss import Objective
from difftool.training.metrics import Meter, scalars
from difftool.training.state import Circumstances, TrainState
from difftool.training.step import TrainStep, compiled_step, eager_step

PREVIEWS = 4
"""How many previews a run draws when the user does not say."""


class Update(NamedTuple):
    """What the watcher of a run is told after each step."""

    step: int
    steps: int
    record: Record
    metrics: Mapping[str, Any] | None = None
    """The row that was logged in this step, if one was."""
    preview: bool = False
    """Whether a preview is due."""


@dataclass
class Experiment:
    """The built parts of a run and its changing state."""

    recipe: Recipe
    data: DataFacts
    train: Samples
    held_out: Samples | None
    objective: Objective
    state: TrainState
    model: Model
    """What would be saved now: the average where there is one."""
    device: torch.device
    fingerprint: str
    """The fingerprint of the data (`difftool.data.samples.fingerprint`)."""
    found: Found | None = None
    """The batch size, where it was searched for."""
    folder: RunFolder = field(init=False)
    """Set by `held`, once it is certain that the run begins."""
    loggers: Loggers = field(init=False)
    """Set by `held` too."""
    group: ProcessGroup = SINGLE
    """The processes that train together; set by `held`. Of many the first alone writes."""
    elapsed: float = 0.0
    """Seconds of training, over all resumes."""
    saved_at: int = -1
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.objective, self.batch_size)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.state.network.parameters())

    @property
    def batch_size(self) -> int:
        """The batch size, found by now if the user asked to search for one."""
        size = self.recipe.training.batch_size
        assert isinstance(size, int)
        return size

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train) / self.batch_size)

    @property
    def steps(self) -> int:
        """The step training ends at."""
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
    def held(
        self,
        folder: RunFolder,
        *,
        resume: bool = False,
        new_data: bool = False,
        loggers: Sequence[Logger] = (),
        group: ProcessGroup = SINGLE,
    ) -> Iterator[None]:
        """Hold a run folder as this experiment's, its configuration written; resumed, its newest state is taken up.

        The loggers are open as long. Of many processes the first one does all that, and the others take up the same.

        Raises `DifftoolError` where that cannot be, also where the disk has no room for a state.
        """
        self.folder, self.group = folder, group
        with self._opened(resume, new_data, loggers) if group.is_main else contextlib.nullcontext(Loggers({})) as logs:
            self.loggers = logs
            step = group.on_main(lambda: self.state.step)
            if not group.is_main and step:
                state.restore_from(folder, step, self.state, self.recipe)
            yield

    @contextlib.contextmanager
    def _opened(self, resume: bool, new_data: bool, loggers: Sequence[Logger]) -> Iterator[Loggers]:
        """The run folder locked, with its configuration, and the loggers."""
        folder = self.folder
        with folder.lock():
            folder.check_room(self.state_bytes)
            if resume:
                self._take_up(new_data)
            started = (folder.started if resume else "") or now()
            recorded = {
                "started": started,
                **devices.machine(self.device),
                "steps": self.steps,
                "data": self.fingerprint,
            }
            folder.write_config(
                {**self.recipe.document(), **companion_tables(loggers)}, recorded, self.recipe.plugins(loggers)
            )
            context = RunContext(
                folder=folder.path,
                logs=folder.logs,
                name=self.recipe.name,
                config=self.recipe.document(),
                started=started,
                step=self.state.step,
            )
            with opened(loggers, context) as logs:
                yield logs

    def run(self) -> Iterator[Update]:
        """Train to the end. States are saved on the way; previews are the watcher's to draw.

        What is due in a step is drawn before its state is saved: a state on disk has everything before it.
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
        )
        self.meter.start(self.elapsed, self.state.skipped)
        start = time.perf_counter() - self.elapsed
        loop = training.train(
            self.state,
            batches,
            self.objective,
            settings,
            steps=self.steps,
            scaling=self.data.scaling,
            classes=self.data.classes,
            device=self.device,
            step=self._step(),
            group=self.group,
        )
        for record in loop:
            step, last = record.step, record.step == self.steps
            self.meter.add(record)
            self.elapsed = time.perf_counter() - start
            measure = self.held_out is not None and (due(step, "1ep") or last)
            row = None
            if step % self.log_every == 0 or last or measure:
                training.settle(self.state, settings, self.group)
                row = self.meter.row(
                    record, self.elapsed, skipped=self.state.skipped, waited=batches.waited, group=self.group
                )
                if measure:
                    row["held_out_loss"] = self.held_out_loss()
                self._log(row)
            paused = time.perf_counter()
            yield Update(step, self.steps, record, row, preview=due(step, preview_every) and not last)
            if due(step, settings.checkpoint_every) and not last:
                self.save()
            start += time.perf_counter() - paused  # neither drawing nor saving is training time

    def _step(self) -> TrainStep | None:
        """What stands in for the plain step: a compiled one, or one that shares gradients."""
        settings, group = self.recipe.training, self.group
        if group.size == 1:
            return compiled_step(self.state, self.objective, settings, self.device) if settings.compile else None
        network = self.state.network
        shared = group.wrap(torch.compile(network) if settings.compile else network)  # type: ignore[arg-type]
        loss_factor = group.loss_factor(self.batch_size)
        return eager_step(self.state, self.objective, settings, self.device, shared, loss_factor=loss_factor)

    def _log(self, row: Mapping[str, Any]) -> None:
        if self.group.is_main:
            self.folder.append_metrics(row)
            self.loggers(Row(step=row["step"], metrics=scalars(row)))

    def held_out_loss(self) -> float | None:
        """The loss of the weights being trained on the items kept apart."""
        if self.held_out is None:
            return None
        loss = training.held_out_loss(
            self.state.network,
            self.held_out,
            self.objective,
            batch_size=self.batch_size,
            scaling=self.data.scaling,
            classes=self.data.classes,
            group=self.group,
        )
        self.state.network.train()
        return loss

    def _take_up(self, new_data: bool) -> None:
        """Go on from the run's newest valid state."""
        before = state.restore(self.folder, self.state, self.recipe)
        if self.steps < self.state.step:
            raise UsageError(f"--steps: the run is at step {self.state.step} already, beyond {self.steps}")
        if before is not None:
            self._compare(before, new_data)
            self.elapsed = before.elapsed
        elif self.folder.model.exists():  # states are written before models
            raise DifftoolError(f"the training states of {self.folder.path} are gone; start a new run")
        else:
            warnings.warn(f"{self.folder.path} holds no training state yet; it starts at its first step", stacklevel=2)
        self.folder.rewrite_metrics(self.folder.read_metrics(up_to=self.state.step))

    def _compare(self, before: Circumstances, new_data: bool) -> None:
        """Refuse to go on with other data; say where another machine may give other last digits."""
        if before.data != self.fingerprint and not new_data:
            raise DifftoolError(
                f"dataset {self.recipe[Dataset].name}: its data have changed since the run was trained "
                f"({before.data}; now {self.fingerprint}); put them back, or go on with these by --new-data"
            )
        then, here = {"processes": 1, **before.machine}, devices.machine(self.device)
        if rows := [f"{key} {then.get(key)}, now {value}" for key, value in here.items() if value != then.get(key)]:
            warnings.warn(
                f"the run was trained with {'; '.join(rows)}: its last digits may differ from those of a run without "
                "a break",
                stacklevel=2,
            )

    def save(self) -> None:
        """Write state and model; older states go only once the new ones are on disk."""
        if self.saved_at != self.state.step:
            training.settle(self.state, self.recipe.training, self.group)
            self.group.on_main(self._write)
            self.saved_at = self.state.step

    def _write(self) -> None:
        """The state comes first: where there is a model, there is something to go on from."""
        circumstances = Circumstances(elapsed=self.elapsed, data=self.fingerprint, machine=devices.machine(self.device))
        state.save(self.folder.state(self.state.step), self.state, self.recipe, circumstances)
        self.model.step = self.state.step
        self.model.save(self.folder.model)
        for old in self.folder.saved_states()[self.recipe.training.keep :]:
            old.unlink(missing_ok=True)


def prepare(recipe: Recipe, device: torch.device) -> Experiment:
    """Load the data and build the parts of a recipe; nothing is written. Raises `UsageError`, `DifftoolError`."""
    devices.check_precision(device, recipe.training.precision)
    schedule = build_schedule(recipe[NoiseSchedule], recipe.training.timesteps, recipe[Prediction])
    if (shape := recipe[Dataset].item_shape()) is not None:  # a size that does not fit is refused before data are read
        with torch.device("meta"):
            build_network(recipe[Backbone], DataFacts(shape=shape), recipe.training)
    settings = recipe.training
    if (many := world().size) > 1 and settings.batch_size == AUTO:
        raise InvalidOption("batch_size", "auto is for one process; name a number", where="--batch-size")
    if isinstance(settings.batch_size, int) and settings.batch_size < many:
        reason = f"{many} processes share each batch, so it has at least as many items, not {settings.batch_size}"
        raise InvalidOption("batch_size", reason, where="--batch-size")
    samples = load_samples(recipe[Dataset], settings.seed)
    try:
        train, held_out = split(samples, settings.held_out)
    except ValueError as error:
        raise InvalidOption("held_out", str(error), where="--held-out") from None
    with loading(recipe[Dataset]):
        data = DataFacts.of(samples)
    seed_globally(device, key(settings.seed, "weights"))
    network = build_network(recipe[Backbone], data, settings).to(device)
    if data.is_image:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = build_objective(recipe, schedule, data, device)
    found = None
    if settings.batch_size == AUTO:
        found = fitting_batch(network, train, objective, settings, data.classes)
        recipe = recipe.with_training(batch_size=found.batch_size)
        settings = recipe.training
    train_state = TrainState.new(network, settings, device)
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
        found=found,
    )


def build_objective(recipe: Recipe, schedule: Schedule, data: DataFacts, device: torch.device) -> Objective:
    """What a recipe minimises. Raises `UsageError`."""
    settings = recipe.training
    try:
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
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
