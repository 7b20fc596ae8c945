"""A verdict on training in words: still falling, flat, or memorising, from the losses of each quarter of noise levels.

Held-out items are measured at the same levels and with the same noise every time, so two measurements differ by the
weights alone: by their trend, and by the scatter of weights that keep moving. A change counts if it stands out from
this scatter and is large enough to matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, linear_regression, median
from typing import Any, Literal

from difftool.runs.rows import quarters

QUARTERS = ("lowest", "lower", "higher", "highest")
"""The words for the noise of the quarters of t, from clean to noisy."""
TOGETHER = {(0, 1): "low noise", (1, 2): "middle noise", (2, 3): "high noise", (0, 1, 2, 3): "all noise levels"}
FEWEST = 8
"""The smallest number of measurements that are judged."""
POINTS, BLOCKS, LEAST = 60, 6, 5
"""The number of points that a longer series is condensed to, the number of blocks in which trends are looked for, since
neighbours are not independent, and the smallest number of points of a trend."""
CHANCE = {3: (5.84, 3.18), 4: (4.60, 2.78)}
"""Student's t for chances of 0.005 and 0.025 on one side, by degrees of freedom."""
LARGEST_LOG = 700.0
"""The largest logarithm of a change whose share is a finite number."""
NORMAL = 1.4826
"""The standard deviation of a normal distribution over the median of the distances from its mean."""
FALL, RISE, CLEAR = 0.01, 0.05, 0.05
"""Logarithms of shares of the loss: the smallest fall over the last third and the smallest rise above the best that
count, and the largest change that may go unseen where the loss is called flat."""
SCATTERS, FALLS = 5.0, 4.0
"""The rise above the best in standard errors, of which it takes many since the best is the least of many, and over the
largest fall on the way, which is as large as the rise where the loss only wanders."""

State = Literal["memorising", "unstable", "falling", "flat", "unclear", "unknown"]
Series = list[tuple[float, float]]
"""Steps with losses, in order."""


@dataclass(frozen=True)
class Quarter:
    """The course of the loss in a quarter of the noise levels. Shares are those of its best."""

    noise: str
    """`lowest`, `lower`, `higher` or `highest`."""
    state: Literal["rising", "falling", "flat", "unclear"]
    loss: float
    """The held-out loss at the end, or the loss of training if nothing is held out."""
    train: float | None
    """The loss of training at the end."""
    best: float
    """The lowest loss. Like the others it is the median of neighbours."""
    best_step: int
    above_best: float
    """The share by which the loss has risen since."""
    change: float
    """The change over the last third of the run, as a share."""
    error: float
    """One standard error of the change, about as a share."""
    memorises: bool = False
    """True if the loss of held-out items rises and that of training items does not."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on the losses of a run."""

    state: State
    words: str
    measurements: int
    """The number of measurements of the held-out loss."""
    quarters: Sequence[Quarter] = ()
    """The quarters of t that can be judged, from clean to noisy."""

    def __str__(self) -> str:
        return self.words

    def document(self) -> dict[str, Any]:
        """Return the verdict as plain values."""
        return asdict(self)


