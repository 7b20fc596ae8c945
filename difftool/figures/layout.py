"""Text that fits, and room for pictures and curves beside their titles, labels and legends. All lengths are pixels."""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.text import Text

from difftool.figures import style

MARGIN = 14
"""Pixels around a picture."""
NARROWEST = 360
"""The least width of a picture, so that its title can be read."""
MOST_LINES = 6
"""The largest number of lines of a title."""
WIDEST_ROW, PROPORTION, LABELS = 1450, 1.3, 24
"""The width up to which a table is not wrapped, the proportion of one that is, and the height of a band's labels."""
WIDEST_LABEL = 170
"""The largest width of the label of a row."""
ENTRY = 120
"""The width of an entry of a legend beside its name."""


@lru_cache(maxsize=1)
def _ruler() -> Any:
    renderer: Any = RendererAgg
    return renderer(1, 1, style.PICTURE_DPI)


@lru_cache(maxsize=4096)
def text_width(text: str, size: float) -> float:
    """Return the width of one line of text at `PICTURE_DPI`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=style.MISSING_GLYPH)
        font = FontProperties(family=style.FAMILY, size=size)
        width, _, _ = _ruler().get_text_width_height_descent(text, font, False)
    return float(width)


def text_height(lines: int, size: float) -> float:
    """Return the height of some lines of text at `PICTURE_DPI`."""
    return lines * size * style.LINE * style.PICTURE_DPI / 72


def wrap(text: str, width: float, size: float) -> list[str]:
    """Return lines no wider than `width`. A word is broken only if it is wider by itself."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if text_width(longer, size) <= width:
                line = longer
                continue
            lines += [line] if line else []
            while text_width(word, size) > width and len(word) > 1:
                # the longest beginning that fits, but at least one letter
                end = bisect.bisect_right(range(2, len(word)), width, key=lambda n: text_width(word[:n], size)) + 1
                lines.append(word[:end])
                word = word[end:]
            line = word
        lines.append(line)
    return lines


def fit(titles: Sequence[str], width: float) -> tuple[list[str], float]:
    """Return the titles and their common font size: smaller if one is wide, then wrapped, and at last cut."""
    paragraphs = [line for title in titles for line in title.splitlines()]
    for size in (style.TITLE, style.TITLE - 1, style.TITLE - 2):
        if all(text_width(paragraph, size) <= width for paragraph in paragraphs):
            break
    return ["\n".join(cut(wrap(title, width, size), MOST_LINES, width, size)) for title in titles], size


def cut(lines: Sequence[str], most: int, width: float, size: float) -> list[str]:
    """Return at most so many lines no wider than `width`: an ellipsis stands for those that are left out."""
    if len(lines) <= most:
        return [*lines]
    last = lines[most - 1]
    while last and text_width(f"{last}…", size) > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}…"]


def columns_of_page(count: int, width: float, height: float, wanted: int | None = None) -> int:
    """Return how many of `count` columns of this size to draw side by side, so that the whole is a page.

    All of them if that is not too wide; otherwise as many as make it somewhat wider than high, in equal bands.
    """
    if wanted:
        return min(wanted, count)
    if count * width <= WIDEST_ROW:
        return count
    across = max(1, min(count, round(math.sqrt(PROPORTION * count * (height + LABELS) / width))))
    return math.ceil(count / math.ceil(count / across))


def add_legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], **look: Any) -> Legend:
    """Add a legend. Names are taken literally, so a `$` is a `$`."""
    legend = figure.legend(handles, names, borderpad=0, **look)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return legend


