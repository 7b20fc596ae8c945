"""A trained model: all that sampling needs, read from one file."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from difftool.components import Component, Dataset, TimeDensity, Weighting
from difftool.data.facts import DataFacts
from difftool.data.samples import DatasetContext, Samples
from difftool.diffusion.estimate import Denoise, ObjectiveSpec
from difftool.diffusion.prediction import check
from difftool.errors import BadFile, DifftoolError, InvalidOption, UsageError, blaming
from difftool.plugins.registry import registry
from difftool.runs import checkpoint
from difftool.runs.provenance import made_with
from difftool.runs.recipe import PARTS, Recipe, compose
from difftool.sampling.denoiser import Denoiser
from difftool.sampling.source import Autocast, Source
from difftool.settings import LARGEST_STEP

if TYPE_CHECKING:
    from difftool.components import NoiseSchedule, Prediction
    from difftool.diffusion.schedule import Schedule

LARGEST_MODEL = 10**10
"""Parameters a file may ask for; counted before anything is allocated."""


@dataclass
class Model(Source):
    """A network with everything that turns it into samples."""

    recipe: Recipe
    data: DataFacts
    schedule: Schedule
    network: nn.Module
    weights: str = "ema"
    """Which weights these are: the average (`ema`) or the trained ones (`raw`)."""
    step: int = 0
    source: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    forward: Callable[..., Tensor] | None = None
    """Stands in for the network where it was compiled."""

    @classmethod
    def read(cls, path: Path, *, device: torch.device | str = "cpu") -> Model:
        """The model in a file. Raises `BadFile`, or `UnknownComponent` when a plugin is missing."""
        tensors, document = checkpoint.load(path)
        if document.get("kind") != "model":
            if document.get("kind") == "state":
                raise BadFile(f"{path} holds a training state, not a model; sample the run's model.safetensors")
            raise BadFile(f"{path} holds no model")
        recipe = read_recipe(path, document)
        try:
            data = DataFacts.read(document.get("data"))
        except ValueError:
            raise BadFile(f"{path}: its metadata describe no data that difftool knows") from None
        weights, step = document.get("weights"), document.get("step")
        if weights not in ("ema", "raw") or type(step) is not int or not 0 <= step <= LARGEST_STEP:
            raise BadFile(f"{path}: its metadata are malformed")
        try:
            network = build_network(recipe, data, expected=tensors, path=path)
        except DifftoolError as error:
            raise BadFile(f"{error}{made_with(document.get('plugins'))}") from None
        network.load_state_dict(tensors)
        schedule = build_schedule(recipe.schedule, recipe.training.timesteps, recipe.prediction)
        model = cls(recipe, data, schedule, network, weights, step, path)
        return model.to(device)

    def save(self, path: Path, *, overwrite: bool = True) -> None:
        """Write the file that `read` reads."""
        document = {
            **self.recipe.document(),
            "kind": "model",
            "data": self.data.document(),
            "plugins": self.recipe.plugins(),
            "weights": self.weights,
            "step": self.step,
        }
        checkpoint.save(path, self.network.state_dict(), document, overwrite=overwrite)

    def to(self, device: torch.device | str) -> Model:
        self.device = torch.device(device)
        self.network.to(self.device).eval()
        if self.data.is_image:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def schedule_name(self) -> str:
        return self.recipe.schedule.name

    @property
    def description(self) -> str:
        return f"{self.name}, step {self.step}, {self.weights} weights"

    @property
    def needs_label(self) -> bool:
        return bool(self.data.classes) and not self.recipe.training.label_dropout

    def denoiser(self, count: int, *, label: int | Tensor | None = None, autocast: Autocast | None = None) -> Denoise:
        null = self.data.classes
        index = null if label is None else label
        return Denoiser(
            self.network if self.forward is None else self.forward,
            self.recipe.prediction,
            ObjectiveSpec(schedule=self.schedule, sigma_data=self.data.std),
            cond=None if index is None else torch.as_tensor(index, device=self.device).expand(count),
            self_condition=self.recipe.training.self_condition,
            learned_variance=self.recipe.training.learn_variance,
            bounds=self.data.bounds,
            autocast=autocast,
        )

    def load_samples(self) -> Samples:
        from difftool.training.experiment import load_samples

        return load_samples(self.recipe.dataset, self.recipe.training.seed)


def read_recipe(path: Path, document: Mapping[str, Any]) -> Recipe:
    """The recipe in a file's metadata, through the register and the components' own validation."""
    tables = {kind: document[kind] for kind in (*PARTS, "training") if kind in document}
    for kind in (*PARTS, "training"):
        table = tables.get(kind, {"name": ""} if kind in STAND_INS else None)
        if not isinstance(table, Mapping) or (kind in PARTS and not isinstance(table.get("name"), str)):
            raise BadFile(f"{path}: its metadata name no {kind}")
    try:
        return compose(tables, parts=_absent(tables))
    except InvalidOption as error:
        raise BadFile(f"{path}: its metadata are refused: {error}{made_with(document.get('plugins'))}") from None
    except UsageError as error:
        raise BadFile(f"{path}: {error}{made_with(document.get('plugins'))}") from None


class AbsentDataset(Dataset):
    """Stands for a dataset whose plugin is not here: sampling needs none."""

    def load(self, context: DatasetContext) -> Samples:
        raise ValueError("its plugin is not installed")


class AbsentWeighting(Weighting):
    """Stands for a weighting whose plugin is not here: only training needs it."""

    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        raise ValueError("its plugin is not installed")


class AbsentTime(TimeDensity):
    """Stands for a time density whose plugin is not here: only training needs it."""

    def density(self, spec: ObjectiveSpec) -> Tensor:
        raise ValueError("its plugin is not installed")


STAND_INS: Mapping[str, type[Component]] = {base.kind: base for base in (AbsentDataset, AbsentWeighting, AbsentTime)}
"""What sampling does not need, by kind: a file may name one whose plugin is not here, or none."""


def _absent(tables: Mapping[str, Any]) -> dict[str, Component]:
    """Stand-ins, by kind, for what a file names, this machine has not, and sampling does not need."""
    absent: dict[str, Component] = {}
    for kind, base in STAND_INS.items():
        name = tables.get(kind, {}).get("name", "")
        if re.fullmatch(r"[\w.:-]{1,100}", name) and name not in registry().names(kind):
            named = types.new_class(base.__name__, (base,), {"name": name})
            absent[kind] = named()
    return absent


def build_schedule(component: NoiseSchedule, timesteps: int, prediction: Prediction | None = None) -> Schedule:
    """The table of a schedule, checked against the prediction type it is to be used with, if any.

    Raises `UsageError` for values that make none.
    """
    what = f"schedule {component.name}"
    try:
        with blaming(what):
            schedule = component.build(timesteps)
            if prediction is not None:
                check(prediction, ObjectiveSpec(schedule=schedule))
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None
    if len(schedule) != timesteps:
        raise DifftoolError(f"{what} gave {len(schedule)} levels, not {timesteps}")
    return schedule


def build_network(
    recipe: Recipe,
    data: DataFacts,
    *,
    expected: Mapping[str, Tensor] | None = None,
    path: Path | None = None,
) -> nn.Module:
    """The network of a recipe. With the tensors of a file they are compared first, before memory is taken."""
    what = f"backbone {recipe.backbone.name}"
    settings = recipe.training
    spec = data.spec(self_condition=settings.self_condition, learn_variance=settings.learn_variance)
    try:
        if expected is not None:
            with torch.device("meta"), blaming(what):
                sketch = recipe.backbone.build(spec)
            if sum(p.numel() for p in sketch.parameters()) > LARGEST_MODEL:
                raise BadFile(f"{path}: its metadata ask for more than {LARGEST_MODEL:,} parameters")
            if rows := checkpoint.differences(sketch.state_dict(), expected):
                raise BadFile(f"{path}: its weights do not fit its {recipe.backbone.name}: {rows}")
        with blaming(what):
            network = recipe.backbone.build(spec)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None
    if not isinstance(network, nn.Module):
        raise DifftoolError(f"{what} built a {type(network).__name__}, not a module")
    return network
