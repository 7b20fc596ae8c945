"""Several runs compared: runs x samplers x spacings x guidances x seeds, each measured against the same data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from difftool.components import Dataset, Guidance, Sampler, Spacing
from difftool.errors import UsageError, listed, printable
from difftool.evaluation.statistics import Spread
from difftool.evaluation.yardsticks import Yardstick
from difftool.options import fields
from difftool.paths import is_path
from difftool.runs.recipe import component_table
from difftool.sampling.comparison import Entry, conditions_of_items, entries
from difftool.sampling.model import Model
from difftool.sampling.progress import CallCount
from difftool.settings import Sampling


@dataclass(frozen=True)
class Setting:
    """The setting that one number of a comparison belongs to."""

    group: str
    """The runs, by the options that they do not share with the others: `schedule cosine`."""
    sampler: str
    spacing: str
    guidance: str
    limit: int
    """The largest number of network calls."""


@dataclass
class Cell:
    """The scores of a setting, by run and seed."""

    setting: Setting
    steps: int
    calls: int
    """Network calls for each sample."""
    values: dict[str, list[list[float]]] = field(default_factory=dict)
    """For each score a list for each run of its values by seed; NaN where samples diverged."""

    def spread(self, score: str) -> Spread:
        return Spread.of(self.values[score])


@dataclass(frozen=True)
class Asked:
    """The samplers, levels and seeds by which runs are compared."""

    samplers: Sequence[Sampler]
    spacings: Sequence[Spacing]
    guidances: Sequence[Guidance | None]
    calls: Sequence[int]
    seeds: Sequence[int]
    sampling: Sampling


class Study:
    """The cells of a comparison, filled run by run, so that one model at a time is in memory."""

    def __init__(self, asked: Asked, yardstick: Yardstick) -> None:
        self.asked, self.yardstick = asked, yardstick
        self.cells: dict[Setting, Cell] = {}
        self.count = CallCount()

    def planned(self, source: Model, group: str, words: Callable[[Guidance | None], str]) -> dict[Setting, Entry]:
        """Return the entry of each setting of a run. Settings of few calls may share one."""
        asked = self.asked
        conditions = conditions_of_items(source, asked.sampling)
        everything = entries(
            source, asked.samplers, asked.spacings, asked.calls, asked.sampling, conditions, asked.guidances
        )
        found: dict[Setting, Entry] = {}
        for limit in asked.calls:
            for entry in everything:
                setting = Setting(group, entry.sampler, entry.spacing, words(entry.guidance), limit)
                within = entry.calls <= limit and (setting not in found or found[setting].calls < entry.calls)
                if within:
                    found[setting] = entry
        order = [(s, w, g) for g in map(words, asked.guidances) for w in asked.spacings for s in asked.samplers]
        ranks = {(s.name, w.name, g): i for i, (s, w, g) in enumerate(order)}
        return dict(
            sorted(
                found.items(),
                key=lambda pair: (ranks[pair[0].sampler, pair[0].spacing, pair[0].guidance], pair[0].limit),
            )
        )

    def calls_of(self, planned: Mapping[Setting, Entry]) -> int:
        """Return the network calls, of one batch each, that measuring a run takes."""
        unique = {id(entry): entry for entry in planned.values()}.values()
        return sum(entry.calls * entry.plan.batches for entry in unique) * len(self.asked.seeds)

    def measure(self, source: Model, planned: Mapping[Setting, Entry], watch: Callable[[str], object]) -> None:
        """Draw and measure all samples of a run. `watch` is called after each step with what is being done."""
        measured: dict[int, tuple[dict[str, list[float]], int]] = {}
        for setting, entry in planned.items():
            if id(entry) not in measured:
                measured[id(entry)] = self._over_seeds(source, setting, entry, watch)
            scores, calls = measured[id(entry)]
            cell = self.cells.setdefault(setting, Cell(setting, entry.plan.steps, calls))
            for name, values in scores.items():
                cell.values.setdefault(name, []).append(values)

    def _over_seeds(
        self, source: Model, setting: Setting, entry: Entry, watch: Callable[[str], object]
    ) -> tuple[dict[str, list[float]], int]:
        found: dict[str, list[float]] = {}
        calls = entry.calls
        guidance = f", {printable(entry.guidance.words())}" if entry.guidance is not None else ""
        for seed in self.asked.seeds:
            words = f"{setting.sampler} on {setting.spacing}{guidance}, {entry.calls} calls, seed {seed}"
            plan = replace(entry.plan, settings=replace(entry.plan.settings, seed=seed))
            with self.count.work(entry.calls * plan.batches, partial(watch, words)) as counted:
                scores, calls = self.yardstick.measure(source, replace(entry, plan=plan), counted)
            for name, value in scores.items():
                found.setdefault(name, []).append(value)
        return found, calls


def check_comparable(names: Sequence[str], sources: Iterator[Model]) -> list[str]:
    """Check that all runs learned the same kind of data, and return the options of the dataset in which they differ.

    Paths may differ, since data may lie elsewhere. Raises `UsageError`, which names two runs that cannot be compared.
    """
    first: tuple[str, Any, Mapping[str, Any]] | None = None
    differ: dict[str, None] = {}
    for name, source in zip(names, sources, strict=True):
        dataset = source.recipe[Dataset]
        table = component_table(dataset)
        paths = {f.name for f in fields(type(dataset)) if is_path(type(dataset), f, table.get(f.name))}
        kind = (table["name"], source.data.shape, tuple(source.data.class_names))
        options = {key: value for key, value in table.items() if key not in paths}
        if first is None:
            first = (name, kind, options)
            continue
        if kind != first[1]:
            what = [
                f"{a} and {b}" if i else f"dataset {a} and {b}"
                for i, (a, b) in enumerate(zip(_words(first[1]), _words(kind), strict=True))
                if a != b
            ]
            raise UsageError(
                f"{first[0]} and {name} learned different data ({'; '.join(what)}); compare runs of the same data"
            )
        differ |= dict.fromkeys(
            key for key in (*first[2], *options) if first[2].get(key) != options.get(key) and key != "labels"
        )
    return list(differ)


def _words(kind: tuple[str, Sequence[int], Sequence[str]]) -> tuple[str, str, str]:
    name, shape, classes = kind
    return str(name), "x".join(map(str, shape)), f"classes {listed([*classes[:5]])}" if classes else "no classes"
