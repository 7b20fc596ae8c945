"""Values that vary: `lr=1e-4,3e-4`, `seed=0..2`; the commands of all their combinations, and names for them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from difftool.errors import UsageError, shortened
from difftool.files import LONGEST_NAME
from difftool.options import dashed
from difftool.runs.summary import short_names

MOST = 1_000
"""The largest number of values of a range, and of combinations."""
DECIDED = ("out", "resume", "overwrite", "new-data", "config", "dry-run", "json", "help", "plugin", "debug")
"""The options of `train` that a sweep gives itself, or that make no sense in one."""
SWITCHES = {"on": "", "true": "", "off": "no-", "false": "no-"}
"""The values of switches, and what they put before the name."""


@dataclass(frozen=True)
class Variation:
    """An option of `train` with its values as texts."""

    option: str
    """Its flag without dashes: `lr`, `backbone.width`, or `backbone` for a component itself."""
    values: tuple[str, ...]

    @classmethod
    def read(cls, text: str, flag: str, *, several: bool = True) -> Variation:
        """Return the option and values in a text such as `lr=1e-4,3e-4`. Raises `UsageError`.

        Values are joined by commas, or by semicolons where they hold commas themselves. Without `several` the text is
        one value, whatever it holds.
        """
        found = re.fullmatch(r"\s*(?:--)?([A-Za-z][\w.-]*)\s*=\s*(.*?)\s*", text)
        if found is None or not found[2]:
            example = "OPTION=VALUES, such as lr=1e-4,3e-4 or seed=0..2" if several else "OPTION=VALUE, such as lr=1e-4"
            raise UsageError(f"{flag}: must be {example}, not {text!r}")
        option = dashed(found[1])
        values = values_in(found[2], f"{flag} {found[1]}") if several else (found[2],)
        if option in DECIDED:
            raise UsageError(f"{flag}: --{option} belongs to the sweep itself, or to none")
        return cls(option, values)

    def words(self, value: str) -> list[str]:
        """Return the option with a value as words of a command line."""
        name, _, switch = self.option.rpartition(".")
        if value in SWITCHES:
            return [f"--{name}.{SWITCHES[value]}{switch}" if name else f"--{SWITCHES[value]}{switch}"]
        return [f"--{self.option}={value}"] if value.startswith("-") else [f"--{self.option}", value]


def values_in(text: str, where: str) -> tuple[str, ...]:
    """Return the values in a text: `0..2` is 0, 1 and 2. Raises `UsageError` for none, an empty one, or one twice."""
    values: list[str] = []
    for word in text.split(";" if ";" in text else ","):
        word = word.strip()
        if limits := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", word):
            first, last = int(limits[1]), int(limits[2])
            if not first <= last < first + MOST:
                raise UsageError(f"{where}: {word} must rise, by less than {MOST:,}")
            values += map(str, range(first, last + 1))
        elif not word:
            raise UsageError(f"{where}: has an empty value; values are joined by commas, or 0..2 for 0,1,2")
        else:
            values.append(word)
    if twice := next((v for i, v in enumerate(values) if named_value(v) in map(named_value, values[:i])), None):
        raise UsageError(f"{where}: has the value {twice} twice")
    return tuple(values)


@dataclass(frozen=True)
class Combination:
    """One value of each variation."""

    name: str
    """A name made of what varies: `lr-0.0001-seed-0`."""
    words: tuple[str, ...]
    """The options of `train`."""


def combinations(vary: Sequence[Variation], fixed: Sequence[Variation] = ()) -> list[Combination]:
    """Return all combinations of the values, the last variation fastest. Raises `UsageError`."""
    options = [one.option for one in (*fixed, *vary)]
    if twice := next((option for i, option in enumerate(options) if option in options[:i]), None):
        raise UsageError(f"--vary: {twice} is given twice; give all its values at once")
    count = prod(len(one.values) for one in vary)
    if count > MOST:
        raise UsageError(f"--vary: makes {count:,} runs, more than {MOST:,}")
    always = [word for one in fixed for word in one.words(one.values[0])]
    short = short_names([one.option for one in vary])
    found = []
    for values in itertools.product(*(one.values for one in vary)):
        pairs = [*zip(vary, values, strict=True)]
        name = "-".join(f"{short[one.option]}-{named_value(value)}" for one, value in pairs)
        words = [word for one, value in pairs for word in one.words(value)]
        found.append(Combination(shortened(name, LONGEST_NAME // 4) if name else "run", (*always, *words)))
    names = [one.name for one in found]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise UsageError(f"--vary: two runs would be called {twice}; choose values that differ in letters or digits")
    return found


def named_value(text: str) -> str:
    """Return a value as folders are named by it: `0.0001` for `1e-4`, without signs that file names may not have."""
    try:
        number = float(text)
    except ValueError:
        return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "x"
    return text if re.fullmatch(r"\d+", text) else f"{number:.12g}"
