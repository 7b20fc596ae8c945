"""difftool: a plugin-based toolkit for diffusion models.

This module offers everything a plugin author or a script needs, and nothing more. Heavy names are imported on first
use (PEP 562), so that importing difftool imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from difftool.components import (
    Backbone,
    Component,
    Dataset,
    NoiseSchedule,
    Oracle,
    Prediction,
    Sampler,
    Spacing,
    TimeDensity,
    Weighting,
    option,
)
from difftool.errors import DifftoolError, UsageError, printable
from difftool.hookspecs import hookimpl
from difftool.version import __version__

if TYPE_CHECKING:
    from difftool.api import component, load, train
    from difftool.contracts import BackboneSpec, Denoise, Estimate, ObjectiveSpec, Step
    from difftool.data import PIXELS, DatasetContext, Samples, points
    from difftool.images import BadImage, check_image, read_image
    from difftool.model import Model
    from difftool.schedule import CLEAN, TIME_RANGE, Level, Schedule

_LAZY = {
    "api": ("component", "load", "train"),
    "data": ("PIXELS", "DatasetContext", "Samples", "points"),
    "contracts": ("BackboneSpec", "Denoise", "Estimate", "ObjectiveSpec", "Step"),
    "images": ("BadImage", "check_image", "read_image"),
    "model": ("Model",),
    "schedule": ("CLEAN", "TIME_RANGE", "Level", "Schedule"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "CLEAN",
    "PIXELS",
    "TIME_RANGE",
    "Backbone",
    "BackboneSpec",
    "BadImage",
    "Component",
    "Dataset",
    "DatasetContext",
    "Denoise",
    "DifftoolError",
    "Estimate",
    "Level",
    "Model",
    "NoiseSchedule",
    "ObjectiveSpec",
    "Oracle",
    "Prediction",
    "Sampler",
    "Samples",
    "Schedule",
    "Spacing",
    "Step",
    "TimeDensity",
    "UsageError",
    "Weighting",
    "__version__",
    "check_image",
    "component",
    "hookimpl",
    "load",
    "option",
    "points",
    "printable",
    "read_image",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'difftool' has no attribute {name!r}")
    value = getattr(import_module(f"difftool.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
