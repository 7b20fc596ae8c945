"""Every command from end to end on tiny runs, and wrong usage of each. Runs with the oldest Typer allowed, too."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMAGES, POINTS, Run, tree
from PIL import Image
from safetensors.torch import load_file, save_file

from difftool import testing
from difftool.figures import style
from difftool.figures.loss import loss_figure
from difftool.runs import checkpoint

FEW = ("-n", 6, "--steps", 3)
FILES = ("config.toml", "lock", "loss.png", "metrics.jsonl", "model.safetensors")


def ok(outcome: Any) -> Any:
    assert outcome.code == 0, outcome.err
    assert "error" not in outcome.err
    assert "warning" not in outcome.err
    return outcome


# --- train ---------------------------------------------------------------------------------------------------------


def test_train_draws_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is the figure of the metrics; in other tests `run` leaves it blank."""
    monkeypatch.chdir(tmp_path)
    outcome = testing.invoke("train", *POINTS, "--steps", 3, "--out", "r")
    assert outcome.code == 0, outcome.err
    assert "drew r/loss.png\n" in outcome.err
    rows = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    drawn = style.render(loss_figure(rows, title="swiss-roll-mlp"))
    assert np.array_equal(np.asarray(Image.open("r/loss.png")), drawn)


def test_train_prints_its_run_folder_and_fills_it(run: Run, tmp_path: Path) -> None:
    outcome = ok(run("train", *POINTS, "--steps", 8, "--preview-every", 4, "--checkpoint-every", 4))
    assert outcome.out == "runs/swiss-roll-mlp-001\n"
    folder = tmp_path / "runs" / "swiss-roll-mlp-001"
    assert sorted(tree(folder)) == sorted(
        [
            *FILES,
            *(f"previews/{what}-{step:06d}.png" for what in ("samples", "panel") for step in (4, 8)),
            *(f"state/step-{step:09d}.safetensors" for step in (4, 8)),
        ]
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert ok(run("train", *POINTS, "--steps", 0)).lines == ["runs/swiss-roll-mlp-002"]


def test_a_runs_config_makes_the_same_weights(run: Run, points_run: Path, tmp_path: Path) -> None:
    ok(run("train", "--config", points_run / "config.toml", "--out", "again"))
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (points_run / "model.safetensors").read_bytes()


def test_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    document = json.loads(ok(run("train", *POINTS, "--steps", 3, "--dry-run", "--json", "--out", "x")).out)
    # time embedding 64 -> 16 -> 16, first layer 2 -> 16, last 16 -> 2; or whatever the network says of itself
    assert document["parameters"] > 0
    assert document["state_bytes"] == 16 * document["parameters"]  # weights, average, two moments
    assert (document["steps"], document["steps_per_epoch"]) == (3, 8)
    assert document["backbone"]["width"] == 16
    assert list(tmp_path.iterdir()) == []


def test_train_json(run: Run) -> None:
    document = json.loads(ok(run("train", *POINTS, "--steps", 2, "--json", "--out", "x")).out)
    assert (document["run"], document["model"], document["step"]) == ("x", "x/model.safetensors", 2)
    assert document["loss"] > 0


def test_train_overwrites_a_run_and_nothing_else(run: Run, points_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(points_run, folder)
    (folder / "notes.txt").write_text("mine")
    before = tree(folder)
    refused = run("train", *POINTS, "--steps", 1, "--out", folder)
    assert refused.code == 1
    assert f"--out: {folder} is not empty" in refused.error
    assert tree(folder) == before
    ok(run("train", *POINTS, "--steps", 1, "--out", folder, "--overwrite"))
    after = tree(folder)
    assert after["notes.txt"] == b"mine"
    assert "state/step-000000001.safetensors" in after
    assert "state/step-000000030.safetensors" not in after
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "data.txt").write_text("x")
    spared = run("train", *POINTS, "--steps", 1, "--out", plain, "--overwrite")
    assert spared.code == 1
    assert "is not a run folder, so --overwrite does not touch it" in spared.error
    assert tree(plain) == {"data.txt": b"x"}


def test_an_empty_folder_is_a_fine_out(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert ok(run("train", *POINTS, "--steps", 0, "--out", "x")).out == "x\n"
    assert ok(run("train", *POINTS, "--steps", 0, "--out", "a/b/c")).out == "a/b/c\n"


def test_few_levels_are_called_no_noise(run: Run) -> None:
    outcome = ok(run("train", *POINTS, "--steps", 0, "--timesteps", 50, "--schedule.no-rescale", "--dry-run"))
    assert "78 % of the signal is left (alpha-bar 0.603)" in outcome.err


DIVERGES = (*POINTS, "--lr", 10, "--backbone.depth", 64, "--backbone.activation", "relu", "--warmup", 0)


def test_divergence_ends_the_run_before_the_weights_do(run: Run, tmp_path: Path) -> None:
    outcome = run("train", *DIVERGES, "--steps", 50, "--out", "x")
    assert (outcome.code, outcome.out) == (1, "")
    assert "try a lower --lr or --clip 1; no state was saved before" in outcome.error
    assert not (tmp_path / "x" / "model.safetensors").exists()
    outcome = run("train", *DIVERGES, "--steps", 50, "--out", "y", "--checkpoint-every", 1)
    assert "the last state is y/state/step-" in outcome.error
    assert all(t.isfinite().all() for t in load_file(tmp_path / "y" / "model.safetensors").values())


def test_divergence_is_told_without_a_warning_of_torch(cli: Run) -> None:  # torch warns once a process
    assert "warning" not in cli("train", *DIVERGES, "--steps", 50, "--out", "x").err


def test_training_with_held_out_items(run: Run, tmp_path: Path) -> None:
    ok(run("train", *POINTS, "--steps", 8, "--held-out", 100, "--batch-size", 100, "--out", "x"))
    rows = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "held_out_loss" in row] == [4, 8]


# --- sample --------------------------------------------------------------------------------------------------------


def test_samples_go_into_the_run_and_are_numbered(run: Run, points_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    shutil.copytree(points_run, folder)
    names = [ok(run("sample", *where, *FEW)).out for where in ([folder], [], ["runs/mine"])]
    assert names == [f"{folder}/samples/ddim-3-001.png\n", *(f"runs/mine/samples/ddim-3-00{i}.png\n" for i in (2, 3))]
    assert all((tmp_path / name.strip()).is_file() for name in names)
    lone = ok(run("sample", folder / "model.safetensors", *FEW, "--sampler", "ddpm"))
    assert lone.out == "swiss-roll-mlp-ddpm-3-001.png\n"


POINT_FILES = ("x.png", "x.jpg", "x.svg", "x.pdf", "x.gif", "x.npy", "x.npz", "x.csv", "x.safetensors", "deep/er/x.npy")
IMAGE_FILES = (*POINT_FILES[:-1], "folder")
STARTS = {
    ".png": b"\x89PNG",
    ".jpg": b"\xff\xd8",
    ".pdf": b"%PDF",
    ".gif": b"GIF8",
    ".npy": b"\x93NUMPY",
    ".npz": b"PK",
    ".svg": b"<?xml",
}


@pytest.mark.parametrize("names", [POINT_FILES, IMAGE_FILES])
def test_every_suffix(run: Run, points_run: Path, images_run: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    points = names is POINT_FILES
    model = points_run if points else images_run
    outs = [part for name in names for part in ("--out", name)]
    outcome = ok(run("sample", model, *FEW, *outs))
    assert outcome.lines == list(names)
    for name in names:
        path = tmp_path / name
        if path.suffix in STARTS:
            assert path.read_bytes().startswith(STARTS[path.suffix]), name
    array = np.load(tmp_path / "x.npy")
    assert (array.shape, array.dtype) == (((6, 2), np.float32) if points else ((6, 8, 8, 3), np.uint8))
    packed = np.load(tmp_path / "x.npz")
    assert any(np.array_equal(packed[key], array) for key in packed.files)
    if points:
        with open(tmp_path / "x.csv", newline="") as file:
            rows = list(csv.reader(file))
        numbers = np.array([[float(v) for v in row] for row in rows[-6:]])
        assert np.allclose(numbers[:, :2], array, atol=1e-5)
        assert np.array_equal(np.load(tmp_path / "deep/er/x.npy"), array)
    else:
        pictures = sorted((tmp_path / "folder").glob("[!.]*"))
        assert len(pictures) == 6
        assert np.array_equal(np.stack([np.asarray(Image.open(p)) for p in pictures]), array)
    assert any(len(t) == 6 for t in load_file(tmp_path / "x.safetensors").values())


def drawn(run: Run, tmp_path: Path, model: Path, *arguments: object) -> np.ndarray:
    """The samples that `sample` writes with these arguments."""
    path = tmp_path / "drawn.npy"
    ok(run("sample", model, *arguments, "--out", path, "--overwrite"))
    return np.load(path)


def test_samples_depend_on_the_seed_and_not_on_the_batch_size(run: Run, points_run: Path, tmp_path: Path) -> None:
    for sampler in ("ddim", "ddpm"):
        base = ("--num-samples", 10, "--steps", 4, "--sampler", sampler)
        whole = drawn(run, tmp_path, points_run, *base)
        for size in (1, 3, 10, 100):
            assert np.allclose(drawn(run, tmp_path, points_run, *base, "--batch-size", size), whole, atol=1e-6)
        assert np.array_equal(drawn(run, tmp_path, points_run, *base), whole)
        assert np.allclose(drawn(run, tmp_path, points_run, *base, "--num-samples", 1), whole[:1], atol=1e-6)
        assert not np.allclose(drawn(run, tmp_path, points_run, *base, "--seed", 1), whole, atol=1e-2)


def test_image_samples_do_not_depend_on_the_batch_size(run: Run, images_run: Path, tmp_path: Path) -> None:
    base = ("-n", 7, "--steps", 3, "--raw")
    whole = drawn(run, tmp_path, images_run, *base)
    assert (whole.dtype, whole.min() >= -1, whole.max() <= 1) == (np.float32, True, True)
    assert np.allclose(drawn(run, tmp_path, images_run, *base, "--batch-size", 3), whole, atol=1e-4)


def test_a_lone_model_file_samples_the_same(run: Run, points_run: Path, tmp_path: Path) -> None:
    shutil.copy(points_run / "model.safetensors", tmp_path / "lone.safetensors")
    expected = drawn(run, tmp_path, points_run, *FEW)
    assert np.array_equal(drawn(run, tmp_path, tmp_path / "lone.safetensors", *FEW), expected)
    refused = run("sample", "lone.safetensors", "--weights", "raw")
    assert refused.code == 2
    assert "--weights raw: lone.safetensors holds ema-0.999 alone; name its run folder" in refused.error


def test_raw_weights_are_those_of_the_state(run: Run, points_run: Path, tmp_path: Path) -> None:
    raw = drawn(run, tmp_path, points_run, *FEW, "--weights", "raw")
    assert not np.allclose(raw, drawn(run, tmp_path, points_run, *FEW), atol=1e-5)
    folder = tmp_path / "no-average"
    ok(run("train", *POINTS, "--steps", 30, "--ema", 0, "--out", folder))  # the same weights, not averaged
    assert np.array_equal(drawn(run, tmp_path, folder, *FEW), raw)


def test_the_trajectory_ends_in_the_samples(run: Run, points_run: Path, tmp_path: Path) -> None:
    ok(run("sample", points_run, "-n", 5, "--steps", 4, "--trajectory", "--out", "t.npz"))
    packed = np.load(tmp_path / "t.npz")
    samples = drawn(run, tmp_path, points_run, "-n", 5, "--steps", 4)
    (states,) = (packed[key] for key in packed.files if packed[key].shape == (5, 5, 2))
    assert np.allclose(states[-1], samples, atol=1e-6)
    assert not np.allclose(states[0], states[-1], atol=0.1)


def test_an_existing_file_is_kept_unless_overwrite_is_given(run: Run, points_run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"mine")
    refused = run("sample", points_run, *FEW, "--out", "x.npy")
    assert refused.code == 1
    assert "--out: x.npy exists already; give another name, or --overwrite" in refused.error
    assert (refused.out, tree(tmp_path)) == ("", {"x.npy": b"mine"})
    ok(run("sample", points_run, *FEW, "--out", "x.npy", "--overwrite"))
    assert len(np.load(tmp_path / "x.npy")) == 6


def test_labels_change_the_samples(run: Run, labels_run: Path, tmp_path: Path) -> None:
    base = ("-n", 100, "--steps", 10)
    east, west = (drawn(run, tmp_path, labels_run, *base, "--label", k) for k in (0, 2))
    assert east[:, 0].mean() > 0.5
    assert west[:, 0].mean() < -0.5
    strong = drawn(run, tmp_path, labels_run, *base, "--label", 0, "--guidance", 3)
    assert not np.allclose(strong, east, atol=1e-2)
    assert np.array_equal(drawn(run, tmp_path, labels_run, *base, "--label", 0, "--guidance", 1), east)
    for arguments, piece in (
        (["--label", 4], "--label: there is no class '4'; did you mean '3'?; there are 4 classes: 0, 1, 2, 3"),
        (["--label", "east"], "--label: there is no class 'east'"),
        (["--label", "none", "--guidance", 2], "--guidance: needs a --label to guide towards"),
        (["--label", 0, "--guidance", -1], "--guidance: must be greater than or equal to 0"),
    ):
        outcome = run("sample", labels_run, *arguments)
        assert outcome.code == 2
        assert piece in outcome.error


def test_sample_json(run: Run, points_run: Path) -> None:
    document = json.loads(ok(run("sample", points_run, *FEW, "--json", "--out", "a.npy", "--out", "b.csv")).out)
    keys = ("files", "weights", "sampler", "steps", "spacing", "num_samples", "seed")
    assert [document[k] for k in keys] == [["a.npy", "b.csv"], "ema-0.999", "ddim", 3, "trailing", 6, 0]


# --- noise, inspect-schedule, list, plugins, info ------------------------------------------------------------------


def test_noise_of_a_dataset(run: Run, tmp_path: Path) -> None:
    outcome = ok(run("noise", "--dataset", "swiss-roll", "--dataset.n", 300, "--at", "0,999"))
    assert outcome.out == "noise-swiss-roll-linear-001.png\n"
    with Image.open(tmp_path / "noise-swiss-roll-linear-001.png") as picture:
        assert picture.width > picture.height > 0


@pytest.mark.parametrize("arguments", [["--at", "0,999"], ["--dataset.n", "300"], ["--schedule.beta-max", "0.03"]])
def test_noise_of_the_default_dataset_takes_options(run: Run, arguments: list[str]) -> None:
    assert run("noise", *arguments).out == "noise-swiss-roll-linear-001.png\n"


def test_noise_of_a_photograph(run: Run, tmp_path: Path) -> None:
    photograph = tmp_path / "cat.png"
    sklearn = pytest.importorskip("sklearn.datasets")
    Image.fromarray(sklearn.load_sample_images().images[0]).save(photograph)
    outcome = ok(run("noise", photograph, "--at", "0,500,999", "--size", "32,48", "--json", "--out", "x.png"))
    document = json.loads(outcome.out)
    assert document["files"] == ["x.png"]
    levels = document["levels"]
    assert [row["t"] for row in levels] == [0, 500, 999]
    assert levels[0]["alpha"] ** 2 == pytest.approx(0.9999)
    assert levels[2]["alpha"] ** 2 == pytest.approx(4.03582977e-05, rel=1e-6)
    assert levels[2]["std"] == pytest.approx(1.0, abs=0.05)
    assert levels[2]["mean"] == pytest.approx(0.0, abs=0.05)


def test_iterative_noise_has_the_moments_of_the_closed_form(run: Run) -> None:
    base = ("noise", "--dataset", "swiss-roll", "--dataset.n", 2000, "--timesteps", 60, "--iterative")
    outcome = ok(run(*base, "--at", "0,30,59", "--json", "--out", "x.png"))
    for row in json.loads(outcome.out)["levels"]:
        assert row["std"] == pytest.approx(row["closed_std"], abs=0.08)
        assert row["mean"] == pytest.approx(row["closed_mean"], abs=0.08)
    assert "largest difference of mean or deviation" in outcome.err


def test_the_numbers_of_schedules(run: Run, tmp_path: Path) -> None:
    found = json.loads(ok(run("inspect-schedule", "linear", "cosine", "--json")).out)
    linear, cosine = found["schedules"]["linear"]["alpha_bar"], found["schedules"]["cosine"]["alpha_bar"]
    assert found["timesteps"] == len(linear) == 1000
    for t, expected in ((0, 0.9999), (499, 0.07858724), (999, 4.03582977e-05)):
        assert linear[t] == pytest.approx(expected, rel=1e-6)
    for t, expected in ((0, 0.99995872), (499, 0.49384359), (999, 2.42876691e-09)):
        assert cosine[t] == pytest.approx(expected, rel=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_schedules_hold_no_infinity(run: Run) -> None:
    def strict(text: str) -> Any:
        def refuse(word: str) -> None:
            raise AssertionError(word)

        return json.loads(text, parse_constant=refuse)

    found = strict(ok(run("inspect-schedule", "--json", "--timesteps", 50)).out)["schedules"]
    assert set(found) == set(json.loads(ok(run("list", "schedule", "--json")).out)["schedules"])
    assert {"flow", "ve", "linear"} <= set(found)
    flow, ve = found["flow"], found["ve"]
    assert (flow["alpha"][-1], flow["sigma"][-1], flow["snr"][-1], flow["beta"][-1]) == (0.0, 1.0, 0.0, 1.0)
    assert (flow["snr_db"][-1], flow["log_snr"][-1]) == (None, None)
    assert flow["log_snr"][24] == pytest.approx(0.0)
    assert ve["log_snr"] == pytest.approx([-2 * np.log(s) for s in ve["sigma"]])
    assert ve["alpha_bar"][-1] == pytest.approx(1 / 6401)  # the share of signal in the variance
    zero = strict(ok(run("inspect-schedule", "linear", "--schedule.zero-snr", "--json")).out)["schedules"]["linear"]
    assert zero["alpha_bar"][499] == pytest.approx(0.076029, abs=5e-7)
    assert (zero["alpha_bar"][999], zero["log_snr"][999]) == (0.0, None)


@pytest.mark.parametrize("timesteps", [1, 2, 40])
def test_all_schedules_side_by_side(run: Run, tmp_path: Path, timesteps: int) -> None:
    outcome = run("inspect-schedule", "--timesteps", timesteps, "--out", "all.png")
    assert (outcome.code, outcome.out) == (0, "all.png\n"), outcome.err
    assert "SNR dB" in outcome.err.splitlines()  # the plot's label; alpha-bar where variance is preserved
    for name in ("linear", "flow", "ve"):
        assert f"{name} (T = {timesteps})" in outcome.err
    assert "alpha-bar" in ok(run("inspect-schedule", "cosine", "--out", "one.png")).err.splitlines()


def test_a_table_and_a_figure_of_schedules(run: Run, tmp_path: Path) -> None:
    outcome = ok(run("inspect-schedule", "linear"))
    assert outcome.out == "schedule-001.png\n"
    assert (tmp_path / "schedule-001.png").read_bytes().startswith(b"\x89PNG")
    row = next(line.split() for line in outcome.err.splitlines() if line.split()[:1] == ["999"])
    assert row[1:3] == ["0.02", "4.03583e-05"]
    assert ok(run("inspect-schedule")).out == "schedule-002.png\n"
    left = ok(run("inspect-schedule", "linear", "--timesteps", 50, "--schedule.no-rescale", "--json"))
    assert "the last level is not noise: 78 % of the signal is left (alpha-bar 0.603)" in left.err


def test_a_prediction_that_multiplies_errors_is_noted(run: Run) -> None:
    note = "with --prediction eps, the first sampling step multiplies an error of the network by 31,"
    cosine = ("train", *POINTS, "--steps", 1, "--schedule", "cosine")
    outcome = run(*cosine, "--prediction", "eps", "--out", "eps")
    assert outcome.code == 0
    assert note in outcome.err
    assert "multiplies an error" not in ok(run(*cosine, "--out", "suited")).err


def test_list(run: Run) -> None:
    found = json.loads(ok(run("list", "--json")).out)
    assert {"ddim", "ddpm"} <= found["samplers"].keys()
    assert {"mlp", "unet"} <= found["backbones"].keys()
    eta = found["samplers"]["ddim"]["options"]["eta"]
    assert (eta["type"], eta["default"], eta["range"], eta["required"]) == ("float", 0.0, "0<=x<=1", False)
    assert list(json.loads(ok(run("list", "sampler", "--json")).out)) == ["samplers"]
    text = ok(run("list")).out
    for names in found.values():
        assert all(name in text for name in names)


def test_plugins(run: Run) -> None:
    found = json.loads(ok(run("plugins", "--json")).out)["plugins"]
    assert {p["plugin"] for p in found} >= {"difftool:samplers", "difftool:backbones", "difftool:datasets"}
    assert not any(p["problems"] or p["imports_torch"] for p in found)
    assert "difftool:samplers" in ok(run("plugins")).out


def test_info(run: Run, points_run: Path) -> None:
    facts = json.loads(ok(run("info", points_run, "--json")).out)
    assert facts["progress"]["step"] == facts["model"]["step"] == 30
    assert facts["backbone"]["width"] == 16
    (state,) = facts["states"]
    assert (state["file"], state["valid"]) == ("step-000000030.safetensors", True)
    assert (facts["status"], facts["step"], facts["steps"]) == ("finished", 30, 30)
    assert list(facts["plugins"]) == ["difftool"]
    weights = checkpoint.load(points_run / "model.safetensors")[0]
    assert facts["model"]["parameters"] == sum(t.numel() for t in weights.values())
    alone = json.loads(ok(run("info", points_run / "model.safetensors", "--json")).out)
    assert (alone["kind"], alone["weights"], alone["step"]) == ("model", "ema-0.999", 30)
    assert "swiss-roll" in ok(run("info", points_run)).out


# --- wrong usage and damaged files ---------------------------------------------------------------------------------


def spoil(folder: Path, points_run: Path, labels_run: Path) -> None:
    """Files that are no models, and a few that nearly are."""
    model = (points_run / "model.safetensors").read_bytes()
    tensors, document = checkpoint.load(points_run / "model.safetensors")
    document.pop("format")
    (folder / "empty.safetensors").touch()
    (folder / "text.safetensors").write_text("these are no weights\n" * 20)
    torch.save({"a": torch.zeros(3)}, folder / "pickle.safetensors")
    (folder / "truncated.safetensors").write_bytes(model[:-50])
    (folder / "flipped.safetensors").write_bytes(model[:-9] + bytes([model[-9] ^ 4]) + model[-8:])
    save_file({"a": torch.zeros(3)}, folder / "foreign.safetensors")
    save_file({"a": torch.zeros(3)}, folder / "notjson.safetensors", {"difftool": "{"})
    save_file({"a": torch.zeros(3)}, folder / "list.safetensors", {"difftool": "[1]"})

    def variant(name: str, **changes: Any) -> None:
        checkpoint.save(folder / f"{name}.safetensors", tensors, {**document, **changes})

    backbone, data = document["backbone"], document["data"]
    variant("huge", backbone={**backbone, "width": 16384, "depth": 64})
    variant("vast", backbone={**backbone, "width": 10**12})
    variant("wide", data={**data, "shape": [10**12]})
    variant("module", backbone={**backbone, "name": "os:system"})
    variant("path", backbone={**backbone, "name": "../../x"})
    variant("number", backbone={**backbone, "name": 3})
    variant("extra", backbone={**backbone, "evil": 1})
    variant("nodata", data=None)
    variant("infinite", data={**data, "shift": ["nan", 0.0]})
    variant("state", kind="state")
    variant("newer", format=99)
    variant("other", backbone={**backbone, "width": 8})
    variant("stranger", backbone={"name": "transformer"}, plugins={"difftool-vit": "2.1"})
    variant("step", step="many")
    variant("unscheduled", schedule=None)
    variant("flat", data={**data, "scale": [0.0, 1.0]})
    variant("turned", data={**data, "bounds": [1.0, -1.0]})
    for name, dtype in (("half", torch.float16), ("double", torch.float64)):  # a file of halves says that it is one
        checkpoint.save(folder / f"{name}.safetensors", {k: t.to(dtype) for k, t in tensors.items()}, document)
    save_file({"a": torch.zeros(3)}, folder / "deep.safetensors", {"difftool": "[" * 100_000})
    (folder / "x.png").write_text("no picture")
    (folder / "file").write_text("x")
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("x")
    (folder / "norun").mkdir()


NOT_OURS = "is not a safetensors file written by difftool"
BAD: list[tuple[list[str], int, str]] = [
    ([], 2, "name a command"),
    (["traim"], 2, "train"),
    (["train", "--out", "file", "--steps", "1"], 1, "--out: file is a file; name a folder"),
    (["train", "--out", "full", "--steps", "1"], 1, "--out: full is not empty"),
    (["train", "--out", "file/x", "--steps", "1"], 1, "file is not a folder"),
    (["train", "--device", "banana"], 2, "--device: unknown device 'banana'; choose auto"),
    (["train", "--device", "cuda:99"], 2, "--device: cuda:99 is not available; this machine has"),
    (["train", "--precision", "fp16", "--device", "cpu"], 2, "--precision: fp16 needs a CUDA device"),
    (["train", "--dataset", "image-folder", "--dataset.path", "missing"], 1, "missing"),
    (["train", "--dataset", "image-folder", "--dataset.path", "norun"], 1, "norun"),
    (["train", "--dataset", "image-folder", "--dataset.path", "full"], 1, "full"),
    (["train", "--dataset", "webdataset", "--dataset.path", "missing.tar"], 1, "missing.tar does not exist"),
    (["train", "--dataset", "webdataset", "--dataset.path", "full"], 1, "no .tar files in"),
    (["train", "--schedule.beta-min", "0.5", "--schedule.beta-max", "0.1"], 2, "beta"),
    (["sample", "missing"], 1, "missing does not exist"),
    (["sample"], 1, "there is no trained run under"),
    (["sample", "norun"], 1, "norun is not a run folder"),
    (["sample", "POINTS", "--steps", "1001"], 2, "--steps: 1001 is more than the schedule's 1000 levels"),
    (["sample", "POINTS", "--steps", "0"], 2, "--steps: must be greater than or equal to 1"),
    (["sample", "POINTS", "--label", "1"], 2, "--label: swiss-roll-mlp has no classes"),
    (["sample", "POINTS", "--guidance", "2"], 2, "--guidance: swiss-roll-mlp has no classes"),
    (["sample", "POINTS", "--guidance", "nan"], 2, "--guidance: must be a finite number"),
    (["sample", "POINTS", "--out", "x.bmp"], 2, "--out: x.bmp: cannot write .bmp files"),
    (["sample", "POINTS", "--out", "folder"], 2, "a folder holds images"),
    (["sample", "POINTS", "--out", "file/x.png"], 1, "file is not a folder"),
    (["sample", "POINTS", "--out", "x.png"], 1, "--out: x.png exists already"),
    (["sample", "POINTS", "--sampler", "dimm"], 2, "unknown sampler 'dimm'; did you mean 'ddim'"),
    (["sample", "POINTS", "--sampler.variance", "fixed-small"], 2, "is an option of the sampler ddpm"),
    (["sample", "POINTS", "--sampler.eta", "1.5"], 2, "--sampler.eta: must be less than or equal to 1"),
    (["sample", "POINTS", "--device", "banana"], 2, "--device: unknown device 'banana'"),
    (["sample", "POINTS", "--weights", "best"], 2, "--weights"),
    (["sample", "empty.safetensors"], 1, NOT_OURS),
    (["sample", "text.safetensors"], 1, NOT_OURS),
    (["sample", "pickle.safetensors"], 1, NOT_OURS),
    (["sample", "truncated.safetensors"], 1, NOT_OURS),
    (["sample", "foreign.safetensors"], 1, NOT_OURS),
    (["sample", "notjson.safetensors"], 1, NOT_OURS),
    (["sample", "list.safetensors"], 1, NOT_OURS),
    (["sample", "flipped.safetensors"], 1, "flipped.safetensors is damaged"),
    (["sample", "huge.safetensors"], 1, "its metadata ask for more than 10,000,000,000 parameters"),
    (["sample", "vast.safetensors"], 1, "its metadata are refused"),
    (["sample", "wide.safetensors"], 1, "describe no data"),
    (["sample", "module.safetensors"], 1, "unknown backbone 'os:system'"),
    (["sample", "path.safetensors"], 1, "unknown backbone '../../x'"),
    (["sample", "unscheduled.safetensors"], 1, "its metadata name no schedule"),
    (["sample", "flat.safetensors"], 1, "describe no data"),
    (["sample", "turned.safetensors"], 1, "describe no data"),
    (["sample", "half.safetensors"], 1, "is float16, not float32"),
    (["sample", "double.safetensors"], 1, "is float64, not float32"),
    (["sample", "deep.safetensors"], 1, "not a safetensors file written by difftool"),
    (["sample", "POINTS", "--out", "a.png", "--out", "./a.png"], 2, "a.png is given twice"),
    (["noise", "--at", ""], 2, "--at: must not be empty"),
    (["sample", "number.safetensors"], 1, "its metadata name no backbone"),
    (["sample", "extra.safetensors"], 1, "evil: there is no such option"),
    (["sample", "nodata.safetensors"], 1, "describe no data"),
    (["sample", "infinite.safetensors"], 1, "describe no data"),
    (["sample", "state.safetensors"], 1, "holds a training state, not a model"),
    (["sample", "newer.safetensors"], 1, "was written by a newer difftool (format 99)"),
    (["sample", "other.safetensors"], 1, "its weights do not fit its mlp: "),
    (
        ["sample", "stranger.safetensors"],
        1,
        "made with difftool-vit 2.1, which is not installed: pip install difftool-vit==2.1",
    ),
    (["sample", "step.safetensors"], 1, "malformed"),
    (["info", "truncated.safetensors"], 1, NOT_OURS),
    (["info", "missing"], 1, "missing"),
    (["info", "norun"], 1, "norun is not a run folder"),
    (["info"], 1, "there is no trained run under"),
    (["noise", "--at", "1000"], 2, "--at: 1000 is beyond the last level, 999"),
    (["noise", "--at", "-1"], 2, "--at: must be greater than or equal to 0"),
    (["noise", "--at", "1,x"], 2, "--at"),
    (["noise", "missing.png"], 1, "image missing.png does not exist"),
    (["noise", "x.png"], 1, "x.png"),
    (["noise", "full"], 1, "image full is not a file"),
    (["noise", "x.png", "--dataset", "swiss-roll"], 2, "--dataset: give either images or a dataset"),
    (["noise", "--size", "8", "--dataset", "swiss-roll"], 2, "--size: is for own images"),
    (["noise", "--out", "x.npy"], 2, "--out: x.npy: cannot write .npy files"),
    (["noise", "--schedule", "nope"], 2, "unknown schedule 'nope'"),
    (["inspect-schedule", "--out", "x.png"], 1, "--out: x.png exists already"),
    (["inspect-schedule", "--out", "new.gif"], 2, "--out: new.gif: cannot write .gif files"),
    (["list", "smaplers"], 2, "there is no kind 'smaplers'; did you mean 'samplers'"),
]


@pytest.mark.parametrize(("arguments", "code", "piece"), BAD, ids=[" ".join(row[0]) or "nothing" for row in BAD])
def test_bad_usage_is_one_line_and_changes_nothing(
    run: Run, points_run: Path, labels_run: Path, tmp_path: Path, arguments: list[str], code: int, piece: str
) -> None:
    spoil(tmp_path, points_run, labels_run)
    before, folders = tree(tmp_path), sorted(tmp_path.rglob("*"))
    outcome = run(*(points_run if a == "POINTS" else a for a in arguments))
    assert outcome.code == code, outcome.err
    assert piece in outcome.error
    if arguments:
        assert outcome.out == ""
    assert tree(tmp_path) == before
    assert sorted(tmp_path.rglob("*")) == folders


def test_debug_adds_the_traceback(run: Run) -> None:
    outcome = run("--debug", "train", "--lr", "nan")
    assert (outcome.code, "Traceback" in outcome.err, len(outcome.errors)) == (2, True, 1)
    assert "Traceback" in run("train", "--lr", "nan", "--debug").err


def test_control_characters_of_files_never_reach_the_terminal(run: Run, tmp_path: Path) -> None:
    outcome = run("sample", "evil\x1b[31m\nname")
    assert outcome.code == 1
    assert "\x1b" not in outcome.err
    (tmp_path / "c.toml").write_text('[backbone]\nname = "a\\u001b[31mb"\n')
    assert "\x1b" not in run("train", "--config", "c.toml").err


def test_an_image_that_the_unet_cannot_halve(run: Run, tmp_path: Path) -> None:
    outcome = run("train", *IMAGES, "--dataset.size", "8,9")
    assert outcome.code == 2
    assert "8x9 does not fit; the nearest size is 8x8 or 8x10" in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_compiled_networks_train_and_sample_as_plain_ones(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrapper of torch.compile takes the network's place everywhere; its back end here is plain torch."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda what, **how: compiler(what, **{**how, "backend": "eager"}))
    for name, flags in (("plain", ()), ("compiled", ("--compile",))):
        trained = run("train", *POINTS, "--steps", 3, *flags, "--out", name)
        assert trained.code == 0, trained.err
        drawn = run("sample", name, *flags, "-n", 5, "--steps", 2, "--out", f"{name}.npy")
        assert drawn.code == 0, drawn.err
    np.testing.assert_allclose(
        np.load(tmp_path / "plain.npy"), np.load(tmp_path / "compiled.npy"), rtol=1e-5, atol=1e-5
    )
