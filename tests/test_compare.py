"""`difftool compare`: what it measures, what it says, what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, Run
from PIL import Image
from torch import Tensor

from difftool import CLEAN, Denoise, Level, Sampler, Samples, Schedule, Step, component
from difftool.errors import DifftoolError
from difftool.figures.comparison import Point, comparison_figure
from difftool.sampling.comparison import (
    CLEANEST,
    Reference,
    deterministic,
    draws_noise,
    entries,
    reference_levels,
    steps_within,
)
from difftool.sampling.fresh_data import FreshData, rms
from difftool.sampling.loop import sample
from difftool.sampling.oracle import OracleSource
from difftool.sampling.plan import Plan, dry_run
from difftool.settings import Sampling

LINEAR: Schedule = component("schedule", "linear").build(1000)  # type: ignore[attr-defined]
U = torch.arange(1, 1001, dtype=torch.float64) / 1000
FLOW = Schedule(1 - U, U)
TRAILING = component("spacing", "trailing")
GAUSSIAN = {"n": 5000, "components": 1, "std": 0.5}


def named(*names: str) -> list[Any]:
    return [component("sampler", name) for name in names]


def source(**options: object) -> OracleSource:
    data = component("dataset", "gaussian-mixture", **options)
    return OracleSource.of(component("oracle", "closed-form"), data, component("schedule", "linear"))  # type: ignore[arg-type]


# Calls


def levels(steps: int) -> tuple[Level, ...]:
    return (*TRAILING.levels(LINEAR, steps), CLEAN)  # type: ignore[attr-defined]


def test_calls_are_counted_before_any_sample() -> None:
    ddim, heun, ddpm = named("ddim", "heun", "ddpm")
    assert [dry_run(ddim, levels(n)).calls for n in (1, 7)] == [1, 7]
    assert [dry_run(heun, levels(n)).calls for n in (1, 7)] == [1, 13]
    assert [steps_within(n, heun, TRAILING, LINEAR) for n in (1, 2, 5, 10, 160)] == [1, 1, 3, 5, 80]  # type: ignore[arg-type]
    assert steps_within(10**5, ddim, TRAILING, LINEAR) == 1000  # type: ignore[arg-type]
    assert not draws_noise(ddim, TRAILING, LINEAR)  # type: ignore[arg-type]
    assert draws_noise(ddpm, TRAILING, LINEAR)  # type: ignore[arg-type]
    quiet = [s.name for s in deterministic(LINEAR, TRAILING)]  # type: ignore[arg-type]
    assert {"ddim", "heun", "dpmpp-2m"} <= set(quiet)
    assert "ddpm" not in quiet


class Greedy(Sampler, name="greedy"):
    """Three calls a step."""

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        for t, s in pairwise(levels):
            for _ in range(3):
                estimate = denoise(x, t)
            yield Step(estimate.x_0, s, estimate)


def test_a_sampler_that_needs_more_calls_is_left_out() -> None:
    assert steps_within(2, Greedy(), TRAILING, LINEAR) is None  # type: ignore[arg-type]
    found = entries(source(n=10), [Greedy()], [TRAILING], [2, 4, 5, 6], Sampling(num_samples=2))  # type: ignore[list-item]
    assert [(entry.plan.steps, entry.calls) for entry in found] == [(1, 3), (2, 6)]


def test_a_sampler_that_fails_is_named() -> None:
    class Broken(Sampler, name="broken"):
        def sample(self, denoise: Denoise, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
            raise ZeroDivisionError("oops")

    with pytest.raises(DifftoolError, match="sampler broken failed: ZeroDivisionError: oops"):
        dry_run(Broken(), levels(3))


# Error


@pytest.mark.parametrize("steps", [2, 3, 10, 1000])
@pytest.mark.parametrize("table", [LINEAR, FLOW], ids=["linear", "flow"])
@pytest.mark.parametrize("t", [999, 500, 0])
def test_the_reference_falls_from_where_the_samples_begin(table: Schedule, t: int, steps: int) -> None:
    first = table[t]
    found = reference_levels(first, table, steps)
    assert (found[0], found[-1]) == (first, CLEAN)
    angles = [level.theta for level in found]
    assert all(a > b for a, b in pairwise(angles))
    assert found[-2].log_snr == pytest.approx(CLEANEST, abs=1e-6)


def test_the_exact_solution_of_one_gaussian() -> None:
    """x_0 = m + s / sqrt(alpha^2 s^2 + sigma^2) (x_T - alpha m): the flow keeps the quantile."""
    made = source(**GAUSSIAN)
    settings = Sampling(num_samples=200, seed=3)
    reference = Reference(made, settings, 400)
    scaling = made.data.scaling
    mean = scaling.to_model(made.samples.mixture.means)[0]  # type: ignore[union-attr]
    std = 0.5 / torch.tensor(made.data.scale)
    for first in (LINEAR[999], LINEAR[700]):
        x_T = next(sample(made, Plan(**{**vars(reference.plan), "levels": (first, CLEAN)}))).x
        watched: list[Step] = []
        solution = reference.solution(first, watched.append)
        assert len(watched) == sum(len(reference_levels(first, LINEAR, steps)) for steps in (200, 400))
        spread = (first.alpha**2 * std**2 + first.sigma**2).sqrt()
        assert rms(mean + std / spread * (x_T - first.alpha * mean) - solution) < 1e-3
        assert reference.solution(first, lambda step: pytest.fail("computed twice")) is solution
    assert 0 < reference.error < 1e-3


def test_rms() -> None:
    assert rms(torch.tensor([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(2.5)
    assert math.isnan(rms(torch.tensor([1.0, math.inf])))


# Data


def test_sliced_distance() -> None:
    grid = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    fresh = FreshData([grid], [grid])
    assert fresh.data_distance == 0
    assert fresh.distance(grid.flip(0)) == pytest.approx(0, abs=1e-6)
    # a shift c moves every projection by <c, direction>, on average |c| / sqrt(2)
    assert fresh.distance(grid + torch.tensor([3.0, 4.0])) == pytest.approx(5 / math.sqrt(2), rel=0.1)


def test_fresh_data_share_no_item() -> None:
    class Numbers:
        name = "numbers"

        def load(self, context: Any) -> Samples:
            return Samples(items=torch.arange(100.0)[:, None], shape=(1,), labels=torch.arange(100) % 2)

    scaling = source(n=10).data.scaling
    scaling = type(scaling)((0.0,), (1.0,))
    for label, count, size in ((None, 1000, 50), (None, 10, 10), (1, 1000, 25), (1, 7, 7)):
        fresh = FreshData.of(Numbers(), scaling, label, count)  # type: ignore[arg-type]
        assert fresh.count == size
        assert fresh.data_distance > 0


# The command

CLOSED = ("--oracle", "closed-form", "--dataset", "gaussian-mixture", "--dataset.n", 4000)
QUICK = (*CLOSED, "-n", 200, "--reference", 60)


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    assert "error:" not in outcome.err.replace("error: RMS", "")
    return outcome


def test_compare_an_oracle(run: Run, tmp_path: Path) -> None:
    names = ("--samplers", "ddim,heun,ddpm", "--spacings", "trailing,log-snr", "--calls", "40,5,10")
    outcome = ok(run("compare", *QUICK, *names, "--json", "--out", "x.png"))
    document = json.loads(outcome.out)
    assert document["files"] == ["x.png"]
    with Image.open(tmp_path / document["files"][0]) as picture:
        assert picture.width > 1000
    assert document["oracle"] == {"name": "closed-form"}
    assert document["reference"]["steps"] == 60
    assert document["data"]["items"] == 200
    found = {(row["sampler"], row["spacing"], row["calls"]): row for row in document["results"]}
    assert len(found) == 3 * 2 * 3
    assert {key[2] for key in found if key[0] == "heun"} == {5, 9, 39}
    for (sampler, _, _), row in found.items():
        assert (row["error"] is None) == (sampler == "ddpm")
        assert row["sliced_w2"] > 0
        assert row["finite"]
    for spacing in ("trailing", "log-snr"):
        assert found["ddim", spacing, 5]["error"] > 2 * found["ddim", spacing, 40]["error"]
    assert "dpmpp-3m in 60 steps" in outcome.err
    rows = [line.split() for line in outcome.err.splitlines() if line.startswith("ddpm")]
    assert rows[0] == ["ddpm", "trailing", "-", "-", "-"]
    assert all(float(cell) > 0 for cell in rows[2][2:])


def test_the_same_command_gives_the_same_numbers(run: Run) -> None:
    command = ("compare", *QUICK, "--samplers", "dpmpp-2m", "--calls", 8, "--spacings", "log-snr", "--json")
    documents = [json.loads(ok(run(*command, *more)).out) for more in ((), ("--batch-size", 33))]
    (first,), (second,) = (document["results"] for document in documents)
    assert first["error"] == pytest.approx(second["error"], rel=1e-4)
    assert first["sliced_w2"] == pytest.approx(second["sliced_w2"], rel=1e-4)


def test_compare_a_run(run: Run, points_run: Path, tmp_path: Path) -> None:
    quick = ("--samplers", "ddim,dpmpp-2m", "--calls", "4,8", "-n", 50, "--reference", 20)
    outcome = ok(run("compare", points_run, *quick, "--weights", "ema", "--out", "x.svg"))
    assert outcome.out == "x.svg\n"
    assert "swiss-roll-mlp, step 30, ema-0.999 weights" in outcome.err
    assert (tmp_path / "x.svg").stat().st_size > 1000


def test_compare_images_and_a_class(run: Run, images_run: Path, labels_run: Path) -> None:
    quick = ("--samplers", "ddim", "--calls", "2,4", "-n", 4, "--reference", 6, "--spacings", "trailing")
    document = json.loads(ok(run("compare", images_run, *quick, "--json")).out)
    assert all(row["error"] > 0 and row["sliced_w2"] > 0 for row in document["results"])
    ok(run("compare", labels_run, *quick, "--label", 2))


def test_stochastic_samplers_alone(run: Run) -> None:
    outcome = ok(run("compare", *QUICK, "--samplers", "ddpm", "--calls", 5, "--spacings", "trailing", "--out", "x.png"))
    assert outcome.out == "x.png\n"


REFUSED = [
    (("--samplers", "ddim,nope"), "unknown sampler 'nope'"),
    (("--spacings", "trailng"), "unknown spacing 'trailng'; did you mean 'trailing'?"),
    (("--samplers", ","), "--samplers: must name at least one"),
    (("--calls", ","), "--calls: must name at least one"),
    (("--calls", "5,x"), "--calls: must be whole numbers joined by commas, such as 1,2,4 or 0..3, not '5,x'"),
    (("--calls", "0"), "--calls: must be greater than or equal to 1"),
    (("-n", 1), "--num-samples: must be greater than or equal to 2"),
    (("--label", "1"), "--label: gaussian-mixture-closed-form has no classes"),
    (("--out", "x.npy"), "--out: x.npy: cannot write .npy files"),
    (("--weights", "raw"), "--weights: an oracle has none"),
    (("runs/x",), "--oracle: give either an oracle or a run"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else None)
def test_wrong_usage_is_one_line(run: Run, tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    outcome = run("compare", *CLOSED, *arguments)
    assert outcome.code == 2
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("mine")
    outcome = run("compare", *QUICK, "--out", "x.png")
    assert "--out: x.png exists already" in outcome.error
    assert (tmp_path / "x.png").read_text() == "mine"


FAILING = """
from difftool import Sampler, hookimpl


