"""difftool: a plugin-based toolkit for diffusion models.

This module offers everything that a plugin author or a script needs, and nothing more. Names are imported on first use
(PEP 562), so that `import difftool` stays fast.
"""

from __future__ import annotations

from importlib import import_module

from difftool.version import API_VERSION as API_VERSION
from difftool.version import __version__ as __version__

TYPE_CHECKING = False  # typing is not imported: under `python -m` it could still come from the current folder
if TYPE_CHECKING:
    from typing import Any

    from difftool.api import load as load
    from difftool.api import train as train
    from difftool.cli.console import note as note
    from difftool.cli.console import progress as progress
    from difftool.cli.model_resources import device_option as device_option
    from difftool.cli.model_resources import model_option as model_option
    from difftool.cli.outputs import Output as Output
    from difftool.cli.outputs import output_option as output_option
    from difftool.cli.resources import component_option as component_option
    from difftool.components import Backbone as Backbone
    from difftool.components import Callback as Callback
    from difftool.components import Codec as Codec
    from difftool.components import Command as Command
    from difftool.components import Component as Component
    from difftool.components import Dataset as Dataset
    from difftool.components import Features as Features
    from difftool.components import Guidance as Guidance
    from difftool.components import Logger as Logger
    from difftool.components import Loss as Loss
    from difftool.components import Metric as Metric
    from difftool.components import NoiseSchedule as NoiseSchedule
    from difftool.components import Optimizer as Optimizer
    from difftool.components import Oracle as Oracle
    from difftool.components import Prediction as Prediction
    from difftool.components import Sampler as Sampler
    from difftool.components import Spacing as Spacing
    from difftool.components import TimestepSampling as TimestepSampling
    from difftool.components import Weighting as Weighting
    from difftool.components import Writer as Writer
    from difftool.data.condition import Condition as Condition
    from difftool.data.forms import backbone_of as backbone_of
    from difftool.data.images import BadImage as BadImage
    from difftool.data.images import check_image as check_image
    from difftool.data.images import read_image as read_image
    from difftool.data.images import same_proportions as same_proportions
    from difftool.data.projections import Projections as Projections
    from difftool.data.projections import wasserstein_2_squared as wasserstein_2_squared
    from difftool.data.samples import PIXELS as PIXELS
    from difftool.data.samples import DatasetContext as DatasetContext
    from difftool.data.samples import Samples as Samples
    from difftool.data.samples import points as points
    from difftool.data.scaling import moments as moments
    from difftool.data.scaling import some_rows as some_rows
    from difftool.diffusion.estimate import Denoise as Denoise
    from difftool.diffusion.estimate import Estimate as Estimate
    from difftool.diffusion.estimate import Noise as Noise
    from difftool.diffusion.estimate import Step as Step
    from difftool.diffusion.schedule import CLEAN as CLEAN
    from difftool.diffusion.schedule import TIME_RANGE as TIME_RANGE
    from difftool.diffusion.schedule import Level as Level
    from difftool.diffusion.schedule import Schedule as Schedule
    from difftool.errors import DifftoolError as DifftoolError
    from difftool.errors import UsageError as UsageError
    from difftool.errors import printable as printable
    from difftool.evaluation.evaluation import Evaluation as Evaluation
    from difftool.evaluation.measuring import Measured as Measured
    from difftool.evaluation.scores import Score as Score
    from difftool.evaluation.scores import Sets as Sets
    from difftool.figures.drawing import Drawing as Drawing
    from difftool.figures.formats import DrawingSpec as DrawingSpec
    from difftool.files import read_json as read_json
    from difftool.files import write_json as write_json
    from difftool.hookspecs import hookimpl as hookimpl
    from difftool.options import option as option
    from difftool.plugins.registry import component as component
    from difftool.plugins.registry import load_plugin as load_plugin
    from difftool.plugins.registry import names as names
    from difftool.sampling.foreign import model_of as model_of
    from difftool.sampling.guidance import GuidanceSpec as GuidanceSpec
    from difftool.sampling.guidance import Predictions as Predictions
    from difftool.sampling.model import Model as Model
    from difftool.sampling.source import Source as Source
    from difftool.specs import BackboneSpec as BackboneSpec
    from difftool.specs import CodecSpec as CodecSpec
    from difftool.specs import ConditionSpec as ConditionSpec
    from difftool.specs import FeaturesSpec as FeaturesSpec
    from difftool.specs import ObjectiveSpec as ObjectiveSpec
    from difftool.specs import OracleSpec as OracleSpec
    from difftool.specs import Progress as Progress
    from difftool.specs import Row as Row
    from difftool.specs import RunContext as RunContext
    from difftool.specs import Stop as Stop
    from difftool.training.batch import LossSpec as LossSpec
    from difftool.training.batch import Pairing as Pairing
    from difftool.training.batch import Predict as Predict
    from difftool.training.batch import TrainingBatch as TrainingBatch
    from difftool.training.fused_adam import FusedAdam as FusedAdam

_NAMES: dict[str, tuple[str, ...]] = {
    "api": ("load", "train"),
    "cli.console": ("note", "progress"),
    "cli.model_resources": ("device_option", "model_option"),
    "cli.outputs": ("Output", "output_option"),
    "cli.resources": ("component_option",),
    "components": (
        "Backbone",
        "Callback",
        "Codec",
        "Command",
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
    ),
    "data.condition": ("Condition",),
    "data.forms": ("backbone_of",),
    "data.images": ("BadImage", "check_image", "read_image", "same_proportions"),
    "data.projections": ("Projections", "wasserstein_2_squared"),
    "data.samples": ("PIXELS", "DatasetContext", "Samples", "points"),
    "data.scaling": ("moments", "some_rows"),
    "diffusion.estimate": ("Denoise", "Estimate", "Noise", "Step"),
    "diffusion.schedule": ("CLEAN", "TIME_RANGE", "Level", "Schedule"),
    "errors": ("DifftoolError", "UsageError", "printable"),
    "evaluation.evaluation": ("Evaluation",),
    "evaluation.measuring": ("Measured",),
    "evaluation.scores": ("Score", "Sets"),
    "figures.drawing": ("Drawing",),
    "figures.formats": ("DrawingSpec",),
    "files": ("read_json", "write_json"),
    "hookspecs": ("hookimpl",),
    "options": ("option",),
    "plugins.registry": ("component", "load_plugin", "names"),
    "sampling.foreign": ("model_of",),
    "sampling.guidance": ("GuidanceSpec", "Predictions"),
    "sampling.model": ("Model",),
    "sampling.source": ("Source",),
    "specs": (
        "BackboneSpec",
        "CodecSpec",
        "ConditionSpec",
        "FeaturesSpec",
        "ObjectiveSpec",
        "OracleSpec",
        "Progress",
        "Row",
        "RunContext",
        "Stop",
    ),
    "training.batch": ("LossSpec", "Pairing", "Predict", "TrainingBatch"),
    "training.fused_adam": ("FusedAdam",),
}
"""The public names, by the module that defines each."""

_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = ["API_VERSION", "__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'difftool' has no attribute {name!r}")
    value = getattr(import_module(f"difftool.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