@dataclass(frozen=True)
class Board:
    """A figure with a title, and room for a picture whose upper left corner is at (left, top)."""

    figure: Figure
    title: Text
    titles: Sequence[str]
    """All titles as they fit; the first one is shown."""
    left: int
    top: int
    pitch: int = 0
    """The distance from one band of a wrapped table to the next."""

    @classmethod
    @style.look()
    def of(
        cls,
        width: int,
        height: int,
        *,
        titles: Sequence[str],
        cell: tuple[int, int] = (0, 0),
        gap: int = 0,
        columns: Sequence[str] = (),
        rows: Sequence[str] = (),
        names: tuple[str, str] = ("", ""),
    ) -> Board:
        """Make room for a picture of this size and for the longest title.

        Labels of columns and rows stand above and left of a picture that consists of cells with gaps between them. More
        columns than fit into its width are wrapped into bands of this height, one below the other. `names` say what
        the labels of rows and columns are.
        """
        most = max(1, int((cell[1] + gap) // text_height(1, style.LABEL)))
        row_lines = [cut(wrap(row, WIDEST_LABEL, style.LABEL), most, WIDEST_LABEL, style.LABEL) for row in rows]
        row_texts = [line for lines in row_lines for line in lines]
        widest = max((text_width(line, style.LABEL) for line in [*row_texts, names[0]]), default=0)
        left = MARGIN + (math.ceil(widest) + 8 if rows else 0)
        total = max(left + width + MARGIN, NARROWEST)
        left += (total - left - width - MARGIN) // 2

        fitted, size = fit(titles, total - 2 * MARGIN)
        title_height = math.ceil(text_height(max(t.count("\n") + 1 if t else 0 for t in fitted), size))
        room = cell[0] + gap - 4
        column_lines = [cut(wrap(column, room, style.LABEL), MOST_LINES, room, style.LABEL) for column in columns]
        lines_above = max((len(lines) for lines in column_lines), default=1 if names[0] else 0)
        label_height = math.ceil(text_height(lines_above, style.LABEL)) + 5 if lines_above else 0
        name_height = math.ceil(text_height(1, style.LABEL)) if names[1] else 0
        label_height += name_height
        top = MARGIN + (title_height + 6 if title_height else 0) + label_height

        across = max(1, (width + gap) // (cell[0] + gap)) if columns else 1
        bands, pitch = max(1, math.ceil(len(columns) / across)), height + label_height + 2 * gap
        figure = style.canvas(total, top + (bands - 1) * pitch + height + MARGIN)
        title = style.write(figure, total / 2, MARGIN - 2, fitted[0], size=size, ha="center", va="top")
        for k, lines in enumerate(column_lines):
            x, y = left + k % across * (cell[0] + gap) + cell[0] / 2, top + k // across * pitch
            style.write(figure, x, y - 4, "\n".join(lines), size=style.LABEL, ha="center", va="bottom")
        for band in range(bands):
            x, y = left + min(len(columns), across) * (cell[0] + gap) / 2 - gap / 2, top + band * pitch
            look: dict[str, Any] = {"size": style.LABEL, "color": style.FAINT}
            if names[1]:
                style.write(figure, x, y - label_height, names[1], ha="center", va="top", **look)
            if names[0]:
                style.write(figure, left - 8, y - 4, names[0], ha="right", va="bottom", **look)
        for r, lines in enumerate(row_lines):
            for band in range(bands):
                middle = top + band * pitch + r * (cell[1] + gap) + cell[1] / 2
                style.write(figure, left - 8, middle, "\n".join(lines), size=style.LABEL, ha="right", va="center")
        return cls(figure, title, fitted, left, top, pitch)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes whose upper left corner is at (x, y) from that of the picture."""
        return self.figure.add_axes(style.rectangle(self.figure, self.left + x, self.top + y, width, height))


@style.look()
def add_heading(
    figure: Figure, title: str, handles: Sequence[Any], names: Sequence[str], *, columns: int = 0, **look: Any
) -> None:
    """Put a legend with a title above the panels of a chart, and make the figure higher by as much.

    By default the rows of the legend have similar lengths.
    """
    width, height = style.size_of(figure)
    scale = style.CHART_DPI / style.PICTURE_DPI
    (title,), size = fit([title], (width - 60) / scale)
    if not columns:
        widest = max(text_width(name, style.SMALL + 0.5) for name in names) * scale
        rows = math.ceil(len(names) / max(1, int((width - 60) // (widest + ENTRY))))
        columns = math.ceil(len(names) / rows)
    look = {"loc": "outside upper center", "ncols": columns, "title": title, "title_fontsize": size, **look}
    legend = add_legend(figure, handles, names, **look)
    legend.get_title().set(parse_math=False, linespacing=style.LINE)
    total = height + legend.get_window_extent().height
    figure.set_figheight(style.inches(round(total), style.CHART_DPI))
