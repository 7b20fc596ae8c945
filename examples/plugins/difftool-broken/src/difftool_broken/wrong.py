"""Returns things that are no samplers, beside one that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from difftool import Sampler, hookimpl, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Step


class Unfinished(Sampler, name="unfinished"):
    """Has no walk."""


class Odd(Sampler, name="odd"):
    """Has an option that no file could keep."""

    table: dict[str, int] = option(default=None, help="a table")

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        raise AssertionError("never asked")


class Sound(Sampler, name="sound"):
    """DDIM once more: what is sound in a broken plugin can be used."""

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        from difftool import Step

        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = s.alpha * estimate.x_0 + s.sigma * estimate.eps
            yield Step(x, s, estimate)


@hookimpl
def difftool_samplers() -> list[Any]:
    return ["ddim", Unfinished, Odd, Sound]
