"""The two-pass command: options that depend on the components chosen. Runs with the oldest and newest Typer allowed."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import IMAGES, Run

from difftool import Backbone
from difftool.options import make, plain
from difftool.plugins.registry import registry
from difftool.settings import Training

DRY = ("train", "--dry-run", "--json", "--dataset.n", 64)


def resolved(run: Run, *arguments: object) -> dict[str, Any]:
    """What `train --dry-run --json` made of these arguments."""
    outcome = run(*DRY, *arguments)
    assert outcome.code == 0, outcome.err
    document: dict[str, Any] = json.loads(outcome.out)
    return document


@pytest.mark.parametrize(
    ("arguments", "table", "key", "value"),
    [
        (["--backbone.width", "48"], "backbone", "width", 48),
        (["--backbone.width=48"], "backbone", "width", 48),
        (["--backbone", "mlp", "--backbone.width", "48"], "backbone", "width", 48),
        (["--backbone.width", "48", "--backbone", "mlp"], "backbone", "width", 48),
        (["--backbone=mlp", "--backbone.width=48"], "backbone", "width", 48),
        (["--backbone.width", "4", "--backbone.width", "48"], "backbone", "width", 48),
        (["--backbone.activation", "relu"], "backbone", "activation", "relu"),
        (["--backbone.time-dim", "32"], "backbone", "time_dim", 32),
        (["--schedule.no-rescale"], "schedule", "rescale", False),
        (["--schedule.rescale"], "schedule", "rescale", True),
        (["--schedule.beta-max", "0.03"], "schedule", "beta_max", 0.03),
        (["--schedule.beta-max", "3e-2"], "schedule", "beta_max", 0.03),
        (["--schedule", "cosine", "--schedule.s", "0.01"], "schedule", "s", 0.01),
        (["--weighting", "min-snr", "--weighting.gamma", "2.5"], "weighting", "gamma", 2.5),
        (["--prediction", "v"], "prediction", "name", "v"),
        (["--dataset.noise", "0.25"], "dataset", "noise", 0.25),
        (["--dataset", "two-moons", "--dataset.labels"], "dataset", "labels", True),
        (["--lr", "0.5"], "training", "lr", 0.5),
        (["--lr=1e-4"], "training", "lr", 1e-4),
        (["--lr", "1"], "training", "lr", 1.0),
        (["--loss", "huber"], "loss", "name", "huber"),
        (["--loss", "huber", "--loss.delta", "2"], "loss", "delta", 2.0),
        (["--seed", str(2**63 - 1)], "training", "seed", 2**63 - 1),
        (["--steps", "0"], "training", "steps", 0),
        (["--checkpoint-every", "2ep"], "training", "checkpoint_every", "2ep"),
        (["--compile"], "training", "compile", True),
        (["--no-compile"], "training", "compile", False),
    ],
)
def test_a_flag_reaches_its_field(run: Run, arguments: list[str], table: str, key: str, value: object) -> None:
    found = resolved(run, *arguments)[table][key]
    assert (found, type(found)) == (value, type(value))


def test_tuples_reach_the_chosen_backbone(run: Run) -> None:
    sized = (*IMAGES, "--dataset.size", "8,16")
    document = resolved(run, *sized, "--backbone.attention", "none, full", "--backbone.dim-mults", "1,3")
    assert document["backbone"]["dim_mults"] == [1, 3]
    assert document["backbone"]["attention"] == ["none", "full"]
    assert document["dataset"]["size"] == [8, 16]


def test_defaults_suit_the_backbone_and_the_rest_follows(run: Run) -> None:
    points, images = resolved(run), resolved(run, "--backbone", "unet")
    assert [points[k]["name"] for k in ("dataset", "backbone", "schedule", "prediction", "weighting")] == [
        *("swiss-roll", "mlp", "linear", "eps", "none")
    ]
    for document in (points, images):
        suited = registry().of_kind(Backbone, document["backbone"]["name"]).training_defaults
        assert suited  # each brings some
        expected = plain(make(Training, suited))
        assert {key: document["training"][key] for key in suited} == {key: expected[key] for key in suited}
    assert images["dataset"]["name"] == "gradients"
    assert points["training"]["batch_size"] != images["training"]["batch_size"]
    assert resolved(run, "--dataset", "gradients")["backbone"]["name"] == "unet"


def test_epochs_put_the_default_steps_aside(run: Run) -> None:
    document = resolved(run, "--epochs", 3, "--batch-size", 24)
    assert document["steps"] == 8  # ceil(3 * 64 / 24)
    assert document["steps_per_epoch"] == 3
    assert "steps" not in document["training"]
    refused = run(*DRY, "--epochs", 3, "--steps", 5)
    assert refused.code == 2
    assert "--epochs: give either --steps or --epochs" in refused.error


HELPS = [
    (["train"], ["Backbone: mlp", "Dataset: swiss-roll", "Schedule: linear", "--backbone.width"], ["--backbone.dim"]),
    (
        ["train", "--backbone", "unet"],
        ["Backbone: unet", "Dataset: gradients", "--backbone.dim-mults", "default: 0,1,2"],
        ["--backbone.width", "Backbone: mlp", "--dataset.noise"],
    ),
    (["train", "--schedule=cosine"], ["Schedule: cosine", "--schedule.s "], ["--schedule.beta-min"]),
    (["sample"], ["Sampler: ddim", "--sampler.eta", "0<=x<=1", "Sampling", "-n"], ["--sampler.variance"]),
    (["sample", "--sampler", "ddpm"], ["Sampler: ddpm", "--sampler.variance"], ["--sampler.eta"]),
    (["noise"], ["Dataset: swiss-roll", "Schedule: linear", "--at"], ["--backbone"]),
    (["noise", "x.png"], ["Schedule: linear", "--size"], ["--backbone"]),
    (["inspect-schedule", "cosine"], ["Schedule: cosine", "--schedule.s "], ["--schedule.beta-min"]),
    (["inspect-schedule"], ["--schedule.beta-min", "--schedule.s "], ["--backbone"]),
]


@pytest.mark.parametrize(("arguments", "there", "absent"), HELPS)
def test_help_shows_the_chosen_components_alone(
    run: Run, arguments: list[str], there: list[str], absent: list[str]
) -> None:
    for flag in ("--help", "-h"):
        outcome = run(*arguments, flag)
        assert (outcome.code, outcome.err) == (0, "")
        for piece in there:
            assert piece in outcome.out, piece
        for piece in absent:
            assert piece not in outcome.out, piece


def help_line(text: str, flag: str) -> str:
    (line,) = (line for line in text.splitlines() if line.lstrip("│* ").startswith(f"{flag} "))
    return line


def test_help_shows_the_defaults_that_suit_the_backbone(run: Run) -> None:
    points, images = run("train", "--help").out, run("train", "--backbone", "unet", "--help").out
    for text, name in ((points, "mlp"), (images, "unet")):
        suited = registry().of_kind(Backbone, name).training_defaults
        for flag, key in (("--batch-size", "batch_size"), ("--steps", "steps")):
            assert f"[default: {suited[key]}]" in help_line(text, flag)
    assert "0<x<=10" in help_line(points, "--lr")


def test_help_says_what_is_required(run: Run) -> None:
    text = run("train", "--dataset", "image-folder", "--help").out
    lines = text.splitlines()
    at = lines.index(help_line(text, "--dataset.path"))
    assert "[required]" in " ".join(lines[at : at + 3])


def test_help_with_a_config_shows_its_values(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[backbone]\nname = "unet"\ndim = 24\n[training]\nlr = 0.5\n')
    text = run("train", "--config", "c.toml", "--help").out
    assert "[default: 24]" in help_line(text, "--backbone.dim")
    assert "[default: 0.5]" in help_line(text, "--lr")


def test_help_with_an_unknown_component_is_refused(run: Run) -> None:
    outcome = run("train", "--backbone", "nope", "--help")
    assert outcome.code == 2
    assert "unknown backbone 'nope'" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (["--backbone.width", "0"], "--backbone.width: must be greater than or equal to 1, not 0"),
        (["--backbone.width", "-3"], "--backbone.width: must be greater than or equal to 1, not -3"),
        (["--backbone.width=-3"], "--backbone.width: must be greater than or equal to 1, not -3"),
        (["--backbone.width", "1.5"], "--backbone.width"),
        (["--backbone.width", "wide"], "--backbone.width"),
        (["--backbone.width"], "--backbone.width"),
        (["--backbone.time-dim", "3"], "--backbone.time-dim: must be even"),
        (["--backbone.activation", "rely"], "--backbone.activation"),
        (["--dataset.noise", "nan"], "--dataset.noise: must be a finite number"),
        (["--dataset.noise", "inf"], "--dataset.noise: must be a finite number"),
        (["--dataset.noise", "-1"], "--dataset.noise: must be greater than or equal to 0"),
        (["--lr", "nan"], "--lr: must be a finite number"),
        (["--lr", "-inf"], "--lr: must be a finite number"),
        (["--lr", "-1e-3"], "--lr: must be greater than 0"),
        (["--lr", "0"], "--lr: must be greater than 0"),
        (["--ema", "1"], "--ema: must be less than 1"),
        (["--steps", "-1"], "--steps: must be greater than or equal to 0, not -1"),
        (["--steps", "abc"], "--steps"),
        (["--steps", "1.5"], "--steps"),
        (["--steps", "9" * 30], "--steps: must be less than or equal to 1000000000"),
        (["--batch-size", "0"], "--batch-size: must be greater than or equal to 1"),
        (["--seed", "-1"], "--seed: must be greater than or equal to 0"),
        (["--seed", str(2**63)], "--seed"),
        (["--timesteps", "0"], "--timesteps"),
        (["--loss", "huber", "--loss.delta", "0"], "--loss.delta: must be greater than 0"),
        (["--checkpoint-every", "often"], "--checkpoint-every: must be a number of steps such as 500"),
        (["--dataset", "image-folder", "--dataset.path", "pa\udcffth"], "--dataset.path: must be UTF-8 text"),
        (["--held-out", "64"], "--held-out: cannot hold out 64 of 64 items"),
        (["--schedule.beta-min", "1"], "--schedule.beta-min"),
        (["--backbone", "unet", "--backbone.dim-mults", "1,x"], "--backbone.dim-mults"),
        (["--backbone", "unet", "--backbone.dim-mults", ""], "--backbone.dim-mults: must not be empty"),
        (["--backbone", "unet", "--backbone.dim-mults", "1,0"], "--backbone.dim-mults: only the first levels may be 0"),
        (
            ["--backbone", "unet", "--backbone.groups", "7"],
            "--backbone.groups: must divide the channels of every level",
        ),
        (["--backbone", "unet", "--dataset.size", "10"], "10x10 does not fit; the nearest size is 8x8 or 12x12"),
        (["--backbone", "unet", "--dataset", "swiss-roll"], "unet needs series (channels, length), images"),
        (["--backbone.widht", "3"], "there is no option --backbone.widht; did you mean --backbone.width?"),
        (["--backbone.zzz", "3"], "there is no option --backbone.zzz; backbone takes --backbone.activation"),
        (["--step", "50"], "there is no option --step; did you mean --steps"),
        (["--backbone.dim", "3"], "--backbone.dim is an option of the backbone unet; choose it with --backbone unet"),
        (["--dataset.no-labels"], "--dataset.no-labels is an option of the datasets "),
        (["--schedule", "cosine", "--schedule.beta-min", "0.1"], "is an option of the schedules "),
        (["--backbone", "nope"], "unknown backbone 'nope'"),
        (["--backbone", "unett"], "unknown backbone 'unett'; did you mean 'unet'?"),
        (["--backbone", "os:system"], "unknown backbone 'os:system'"),
        (["--schedule", "linaer"], "did you mean 'linear'"),
        (["--dataset", "image-folder"], "--dataset.path: must be given"),
        (["extra"], "unexpected extra argument"),
    ],
)
def test_a_wrong_option_is_told_by_its_flag(run: Run, tmp_path: Path, arguments: list[str], piece: str) -> None:
    base = ["train", *([] if "image-folder" in arguments else ["--dataset.n", "64"])]
    outcome = run(*base, *arguments)
    assert outcome.code == 2, outcome.err
    assert piece in outcome.error
    assert outcome.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--dry-run", "--dataset.n", "64", "--backbone", ""],
        ["train", "--dry-run", "--dataset.n", "64", "--schedule="],
        ["noise", "--dataset", "", "--at", "0"],
    ],
)
def test_an_empty_name_is_no_name(run: Run, arguments: list[str]) -> None:
    assert "must not be empty" in run(*arguments).error


CONFIG = """\
# a comment

