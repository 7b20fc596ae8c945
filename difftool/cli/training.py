"""Training as the user sees it: progress bar, previews, signals, and a summary at the end."""

from __future__ import annotations

import atexit
import contextlib
import math
import shlex
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from difftool.cli.console import Bar, note, progress
from difftool.cli.outputs import save_figure
from difftool.cli.signals import Signals, signals
from difftool.cli.step_profile import profiled
from difftool.components import Dataset
from difftool.data.memory import Memory
from difftool.distributed import naming_lost_peers
from difftool.errors import TRY_AGAIN, DifftoolError, Interrupted, PeerDied, Stopped, counted, one_line, spending
from difftool.plugins.registry import registry
from difftool.runs.losses import losses, smoothed
from difftool.runs.recipe import plugins_of
from difftool.runs.verdict import verdict
from difftool.settings import is_never

if TYPE_CHECKING:
    from difftool.cli.time_limit import Deadline
    from difftool.training.experiment import Experiment
    from difftool.training.step import StepResult

T = TypeVar("T")

OUT_OF_TIME = 1000
"""A number greater than that of any signal, by which a process says that the time is over."""

WAITING_SHOWN = 0.02
"""The smallest share of time spent waiting for data that the bar shows."""


def fit(experiment: Experiment, deadline: Deadline | None = None, profile: int = 0) -> None:
    """Train to the end under a progress bar, and profile so many steps. A signal or the deadline saves and ends it."""
    words = BarWords.of(experiment)
    near = deadline is not None and deadline.is_near(experiment)
    if experiment.group.all_max(int(near)):  # whoever runs the command again and again would never end
        raise DifftoolError(deadline.shortness(experiment) if deadline else "there is no time left to train")
    with signals.deferred(), _shown(experiment, words) as show, _naming_last_state(experiment):
        for result in profiled(experiment, profile):
            show(result)
            if result.preview:
                experiment.group.on_main(lambda: _draw_preview(experiment))
            _stop_if_due(experiment, signals, _resume_hint, deadline)
        experiment.save()
    _stop_if_due(experiment, signals, _resume_hint)
    experiment.group.on_main(lambda: _summarize(experiment, words))


def first_note(experiment: Experiment, *, resumed: bool, more: str = "--steps N") -> str:
    """Return a line about the folder of a run that begins or goes on."""
    path, step = experiment.folder.path, experiment.state.step
    if not resumed:
        return f"run folder {path}"
    if step >= experiment.steps:
        return f"{path} is complete ({counted(step, 'step')}); pass {more} to train further"
    return f"resuming {path} after step {step}"


@contextlib.contextmanager
def _shown(experiment: Experiment, words: BarWords) -> Iterator[Callable[[StepResult], None]]:
    """Show a bar for a block, and yield the function that moves it on to a step."""

    def show(result: StepResult) -> None:
        if result.metrics is not None:
            words.add(result.metrics)
        bar.update(result.step, words)

    with progress("training", experiment.steps) as bar:
        yield show


def fit_in_python(experiment: Experiment, *, progress: bool) -> None:
    """Train to the end for a program in Python, without pictures. A signal saves the run and ends it.

    Ctrl-C raises `KeyboardInterrupt`, and other signals raise `SystemExit` with their exit code. Handlers of the
    program stay in place. What they, or other threads, raise here passes, after the run was saved.
    """
    received, silent = Signals(), contextlib.nullcontext(lambda _: None)
    shown = progress and experiment.group.is_main
    try:
        with (
            received.caught(),
            received.deferred(),
            _ended_with_the_program(received),
            spending(experiment.batch_size),
            _shown(experiment, BarWords.of(experiment)) if shown else silent as show,
        ):
            for result in experiment.run():
                show(result)
                _stop_if_due(experiment, received, _resume_hint_in_python)
            experiment.save()
            _stop_if_due(experiment, received, _resume_hint_in_python)
        if shown and experiment.stopped:
            note(_stop_line(experiment))
    except Interrupted as end:
        if end.exit_code == Stopped(signal.SIGINT).exit_code:
            raise KeyboardInterrupt(str(end)) from None
        note(str(end))
        raise SystemExit(end.exit_code) from None
    except BaseException as error:
        if isinstance(error, Stopped) and received.number is not None:  # the second signal
            raise (KeyboardInterrupt if received.number == signal.SIGINT else SystemExit(error.exit_code)) from None
        if not isinstance(error, Exception) and experiment.group.size == 1:
            experiment.save_if_whole()
        raise


