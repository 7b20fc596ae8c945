"""The components of evaluation: the features in which samples are compared with data, and the metrics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from difftool.components.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.data.samples import Samples
    from difftool.evaluation.scores import Score, Sets
    from difftool.specs import FeaturesSpec


class Features(Component):
    """The features in which samples are compared with data."""

    kind = "features"
    hook = "difftool_features"
    flag = "--features"
    commands = ("evaluate", "compare")
    default = "pixels"
    needed_to_sample = False

    requires: ClassVar[Mapping[str, str]] = {}
    """The modules that it needs, each with what to pip install for it."""

    @abstractmethod
    def build(self, spec: FeaturesSpec, data: Samples) -> Callable[[Tensor], Tensor]:
        """Return a function of items (B, *shape) in data units that returns their features (B, D) as float32.

        `data` are the training items, which features may be fitted on. The function must be deterministic, and the
        features of an item must not depend on the others in the batch. If it has `facts`, a mapping of names to texts
        and numbers such as the digest of its weights, these are shown and recorded. Raise `ValueError` for data that do
        not fit.
        """


class Metric(Component):
    """A number that tells how good samples or a model are."""

    kind = "metric"
    hook = "difftool_metrics"
    flag = "--metric"
    several = True
    commands = ("evaluate", "compare")
    default = "fid,kid,prdc"
    needed_to_sample = False

    needs: ClassVar[Literal["features", "items", "model"]] = "features"
    """The objects that it compares: features of samples and data, the items, or a model with held-out items."""

    @abstractmethod
    def measure(self, sets: Sets) -> Sequence[Score]:
        """Return one score or several, each with its error bar where there is one.

        Metrics of features and items are measured a second time, between two halves of the data, for the floor. Raise
        `ValueError` for sets that do not fit, such as too few samples.
        """
