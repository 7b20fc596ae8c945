"""The table of a comparison: on the screen, as CSV (a line for each number), as Markdown or as LaTeX (as one reads it).

The best mean of a column is bold where it differs from every other by more than both deviate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.cells import cell_len
from rich.table import Column, Table

from difftool.cli.console import add_row, new_table
from difftool.cli.run_table import csv_text
from difftool.errors import printable, shortened
from difftool.evaluation.statistics import Spread, best_of
from difftool.files import write_text
from difftool.runs.summary import Value

DIVERGES, FLOOR = "diverges", "data against data"
LONGEST_NAME = 60
WORDS = {"sliced_w2": "sliced W2", "error": "error"}


@dataclass(frozen=True)
class Number:
    """A mean of a comparison, and where it stands."""

    keys: tuple[str, ...]
    """What the line is about, one for each of the table's headings."""
    limit: int
    """The network calls at most, which are its column."""
    calls: int
    steps: int
    score: str
    spread: Spread


@dataclass(frozen=True)
class ComparisonTable:
    """The numbers of a comparison."""

    headings: tuple[str, ...]
    """What lines differ in: options of the runs, sampler, spacing, guidance."""
    numbers: Sequence[Number]
    better: Mapping[str, Literal["lower", "higher"]]
    """The direction of each score."""
    floors: Mapping[str, float | None]
    """The score of data against data, as far as it was measured."""
    caption: str

    @property
    def limits(self) -> list[int]:
        return sorted({number.limit for number in self.numbers})

    @property
    def scores(self) -> list[str]:
        return [*dict.fromkeys(number.score for number in self.numbers)]

    @property
    def lines(self) -> list[tuple[str, ...]]:
        return [*dict.fromkeys(number.keys for number in self.numbers)]

    def best(self, score: str, limit: int) -> Number | None:
        """Return the number of a column that is better than each other one by more than the two deviate."""
        column = [number for number in self.numbers if (number.score, number.limit) == (score, limit)]
        index = best_of([number.spread for number in column], self.better[score], self.floors.get(score))
        return None if index is None else column[index]

    def shown(self) -> list[int]:
        """Return the headings under which lines differ, for a page has no room for the others; at least one."""
        varying = [i for i in range(len(self.headings)) if len({keys[i] for keys in self.lines}) > 1]
        return varying or [0]

    def grid(self, mean: Callable[[Spread], str], bold: Callable[[str], str]) -> list[list[str]]:
        """Return the cells of all lines: what they differ in, and the numbers by score and network calls."""
        by_place = {(n.keys, n.score, n.limit): n for n in self.numbers}
        best = {self.best(score, limit) for score in self.scores for limit in self.limits}
        rows = []
        for keys in self.lines:
            found = [by_place.get((keys, score, limit)) for score in self.scores for limit in self.limits]
            cells = ["-" if n is None else bold(mean(n.spread)) if n in best else mean(n.spread) for n in found]
            rows.append([*(keys[i] for i in self.shown()), *cells])
        return rows

    def floor_cells(self, mean: Callable[[Spread], str]) -> list[str] | None:
        """Return the line of the floor, or None where it was measured for no score."""
        if all(self.floors.get(score) is None for score in self.scores):
            return None
        floors = [self.floors.get(score) for score in self.scores]
        texts = ["-" if floor is None else mean(Spread(floor, None, 1)) for floor in floors]
        return [text for text in texts for _ in self.limits]


def write_table(table: ComparisonTable, path: Path, *, overwrite: bool) -> None:
    """Write a table in the format of the path's suffix, `.csv`, `.md` or `.tex`, whole or not at all."""
    text = {".csv": long_csv, ".md": markdown, ".tex": latex}[path.suffix.lower()](table)
    write_text(path, text, overwrite=overwrite)


def screen(table: ComparisonTable, score: str, width: int) -> Table:
    """Return one score of a table for a terminal: a column for each number of calls, or a line where that is too wide.

    A star marks the best of those with as many calls.
    """
    one = replace(table, numbers=[n for n in table.numbers if n.score == score])
    shown, grid, floor = one.shown(), one.grid(plus_minus, "{} *".format), one.floor_cells(plus_minus)
    title = f"{WORDS.get(score, score)}, by network calls at most"
    keys = [one.headings[i] for i in shown]
    rows = [[*keys, *map(str, one.limits)], *grid]
    rows += [[FLOOR, *[""] * (len(keys) - 1), *floor]] if floor is not None else []
    if sum(max(map(cell_len, column)) + 2 for column in zip(*rows, strict=True)) <= width:
        found = new_table(
            *keys, *(Column(str(limit), justify="right", no_wrap=True) for limit in one.limits), title=title
        )
        for row in rows[1:]:
            add_row(found, *row)
        return found
    found = new_table(*(Column(key, overflow="fold") for key in (*keys, "calls", WORDS.get(score, score))), title=title)
    for row in grid:
        for limit, cell in zip(one.limits, row[len(keys) :], strict=True):
            add_row(found, *row[: len(keys)], str(limit), cell)
    if floor is not None:
        add_row(found, FLOOR, *[""] * len(keys), floor[0])
    return found