class Odd(Sampler, name="odd"):
    def sample(self, denoise, x, levels, noise):
        yield x.shape[3]


@hookimpl
def difftool_samplers():
    return [Odd]
"""


@pytest.mark.usefixtures("plugin_manager")
def test_a_sampler_of_images_alone_is_left_out_of_points(run: Run, points_run: Path) -> None:
    Path("odd.py").write_text(FAILING)
    few = ("compare", points_run, "--plugin", "odd.py", "--calls", 2, "-n", 20, "--reference", 4)
    outcome = run(*few, "--json")
    assert outcome.code == 0, outcome.err
    assert "sampler odd failed: IndexError" in outcome.err
    assert "it is left out" in outcome.err
    outcome = run(*few, "--samplers", "odd")
    assert outcome.code == 1
    assert "sampler odd failed" in outcome.error


# The figure


@pytest.mark.parametrize("count", [1, 4, 14])
@pytest.mark.parametrize("grids", [1, 2, 4])
def test_the_figure_holds_any_number_of_samplers(count: int, grids: int) -> None:
    points = [Point(5, 0.1, 0.2), Point(10, None, 0.1), Point(20, math.nan, math.inf), Point(40, 1e-9, 0.05)]
    curves = {f"grid {g}": {f"sampler-{i}": points for i in range(count)} for g in range(grids)}
    figure = comparison_figure(curves, floor=0.04, title="a title")
    assert len(figure.axes) == 2 * grids
    assert len(figure.legends[0].get_texts()) == count + 1


def test_the_figure_leaves_out_what_there_is_not() -> None:
    curves = {"grid": {"a": [Point(5, None, 0.2)], "$x$": [Point(5, None, None)]}}
    figure = comparison_figure(curves, floor=None, title="")
    assert len(figure.axes) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "$x$"]
    assert comparison_figure({"grid": {"a": [Point(5, None, None)]}}, floor=None, title="x").axes == []
