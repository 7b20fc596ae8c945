"""One training run from recipe to weights: builds the parts, drives the loop, keeps metrics, states and previews.

The command line and `difftool.train` share it; both only watch.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difftool import checkpoint, training
from difftool.components import Dataset
from difftool.data import Batches, DatasetContext, Samples, split
from difftool.ema import EMA
from difftool.errors import BadFile, DifftoolError, UsageError
from difftool.keys import seed_globally
from difftool.model import DataFacts, Model, build_network, build_schedule
from difftool.recipe import Recipe
from difftool.runs import RunFolder
from difftool.settings import every
from difftool.training import Objective, Record, TrainState

PREVIEWS = 4
"""How many previews a run draws when the user does not say."""


@dataclass(frozen=True)
class Update:
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
    folder: RunFolder
    device: torch.device
    forward: Callable[..., Tensor] | None = None
    elapsed: float = 0.0
    """Seconds of training, over all resumes."""
    saved_at: int = -1
    _meter: Meter = field(default_factory=lambda: Meter())

    @property
    def batches(self) -> Batches:
        training_settings = self.recipe.training
        return Batches(
            self.train,
            training_settings.batch_size,
            seed=training_settings.seed,
            device=self.device,
            workers=training_settings.workers,
        )

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train) / self.recipe.training.batch_size)

    @property
    def steps(self) -> int:
        """The step training ends at."""
        settings = self.recipe.training
        if settings.epochs is not None:
            return math.ceil(settings.epochs * len(self.train) / settings.batch_size)
        return settings.steps if settings.steps is not None else 0

    @property
    def log_every(self) -> int:
        return max(1, min(50, self.steps // 200))

    def _every(self, text: str | None, default: int) -> int:
        return default if text is None else every(text, self.steps_per_epoch)

    def run(self) -> Iterator[Update]:
        """Train to the end. States are saved on the way; previews are the watcher's to draw."""
        settings = self.recipe.training
        checkpoint_every = self._every(settings.checkpoint_every, 500)
        preview_every = self._every(settings.preview_every, max(1, math.ceil(self.steps / PREVIEWS)))
        held_out_every = max(self.steps_per_epoch, self.log_every)
        start = time.perf_counter() - self.elapsed
        loop = training.train(
            self.state,
            self.batches,
            self.objective,
            settings,
            steps=self.steps,
            scaling=self.data.scaling,
            classes=self.data.classes,
            device=self.device,
            forward=self.forward,
        )
        for record in loop:
            step, last = record.step, record.step == self.steps
            self._meter.add(record)
            self.elapsed = time.perf_counter() - start
            measure = self.held_out is not None and (step % held_out_every == 0 or last)
            row = None
            if step % self.log_every == 0 or last or measure:
                row = self._meter.row(record, self.elapsed, settings.batch_size, len(self.objective.alpha))
                if measure:
                    row["held_out_loss"] = self.held_out_loss()
                self.folder.append_metrics(row)
            preview = bool(preview_every) and step % preview_every == 0 and not last
            paused = time.perf_counter()
            yield Update(step, self.steps, record, row, preview)
            start += time.perf_counter() - paused  # what the watcher does is no training time
            if step % checkpoint_every == 0 and not last:
                self.save()

    def held_out_loss(self) -> float | None:
        """The loss of the weights being trained on the items kept apart."""
        if self.held_out is None:
            return None
        settings = self.recipe.training
        batches = Batches(self.held_out, settings.batch_size, seed=settings.seed)
        loss = training.held_out_loss(
            self.state.network,
            batches,
            self.objective,
            scaling=self.data.scaling,
            classes=self.data.classes,
        )
        self.state.network.train()
        return loss

    def save(self) -> None:
        """Write model and state; older states go only once the new one is on disk.

        The model comes first, so that a state on disk always has its model beside it.
        """
        if self.saved_at == self.state.step:
            return
        self.model.step = self.state.step
        self.model.save(self.folder.model)
        save_state(self.folder.state(self.state.step), self.state, self.recipe, self.elapsed)
        self.saved_at = self.state.step
        for old in self.folder.saved_states()[self.recipe.training.keep :]:
            old.unlink(missing_ok=True)