[backbone]
name = "mlp"
width = 24  # units

[training]
steps = 7
lr = 0.01
"""


def test_a_config_chooses_and_the_command_line_wins(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    document = resolved(run, "--config", "c.toml")
    assert (document["backbone"]["width"], document["steps"], document["training"]["lr"]) == (24, 7, 0.01)
    document = resolved(run, "--config", "c.toml", "--backbone.width", 8, "--steps", 9)
    assert (document["backbone"]["width"], document["steps"], document["training"]["lr"]) == (8, 9, 0.01)
    assert resolved(run, "--config", "c.toml", "--backbone", "mlp")["backbone"]["width"] == 24
    epochs = resolved(run, "--config", "c.toml", "--epochs", 2, "--batch-size", 64)
    assert (epochs["steps"], "steps" in epochs["training"]) == (2, False)


def test_a_component_named_anew_drops_the_old_ones_options(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    document = resolved(run, "--config", "c.toml", "--backbone", "unet", "--dataset.size", 8)
    assert document["backbone"]["name"] == "unet"
    assert "width" not in document["backbone"]
    assert document["steps"] == 7


def test_options_of_a_component_chosen_by_the_config_are_known(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[schedule]\nname = "cosine"\n')
    assert resolved(run, "--config", "c.toml", "--schedule.s", 0.02)["schedule"] == {
        **resolved(run, "--schedule", "cosine")["schedule"],
        "s": 0.02,
    }


def test_a_resolved_config_is_a_config(run: Run, tmp_path: Path) -> None:
    first = run("train", "--dry-run", "--dataset.n", 64, "--schedule", "cosine", "--lr", 0.02)
    assert first.code == 0
    (tmp_path / "again.toml").write_text(first.out)
    again = run("train", "--dry-run", "--config", "again.toml")
    assert (again.code, again.out) == (0, first.out)
    assert tomllib.loads(first.out)["training"]["lr"] == 0.02


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (
            "[backbone]\nwidht = 3\n",
            ["c.toml, line 2", "backbone.widht: there is no such option; did you mean 'width'?"],
        ),
        ('[backbone]\nwidth = "x"\n', ["c.toml, line 2", "backbone.width: must be a whole number"]),
        ("\n[backbone]\n\n  width = 0\n", ["c.toml, line 4", "backbone.width: must be greater than or equal to 1"]),
        ('[training]\nlr = "fast"\n', ["c.toml, line 2", "training.lr: must be a number"]),
        ("[training]\nlr = nan\n", ["c.toml, line 2", "training.lr: must be a finite number"]),
        ("[training]\nseed = true\n", ["c.toml, line 2", "training.seed: must be a whole number"]),
        ("[training]\nstesp = 3\n", ["c.toml, line 2", "training.stesp", "did you mean 'steps'?"]),
        ("[training]\nsteps = 3\nepochs = 2\n", ["c.toml, line 3", "training.epochs: give either"]),
        ('[backbones]\nname = "mlp"\n', ["c.toml, line 1", "backbones", "did you mean 'backbone'?"]),
        ("backbone = 3\n", ["c.toml", "backbone: must be a table"]),
        ("[backbone]\nname = 3\n", ["the name of a backbone must be text"]),
        ('[backbone]\nname = "nope"\n', ["unknown backbone 'nope'"]),
        ("[backbone\n", ["config file c.toml is not valid TOML", "line 1"]),
        ("[training]\nlr = \n", ["config file c.toml is not valid TOML", "line 2"]),
        ("[training]\nwhen = 2020-01-01\n", ["training.when: there is no such option"]),
        ("[training]\nlr = 2020-01-01\n", ["c.toml, line 2", "training.lr: not a plain value"]),
        ("[training]\nlr = [1.0]\n", ["c.toml, line 2", "training.lr: must be a number"]),
        ("[backbone]\nwidth = {a = 1}\n", ["c.toml, line 2", "backbone.width: must be a whole number"]),
    ],
)
def test_a_wrong_config_is_told_by_file_key_and_line(run: Run, tmp_path: Path, text: str, pieces: list[str]) -> None:
    (tmp_path / "c.toml").write_text(text)
    outcome = run("train", "--config", "c.toml", "--dry-run")
    assert outcome.code == 2, outcome.err
    for piece in pieces:
        assert piece in outcome.error
    assert outcome.out == ""


def test_a_config_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'# caf\xe9\n[backbone]\nname = "mlp"\n')
    (tmp_path / "folder").mkdir()
    for name, piece in (
        ("missing.toml", "config file missing.toml does not exist"),
        ("latin.toml", "config file latin.toml is not valid TOML"),
        ("folder", "config file folder cannot be read: Is a directory"),
    ):
        outcome = run("train", "--config", name)
        assert outcome.code == 2
        assert piece in outcome.error


def test_an_error_on_the_command_line_is_not_blamed_on_the_config(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    outcome = run("train", "--config", "c.toml", "--backbone.width", 0)
    assert outcome.error.startswith("difftool: error: --backbone.width: must be")


def completion(*words: str) -> dict[str, str]:
    """Return what bash sets to complete the last word."""
    line = " ".join(("difftool", *words))
    return {"_DIFFTOOL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}


def test_completion_of_the_module(cli: Run) -> None:
    """`python -m difftool` names the variable after the program, for main gives the program's name."""
    assert cli(env=completion("tra")).out.split() == ["train"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["train", "--backbone", "u"], ["unet"]),
        (["train", "--schedule", "cos"], ["cosine"]),
        (["train", "--backbone", "unet", "--backbone.dim"], ["--backbone.dim", "--backbone.dim-mults"]),
        (["train", "--backbone.wid"], ["--backbone.width"]),
        (["train", "--backbone", "unet", "--backbone.wid"], []),
        (["train", "--schedule.no-r"], ["--schedule.no-rescale"]),
        (["train", "--backbone.activation", "r"], ["relu"]),
        (["train", "--lr-s"], ["--lr-schedule"]),
        (["sample", "--sampler", "dd"], ["ddim", "ddpm"]),
        (["sample", "--sampler", "ddpm", "--sampler."], ["--sampler.variance"]),
        (["sample", "--guidance", "1,au"], ["1,autoguidance"]),
        (["inspect-schedule", "cos"], ["cosine"]),
        (["list", "sam"], ["samplers"]),
        (["train", "--backbone", "nope", "--backbone."], []),
    ],
)
def test_completion(run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], offered: list[str]) -> None:
    for name, value in completion(*words).items():
        monkeypatch.setenv(name, value)
    outcome = run()
    assert "Traceback" not in outcome.err
    assert sorted(outcome.out.split()) == offered


