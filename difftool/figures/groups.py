"""Samples in named rows and columns: by class or condition image, and by what they were drawn with.

Imports nothing heavy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from difftool.figures.axes import Axis, plural

SAMPLES = 16
"""The largest number of samples that are rows of their own, if nothing else names rows."""
ROWS, PANELS, CAPTIONS = 100, 100, 400
"""The largest numbers of rows of images, of panels of points, and of images with captions."""
KEYS = ("class", "image")
"""The axes whose values each sample has for itself."""


@dataclass(frozen=True)
class Groups:
    """Samples, by row and column."""

    cells: Sequence[Sequence[Sequence[int]]]
    """The numbers of the samples in each column of each row."""
    rows: Sequence[str]
    """The names of the rows, or () for a single one without a name."""
    columns: Sequence[str]
    """The names of the columns, or () for a single one without a name."""
    axes: tuple[str, str]
    """The names of rows and columns, such as `class` and `guidance`."""
    omitted: str = ""
    """Words for rows that are not shown, such as `first 100 of 1,000 classes`, or an empty text."""

    @classmethod
    def of(cls, keys: Sequence[str], axis: str, axes: Sequence[Axis], count: int, *, apart: bool) -> Groups | None:
        """Group sets of `count` samples, one set for each combination of values; None if there is a single group.

        `keys` are the values of a further axis for the samples of a set. With it or without, there are two axes at
        most: the first is that of the rows, and the last that of the columns. Without keys, a few samples that stand
        `apart`, as images do, are rows of their own. Groups without other columns become columns themselves where each
        is drawn as one thing: a single sample, or a cloud.
        """
        members: dict[str, list[int]] = {}
        for number, key in enumerate(keys):
            members.setdefault(key, []).append(number)
        if len(axes) == 2:
            return cls._of_two(axes[0], axes[1], count, apart=apart)
        several = len(axes[0].values) if axes else 1
        if len(members) < 2 and several == 1:
            return None
        if len(members) < 2:
            alone = apart and 1 < count <= SAMPLES
            members = {str(i): [i] for i in range(count)} if alone else {"": list(range(count))}
            axis = "sample" if alone else ""
        captions = several == 1 and apart and max(map(len, members.values())) == 1
        names, omitted = _first(list(members), CAPTIONS if captions else _most_rows(several, apart=apart), axis)
        rows = [members[name] for name in names]
        if several > 1:
            cells = [[[count * g + i for i in row] for g in range(several)] for row in rows]
            return cls(cells, names if axis else (), axes[0].values, (axis, axes[0].name), omitted)
        if not apart or captions:
            return cls([rows], (), names, ("", axis), omitted)
        return cls([[row] for row in rows], names, (), (axis, ""), omitted)

    @classmethod
    def _of_two(cls, down: Axis, across: Axis, count: int, *, apart: bool) -> Groups:
        """Group sets by their values on two axes."""
        columns = len(across.values)
        names, omitted = _first(down.values, _most_rows(columns, apart=apart), down.name)
        starts = [[count * (columns * r + c) for c in range(columns)] for r in range(len(names))]
        cells = [[range(start, start + count) for start in row] for row in starts]
        return cls(cells, names, across.values, (down.name, across.name), omitted)

    @property
    def count(self) -> int:
        """The number of cells."""
        return len(self.cells) * len(self.cells[0])

    @property
    def captions(self) -> bool:
        """True if columns stand for what rows could: cells of one row in any arrangement."""
        return not self.rows and self.axes[1].partition(",")[0] in KEYS

    @property
    def numbers(self) -> list[int]:
        """The numbers of the samples, cell by cell."""
        return [number for row in self.cells for cell in row for number in cell]

    @property
    def largest(self) -> int:
        """The number of samples of the largest cell."""
        return max(len(cell) for row in self.cells for cell in row)

    def limited(self, most: int) -> Groups:
        """Return the groups with the first samples of each cell, about `most` in all and at least one."""
        each = max(1, most // self.count)
        return replace(self, cells=[[cell[:each] for cell in row] for row in self.cells])

    def renumbered(self) -> Groups:
        """Return the groups of samples in the order of `numbers`."""
        count = itertools.count()
        return replace(self, cells=[[[next(count) for _ in cell] for cell in row] for row in self.cells])

    def with_first(self, given: int) -> Groups:
        """Return the groups of images to which so many were added in front, which each cell shows first."""
        first = list(range(given))
        return replace(self, cells=[[[*first, *(i + given for i in cell)] for cell in row] for row in self.cells])


def _most_rows(columns: int, *, apart: bool) -> int:
    """Return the largest number of rows with so many columns."""
    return ROWS if apart else max(1, PANELS // columns)


def _first(names: Sequence[str], most: int, axis: str) -> tuple[Sequence[str], str]:
    """Return the first names, and words for the others that are left out."""
    if len(names) <= most:
        return names, ""
    return names[:most], f"first {most:,} of {len(names):,} {plural(axis if axis.isalpha() else 'row')}"
