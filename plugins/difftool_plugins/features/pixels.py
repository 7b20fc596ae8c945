"""The items themselves as features."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from difftool import Features

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import FeaturesSpec, Samples


class Pixels(Features, name="pixels"):
    """The numbers of the items themselves, in model units."""

    def build(self, spec: FeaturesSpec, data: Samples) -> Callable[[Tensor], Tensor]:
        scaling = data.scaling
        return lambda items: scaling.to_model(items).flatten(1).float()
