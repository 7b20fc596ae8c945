"""An option that takes one value is given once."""

from __future__ import annotations

from pathlib import Path

import pytest

from difftool.testing import invoke

REPEATED = {
    "setting": ("train", "--seed", 1, "--seed", 2),
    "setting, twice the same": ("train", "--lr", 0.1, "--lr", 0.1),
    "short and long": ("sample", "-n", 1, "--num-samples", 3),
    "class": ("sample", "--label", "cat", "--label", "dog"),
    "option of a component": ("train", "--dataset.n", 3, "--dataset.n", 4),
    "component": ("train", "--dataset", "swiss-roll", "--dataset", "nope"),
    "config file": ("train", "--config", "a.toml", "--config", "b.toml"),
    "device": ("noise", "--timesteps", 5, "--timesteps=6"),
}


@pytest.mark.parametrize("what", REPEATED)
def test_a_repeated_option_is_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that takes one value and is given twice is refused before anything is read."""
    monkeypatch.chdir(tmp_path)
    outcome = invoke(*REPEATED[what])
    assert outcome.code == 2
    assert "given 2 times, but it takes one value" in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_switch_is_not_both_on_and_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch that is given as on and as off is refused."""
    monkeypatch.chdir(tmp_path)
    outcome = invoke("train", "--compile", "--no-compile")
    assert (outcome.code, "--compile: give it as on or as off" in outcome.err) == (2, True)


def test_what_may_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that take several values, and flags without an opposite, may be repeated."""
    monkeypatch.chdir(tmp_path)
    assert invoke("inspect-schedule", "linear", "--json", "--json").code == 0
    assert invoke("train", "--dry-run", "--logger", "csv", "--logger", "none").code == 0
