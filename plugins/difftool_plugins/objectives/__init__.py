"""Built-in prediction types and loss weightings."""

from difftool import Prediction, Weighting, hookimpl
from difftool_plugins.objectives.predictions import EpsPrediction, VPrediction, X0Prediction
from difftool_plugins.objectives.weightings import MinSNR, Unweighted


@hookimpl
def difftool_predictions() -> list[type[Prediction]]:
    return [EpsPrediction, X0Prediction, VPrediction]


@hookimpl
def difftool_weightings() -> list[type[Weighting]]:
    return [Unweighted, MinSNR]
