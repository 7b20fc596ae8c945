"""The states of a process that show how signal turns into noise: even steps in what the eye can tell apart.

Imports nothing heavy.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difftool.diffusion.schedule import Level, Schedule

IMAGES, POINTS = 0.5, 0.25
"""Ratios sigma/alpha at which half counts as hidden. The eye averages over the pixels of an image."""
LEVELS = 5
"""The number of levels that are shown when the user names none."""


def hidden(levels: Iterable[Level], *, is_image: bool) -> list[float]:
    """Return the share of the data that noise hides at each level: 0 for clean data, and 1 for pure noise.

    It is the angle between signal and noise, which is finite at both ends, as a share of a right angle. The noise
    counts several times, since as much noise as signal leaves little to see.
    """
    half = IMAGES if is_image else POINTS
    return [math.atan2(level.sigma, half * level.alpha) / (math.pi / 2) for level in levels]


def visible_levels(schedule: Schedule, count: int = LEVELS, *, is_image: bool) -> tuple[int, ...]:
    """Return `count` table rows, from clean to noisy and the last among them; all of them if there are no more.

    Together with clean data they are even in what is hidden.
    """
    return tuple(k - 1 for k in spread([0.0, *hidden(schedule, is_image=is_image)], count + 1)[1:])


def spread(places: Sequence[float], count: int) -> list[int]:
    """Return the indices of `count` of these places, in order and as evenly spread as they allow.

    The places rise or fall. All are chosen if there are no more. Both ends are among them; a single one is the last.
    """
    last = len(places) - 1
    if count > last:
        return list(range(last + 1))
    if count == 1:
        return [last]
    chosen = [0]
    for i, target in enumerate(_targets(places, count)[1:], start=1):
        chosen.append(_nearest(places, target, chosen[-1] + 1, last - (count - 1 - i)))
    return chosen


def thinned(places: Sequence[float], most: int) -> list[int]:
    """Return the indices of at most `most` of these places: as `spread` does, but none where they lie too close."""
    if most < 2 or len(places) < 2:
        return spread(places, most)
    return sorted({_nearest(places, target, 0, len(places) - 1) for target in _targets(places, most)})


def _targets(places: Sequence[float], count: int) -> list[float]:
    start, end = places[0], places[-1]
    return [start + (end - start) * i / (count - 1) for i in range(count - 1)] + [end]


def _nearest(places: Sequence[float], target: float, low: int, high: int) -> int:
    """Return the index from `low` to `high` of the place nearest to the target."""
    sign = 1.0 if places[0] <= places[-1] else -1.0
    k = bisect_left(places, sign * target, low, high + 1, key=lambda place: sign * place)
    return min(min(high, k), max(low, k - 1), key=lambda i: abs(places[i] - target))
