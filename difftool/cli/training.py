"""A run under the eyes of a user: progress bar, previews, signals, and what remains to say at the end."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from difftool.cli.console import bar, note
from difftool.cli.signals import Signals, signals
from difftool.distributed import naming_lost_peers
from difftool.errors import DifftoolError, Interrupted, PeerDied, one_line, spending

if TYPE_CHECKING:
    from difftool.training.experiment import Experiment

T = TypeVar("T")

WAITING_SHOWN = 0.02
"""The share of time spent waiting for data from which on the bar shows it."""


def fit(experiment: Experiment) -> None:
    """Train to the end under a bar; a signal saves and ends the run."""
    words = _Words(experiment.batch_size)
    with (
        signals.deferred() as stop,
        bar("training", experiment.steps) as shown,
        _knowing_the_last_state(experiment),
    ):
        for update in experiment.run():
            if update.metrics is not None:
                words.see(update.metrics)
            shown.update(update.step, words)
            if update.preview and experiment.group.is_main:
                _preview(experiment)
            _stop_if_asked(experiment, stop)
        experiment.save()
    _stop_if_asked(experiment, signals)
    experiment.group.on_main(lambda: _conclude(experiment, words))


def _stop_if_asked(experiment: Experiment, stop: Signals) -> None:
    """After a signal, to whichever process: save, and end with the line that goes on."""
    number = experiment.group.all_max(stop.number or 0)
    if number:
        experiment.save()
        raise Interrupted(
            f"stopped after step {experiment.state.step} of {experiment.steps}; everything is saved; "
            f"{_how_to_go_on(experiment)}",
            number,
        )


def _how_to_go_on(experiment: Experiment) -> str:
    return f"go on with: difftool train --resume {shlex.quote(str(experiment.folder.path))}"


@contextlib.contextmanager
def _knowing_the_last_state(experiment: Experiment) -> Iterator[None]:
    """What goes wrong on the way is told with the state that the run can go on from."""
    try:
        with spending(experiment.batch_size), naming_lost_peers():
            yield
    except Interrupted:
        raise
    except Exception as error:
        saved = experiment.folder.saved_states()
        state = f"the last state is {saved[0]}" if saved else "no state was saved before"
        if saved and isinstance(error, PeerDied):
            state += f"; {_how_to_go_on(experiment)}"
        if isinstance(error, DifftoolError):
            error.args = (f"{error}; {state}",)
        else:
            note(state)
        raise


def _conclude(experiment: Experiment, words: _Words) -> None:
    """What is left of a run that was trained to its end: the last pictures, and what came of it in words."""
    folder = experiment.folder
    drawn, rows = _preview(experiment), folder.read_metrics()
    if rows:
        _attempt("picture of the loss", lambda: _draw_loss(experiment, rows))
    if words.loss is not None:
        held_out = rows[-1].get("held_out_loss")
        beside = "" if held_out is None else f", {loss_text(held_out)} held out"
        note(f"loss {loss_text(words.loss)}{beside} after {experiment.state.step} steps in {experiment.elapsed:.1f} s")
    if skipped := experiment.state.skipped:
        note(f"{skipped} steps changed nothing, since fp16 overflowed; --precision bf16 does not")
    for path in (*drawn[:1], folder.loss):
        if path.exists():
            note(f"drew {path}")
    note(f"sample it with: difftool sample {shlex.quote(str(folder.path))}")


def _preview(experiment: Experiment) -> list[Path]:
    """Draw a preview, and tell the loggers of it."""
    from difftool.specs import Row
    from difftool.training import previews

    step = experiment.state.step
    drawn = _attempt(f"preview after step {step}", lambda: previews.draw(experiment)) or []
    if drawn:
        experiment.loggers(Row(step=step, metrics={}, pictures=tuple(drawn)))
    return drawn


def _attempt(what: str, draw: Callable[[], T]) -> T | None:
    """Draw. A picture is no reason to lose a run: what goes wrong is noted, and the run goes on."""
    try:
        return draw()
    except Exception as error:
        note(f"no {what}: {one_line(error)}")
        return None


def loss_text(loss: float, digits: int = 4) -> str:
    """A loss in so many decimals, or as many digits where it is tiny: that of the posterior mean is."""
    return f"{loss:.{digits}f}" if loss >= 0.1**digits else f"{loss:.{digits - 2}g}"


class _Words:
    """The words beside the bar: speed, smoothed loss, loss by quartile of t."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.loss: float | None = None
        self.row: Mapping[str, Any] = {}

    def see(self, row: Mapping[str, Any]) -> None:
        self.row = row
        if row["loss"] is not None:
            self.loss = row["loss"] if self.loss is None else 0.9 * self.loss + 0.1 * row["loss"]

    def __call__(self) -> str:
        speed = self.row.get("steps_per_second")
        if speed is None or self.loss is None:
            return ""
        quartiles = " ".join("-" if q is None else loss_text(q, 3) for q in self.row["loss_quartiles"])
        rates = f"{speed:,.1f} steps/s  {speed * self.batch_size:,.0f} samples/s"
        waiting = self.row.get("waiting") or 0.0
        beside = f"  {waiting:.0%} waiting for data" if waiting >= WAITING_SHOWN else ""
        return f"{rates}  loss {loss_text(self.loss)}  by t {quartiles}{beside}"


def _draw_loss(experiment: Experiment, rows: list[dict[str, Any]]) -> None:
    from difftool.figures.loss import loss_figure
    from difftool.figures.style import save
    from difftool.files import atomic

    figure = loss_figure(rows, title=experiment.recipe.name)
    with atomic(experiment.folder.loss) as temporary:
        save(figure, temporary)
