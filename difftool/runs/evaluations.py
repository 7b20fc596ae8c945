"""Evaluations of a run: one JSON object a line in evaluations.jsonl, as untrusted as every file of a run folder."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftool.errors import DifftoolError
from difftool.files import open_regular, parse_json, write_text
from difftool.paths import check_inside
from difftool.runs.folder import RunFolder
from difftool.runs.rows import LARGEST
from difftool.settings import LARGEST_STEP

LONGEST_LINE = 2**18
"""The limit for the bytes of an evaluation."""
MOST_SCORES, LONGEST_TEXT = 1_000, 1_000
TEXTS, COUNTS, TABLES = ("weights", "model", "against"), ("n", "reference"), ("features", "sampling", "copies")
"""The keys of an evaluation beside `step`, `scores` and `pictures`, any of which may be absent."""
NUMBERS = ("value", "error", "floor", "floor_error")
"""The numbers of a score, any of which may be None or absent."""


def append_evaluation(run: RunFolder, evaluation: Mapping[str, Any]) -> None:
    """Add an evaluation to a run. Half a line, which a killed process may have left, stays a line of its own.

    Raises `DifftoolError`.
    """
    assert is_evaluation(evaluation)
    check_inside(run.evaluations, run.path)
    if run.evaluations.exists() and not run.evaluations.is_file():
        raise DifftoolError(f"{run.evaluations} is not a regular file; a run needs one there")
    try:
        with open(run.evaluations, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
            line = json.dumps(evaluation, allow_nan=False) + "\n"
            file.write(("" if file.read(1) in (b"\n", b"") else "\n").encode() + line.encode())
    except OSError as error:
        raise DifftoolError(f"{run.evaluations} could not be written: {error.strerror}") from None


def read_evaluations(run: RunFolder) -> list[dict[str, Any]]:
    """Return the evaluations of a run, the oldest first. A line that holds none is skipped."""
    found = []
    with contextlib.suppress(OSError), open_regular(run.evaluations) as file:
        while line := file.readline(LONGEST_LINE):
            with contextlib.suppress(ValueError):
                value = parse_json(line)
                if is_evaluation(value):
                    found.append(value)
    return found


def remove_later_evaluations(run: RunFolder, step: int) -> None:
    """Remove the evaluations of later steps, which a run that goes on from this one makes anew."""
    evaluations = read_evaluations(run)
    kept = [one for one in evaluations if one["step"] <= step]
    if len(kept) < len(evaluations):
        write_text(run.evaluations, "".join(json.dumps(one, allow_nan=False) + "\n" for one in kept))


def is_evaluation(value: Any) -> bool:
    """Return whether a value is an evaluation: a step, scores, and texts, counts and tables of the right types."""
    if not isinstance(value, Mapping) or not _is_count(value.get("step"), LARGEST_STEP):
        return False
    scores, pictures = value.get("scores"), value.get("pictures", [])
    return (
        all(_is_text(value[key]) for key in TEXTS if key in value)
        and all(_is_count(value[key]) for key in COUNTS if key in value)
        and all(isinstance(value[key], Mapping) for key in TABLES if key in value)
        and isinstance(scores, list)
        and len(scores) <= MOST_SCORES
        and all(map(_is_score, scores))
        and isinstance(pictures, list)
        and all(_is_text(name) and _stays_inside(name) for name in pictures)
    )


def _is_score(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(_is_text(value.get(key)) for key in ("metric", "name"))
        and _is_text(value.get("unit", ""))
        and value.get("better") in ("lower", "higher")
        and _is_count(value.get("n"))
        and all(_is_number(value.get(key)) for key in NUMBERS)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def _is_count(value: Any, most: int = 2**63 - 1) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < LARGEST)


def _stays_inside(name: str) -> bool:
    """Return whether a path leads from a run folder to a place within it, as far as its words tell."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts
