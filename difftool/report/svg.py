"""Charts as SVG: small, sharp, and in the colours of the style sheet, which knows light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from difftool.report.content import Chart, Line, ScoreRow, number

WIDE, NARROW = (560, 290), (340, 260)
"""(width, height) of a chart on a screen, and on that of a telephone, where the same text takes more room."""
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 44
"""The margins in pixels."""
LARGEST = 307
"""The largest power of ten on an axis."""
MARK = 3.2
"""The radius of a point in pixels."""


@dataclass(frozen=True)
class Axis:
    """A range of numbers along some pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool = False, room: float = 0.0) -> Axis:
        """Return the axis that holds all values, with some room at both ends, as a share of the range."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if log:
            a, b = math.log10(low), math.log10(high)
            space = max(room * (b - a), 0.02)
            return cls(10 ** max(a - space, -LARGEST), 10 ** min(b + space, LARGEST), start, end, log=True)
        space = room * (high - low) or (0.5 if high == low else 0.0)
        return cls(low - space, high + space, start, end)

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        f: Callable[[float], float] = math.log10 if self.log else float
        share = (f(value) - f(self.low)) / (f(self.high) - f(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Return at most about `most` round numbers on the axis."""
        return self._decades(most) if self.log and self.high / self.low > 8 else self._even(most)

    def _even(self, most: int) -> list[float]:
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _decades(self, most: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1, 2, 5), (1, 3), (1,)):
            found = [f * 10.0**k for k in range(first, last + 1) for f in factors]
            found = [tick for tick in found if self.low <= tick <= self.high]
            if len(found) <= most:
                return found
        return found[:: math.ceil(len(found) / most)]


def charts_of(chart: Chart) -> Markup:
    """Return a chart as two SVG elements, of which the style sheet shows the one that suits the screen."""
    return Markup("").join([_svg(chart, *WIDE, "wide", 8), _svg(chart, *NARROW, "narrow", 4)])


def _svg(chart: Chart, width: int, height: int, name: str, columns: int) -> Markup:
    across = [x for line in chart.lines for x in line.x]
    up = [value for line in chart.lines for value in _heights(line, chart.log)]
    x = Axis.over(across, LEFT, width - RIGHT, room=0.01)
    y = Axis.over(up, height - BOTTOM, TOP, log=chart.log, room=0.05)
    parts = [*_grid(x, y, columns), *(_line(line, x, y) for line in chart.lines)]
    middle, foot = (LEFT + width - RIGHT) / 2, height - 6
    parts.append(Markup('<text class="label" x="{:.0f}" y="{}">{}</text>').format(middle, foot, chart.x_label))
    label = '<text class="label" transform="translate(12 {:.0f}) rotate(-90)">{}</text>'
    parts.append(Markup(label).format((TOP + height - BOTTOM) / 2, chart.y_label))
    head = '<svg class="plot {}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    return Markup(head).format(name, width, height, chart.description, Markup("").join(parts))


def _heights(line: Line, log: bool) -> list[float]:
    """Return all heights that a line needs, error bars among them."""
    if not line.errors:
        return [*line.y]
    ends = [value + sign * error for value, error in zip(line.y, line.errors, strict=True) for sign in (-1, 1)]
    return [*line.y, *(end for end in ends if end > 0 or not log)]


def _grid(x: Axis, y: Axis, columns: int) -> list[Markup]:
    parts = []
    for tick in y.ticks(6):
        at = f"{y.place(tick):.1f}"
        parts.append(Markup(f'<path class="rule" d="M{x.start} {at}H{x.end}"/>'))
        parts.append(Markup(f'<text class="tick" x="{x.start - 6}" y="{at}" dy="4">{escape(f"{tick:g}")}</text>'))
    for tick in x.ticks(columns):
        at = f"{x.place(tick):.1f}"
        parts.append(Markup(f'<path class="rule" d="M{at} {y.start}v5"/>'))
        parts.append(Markup(f'<text class="tick below" x="{at}" y="{y.start + 19}">{number(tick)}</text>'))
    parts.append(Markup(f'<path class="axis" d="M{x.start} {y.start}H{x.end}"/>'))
    return parts


def _line(line: Line, x: Axis, y: Axis) -> Markup:
    places = [(x.place(a), y.place(b)) for a, b in zip(line.x, line.y, strict=True)]
    kind = f"c{line.colour % 8}"
    bars = Markup("")
    if line.errors:
        ends = [
            (x.place(a), *(y.place(max(b + sign * e, y.low)) for sign in (-1, 1)))
            for a, b, e in zip(line.x, line.y, line.errors, strict=True)
        ]
        d = "".join(f"M{a:.1f} {low:.1f}V{high:.1f}" for a, low, high in ends)
        bars = Markup(f'<path class="line {kind}" d="{d}"/>')
    if line.marks or len(places) == 1:
        d = "".join(
            f"M{a - MARK:.1f} {b:.1f}a{MARK} {MARK} 0 1 0 {2 * MARK} 0a{MARK} {MARK} 0 1 0 {-2 * MARK} 0"
            for a, b in places
        )
        return bars + Markup(f'<path class="mark {kind}" d="{d}"/>')
    d = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places) if places else ""
    return bars + Markup(f'<path class="line {kind} d{line.dash % 4}" d="{d}"/>')


def swatch(line: Line) -> Markup:
    """Return the sign of a line in a legend."""
    kind = f"c{line.colour % 8}"
    if line.marks:
        inner = f'<circle class="mark {kind}" cx="14" cy="6" r="{MARK + 0.6}"/>'
    else:
        inner = f'<path class="line {kind} d{line.dash % 4}" d="M1 6H27"/>'
    return Markup(f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true">{inner}</svg>')


def whisker(score: ScoreRow, low: float, high: float) -> Markup:
    """Return a score with its error bar on a scale from `low` to `high`, beside its floor."""
    axis = Axis.over([min(low, 0.0), max(high, 0.0)], 4, 116)
    parts = [Markup('<path class="rule" d="M4 10H116"/>')]
    if score.floor is not None:
        ends = [axis.place(score.floor + sign * (score.floor_error or 0.0)) for sign in (-1, 1)]
        parts.append(
            Markup(f'<path class="floor" d="M{axis.place(score.floor):.1f} 2v16M{ends[0]:.1f} 10H{ends[1]:.1f}"/>')
        )
    if score.error is not None:
        ends = [axis.place(score.value + sign * score.error) for sign in (-1, 1)]
        d = f"M{ends[0]:.1f} 10H{ends[1]:.1f}" + "".join(f"M{end:.1f} 6v8" for end in ends)
        parts.append(Markup(f'<path class="line c0" d="{d}"/>'))
    parts.append(Markup(f'<circle class="mark c0" cx="{axis.place(score.value):.1f}" cy="10" r="3.5"/>'))
    return Markup('<svg class="whisker" viewBox="0 0 120 20" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )
