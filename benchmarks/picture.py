"""The picture of the page: a panel of bars for each benchmark, and curves of how cost grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.findings import Spread, digits
from difftool.figures import style

Found = Mapping[str, Any]

WIDTH, MARGIN, GAP, HEADING = 1800, 44, 56, 62
"""Pixels."""
COLUMNS = 3
ROW = 54
"""Pixels of a contender: its name, and its bar below."""
CURVE, LEFT, BELOW = 240, 56, 50
"""Height of a curve's panel, and the room for its numbers."""
LEGEND = 60
BAR_SHARE = 0.8
"""Of a panel's width, for the longest bar; the rest is for the numbers."""
WORDS = (
    "Blue: difftool.  Grey: others, and networks without a loop.  Black strokes: goals.  "
    "Thin lines: eight of ten rounds.  Dashed: in proportion to the size."
)


ROOM = 36
"""Letters that fit beside "shorter is better"."""


@dataclass(frozen=True)
class Bars:
    """The first table of a benchmark, as bars."""

    title: str
    about: str
    better: str
    """Which bars are better."""
    values: Mapping[str, Spread]
    goals: Sequence[tuple[str, float]]
    """(contender, where its bar should reach, or end)."""

    @classmethod
    def of(cls, title: str, table: Found) -> Bars:
        if table["kind"] == "speed":
            reference = main_reference(table)
            values = {name: speed(table, name, reference) for name in table["values"]}
            about, better = f"times as fast as {reference}", "longer is better"
        else:
            values = {name: Spread.of(values) for name, values in table["values"].items()}
            about, better = f"{table['title']}, {table['unit']}", "shorter is better"
            about = about if len(about) <= ROOM else table["title"]
        return cls(title.replace("`", ""), about, better, values, [*goals(table, values)])


def main_reference(table: Found) -> str:
    """What the first comparison is made with."""
    reference: str = table["comparisons"][0]["reference"]
    return reference


def speed(table: Found, name: str, reference: str) -> Spread:
    pairs = zip(table["values"][reference], table["values"][name], strict=True)
    return Spread.of([theirs / own for theirs, own in pairs])


def goals(table: Found, values: Mapping[str, Spread]) -> Sequence[tuple[str, float]]:
    """Goals on the scale of the bars: one beside a reference is a multiple of the reference's bar."""
    with_goals = [row for row in table["comparisons"] if row["goal"]]
    return [
        (row["contender"], row["goal"]["bound"] * (values[row["reference"]].median if row["reference"] else 1.0))
        for row in with_goals
    ]


