"""Shared by the tests: a quiet environment, the command line, and a few trained runs."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from difftool import testing

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.training.experiment import Experiment

NOISY = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "CLICOLOR_FORCE", "TERMINAL_WIDTH", "DIFFTOOL_DISABLE_PLUGINS")
QUIET = {
    "COLUMNS": "200",
    "TTY_COMPATIBLE": "0",
    "NO_COLOR": "1",
    "OMP_NUM_THREADS": "1",  # tests run side by side: threads that wait for each other's cores are far slower
    "TERM": "dumb",
    "PYTHONUTF8": "1",
    "DIFFTOOL_PLUGINS": "",  # built-ins alone, whatever else is installed here
}
# At import, not in a fixture: Typer and rich read some of these when they are imported, and children inherit them.
for _name in NOISY:
    os.environ.pop(_name, None)
os.environ.update(QUIET)


@dataclass(frozen=True)
class Outcome(testing.Outcome):
    """The exit code and output of a command, with a few ways to read them."""

    @property
    def errors(self) -> list[str]:
        """The error lines on stderr."""
        return [line for line in self.err.splitlines() if line.startswith("difftool: error:")]

    @property
    def error(self) -> str:
        """The one error line; a traceback or a second one is a failure of the test."""
        assert len(self.errors) == 1, self.err
        assert "Traceback" not in self.err, self.err
        return self.errors[0]

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Run = Callable[..., Outcome]


def invoke(*arguments: object) -> Outcome:
    """Run the command line in this process. The picture of the loss at the end of a run is left blank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("difftool.cli.training._draw_loss", draw_blank)
        return Outcome(*astuple(testing.invoke(*last_of(arguments))))


