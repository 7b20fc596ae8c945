"""Help in a narrow terminal: names of options stay whole, for a name that is cut cannot be typed.

Typer prints tables whose columns rich narrows alike. While help is printed, its tables are of the class below.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text


class _WholeNames(Table):
    """A table that narrows its other columns before those that hold names of options."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for column in self.columns:
            column.no_wrap, column.overflow = any(str(cell).startswith("--") for cell in column.cells), "fold"
        yield from super().__rich_console__(console, options)


def _one_text(parts: Sequence[RenderableType]) -> RenderableType:
    """Return parts of a help text as one, whose long words are wrapped. Side by side, they would be cut."""
    texts = [part for part in parts if isinstance(part, Text)]
    return Text(" ").join(texts) if len(texts) == len(parts) else Columns(parts)


@contextlib.contextmanager
def whole_names() -> Iterator[None]:
    """Keep the names of options whole in the help that is printed in this block."""
    from typer import rich_utils

    typers: Any = rich_utils
    typers.Table, typers.Columns = _WholeNames, _one_text
    try:
        yield
    finally:
        typers.Table, typers.Columns = Table, Columns
