"""Scores of one model or of several: a table, and a CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Column

from difftool.cli.console import add_row, new_table, note, result, stdout
from difftool.cli.run_table import csv_text
from difftool.errors import listed

if TYPE_CHECKING:
    from difftool.evaluation.evaluation import Evaluation
    from difftool.evaluation.measuring import Measured

COLUMNS = (
    *("source", "step", "weights", "n", "against", "reference", "metric", "name", "value", "error", "floor"),
    *("floor_error", "better", "unit"),
)
"""The columns of a CSV file."""


def print_scores(evaluations: Sequence[Evaluation]) -> None:
    """Print the scores of models on stdout, a row for each score and model, and on stderr what the columns mean."""
    from difftool.evaluation.words import beside, beside_floor, number

    several, first = len(evaluations) > 1, evaluations[0]
    with_floor = any(each.floor is not None for each in first.measured)
    with_alike = any(each.alike is not None for each in first.measured)
    names = ("score", *(["model"] if several else []))
    columns = [Column(name, no_wrap=True, style="cyan" if name == "score" else "") for name in names]
    columns.append(Column("value", no_wrap=True))
    if with_alike:
        columns.append(Column("at floor's size", no_wrap=True))
    if with_floor:
        columns += [Column("floor", no_wrap=True), Column("beside data", overflow="fold")]
    if several:
        columns.append(Column(f"beside {first.source}", overflow="fold"))
    table = new_table(*columns)
    for each in first.measured:
        for one in evaluations:
            found = next((m for m in one.measured if m.score.name == each.score.name), None)
            if found is None:
                continue
            cells = [each.score.name if one is first else "", *([one.source] if several else []), number(found.score)]
            if with_alike:
                cells.append("-" if found.alike is None else number(found.alike))
            if with_floor:
                cells += ["-" if found.floor is None else number(found.floor), beside_floor(found)]
            if several:
                cells.append("" if one is first else beside(each.score, found.score))
            add_row(table, *cells)
    for line in _legend(first.measured):
        note(line)
    stdout().print(table)
    for one in evaluations:
        if one.copied is not None:
            result(f"{one.source}: {one.copied.words}" if several else one.copied.words)


def _legend(measured: Sequence[Measured]) -> list[str]:
    """Return lines that explain the columns of a table."""
    better = {each.score.name for each in measured if each.score.better == "higher"}
    lines = [f"higher is better for {listed(sorted(better))}" if better else "lower is better"]
    if any(each.score.error is not None for each in measured):
        lines.append("± is one standard error; a difference within two of them is none")
    if sizes := next((each.sizes for each in measured if each.sizes is not None), None):
        data, other = sizes
        line = f"floor: {data:,} items of the data, in place of samples, against {other:,} others"
        if any(each.alike is not None for each in measured):
            line += f"; at floor's size: {data:,} samples against the same {other:,}"
        lines.append(line)
    return lines


def csv_of(evaluations: Sequence[Evaluation]) -> str:
    """Return the scores as the text of a CSV file."""
    documents = [{**one.document(), "source": one.source} for one in evaluations]
    return csv_text(COLUMNS, [{**document, **score} for document in documents for score in document["scores"]])


def facts_of(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return plain values for `--json`: the evaluations, and how the scores of the others differ from the first's."""
    from difftool.evaluation.words import difference_table

    first, *others = evaluations
    scores: Mapping[str, Any] = {each.score.name: each.score for each in first.measured}
    differences = [
        {"source": other.source, "beside": first.source, **difference_table(scores[each.score.name], each.score)}
        for other in others
        for each in other.measured
        if each.score.name in scores
    ]
    documents = [{"source": one.source, **one.document()} for one in evaluations]
    return {"evaluations": documents, **({"differences": differences} if others else {})}
