"""The laws of callbacks, checked with a run of a few rows that is killed and then resumed in the middle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from difftool.components import Callback
from difftool.options import plain
from difftool.sampling.model import Model
from difftool.specs import Progress, Row, RunContext, Stop
from difftool.testing.companions import opened
from difftool.testing.laws import Failed, Skipped, require
from difftool.testing.small_model import small_model
from difftool.training.callbacks import checked
from difftool.training.metrics import NAMES

LOSSES = (0.9, 0.7, 0.6, 0.5, 0.45, *[0.44] * 25)
"""The losses of the rows: they fall, and then no more."""
MIDDLE = 20
"""The row after which the run is killed."""
EVERY = 50
"""Steps from one row to the next."""


def watches_a_run(callback: Callback) -> str:
    """It returns numbers under names of their own, a `Stop` or None for each row, and it may sample from the model. The
    model stays bit-equal, and its files lie in `run.logs`."""
    with tempfile.TemporaryDirectory() as name:
        folder, model = _folder(callback, name), small_model()
        before = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
        results = [_result(*pair) for pair in _watch(callback, folder, model, _rows(), [])]
        for key, tensor in model.network.state_dict().items():
            require(torch.equal(tensor, before[key]), f"it changed {key} of the model")
        require(not model.network.training, "it left the model in training mode")
        written = [path for path in folder.rglob("*") if path.is_file()]
        if outside := [path for path in written if folder / "logs" not in path.parents]:
            where = outside[0].relative_to(folder)
            raise Failed(f"it wrote {where} into the run folder; its own files belong in run.logs")
        stops = sum(isinstance(result, str) for result in results)
        numbers = sorted({name for result in results if isinstance(result, dict) for name in result})
        return f"{len(results)} rows, {stops} stops, numbers: {', '.join(numbers) or 'none'}"


def goes_on_by_the_rows(callback: Callback) -> str:
    """A callback that was closed in the middle of a run, and opened again with the rows up to there, returns for the
    other rows what it returns without the break."""
    with tempfile.TemporaryDirectory() as name:
        folder, model, rows = _folder(callback, name), small_model(), _rows()
        pairs = [*_watch(callback, folder, model, rows, [])]
        straight = [_result(*pair) for pair in pairs]
        before = [
            Row(step=row.step, metrics={**row.metrics, **(result if isinstance(result, dict) else {})})
            for row, result in zip(rows, straight, strict=True)
        ]
        again = [_result(*pair) for pair in _watch(callback, folder, model, rows[MIDDLE:], before[:MIDDLE])]
        for row, one, other in zip(rows[MIDDLE:], straight[MIDDLE:], again, strict=True):
            if one != other:
                raise Failed(
                    f"at step {row.step} it returned {_words(one)} without a break, and {_words(other)} after one at "
                    f"step {rows[MIDDLE - 1].step}; what it remembers must follow from run.rows"
                )
        return f"{len(again)} rows after a break"


LAWS = (watches_a_run, goes_on_by_the_rows)


def _folder(callback: Callback, name: str) -> Path:
    """Return an empty run folder. Raises `Skipped` if a library is missing."""
    if missing := [package for module, package in callback.requires.items() if find_spec(module) is None]:
        raise Skipped(f"{missing[0]} is not installed")
    folder = Path(name) / "run"
    folder.mkdir()
    return folder


def _rows() -> list[Row]:
    """Return the rows of a run, of which every second one has a held-out loss."""
    return [
        Row(
            step=EVERY * i,
            metrics={**dict.fromkeys(NAMES, 0.5), "loss": loss, "held_out_loss": None if i % 2 else loss},
        )
        for i, loss in enumerate(LOSSES, start=1)
    ]


def _watch(
    callback: Callback, folder: Path, model: Model, rows: Sequence[Row], before: Sequence[Row]
) -> Iterator[tuple[Any, Row]]:
    """Open the callback after some rows, show it the others, and yield what it returns for each, with the row."""
    run = RunContext(
        folder=folder,
        logs=folder / "logs",
        name="law",
        config={**model.recipe.document(), "callbacks": {callback.name: plain(callback)}},
        started="2026-01-01T00:00:00.000+00:00",
        step=before[-1].step if before else 0,
        steps=EVERY * len(LOSSES),
        metrics=NAMES,
        rows=before,
    )
    with opened(callback, run) as see:
        for row in rows:
            model.step = row.step
            yield see(Progress(step=row.step, steps=run.steps, row=dict(row.metrics), model=model)), row


def _result(result: Any, row: Row) -> dict[str, float | None] | str:
    """Return the numbers of a result, or the reason of a stop. Raises `Failed`."""
    if isinstance(result, Stop):
        require(isinstance(result.reason, str) and result.reason, "it returned a Stop without a reason")
        return result.reason
    try:
        return checked({} if result is None else result, row.metrics)
    except ValueError as error:
        raise Failed(f"at step {row.step} {error}") from None


def _words(result: dict[str, float | None] | str) -> str:
    return f"Stop({result!r})" if isinstance(result, str) else str(result or None)