def verdict(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Return what the rows of a run's metrics tell: whether its losses still fall, and whether it memorises its items.

    Memorising shows as a held-out loss that has risen above its best while the loss of training has not. Where nothing
    is held out, the loss of training is judged.
    """
    rows = sorted(rows, key=lambda row: int(row["step"]))
    train = [_series(rows, "loss_quartiles", q) for q in range(4)]
    held_out = [_series(rows, "held_out_quartiles", q) for q in range(4)]
    measured = max(map(len, held_out))
    series = held_out if measured else train
    judged = {q: judge(QUARTERS[q], series[q], train[q]) for q in range(4) if len(series[q]) >= FEWEST}
    about = "held-out loss" if measured else "loss"
    if judged:
        state, words = _summary(judged)
    else:
        state, words = "unknown", f"too few measurements to judge ({max(map(len, series))}; it takes {FEWEST})"
    if not measured:
        words += "; nothing is held out, so memorising cannot be seen: train with --held-out N"
    return Verdict(state, f"{about}: {words}", measured, tuple(judged.values()))


def judge(noise: str, series: Series, train: Series) -> Quarter:
    """Judge the loss of one quarter beside that of training, which may be the same series."""
    points = condensed(series)
    shares, width = relative(points), max(3, len(points) // BLOCKS)
    first = min(range(len(points) - width + 1), key=lambda i: _middle(shares[i : i + width])[1])
    (best_step, best), (_, end) = _middle(points[first : first + width]), _middle(points[-width:])
    rise = _middle(shares[-width:])[1] - _middle(shares[first : first + width])[1]
    change, error, degrees = trend(last(shares, 1 / 3, LEAST))
    likely, possible = CHANCE[degrees]
    falls = change < -FALL and (change < -likely * error or falls_steadily(shares))
    after = blocks([point for point in shares if point[0] >= best_step])
    by_chance = max(error, scatter(shares) * math.sqrt(2.0 / width))
    rises = not falls and rise > max(RISE, SCATTERS * by_chance, FALLS * largest_fall([loss for _, loss in after]))
    clear = abs(change) + possible * error < CLEAR
    return Quarter(
        noise=noise,
        state="falling" if falls else "rising" if rises else "flat" if clear else "unclear",
        loss=end,
        train=_middle(train[-max(1, len(train) // BLOCKS) :])[1] if train else None,
        best=best,
        best_step=round(best_step),
        above_best=_share(rise),
        change=_share(change),
        error=error,
        memorises=rises and series is not train and _rise_since(best_step, relative(train)) < rise / 2,
    )


# --- numbers ----------------------------------------------------------------------------------------------------------


def relative(series: Series) -> Series:
    """Return the logarithms of the losses, whose differences are shares, and in which a decaying loss is straighter.

    Losses that are not all positive, as some plugins have them, are divided by the largest instead.
    """
    if all(loss > 0 for _, loss in series):
        return [(step, math.log(loss)) for step, loss in series]
    largest = max(abs(loss) for _, loss in series) or 1.0
    return [(step, loss / largest) for step, loss in series]


def condensed(series: Series) -> Series:
    """Return at most `POINTS` points, each the mean step and the median loss of neighbours."""
    return blocks(series, POINTS)


def blocks(series: Series, count: int = BLOCKS) -> Series:
    """Return the middles of this many blocks of neighbours, or the series if it is shorter."""
    n, count = len(series), min(count, len(series))
    return [_middle(series[i * n // count : (i + 1) * n // count]) for i in range(count)]


def last(points: Series, share: float, fewest: int) -> Series:
    """Return the points of the last share of the steps, or the last few points if these are more."""
    start, end = points[0][0], points[-1][0]
    inside = sum(step >= end - (end - start) * share for step, _ in points)
    return points[-max(inside, fewest) :]


def falls_steadily(points: Series) -> bool:
    """Return whether the points of the last half of the steps fall from each block to the next.

    Six blocks in no order do so once in 720 times. Unlike a straight line, this allows for a curve that levels off.
    """
    parts = blocks(last(points, 1 / 2, BLOCKS))
    return len(parts) == BLOCKS and all(b < a for (_, a), (_, b) in pairwise(parts))


def trend(points: Series) -> tuple[float, float, int]:
    """Return the change along the points by a straight line, its standard error, and the degrees of freedom of that."""
    x, y = zip(*blocks(points), strict=True)
    slope, intercept = linear_regression(x, y)
    length, mean, degrees = points[-1][0] - points[0][0], fmean(x), len(x) - 2
    rest = math.hypot(*(b - intercept - slope * a for a, b in zip(x, y, strict=True))) / math.sqrt(degrees)
    return slope * length, rest / math.hypot(*(a - mean for a in x)) * length, degrees


def scatter(points: Series) -> float:
    """Return the standard deviation of the points around the lines between their neighbours.

    It is estimated by the median of the distances, so that outliers and the steep beginning of a run hardly count.
    """
    triples = zip(points, points[1:], points[2:], strict=False)
    return median(abs(b - (a + c) / 2) for (_, a), (_, b), (_, c) in triples) * NORMAL / math.sqrt(1.5)


def largest_fall(values: Sequence[float]) -> float:
    """Return the largest fall from a value to a later one."""
    return max(value - min(values[i:]) for i, value in enumerate(values))


def _share(logarithm: float) -> float:
    return math.expm1(min(logarithm, LARGEST_LOG))


def _rise_since(step: float, series: Series) -> float:
    """Return the rise of a series since a step; it is negative if it fell."""
    since = blocks([point for point in series if point[0] >= step])
    return since[-1][1] - since[0][1] if since else 0.0


def _series(rows: Sequence[Mapping[str, Any]], name: str, quarter: int) -> Series:
    values = ((float(row["step"]), quarters(row, name)[quarter]) for row in rows)
    return [(step, value) for step, value in values if value is not None]


def _middle(points: Series) -> tuple[float, float]:
    return fmean(step for step, _ in points), median(loss for _, loss in points)


# --- words ------------------------------------------------------------------------------------------------------------


def _summary(judged: Mapping[int, Quarter]) -> tuple[State, str]:
    """Return the state of a run, and what it is at which levels: what falls first, and what matters most at the end."""
    found: list[tuple[State, str]] = []

    def put(state: State, quarters: Mapping[int, Quarter], words: str) -> None:
        if quarters:
            found.append((state, words.format(levels=_levels(quarters))))

    def those(state: str, *, memorises: bool = False) -> dict[int, Quarter]:
        return {q: one for q, one in judged.items() if one.state == state and one.memorises == memorises}

    flat, falling, rising, memorised = those("flat"), those("falling"), those("rising"), those("rising", memorises=True)
    fall = _percent(-one.change for one in falling.values())
    put("flat", flat, "flat at {levels}" + (": more steps change little" if len(flat) == len(judged) else ""))
    put("unclear", those("unclear"), "unclear at {levels}, where it scatters")
    put("falling", falling, f"still falling at {{levels}} ({fall} over the last third)")
    put("unstable", rising, f"rising at {{levels}} {_since(rising)}, as on training items: a lower --lr may help")
    put("memorising", memorised, f"rising at {{levels}} {_since(memorised)}: it memorises")
    return found[-1][0], "; ".join(words for _, words in found)


def _levels(quarters: Mapping[int, Quarter]) -> str:
    """Return quarters in words: `low noise`, `lowest and higher noise`."""
    if together := TOGETHER.get(tuple(quarters)):
        return together
    *most, last = (one.noise for one in quarters.values())
    return f"{', '.join(most)}{' and ' if most else ''}{last} noise"


def _since(quarters: Mapping[int, Quarter]) -> str:
    if not quarters:
        return ""
    first = min(one.best_step for one in quarters.values())
    return f"since step {first:,} ({_percent(one.above_best for one in quarters.values())} above its best)"


def _percent(shares: Iterable[float]) -> str:
    """Return shares as `3 %` or `3 to 12 %`."""
    texts = [f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:,.0f}" for share in sorted(shares)]
    return " to ".join(dict.fromkeys((texts[0], texts[-1]))) + " %" if texts else ""
