"""What is chosen for the user is said: classes, predictions, cures; and nothing is silently wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import POINTS, Run
from PIL import Image
from safetensors import safe_open

from difftool import ObjectiveSpec, Schedule, component, load
from difftool.data.facts import DataFacts
from difftool.runs.losses import losses, smoothed
from difftool.training.loss import Objective

SHORT = (
    *("--dataset", "image-folder", "--dataset.path", "photos", "--dataset.size", 4, "--backbone.dim", 8),
    *("--backbone.dim-mults", "1,2", "--backbone.groups", 4, "--batch-size", 4, "--threads", 1),
)
TINY = (*SHORT, "--preview-every", 0, "--steps", 1)


def photos(*files: str, empty: str = "") -> None:
    """Write small images into the folder `photos`, and an empty folder."""
    for number, file in enumerate(files):
        path = Path("photos", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (4, 4), (number % 256, 0, 0))
        image.paste("white", (0, 0, 2, 4))
        image.save(path)
    if empty:
        Path("photos", empty).mkdir()


# -- classes -----------------------------------------------------------------------------------------------------------

CAT_AND_DOG = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")


def test_the_first_line_names_the_classes(run: Run) -> None:
    """The first line of `train`, `--dry-run` and `info` name the classes, and say how many there are."""
    photos(*CAT_AND_DOG)
    dry = run("train", *TINY, "--dry-run", "--json")
    assert "image-folder (4 x 3x4x4, 2 classes: cat, dog) / " in dry.err
    assert "warning" not in dry.err
    assert json.loads(dry.out)["classes"] == ["cat", "dog"]
    trained = run("train", *TINY, "--out", "r")
    assert trained.err.splitlines()[0].startswith("image-folder (4 x 3x4x4, 2 classes: cat, dog) / ")
    for target in ("r", "r/model.safetensors"):
        assert "2 classes: cat, dog" in run("info", target).out
        assert json.loads(run("info", target, "--json").out)["classes"] == ["cat", "dog"]


def test_many_classes_are_named_in_one_short_line(run: Run) -> None:
    """Of many classes the first line names the first three and the last; a long name loses its middle."""
    photos(*(f"{i}/a.png" for i in range(10)))
    assert "10 classes: 0, 1, 2, ... 9)" in run("train", *TINY, "--dry-run").err
    photos(f"{'x' * 200}/a.png")
    assert len(run("train", *TINY, "--dry-run").err.splitlines()[0]) < 200


@pytest.mark.parametrize(
    ("files", "empty", "pieces"),
    [
        ((*CAT_AND_DOG, "x.png"), "", ("beside", "1 of 5: x.png", "--dataset.labels folders", "cat, dog")),
        (("train/1.png", "Test/1.png", "val/1.png"), "", ("Test, train, val", "--dataset.path", "photos/val ")),
        (("train/cat/1.png", "test/cat/1.png"), "", ("test, train", "photos/train ", "--dataset.labels folders")),
        (("data/cat/1.png", "data/dog/1.png"), "", ("photos/data takes its sub-folders (cat, dog)",)),
        (("cat/1.png", "cat/2.png"), "dog", ("one sub-folder", "(dog)")),
    ],
)
def test_what_switches_classes_off_is_warned_of(run: Run, files: tuple[str, ...], empty: str, pieces: tuple) -> None:
    """Folders that look like classes and are none are warned of, with the option that decides it."""
    photos(*files, empty=empty)
    outcome = run("train", *TINY, "--dry-run")
    assert outcome.code == 0, outcome.err
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("difftool: warning: no classes")]
    assert all(piece in warning for piece in pieces), warning
    assert "classes: " not in outcome.err.replace(warning, "")
    silent = run("train", *TINY, "--dataset.labels", "none", "--dry-run")
    assert "warning" not in silent.err, silent.err


@pytest.mark.parametrize("files", [(*CAT_AND_DOG, "x.png"), CAT_AND_DOG])
def test_folders_are_classes_if_asked_for(run: Run, files: tuple[str, ...]) -> None:
    """`--dataset.labels folders` keeps the classes, and leaves out images beside the folders with a warning."""
    photos(*files)
    outcome = run("train", *TINY, "--dataset.labels", "folders", "--dry-run")
    assert "(4 x 3x4x4, 2 classes: cat, dog)" in outcome.err
    assert ("left out 1 of 5 images" in outcome.err) == (len(files) == 5)


def test_splits_are_classes_if_asked_for(run: Run) -> None:
    """`--dataset.labels folders` makes classes even of `train` and `test`, and refuses a single folder."""
    photos("train/1.png", "test/1.png")
    folders = ("--dataset.labels", "folders", "--dry-run")
    assert "2 classes: test, train" in run("train", *TINY, *folders).err
    Path("photos/test/1.png").unlink()
    outcome = run("train", *TINY, *folders)
    assert outcome.code != 0
    assert "two sub-folders or more, not train" in outcome.error


def test_an_empty_folder_is_no_class(run: Run) -> None:
    """A class folder without images is warned of; the others stay classes."""
    photos(*CAT_AND_DOG, empty="bird")
    outcome = run("train", *TINY, "--dry-run")
    assert "2 classes: cat, dog" in outcome.err
    (warning,) = [line for line in outcome.err.splitlines() if "warning" in line]
    assert "(bird)" in warning


@pytest.fixture
def numbers_run(run: Run) -> Path:
    """A run whose classes are called 5, 6 and 7."""
    photos("5/a.png", "6/a.png", "7/a.png", "7/b.png")
    assert run("train", *TINY, "--out", "r").code == 0
    return Path("r")


@pytest.mark.parametrize(
    ("label", "similar"), [("1", "'5'"), ("0", "'5'"), ("6.5", "'6' or '7'"), ("900", "'7'"), ("06", "'6'")]
)
def test_an_index_is_refused_where_names_are_numbers(run: Run, numbers_run: Path, label: str, similar: str) -> None:
    """`--label 1` among classes 5, 6, 7 is refused with the names and the nearest in value."""
    outcome = run("sample", numbers_run, "--label", label, "-n", 1, "--steps", 1)
    assert outcome.code == 2
    assert f"there is no class '{label}'; did you mean {similar}?; there are 3 classes: 5, 6, 7" in outcome.error


def test_the_class_is_named_wherever_samples_are(run: Run, numbers_run: Path) -> None:
    """The line of `sample`, npz and safetensors name the class that was drawn."""
    files = ("--out", "x.npz", "--out", "x.safetensors", "--out", "x.svg")
    outcome = run("sample", numbers_run, "--label", 6, "-n", 2, "--steps", 1, *files)
    assert outcome.code == 0, outcome.err
    assert "2 samples of class 6, " in outcome.err
    with np.load("x.npz") as arrays:
        assert arrays["labels"].tolist() == [1, 1]
        assert arrays["class_names"].tolist() == ["5", "6", "7"]
    with safe_open("x.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["samples"])["class_names"] == ["5", "6", "7"]
    assert "class 6" in Path("x.svg").read_text()


def test_names_win_over_indices(run: Run) -> None:
    """A name that is a number is that class, even if it is the index of another; plain names may be indexed."""
    photos("1/a.png", "2/a.png", "cat/a.png")
    assert run("train", *TINY, "--out", "r").code == 0
    base = ("-n", 1, "--steps", 1, "--label")
    assert "of class 1, " in run("sample", "r", *base, 1).err
    assert "of class cat, " in run("sample", "r", *base, "cat").err
    assert "there is no class '0'" in run("sample", "r", *base, 0).error


def test_a_class_in_a_run_that_needs_one_may_have_any_name(run: Run) -> None:
    """A run with `--condition-dropout 0` draws previews of its first class by name, whatever it is called."""
    photos("5/a.png", "6/a.png", "6/b.png")
    outcome = run("train", *SHORT, "--steps", 2, "--preview-every", 1, "--condition-dropout", 0, "--out", "r")
    assert outcome.code == 0, outcome.err
    assert "no preview" not in outcome.err
    assert list(Path("r/previews").iterdir())


# -- masks -------------------------------------------------------------------------------------------------------------


def picture(name: str, width: int, height: int, *, turned: bool = False) -> Path:
    """Write an image, black on the left and white on the right, which EXIF data may turn by 90 degrees."""
    image = Image.new("L", (width, height))
    image.paste(255, (width // 2, 0, width, height))
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    image.save(name, exif=exif)
    return Path(name)


@pytest.mark.parametrize(
    ("image", "mask"),
    [((16, 8), (8, 8)), ((8, 16), (16, 8)), ((16, 8), (10, 6)), ((8, 8), (8, 7)), ((16, 8, True), (16, 8))],
)
def test_a_mask_of_other_proportions_is_refused(run: Run, images_run: Path, image: tuple, mask: tuple) -> None:
    """A mask of other proportions than its image is refused with both sizes: the hole would move."""
    files = {
        name: picture(f"{name}.png", *size[:2], turned=len(size) > 2) for name, size in (("i", image), ("m", mask))
    }
    outcome = run("sample", images_run, "--inpaint", files["i"], "--mask", files["m"], "-n", 1, "--steps", 1)
    assert outcome.code == 2
    shown = "x".join(map(str, image[:2][:: -1 if len(image) > 2 else 1]))
    assert f"m.png is {mask[0]}x{mask[1]} pixels, and the image of --inpaint {shown}; " in outcome.error
    assert "white where it is painted anew" in outcome.error


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ((16, 8), (32, 16)),
        ((16, 8), (8, 4)),
        ((1024, 683), (64, 43)),
        ((64, 42), (1024, 683)),
        ((16, 8, True), (8, 16)),
    ],
)
def test_a_mask_of_another_size_fits(run: Run, images_run: Path, image: tuple, mask: tuple) -> None:
    """A mask of another size but the same proportions is taken, also beside an image that EXIF data turn."""
    files = {
        name: picture(f"{name}.png", *size[:2], turned=len(size) > 2) for name, size in (("i", image), ("m", mask))
    }
    outcome = run("sample", images_run, "--inpaint", files["i"], "--mask", files["m"], "-n", 1, "--steps", 1)
    assert outcome.code == 0, outcome.err


# -- predictions and losses --------------------------------------------------------------------------------------------

COSINE = (*POINTS, "--schedule", "cosine", "--steps", 30)


def test_a_chosen_prediction_is_said(run: Run, tmp_path: Path) -> None:
    """`--schedule cosine` says in one line that v is predicted, and what can be compared; a named one says nothing."""
    said = [line for line in run("train", *COSINE, "--out", "r").err.splitlines() if line.startswith("predicts")]
    assert len(said) == 1
    assert said[0].startswith("predicts v, which suits cosine; --prediction eps is another choice.")
    assert "eps_loss" in said[0]
    for more in (("--prediction", "v"), ("--prediction", "eps"), ("--config", "r/config.toml")):
        assert "predicts" not in run("train", *COSINE, *more, "--dry-run").err
    assert "predicts" not in run("train", *POINTS, "--steps", 3, "--dry-run").err
    assert "predicts" not in run("train", "--resume", "r", "--steps", 31).err


@pytest.mark.parametrize(
    ("sampler", "steps", "warned"),
    [("ddim", 5, True), ("ddim", 50, True), ("dpmpp-2m", 20, True), ("ddpm", 5, True), ("ddpm", 50, False)],
)
def test_spoiled_samples_are_warned_of_with_the_cure(run: Run, sampler: str, steps: int, warned: bool) -> None:
    """Cosine with eps: `train` and `sample` warn, and name `--spacing log-snr`, which is then quiet."""
    trained = run("train", *COSINE, "--prediction", "eps", "--out", "r")
    assert "--spacing log-snr" in trained.err
    base = ("sample", "r", "-n", 10, "--steps", steps, "--overwrite", "--out", "x.npy", "--sampler", sampler)
    warnings = [line for line in run(*base).err.splitlines() if "warning" in line]
    assert len(warnings) == warned  # many steps with noise forget the first one
    assert all("the first of " in line and "--spacing log-snr" in line for line in warnings)
    assert "warning" not in run(*base, "--spacing", "log-snr").err


def test_spoiled_samples_are_warned_of_in_python(run: Run) -> None:
    """`sample()` of a model warns as the command does, and names the same cure."""
    assert run("train", *COSINE, "--prediction", "eps", "--out", "r").code == 0
    model = load("r")
    with pytest.warns(UserWarning, match="--spacing log-snr"):
        model.sample(4, steps=10)


def test_sound_samples_are_not_warned_of(run: Run, points_run: Path) -> None:
    """A linear schedule with eps, and cosine with v, are sampled without a warning."""
    assert run("train", *COSINE, "--out", "r").code == 0
    for model in (points_run, "r"):
        assert "warning" not in run("sample", model, "-n", 10, "--overwrite", "--out", "x.npy").err


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow", "edm"])
@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_the_error_of_eps_is_the_same_for_every_prediction(prediction: str, loss: str) -> None:
    """`eps_loss` is the mean squared error of eps, whatever the network predicts and whichever loss it minimises."""
    alpha = torch.tensor([0.99, 0.7, 0.2], dtype=torch.float64)
    spec = ObjectiveSpec(schedule=Schedule(alpha, (1 - alpha**2).sqrt()))
    parts = (component("prediction", prediction), component("weighting", "none"))
    sampling = component("timestep-sampling", "uniform")
    data = DataFacts(shape=(2,))
    objective = Objective(spec, *parts, sampling, component("loss", loss), device=torch.device("cpu"), data=data)
    x_0, eps, error = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.arange(3)
    inputs = objective.inputs(x_0, eps, t, None)
    level_alpha, sigma = objective.alpha[t, None], objective.sigma[t, None]
    # an estimate eps + error of the noise comes with the estimate of x_0 that solves x_t = alpha x_0 + sigma eps
    output = objective.target(x_0 - sigma / level_alpha * error, eps + error, t)
    found = objective.eps_errors(output, inputs.target, t)
    torch.testing.assert_close(found, error.square().mean(1), rtol=1e-4, atol=1e-6)


def test_every_command_shows_the_same_losses(run: Run) -> None:
    """`train`, `runs` and `info` show the smoothed loss, the error of eps and the held-out loss alike, also as JSON."""
    trained = run("train", *COSINE, "--held-out", 50, "--out", "runs/r", "--json")
    assert trained.code == 0, trained.err
    rows = [json.loads(line) for line in Path("runs/r/metrics.jsonl").read_text().splitlines()]
    expected = losses(rows)
    assert all(value is not None for value in expected.values())
    assert expected["loss"] != rows[-1]["loss"]
    (listed,) = json.loads(run("runs", "--json").out)["runs"]
    described = json.loads(run("info", "runs/r", "--json").out)["losses"]
    ended = json.loads(trained.out)
    for name, value in expected.items():
        assert listed[name] == described[name] == ended[name] == value
    line = next(line for line in trained.err.splitlines() if line.startswith("loss "))
    words = "loss {loss:.4f} ({eps_loss:.4f} in eps), {held_out_loss:.4f} held out after 30 steps"
    assert line.startswith(words.format(**expected))
    table = run("runs").out
    assert all(f"{value:.4g}" in table for value in expected.values())


def test_a_resumed_run_goes_on_with_the_smoothed_loss(run: Run) -> None:
    """A resumed run ends with the smoothed loss of all its rows, as `runs` shows it."""
    assert run("train", *POINTS, "--steps", 10, "--out", "runs/r").code == 0
    resumed = run("train", "--resume", "runs/r", "--steps", 20)
    (listed,) = json.loads(run("runs", "--json").out)["runs"]
    assert f"loss {listed['loss']:.4f} after 20 steps" in resumed.err


def test_smoothing() -> None:
    """The smoothed loss is an exponential average that passes over steps without a number."""
    assert smoothed([]) is None
    assert smoothed([None, 2.0, None, 1.0]) == pytest.approx(1.9)
    assert losses([{"loss": 1.0, "held_out_loss": 3.0}, {"loss": 1.0}]) == {
        "loss": 1.0,
        "eps_loss": None,
        "held_out_loss": 3.0,
    }
