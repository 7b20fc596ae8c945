"""`difftool sweep`: the commands it makes, what it skips and resumes, and how it goes on after a failure."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import Outcome, Run, invoke

from difftool.cli import sweep as command
from difftool.cli.variations import Variation, combinations, named_value, values_in
from difftool.errors import Stopped, UsageError
from difftool.runs.folder import RunFolder

TINY = tuple(
    word
    for text in (
        "dataset.n=300",
        "backbone.width=8",
        "backbone.depth=1",
        "batch-size=32",
        "preview-every=0",
        "threads=1",
        "steps=4",
        "checkpoint-every=2",
    )
    for word in ("--set", text)
)


# Variations


def test_values_are_words_or_ranges() -> None:
    assert values_in("0..3", "x") == ("0", "1", "2", "3")
    assert values_in("1e-4, 3e-4", "x") == ("1e-4", "3e-4")
    assert values_in("0,5..6", "x") == ("0", "5", "6")
    assert values_in("0.999,0.99;0.9", "x") == ("0.999,0.99", "0.9")


@pytest.mark.parametrize("text", ["", "1,,2", "3..1", "0..1000", "1e-3,0.001"])
def test_wrong_values_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--vary lr: "):
        values_in(text, "--vary lr")


def test_every_combination_is_a_run_named_by_what_varies() -> None:
    vary = [Variation.read(text, "--vary") for text in ("lr=1e-4,3e-4", "backbone.width=64,128")]
    found = combinations(vary, [Variation.read("ema=0.9,0.99", "--set", several=False)])
    assert [one.name for one in found] == [f"lr-{lr}-width-{w}" for lr in ("0.0001", "0.0003") for w in (64, 128)]
    assert found[1].words == ("--ema", "0.9,0.99", "--lr", "1e-4", "--backbone.width", "128")


def test_names_keep_apart_what_ends_alike() -> None:
    vary = [Variation.read(text, "--vary") for text in ("backbone.dim=1,2", "codec.dim=3")]
    assert combinations(vary)[0].name == "backbone.dim-1-codec.dim-3"


def test_switches_and_negative_numbers() -> None:
    assert Variation.read("stratified=on", "").words("on") == ["--stratified"]
    assert Variation.read("schedule.rescale=off", "").words("off") == ["--schedule.no-rescale"]
    assert Variation.read("schedule.start=-3", "").words("-3") == ["--schedule.start=-3"]


@pytest.mark.parametrize(
    ("value", "name"), [("1e-4", "0.0001"), ("64", "64"), ("a/b c", "a-b-c"), ("..", ".."), ("///", "x")]
)
def test_values_in_names(value: str, name: str) -> None:
    assert named_value(value) == name


REFUSED = [
    ((), "--vary: name what differs"),
    (("--vary", "lr"), "--vary: must be OPTION=VALUES, such as lr=1e-4,3e-4 or seed=0..2, not 'lr'"),
    (("--vary", "lr=1e-4,x"), "lr-x: --lr: must be a number, not 'x'"),
    (("--vary", "backbone.wdth=1,2"), "there is no option --backbone.wdth; did you mean --backbone.width"),
    (("--vary", "backbone=mlp,unt"), "backbone-unt: unknown backbone 'unt'; did you mean 'unet'?"),
    (("--vary", "lr=0,1"), "lr-0: --lr: must be greater than 0, not 0"),
    (("--vary", "seed=0,1", "--set", "seed=3"), "--vary: seed is given twice"),
    (("--vary", "out=a,b"), "--vary: --out belongs to the sweep itself"),
    (("--vary", "seed=0..999", "--vary", "lr=1,2"), "--vary: makes 2,000 runs, more than 1,000"),
    (("nope", "--vary", "seed=0,1"), "seed-0: config file nope does not exist"),
    (("--vary", "seed=0,1", "--set", "steps"), "--set: must be OPTION=VALUE"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else None)
def test_wrong_usage_is_one_line_before_anything_is_trained(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = run("sweep", *arguments)
    assert outcome.code == 2
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == []


# Commands


def test_printed_commands_are_those_of_a_queue(run: Run, tmp_path: Path) -> None:
    outcome = run("sweep", "swiss-roll", "--vary", "seed=0..1", "--vary", "schedule=linear,cosine", "--print")
    assert outcome.code == 0, outcome.err
    start = "difftool train --config swiss-roll"
    assert outcome.lines == [
        f"{start} --seed {seed} --schedule {name} --out runs/sweep/seed-{seed}-schedule-{name}"
        for seed in (0, 1)
        for name in ("linear", "cosine")
    ]
    quoted = run("sweep", "--vary", "seed=0", "--out", "my runs", "--print", "--json")
    assert json.loads(quoted.out) == {"commands": ["difftool train --seed 0 --out 'my runs/seed-0'"]}
    assert list(tmp_path.iterdir()) == []


# Runs

SWEEP = ("sweep", *TINY, "--vary", "lr=1e-3,3e-3", "--vary", "seed=0..1", "--out", "s")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a sweep train its runs in this process, and list them."""
    trained: list[str] = []

    def call(words: Sequence[str]) -> int:
        trained.append(shlex.join(words))
        return invoke(*words).code

    monkeypatch.setattr(command, "call", call)
    return trained


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def test_a_sweep_trains_all_runs_and_skips_them_later(run: Run, here: list[str]) -> None:
    document = json.loads(ok(run(*SWEEP, "--json")).out)
    names = [f"s/lr-{lr}-seed-{seed}" for lr in ("0.001", "0.003") for seed in (0, 1)]
    assert [row["run"] for row in document["runs"]] == names
    assert all(row["status"] == "finished" and row["failed"] is None for row in document["runs"])
    assert document["runs"][1]["differs"] == {"lr": 0.001, "seed": 1}
    assert len(here) == 4
    again = ok(run(*SWEEP))
    assert len(here) == 4
    assert "4 of 4 runs are finished already" in again.err
    assert [line.split()[0] for line in again.lines] == ["run", *names]


