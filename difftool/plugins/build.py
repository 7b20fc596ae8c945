"""The one place where a component's own code makes its part, and where what goes wrong in it is told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from difftool.components import Dataset
from difftool.data.samples import DatasetContext, Samples
from difftool.diffusion.prediction import check
from difftool.errors import DifftoolError, UsageError, blaming, one_line
from difftool.specs import BackboneSpec, ObjectiveSpec

if TYPE_CHECKING:
    from difftool.components import Backbone, NoiseSchedule, Prediction
    from difftool.data.facts import DataFacts
    from difftool.diffusion.schedule import Schedule
    from difftool.settings import Training


def build_schedule(component: NoiseSchedule, timesteps: int, prediction: Prediction | None = None) -> Schedule:
    """The table of a schedule, checked against the prediction type it is to be used with, if any.

    Raises `UsageError` for values that make none.
    """
    what = f"schedule {component.name}"
    with blaming(what, refusal=UsageError):
        schedule = component.build(timesteps)
        if prediction is not None:
            check(prediction, ObjectiveSpec(schedule=schedule))
    if len(schedule) != timesteps:
        raise DifftoolError(f"{what} gave {len(schedule)} levels, not {timesteps}")
    return schedule


def build_network(backbone: Backbone, data: DataFacts, settings: Training) -> nn.Module:
    """The network of a backbone for such data. Raises `UsageError` where it takes no such data."""
    what = f"backbone {backbone.name}"
    spec = BackboneSpec(
        shape=data.shape,
        out_channels=data.shape[0] * (2 if settings.learn_variance else 1),
        classes=data.classes,
        sigma_data=data.std,
        self_condition=settings.self_condition,
    )
    with blaming(what, refusal=UsageError):
        network = backbone.build(spec)
    if not isinstance(network, nn.Module):
        raise DifftoolError(f"{what} built a {type(network).__name__}, not a module")
    return network


def load_samples(dataset: Dataset, seed: int) -> Samples:
    """The data of a dataset. Raises `DifftoolError`."""
    with loading(dataset):
        samples = dataset.load(DatasetContext(seed=seed, cache=cache_folder()))
    if not isinstance(samples, Samples):
        raise DifftoolError(f"dataset {dataset.name} gave a {type(samples).__name__}, not Samples")
    return samples


def cache_folder() -> Path | None:
    """Where datasets may keep indexes: the user's cache, if the user has one."""
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "difftool"
    try:
        return Path.home() / ".cache" / "difftool"
    except RuntimeError:  # no HOME, and no entry for the user
        return None


@contextlib.contextmanager
def loading(dataset: Dataset) -> Iterator[None]:
    """What a dataset raises while it loads becomes one line that names it."""
    try:
        with blaming(f"dataset {dataset.name}", ModuleNotFoundError, OSError):
            yield
    except ModuleNotFoundError as error:
        raise DifftoolError(
            f"dataset {dataset.name}: needs the module {error.name!r}, which is not installed"
        ) from None
    except OSError as error:
        raise DifftoolError(f"dataset {dataset.name}: {one_line(error)}") from None
