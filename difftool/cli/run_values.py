"""The values of a run by name, and how a list of runs is sorted and filtered by them.

Names are those of columns (`loss`, `held-out`), of scores of evaluations (`kid`), and of options as flags spell them
(`lr`, `backbone.width`, or `width` where no other option ends so).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from difftool.errors import UsageError, printable, shortened
from difftool.options import dashed, number_in, suggestion
from difftool.runs.summary import Summary, Value, short_names

COLUMNS: Mapping[str, Callable[[Summary], Value | None]] = {
    "run": lambda run: str(run.run.path),
    "started": lambda run: run.started or None,
    "status": lambda run: run.status.status,
    "step": lambda run: run.status.step,
    "steps": lambda run: run.status.steps,
    "loss": lambda run: run.tail.losses["loss"],
    "eps-loss": lambda run: run.tail.losses["eps_loss"],
    "held-out": lambda run: run.tail.losses["held_out_loss"],
    "time": lambda run: run.seconds,
    "size": lambda run: run.bytes,
}
"""The values that every run has, or may have. Times are seconds, sizes bytes."""
OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
LONGEST_NAMED = 20
"""The number of names that a refusal lists."""


def value_of(run: Summary, name: str) -> Value | None:
    """Return the value of a column, an option or a score, None where the run has none."""
    return COLUMNS[name](run) if name in COLUMNS else run.options.get(name, run.scores.get(name))


def find_name(given: str, runs: Sequence[Summary], flag: str) -> str:
    """Return the column or option that the user means. Raises `UsageError`."""
    wanted = dashed(given.strip().removeprefix("--"))
    if wanted in COLUMNS:
        return wanted
    options = dict.fromkeys(name for run in runs for name in run.options)
    scores = dict.fromkeys(name for run in runs for name in run.scores)
    if wanted in options or wanted in scores:
        return wanted
    meant = [name for name, short in short_names([*options], [*COLUMNS]).items() if short == wanted]
    if meant:
        return meant[0]
    several = [name for name in options if name.rpartition(".")[2] == wanted]
    if several:
        raise UsageError(f"{flag}: {wanted} may be {' or '.join(several[:LONGEST_NAMED])}; name one of them")
    similar = suggestion(wanted, [*COLUMNS, *options, *scores])
    similar = similar or f"; there are {', '.join(COLUMNS)}, and the options and scores of the runs"
    raise UsageError(f"{flag}: no run has a value called {shortened(printable(wanted), 60)!r}{similar}")


@dataclass(frozen=True)
class Filter:
    """A condition such as `lr<1e-3`, that some runs meet."""

    name: str
    operator: str
    value: str

    @classmethod
    def read(cls, text: str) -> Filter:
        """Return the condition in a text. Raises `UsageError`."""
        found = re.fullmatch(r"\s*([\w.-]+)\s*(!=|<=|>=|<|>|==?)\s*(\S.*?)\s*", text)
        if found is None:
            raise UsageError(
                f"--filter: must be NAME=VALUE, or with !=, <, <=, > or >=, such as 'lr<1e-3', not {text!r}"
            )
        one = cls(found[1], "=" if found[2] == "==" else found[2], found[3])
        if one.operator in ("<", "<=", ">", ">=") and one.number is None and one.name != "started":
            raise UsageError(f"--filter: {one.operator} needs a number, not {one.value!r}")
        return one

    @property
    def number(self) -> float | None:
        return number_in(self.value)

    def admits(self, value: Value | None) -> bool:
        """Return whether a value meets the condition. One that is missing only differs from all others."""
        if value is None:
            return self.operator == "!="
        number = value if isinstance(value, (int, float)) else number_in(value)
        compare = OPERATORS[self.operator]
        if self.number is not None and number is not None:
            return compare(number, self.number)
        return compare(str(value), self.value) if self.operator in ("=", "!=") or self.name == "started" else False


def filtered(runs: Sequence[Summary], filters: Sequence[Filter]) -> list[Summary]:
    """Return the runs that meet all conditions. Raises `UsageError` for a name that no run knows."""
    left = [*runs]
    for one in filters:
        name = find_name(one.name, runs, "--filter")
        left = [run for run in left if one.admits(value_of(run, name))]
    return left


def ordered(runs: Sequence[Summary], key: str, *, reverse: bool = False) -> list[Summary]:
    """Return the runs by a value, from the least, or with `-` before the name from the greatest.

    Runs without the value come last. Raises `UsageError` for a name that no run knows.
    """
    falling = key.startswith("-") and not key.startswith("--")
    name = find_name(key.removeprefix("-") if falling else key, runs, "--sort")
    values = [(run, value_of(run, name)) for run in runs]
    known = [(run, value) for run, value in values if value is not None]
    known.sort(key=lambda pair: _rank(pair[1]), reverse=falling != reverse)
    return [run for run, _ in known] + [run for run, value in values if value is None]


def _rank(value: Value) -> tuple[bool, float, str]:
    """Return the place of a value in an order: numbers first, as numbers."""
    return (True, 0.0, value) if isinstance(value, str) else (False, float(value), "")
