"""`difftool runs`: what differs, order, filters, CSV, curves; and the end of metrics.jsonl that it reads."""

from __future__ import annotations

import csv
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, Run
from PIL import Image

from difftool.cli.run_table import csv_text, size_text
from difftool.cli.run_values import Filter
from difftool.errors import UsageError
from difftool.figures.losses import Curve, losses_figure
from difftool.runs.config import read_toml
from difftool.runs.folder import RunFolder
from difftool.runs.losses import losses
from difftool.runs.summary import differing, options_in, short_names
from difftool.runs.tail import BLOCK, ROWS, read_tail

CONFIG = """
[run]
started = "2026-01-0{day}T00:00:00.000+00:00"
steps = 10

[dataset]
name = "swiss-roll"

[schedule]
name = "{schedule}"

[backbone]
name = "mlp"
width = {width}

[prediction]
name = "{prediction}"

[training]
lr = {lr}
seed = {seed}
held_out = 5
threads = {day}
"""


def write_run(folder: Path, rows: int = 10, loss: float = 1.0, **values: Any) -> RunFolder:
    """Write the files of a run that a list reads."""
    folder.mkdir(parents=True)
    known = {"day": 1, "schedule": "linear", "width": 64, "prediction": "eps", "lr": 0.001, "seed": 0}
    (folder / "config.toml").write_text(CONFIG.format(**{**known, **values}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row(step, loss)) + "\n" for step in range(1, rows + 1)))
    return RunFolder(folder)


def row(step: int, loss: float) -> dict[str, Any]:
    found = {"step": step, "elapsed": step / 2, "loss": loss + 1 / step, "eps_loss": loss / step, "lr": 1e-3}
    return {**found, "loss_quartiles": [1.0, None, 0.5, 0.25], **({"held_out_loss": loss} if step % 5 == 0 else {})}


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def listed(outcome: Outcome) -> list[str]:
    """The names of the runs in a table."""
    return [line.split()[0].rpartition("/")[2] for line in ok(outcome).lines[1:]]


@pytest.fixture
def three(run: Run) -> Run:
    write_run(Path("runs/a"), loss=0.5, seed=0, day=1)
    write_run(Path("runs/b"), loss=0.2, seed=1, day=2, lr=3e-4)
    write_run(Path("runs/c"), loss=0.9, seed=2, day=3, rows=4)
    return run


# The end of the metrics


@pytest.mark.parametrize("rows", [0, 1, 3, ROWS, ROWS + 1, 5 * ROWS])
def test_the_tail_says_what_all_rows_say(tmp_path: Path, rows: int) -> None:
    run = write_run(tmp_path / "r", rows=rows)
    tail, everything = read_tail(run.metrics, held_out=True), run.read_metrics()
    for name, value in losses(everything).items():
        left_out = 2 * 0.9**ROWS  # all that the rows before could weigh
        assert tail.losses[name] == (value if value is None else pytest.approx(value, rel=1e-12, abs=left_out))
    assert tail.last == (everything[-1] if everything else None)


def test_rows_as_written_and_others_say_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", rows=9)
    tail, text = read_tail(run.metrics, held_out=True), run.metrics.read_text()
    run.metrics.write_text(text.replace('"eps_loss": ', '"eps_loss":'))
    assert read_tail(run.metrics, held_out=True) == tail
    for wrong in ("1e999", "1e305", "NaN"):
        run.metrics.write_text(text.replace('"loss": 1.5', f'"loss": {wrong}'))
        found, expected = read_tail(run.metrics, held_out=True).losses, losses(run.read_metrics())
        assert found == expected != tail.losses


# Configs, whose lines are parsed once


