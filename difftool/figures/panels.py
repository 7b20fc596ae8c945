"""Tables of panels, one sample in each: series as lines, sound as wave and spectrogram, clouds as scatter plots."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from matplotlib.figure import Figure

from difftool.data.forms import Form
from difftool.figures import style
from difftool.figures.clouds import Clouds
from difftool.figures.films import Still
from difftool.figures.groups import Groups
from difftool.figures.images import near_square
from difftool.figures.layout import Board, columns_of_page
from difftool.figures.style import Floats, Pixels
from difftool.figures.waves import Lines, Sounds

MOST, MOST_MOVING = 64, 16
"""The largest numbers of panels of a grid, and of a film."""
ACROSS = 8
"""The largest number of samples of a class side by side."""
WIDTHS = (620, 440, 320, 250)
"""The widths of panels in a table of one, two, three or four columns."""
SMALL, SMALLEST = 200, 160
"""The width of panels in a table of more columns, and the least one in a table of many rows."""
TALL = 1100
"""The height from which a table is drawn smaller."""


class Panel(Protocol):
    """A sample as it is drawn."""

    artists: list[Any]
    """Whatever moves in a film."""

    def move(self, sample: Floats) -> None:
        """Show another sample."""


class View(Protocol):
    """The look that samples of a form share, so that panels can be compared."""

    @property
    def proportion(self) -> float:
        """The height of a panel divided by its width."""

    @property
    def note(self) -> str:
        """Words for the axes, which have no ticks."""

    def panel(self, board: Board, place: tuple[int, int, int, int], sample: Floats) -> Panel:
        """Draw a sample (*shape) at a place (x, y, width, height)."""


VIEWS: Mapping[Form, Callable[[Floats, float | None], View]] = {
    "series": Lines.of,
    "sound": Sounds.of,
    "cloud": Clouds.of,
}
"""The view of samples (N, *shape) in data units, with their rate, for each form that is drawn in panels."""


@dataclass(frozen=True)
class Table:
    """The numbers of samples in rows and columns with names. A place without a sample has None."""

    cells: Sequence[Sequence[int | None]]
    columns: Sequence[str] = ()
    rows: Sequence[str] = ()
    axes: tuple[str, str] = ("", "")
    note: str = ""
    """Words for samples that are left out, or an empty text."""

    @classmethod
    def grid(cls, count: int, proportion: float, columns: int | None, most: int = MOST) -> Table:
        """Return a page of so many samples."""
        shown = min(count, most)
        across = min(shown, columns or near_square(shown, round(100 * proportion), 100))
        places = [i if i < shown else None for i in range(math.ceil(shown / across) * across)]
        note = f"first {shown:,} of {count:,}" if shown < count else ""
        return cls([places[i : i + across] for i in range(0, len(places), across)], note=note)

    @classmethod
    def of(cls, groups: Groups, most: int = MOST) -> Table:
        """Return the table of groups: several samples of each row side by side, or the first one of each cell."""
        if groups.columns:
            cells: list[list[int | None]] = [[cell[0] if cell else None for cell in row] for row in groups.cells]
            note = "the first of each" if groups.largest > 1 else ""
        else:
            across = min(groups.largest, ACROSS)
            cells = [[*row[0][:across], *[None] * (across - len(row[0]))] for row in groups.cells]
            note = f"the first {across} of each" if across < groups.largest else ""
        down = max(1, most // len(cells[0]))
        if down < len(cells):
            note = ", ".join(filter(None, [f"first {down} of {len(cells)} rows", note]))
        note = ", ".join(filter(None, [groups.omitted, note]))
        return cls(cells[:down], groups.columns, groups.rows[:down], groups.axes, note)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the samples, place by place."""
        return [number for row in self.cells for number in row if number is not None]

    def renumbered(self) -> Table:
        """Return the table of samples in the order of `numbers`."""
        count = itertools.count()
        return replace(self, cells=[[None if n is None else next(count) for n in row] for row in self.cells])


@style.look()
def panel_figure(view: View, samples: Floats, table: Table, *, title: str, across: int | None = None) -> Figure:
    """Draw samples (N, *shape) in data units in the places of a table."""
    board, _ = _draw(view, samples, table, [title], across)
    return board.figure


def panel_frames(view: View, states: Iterable[Floats], table: Table, *, titles: Sequence[str]) -> Iterator[Pixels]:
    """Yield a frame for each state, which is a batch of samples (N, *shape), laid out as `panel_figure` does."""
    panels: list[tuple[int, Panel]] = []
    for k, samples in enumerate(states):
        if not panels:
            board, panels = _draw(view, samples, table, titles, None)
            still = Still(board.figure, [*(artist for _, panel in panels for artist in panel.artists), board.title])
        for number, panel in panels:
            panel.move(samples[number])
        board.title.set_text(board.titles[k])
        yield still.frame()


def panel_table(view: View, cells: Floats, *, columns: Sequence[str], rows: Sequence[str], title: str) -> Figure:
    """Draw samples (R, K, *shape) in rows and columns with names."""
    down, count = cells.shape[:2]
    table = Table([[r * count + k for k in range(count)] for r in range(down)], columns, rows)
    return panel_figure(view, cells.reshape(-1, *cells.shape[2:]), table, title=title)


@style.look()
def _draw(
    view: View, samples: Floats, table: Table, titles: Sequence[str], across: int | None
) -> tuple[Board, list[tuple[int, Panel]]]:
    """Return the table, and its panels with the numbers of their samples."""
    down, count = len(table.cells), len(table.cells[0])
    width = WIDTHS[count - 1] if count <= len(WIDTHS) else SMALL
    width = min(width, max(SMALLEST, round(TALL / down / view.proportion)))
    height, gap = round(width * view.proportion), 8
    across = columns_of_page(count, width + gap, down * (height + gap), across) if table.columns else count
    board = Board.of(
        across * (width + gap) - gap,
        down * (height + gap) - gap,
        titles=["\n".join(filter(None, [*title.splitlines(), view.note])) for title in titles],
        cell=(width, height),
        gap=gap,
        columns=table.columns,
        rows=table.rows,
        names=table.axes,
    )
    panels = []
    for r, row in enumerate(table.cells):
        for k, number in enumerate(row):
            if number is not None:
                x, y = k % across * (width + gap), k // across * board.pitch + r * (height + gap)
                panels.append((number, view.panel(board, (x, y, width, height), samples[number])))
    return board, panels
