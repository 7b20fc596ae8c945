"""Schedules, networks and data, made by the code of components, whose errors name the component."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from difftool import devices
from difftool.components import Dataset
from difftool.data.samples import DatasetContext, Samples
from difftool.diffusion.prediction import check
from difftool.errors import DifftoolError, InvalidOption, UsageError, blaming, one_line
from difftool.settings import NO_CONDITION
from difftool.specs import BackboneSpec, CodecSpec, ConditionSpec, ObjectiveSpec

if TYPE_CHECKING:
    from difftool.components import Backbone, Codec, NoiseSchedule, Prediction
    from difftool.data.facts import DataFacts
    from difftool.diffusion.schedule import Schedule
    from difftool.settings import Training


def build_schedule(component: NoiseSchedule, timesteps: int, prediction: Prediction | None = None) -> Schedule:
    """Return the table of a schedule, checked together with a prediction type, if one is given. Raises `UsageError`."""
    what = f"schedule {component.name}"
    with blaming(what, refusal=UsageError):
        schedule = component.build(timesteps)
    if prediction is not None:
        with blaming(f"prediction {prediction.name}, {what}", refusal=UsageError):
            check(prediction, ObjectiveSpec(schedule=schedule))
    if len(schedule) != timesteps:
        raise DifftoolError(f"{what} returned {len(schedule)} levels, not {timesteps}")
    return schedule


def build_network(backbone: Backbone, data: DataFacts, settings: Training) -> nn.Module:
    """Return the network of a backbone for these data. Raises `UsageError` if it does not support them."""
    return _build(backbone, backbone_spec(backbone, data, settings))


def backbone_spec(backbone: Backbone, data: DataFacts, settings: Training) -> BackboneSpec:
    """Return the input and output of a network for these data.

    Raises `UsageError` for conditions that the backbone does not take.
    """
    beside = puts_image_beside(backbone, data)
    return BackboneSpec(
        shape=data.shape,
        out_channels=data.shape[0] * (2 if settings.learn_variance else 1),
        condition=_conditions_of(backbone, data),
        sigma_data=data.std,
        self_condition=settings.self_condition,
        checkpoint_activations=settings.checkpoint_activations,
        image_channels=data.condition.image[0] if data.condition.image and beside else 0,
    )


def check_shape(backbone: Backbone, shape: tuple[int, ...], settings: Training) -> None:
    """Raise `UsageError` if a backbone refuses items of this shape, whatever comes with them."""
    spec = BackboneSpec(
        shape=shape,
        out_channels=shape[0] * (2 if settings.learn_variance else 1),
        self_condition=settings.self_condition,
    )
    some = ConditionSpec(classes=1, vector=1, image=(1, shape[1], shape[2]) if len(shape) == 3 else None, tokens=(1, 1))
    with devices.meta():
        try:
            _build(backbone, spec)
        except UsageError:
            if not (taken := some.only(backbone.conditions)):
                raise
            _build(backbone, replace(spec, condition=taken))  # a network may need its conditions


def _build(backbone: Backbone, spec: BackboneSpec) -> nn.Module:
    what = f"backbone {backbone.name}"
    with blaming(what, refusal=UsageError):
        network = backbone.build(spec)
    if not isinstance(network, nn.Module):
        raise DifftoolError(f"{what} built a {type(network).__name__}, not a module")
    return network


def build_codec(codec: Codec, shape: tuple[int, ...], facts: Mapping[str, Any] | None = None) -> nn.Module | None:
    """Return the module of a codec for items of this shape, or None if items stay as they are.

    `facts` are those of a model file. Raises `UsageError` if the codec does not support the shape.
    """
    what = f"codec {codec.name}"
    with blaming(what, refusal=UsageError):
        module = codec.build(CodecSpec(shape=shape, facts=facts or {}))
    if module is None:
        return None
    if not isinstance(module, nn.Module) or not all(hasattr(module, name) for name in ("encode", "decode")):
        raise DifftoolError(f"{what} built a {type(module).__name__}, not a module with encode and decode")
    return module.eval().requires_grad_(False)


def puts_image_beside(backbone: Backbone, data: DataFacts) -> bool:
    """Return whether the data bring a condition image that the network does not take, so that it comes beside x_t."""
    return data.condition.image is not None and "image" not in backbone.conditions


def _conditions_of(backbone: Backbone, data: DataFacts) -> ConditionSpec:
    """Return the conditions that the network is given. Raises `UsageError` for those that it does not take."""
    beside = {"image"} if puts_image_beside(backbone, data) else set()
    names = [name for name in data.condition.shapes if name in {*backbone.conditions, *beside}]
    if others := data.condition.only({*data.condition.shapes} - {*names}):
        choice = ",".join(names) or "none"
        raise UsageError(
            f"backbone {backbone.name}: does not take what the data bring ({others}); leave it out by "
            f"--condition {choice}, or choose another backbone"
        )
    return data.condition.only({*names} - beside)


def load_samples(dataset: Dataset, seed: int, condition: Collection[str] | None = None) -> Samples:
    """Return the data of a dataset, by default with all its conditions, else with those that `--condition` names.

    Raises `DifftoolError`, and `InvalidOption` for a condition that the data do not bring.
    """
    with loading(dataset):
        samples = dataset.load(DatasetContext(seed=seed, cache=cache_folder()))
    if not isinstance(samples, Samples):
        raise DifftoolError(f"dataset {dataset.name} returned {type(samples).__name__}, not Samples")
    if condition is None:
        return samples
    for name in condition:
        if name not in (NO_CONDITION, *samples.conditions):
            brings = ", ".join(samples.conditions) or "no condition"
            reason = f"dataset {dataset.name} brings no {name}; it brings {brings}"
            raise InvalidOption("condition", reason, where="--condition")
    with loading(dataset):
        return samples.select(condition)


def cache_folder() -> Path | None:
    """Return the folder in which datasets may keep indexes, or None if the user has no cache."""
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "difftool"
    try:
        return Path.home() / ".cache" / "difftool"
    except RuntimeError:  # no HOME, and no entry for the user
        return None


@contextlib.contextmanager
def loading(dataset: Dataset) -> Iterator[None]:
    """Turn exceptions of a dataset that loads into errors that name it."""
    try:
        with blaming(f"dataset {dataset.name}", ModuleNotFoundError, OSError):
            yield
    except ModuleNotFoundError as error:
        raise DifftoolError(
            f"dataset {dataset.name}: needs the module {error.name!r}, which is not installed"
        ) from None
    except OSError as error:
        raise DifftoolError(f"dataset {dataset.name}: {one_line(error)}") from None