@pytest.mark.parametrize(
    "text",
    [
        CONFIG.format(day=1, schedule="a", width=1, prediction="b", lr=1e-3, seed=0),
        "a = 1\n[b]\nc = [\n    1,\n    2,\n]\nd = {}\n",
        "a = [[1], [2]]\n[b.c]\nd.e = 1\n[[f]]\n[[f]]\ng = 'x' # [y]\n",
        'a = """\n[b]\nc = 1\n"""\n',
        "a = '''\n[b]\n'''\n",
        "a = [\n1, # b = 2\n]\n  b = 2\n\r\n[c]\r\nd = 1\r\n",
        "a = 1979-05-27\n\"b c\" = true\n'd' = 1e3\n[ e ]\n",
        *("a = 1\na = 2\n", "[a]\n[a]\n", "a = 1\n[a]\n", "[a]\nb = 1\nb = 2", "a = [\n1,\n", "a = 1 b = 2", "]"),
        *("a.b = 1\n[a]\n", "a = {\nb = 1 }", "a = 1 \r b = 2", "[a]]", "= 1", "a = [1,\n 2]\n ]"),
    ],
)
def test_a_config_says_what_its_toml_says(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text, newline="")
    try:
        expected = tomllib.loads(text)
    except ValueError:
        with pytest.raises(UsageError, match="is not valid TOML"):
            read_toml(file)
    else:
        assert read_toml(file) == read_toml(file) == expected


