"""Packages of strangers, installed into an environment of their own: examples, and what new-plugin writes."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import POINTS, Make, invoke
from environment import Environment

from difftool.components import KINDS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "plugins"
SOUND = {
    "difftool-digits": 1,
    "difftool-gradient-estimation": 1,
    "difftool-dit": 1,
    "difftool-consistency": 2,
    "difftool-lora": 2,
    "difftool-reflow": 3,
    "difftool-inverse": 1,
}
"""The packages, and the number of their components."""
PACKAGES = (*SOUND, *(f"demo-{kind}" for kind in KINDS))
REQUIRE = ("difftool-inverse",)
"""The packages whose components all have an option that must be given, so that their own tests alone can check them."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not beside the tests"),
]


def copied(package: Path, folder: Path) -> Path:
    """A package folder, copied so that building leaves nothing in it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*_cache")
    return Path(shutil.copytree(package, folder / package.name, ignore=ignored))


def install(folder: Path) -> None:
    """Create an environment with the example packages that are sound, and one of each kind that `new-plugin` writes."""
    environment = Environment.make(folder)
    for name in SOUND:
        copied(EXAMPLES / name, environment.folder)
    with contextlib.chdir(environment.folder):
        for kind in KINDS:
            assert invoke("new-plugin", f"demo-{kind}", "--kind", kind).code == 0
    environment.install(*(environment.folder / name for name in PACKAGES))


@pytest.fixture(scope="module")
def here(once: Callable[[str, Make], Path]) -> Environment:
    pytest.importorskip("hatchling")
    return Environment.of(once("packages", install))


@contextlib.contextmanager
def forks_of(environment: Environment) -> Iterator[Environment]:
    """The same environment, but without importing torch for each run of Python, so it cannot say who imports torch."""
    forks = replace(environment, forks=[])
    with forks.forking():
        yield forks


@pytest.fixture(scope="module")
def forking(here: Environment) -> Iterator[Environment]:
    with forks_of(here) as forks:
        yield forks


@pytest.mark.parametrize("packages", [PACKAGES[i::9] for i in range(9)], ids=lambda packages: packages[0])
def test_packages_pass_their_own_tests(forking: Environment, packages: tuple[str, ...]) -> None:
    """The laws are among them. One run of pytest takes several packages, since each starts slowly."""
    forking.check("pytest", "--import-mode=importlib", *packages)


@pytest.mark.parametrize("package", ["difftool-consistency", "difftool-inverse"])
def test_check_finds_that_a_package_keeps_the_laws(forking: Environment, package: str) -> None:
    outcome = json.loads(forking.check("difftool", "check", package, "--json"))
    assert outcome["verdict"] == "passed"
    assert len(outcome["checked"]) == 1 + SOUND.get(package, 1)  # the plugin, and its components
    assert sum(len(one["laws"]) for one in outcome["checked"]) >= (3 if package in REQUIRE else 8)


def test_they_are_all_found(here: Environment) -> None:
    found = json.loads(here.check("difftool", "plugins", "--strict", "--json"))
    packages = {plugin["distribution"]: plugin for plugin in found["plugins"]}
    assert set(PACKAGES) <= set(packages)
    for package in PACKAGES:
        assert packages[package]["problems"] == []
        assert not packages[package]["imports_torch"]
    text = here.check("difftool", "plugins", COLUMNS="200")
    for words in ("digits", "gradient-estimation", "dit", "demo-sampler", "0.1.0"):
        assert words in text


def test_the_environment_can_leave_them_out(here: Environment) -> None:
    def names(**environment: str) -> set[str]:
        return set(json.loads(here.check("difftool", "list", "samplers", "--json", **environment))["samplers"])

    both = {"demo-sampler", "gradient-estimation"}
    assert both <= names()
    assert names(DIFFTOOL_PLUGINS="demo-sampler") & both == {"demo-sampler"}
    assert names(DIFFTOOL_DISABLE_PLUGINS="demo_sampler") & both == {"gradient-estimation"}
    assert names(DIFFTOOL_PLUGINS="") & both == set()
    assert "demo-sampler" not in here.check("difftool", "list", "samplers", "--no-plugins")
    asked = here.run("difftool", "--no-plugins", "sample", "--sampler", "demo-sampler")
    assert asked.returncode == 2
    assert "unknown sampler 'demo-sampler'" in asked.stderr
    assert f"{len(PACKAGES)} plugins were left out by the environment, see 'difftool plugins'" in asked.stderr
    told = json.loads(here.check("difftool", "plugins", "--json", DIFFTOOL_DISABLE_PLUGINS="difftool-dit"))
    assert told["left_out"] == ["difftool-dit:dit"]
    text = here.check("difftool", "plugins", DIFFTOOL_PLUGINS="Demo_Sampler,demo-samler", COLUMNS="200")
    assert "left out difftool-dit:dit: by DIFFTOOL_PLUGINS or DIFFTOOL_DISABLE_PLUGINS" in text
    assert "unknown demo-samler: DIFFTOOL_PLUGINS names it, but it is not installed" in text
    assert "unknown demo-sampler" not in text


def test_they_compose(forking: Environment) -> None:
    """Data, schedule, network and sampler, each of another package; the network has a label and guidance."""
    shown = forking.check("difftool", "train", "--dataset", "digits", "--backbone", "dit", "--help", COLUMNS="200")
    assert "Dataset: digits" in shown
    assert "--backbone.patch" in shown
    small = (
        "--backbone.dim",
        16,
        "--backbone.depth",
        1,
        "--backbone.heads",
        2,
        "--batch-size",
        16,
        "--preview-every",
        0,
    )
    parts = ("--dataset", "digits", "--schedule", "demo-schedule", "--schedule.p", 1.5, "--backbone", "dit")
    run = forking.check("difftool", "train", *parts, *small, "--steps", 3).strip()
    sampler = ("--sampler", "gradient-estimation", "--sampler.gamma", 1.5, "--steps", 4)
    arrays = forking.check(
        "difftool", "sample", run, *sampler, "--label", 7, "--guidance", 2, "-n", 3, "--out", "x.npy"
    )
    assert arrays == "x.npy\n"
    points = ("--dataset", "demo-dataset", "--dataset.rings", 2, "--backbone", "demo-backbone", *POINTS[:2])
    plain = forking.check("difftool", "train", *points, "--steps", 3, "--batch-size", 32, "--preview-every", 0).strip()
    forking.check(
        "difftool", "sample", plain, "--sampler", "demo-sampler", "-n", 5, "--label", "ring-1", "--out", "y.csv"
    )


def test_a_model_says_which_package_it_was_made_with(forking: Environment, tmp_path: Path) -> None:
    small = ("--backbone.width", 8, "--backbone.depth", 1, "--dataset.n", 100, "--batch-size", 8, "--preview-every", 0)
    run = tmp_path / "run"
    forking.check(
        "difftool", "train", "--backbone", "demo-backbone", *small, "--steps", 2, "--logger", "csv", "--out", run
    )
    there = forking.check("difftool", "info", run, "--json", DIFFTOOL_PLUGINS="")
    assert json.loads(there)["plugins"]["demo-backbone"] == "0.1.0"
    for arguments in (("sample", run), ("sample", run / "model.safetensors"), ("train", "--resume", run, "--steps", 3)):
        hidden = forking.run("difftool", *arguments, DIFFTOOL_PLUGINS="")
        assert hidden.returncode == (2 if "train" in arguments else 1)
        assert "unknown backbone 'demo-backbone'" in hidden.stderr
        assert (
            "made with demo-backbone 0.1.0, which DIFFTOOL_PLUGINS or DIFFTOOL_DISABLE_PLUGINS leaves out"
            in hidden.stderr
        )


def install_broken(folder: Path) -> None:
    """Create an environment with the package that is broken on purpose, and one that is sound, by pip itself."""
    environment = Environment.make(folder)
    for name in ("difftool-broken", "difftool-gradient-estimation"):
        copied(EXAMPLES / name, environment.folder)
    environment.check("pip", "install", "./difftool-broken", "./difftool-gradient-estimation")


@pytest.fixture(scope="module")
def broken(once: Callable[[str, Make], Path]) -> Environment:
    pytest.importorskip("hatchling")
    return Environment.of(once("broken", install_broken))


@pytest.fixture(scope="module")
def broken_forking(broken: Environment) -> Iterator[Environment]:
    with forks_of(broken) as forks:
        yield forks


REASONS = {
    "missing": (
        "needs the module 'difftool_has_no_such_dependency', which is not installed",
        "install what brings it, perhaps: pip install difftool_has_no_such_dependency",
    ),
    "nowhere": (
        "needs the module 'difftool_broken.nowhere', which is not installed",
        "install it again: pip install --force-reinstall difftool-broken",
    ),
    "raises": (
        "failed to import: RuntimeError: no licence file found",
        'see where: python -c "import difftool_broken.raises"',
    ),
    "misspelt": ("there is no hook 'difftool_sampler'", "did you mean difftool_samplers?"),
    "newer": (
        "made for version 99 of the plugin API; this difftool has 2",
        "pip install --upgrade difftool",
    ),
    "taken": ("sampler 'ddim': the name is taken by difftool", "reach it as difftool-broken:ddim"),
    "unannounced": (
        "command 'secret': no entry point announces it",
        'put secret = "difftool_broken.unannounced" under [project.entry-points."difftool.commands"] and install again',
    ),
}


def test_a_broken_package_is_set_aside_with_reasons_and_cures(broken: Environment) -> None:
    found = {p["plugin"]: p for p in json.loads(broken.check("difftool", "plugins", "--json"))["plugins"]}
    for name, (reason, cure) in REASONS.items():
        assert found[f"difftool-broken:{name}"]["problems"] == [{"reason": reason, "cure": cure}]
    wrong = found["difftool-broken:wrong"]
    assert [p["reason"] for p in wrong["problems"]] == [
        "'ddim' is not a component class",
        "sampler 'unfinished': sample() is not defined",
        "sampler 'odd': option 'table' has a type that options cannot have: dict[str, int]",
    ]
    assert wrong["provides"] == {"samplers": ["sound"]}
    assert found["difftool-gradient-estimation:gradient-estimation"]["problems"] == []
    strict = broken.run("difftool", "plugins", "--strict")
    assert strict.returncode == 1
    assert "error: 8 plugins were set aside: difftool-broken:missing, " in strict.stderr
    assert "cure: did you mean difftool_samplers?" in strict.stdout
    assert found["difftool-broken:unmarked"]["provides"] == {}
    unmarked = broken.run("difftool", "check", "difftool-broken")
    assert unmarked.returncode == 1
    assert "it provides no component; put @difftool.hookimpl above its hooks" in unmarked.stdout
    assert "laws failed: plugin difftool-broken:heavy loads without torch" in unmarked.stderr


def test_who_imports_torch_is_named_with_its_seconds(broken: Environment) -> None:
    found = {p["plugin"]: p for p in json.loads(broken.check("difftool", "plugins", "--json"))["plugins"]}
    heavy = found.pop("difftool-broken:heavy")
    assert heavy["imports_torch"]
    assert heavy["import_seconds"] > 10 * max(plugin["import_seconds"] for plugin in found.values())
    assert not any(plugin["imports_torch"] for plugin in found.values())
    text = broken.check("difftool", "plugins", COLUMNS="200")
    assert "slow difftool-broken:heavy: imports torch when it is loaded: every command, and each --help, waits " in text
    light = broken.check("difftool", "plugins", DIFFTOOL_DISABLE_PLUGINS="difftool-broken:heavy")
    assert "slow" not in light


FEW = ("-n", 3, "--steps", 2)
COMMANDS = [
    ("--help",),
    ("train", "--help"),
    ("train", *POINTS, "--steps", 2, "--out", "run", "--overwrite"),
    ("sample", "run", "-n", 3, "--steps", 2, "--sampler", "sound", "--out", "a.npy", "--overwrite"),
    (
        "sample",
        "run",
        "-n",
        3,
        "--steps",
        2,
        "--sampler",
        "difftool-broken:ddim",
        "--sampler.twist",
        1,
        "--out",
        "b.npy",
    ),
    ("sample", "run", "-n", 3, "--steps", 2, "--out", "c.npy"),
    ("compare", "run", "-n", 10, "--samplers", "ddim,sound,gradient-estimation", "--calls", 2, "--reference", 5),
    ("noise", "-n", 5),
    ("inspect-schedule", "linear", "heavy"),
    ("list",),
    ("plugins",),
    ("runs", "."),
    ("info", "run"),
    ("check", "sound"),
    ("new-plugin", "demo", "--kind", "sampler"),
]


def test_every_command_still_works(broken_forking: Environment) -> None:
    for command in COMMANDS:
        done = broken_forking.run("difftool", *command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "broken" not in done.stderr
    sound, theirs, ours = (np.load(broken_forking.folder / name) for name in ("a.npy", "b.npy", "c.npy"))
    assert np.array_equal(sound, theirs)
    np.testing.assert_allclose(sound, ours, rtol=1e-5, atol=1e-5)  # DDIM too, written out


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("sample", "--sampler", "missing"), 1, "plugin difftool-broken:missing was set aside: needs the module"),
        (("sample", "--sampler", "odd"), 1, "option 'table' has a type that options cannot have"),
        (("sample", "--sampler", "nope"), 2, "; 8 plugins were set aside, see 'difftool plugins'"),
        (("promised",), 1, "plugin difftool-broken:missing was set aside: needs the module"),
        (("secret",), 1, "command 'secret': no entry point announces it"),
    ],
)
def test_asking_for_what_was_set_aside_says_why(
    broken_forking: Environment, command: tuple[str, ...], code: int, words: str
) -> None:
    done = broken_forking.run("difftool", *command)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