def long_csv(table: ComparisonTable) -> str:
    """Return the table as CSV, in full precision: a line for each number, and the floor in a column of its own."""
    names = [*table.headings, "calls at most", "calls", "steps", "score", "mean", "deviation", "n", "floor", "best"]
    rows: list[dict[str, Value | None]] = []
    for n in table.numbers:
        values = (n.limit, n.calls, n.steps, n.score, n.spread.mean, n.spread.deviation, n.spread.n)
        best = "yes" if table.best(n.score, n.limit) is n else "no"
        row = dict(zip(names, (*n.keys, *values, table.floors.get(n.score), best), strict=True))
        rows.append(row)
    return csv_text(names, rows)


def markdown(table: ComparisonTable) -> str:
    """Return the table as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    keys = [escaped_markdown(table.headings[i]) for i in table.shown()]
    columns = [_column(table, score, limit) for score in table.scores for limit in table.limits]
    rows = [
        [*map(escaped_markdown, row[: len(keys)]), *row[len(keys) :]] for row in table.grid(plus_minus, "**{}**".format)
    ]
    if (floor := table.floor_cells(plus_minus)) is not None:
        rows.append([FLOOR, *[""] * (len(keys) - 1), *floor])
    head = [line([*keys, *map(escaped_markdown, columns)]), line([*["---"] * len(keys), *["---:"] * len(columns)])]
    return "\n".join([*head, *map(line, rows), "", escaped_markdown(table.caption), ""])


def latex(table: ComparisonTable) -> str:
    """Return the table as LaTeX, for the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return f"{' & '.join(cells)} \\\\"

    keys, count = table.shown(), len(table.limits)
    top, second, rules = [""] * len(keys), [escaped_latex(table.headings[i]) for i in keys], []
    for number, score in enumerate(table.scores):
        first = len(keys) + 1 + number * count
        name = f"{escaped_latex(WORDS.get(score, score))} by network calls"
        top.append(name if count == 1 else f"\\multicolumn{{{count}}}{{c}}{{{name}}}")
        rules.append(f"\\cmidrule(lr){{{first}-{first + count - 1}}}")
        second += [f"{limit}" for limit in table.limits]
    rows = [
        [*map(escaped_latex, row[: len(keys)]), *row[len(keys) :]]
        for row in table.grid(latex_number, lambda text: f"$\\mathbf{{{text.strip('$')}}}$")
    ]
    body = [line(row) for row in _without_repeats(rows, len(keys))]
    floor = table.floor_cells(latex_number)
    if floor is not None:
        name = FLOOR if len(keys) == 1 else f"\\multicolumn{{{len(keys)}}}{{l}}{{{FLOOR}}}"
        body += ["\\midrule", line([name, *floor])]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            f"% {table.caption}",
            f"\\begin{{tabular}}{{{'l' * len(keys)}{'r' * count * len(table.scores)}}}",
            "\\toprule",
            line(top),
            "".join(rules),
            line(second),
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


def plus_minus(spread: Spread) -> str:
    """Return a mean with its deviation, as many digits as these deserve: `0.0532 ± 0.0041`."""
    if spread.mean is None:
        return DIVERGES
    if spread.deviation is None:
        return f"{spread.mean:.3g}"
    digits = decimals(spread.deviation, spread.mean)
    return f"{spread.mean:.{digits}f} ± {spread.deviation:.{digits}f}"


def latex_number(spread: Spread) -> str:
    """Return the same for LaTeX."""
    return "diverges" if spread.mean is None else f"${plus_minus(spread).replace('±', chr(92) + 'pm')}$"


def decimals(deviation: float, mean: float) -> int:
    """Return the decimals that show two digits of a deviation, or three of a mean whose values are all the same."""
    size = deviation or abs(mean) / 10 or 1.0
    return max(0, min(9, 1 - math.floor(math.log10(size))))


LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escaped_latex(text: str) -> str:
    """Return a text that LaTeX prints as it stands."""
    return "".join(LATEX.get(sign, sign) for sign in shortened(printable(text), LONGEST_NAME))


def escaped_markdown(text: str) -> str:
    """Return a text that Markdown shows as it stands, also in a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", printable(text))


def _column(table: ComparisonTable, score: str, limit: int) -> str:
    """Return the heading of a column: the network calls, and the score."""
    return f"{WORDS.get(score, score)}, {limit} calls"


def _without_repeats(rows: Sequence[Sequence[str]], keys: int) -> list[list[str]]:
    """Return rows in which the first keys stand only where they change."""
    found, before = [], [""] * keys
    for row in rows:
        same = next((i for i in range(keys) if row[i] != before[i]), keys)
        hidden = min(same, keys - 1)
        found.append([*[""] * hidden, *row[hidden:]])
        before = [*row[:keys]]
    return found