def draw_blank(experiment: Experiment, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a blank picture in place of the loss, which takes as long to draw as a tiny run takes to train."""
    from difftool.cli.outputs import save_figure
    from difftool.figures import style

    save_figure(style.canvas(8, 8), experiment.folder.loss, overwrite=True)


def spawn(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 600) -> Outcome:
    """Run the command line in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "difftool", *map(str, last_of(arguments))],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("train", "--steps", 3)` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return invoke


@pytest.fixture
def cli(tmp_path: Path) -> Run:
    """`cli("train", "--steps", 3)` in a new process, in an empty folder."""

    def call(*arguments: object, env: Mapping[str, str] | None = None, cwd: Path = tmp_path) -> Outcome:
        return spawn(*arguments, cwd=cwd, env=env)

    return call


POINTS = ("--dataset.n", 500, "--backbone.width", 16, "--backbone.depth", 1, "--batch-size", 64, "--preview-every", 0)
"""A tiny run of points: `train *POINTS --steps 3`."""
IMAGES = (
    *("--backbone", "unet", "--dataset.n", 64, "--dataset.size", 8, "--backbone.dim", 8, "--backbone.dim-mults", "1,2"),
    *("--backbone.groups", 4, "--batch-size", 8, "--preview-every", 0, "--threads", 1),
)
"""A tiny run of images."""


def last_of(arguments: Sequence[object]) -> list[object]:
    """Return the arguments with the last value of each option, since tests lay their own over `POINTS` and `IMAGES`."""
    given, last = list(arguments), {word: i for i, word in enumerate(arguments)}
    replaced = {i for i, word in enumerate(given) if str(word).startswith("--") and last[word] != i} - repeatable(given)
    return [word for i, word in enumerate(given) if i not in replaced and (i - 1 not in replaced or is_option(word))]


REPEATABLE = ("--out", "--logger", "--callback", "--plugin", "--vary", "--set", "--filter", "--add")


def repeatable(given: Sequence[object]) -> set[int]:
    """Return the places of options that take several values."""
    return {i for i, word in enumerate(given) if word in REPEATABLE}


def is_option(word: object) -> bool:
    return str(word).startswith("--")


Make = Callable[[Path], object]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str, Make], Path]:
    """`once("name", make)`: a path that `make(path)` has filled, and that all workers of pytest-xdist share.

    The first worker that needs it makes it, while others that need it wait.
    """
    here = tmp_path_factory.getbasetemp()
    folder = (here.parent if hasattr(request.config, "workerinput") else here) / "shared"

    def made(name: str, make: Make) -> Path:
        folder.mkdir(exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            complete = folder / f"{name}.complete"
            if not complete.exists():
                make(folder / name)
                complete.touch()
        return folder / name

    return made


@pytest.fixture(scope="session")
def shared(once: Callable[[str, Make], Path]) -> Callable[..., Path]:
    """`shared("points", *POINTS, "--steps", 30)`: a trained run that all workers of pytest-xdist share."""

    def trained(name: str, *arguments: object) -> Path:
        def train(path: Path) -> None:
            outcome = invoke("train", *arguments, "--out", path, "--overwrite")
            assert outcome.code == 0, outcome.err

        return once(name, train)

    return trained


@pytest.fixture(scope="session")
def points_run(shared: Callable[..., Path]) -> Path:
    """A trained run of points: read it, or copy it."""
    return shared("points", *POINTS, "--steps", 30)


@pytest.fixture(scope="session")
def images_run(shared: Callable[..., Path]) -> Path:
    """A trained run of images: read it, or copy it."""
    return shared("images", *IMAGES, "--steps", 4)


@pytest.fixture(scope="session")
def labels_run(shared: Callable[..., Path]) -> Path:
    """A run of four labelled Gaussians, trained until the labels matter."""
    return shared(
        "labels",
        *("--dataset", "gaussian-mixture", "--dataset.components", 4, "--dataset.labels", "--dataset.n", 2000),
        *("--backbone.width", 32, "--backbone.depth", 2, "--batch-size", 128, "--steps", 400, "--lr", 5e-3),
        *("--preview-every", 0, "--ema", 0.9, "--warmup", 0),
    )


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by its path there.

    The lock of a run counts as empty, for it holds the number of the last process.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): b"" if path.name == "lock" else path.read_bytes() for path in files}


def write_signed(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """Write a file of weights with any text for its document and the digest that fits, as a stranger could."""
    from safetensors.torch import save_file

    from difftool.runs import checkpoint

    metadata = {checkpoint.KEY: json.dumps({"document": text, "sha256": checkpoint.digest(tensors, text)})}
    save_file(dict(tensors), path, metadata)


# --- tests of optional libraries --------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skipped test a failed one in `make test-extras`, whose environment lacks nothing."""
    report = yield
    if report.skipped and os.environ.get("DIFFTOOL_SKIPPED") == "fail":
        report.outcome = "failed"
    return report


# --- garbage ---------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Let the garbage collector leave thousands of collected tests alone, which it would go through time and again."""
    gc.disable()
    yield
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


# --- the table of faults ---------------------------------------------------------------------------------------------


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give each test of `tests/test_faults*.py` its row: the first line of its docstring."""
    text = getattr(getattr(item, "function", None), "__doc__", None)
    if item.path.name.startswith("test_faults") and text:
        item.user_properties.append(("row", text.strip().splitlines()[0]))


STAND_INS = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")


@pytest.fixture(scope="module")
def fidelity() -> Any:
    """torch-fidelity. Its own networks and data sets, which are not used here, are made of torchvision.

    Where that is absent, or compiled for another torch, empty classes stand in for it while torch-fidelity is imported.
    """
    with pytest.MonkeyPatch.context() as patch:
        try:
            importlib.import_module("torchvision")
        except (ImportError, RuntimeError):
            for name in STAND_INS:
                patch.setitem(sys.modules, name, StandIn(name))
        return pytest.importorskip("torch_fidelity")


class StandIn(ModuleType):
    """A module that has an empty class of every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the rows of the faults that ran, where `-k faults` asks for them."""
    if "faults" not in terminalreporter.config.option.keyword:
        return
    ran = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    rows = {(report.nodeid.partition("[")[0], str(row)): report for report in ran for _, row in report.user_properties}
    terminalreporter.section("faults")
    for (test, row), report in sorted(rows.items()):
        terminalreporter.write_line(f"{report.outcome:6}  {row}  ({test.rpartition('::')[2]})")