def test_configs_share_no_values(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[a]\nb = [\n    1,\n]\n")
    read_toml(file)["a"]["b"].append(2)
    assert read_toml(file) == {"a": {"b": [1]}}


def test_a_held_out_loss_is_found_however_far_back(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", rows=7)
    without = "".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(8, 15000))
    with open(run.metrics, "a") as file:
        file.write(without)
    assert len(without) > 3 * BLOCK
    assert read_tail(run.metrics, held_out=True).losses["held_out_loss"] == 1.0
    assert read_tail(run.metrics).losses["held_out_loss"] is None


@pytest.mark.parametrize(
    "end", ['{"step": 11, "loss": 0.', "x" * (BLOCK + 9), '{"loss": 3}\n', '{"step": 11, "loss": 1e999}\n', "[]\n"]
)
def test_what_is_no_row_counts_for_nothing(tmp_path: Path, end: str) -> None:
    run = write_run(tmp_path / "r")
    before = read_tail(run.metrics, held_out=True)
    with open(run.metrics, "a") as file:
        file.write(end)
    assert read_tail(run.metrics, held_out=True) == before


# What differs


def test_only_options_that_differ_are_shown() -> None:
    a = {"schedule": "linear", "lr": 0.1, "seed": 0, "threads": 1, "backbone": "mlp", "backbone.width": 8}
    assert differing([a, {**a, "seed": 1, "threads": 2}]) == ["seed"]
    assert differing([a, {**a, "lr": 0.2, "schedule": "cosine"}]) == ["schedule", "lr"]
    # the options of two components are not compared, those of one are
    unet = {**a, "backbone": "unet", "backbone.dim": 4}
    del unet["backbone.width"]
    assert differing([a, unet]) == ["backbone"]
    assert differing([a, {**a, "backbone.width": 9}, unet]) == ["backbone", "backbone.width"]
    assert differing([a, {}]) == []


def test_names_are_short_where_nothing_else_is_called_so() -> None:
    assert short_names(["lr", "backbone.width"]) == {"lr": "lr", "backbone.width": "width"}
    assert short_names(["backbone.dim", "codec.dim"]) == {"backbone.dim": "backbone.dim", "codec.dim": "codec.dim"}
    assert short_names(["loss"], ["loss"]) == {"loss": "loss"}
    assert short_names(["x.loss"], ["loss"]) == {"x.loss": "x.loss"}


def test_a_list_says_what_differs(three: Run) -> None:
    outcome = ok(three("runs"))
    assert outcome.lines[0].split() == [
        "run",
        "started",
        "status",
        "step",
        "loss",
        "eps",
        "loss",
        "held",
        "out",
        "time",
        "size",
        "lr",
        "seed",
    ]
    assert "all: swiss-roll / linear / mlp / eps" in outcome.err
    assert [line.split()[-2:] for line in outcome.lines[1:]] == [["0.001", "2"], ["0.0003", "1"], ["0.001", "0"]]
    document = json.loads(three("runs", "--json").out)["runs"]
    assert [facts["differs"] for facts in document][1] == {"lr": 0.0003, "seed": 1}
    assert document[1]["seconds"] == 5.0
    assert document[1]["bytes"] == sum(path.stat().st_size for path in Path("runs/b").iterdir())


@pytest.mark.parametrize("width", ["40", "60", "80"])
def test_a_narrow_terminal_joins_and_leaves_out(three: Run, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    outcome = ok(three("runs"))
    assert all(len(line) <= int(width) for line in outcome.lines)
    assert "…" not in outcome.out
    if width == "60":
        assert "lr 0.0003, seed 1" in outcome.out
        assert "no room for size" in outcome.err


# Order and filters


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ((), "cba"),
        (("--sort", "loss"), "bac"),
        (("--sort", "-loss"), "cab"),
        (("--sort", "loss", "--reverse"), "cab"),
        (("--sort", "started"), "abc"),
        (("--sort", "step"), "cba"),
        (("--sort", "held-out"), "bac"),  # c has none
        (("--sort", "-held-out"), "abc"),
        (("--sort", "--seed"), "abc"),
        (("--sort", "lr"), "bca"),
        (("--filter", "lr<1e-3"), "b"),
        (("--filter", "lr=1e-3"), "ca"),
        (("--filter", "seed!=1", "--filter", "loss<=1.2"), "a"),
        (("--filter", "held-out<9"), "ba"),
        (("--filter", "backbone=mlp"), "cba"),
        (("--filter", "width=64"), "cba"),
        (("--filter", "started>2026-01-02"), "cb"),
        (("--filter", "status=finished"), ""),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else words,
)
def test_sorted_and_filtered(three: Run, words: tuple[str, ...], names: str) -> None:
    found = listed(three("runs", *words)) if names else ok(three("runs", *words)).lines
    assert found == [*names]


def test_runs_by_name(three: Run) -> None:
    assert listed(three("runs", "runs/a", "runs/c")) == ["c", "a"]
    assert listed(three("runs", "runs", "runs/a")) == ["c", "b", "a"]


@pytest.mark.parametrize("text", ["lr", "=3", "lr=", "lr~3", "lr<x", "a b=3", ""])
def test_a_malformed_filter_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--filter: "):
        Filter.read(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--filter", "lrr=3"), "--filter: no run has a value called 'lrr'; did you mean 'lr'?"),
        (("--sort", "los"), "--sort: no run has a value called 'los'; did you mean 'loss'?"),
        (("--filter", "lr"), "--filter: must be NAME=VALUE, or with !=, <, <=, > or >=, such as 'lr<1e-3', not 'lr'"),
        (("--csv", "x.txt"), "--csv: x.txt: cannot write .txt files"),
        (("--plot", "x.npy"), "--plot: x.npy: cannot write .npy files"),
        (("--plot", "x.png", "--filter", "seed=9"), "--plot: draws from 1 to 24 runs, not 0"),
    ],
)
def test_wrong_usage(three: Run, words: tuple[str, ...], message: str) -> None:
    outcome = three("runs", *words)
    assert outcome.code == 2
    assert message in outcome.error
    assert [path.name for path in Path().iterdir()] == ["runs"]


# Evaluations


def test_the_best_evaluation_is_listed(three: Run) -> None:
    def evaluation(step: int, **values: float) -> str:
        better = {"kid": "lower", "recall": "higher"}
        scores = [{"metric": n, "name": n, "value": v, "n": 9, "better": better[n]} for n, v in values.items()]
        return json.dumps({"step": step, "scores": scores}) + "\n"

    lines = [evaluation(1, kid=0.3, recall=0.5), "half a li\n", evaluation(2, kid=0.1, recall=0.4)]
    Path("runs/a/evaluations.jsonl").write_text("".join(lines))
    Path("runs/b/evaluations.jsonl").write_text(evaluation(1, kid=0.2))
    found = {facts["run"]: facts["scores"] for facts in json.loads(three("runs", "--json").out)["runs"]}
    assert found == {"runs/a": {"kid": 0.1, "recall": 0.5}, "runs/b": {"kid": 0.2}, "runs/c": {}}
    assert listed(three("runs", "--sort", "kid")) == ["a", "b", "c"]
    assert listed(three("runs", "--filter", "kid<0.15")) == ["a"]
    assert "kid" in three("runs").lines[0]


