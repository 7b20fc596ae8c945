"""The benchmarks run, and their figures hold together. How fast anything is, no test says."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not beside the tests")


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks` is no part of what is installed."""
    monkeypatch.syspath_prepend(ROOT)


def benchmarks(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a quick run of the two lightest prints, and the figures that it writes."""
    file = tmp_path_factory.mktemp("benchmarks") / "figures.json"
    done = benchmarks("walk", "startup", "--quick", "--json", file)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def tables(figures: dict[str, Any]) -> list[dict[str, Any]]:
    return [table for found in figures["benchmarks"].values() for table in found["tables"]]


@pytest.mark.slow
def test_figures_say_what_they_depend_on(quick: tuple[str, dict[str, Any]]) -> None:
    _, figures = quick
    assert figures["format"] == 1
    assert list(figures["benchmarks"]) == ["walk", "startup"]
    for found in figures["benchmarks"].values():
        assert found["quick"] is True
        assert found["circumstances"]["cores"] >= 1
        assert {"difftool", "torch"} <= set(found["circumstances"]["versions"])


@pytest.mark.slow
def test_contenders_of_ours_are_there_whatever_is_installed(quick: tuple[str, dict[str, Any]]) -> None:
    walk, startup = (figures["tables"][0]["values"] for figures in quick[1]["benchmarks"].values())
    assert {"difftool ddim", "difftool dpmpp-2m", "difftool ddpm"} <= set(walk)
    assert {"difftool --help", "a bare Typer app's --help"} <= set(startup)


@pytest.mark.slow
def test_ratios_are_those_of_the_times_round_by_round(quick: tuple[str, dict[str, Any]]) -> None:
    compared = 0
    for table in tables(quick[1]):
        for name, values in table["values"].items():
            assert table["medians"][name] == pytest.approx(statistics.median(values))
        for row in table["comparisons"]:
            own = table["values"][row["contender"]]
            if row["reference"] is None:
                assert row["median"] == pytest.approx(statistics.median(own))
            else:
                pairs = [a / b for a, b in zip(own, table["values"][row["reference"]], strict=True)]
                assert row["median"] == pytest.approx(statistics.median(pairs))
                compared += 1
            assert row["low"] <= row["median"] <= row["high"]
            if row["goal"] is not None:  # both tables hold costs
                assert row["goal"]["met"] == (row["median"] <= row["goal"]["bound"])
    assert compared


@pytest.mark.slow
def test_every_contender_has_its_row(quick: tuple[str, dict[str, Any]]) -> None:
    printed, figures = quick
    for table in tables(figures):
        for name in table["values"]:
            assert f"| {name} | " in printed


def test_speeds_are_the_reference_over_the_contender() -> None:
    from benchmarks.findings import Comparison, Table, at_least

    times = {"slow": [2.0, 4.0, 8.0], "fast": [1.0, 1.0, 2.0]}
    rows = [Comparison("fast", "slow", at_least(4.0)), Comparison("absent", "slow")]
    (row,) = Table("A step", "ms a step", times, rows, kind="speed").document()["comparisons"]
    assert row["median"] == 4.0
    assert row["goal"] == {"text": "≥ 4.00", "bound": 4.0, "met": True}


def test_what_is_not_installed_is_left_out_with_a_line() -> None:
    from benchmarks.measuring import Contest, repeated

    entries = Contest()
    entries.add("there", lambda: repeated(lambda: None))
    entries.add("not there", lambda: repeated(lambda: None), needs=("no_such_module",))
    entries.add("neither", lambda: repeated(lambda: None), programs=("no-such-program",))
    measured = entries.run(warmup=1, steps=2, rounds=3)
    assert list(measured.times) == ["there"]
    assert len(measured.times["there"]) == 3
    assert entries.notes == [
        "Left out: not there; no_such_module not installed.",
        "Left out: neither; no-such-program not installed.",
    ]


def test_contenders_take_turns_and_change_the_order() -> None:
    from benchmarks.measuring import interleaved, repeated

    turns: list[str] = []
    contenders = {name: repeated(lambda name=name: turns.append(name)) for name in "ab"}  # type: ignore[misc]
    interleaved(contenders, steps=1, rounds=2, ahead=1)
    assert turns == [*"aabb", *"bbaa"]


def test_the_page_is_written_between_its_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One benchmark after another: the second leaves the first as it is, and what is written by hand stays."""
    from benchmarks import page

    (tmp_path / "images").mkdir()
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(page, "FIGURES", tmp_path / "performance.json")
    monkeypatch.setattr(page, "PICTURE", tmp_path / "images" / "performance.png")
    page.PAGE.write_text(f"# By hand\n\n{page.BEGIN}old\n{page.END}\n\nAfter.\n")
    page.update({"startup": found("Startup")})
    page.update({"walk": found("Walk", sizes={"mine": 1.0, "theirs": 10.0})})
    text = page.PAGE.read_text()
    assert text.startswith("# By hand\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert text.index("### Walk (`walk`)") < text.index("### Startup (`startup`)")  # in the order of the suite
    assert "| theirs | 3.00 | 3.00 [3.00, 3.00] | mine | ≤ 2.00: not met |" in text
    assert page.PICTURE.stat().st_size > 0


def found(title: str, **sizes: dict[str, float]) -> dict[str, Any]:
    """Findings as they are written."""
    from benchmarks.findings import Comparison, Findings, Table, at_most
    from benchmarks.machine import circumstances

    rows = [Comparison("theirs", "mine", at_most(2.0))]
    findings = Findings([Table("A step", "s", {"mine": [1.0, 1.0], "theirs": [3.0, 3.0]}, rows, **sizes)])
    return {"title": title, "about": "", "quick": True, "circumstances": circumstances(), **findings.document()}


@pytest.mark.parametrize("arguments", [("no-such",), ("--docs", "--quick")])
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    done = benchmarks(*arguments)
    assert done.returncode == 2
    assert "error:" in done.stderr
