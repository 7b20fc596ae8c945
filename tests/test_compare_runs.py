"""`difftool compare RUN RUN...`: groups, means and deviations, what is best, tables and figure; and its progress."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import POINTS, Outcome, Run
from PIL import Image
from torch import Tensor

from difftool import Denoise, Level, Sampler, Step, component
from difftool.cli.compare_runs import Groups
from difftool.cli.comparison_table import ComparisonTable, Number, escaped_latex, latex, long_csv, markdown, plus_minus
from difftool.evaluation.statistics import Spread, best_of
from difftool.figures.study import Mean, study_figure
from difftool.sampling.comparison import Comparison, entries
from difftool.sampling.oracle import OracleSource
from difftool.settings import Sampling

# Statistics


def test_one_run_deviates_over_its_seeds_and_several_over_their_means() -> None:
    assert Spread.of([[1.0, 2.0, 3.0]]) == Spread(2.0, 1.0, 3)
    assert Spread.of([[1.0, 3.0], [5.0, 7.0]]) == Spread(4.0, statistics.stdev([2, 6]), 2)
    assert Spread.of([[1.0]]) == Spread(1.0, None, 1)
    assert Spread.of([[1.0, math.nan], [1.0, 1.0]]).mean is None


def test_the_best_differs_by_more_than_both_deviate() -> None:
    def spread(mean: float | None, deviation: float | None) -> Spread:
        return Spread(mean, deviation, 3)

    assert best_of([spread(1, 0.3), spread(1.6, 0.4)]) == 0
    assert best_of([spread(1, 0.3), spread(1.5, 0.4)]) is None  # 0.5 is no more than sqrt(0.3^2 + 0.4^2)
    assert best_of([spread(1, 0.1), spread(2, 0.1), spread(2, 5)]) is None
    assert best_of([spread(1, None), spread(9, None)]) is None
    assert best_of([spread(1, 0.1), spread(2, 0.1)], "higher") == 1
    assert best_of([spread(None, None), spread(2, 0.1), spread(3, 0.1)]) == 1
    # nobody beats data: below the floor all are equal
    assert best_of([spread(1, 0.1), spread(2, 0.1)], "lower", 2.5) is None
    assert best_of([spread(1, 0.1), spread(2, 0.1)], "lower", 0.5) == 0
    assert best_of([spread(1, 0.1)]) is None


# Groups


def test_runs_that_differ_in_their_seed_alone_are_one_group() -> None:
    options = [{"schedule": s, "backbone.width": 8, "seed": i} for s in ("linear", "cosine") for i in (0, 1)]
    found = Groups.of(options, "abcd", separate=False)
    assert found.headings == ("schedule",)
    assert found.names == ("linear", "linear", "cosine", "cosine")
    assert found.values == {"linear": ("linear",), "cosine": ("cosine",)}
    apart = Groups.of(options, "abcd", separate=True)
    assert apart.headings == ("schedule", "seed")
    assert len(apart.values) == 4
    assert len(Groups.of([options[0]] * 2, "ab", separate=True).values) == 2
    longer = Groups.of([{**options[0], "steps": 10}, {**options[0], "steps": 20}], "ab", separate=False)
    assert longer.names == ("steps 10", "steps 20")


# Tables


def table(**changes: Any) -> ComparisonTable:
    numbers = [
        Number((group, sampler, "trailing"), limit, limit, limit, "kid", Spread(value, 0.01, 3))
        for group, sampler, values in (
            ("a_b", "ddim", (0.5, 0.2)),
            ("a_b", "heun", (0.4, 0.195)),
            ("$x|", "ddim", (0.9, 0.3)),
        )
        for limit, value in zip((10, 20), values, strict=True)
    ]
    found = {"headings": ("lr & co", "sampler", "spacing"), "numbers": numbers, "better": {"kid": "lower"}}
    return ComparisonTable(**{**found, "floors": {"kid": 0.05}, "caption": "three runs", **changes})


def test_latex_is_a_table_of_booktabs() -> None:
    lines = latex(table()).splitlines()
    assert r"\begin{tabular}{llrr}" in lines
    assert r" &  & \multicolumn{2}{c}{kid by network calls} \\" in lines
    assert r"\cmidrule(lr){3-4}" in lines
    assert r"lr \& co & sampler & 10 & 20 \\" in lines
    assert r"a\_b & ddim & $0.500 \pm 0.010$ & $0.200 \pm 0.010$ \\" in lines
    assert r" & heun & $\mathbf{0.400 \pm 0.010}$ & $0.195 \pm 0.010$ \\" in lines
    assert r"\$x| & ddim & $0.900 \pm 0.010$ & $0.300 \pm 0.010$ \\" in lines
    assert r"\multicolumn{2}{l}{data against data} & $0.05$ & $0.05$ \\" in lines
    body = [line for line in lines if line.endswith(r"\\")]
    widths = [line.count("&") - line.count(r"\&") + line.count("multicolumn{2}") for line in body]
    assert set(widths) == {3}


def test_markdown_escapes_what_would_be_markup() -> None:
    lines = markdown(table()).splitlines()
    assert lines[0] == r"| lr \& co | sampler | kid, 10 calls | kid, 20 calls |"
    assert lines[1] == "| --- | --- | ---: | ---: |"
    assert r"| a\_b | heun | **0.400 ± 0.010** | 0.195 ± 0.010 |" in lines
    assert r"| \$x\| | ddim | 0.900 ± 0.010 | 0.300 ± 0.010 |" in lines


def test_csv_has_a_line_for_each_number() -> None:
    rows = [*csv.DictReader(io.StringIO(long_csv(table())))]
    assert len(rows) == 6
    assert rows[2]["best"] == "yes"
    assert [row["best"] for row in rows].count("yes") == 1
    assert (rows[0]["mean"], rows[0]["deviation"], rows[0]["n"], rows[0]["floor"]) == ("0.5", "0.01", "3", "0.05")


def test_what_diverged_is_said() -> None:
    numbers = [
        Number(("a",), 5, 5, 5, "kid", Spread(None, None, 2)),
        Number(("b",), 5, 5, 5, "kid", Spread(1.0, 0.1, 2)),
    ]
    one = table(headings=("sampler",), numbers=numbers)
    assert "diverges" in latex(one)
    assert "diverges" in markdown(one)


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (Spread(0.05321, 0.00414, 3), "0.0532 ± 0.0041"),
        (Spread(123.4, 15.0, 3), "123 ± 15"),
        (Spread(0.5, 0.0, 3), "0.500 ± 0.000"),
        (Spread(0.5321, None, 1), "0.532"),
        (Spread(None, None, 1), "diverges"),
    ],
)
def test_numbers_have_the_digits_they_deserve(spread: Spread, text: str) -> None:
    assert plus_minus(spread) == text


def test_latex_prints_every_sign() -> None:
    assert escaped_latex(r"\a{b}_$%#&~^<>") == (
        r"\textbackslash{}a\{b\}\_\$\%\#\&\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
    )


# The command


@pytest.fixture(scope="module")
def four(shared: Callable[..., Path]) -> list[Path]:
    """Runs of two schedules and two seeds."""
    held_out = ("--held-out", 50, "--steps", 30)
    return [
        shared(f"compare-{name}-{seed}", *POINTS, *held_out, "--schedule", name, "--seed", seed)
        for name in ("linear", "cosine")
        for seed in (0, 1)
    ]


QUICK = ("--samplers", "ddim,heun", "--calls", "3,6", "-n", 60)


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def test_compare_runs(run: Run, four: list[Path]) -> None:
    outcome = ok(run("compare", *four, *QUICK, "--seeds", "0..1", "--json", "--out", "x.png", "--table", "x.tex"))
    document = json.loads(outcome.out)
    assert document["files"] == ["x.png", "x.tex"]
    with Image.open("x.png") as picture:
        assert picture.width > 600
    assert document["seeds"] == [0, 1]
    assert document["floors"]["sliced_w2"] > 0
    rows = document["results"]
    assert [(row["options"]["schedule"], row["sampler"], row["calls_at_most"]) for row in rows] == [
        (schedule, sampler, limit)
        for schedule in ("linear", "cosine")
        for sampler in ("ddim", "heun")
        for limit in (3, 6)
    ]
    assert rows[0]["runs"] == [str(path) for path in four[:2]]
    assert [row["calls"] for row in rows[:4]] == [3, 6, 3, 5]
    for row in rows:
        score = row["scores"]["sliced_w2"]
        means = [statistics.fmean(values) for values in score["values"]]
        assert score["mean"] == pytest.approx(statistics.fmean(means))
        assert score["deviation"] == pytest.approx(statistics.stdev(means))
        assert all(len(set(values)) == 2 for values in score["values"])
    assert "mean ± deviation over 2 runs of 2 seeds each" in outcome.err
    assert r"schedule & prediction & sampler & 3 & 6 \\" in Path("x.tex").read_text()
    alone = json.loads(ok(run("compare", four[0], *QUICK, "--seeds", "1,0", "--json")).out)["results"]
    assert alone[0]["scores"]["sliced_w2"]["values"] == [rows[0]["scores"]["sliced_w2"]["values"][0][::-1]]


def test_a_folder_stands_for_its_runs(run: Run, four: list[Path]) -> None:
    for path in four[:2]:
        shutil.copytree(path, Path("runs") / path.name)
    Path("runs/untrained").mkdir()
    Path("runs/untrained/config.toml").touch()
    document = json.loads(ok(run("compare", "runs", "--calls", 2, "-n", 20, "--json")).out)
    assert document["runs"] == [f"runs/{path.name}" for path in four[:2]]


def test_compare_by_metrics(run: Run, four: list[Path]) -> None:
    words = ("compare", *four[:2], "--calls", 3, "-n", 40, "--metric", "sliced-w2", "--table", "x.csv", "--json")
    document = json.loads(ok(run(*words)).out)
    assert (document["against"], document["reference"]) == ("held-out", 50)
    assert document["metrics"] == [{"name": "sliced-w2", "directions": 200}]
    (row,) = document["results"]
    assert row["scores"]["sliced-w2"]["n"] == 2
    assert document["floors"]["sliced-w2"] > 0
    (line,) = csv.DictReader(io.StringIO(Path("x.csv").read_text()))
    assert float(line["mean"]) == row["scores"]["sliced-w2"]["mean"]


def test_a_table_of_one_run(run: Run, four: list[Path]) -> None:
    quick = ("--samplers", "ddim", "--spacings", "trailing", "--calls", "2,4", "-n", 30, "--reference", 10)
    outcome = ok(run("compare", four[0], *quick, "--table", "x.md", "--out", "x.png"))
    assert outcome.lines == ["x.png", "x.md"]
    assert Path("x.md").read_text().startswith("| sampler | error, 2 calls | error, 4 calls | sliced W2, 2 calls |")
    assert re.search(r"the exact solutions take 15 of \d+ network calls, about \d+ s; --reference 2 takes", outcome.err)


REFUSED = [
    (("--seeds", "0..x"), "--seeds: must be whole numbers joined by commas, such as 1,2,4 or 0..3, not '0..x'"),
    (("--seeds", "1,1"), "--seeds: must be different seeds, such as 0..2 or 0,1,5"),
    (("--seeds", "0,1", "--seed", 3), "--seeds: give either --seed or --seeds"),
    (("--reference", 9), "--reference: belongs to the comparison of one run"),
    (("--table", "x.doc"), "--table: x.doc: cannot write .doc files"),
    (("--features", "pixels"), "--features: belongs to --metric"),
    (("--against", "train"), "--against: belongs to --metric"),
    (("--metric", "slicd-w2"), "unknown metric 'slicd-w2'; did you mean 'sliced-w2'?"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else None)
def test_wrong_usage_is_one_line(run: Run, four: list[Path], words: tuple[object, ...], message: str) -> None:
    outcome = run("compare", *four[:2], *QUICK, *words)
    assert outcome.code == 2
    assert message in outcome.error
    assert list(Path().iterdir()) == []


def test_runs_of_other_data_are_refused(run: Run, four: list[Path], images_run: Path) -> None:
    outcome = run("compare", four[0], images_run, *QUICK)
    assert outcome.code == 2
    assert "learned different data (dataset swiss-roll and gradients; 2 and 3x8x8)" in outcome.error
    assert "is named twice" in run("compare", four[0], four[0], *QUICK).error
    assert "--separate: there is one run alone" in run("compare", four[0], *QUICK, "--separate").error


# Progress


class Adaptive(Sampler, name="adaptive"):
    """Takes one call a step with the single number of a dry run, and three with samples."""

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        for t, s in pairwise(levels):
            for _ in range(1 if x.numel() == 1 else 3):
                estimate = denoise(x, t)
            yield Step(estimate.x_0, s, estimate)


def test_progress_never_passes_what_was_planned() -> None:
    """A sampler of adaptive steps makes more calls than its dry run, and the bar stays within its total."""
    data, closed = component("dataset", "gaussian-mixture", n=50), component("oracle", "closed-form")
    source = OracleSource.of(closed, data, component("schedule", "linear"))  # type: ignore[arg-type]
    settings, spacing = Sampling(num_samples=9, batch_size=4), component("spacing", "trailing")
    planned = entries(source, [Adaptive(), component("sampler", "ddim")], [spacing], [4], settings)  # type: ignore[list-item]
    comparison = Comparison(source, data, settings, 10)  # type: ignore[arg-type]
    total, seen = comparison.calls_of(planned), [0]
    for entry in planned:
        comparison.measure(entry, lambda _: seen.append(comparison.count.done))
    assert comparison.count.done == total
    assert all(a <= b for a, b in pairwise(seen))
    assert max(seen) == total
    assert comparison.reference_calls(planned) == total - 3 * (4 + 4)


# The figure


@pytest.mark.parametrize("limits", [(10,), (10, 20, 50)])
def test_the_figure_has_a_panel_for_each_score_and_spacing(limits: tuple[int, ...]) -> None:
    series = {
        (group, sampler): [Mean(limit, 1 / limit + 0.1 * i, 0.01 if i else None) for limit in limits]
        for i, group in enumerate(("$a$", "b"))
        for sampler in ("ddim", "heun")
    }
    panels = {(score, spacing): series for score in ("kid", "fid") for spacing in ("trailing", "log-snr")}
    figure = study_figure(panels, labels={"kid": "KID"}, floors={"kid": 0.02, "fid": None}, title="t")
    assert len(figure.axes) == 4
    assert figure.axes[0].get_ylabel() == "KID"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    several = ["$a$, ddim", "$a$, heun", "b, ddim", "b, heun"] if len(limits) > 1 else ["$a$", "b"]
    assert names == [*several, "data against data"]
