"""A trained model: all that sampling needs, read from one file."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from difftool import checkpoint
from difftool.components import Component, Dataset, Weighting
from difftool.data import DatasetContext, Samples, Scaling
from difftool.denoiser import BackboneSpec, Clipped, Denoise, Denoiser, Guided
from difftool.errors import BadFile, DifftoolError, InvalidOption, UsageError, blaming
from difftool.plugins import registry
from difftool.recipe import PARTS, Recipe, compose
from difftool.validation import suggestion

if TYPE_CHECKING:
    from difftool.components import NoiseSchedule, Prediction, Sampler, Spacing
    from difftool.schedule import Schedule

LARGEST_UNIT = 1e30
"""Shift, scale and bounds in a file stay below this, or float32 would overflow."""
MEASURED = 1_000
"""Items from which the standard deviation of the data is measured."""
LARGEST_MODEL = 10**10
"""Parameters a file may ask for; counted before anything is allocated."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a model must remember of its data. It travels with the weights."""

    shape: tuple[int, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    bounds: tuple[float, float] | None = None
    class_names: tuple[str, ...] = ()
    std: float = 1.0
    """Standard deviation in model units."""

    @classmethod
    def of(cls, samples: Samples) -> DataFacts:
        names = samples.class_names
        if samples.labels is not None and not names:
            names = tuple(str(i) for i in range(int(samples.labels.max()) + 1))
        few, n = min(MEASURED, len(samples)), len(samples)
        items, _ = samples.take([i * n // few for i in range(few)])
        std = float(Scaling.of(samples).to_model(items).std(correction=0))
        return cls(
            shape=tuple(samples.shape),
            shift=tuple(samples.shift),
            scale=tuple(samples.scale),
            bounds=samples.bounds,
            class_names=names if samples.labels is not None else (),
            std=round(std, 6) or 1.0,
        )

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def scaling(self) -> Scaling:
        return Scaling(self.shift, self.scale, self.is_image)

    @property
    def classes(self) -> int | None:
        return len(self.class_names) or None

    @property
    def spec(self) -> BackboneSpec:
        return BackboneSpec(shape=self.shape, out_channels=self.shape[0], classes=self.classes, sigma_data=self.std)

    def document(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "shift": list(self.shift),
            "scale": list(self.scale),
            "bounds": None if self.bounds is None else list(self.bounds),
            "class_names": list(self.class_names),
            "std": self.std,
        }

    @classmethod
    def read(cls, document: Any) -> DataFacts:
        """From untrusted metadata. Raises `ValueError`."""
        from typing import Annotated

        import pydantic

        number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
        size = Annotated[int, pydantic.Field(ge=1, le=65_536)]
        model = pydantic.create_model(
            "DataFacts",
            __config__=pydantic.ConfigDict(strict=True, extra="ignore"),
            shape=(Annotated[tuple[size, ...], pydantic.Field(min_length=1, max_length=4)], ...),
            shift=(Annotated[tuple[number, ...], pydantic.Field(min_length=1, max_length=65_536)], ...),
            scale=(Annotated[tuple[number, ...], pydantic.Field(min_length=1, max_length=65_536)], ...),
            bounds=(tuple[number, number] | None, None),
            std=(Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)], 1.0),
            class_names=(
                Annotated[
                    tuple[Annotated[str, pydantic.Field(max_length=1000)], ...], pydantic.Field(max_length=10**5)
                ],
                (),
            ),
        )
        import json

        facts = cls(**model.model_validate_json(json.dumps(document)).model_dump())
        if not {len(facts.shift), len(facts.scale)} <= {1, facts.shape[0]}:
            raise ValueError("shift and scale must have one entry, or one for each channel")
        if not all(0 < scale < LARGEST_UNIT for scale in facts.scale) or max(map(abs, facts.shift)) > LARGEST_UNIT:
            raise ValueError("shift and scale must be ordinary numbers, scale above 0")
        if facts.bounds is not None and not -LARGEST_UNIT < facts.bounds[0] < facts.bounds[1] < LARGEST_UNIT:
            raise ValueError("bounds must be a low and a high number")
        return facts


@dataclass
class Model:
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
            raise BadFile(f"{path} holds a training state, not a model; sample the run's model.safetensors")
        recipe = read_recipe(path, document)
        try:
            data = DataFacts.read(document.get("data"))
        except ValueError:
            raise BadFile(f"{path}: its metadata describe no data that difftool knows") from None
        weights, step = document.get("weights"), document.get("step")
        if weights not in ("ema", "raw") or type(step) is not int or step < 0:
            raise BadFile(f"{path}: its metadata are malformed")
        network = build_network(recipe, data, expected=tensors, path=path)
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

    def denoiser(
        self,
        count: int,
        *,
        label: int | Tensor | None = None,
        guidance: float = 1.0,
        autocast: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> Denoise:
        """A fresh denoiser of `count` samples, guided where there are label and scale, clipped where data have bounds.

        A label is one class for all, or each sample's own (count,).
        """

        def plain(index: int | Tensor | None) -> Denoiser:
            cond = None if index is None else torch.as_tensor(index, device=self.device).expand(count)
            network = self.network if self.forward is None else self.forward
            return Denoiser(network, self.schedule, self.recipe.prediction, cond=cond, autocast=autocast)

        null = self.data.classes
        denoise: Denoise = plain(null if label is None else label)
        if label is not None and guidance != 1.0:
            denoise = Guided(denoise, plain(null), guidance)
        return denoise if self.data.bounds is None else Clipped(denoise, self.data.bounds)

    def label_index(self, label: str | int | None) -> int | None:
        """The index of a class given by name or index. Raises `UsageError`."""
        if label is None:
            return None
        names = self.data.class_names
        if not names:
            raise UsageError("--label: this model was trained without classes")
        if str(label) in names:
            return names.index(str(label))
        if str(label).isdecimal() and int(label) < len(names):
            return int(label)
        raise UsageError(
            f"--label: there is no class {str(label)!r}{suggestion(str(label), names)}; "
            f"the {len(names)} classes are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
        )

    def sample(
        self,
        n: int = 16,
        *,
        sampler: str | Sampler = "ddim",
        steps: int | None = None,
        spacing: str | Spacing = "trailing",
        seed: int = 0,
        label: str | int | None = None,
        guidance: float = 1.0,
        batch_size: int | None = None,
    ) -> Tensor:
        """n samples (n, *shape) in data units: float32, for images on the scale of pixel values 0..255."""
        from difftool.sampling import Plan, sample

        plan = Plan.of(
            self,
            sampler=sampler,
            spacing=spacing,
            steps=steps,
            num_samples=n,
            seed=seed,
            label=label,
            guidance=guidance,
            batch_size=batch_size,
        )
        batches = [batch.x for batch in sample(self, plan) if batch.done]
        return self.data.scaling.to_data(torch.cat(batches))


def read_recipe(path: Path, document: Mapping[str, Any]) -> Recipe:
    """The recipe in a file's metadata, through the register and the components' own validation."""
    tables = {kind: document.get(kind) for kind in (*PARTS, "training")}
    for kind, table in tables.items():
        if not isinstance(table, Mapping) or (kind in PARTS and not isinstance(table.get("name"), str)):
            raise BadFile(f"{path}: its metadata name no {kind}")
    try:
        return compose(tables, parts=_absent(tables))
    except InvalidOption as error:
        raise BadFile(f"{path}: its metadata are refused: {error}") from None
    except UsageError as error:
        raise BadFile(f"{path}: {error}{_missing_plugins(document)}") from None


class AbsentDataset(Dataset):
    """Stands for a dataset whose plugin is not here: sampling needs none."""

    def load(self, context: DatasetContext) -> Samples:
        raise ValueError("its plugin is not installed")


class AbsentWeighting(Weighting):
    """Stands for a weighting whose plugin is not here: only training needs it."""

    def factor(self, snr: Tensor, native_weight: Tensor) -> Tensor:
        raise ValueError("its plugin is not installed")


def _absent(tables: Mapping[str, Any]) -> dict[str, Component]:
    """Stand-ins, by kind, for what a file names, this machine has not, and sampling does not need."""
    stand_ins: dict[str, type[Component]] = {"dataset": AbsentDataset, "weighting": AbsentWeighting}
    absent: dict[str, Component] = {}
    for kind, base in stand_ins.items():
        name = tables[kind]["name"]
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
                prediction.check(schedule)
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
    try:
        if expected is not None:
            with torch.device("meta"), blaming(what):
                sketch = recipe.backbone.build(data.spec)
            if sum(p.numel() for p in sketch.parameters()) > LARGEST_MODEL:
                raise BadFile(f"{path}: its metadata ask for more than {LARGEST_MODEL:,} parameters")
            if rows := checkpoint.differences(sketch.state_dict(), expected):
                raise BadFile(f"{path}: its weights do not fit its {recipe.backbone.name}: {rows}")
        with blaming(what):
            network = recipe.backbone.build(data.spec)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None
    if not isinstance(network, nn.Module):
        raise DifftoolError(f"{what} built a {type(network).__name__}, not a module")
    return network


def _missing_plugins(document: Mapping[str, Any]) -> str:
    """What to install, where the file says which packages it was made with."""
    recorded = document.get("plugins")
    if not isinstance(recorded, Mapping):
        return ""
    present = {p.distribution for p in registry().plugins}
    missing = [f"{name} {version}" for name, version in recorded.items() if name not in present]
    return f"; it was made with {', '.join(missing)}, which is not installed" if missing else ""
