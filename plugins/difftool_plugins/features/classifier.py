"""The features of a small network that learns the classes of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from difftool import Features, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import FeaturesSpec, Samples


class Classifier(Features, name="classifier"):
    """The last layer but one of a small network, trained here to tell the classes of the data apart.

    It is trained once for given data and a seed. Features are scaled to deviation 1 over the data.
    """

    steps: int = option(default=600, ge=1, le=100_000, help="steps of training, on 64 items each")
    width: int = option(default=64, ge=4, le=1024, help="number of features")
    lr: float = option(default=2e-3, gt=0, le=1, help="learning rate at first; it falls to 0")
    most: int = option(default=3072, ge=1, le=2**18, help="numbers of an image or film, which is averaged down to them")

    def build(self, spec: FeaturesSpec, data: Samples) -> Callable[[Tensor], Tensor]:
        if data.labels is None or int(data.labels.max()) < 1:
            raise ValueError("needs data with two classes or more; take --features scattering or pixels")
        from difftool_plugins.features.learning import Training
        from difftool_plugins.features.pixels import size_within

        return Training(
            steps=self.steps, width=self.width, lr=self.lr, size=size_within(spec, self.most), spec=spec, data=data
        ).features()