# CSV


def test_csv_holds_whole_numbers(three: Run) -> None:
    assert ok(three("runs", "--csv", "x.csv", "--sort", "seed")).lines == ["x.csv"]
    with open("x.csv", newline="") as file:
        found = [*csv.DictReader(file)]
    assert [facts["run"] for facts in found] == ["runs/a", "runs/b", "runs/c"]
    assert float(found[1]["loss"]) == json.loads(three("runs", "runs/b", "--json").out)["runs"][0]["loss"]
    assert (found[1]["lr"], found[1]["seed"], found[2]["held-out"]) == ("0.0003", "1", "")
    assert "exists already" in three("runs", "--csv", "x.csv").error
    ok(three("runs", "--csv", "x.csv", "--overwrite"))


def test_a_spreadsheet_computes_nothing() -> None:
    rows = [{"a": '=cmd|"x"', "b": -1.5}, {"a": "+1", "b": None}, {"a": "@x", "b": "plain"}]
    assert csv_text(["a", "b"], rows) == 'a,b\n"\'=cmd|""x""",-1.5\n\'+1,\n\'@x,plain\n'


def test_hostile_configs_stay_text(three: Run) -> None:
    config = Path("runs/a/config.toml")
    text = r'"\u001b[31m[red]=1+1[/]\n"'
    config.write_text(config.read_text().replace('"linear"', text) + f"\n[loss]\nname = {text}\n{text} = 3\n")
    for words in (("runs",), ("runs", "--csv", "x.csv"), ("runs", "--plot", "x.png"), ("runs", "--sort", "schedule")):
        outcome = ok(three(*words, "--overwrite"))
        assert "\x1b" not in outcome.out + outcome.err
    assert r"\x1b[31m[red]=1+1[/]\n" in three("runs").out
    assert "\x1b" not in Path("x.csv").read_text()


def test_options_of_anything() -> None:
    assert options_in({"training": 3, "dataset": {"name": ["x"], "n": {"a": 1}}, "other": {"x": 1}}) == {
        "dataset": "x",
        "dataset.n": "{'a': 1}",
    }


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (2048, "2 KiB"), (5 * 2**30, "5 GiB")])
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


# Curves


def test_losses_over_each_other(three: Run) -> None:
    assert ok(three("runs", "--plot", "x.png")).lines == ["x.png"]
    with Image.open("x.png") as picture:
        assert picture.width == 1120
    for i in range(30):
        shutil.copytree("runs/a", f"many/{i}")
    assert "--plot: draws from 1 to 24 runs, not 30" in three("runs", "many", "--plot", "y.png").error


def test_losses_in_other_units_are_not_compared(run: Run) -> None:
    write_run(Path("runs/a"), prediction="eps")
    write_run(Path("runs/b"), prediction="v")
    outcome = ok(run("runs", "--plot", "x.svg"))
    assert "differ in prediction, so their losses cannot be compared: drawing the error of eps" in outcome.err
    assert "error of eps" not in ok(run("runs", "runs/a", "--plot", "y.svg")).err


def test_curves_have_a_name_each() -> None:
    steps, values = [1, 2, 3], [3.0, 2.0, 1.0]
    curves = [Curve(f"run {i}", steps, values, [None, 2.5, 1.5] if i else ()) for i in range(9)]
    figure = losses_figure(curves, title="$x$", label="loss")
    (axes,) = figure.axes
    assert len(axes.lines) == 9 + 8
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*(c.name for c in curves), "held out"]
    assert len({str(line.get_color()) for line in axes.lines}) == 9
    empty = losses_figure([Curve("a", [], [])], title="")
    assert empty.axes[0].texts[0].get_text() == "no step has been recorded yet"
