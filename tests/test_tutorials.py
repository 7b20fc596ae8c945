"""The tutorials: each has a row in their list and an installed config, which holds the tables that its page shows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from conftest import Run

from difftool.runs.config import installed_configs
from difftool.runs.recipe import build_recipe

FOLDER = Path(__file__).parents[1] / "examples" / "tutorials"
TUTORIALS = sorted(path.parent for path in FOLDER.glob("*/README.md"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the examples are not beside the tests")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def each_tutorial() -> list[object]:
    return [pytest.param(path, id=path.name) for path in TUTORIALS]


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def config_of(folder: Path) -> Path:
    """The config that comes with difftool under the name of the tutorial."""
    return installed_configs()[folder.name.partition("-")[2]]


def test_the_list_names_every_tutorial() -> None:
    rows = re.findall(r"^\| \[(.+?)\]\((.+?)/README\.md\) \| .+ \| .+ \|$", text_of(FOLDER), re.MULTILINE)
    assert [name for name, _ in rows] == [target for _, target in rows] == [path.name for path in TUTORIALS]
    assert text_of(FOLDER).startswith(f"# Tutorials\n\n{NUMBERS[len(rows)].capitalize()} small models")


@pytest.mark.parametrize("folder", each_tutorial())
def test_configs_are_recipes(folder: Path) -> None:
    for path in (config_of(folder), *folder.glob("*.toml")):
        build_recipe(tomllib.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("folder", each_tutorial())
def test_the_page_shows_files_that_exist_and_lines_of_its_config(folder: Path) -> None:
    text = text_of(folder)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("http") or (folder / target).exists(), target
    pictures = {path.name for path in folder.iterdir() if path.suffix in (".png", ".gif")}
    assert pictures <= set(re.findall(r"\]\(([^)/]+)\)", text)), "a picture that the page does not show"
    config = tomllib.loads(config_of(folder).read_text(encoding="utf-8"))
    for block in re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for table, values in tomllib.loads(block).items():
            assert values.items() <= config[table].items(), f"[{table}] {values}"


@pytest.mark.slow
def test_latent_diffusion_trains_on_the_photographs(run: Run, tmp_path: Path) -> None:
    """With each codec of its page, in a few steps on a few small photographs."""
    import subprocess
    import sys

    script = FOLDER / "patches.py"
    subprocess.run([sys.executable, script, tmp_path / "photographs64", "-n", "12", "--size", "64"], check=True)
    config = ("train", "--config", "latent-diffusion", "--threads", 1, "--steps", 1)
    small = ("--backbone.dim", 8, "--backbone.groups", 4, "--batch-size", 4, "--preview-every", 0)
    for name, codec in {
        "pca": (),
        "patch": ("--codec", "patch", "--codec.size", 4),
        "none": ("--codec", "none"),
    }.items():
        outcome = run(*config, *small, *codec, "--out", name)
        assert outcome.code == 0, outcome.err
    outcome = run("sample", "pca", "-n", 1, "--steps", 1, "--out", "x.png")
    assert outcome.code == 0, outcome.err
