"""The content of a page as plain records, which the template only arranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from difftool.diffusion.visible import spread

TABLE_ROWS = 12
"""The largest number of rows of the table that stands beside a chart."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a caption. The first cell of a row is its heading."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve, or points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    """The number of the colour, of eight that the style sheet has for light and for dark."""
    dash: int = 0
    """The number of the dash pattern, of four."""
    marks: bool = False
    """True to draw points instead of a line."""
    errors: Sequence[float] = ()
    """The standard error of each point, or () for none."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over a common axis."""

    key: str
    """The id of its element, unique on the page."""
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log: bool = False
    """True for a vertical axis that is logarithmic; all values are positive then."""
    note: str = ""
    """A note on the numbers for readers."""

    @property
    def description(self) -> str:
        """The chart in one sentence, for those who do not see it."""
        ends = [f"{line.name} from {number(line.y[0])} to {number(line.y[-1])}" for line in self.lines if line.y]
        return f"{self.title}: {self.y_label} over {self.x_label}. {'; '.join(ends)}."

    @cached_property
    def table(self) -> Table:
        """Some values of all lines, at the same places where lines share them."""
        places = sorted({x for line in self.lines for x in line.x})
        chosen = [places[i] for i in spread(range(len(places)), TABLE_ROWS)]
        cells = [[_at(line, x) for line in self.lines] for x in chosen]
        rows = [[number(x), *texts] for x, texts in zip(chosen, cells, strict=True)]
        few = f", at {len(rows)} of {len(places):,} places" if len(places) > len(rows) else ""
        headings = [self.x_label, *(line.name for line in self.lines)]
        return Table(caption=f"{self.title}{few}", headings=headings, rows=rows)


def _at(line: Line, x: float) -> str:
    """Return the value of a line at its place nearest to x, or a dash beyond its ends."""
    if not line.x or not line.x[0] <= x <= line.x[-1]:
        return "–"
    i = min(range(len(line.x)), key=lambda i: abs(line.x[i] - x))
    return number(line.y[i]) + (f" ± {number(line.errors[i])}" if line.errors else "")


def number(value: float) -> str:
    """Return a number as people write it: four digits, and whole numbers with commas."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as the page holds it."""

    source: str
    """The address of the picture: its own bytes, as a `data:` address."""
    alt: str
    width: int
    height: int
    label: str = ""
    """Its place on a slider, such as `step 400`."""


@dataclass(frozen=True, kw_only=True)
class Slider:
    """Pictures of one thing, of which a slider shows one. Without scripts and in print, a few of them are shown."""

    key: str
    title: str
    text: str
    label: str
    """The quantity that the slider changes, such as `Training step`."""
    pictures: Sequence[Picture]
    left_out: int = 0
    """The number of further pictures, for which the page has no room."""

    @property
    def key_pictures(self) -> Sequence[int]:
        """The pictures to print."""
        return spread(range(len(self.pictures)), PRINTED)


PRINTED = 4
"""The number of pictures of a slider that are printed."""


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One number of an evaluation, ready to show."""

    metric: str
    text: str
    """The value with its error."""
    floor_text: str
    """The floor with its error, or an empty text."""
    verdict: str
    """The value beside the floor in words."""
    value: float
    error: float | None
    floor: float | None
    floor_error: float | None
    n: str
    better: str
    unit: str

    @property
    def ends(self) -> list[float]:
        """The ends of the error bars of value and floor."""
        pairs = [(self.value, self.error), (self.floor, self.floor_error)]
        return [value + sign * (error or 0.0) for value, error in pairs if value is not None for sign in (-1, 1)]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation: what was measured, on what, and the numbers."""

    title: str
    settings: str
    scores: Sequence[ScoreRow]
    copies: str = ""
    nearest: Table | None = None
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A name and a value of the summary."""

    name: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line, and what it does."""

    words: str
    text: str


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """All that the page says of one run. What is empty is left out."""

    key: str
    name: str
    sentence: str
    verdict: str = ""
    """The verdict on training in words."""
    judged: Table | None = None
    """The numbers of the verdict."""
    facts: Sequence[Fact] = ()
    commands: Sequence[Command] = ()
    charts: Sequence[Chart] = ()
    sliders: Sequence[Slider] = ()
    metrics: Sequence[Chart] = ()
    """Metrics that were measured while the run trained."""
    evaluations: Sequence[Evaluation] = ()
    classes: Sequence[str] = ()
    more_classes: int = 0
    schedule: Sequence[Chart] = ()
    config: str = ""
    digest: str = ""
    notes: Sequence[str] = ()
    """Notes on what could not be read, and what was left out."""


@dataclass(frozen=True, kw_only=True)
class Added:
    """A picture or a table that the user adds to the page."""

    name: str
    picture: Picture | None = None
    table: Table | None = None


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page about one run or several."""

    title: str
    runs: Sequence[RunPage]
    version: str
    command: str
    """The command line that writes this page."""
    charts: Sequence[Chart] = ()
    """The runs over each other."""
    added: Sequence[Added] = ()
    """The files that other commands have written."""
    tables: Sequence[Table] = field(default=())
    """The results of all runs, and what differs between them."""

    @property
    def all_charts(self) -> list[Chart]:
        own = [chart for run in self.runs for chart in (*run.charts, *run.metrics, *run.schedule)]
        return [*self.charts, *own]
