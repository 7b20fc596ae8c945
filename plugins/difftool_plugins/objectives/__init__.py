"""Built-in prediction types, losses, loss weightings and timestep samplings."""

from difftool import Loss, Prediction, TimestepSampling, Weighting, hookimpl
from difftool_plugins.objectives.losses import L1, MSE, Huber
from difftool_plugins.objectives.predictions import (
    EDMPrediction,
    EpsPrediction,
    FlowPrediction,
    MeanPrediction,
    VPrediction,
    X0Prediction,
)
from difftool_plugins.objectives.timestep_sampling import LogitNormal, LogNormal, Uniform
from difftool_plugins.objectives.weightings import P2, SNR, EDMWeighting, MinSNR, SoftMinSNR, Unweighted


@hookimpl
def difftool_predictions() -> list[type[Prediction]]:
    return [EpsPrediction, X0Prediction, VPrediction, FlowPrediction, MeanPrediction, EDMPrediction]


@hookimpl
def difftool_losses() -> list[type[Loss]]:
    return [MSE, L1, Huber]


@hookimpl
def difftool_weightings() -> list[type[Weighting]]:
    return [Unweighted, MinSNR, SoftMinSNR, P2, EDMWeighting, SNR]


@hookimpl
def difftool_timestep_samplings() -> list[type[TimestepSampling]]:
    return [Uniform, LogNormal, LogitNormal]
