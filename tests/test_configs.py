"""Configs that come with difftool: found by name, listed, and those of the tutorials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Run

from difftool.runs.config import installed_configs

TUTORIALS = Path(__file__).parents[1] / "examples" / "tutorials"
TINY = ("--epochs", 1, "--dataset.n", 64, "--out", "x")


def test_a_config_is_trained_by_its_name(run: Run, tmp_path: Path) -> None:
    assert run("train", "--config", "swiss-roll", *TINY).code == 0
    assert "timesteps = 50" in (tmp_path / "x" / "config.toml").read_text()


def test_a_file_goes_before_a_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "swiss-roll").write_text("[training]\ntimesteps = 7\n")
    assert run("train", "--config", "swiss-roll", *TINY).code == 0
    assert "timesteps = 7" in (tmp_path / "x" / "config.toml").read_text()


def test_unknown_names_are_refused(run: Run) -> None:
    outcome = run("train", "--config", "swis-roll")
    assert outcome.code == 2
    assert "config file swis-roll does not exist, nor a config of this name; did you mean 'swiss-roll'?" in outcome.err
    assert "config file swis-roll.toml does not exist" in run("train", "--config", "swis-roll.toml").err


def test_the_list_names_each_config(run: Run) -> None:
    outcome = run("list", "configs", "--json")
    assert outcome.code == 0
    listed = json.loads(outcome.out)["configs"]
    assert list(listed) == list(installed_configs())
    assert all(summary.endswith(".") for summary in listed.values())
    assert "swiss-roll" in run("list", "configs").out


@pytest.mark.skipif(not TUTORIALS.is_dir(), reason="the examples are not beside the tests")
def test_there_is_a_config_for_each_tutorial() -> None:
    assert set(installed_configs()) == {path.parent.name.partition("-")[2] for path in TUTORIALS.glob("*/README.md")}
