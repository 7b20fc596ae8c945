"""Output: results on stdout; notes, tables and progress on stderr.

Progress is a live bar on a terminal and in a notebook, and elsewhere a plain line now and then.
"""

from __future__ import annotations

import contextlib
import html
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from difftool.errors import LONGEST_LINE, printable, shortened

WIDEST = 300
"""Columns of a table in a file or a pipe."""
FIRST_SECONDS, PLAIN_SECONDS, SHORTEST_SECONDS = 3.0, 30.0, 1.0
"""Without a terminal, a line is printed at each tenth, first after a few seconds, then after this long, but never two
within a second."""
TAKEN_SECONDS, DRAWINGS = 0.1, 4
"""The shortest time between two steps that a bar takes up, and how many times a second a terminal draws it. Both cost
time of the work."""
NOTEBOOK_SECONDS = 0.2
"""The shortest time between two updates of the bar in a notebook."""


class _Console(Console):
    """A console that raises `BrokenPipeError` for a closed pipe, for which rich would end the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def stdout() -> Console:
    """Return the console for tables that are results. They take the width they need if no terminal sets one."""
    stream = _results[-1] if _results else sys.stdout
    free = not stream.isatty() and "COLUMNS" not in os.environ
    return _Console(highlight=False, emoji=False, file=stream, width=WIDEST if free else None)


def stderr(*, soft_wrap: bool = True) -> Console:
    return _Console(stderr=True, highlight=False, emoji=False, soft_wrap=soft_wrap)


def note(text: str) -> None:
    """Print a plain line on stderr, without the control characters that foreign text may hold.

    A log that cannot take it (a full disk, a closed pipe) does not end a run.
    """
    with contextlib.suppress(OSError):
        stderr().print(Text(shortened(printable(text), LONGEST_LINE)))


def show(*blocks: RenderableType) -> None:
    """Print tables or plots on stderr, under the rules of `note`."""
    with contextlib.suppress(OSError):
        stderr(soft_wrap=False).print(*blocks)


def new_table(*columns: Column | str, title: str = "", header: bool = True) -> Table:
    """Return a table without lines, under a bold title."""
    return Table(
        *columns,
        title=plain(title) or None,
        box=None,
        pad_edge=False,
        show_header=header,
        title_justify="left",
        title_style="bold",
    )


def add_row(table: Table, *cells: str) -> None:
    """Add a row of texts, which are shown as they stand."""
    table.add_row(*map(plain, cells))


def plain(text: str) -> str:
    """Return markup that shows a line of text as it stands, without control characters and tags."""
    return escape(shortened(printable(text), LONGEST_LINE))


_results: list[TextIO] = []
"""The streams for results instead of `sys.stdout`, the innermost last."""


@contextlib.contextmanager
def results_alone() -> Iterator[None]:
    """Keep stdout for results: anything that plugins print in this block goes to stderr."""
    _results.append(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _results.pop()


def result(text: str) -> None:
    """Print a result, such as a path, as a line on stdout."""
    stream = _results[-1] if _results else sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


def result_json(document: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    result(json.dumps(document, indent=2, allow_nan=False, default=str))


class _TwoLines(Progress):
    """A progress bar with lines of words below it."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            for line in str(task.fields["words"]).splitlines():
                yield Text(line, overflow="ellipsis", no_wrap=True)


