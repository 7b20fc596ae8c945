"""The kinds of component: validated options go in, a working part comes out.

A component is a frozen, keyword-only dataclass. Its fields are its options, its docstring is its help, and its one
method makes the part. Subclassing is all it takes: `class DDIM(Sampler, name="ddim")`. Imports nothing heavy.
A kind is declared by its base class alone: hook, flag, options, tables in config files and documentation follow.
"""

from __future__ import annotations

from difftool.components.command import Command
from difftool.components.component import Component
from difftool.components.evaluation import Features, Metric
from difftool.components.model import Backbone, Codec, Dataset, NoiseSchedule, Prediction
from difftool.components.sampling import Guidance, Oracle, Sampler, Spacing, Writer
from difftool.components.training import (
    Callback,
    Companion,
    Logger,
    Loss,
    Optimizer,
    TimestepSampling,
    Weighting,
)

__all__ = [
    "KINDS",
    "Backbone",
    "Callback",
    "Codec",
    "Command",
    "Companion",
    "Component",
    "Dataset",
    "Features",
    "Guidance",
    "Logger",
    "Loss",
    "Metric",
    "NoiseSchedule",
    "Optimizer",
    "Oracle",
    "Prediction",
    "Sampler",
    "Spacing",
    "TimestepSampling",
    "Weighting",
    "Writer",
    "kinds_of",
    "suggestion_attribute",
]

KINDS: dict[str, type[Component]] = {
    base.kind: base
    for base in (
        Dataset,
        NoiseSchedule,
        Backbone,
        Codec,
        Sampler,
        Spacing,
        Guidance,
        Prediction,
        Loss,
        Weighting,
        TimestepSampling,
        Optimizer,
        Oracle,
        Logger,
        Callback,
        Writer,
        Features,
        Metric,
        Command,
    )
}
"""The base classes by kind."""


def kinds_of(command: str) -> dict[str, type[Component]]:
    """Return the kinds whose flags a command takes."""
    return {kind: base for kind, base in KINDS.items() if command in base.commands and base.flag is not None}


def suggestion_attribute(base: type[Component]) -> str:
    """Return the attribute by which components of other kinds suggest one of this kind: `default_backbone`."""
    return f"default_{base.kind.replace('-', '_')}"
