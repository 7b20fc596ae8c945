"""The lines of `evaluations.jsonl` as the page shows them. They are as untrusted as every file of a run folder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from difftool.errors import printable, shortened
from difftool.files import open_regular, parse_json
from difftool.report.content import Evaluation, ScoreRow, Table, number
from difftool.runs.folder import RunFolder

FILE = "evaluations.jsonl"
LONGEST_LINE = 2**20
"""The limit for the bytes of a line."""
MOST = 20
"""The largest number of evaluations that a page shows, the newest ones."""
MOST_SCORES, MOST_PAIRS, MOST_PICTURES = 40, 12, 4
LONGEST = 300
"""Characters of a text of an evaluation."""


@dataclass(frozen=True)
class Recorded:
    """An evaluation, and the names of its pictures, which are still to be read."""

    evaluation: Evaluation
    pictures: Sequence[str]


def read_evaluations(run: RunFolder) -> list[Recorded]:
    """Return the newest evaluations of a run, the newest first. Lines that are none are skipped."""
    documents: list[Mapping[str, Any]] = []
    with contextlib.suppress(OSError), open_regular(run.path / FILE) as file:
        while line := file.readline(LONGEST_LINE):
            with contextlib.suppress(ValueError):
                document = parse_json(line)
                if isinstance(document, dict) and isinstance(document.get("scores"), list):
                    documents = [*documents[1 - MOST :], document]
    return [_recorded(document) for document in reversed(documents)]


def _recorded(document: Mapping[str, Any]) -> Recorded:
    features, copies = _table(document, "features"), _table(document, "copies")
    step, weights = document.get("step"), text(document.get("weights"))
    title = ", ".join(filter(None, [f"step {number(step)}" if type(step) is int else "", weights]))
    pictures = document.get("pictures")
    return Recorded(
        Evaluation(
            title=title or "an evaluation",
            settings=_settings(document, features),
            scores=list(_scores(document["scores"])),
            copies=text(copies.get("verdict")) or _share(copies),
            nearest=_nearest(copies),
        ),
        [name for name in pictures if isinstance(name, str)][:MOST_PICTURES] if isinstance(pictures, list) else (),
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


def _scores(entries: Sequence[Any]) -> Iterator[ScoreRow]:
    for entry in entries[:MOST_SCORES]:
        if isinstance(entry, dict) and (value := _number(entry.get("value"))) is not None:
            yield ScoreRow(
                metric=text(entry.get("name")) or "unnamed",
                value=value,
                error=_number(entry.get("error")),
                floor=_number(entry.get("floor")),
                n=text(entry.get("n")),
                better="higher" if entry.get("better") == "higher" else "lower",
                unit=text(entry.get("unit")),
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
        [text(pair.get("sample")), text(pair.get("id")) or text(pair.get("item")), text(pair.get("distance"))]
        for pair in (pairs if isinstance(pairs, list) else ())[:MOST_PAIRS]
        if isinstance(pair, dict)
    ]
    if not rows:
        return None
    return Table(
        caption="The samples that lie nearest to the training data",
        headings=("sample", "nearest training item", "distance"),
        rows=rows,
    )
