"""difftool: a plugin-based toolkit for diffusion models.

This module offers everything a plugin author or a script needs, and nothing more. Names are imported on first use (PEP
562), so that importing difftool costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from difftool.version import API_VERSION, __version__

if TYPE_CHECKING:
    from difftool.api import load, train
    from difftool.components import (
        Backbone,
        Command,
        Component,
        Dataset,
        Logger,
        NoiseSchedule,
        Oracle,
        Prediction,
        Sampler,
        Spacing,
        TimeDensity,
        Weighting,
        Writer,
        option,
    )
    from difftool.data.images import BadImage, check_image, read_image
    from difftool.data.samples import PIXELS, DatasetContext, Samples, points
    from difftool.diffusion.estimate import (
        BackboneSpec,
        Denoise,
        DrawingSpec,
        Estimate,
        ObjectiveSpec,
        Row,
        RunContext,
        Step,
    )
    from difftool.diffusion.schedule import CLEAN, TIME_RANGE, Level, Schedule
    from difftool.errors import DifftoolError, UsageError, printable
    from difftool.figures.drawing import Drawing
    from difftool.hookspecs import hookimpl
    from difftool.plugins.naming import component, names
    from difftool.sampling.model import Model

_LAZY = {
    "api": ("load", "train"),
    "components": (
        "Backbone",
        "Command",
        "Component",
        "Dataset",
        "Logger",
        "NoiseSchedule",
        "Oracle",
        "Prediction",
        "Sampler",
        "Spacing",
        "TimeDensity",
        "Weighting",
        "Writer",
        "option",
    ),
    "errors": ("DifftoolError", "UsageError", "printable"),
    "hookspecs": ("hookimpl",),
    "data.samples": ("PIXELS", "DatasetContext", "Samples", "points"),
    "diffusion.estimate": (
        "BackboneSpec",
        "Denoise",
        "DrawingSpec",
        "Estimate",
        "ObjectiveSpec",
        "Row",
        "RunContext",
        "Step",
    ),
    "figures.drawing": ("Drawing",),
    "data.images": ("BadImage", "check_image", "read_image"),
    "sampling.model": ("Model",),
    "plugins.naming": ("component", "names"),
    "diffusion.schedule": ("CLEAN", "TIME_RANGE", "Level", "Schedule"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "API_VERSION",
    "CLEAN",
    "PIXELS",
    "TIME_RANGE",
    "Backbone",
    "BackboneSpec",
    "BadImage",
    "Command",
    "Component",
    "Dataset",
    "DatasetContext",
    "Denoise",
    "DifftoolError",
    "Drawing",
    "DrawingSpec",
    "Estimate",
    "Level",
    "Logger",
    "Model",
    "NoiseSchedule",
    "ObjectiveSpec",
    "Oracle",
    "Prediction",
    "Row",
    "RunContext",
    "Sampler",
    "Samples",
    "Schedule",
    "Spacing",
    "Step",
    "TimeDensity",
    "UsageError",
    "Weighting",
    "Writer",
    "__version__",
    "check_image",
    "component",
    "hookimpl",
    "load",
    "names",
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