def _stop_if_due(
    experiment: Experiment,
    received: Signals,
    hint: Callable[[Experiment], str],
    deadline: Deadline | None = None,
) -> None:
    """Save the run and raise `Interrupted` if any of its processes has received a signal, or its time is over."""
    over = deadline is not None and deadline.is_near_after_step(experiment)
    number = experiment.group.all_max(OUT_OF_TIME if over else received.number or 0)
    if not number:
        return
    experiment.save()
    by_time = number == OUT_OF_TIME and deadline is not None
    what = f"before {deadline.name}" if deadline and by_time else f"by {signal.Signals(number).name}"
    raise Interrupted(
        f"stopped {what} after step {experiment.state.step} of {experiment.steps}; everything is saved; "
        f"{hint(experiment)}{deadline.flags if deadline else ''}",
        TRY_AGAIN if by_time else received.exit_code(number),
    )


@contextlib.contextmanager
def _ended_with_the_program(received: Signals) -> Iterator[None]:
    """Save as at Ctrl-C when the program ends during a block in another thread than the main one.

    No signal arrives in such a thread, and the program would not wait for it after Ctrl-C.
    """
    if threading.current_thread() is threading.main_thread():
        yield
        return
    saved = threading.Event()

    def end() -> None:
        received.number = received.number or signal.SIGINT
        saved.wait()

    atexit.register(end)
    try:
        yield
    except Interrupted as interrupted:
        note(str(interrupted))  # the program may end before the thread could report its exception
        raise
    finally:
        saved.set()
        atexit.unregister(end)


def _stop_line(experiment: Experiment) -> str:
    return f"{experiment.stopped} (after step {experiment.state.step} of {experiment.steps})"


def _resume_hint(experiment: Experiment) -> str:
    return f"go on with: difftool train --resume {shlex.quote(str(experiment.folder.path))}{_script_flags(None)}"


def _resume_hint_in_python(experiment: Experiment) -> str:
    data = ", dataset=DATA" if isinstance(experiment.recipe[Dataset], Memory) else ""
    return f"go on with: difftool.train(resume={str(experiment.folder.path)!r}{data})"


def _script_flags(needed: Collection[str] | None) -> str:
    """Return the flags that name the scripts of this command, or those whose names are needed."""
    return "".join(f" {shlex.quote(word)}" for word in script_words(needed))


def script_words(needed: Collection[str] | None = None) -> list[str]:
    """Return the words that name the scripts of this command, or those whose names are needed."""
    scripts = [p.script for p in registry().plugins if p.script and (needed is None or p.distribution in needed)]
    return [word for script in scripts for word in ("--plugin", str(script.path))]


