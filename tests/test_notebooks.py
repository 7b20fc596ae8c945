"""Notebooks: what they show of models, runs and schedules, their progress bar, and the notebook among the examples."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import Run
from rich.console import Console

import difftool
from difftool import pictures
from difftool.cli.console import Bar
from difftool.sampling import glimpse

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "notebooks" / "swiss-roll.ipynb"
PNG = b"\x89PNG\r\n"
FEWER = ("STEPS = 6000", "STEPS = 20")


def size_of(png: bytes | None) -> tuple[int, int]:
    assert png is not None
    assert png.startswith(PNG)
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Give what is drawn in the test."""
    drawings: list[Any] = []
    figure = pictures.Drawing.figure
    monkeypatch.setattr(pictures.Drawing, "figure", lambda drawing: drawings.append(drawing) or figure(drawing))
    return drawings


def test_a_model_shows_samples_of_each_class(
    points_run: Path, labels_run: Path, images_run: Path, drawn: list[Any]
) -> None:
    for run in (points_run, labels_run, images_run):
        width, height = size_of(difftool.load(run, device="cpu")._repr_png_())
        assert min(width, height) > 100
    points, labels, images = drawn
    assert points.x.shape == (glimpse.POINTS, 2)
    assert torch.equal(labels.labels.bincount(), torch.full((4,), glimpse.POINTS // 4))
    assert images.x.shape == (glimpse.PANELS, 3, 8, 8)
    assert points.title == "swiss-roll-mlp, step 30, ema-0.999 weights, ddim 25 steps"


def test_samples_of_a_class_lie_where_the_class_lies(labels_run: Path, drawn: list[Any]) -> None:
    difftool.load(labels_run, device="cpu")._repr_png_()
    (drawing,) = drawn
    east, west = (drawing.x[drawing.labels == label][:, 0].mean() for label in (0, 2))
    assert east > 0.5 > -0.5 > west


def test_what_no_picture_shows_has_its_line_alone(run: Run) -> None:
    """Arrays have no picture, and a model that needs more than a class cannot draw without it."""
    array = difftool.train(dataset=torch.randn(16, 2, 3), steps=1, batch_size=4, out="a", progress=False)
    assert array._repr_png_() is None
    samples = difftool.points(torch.randn(16, 2), vectors=torch.randn(16, 3))
    options: dict[str, Any] = {"steps": 1, "batch_size": 4, "progress": False}
    assert difftool.train(dataset=samples, condition_dropout=0.0, out="b", **options)._repr_png_() is None
    assert size_of(difftool.train(dataset=samples, condition_dropout=0.5, out="c", **options)._repr_png_())[0] > 100


@pytest.mark.parametrize(("form", "shape"), [("series", (2, 32)), ("sound", (1, 64)), ("cloud", (2, 20))])
def test_models_of_other_forms_have_a_picture(run: Run, form: Any, shape: tuple[int, ...]) -> None:
    rate = 100.0 if form == "sound" else None
    samples = difftool.Samples(items=torch.rand(8, *shape), shape=shape, form=form, rate=rate)
    model = difftool.train(dataset=samples, backbone="mlp", steps=1, batch_size=4, progress=False)
    assert size_of(model._repr_png_())[0] > 100


def test_schedules_and_runs_show_their_curves(points_run: Path, tmp_path: Path) -> None:
    model = difftool.load(points_run, device="cpu")
    assert model.run is not None
    assert size_of(model.schedule._repr_png_())[0] == 1600
    assert size_of(model.run._repr_png_())[0] == 1120
    empty = type(model.run)(tmp_path)
    assert repr(empty) == f"RunFolder({tmp_path}, stopped, step 0)"
    assert size_of(empty._repr_png_())[0] == 1120


def test_runs_describe_themselves_and_are_paths(points_run: Path) -> None:
    model = difftool.load(points_run, device="cpu")
    assert repr(model.run) == f"RunFolder({points_run}, finished, step 30 of 30)"
    assert model.run is not None
    assert difftool.load(model.run, device="cpu").digest == model.digest
    assert repr(difftool.points(torch.zeros(5000, 3))) == "Samples(5,000 items of 3, points)"


# --- the bar ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Stand in for IPython, and give what its cell has shown."""
    shown: list[dict[str, str]] = []

    class DisplayHandle:
        def display(self, data: dict[str, str], *, raw: bool) -> None:
            assert raw
            shown.append(data)

        update = display

    package, module = ModuleType("IPython"), ModuleType("IPython.display")
    module.DisplayHandle = DisplayHandle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return shown


def test_the_bar_in_a_notebook(cell: list[dict[str, str]]) -> None:
    bar = Bar("training", 1000, Console(force_jupyter=True))
    for step in range(1, 501):
        bar.update(step, "loss <0.5>\nheld out")
    bar.close()
    assert 2 < len(cell) + 1 < 500  # not at every step
    last = cell[-1]
    assert last["text/plain"].startswith("training 500/1000  ")
    assert last["text/plain"].endswith("left\nloss <0.5>\nheld out")
    assert '<progress value="500" max="1000"></progress>' in last["text/html"]
    assert "loss &lt;0.5&gt;\nheld out" in last["text/html"]


# --- the notebook -----------------------------------------------------------------------------------------------------


def cells() -> list[dict[str, Any]]:
    if not NOTEBOOK.exists():
        pytest.skip("the notebook is not beside the tests")
    document: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in document["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_holds_no_output() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells())
    assert sum("".join(cell["source"]).count(FEWER[0]) for cell in cells()) == 1


@pytest.mark.slow
def test_the_code_of_the_notebook_runs_as_a_script(tmp_path: Path) -> None:
    code = "\n".join("".join(cell["source"]) for cell in cells()).replace(*FEWER)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import matplotlib; matplotlib.use('agg')\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "largest difference: 0.0\n"


@pytest.mark.extras
@pytest.mark.slow
def test_the_notebook_in_a_kernel(tmp_path: Path) -> None:
    """Every cell runs; the bar is one output; schedule, run and model are pictures."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.reads(NOTEBOOK.read_text(encoding="utf-8").replace(*FEWER), 4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell["source"].splitlines()[-1]: cell["outputs"] for cell in notebook.cells if cell.cell_type == "code"}
    for line in ("schedule", "model.run", "model"):
        (output,) = outputs[line]
        assert {"image/png", "text/plain"} <= output["data"].keys()
    (training,) = (outputs[line] for line in outputs if "difftool.train" in line)
    folder, bar = (output["data"]["text/plain"] for output in training)
    assert folder.strip() == "run folder runs/notebook"
    assert bar.startswith("training 20/20")


@pytest.mark.extras
@pytest.mark.slow
def test_an_interrupted_cell_saves_and_another_resumes(tmp_path: Path) -> None:
    """The interrupt comes from the training itself, at a step, so that nothing waits for the clock."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    stop = f"""
import os, torch, difftool
from difftool.training import loop
make = loop.train
def interrupted(*arguments, **options):
    for result in make(*arguments, **options):
        if result.step == 3:
            os.kill(os.getpid(), {int(signal.SIGINT)})
        yield result
loop.train = interrupted
data = torch.arange(40.0).reshape(20, 2)
"""
    train = "difftool.train(dataset=data, steps=6, batch_size=4, out='run')"
    resume = "loop.train = make\nprint(difftool.train(resume='run', dataset=data).step)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (stop, train, resume)])
    client = nbclient.NotebookClient(
        notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    _, stopped, resumed = (cell["outputs"] for cell in notebook.cells)
    (error,) = (output for output in stopped if output["output_type"] == "error")
    assert error["ename"] == "KeyboardInterrupt"
    assert error["evalue"] == (
        "stopped by SIGINT after step 3 of 6; everything is saved; "
        "go on with: difftool.train(resume='run', dataset=DATA)"
    )
    assert [output["text"] for output in resumed if output["output_type"] == "stream"] == ["6\n"]
    assert any("resuming run after step 3" in str(output) for output in resumed)
