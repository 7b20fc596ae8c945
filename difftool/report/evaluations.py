"""Evaluations of a run as the page shows them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from difftool.errors import printable, shortened
from difftool.evaluation.measuring import Measured
from difftool.evaluation.scores import Score
from difftool.evaluation.words import beside_floor, with_error
from difftool.report.content import Evaluation, ScoreRow, Table, number
from difftool.runs.evaluations import read_evaluations
from difftool.runs.folder import RunFolder

MOST = 20
"""The largest number of evaluations that a page shows, the newest ones, and of settings of each."""
MOST_SCORES, MOST_PAIRS, MOST_PICTURES = 40, 12, 4
LONGEST = 600
"""Characters of a text of an evaluation."""


@dataclass(frozen=True)
class Recorded:
    """An evaluation, and the names of its pictures, which are still to be read."""

    evaluation: Evaluation
    pictures: Sequence[str]


def newest_evaluations(run: RunFolder) -> list[Recorded]:
    """Return the newest evaluations of a run, the newest first."""
    return [_recorded(document) for document in reversed(read_evaluations(run)[-MOST:])]


def _recorded(document: Mapping[str, Any]) -> Recorded:
    features, copies = _table(document, "features"), _table(document, "copies")
    title = ", ".join(filter(None, [f"step {document['step']:,}", text(document.get("weights"))]))
    return Recorded(
        Evaluation(
            title=title,
            settings=_settings(document, features),
            scores=list(_scores(document["scores"])),
            copies=text(copies.get("words")) or _share(copies),
            nearest=_nearest(copies),
        ),
        document.get("pictures", ())[:MOST_PICTURES],
    )


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def text(value: object) -> str:
    """Return a text from a file, on one line and not too long; an empty one for anything else than text or a number."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    return shortened(printable(value if isinstance(value, str) else number(value)), LONGEST)


def _settings(document: Mapping[str, Any], features: Mapping[str, Any]) -> str:
    sampling = ", ".join(
        f"{shortened(printable(str(key)), 40)} {shown}"
        for key, value in [*_table(document, "sampling").items()][:MOST]
        if (shown := text(value))
    )
    against = text(document.get("against"))
    reference = text(document.get("reference"))
    parts = [
        f"{shown} samples" if (shown := text(document.get("n"))) else "",
        f"against {reference + ' ' if reference else ''}{against} items" if against else "",
        f"features: {shown}" if (shown := text(features.get("name"))) else "",
        sampling,
    ]
    return "; ".join(filter(None, parts))


def _scores(entries: Sequence[Mapping[str, Any]]) -> Iterator[ScoreRow]:
    for entry in entries[:MOST_SCORES]:
        value, error, floor = (_number(entry.get(key)) for key in ("value", "error", "floor"))
        if value is not None:
            floor_error = _number(entry.get("floor_error"))
            yield ScoreRow(
                metric=text(entry["name"]),
                text=with_error(value, error),
                floor_text="" if floor is None else with_error(floor, floor_error),
                verdict=_verdict(entry, value, floor),
                value=value,
                error=error,
                floor=floor,
                floor_error=floor_error,
                n=f"{entry['n']:,}",
                better=entry["better"],
                unit=text(entry.get("unit")),
            )


def _verdict(entry: Mapping[str, Any], value: float, floor: float | None) -> str:
    """Return how a score stands to its floor, in the words of `difftool evaluate`."""
    if floor is None:
        return ""
    name, n, better = "score", entry["n"], entry["better"]

    def score(value: float, error: str) -> Score:
        return Score(name=name, n=n, better=better, value=value, error=_number(entry.get(error)))

    alike = _number(entry.get("value_at_floor_sizes"))
    return beside_floor(
        Measured(
            metric=name,
            score=score(value, "error"),
            floor=score(floor, "floor_error"),
            alike=None if alike is None else score(alike, "error_at_floor_sizes"),
        )
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _share(copies: Mapping[str, Any]) -> str:
    share, quantile = _number(copies.get("share")), _number(copies.get("quantile"))
    if share is None or quantile is None:
        return ""
    return f"{share:.1%} of samples are nearer to a training item than {quantile:.0%} of held-out items are."


def _nearest(copies: Mapping[str, Any]) -> Table | None:
    pairs = copies.get("nearest")
    rows = [
        [
            text(pair.get("sample")),
            text(pair.get("id")) or text(pair.get("item")),
            text(pair.get("distance")),
            text(pair.get("relative")) or "–",
        ]
        for pair in (pairs if isinstance(pairs, list) else ())[:MOST_PAIRS]
        if isinstance(pair, dict)
    ]
    if not rows:
        return None
    return Table(
        caption="The samples that lie nearest to the training data",
        headings=("sample", "nearest training item", "distance", "relative to items never trained on"),
        rows=rows,
    )