def test_positional_schedules_take_the_options_they_have(run: Run) -> None:
    outcome = run("inspect-schedule", "linear", "cosine", "--schedule.beta-max", "0.01", "--json")
    assert outcome.code == 0, outcome.err
    tables = json.loads(outcome.out)["schedules"]
    assert list(tables) == ["linear", "cosine"]
    assert tables["linear"]["beta"][-1] == pytest.approx(0.01)
    assert max(tables["cosine"]["beta"]) == pytest.approx(0.01)
    before = run("inspect-schedule", "--schedule.beta-max", "0.01", "linear", "--json")
    assert json.loads(before.out)["schedules"]["linear"] == tables["linear"]


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (["cosine", "--schedule.beta-min", "0.01"], "--schedule.beta-min"),
        (["nope"], "unknown schedule 'nope'"),
        (["linaer"], "did you mean 'linear' or 'log-linear'?"),
        (["linear", "nope"], "unknown schedule 'nope'"),
        (["linear", "--schedule.beta-max", "1"], "--schedule.beta-max: must be less than 1"),
        (["linear", "--schedule.beta-max", "nan"], "--schedule.beta-max: must be a finite number"),
        (["linear", "--timesteps", "0"], "--timesteps"),
        (["linear", "--backbone", "mlp"], "there is no option --backbone"),
    ],
)
def test_wrong_schedules(run: Run, tmp_path: Path, arguments: list[str], piece: str) -> None:
    outcome = run("inspect-schedule", *arguments)
    assert outcome.code == 2
    assert piece in outcome.error
    assert (outcome.out, list(tmp_path.iterdir())) == ("", [])


def test_n_is_short_for_num_samples(run: Run, points_run: Path, tmp_path: Path) -> None:
    import numpy as np

    for flag, count in (("-n", 3), ("--num-samples", 4)):
        outcome = run("sample", points_run, flag, count, "--steps", 1, "--out", f"x{count}.npy")
        assert outcome.code == 0, outcome.err
        assert len(np.load(tmp_path / f"x{count}.npy")) == count
    refused = run("sample", points_run, "-n", 0)
    assert refused.code == 2
    assert "--num-samples: must be greater than or equal to 1, not 0" in refused.error
