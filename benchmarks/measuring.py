"""Contenders run in turn, round by round, so that whatever slows the machine slows all of them.

A contender is a generator that yields after each step. A ratio is taken within a round, and then the median over the
rounds: a machine that is twice as slow in the second half changes the times, but not the ratios.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

Steps = Iterator[object]
"""Yields after each step."""


@dataclass
class Contest:
    """Who takes part. A contender that needs what is not installed is left out, and a line says so."""

    entries: dict[str, Callable[[], Steps]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(
        self, name: str, start: Callable[[], Steps], *, needs: Sequence[str] = (), programs: Sequence[str] = ()
    ) -> None:
        """`start` builds the contender, once the contest is run. It needs these modules, and these programs."""
        missing = [module for module in needs if find_spec(module) is None]
        missing += [program for program in programs if shutil.which(program) is None]
        if missing:
            self.notes.append(f"Left out: {name}; {', '.join(missing)} not installed.")
        else:
            self.entries[name] = start

    @contextlib.contextmanager
    def started(self) -> Iterator[dict[str, Steps]]:
        """All contenders, built; closed afterwards, so that what they hold is given back."""
        with contextlib.ExitStack() as stack:
            running: dict[str, Steps] = {}
            for name, start in self.entries.items():
                running[name] = start()
                stack.callback(getattr(running[name], "close", lambda: None))
            yield running

    def run(
        self, *, warmup: int, steps: int, rounds: int, ahead: int = 0, wait: Callable[[], object] = lambda: None
    ) -> Measured:
        """Build everybody, let them warm up, and measure. See `interleaved`."""
        with self.started() as running:
            first = {name: seconds_of(steps_of, warmup) for name, steps_of in running.items()}
            return Measured(interleaved(running, steps=steps, rounds=rounds, ahead=ahead, wait=wait), first)


@dataclass(frozen=True)
class Measured:
    """Of each contender by name."""

    times: dict[str, list[float]]
    """Seconds a step, round by round."""
    first: dict[str, float]
    """Seconds of the very first step, in which a network is compiled and memory found."""


def seconds_of(contender: Steps, warmup: int) -> float:
    """Seconds of the first step; it and the others of the warm-up are not measured otherwise."""
    if warmup == 0:
        return 0.0
    start = time.perf_counter()
    next(contender)
    first = time.perf_counter() - start
    for _ in range(warmup - 1):
        next(contender)
    return first


def interleaved(
    contenders: Mapping[str, Steps],
    *,
    steps: int,
    rounds: int,
    ahead: int = 0,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds a step of each contender in each round.

    `wait` is called where a turn begins and ends: a GPU may still be at work when a step returns.

    `ahead` steps at the start of a contender's turn are not timed: there it prepares what does not belong to a step.
    Every other round goes backwards, so that nobody always runs after the same neighbour.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            contender = contenders[name]
            for _ in range(ahead):
                next(contender)
            wait()
            start = time.perf_counter()
            for _ in range(steps):
                next(contender)
            wait()
            times[name].append((time.perf_counter() - start) / steps)
        order.reverse()
    return times


def repeated(job: Callable[[], object]) -> Iterator[None]:
    """A whole job as a contender: once a step."""
    while True:
        job()
        yield
