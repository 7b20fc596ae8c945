"""Tables of scores, of one model or of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Column

from difftool.cli.console import add_row, new_table, stdout

if TYPE_CHECKING:
    from difftool.evaluation.evaluation import Evaluation


def print_scores(evaluations: Sequence[Evaluation]) -> None:
    """Print the scores of models: one table, a row for each score."""
    from difftool.evaluation.words import number, verdict

    table = new_table(
        *(Column(name, no_wrap=True) for name in ("model", "score")),
        *(Column(name, no_wrap=True, justify="right") for name in ("value", "floor")),
        Column("verdict", overflow="fold"),
    )
    for one in evaluations:
        for each in one.measured:
            floor = "-" if each.floor is None else number(each.floor)
            add_row(table, one.source, each.score.name, number(each.score), floor, verdict(each))
    stdout().print(table)
