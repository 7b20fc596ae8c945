"""Jobs of limited time: a run that stops early enough, and goes on when the same command is given again."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import POINTS, Run

from difftool.cli import time_limit
from difftool.cli.time_limit import seconds_of
from difftool.errors import UsageError
from difftool.runs.folder import RunFolder
from difftool.training import saving

TIMES = ("elapsed", "steps_per_second", "waiting")
RUN = (*POINTS, "--threads", 1, "--steps", 600, "--checkpoint-every", 70, "--ema", "0.999,0.9")
"""A run with a row of metrics for every third step, and an average beside the model."""
AUTO = ("--out", "q", "--resume", "auto")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process begins at 0 seconds, each look at the clock takes one, of which a step has two, and saves take none."""
    looks: dict[str, Iterator[int]] = {}

    def started() -> float:
        looks["now"] = itertools.count()
        return 0.0

    monkeypatch.setattr(time_limit, "started", started)
    monkeypatch.setattr(time_limit, "now", lambda: float(next(looks.setdefault("now", itertools.count()))))
    monkeypatch.setattr(saving, "perf_counter", lambda: 0.0)


def rows(folder: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in RunFolder(Path(folder)).read_metrics()]


def same(folder: str, other: str) -> bool:
    """Return whether two runs ended alike, bit for bit."""
    names = ("model.safetensors", "averages/ema-0.9.safetensors")
    files = all(Path(folder, name).read_bytes() == Path(other, name).read_bytes() for name in names)
    return files and rows(folder) == rows(other)


@pytest.mark.usefixtures("clock")
def test_a_run_cut_by_time_limits_ends_like_one_that_ran_through(run: Run) -> None:
    assert run("train", *RUN, "--out", "through").code == 0
    steps = []
    while (outcome := run("train", *RUN, *AUTO, "--time-limit", "5m")).code == 75:
        found = re.fullmatch(
            r"difftool: stopped before the time limit of 5m after step (\d+) of 600; everything is saved; go on with: "
            r"difftool train --resume q --time-limit 5m",
            outcome.err.splitlines()[-1],
        )
        assert found, outcome.err
        assert outcome.out == ""
        steps.append(int(found[1]))
    assert (outcome.code, outcome.out) == (0, "q\n"), outcome.err
    assert steps == [148, 296, 444, 592]  # of 2 seconds, until a second and 1.5 steps are left
    assert same("q", "through")
    again = run("train", *RUN, *AUTO, "--time-limit", "5m")
    assert (again.code, again.out) == (0, "q\n")
    assert again.err == "q is complete (600 steps); pass --steps N to train further\n"


@pytest.mark.usefixtures("clock")
def test_the_end_of_a_slurm_job_is_a_limit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "100")
    outcome = run("train", *RUN, "--out", "q")
    assert outcome.code == 75, outcome.err
    assert re.search(
        r"^stops before the end of this SLURM job at [\d :-]+; --time-limit sets another time$", outcome.err, re.M
    )
    assert re.search(
        r"stopped before the end of this SLURM job at .* go on with: difftool train --resume q$", outcome.err
    )
    assert run("train", "--resume", "q", "--time-limit", "1d").code == 0
    monkeypatch.setenv("SLURM_JOB_END_TIME", "tomorrow")
    assert "SLURM" not in run("train", *RUN, "--steps", 1, "--out", "other").err


@pytest.mark.usefixtures("clock")
def test_a_limit_that_leaves_no_time_for_a_step_is_no_reason_to_try_again(run: Run) -> None:
    outcome = run("train", *RUN, *AUTO, "--time-limit", "1s")
    assert outcome.code == 1
    assert "the time limit of 1s leaves no time to train" in outcome.error


def test_auto_goes_on_with_the_settings_of_the_run_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(batch_size=32)
    monkeypatch.setattr("difftool.training.prepare.find_batch_size", lambda *_: found)
    Path("c.toml").write_text("[training]\nlr = 0.002\n")
    words = (*POINTS, *AUTO, "--config", "c.toml", "--batch-size", "auto", "--steps", 3)
    assert run("train", *words).code == 0
    first = Path("q/model.safetensors").read_bytes()
    Path("q/model.safetensors").unlink()  # as a kill leaves it, right after the last state
    again = run("train", *words)
    assert again.code == 0, again.err
    assert "resuming q" in again.err or "q is complete" in again.err
    assert Path("q/model.safetensors").read_bytes() == first
    outcome = run("train", *words, "--lr", 0.5)
    assert outcome.code == 1
    assert "--resume auto: the run in q began otherwise: --lr is 0.002 in the run, not 0.5; give" in outcome.error
    assert run("train", *words, "--steps", 5).code == 0
    assert json.loads(run("train", *words, "--json").out)["step"] == 5  # more than was asked for
    assert RunFolder(Path("q")).saved_states()[0].name == "step-000000005.safetensors"


def test_auto_begins_where_no_state_was_saved(run: Run) -> None:
    words = (*RUN, *AUTO, "--steps", 3)
    assert run("train", *words).code == 0
    for file in (*Path("q/state").iterdir(), Path("q/model.safetensors")):
        file.unlink()
    outcome = run("train", *words)
    assert outcome.code == 0
    assert "q has no training state yet; it starts at its first step" in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--resume", "auto"), "--resume auto: goes on with the run in the folder of --out; add --out DIR"),
        ((*AUTO, "--overwrite"), "--overwrite: --resume auto goes on with a run that is there"),
        (("--time-limit", "90"), "--time-limit: must be a time such as 20s, 90m, 7h30m or 1-12:00:00"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, words: tuple[str, ...], message: str) -> None:
    outcome = run("train", *RUN, *words)
    assert outcome.code == 2
    assert message in outcome.error
    assert not Path("q").exists()


def test_auto_leaves_a_folder_alone_that_is_no_run(run: Run) -> None:
    Path("q").mkdir()
    Path("q/mine.txt").write_text("x")
    outcome = run("train", *RUN, *AUTO)
    assert outcome.code == 1
    assert "--out: q is not empty" in outcome.error


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20s", 20),
        ("90m", 5400),
        ("7h30m", 27000),
        ("1d12h", 129600),
        ("1-12:00:00", 129600),
        ("00:20:05", 1205),
        ("36:00:00", 129600),
    ],
)
def test_a_time_has_units_or_is_a_clock(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["90", "0s", "7h30", "30m7h", "1.5h", "-5s", "12:00", "12:70:00", "1e3s", " 5s", "٣s"])
def test_any_other_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be a time such as"):
        seconds_of(text)
