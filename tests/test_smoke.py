"""A little of everything, through the installed program: `.ci/run` runs this file on the built wheel.

It needs pytest, hatchling and what difftool itself depends on, and neither the checkout nor the network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import POINTS
from environment import Environment
from PIL import Image

pytestmark = pytest.mark.slow

COMMANDS = [
    "train",
    "sample",
    "noise",
    "inspect-schedule",
    "compare",
    "evaluate",
    "runs",
    "info",
    "list",
    "plugins",
    "check",
    "new-plugin",
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment.make(tmp_path_factory.mktemp("smoke"))


@pytest.fixture(scope="module")
def trained(here: Environment) -> Path:
    """A run of a few steps."""
    assert here.check("difftool", "train", *POINTS, "--steps", 5, "--out", "run") == "run\n"
    return here.folder / "run"


def test_it_imports(here: Environment) -> None:
    here.check("python", "-c", "import difftool; [getattr(difftool, name) for name in difftool.__all__]")


def test_help_names_every_command(here: Environment) -> None:
    text = here.check("difftool", "--help")
    assert [name for name in COMMANDS if name not in text] == []
    for name in COMMANDS:
        assert "--help" in here.check("difftool", name, "--help")
    assert "--backbone.dim-mults" in here.check("difftool", "train", "--backbone", "unet", "--help")


def test_completion_knows_the_commands(here: Environment) -> None:
    words = {"_DIFFTOOL_COMPLETE": "complete_bash", "COMP_WORDS": "difftool tra", "COMP_CWORD": "1"}
    script = "import sys; from difftool.cli.main import main; sys.argv[0] = 'difftool'; main([])"
    assert here.run("python", "-c", script, **words).stdout.split() == ["train"]


def test_a_wrong_option_is_one_line(here: Environment) -> None:
    done = here.run("difftool", "train", "--stesp", 3)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("difftool: error: ")
    assert "did you mean --steps" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_noise_draws_a_picture(here: Environment) -> None:
    here.check("difftool", "noise", "--dataset.n", 50, "-n", 20, "--out", "noise.png")
    with Image.open(here.folder / "noise.png") as picture:
        assert min(picture.size) > 100


def test_a_run_goes_on_and_is_described(here: Environment, trained: Path) -> None:
    here.check("difftool", "train", "--resume", "run", "--steps", 8)
    assert json.loads(here.check("difftool", "info", "run", "--json"))["step"] == 8
    assert "run" in here.check("difftool", "runs", ".")


def test_samples_are_finite(here: Environment, trained: Path) -> None:
    outs = ("--out", "x.npy", "--out", "x.png", "--out", "x.gif")
    here.check("difftool", "sample", "run", "-n", 7, "--steps", 4, "--sampler", "dpmpp-2m", *outs)
    samples = np.load(here.folder / "x.npy")
    assert samples.shape == (7, 2)
    assert np.isfinite(samples).all()


def test_python_reads_what_the_program_wrote(here: Environment, trained: Path) -> None:
    here.check(
        *("python", "-c"),
        "import difftool; assert difftool.load('run').sample(3, steps=2, seed=1).shape == (3, 2)",
    )


def test_components_are_listed_and_no_plugin_was_set_aside(here: Environment) -> None:
    found = json.loads(here.check("difftool", "list", "--json"))
    assert {"swiss-roll", "image-folder"} <= set(found["datasets"])
    assert {"ddim", "ddpm"} <= set(found["samplers"])
    assert {"mlp", "unet"} <= set(found["backbones"])
    here.check("difftool", "plugins", "--strict")


def test_a_built_in_keeps_its_laws(here: Environment) -> None:
    assert json.loads(here.check("difftool", "check", "cosine", "--json"))["verdict"] == "passed"


def test_a_new_package_is_installed_and_used(here: Environment, trained: Path) -> None:
    here.check("difftool", "new-plugin", "smoke-spare", "--kind", "sampler")
    here.check("pip", "install", "./smoke-spare")
    here.check("difftool", "plugins", "--strict")
    here.check("difftool", "sample", "run", "-n", 3, "--steps", 2, "--sampler", "smoke-spare", "--out", "y.npy")
    assert np.load(here.folder / "y.npy").shape == (3, 2)


def test_the_program_lies_beside_its_interpreter(here: Environment) -> None:
    program = Path(sys.executable).with_name("difftool")
    done = subprocess.run([program, "--version"], cwd=here.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("difftool ")