@style.look()
def draw(found: Mapping[str, Found], path: Path) -> None:
    """Draw what was found, whatever part of the suite that is."""
    panels = [Bars.of(one["title"], one["tables"][0]) for one in found.values() if not one["tables"][0]["sizes"]]
    curves = [table for one in found.values() for table in one["tables"] if table["sizes"]]
    rows = [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
    heights = [HEADING + ROW * max(len(panel.values) for panel in row) for row in rows]
    height = LEGEND + sum(heights) + GAP * len(rows) + ((HEADING + CURVE + BELOW) if curves else 0)
    figure = style.canvas(WIDTH, height, dpi=style.CHART_DPI)
    legend(figure)
    top = LEGEND
    for row, row_height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            draw_bars(figure, panel, place(column, COLUMNS), top)
        top += row_height + GAP
    for column, table in enumerate(curves):
        draw_curve(figure, table, place(column, len(curves)), top)
    style.save(figure, path)


def place(column: int, columns: int) -> tuple[float, float]:
    """(left, width) of a column in pixels."""
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns
    return MARGIN + column * (width + GAP), width


def legend(figure: Figure) -> None:
    style.write(figure, MARGIN, 18, WORDS, size=style.SMALL, color=style.FAINT, va="top")


def draw_bars(figure: Figure, panel: Bars, where: tuple[float, float], top: float) -> None:
    left, width = where
    style.write(figure, left, top, panel.title, size=style.LABEL + 1, va="top", weight="bold")
    style.write(figure, left, top + 43, panel.about, size=style.SMALL, color=style.FAINT, va="baseline")
    style.write(
        figure, left + width, top + 43, panel.better, size=style.SMALL, color=style.FAINT, va="baseline", ha="right"
    )
    box = style.rectangle(figure, left, top + HEADING, width, ROW * len(panel.values))
    axes = figure.add_axes(box)
    style.quiet(axes)
    axes.set_frame_on(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    longest = max([*(spread.high for spread in panel.values.values()), *(at for _, at in panel.goals)])
    axes.set_xlim(0, longest / BAR_SHARE)
    axes.set_ylim(len(panel.values), 0)
    for row, (name, spread) in enumerate(panel.values.items()):
        draw_bar(axes, row, name, spread, [at for contender, at in panel.goals if contender == name])
    axes.axvline(0, color="#9a9a9a", linewidth=1.0)


def draw_bar(axes: Axes, row: int, name: str, spread: Spread, goals_here: Sequence[float]) -> None:
    """A name and its goals, and below them a bar with its range, a stroke for each goal, and the number."""
    colour, name_y, y = style.SAMPLES if is_ours(name) else style.DATA, row + 0.28, row + 0.66
    right = axes.get_xlim()[1]
    axes.text(0, name_y, f" {name}", fontsize=style.SMALL, va="center", parse_math=False)
    axes.text(right, y, digits(spread.median), fontsize=style.LABEL, va="center", ha="right")
    axes.barh(y, spread.median, height=0.34, color=colour)
    axes.plot([spread.low, spread.high], [y, y], color=style.INK, linewidth=0.9, alpha=0.6)
    for at in goals_here:
        axes.plot([at, at], [y - 0.25, y + 0.25], color=style.INK, linewidth=2.2, solid_capstyle="butt")
    if goals_here:
        words = f"goal {', '.join(digits(at) for at in goals_here)}"
        axes.text(right, name_y, words, fontsize=style.SMALL - 0.5, color=style.FAINT, va="center", ha="right")


def is_ours(name: str) -> bool:
    return (name.startswith("difftool") and "alone" not in name) or name in ("by default", "dpmpp-2m, 10 calls")


def draw_curve(figure: Figure, table: Found, where: tuple[float, float], top: float) -> None:
    """A cost over its size, both logarithmic: what it costs beside the smallest."""
    left, width = where
    axes = figure.add_axes(style.rectangle(figure, left + LEFT, top + HEADING, width - LEFT, CURVE))
    heading, _, rest = table["title"].partition(", ")
    style.write(figure, left, top + 18, heading, size=style.LABEL, va="baseline", weight="bold")
    style.write(figure, left, top + 43, rest or "a training step", size=style.SMALL, color=style.FAINT, va="baseline")
    sizes = list(table["sizes"].values())
    ratios = [Spread(1.0, 1.0, 1.0), *(Spread(row["median"], row["low"], row["high"]) for row in table["comparisons"])]
    axes.fill_between(sizes, [r.low for r in ratios], [r.high for r in ratios], color=style.SAMPLES, alpha=0.2, lw=0)
    axes.plot(sizes, [r.median for r in ratios], color=style.SAMPLES, marker="o", markersize=3.5)
    axes.plot(sizes, [size / sizes[0] for size in sizes], color=style.FAINT, linewidth=0.9, linestyle=style.DASHES[1])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(min(0.7, 0.8 * min(r.low for r in ratios)), max(3.0, 1.6 * max(r.high for r in ratios)))
    dress(axes, sizes)


def dress(axes: Axes, sizes: Sequence[float]) -> None:
    """Ticks at the smallest and the largest size and one between, and at powers of ten of the ratio."""
    shown = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    axes.set_xticks(shown, [short(size) for size in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if axes.get_ylim()[1] < 30 else (1.0,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))


def short(size: float) -> str:
    """10^6 as `1M`."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g}{unit}"
    return f"{size:g}"
