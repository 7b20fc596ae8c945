"""Returns three objects that are not valid samplers, and one that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from difftool import Sampler, hookimpl, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Step


class Unfinished(Sampler, name="unfinished"):
    """A sampler without `sample`."""


class Odd(Sampler, name="odd"):
    """A sampler with an option that no file could hold."""

    table: dict[str, int] = option(default=None, help="a table")

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        raise AssertionError("never called")


class Sound(Sampler, name="sound"):
    """DDIM again. The sound parts of a broken plugin can be used."""

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