@contextlib.contextmanager
def _naming_last_state(experiment: Experiment) -> Iterator[None]:
    """Add the state that the run can be resumed from to any error in this block."""
    try:
        with spending(experiment.batch_size), naming_lost_peers():
            yield
    except Interrupted:
        raise
    except Exception as error:
        if not experiment.folder.path.is_dir():  # the error says so
            raise
        with contextlib.suppress(DifftoolError):  # of a save that failed, of which the run ends anyway
            experiment.saver.wait()
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
    folder = experiment.watched.find()
    if experiment.stopped:
        note(_stop_line(experiment))
    every, rows = experiment.recipe.training.preview_every, folder.read_metrics()
    drawn = [] if every is not None and is_never(every) else _draw_preview(experiment)
    if rows:
        _attempt("picture of the loss", lambda: _draw_loss(experiment, rows))
    if words.loss is not None:
        beside = _beside(losses(rows))
        after = f"after {counted(experiment.state.step, 'step')} in {experiment.clock.total:.1f} s"
        note(f"loss {loss_text(words.loss)}{beside} {after}")
        note(str(verdict(rows)))
    for line in _measured(experiment, rows):
        note(line)
    if skipped := experiment.state.skipped:
        note(f"{counted(skipped, 'step')} changed nothing, since fp16 overflowed; --precision bf16 does not")
    for path in (*drawn[:1], folder.loss):
        if path.exists():
            note(f"drew {path}")
    needed = plugins_of(part for part in experiment.recipe.parts.values() if part.needed_to_sample)
    note(f"sample it with: difftool sample {shlex.quote(str(folder.path))}{_script_flags(needed)}")
    note(f"make a page of it with: difftool report {shlex.quote(str(folder.path))}{_script_flags(needed)}")


def _measured(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the last numbers of the metrics, and the best model where that is an earlier one."""
    from difftool.evaluation.words import with_error
    from difftool.training.evaluation import ERROR

    names = [] if experiment.evaluation is None else [*experiment.evaluation.better]
    last = {name: row for row in rows for name in names if row.get(name) is not None}
    if last:
        texts = (f"{name} {with_error(row[name], row.get(name + ERROR))}" for name, row in last.items())
        yield ", ".join(texts)
    best = experiment.best
    if best is not None and best.row is not None and best.row["step"] != experiment.state.step:
        value = with_error(best.row[best.name], best.row.get(best.name + ERROR))
        run = shlex.quote(str(experiment.folder.path))
        yield f"best {best.name} {value} after step {best.row['step']:,}: difftool sample {run} --weights best"


def _beside(values: Mapping[str, float | None]) -> str:
    """Return the loss of eps, if it is not the loss itself, and the held-out loss in words."""
    loss, eps, held_out = values["loss"], values["eps_loss"], values["held_out_loss"]
    other = eps is not None and (loss is None or loss_text(eps) != loss_text(loss))
    words = f" ({loss_text(eps)} in eps)" if other and eps is not None else ""
    return words if held_out is None else f"{words}, {loss_text(held_out)} held out"


def _draw_preview(experiment: Experiment) -> list[Path]:
    """Draw a preview, pass it to the loggers, and return its files."""
    from difftool.specs import Row
    from difftool.training import previews

    step = experiment.state.step
    experiment.watched.find()
    drawn = _attempt(f"preview after step {step}", lambda: previews.draw(experiment)) or []
    if drawn:
        experiment.loggers(Row(step=step, metrics={}, pictures=tuple(drawn)))
    return drawn


@contextlib.contextmanager
def encoding_bar() -> Iterator[Callable[[int, int], None]]:
    """Give a function of the items that a codec has encoded and of all items, which shows a bar from its first call."""
    with contextlib.ExitStack() as stack:
        bar: Bar | None = None

        def watch(done: int, total: int) -> None:
            nonlocal bar
            bar = bar or stack.enter_context(progress("encoding", total))
            bar.update(done, f"{done:,}/{total:,} items")

        yield watch


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

    def __init__(self, batch_size: int, items: int, steps: int, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self.batch_size, self.items = batch_size, items
        self.epochs = math.ceil(steps * batch_size / items)
        self.loss = smoothed(row["loss"] for row in rows)
        self.held_out: float | None = None
        self.row: Mapping[str, Any] = {}

    @classmethod
    def of(cls, experiment: Experiment) -> BarWords:
        """Return the words for a run, which go on from its last rows if it was resumed."""
        rows = experiment.folder.read_metrics() if experiment.state.step else ()
        return cls(experiment.batch_size, len(experiment.train), experiment.steps, rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row of metrics."""
        self.row = row
        self.loss = smoothed([self.loss, row["loss"]])
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
