"""`difftool compare RUN RUN...`: runs x samplers x spacings x guidances x seeds, as means with their deviations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftool.cli.comparison_table import WORDS, ComparisonTable, Number, screen, write_table
from difftool.cli.console import Bar, note, progress, show, stderr
from difftool.cli.guidance import name_of
from difftool.cli.outputs import report, save_figure
from difftool.components import Dataset
from difftool.errors import UsageError, counted, listed
from difftool.files import numbered
from difftool.runs.summary import UNSEEN, Choices, Value, differing, in_words, options_in, short_names, text_of
from difftool.settings import Sampling

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from difftool.cli.comparing import Wanted
    from difftool.cli.sources import SourceRequest
    from difftool.evaluation.study import Study
    from difftool.sampling.model import Model

SEED = "seed"
IMAGES, POINTS = 256, 2_000
"""The default numbers of samples."""


@dataclass(frozen=True)
class Groups:
    """The runs by the options in which they differ. Those that differ in their seed alone are one group."""

    headings: tuple[str, ...]
    """The short names of the options in which groups differ."""
    names: tuple[str, ...]
    """The group of each run."""
    values: Mapping[str, tuple[str, ...]]
    """The values of a group under the headings."""

    @classmethod
    def of(cls, options: Sequence[Choices], paths: Sequence[str], *, separate: bool) -> Groups:
        """Return the groups of runs, or with `separate` each run by itself."""
        own = [name for name in differing(options, UNSEEN - {"steps", "epochs"}) if name != "dataset.path"]
        chosen = [name for name in own if name != SEED or separate]
        if separate and len({in_words(each, chosen) for each in options}) < len(options):
            options = [{**each, "run": path} for each, path in zip(options, paths, strict=True)]
            chosen = ["run", *chosen]
        names = tuple(in_words(each, chosen) for each in options)
        values = {
            name: tuple(text_of(each[option]) if option in each else "-" for option in chosen)
            for name, each in zip(names, options, strict=True)
        }
        return cls(tuple(short_names(chosen).values()), names, values)


def compare_runs(
    requests: Sequence[SourceRequest], wanted: Wanted, seeds: Sequence[int], device: torch.device, *, separate: bool
) -> None:
    """Compare runs of the same data, and print the means of their scores. Raises `UsageError` for runs of others."""
    from difftool import devices
    from difftool.evaluation.study import Asked, Study, check_comparable
    from difftool.evaluation.yardsticks import Metrics, SlicedW2, Yardstick

    paths = [str(request.run) for request in requests]
    if twice := next((a for a, b in pairwise(sorted(map(str, map(Path.absolute, map(Path, paths))))) if a == b), None):
        raise UsageError(f"{twice} is named twice; name each run once")
    opened = [request.open(device) for request in requests]
    sources: list[Model] = [each.source for each in opened]  # type: ignore[misc]
    if differ := check_comparable(paths, iter(sources)):
        what = listed([f"dataset.{name}" for name in differ])
        note(f"the runs differ in {what}: all are compared with the data of {paths[0]}")
    settings, first = wanted.settings, sources[0]
    count = settings.num_samples or (POINTS if first.data.is_points else IMAGES)
    sampling = Sampling(num_samples=count, batch_size=settings.batch_size, label=settings.label)
    asked = Asked(wanted.samplers, wanted.spacings, wanted.guidances, wanted.calls, seeds, sampling)
    options = [{**options_in(source.recipe.document()), "steps": source.step} for source in sources]
    groups = Groups.of(options, paths, separate=separate)
    label = first.label_index(asked.sampling.label)
    with devices.threads(settings.threads, opened[0].threads):
        yardstick: Yardstick
        if wanted.metrics:
            options_of_metrics: dict[str, Any] = {"label": settings.label, "count": count, "against": settings.against}
            yardstick = Metrics(first, wanted.metrics, wanted.features, **options_of_metrics, device=device)
        else:
            yardstick = SlicedW2(first, label, count)
        study = Study(asked, yardstick)
        planned = [study.planned(source, name, name_of) for source, name in zip(sources, groups.names, strict=True)]
        total = sum(map(study.calls_of, planned))
        note(
            f"comparing {counted(len(sources), 'run')} in {counted(len(groups.values), 'group')} on "
            f"{first.recipe[Dataset].name}: {counted(len(asked.samplers), 'sampler')}, "
            f"{counted(len(asked.seeds), 'seed')} of {count:,} samples{first.of_class(label)}, {total:,} network calls "
            f"of a batch in all; {devices.describe(device)}"
        )
        with progress("comparing", total) as bar:
            for number, (source, entries) in enumerate(zip(sources, planned, strict=True), start=1):
                study.measure(source, entries, partial(_show, bar, study, f"calls, run {number} of {len(sources)}: "))
    _write(study, groups, paths, first, wanted)


def _show(bar: Bar, study: Study, before: str, words: str) -> None:
    bar.update(study.count.done, before + words)


def _write(study: Study, groups: Groups, paths: Sequence[str], first: Model, wanted: Wanted) -> None:
    """Print the tables on stderr, and write figure, table and facts."""
    over = _over(study, groups)
    what = (
        f"{study.asked.sampling.num_samples:,} samples{first.of_class(first.label_index(study.asked.sampling.label))}"
    )
    name = first.recipe[Dataset].name
    numbers = table_of(study, groups, f"{name}, {what}; {study.yardstick.words}; {over}")
    known = any(number.spread.deviation is not None for number in numbers.numbers)
    note(f"{study.yardstick.words}; {over}{'; * marks the best by more than both deviate' if known else ''}")
    for score in numbers.scores:
        show(screen(numbers, score, stderr().width), "")
    out = wanted.out or (None if wanted.json else numbered(Path(), f"compare-{name}", ".png"))
    if out is not None:
        save_figure(_figure(study, f"{name}, {what}, {over}"), out, overwrite=wanted.overwrite)
    if wanted.table is not None:
        write_table(numbers, wanted.table, overwrite=wanted.overwrite)
    written = [path for path in (out, wanted.table) if path is not None]
    report(written, facts(study, groups, paths), as_json=wanted.json)


def _over(study: Study, groups: Groups) -> str:
    """Return what the deviations are over, in words."""
    sizes = sorted({groups.names.count(name) for name in groups.values})
    seeds = len(study.asked.seeds)
    runs = f"{sizes[0]} to {sizes[-1]} runs" if len(sizes) > 1 else counted(sizes[0], "run")
    if sizes[-1] > 1:
        return f"mean ± deviation over {runs}" + (f" of {counted(seeds, 'seed')} each" if seeds > 1 else "")
    return f"mean ± deviation over {seeds} seeds" if seeds > 1 else "a single seed, so no deviation is known"


def table_of(study: Study, groups: Groups, caption: str) -> ComparisonTable:
    """Return the numbers of a study as a table."""
    numbers = [
        Number(
            (*groups.values[cell.setting.group], cell.setting.sampler, cell.setting.spacing, cell.setting.guidance),
            cell.setting.limit,
            cell.calls,
            cell.steps,
            score,
            cell.spread(score),
        )
        for cell in study.cells.values()
        for score in cell.values
    ]
    headings = (*groups.headings, "sampler", "spacing", "guidance")
    return ComparisonTable(headings, numbers, study.yardstick.better, study.yardstick.floors, caption)


def facts(study: Study, groups: Groups, paths: Sequence[str]) -> dict[str, Any]:
    """Return plain numbers. None stands for what diverged, for JSON has no infinity."""
    rows = []
    for cell in study.cells.values():
        setting, scores = cell.setting, dict[str, Any]()
        for name, values in cell.values.items():
            spread = cell.spread(name)
            known = [[value if value == value else None for value in run] for run in values]
            scores[name] = {"mean": spread.mean, "deviation": spread.deviation, "n": spread.n, "values": known}
        options: dict[str, Value] = dict(zip(groups.headings, groups.values[setting.group], strict=True))
        rows.append(
            {
                "group": setting.group,
                "options": options,
                "runs": [path for path, name in zip(paths, groups.names, strict=True) if name == setting.group],
                "sampler": setting.sampler,
                "spacing": setting.spacing,
                "guidance": setting.guidance,
                "calls_at_most": setting.limit,
                "steps": cell.steps,
                "calls": cell.calls,
                "scores": scores,
            }
        )
    asked = study.asked
    settings = {"num_samples": asked.sampling.num_samples, "seeds": [*asked.seeds], "label": asked.sampling.label}
    return {"runs": [*paths], **settings, **study.yardstick.facts, "floors": study.yardstick.floors, "results": rows}


def _figure(study: Study, title: str) -> Figure:
    from difftool.figures.study import Mean, study_figure

    guided, spacings = ({getattr(s, key) for s in study.cells} for key in ("guidance", "spacing"))
    panels: dict[tuple[str, str], dict[tuple[str, str], list[Mean]]] = {}
    for setting, cell in study.cells.items():
        column = setting.spacing if len(spacings) > 1 or len(guided) == 1 else ""
        if len(guided) > 1:
            column = ", ".join(filter(None, (column, f"guidance {setting.guidance}")))
        for score in cell.values:
            spread = cell.spread(score)
            if spread.mean is not None:
                series = panels.setdefault((score, column), {}).setdefault((setting.group, setting.sampler), [])
                series.append(Mean(cell.calls, spread.mean, spread.deviation))
    labels = {
        score: f"{WORDS.get(score, score)} to fresh data" if score == "sliced_w2" else score for score, _ in panels
    }
    return study_figure(panels, labels=labels, floors=study.yardstick.floors, title=title)
