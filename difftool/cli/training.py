"""Training as the user sees it: progress bar, previews, signals, and a summary at the end."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from difftool.cli.console import bar, note
from difftool.cli.outputs import save_figure
from difftool.cli.signals import signals
from difftool.distributed import naming_lost_peers
from difftool.errors import DifftoolError, Interrupted, PeerDied, counted, one_line, spending
from difftool.settings import is_never

if TYPE_CHECKING:
    from difftool.training.experiment import Experiment

T = TypeVar("T")

WAITING_SHOWN = 0.02
"""The smallest share of time spent waiting for data that the bar shows."""


def fit(experiment: Experiment) -> None:
    """Train to the end under a progress bar. A signal saves the run and ends it."""
    words = BarWords(experiment.batch_size, len(experiment.train), experiment.steps)
    with signals.deferred(), bar("training", experiment.steps) as progress, _naming_last_state(experiment):
        for result in experiment.run():
            if result.metrics is not None:
                words.add(result.metrics)
            progress.update(result.step, words)
            if result.preview and experiment.group.is_main:
                _draw_preview(experiment)
            _stop_at_signal(experiment)
        experiment.save()
    _stop_at_signal(experiment)
    experiment.group.on_main(lambda: _summarize(experiment, words))


def _stop_at_signal(experiment: Experiment) -> None:
    """Save the run and raise `Interrupted` if any of its processes has received a signal."""
    number = experiment.group.all_max(signals.number or 0)
    if number:
        experiment.save()
        raise Interrupted(
            f"stopped after step {experiment.state.step} of {experiment.steps}; everything is saved; "
            f"{_resume_hint(experiment)}",
            number,
        )


def _resume_hint(experiment: Experiment) -> str:
    return f"go on with: difftool train --resume {shlex.quote(str(experiment.folder.path))}"


@contextlib.contextmanager
def _naming_last_state(experiment: Experiment) -> Iterator[None]:
    """Add the state that the run can be resumed from to any error in this block."""
    try:
        with spending(experiment.batch_size), naming_lost_peers():
            yield
    except Interrupted:
        raise
    except Exception as error:
        saved = experiment.folder.saved_states()
        state = f"the last state is {saved[0]}" if saved else "no state was saved before"
        if saved and isinstance(error, PeerDied):
            state += f"; {_resume_hint(experiment)}"
        if isinstance(error, DifftoolError):
            error.args = (f"{error}; {state}",)
        else:
            note(state)
        raise


def _summarize(experiment: Experiment, words: BarWords) -> None:
    """Draw the last pictures of a complete run, and print its loss and files."""
    folder = experiment.folder
    every, rows = experiment.recipe.training.preview_every, folder.read_metrics()
    drawn = [] if every is not None and is_never(every) else _draw_preview(experiment)
    if rows:
        _attempt("picture of the loss", lambda: _draw_loss(experiment, rows))
    if words.loss is not None:
        held_out = rows[-1].get("held_out_loss")
        beside = "" if held_out is None else f", {loss_text(held_out)} held out"
        after = f"after {counted(experiment.state.step, 'step')} in {experiment.clock.total:.1f} s"
        note(f"loss {loss_text(words.loss)}{beside} {after}")
    if skipped := experiment.state.skipped:
        note(f"{counted(skipped, 'step')} changed nothing, since fp16 overflowed; --precision bf16 does not")
    for path in (*drawn[:1], folder.loss):
        if path.exists():
            note(f"drew {path}")
    note(f"sample it with: difftool sample {shlex.quote(str(folder.path))}")


def _draw_preview(experiment: Experiment) -> list[Path]:
    """Draw a preview, pass it to the loggers, and return its files."""
    from difftool.specs import Row
    from difftool.training import previews

    step = experiment.state.step
    drawn = _attempt(f"preview after step {step}", lambda: previews.draw(experiment)) or []
    if drawn:
        experiment.loggers(Row(step=step, metrics={}, pictures=tuple(drawn)))
    return drawn


def _attempt(what: str, draw: Callable[[], T]) -> T | None:
    """Return what `draw` returns, or print a note if it fails: a failed picture must not end a run."""
    try:
        return draw()
    except Exception as error:
        note(f"no {what}: {one_line(error)}")
        return None


def loss_text(loss: float, digits: int = 4) -> str:
    """Return a loss with this many decimals, or with significant digits where it is tiny, as that of an oracle is."""
    return f"{loss:.{digits}f}" if loss >= 0.1**digits else f"{loss:.{digits - 2}g}"


class BarWords:
    """The words below the progress bar: epoch and speed; smoothed loss, held-out loss, and loss by quartile of t."""

    def __init__(self, batch_size: int, items: int, steps: int) -> None:
        self.batch_size, self.items = batch_size, items
        self.epochs = math.ceil(steps * batch_size / items)
        self.loss: float | None = None
        self.held_out: float | None = None
        self.row: Mapping[str, Any] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row of metrics."""
        self.row = row
        if row["loss"] is not None:
            self.loss = row["loss"] if self.loss is None else 0.9 * self.loss + 0.1 * row["loss"]
        self.held_out = row.get("held_out_loss", self.held_out)

    def __str__(self) -> str:
        speed = self.row.get("steps_per_second")
        if speed is None or self.loss is None:
            return ""
        quartiles = " ".join("-" if q is None else loss_text(q, 3) for q in self.row["loss_quartiles"])
        epoch = math.ceil(self.row["step"] * self.batch_size / self.items)
        rates = f"epoch {epoch}/{self.epochs}  {speed:,.1f} steps/s  {speed * self.batch_size:,.0f} samples/s"
        waiting = self.row.get("waiting") or 0.0
        beside = f"  {waiting:.0%} waiting for data" if waiting >= WAITING_SHOWN else ""
        held_out = "" if self.held_out is None else f"  held out {loss_text(self.held_out)}"
        losses = f"loss {loss_text(self.loss)}{held_out}  by t, clean to noisy: {quartiles}"
        return f"{rates}{beside}\n{losses}"


def _draw_loss(experiment: Experiment, rows: list[dict[str, Any]]) -> None:
    from difftool.figures.loss import loss_figure

    figure = loss_figure(rows, title=experiment.recipe.name)
    save_figure(figure, experiment.folder.loss, overwrite=True)
