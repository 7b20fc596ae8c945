"""What a list of many runs says of each: one look at its files, and the options in which the runs differ."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from difftool.errors import printable, shortened
from difftool.options import dashed
from difftool.runs.evaluations import read_evaluations
from difftool.runs.folder import RunFolder, Status, recorded_in, started_in
from difftool.runs.recipe import MAY_CHANGE, recipe_kinds
from difftool.runs.tail import Tail, read_tail

Value = str | int | float
Choices = Mapping[str, Value]
"""The options of a run by the names of their flags: `lr`, `backbone`, `backbone.width`."""
LONGEST_TEXT = 60
"""Characters of a text from a config file that are shown, since such a file may hold any."""
UNSEEN = {dashed(name) for name in MAY_CHANGE}
"""Settings that change no result, or that the step tells; they are not shown as differences."""


@dataclass(frozen=True)
class Summary:
    """A run as a list shows it."""

    run: RunFolder
    config: Mapping[str, Any]
    """Its config file; empty if that cannot be read."""
    status: Status
    tail: Tail

    @classmethod
    def of(cls, run: RunFolder) -> Summary:
        config = run.readable_config()
        training = config.get("training")
        held_out = training.get("held_out") if isinstance(training, dict) else None
        tail = read_tail(run.metrics, held_out=held_out != 0)
        return cls(run, config, run.status(recorded_in(config)), tail)

    @property
    def started(self) -> str:
        return started_in(recorded_in(self.config))

    @property
    def seconds(self) -> float | None:
        """The time that training took so far."""
        elapsed = None if self.tail.last is None else self.tail.last.get("elapsed")
        return elapsed if elapsed is None or elapsed >= 0 else None

    @cached_property
    def bytes(self) -> int:
        """The size of its files on the disk."""
        return size_of(self.run.path)

    @property
    def components(self) -> dict[str, Any]:
        """The names of its components, by kind, as its config file has them."""
        return {kind: table.get("name") for kind in recipe_kinds() if isinstance(table := self.config.get(kind), dict)}

    @cached_property
    def scores(self) -> dict[str, float]:
        """The best value of each score in its evaluations, by name."""
        return best_scores(read_evaluations(self.run))

    @cached_property
    def options(self) -> Choices:
        """The options of the run."""
        return options_in(self.config)


def options_in(tables: Mapping[str, Any]) -> dict[str, Value]:
    """Return the options in the tables of a config file, which may hold anything, by the names of their flags."""
    found: dict[str, Value] = {}
    for kind in (*recipe_kinds(), "training"):
        table = tables.get(kind)
        for key, value in table.items() if isinstance(table, dict) else ():
            found[_flag(kind, key)] = _shown(value)
    return found


@lru_cache(2**12)
def _flag(kind: str, key: str) -> str:
    """Return the name of an option by its table and key in a config file."""
    name = kind if key == "name" else dashed(key) if kind == "training" else f"{kind}.{dashed(key)}"
    return shortened(printable(name), LONGEST_TEXT)


def best_scores(evaluations: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the best value of each score in evaluations, which may be of different steps, data and features."""
    found: dict[str, float] = {}
    for score in (score for evaluation in evaluations for score in evaluation["scores"]):
        name, value = shortened(printable(score["name"]), LONGEST_TEXT), score.get("value")
        if value is not None:
            best = min if score["better"] == "lower" else max
            found[name] = best(found.get(name, value), value)
    return found


def size_of(folder: Path) -> int:
    """Return the bytes of the files in a folder. Links count as what they are, and lead nowhere."""
    total, folders = 0, [os.fspath(folder)]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except OSError:
                    continue
    return total


def differing(runs: Sequence[Choices], unseen: Collection[str] = UNSEEN) -> list[str]:
    """Return the names of the options in which runs differ: components first, then settings, then their options.

    The options of different components are not compared. Runs without options, whose config file cannot be read, do
    not count.
    """
    known = [options for options in runs if options]
    names = dict.fromkeys(name for options in known for name in options)
    found = [name for name in names if name not in unseen and _differs(known, name)]
    return sorted(found, key=lambda name: (name not in recipe_kinds(), "." in name))


def common(runs: Sequence[Choices]) -> list[str]:
    """Return the names of dataset, schedule, backbone and prediction, as far as all runs share them."""
    kinds = ("dataset", "schedule", "backbone", "prediction")
    names = [{options.get(kind) for options in runs if options} for kind in kinds]
    return [str(*found) for found in names if len(found) == 1 and None not in found]


def short_names(names: Sequence[str], taken: Sequence[str] = ()) -> dict[str, str]:
    """Return each name, without its component where no other name is then the same: `width` for `backbone.width`."""
    last = [name.rpartition(".")[2] for name in names]
    return {
        name: short if last.count(short) == 1 and short not in taken else name
        for name, short in zip(names, last, strict=True)
    }


def in_words(options: Choices, names: Sequence[str]) -> str:
    """Return these options of a run, as far as it has them: `cosine, lr 0.001`. The kind of a component goes unsaid."""
    short = short_names(names)
    texts = ((name, text_of(options[name])) for name in names if name in options)
    return ", ".join(
        text if name in recipe_kinds() and text != "none" else f"{short[name]} {text}" for name, text in texts
    )


def text_of(value: Value) -> str:
    """Return a value as the command line spells it: `0.0001`, `64`, `cosine`."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _differs(runs: Sequence[Choices], name: str) -> bool:
    component = name.partition(".")[0] if "." in name else ""
    values: dict[object, set[object]] = {}
    for options in runs:
        values.setdefault(options.get(component), set()).add(options.get(name))
    if component:
        values.pop(None, None)
    return any(len(found) > 1 for found in values.values())


def _shown(value: object) -> Value:
    """Return a value as the command line spells it; numbers stay numbers."""
    if isinstance(value, str):
        return shortened(printable(value), LONGEST_TEXT)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return shortened(",".join(str(_shown(entry)) for entry in value), LONGEST_TEXT) or "none"
    return shortened(printable(str(value)), LONGEST_TEXT)