class _TimeLeft(ProgressColumn):
    """The time that is left, and at the end the time that it took."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(duration(task.finished_time or 0.0))
        return Text(f"{duration(task.time_remaining)} left" if task.time_remaining is not None else "")


def duration(seconds: float) -> str:
    """Return a time as text: `8 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if not minutes:
        return f"{second} s"
    if not hours:
        return f"{minute} min {second:02d} s"
    return f"{hours} h {minute:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


class NotebookBar:
    """A bar below the cell of a notebook, which needs IPython alone."""

    def __init__(self) -> None:
        from IPython.display import DisplayHandle

        self._handle, self._shown = DisplayHandle(), -math.inf
        self._handle.display({"text/plain": ""}, raw=True)

    def update(self, task: Task, *, last: bool = False) -> None:
        """Show a task, unless one was shown a moment ago and this is not the last time."""
        now = time.perf_counter()
        if last or task.finished or now - self._shown >= NOTEBOOK_SECONDS:
            self._shown = now
            left, words = _TimeLeft().render(task).plain, str(task.fields["words"])
            line = f"{task.description} {task.completed}/{task.total}  {left}"
            bar = f'<progress value="{task.completed}" max="{task.total}"></progress>'
            markup = f"<pre>{bar} {html.escape(line)}\n{html.escape(words)}</pre>"
            self._handle.update({"text/plain": f"{line}\n{words}", "text/html": markup}, raw=True)


class Bar:
    """Progress of a known amount of work, with lines of words below the bar."""

    def __init__(self, title: str, total: int, console: Console) -> None:
        self.live = console.is_terminal and not console.is_dumb_terminal
        self._notebook = NotebookBar() if console.is_jupyter else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _TimeLeft(),
        )
        self._progress = _TwoLines(*columns, console=console, disable=not self.live, refresh_per_second=DRAWINGS)
        self._progress.add_task(title, total=total, words="")
        self._task = self._progress.tasks[0]
        self._printed, self._tenth, self._printed_any = time.perf_counter(), 0, False
        self._total, self._taken = total, -math.inf
        self._untaken: tuple[int, object] | None = None
        """The last step that came too soon after another."""
        self._progress.start()

    def update(self, step: int, words: object = "") -> None:
        """Show the completed steps and words, which become text when they are drawn.

        A closed terminal, or a full disk under a log, does not end the work.
        """
        now = time.perf_counter()
        if step < self._total and now - self._taken < TAKEN_SECONDS:
            self._untaken = (step, words)
        else:
            self._untaken, self._taken = None, now
            self._take(step, words)

    def _take(self, step: int, words: object) -> None:
        with contextlib.suppress(OSError):
            self._progress.update(self._task.id, completed=step, words=words)
            if self._notebook is not None:
                self._notebook.update(self._task)
            elif not self.live:
                self._print_now_and_then()

    def _print_now_and_then(self) -> None:
        """Print a line at each tenth, after a while, and at the end."""
        task, now = self._task, time.perf_counter()
        tenth, seconds = int(task.percentage / 10), now - self._printed
        longest = PLAIN_SECONDS if self._printed_any else FIRST_SECONDS
        if task.finished or seconds >= longest or (tenth > self._tenth and seconds >= SHORTEST_SECONDS):
            self._printed, self._tenth, self._printed_any = now, tenth, True
            words = "  ".join(str(task.fields["words"]).splitlines())
            left = f"  {duration(task.time_remaining)} left" if task.time_remaining else ""
            line = f"{task.description} {task.completed}/{task.total}  {words}{left}"
            self._progress.console.print(Text(line))

    def close(self) -> None:
        if self._untaken is not None:
            self._take(*self._untaken)
        with contextlib.suppress(OSError):
            self._progress.stop()
            if self._notebook is not None:
                self._notebook.update(self._task, last=True)


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Bar]:
    """Show a bar on stderr until the end of the block: `with progress("measuring", 10) as bar: bar.update(1)`."""
    bar = Bar(title, total, stderr())
    try:
        yield bar
    finally:
        bar.close()


def help_text(text: str, note: str = "") -> str:
    """Return help that is shown as it stands, followed by a dim note such as `[default: 3]`."""
    return _literal(text) + (f" [dim]{_literal(f'[{note}]')}[/dim]" if note else "")


def _literal(text: str) -> str:
    """Return markup that shows a text as it stands: no control characters, tags, or rich's pictures (`:fire:`)."""
    lines = "\n".join(printable(line) for line in text.splitlines())
    return re.sub(r":(?=\S+:)", ":[none][/none]", escape(lines))