class Meter:
    """Losses since the last logged row, summed where they are: nothing waits for the device until a row is due."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._items: list[Tensor] = []
        self._t: list[Tensor] = []
        self._since = (0, 0.0)
        self.smoothed: float | None = None

    def add(self, record: Record) -> None:
        self._losses.append(record.loss)
        self._items.append(record.item_losses)
        self._t.append(record.t)

    def row(self, record: Record, elapsed: float, batch_size: int, levels: int) -> dict[str, Any]:
        """The metrics of the steps since the last row, as plain finite numbers (None where there is none)."""
        loss = float(torch.stack(self._losses).mean())
        items, t = torch.cat(self._items), torch.cat(self._t)
        quartile = (t * 4).div(levels, rounding_mode="floor")
        sums = torch.zeros(4, device=t.device).index_add_(0, quartile, items)
        counts = torch.bincount(quartile, minlength=4)
        steps, seconds = len(self._losses), elapsed - self._since[1]
        row = {
            "step": record.step,
            "samples": record.step * batch_size,
            "elapsed": round(elapsed, 3),
            "loss": _finite(loss),
            "loss_quartiles": [
                _finite(s / c) if c else None for s, c in zip(sums.tolist(), counts.tolist(), strict=True)
            ],
            "lr": record.lr,
            "grad_norm": _finite(float(record.grad_norm)),
            "prediction_mean": _finite(float(record.output.float().mean())),
            "prediction_var": _finite(float(record.output.float().var(correction=0))),
            "input_mean": _finite(float(record.x_t.mean())),
            "input_var": _finite(float(record.x_t.var(correction=0))),
            "steps_per_second": round(steps / seconds, 3) if seconds > 0 else None,
        }
        self._losses.clear()
        self._items.clear()
        self._t.clear()
        self._since = (record.step, elapsed)
        return row


def prepare(recipe: Recipe, device: torch.device, folder: Path | None = None) -> Experiment:
    """Load the data and build the parts of a recipe; nothing is written. Raises `UsageError`, `DifftoolError`."""
    if recipe.training.precision == "fp16" and device.type != "cuda":
        raise UsageError(f"--precision: fp16 needs a CUDA device, not {device.type}; take bf16 or fp32")
    schedule = build_schedule(recipe)
    if (shape := recipe.dataset.item_shape()) is not None:  # a size that does not fit is refused before data are read
        with torch.device("meta"):
            build_network(recipe, DataFacts(shape=shape, shift=(0.0,), scale=(1.0,)))
    settings = recipe.training
    samples = load_samples(recipe)
    try:
        train, held_out = split(samples, settings.held_out)
    except ValueError as error:
        raise UsageError(f"--held-out: {error}") from None
    data = DataFacts.of(samples)
    seed_globally(device, settings.seed, "weights")
    network = build_network(recipe, data).to(device)
    if data.is_image:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = EMA(network, settings.ema) if settings.ema else None
    state = TrainState(
        network,
        torch.optim.Adam(network.parameters(), lr=settings.lr, fused=True),
        ema,
        torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16" and device.type == "cuda"),
    )
    objective = Objective(schedule, recipe.prediction, recipe.weighting, settings.loss, device=device)
    weights = "ema" if ema else "raw"
    model = Model(recipe, data, schedule, ema.network if ema else network, weights, device=device)
    forward = torch.compile(network) if settings.compile else None
    return Experiment(
        recipe, data, train, held_out, objective, state, model, RunFolder(folder or Path()), device, forward
    )


def load_samples(recipe: Recipe) -> Samples:
    """The data of a recipe. Raises `DifftoolError`."""
    with loading(recipe.dataset):
        return recipe.dataset.load(DatasetContext(seed=recipe.training.seed))


@contextlib.contextmanager
def loading(dataset: Dataset) -> Iterator[None]:
    """What a dataset raises while it loads becomes one line that names it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DifftoolError(
            f"dataset {dataset.name}: needs the module {error.name!r}, which is not installed"
        ) from None
    except (ValueError, OSError) as error:
        raise DifftoolError(f"dataset {dataset.name}: {' '.join(str(error).split())}") from None


def save_state(path: Path, state: TrainState, recipe: Recipe, elapsed: float) -> None:
    """All that training goes on from: weights, average, optimizer, counters."""
    tensors = {f"model.{name}": t for name, t in state.network.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema.{name}": t for name, t in state.ema.network.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": t for slot, t in slots.items()}
    document = {
        **recipe.document(),
        "kind": "state",
        "step": state.step,
        "ema_updates": state.ema.updates if state.ema else 0,
        "scaler": state.scaler.state_dict(),
        "elapsed": elapsed,
    }
    checkpoint.save(path, tensors, document)


def restore(experiment: Experiment) -> None:
    """Go on from the newest valid state of the run's folder; older ones serve where it is damaged.

    Raises `BadFile` when states are there and none is valid: training never restarts in silence.
    """
    paths, reasons = experiment.folder.saved_states(), []
    for path in paths:
        try:
            _restore_from(path, experiment.state, experiment)
        except BadFile as error:
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(f"{reasons[0]}; going on from {path.name}", stacklevel=2)
        experiment.saved_at = experiment.state.step
        rows = experiment.folder.read_metrics(up_to=experiment.state.step)
        experiment.folder.rewrite_metrics(rows)
        return
    if reasons:
        raise BadFile(f"no valid state in {experiment.folder.states}: {reasons[0]}")


def _restore_from(path: Path, state: TrainState, experiment: Experiment) -> None:
    tensors, document = checkpoint.load(path)
    if document.get("kind") != "state":
        raise BadFile(f"{path} is no training state")
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    targets: list[tuple[str, nn.Module | None]] = [
        ("model", state.network),
        ("ema", state.ema.network if state.ema else None),
    ]
    for group, module in targets:
        wanted = module.state_dict() if module is not None else {}
        if rows := checkpoint.differences(wanted, groups[group]):
            raise BadFile(f"{path}: its {group} weights do not fit: {rows}")
    for group, module in targets:
        if module is not None:
            module.load_state_dict(groups[group])
    optimizer = state.optimizer.state_dict()
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in groups["optimizer"].items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = tensor
    state.optimizer.load_state_dict({**optimizer, "state": slots})
    if state.ema is not None:
        state.ema.updates = int(document["ema_updates"])
    if document.get("scaler"):
        state.scaler.load_state_dict(document["scaler"])
    state.step = int(document["step"])
    experiment.elapsed = float(document["elapsed"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def raw_model(model: Model, run: RunFolder) -> Model:
    """The model with the weights that were being trained, from the newest state of its run."""
    reasons = []
    for path in run.saved_states():
        try:
            tensors, document = checkpoint.load(path)
        except BadFile as error:
            reasons.append(str(error))
            continue
        raw = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        if rows := checkpoint.differences(model.network.state_dict(), raw):
            raise BadFile(f"{path}: its weights do not fit: {rows}")
        model.network.load_state_dict(raw)
        return replace(model, weights="raw", step=int(document["step"]), source=path)
    raise BadFile(reasons[0] if reasons else f"run {run.path} has no training state, so its raw weights are gone")
