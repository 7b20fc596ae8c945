"""What a benchmark finds: tables of figures measured side by side, and goals beside them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SCALES = {"us": 1e6, "ms": 1e3, "s": 1.0}
"""Seconds -> the unit that a table shows."""


@dataclass(frozen=True)
class Effort:
    """How thorough a run is."""

    quick: bool = False

    def __call__(self, full: int, quick: int) -> int:
        """The number that suits: of rounds, steps, seeds."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Goal:
    """A bound that a figure should reach; it is told, never asserted."""

    bound: float
    at_least: bool

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    @property
    def text(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {digits(self.bound)}"


def at_least(bound: float) -> Goal:
    return Goal(bound, at_least=True)


def at_most(bound: float) -> Goal:
    return Goal(bound, at_least=False)


@dataclass(frozen=True)
class Spread:
    """A median, and the range that holds eight of ten rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return cls(statistics.median(values), tenths[0], tenths[-1])

    @property
    def range(self) -> str:
        return f"[{digits(self.low)}, {digits(self.high)}]"


@dataclass(frozen=True)
class Comparison:
    """A contender beside a reference, round by round; or, without a reference, its figures as they are."""

    contender: str
    reference: str | None = None
    goal: Goal | None = None


@dataclass(frozen=True)
class Table:
    """Figures of contenders, one a round, and how they compare."""

    title: str
    unit: str
    """Of the figures as they are shown, such as `us a step`; its first word scales figures that are seconds."""
    values: Mapping[str, Sequence[float]]
    """Of each contender, one a round."""
    comparisons: Sequence[Comparison] = ()
    kind: Literal["speed", "share"] = "share"
    """Whether a ratio says how many times as fast the contender is, or how many times as much it takes."""
    sizes: Mapping[str, float] = field(default_factory=dict)
    """Of each contender, where they are one thing in growing sizes: drawn as a curve."""

    def __post_init__(self) -> None:
        if len({len(values) for values in self.values.values()}) > 1 and self.rows_with_reference:
            raise ValueError(f"{self.title}: ratios are taken round by round, so all need as many rounds")

    @property
    def scale(self) -> float:
        return SCALES.get(self.unit.partition(" ")[0], 1.0)

    @property
    def present(self) -> list[Comparison]:
        """The comparisons whose contenders took part."""
        return [c for c in self.comparisons if {c.contender, c.reference} - {None} <= set(self.values)]

    @property
    def rows_with_reference(self) -> list[Comparison]:
        return [c for c in self.present if c.reference is not None]

    def spread(self, contender: str) -> Spread:
        """Of a contender's figures, in the table's unit."""
        return Spread.of([value * self.scale for value in self.values[contender]])

    def ratio(self, comparison: Comparison) -> Spread:
        """Of contender and reference within each round; of the contender's own figures where there is none."""
        own = self.values[comparison.contender]
        if comparison.reference is None:
            return self.spread(comparison.contender)
        reference = self.values[comparison.reference]
        pairs = zip(own, reference, strict=True)
        return Spread.of([b / a if self.kind == "speed" else a / b for a, b in pairs])

    def document(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "unit": self.unit,
            "kind": self.kind,
            "values": {name: [value * self.scale for value in values] for name, values in self.values.items()},
            "medians": {name: self.spread(name).median for name in self.values},
            "comparisons": [self._row(comparison) for comparison in self.present],
            "sizes": dict(self.sizes),
        }

    def _row(self, comparison: Comparison) -> dict[str, Any]:
        ratio, goal = self.ratio(comparison), comparison.goal
        return {
            "contender": comparison.contender,
            "reference": comparison.reference,
            "median": ratio.median,
            "low": ratio.low,
            "high": ratio.high,
            "goal": goal and {"text": goal.text, "bound": goal.bound, "met": goal.met(ratio.median)},
        }


@dataclass(frozen=True)
class Findings:
    """All that a benchmark found."""

    tables: Sequence[Table]
    notes: Sequence[str] = ()
    """Lines to read beside the tables: what was left out, how long compiling took."""

    def document(self) -> dict[str, Any]:
        return {"tables": [table.document() for table in self.tables], "notes": list(self.notes)}


def digits(value: float) -> str:
    """Three digits, or all of a large number: 0.0312, 1.14, 763, 1,263."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value else "0"