def test_half_done_runs_are_resumed_and_longer_ones_extended(run: Run, here: list[str]) -> None:
    ok(run("train", *_options(TINY), "--seed", 0, "--steps", 2, "--out", "s/seed-0"))
    config = Path("s/seed-0/config.toml")
    config.write_text(config.read_text().replace("steps = 2", "steps = 4"))  # as one that was killed after step 2
    sweep = ("sweep", *TINY, "--vary", "seed=0..1", "--out", "s")
    printed = ok(run(*sweep, "--print")).lines
    assert printed[0] == "difftool train --resume s/seed-0"
    assert printed[1].endswith("--seed 1 --out s/seed-1")
    ok(run(*sweep))
    assert here[0] == "train --resume s/seed-0"
    longer = [word if word != "steps=4" else "steps=6" for word in sweep]
    assert ok(run(*longer, "--print")).lines == [f"difftool train --resume s/seed-{i} --steps 6" for i in (0, 1)]
    shorter = [word if word != "steps=4" else "steps=3" for word in sweep]
    assert "seed-0: it has made 4 steps already, more than 3" in run(*shorter).error


def _options(settings: Sequence[str]) -> list[str]:
    pairs = [text.split("=") for text in settings if text != "--set"]
    return [word for name, value in pairs for word in (f"--{name}", value)]


def test_runs_of_other_settings_are_left_alone(run: Run, here: list[str]) -> None:
    ok(run("sweep", *TINY, "--vary", "seed=0", "--out", "s"))
    before = RunFolder(Path("s/seed-0")).model.read_bytes()
    outcome = run("sweep", *TINY, "--set", "clip=1", "--vary", "seed=0..1", "--out", "s")
    assert outcome.code == 1
    assert (
        "s/seed-0 is a run of other settings (--clip is 0.0 in the run, not 1.0); give another --out" in outcome.error
    )
    assert len(here) == 1
    assert RunFolder(Path("s/seed-0")).model.read_bytes() == before


def test_a_run_that_another_process_trains_is_left_to_it(run: Run, here: list[str]) -> None:
    ok(run("sweep", *TINY, "--vary", "seed=0", "--out", "s"))
    with RunFolder(Path("s/seed-0")).lock():
        outcome = ok(run("sweep", *TINY, "--vary", "seed=0..1", "--out", "s"))
    assert "s/seed-0 is being trained by another process" in outcome.err
    assert len(here) == 2


FAILING = """
from difftool import Loss, hookimpl


class Bad(Loss, name="bad"):
    def loss(self, predict, batch, auxiliary):
        raise RuntimeError("oops")


@hookimpl
def difftool_losses():
    return [Bad]
"""


@pytest.mark.usefixtures("plugin_manager")
def test_a_failing_run_is_noted_and_the_others_go_on(run: Run, here: list[str]) -> None:
    Path("bad.py").write_text(FAILING)
    outcome = run("sweep", "--plugin", "bad.py", *TINY, "--vary", "loss=bad,mse", "--out", "s")
    assert outcome.code == 1
    assert "s/loss-bad failed (exit code 1); the others go on" in outcome.err
    assert "1 of 2 runs failed: loss-bad (exit code 1); try again with: difftool --plugin" in outcome.errors[-1]
    assert [line.split()[0] for line in outcome.lines] == ["run", "s/loss-bad", "s/loss-mse"]
    assert RunFolder(Path("s/loss-mse")).status().status == "finished"
    assert all(words.startswith(f"--plugin {Path('bad.py').absolute()} train ") for words in here)


def test_a_signal_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(words: Sequence[str]) -> int:
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(command, "call", stopped)
    outcome = run("sweep", *TINY, "--vary", "seed=0..2", "--out", "a b")
    assert outcome.code == 130
    assert "stopped by SIGINT; 0 of 3 runs finished; go on with: difftool sweep --vary seed=0..2" in outcome.err
    assert "--out 'a b'" in outcome.err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_a_signal_lets_the_run_save_first(tmp_path: Path) -> None:
    endless = [word if word != "steps=4" else "steps=1000000" for word in TINY]
    words = ["sweep", *endless, "--vary", "seed=0..1", "--out", "s"]
    process = subprocess.Popen(
        [sys.executable, "-m", "difftool", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    metrics, patience = tmp_path / "s" / "seed-0" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < patience:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # to this process alone, as some queues do
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; 0 of 2 runs finished; go on with: difftool sweep" in err
    folder = RunFolder(tmp_path / "s" / "seed-0")
    assert folder.saved_states()
    assert not folder.in_use_by
    assert not (tmp_path / "s" / "seed-1").exists()
