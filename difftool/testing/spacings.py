"""Laws of level grids."""

from __future__ import annotations

from difftool.components import Spacing
from difftool.errors import DifftoolError
from difftool.sampling.plan import spaced_levels
from difftool.testing.known import TABLES
from difftool.testing.laws import Broken

COUNTS = (1, 2, 7, 61, 999, 1000)


def gives_as_many_levels_as_asked(spacing: Spacing) -> str:
    """Of 1, 2, 7, 61, 999 and 1000 levels of three tables it gives exactly so many, strictly from noisy to clean."""
    for name, table in TABLES.items():
        for count in COUNTS:
            try:
                spaced_levels(table, spacing, count)
            except DifftoolError as error:
                raise Broken(f"{count} levels of {name}: {error}") from None
    return f"{', '.join(map(str, COUNTS))} levels of {', '.join(TABLES)}"


def repeats_itself(spacing: Spacing) -> str:
    """Asked twice, it gives the same levels: nothing is random or remembered."""
    if list(spacing.levels(TABLES["linear"], 61)) != list(spacing.levels(TABLES["linear"], 61)):
        raise Broken("two grids of 61 levels differ")
    return "two grids of 61 levels"


LAWS = (gives_as_many_levels_as_asked, repeats_itself)
