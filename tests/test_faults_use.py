"""The first five minutes: what a newcomer types, sees and waits for."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import typer.completion
from conftest import POINTS, Run
from PIL import Image

from difftool import DatasetContext, OracleSpec
from difftool.cli import check, compare, noise, reconstruct, sample
from difftool.cli.console import duration
from difftool.cli.training import BarWords
from difftool.components import KINDS, NoiseSchedule, Sampler, Spacing
from difftool.diffusion.visible import hidden, spread, thinned, visible_levels
from difftool.options import Options, fields
from difftool.plugins.build import build_schedule
from difftool.plugins.registry import registry
from difftool.sampling.comparison import Comparison, entries
from difftool.sampling.oracle import OracleSource
from difftool.settings import Sampling, Training
from difftool_plugins.datasets.points import GaussianMixture, TwoMoons
from difftool_plugins.oracles.exact import ClosedForm, Ideal, in_model_units
from difftool_plugins.oracles.mixture import MixtureDenoiser
from difftool_plugins.schedules.variance_preserving import Linear

ORACLE = ("--oracle", "closed-form", "--dataset", "gaussian-mixture", "--dataset.n", 200)


# --- completion, help, lists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_ends_cleanly(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: str) -> None:
    """`--install-completion` and `--show-completion` work and exit with 0."""
    monkeypatch.setattr(typer.completion, "_get_shell_name", lambda: shell)
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: shell)
    monkeypatch.setenv("HOME", str(tmp_path))
    for option in ("--show-completion", "--install-completion"):
        outcome = run(option)
        assert (outcome.code, outcome.err) == (0, "")
    assert shell in outcome.out
    assert [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_component_that_exits_is_still_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SystemExit that is not a completion's is an error, also beside `--show-completion` as a value."""
    monkeypatch.setattr("difftool.cli.runs._found", lambda *_, **__: exit(0))
    for arguments in (("runs",), ("runs", "--", "--show-completion")):
        assert run(*arguments).code != 0


def test_help_marks_an_argument_as_required_once(run: Run) -> None:
    """`new-plugin --help` says `[required]` once for each argument."""
    text = run("new-plugin", "--help").out
    assert text.count("[required]") == 2  # NAME and --kind


def test_list_shows_real_defaults(run: Run) -> None:
    """`list` shows no default where an option has none: `memory`, not `memory=auto`."""
    lines = run("list", "datasets").out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("image-folder"))
    options = " ".join(
        line[line.index("path") :] if "path" in line else line.strip() for line in lines[first : first + 2]
    )
    assert re.search(r"labels=auto, .*skip-bad=off, memory\b(?!=)", options)
    options = json.loads(run("list", "datasets", "--json").out)["datasets"]["image-folder"]["options"]
    assert options["memory"]["default"] is None
    assert "images" in options["memory"]["otherwise"]


def test_counts_agree_with_their_nouns(run: Run, points_run: Path) -> None:
    """Notes say `1 sample` and `1 step`."""
    text = run("sample", points_run, "-n", 1, "--steps", 1, "--out", "x.npy").err
    assert re.search(r"1 sample, ddim, 1 step, ", text)
    assert re.search(r"1 sample in .* \(1 step, 1 network call each\)", text)


# --- options that only cost time or memory ---------------------------------------------------------------------------


def test_every_whole_number_has_an_upper_bound() -> None:
    """Every whole number among the options has a largest value."""
    settings: list[type[Options]] = [
        *(Training, Sampling, noise.Noising, compare.Comparing, sample.Display),
        *(reconstruct.Reconstructing, check.Checking),
    ]
    records = [*settings, *(component for base in KINDS.values() for component in registry().all_of(base))]
    numbers = [(record.__name__, f) for record in records for f in fields(record) if f.scalar is int]
    assert len(numbers) > 40
    assert [(name, f.name) for name, f in numbers if f.details.le is None and f.details.lt is None] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", *ORACLE, "--strip", 10**12),
        ("sample", *ORACLE, "--columns", 10**12),
        ("sample", *ORACLE, "-n", 10**12),
        ("sample", *ORACLE, "--out", "x.gif", "--writer.frames", 10**12),
        ("compare", *ORACLE, "--calls", 10**12),
        ("compare", *ORACLE, "--reference", 10**12),
        ("noise", "--at", 10**12),
        ("train", "--warmup", 10**12),
        ("train", "--held-out", 10**12),
        ("train", "--workers", 10**12),
        ("train", "--dataset.n", 10**12),
        ("check", "mlp", "--shape", 10**12),
        ("check", "unet", "--shape", "3,4096,4096"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[-2:])),
)
def test_numbers_that_only_cost_time_are_bounded(run: Run, arguments: tuple[object, ...]) -> None:
    """A number that would only cost time or memory is refused with the largest one allowed."""
    outcome = run(*arguments)
    assert outcome.code == 2
    assert re.search(r": (must be less than|an item may have at most)", outcome.error)
    assert re.search(r"\d", outcome.error.partition("must be")[2] or outcome.error)


# --- pictures and files that nobody asked for ------------------------------------------------------------------------


@pytest.mark.parametrize("never", ["0", "0ep"])
def test_previews_can_be_switched_off(run: Run, never: str) -> None:
    """`--preview-every 0` draws no samples, also at the end."""
    assert run("train", *POINTS, "--preview-every", never, "--steps", 2, "--out", "r").code == 0
    assert not list(Path("r").glob("previews/*"))
    assert run("train", "--resume", "r", "--preview-every", 3, "--steps", 4).code == 0
    assert sorted(path.name for path in Path("r/previews").iterdir()) == [
        *("panel-000003.png", "panel-000004.png", "samples-000003.png", "samples-000004.png")
    ]


def test_numbers_bring_no_picture(run: Run, points_run: Path) -> None:
    """`--json` of compare, noise, reconstruct and inspect-schedule draws a figure only where --out names one."""
    commands = (
        ("compare", *ORACLE, "--samplers", "ddim", "--calls", 2, "--reference", 4, "-n", 10),
        ("noise", "-n", 10, "--dataset.n", 10),
        ("reconstruct", points_run, "-n", 10),
        ("inspect-schedule", "linear"),
    )
    for command in commands:
        assert json.loads(run(*command, "--json").out).get("files", []) == []
        assert not list(Path().iterdir())
        assert run(*command, "--json", "--out", "x.png").code == 0
        Path("x.png").unlink()


def test_jsonl_needs_no_path(run: Run) -> None:
    """`--logger jsonl` writes logs/metrics.jsonl in the run folder, and says so."""
    outcome = run("train", *POINTS, "--steps", 2, "--out", "r", "--logger", "jsonl")
    assert outcome.code == 0
    assert "jsonl: " in outcome.err
    assert [json.loads(line)["step"] for line in Path("r/logs/metrics.jsonl").read_text().splitlines()] == [1, 2]
    Path("r").rename("s")
    assert run("train", "--resume", "s", "--steps", 3).code == 0
    assert len(Path("s/logs/metrics.jsonl").read_text().splitlines()) == 3
    assert not Path("r").exists()


# --- levels that show something --------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow", "log-linear"])
@pytest.mark.parametrize("is_image", [False, True])
def test_levels_are_even_in_what_can_be_seen(schedule: str, is_image: bool) -> None:
    """`noise` shows levels at which signal is left, evenly spread, and pure noise once."""
    table = build_schedule(registry().of_kind(NoiseSchedule, schedule)(), 1000)
    levels = visible_levels(table, is_image=is_image)
    ratios = [table[t].sigma / table[t].alpha for t in levels[:-1]]
    assert levels[-1] == 999
    assert ratios[0] > 0.04
    assert ratios[-1] < 2.0  # of 0.5 and 0.25, tan(4/5 of a right angle) is 3.1: 1.54 and 0.77
    shares = [0.0, *hidden([table[t] for t in levels], is_image=is_image)]
    assert [b - a for a, b in pairwise(shares)] == pytest.approx([0.2] * 5, abs=0.02)


def test_places_are_spread() -> None:
    """As many states as asked for are shown, in order, each once; few or crowded ones too."""
    assert spread(range(101), 5) == [0, 25, 50, 75, 100]
    assert spread([1.0, 0.99, 0.98, 0.5, 0.0], 3) == [0, 3, 4]
    assert spread([1.0, 0.99, 0.98, 0.5, 0.0], 4) == [0, 2, 3, 4]
    assert spread([3.0, 2.0], 9) == [0, 1]
    assert spread([3.0, 2.0, 1.0], 1) == [2]
    assert thinned([1.0, 0.99, 0.98, 0.5, 0.0], 5) == [0, 2, 3, 4]
    assert thinned([0.0], 5) == [0]
    crowd = [1 - (i / 200) ** 3 for i in range(201)]
    for count in range(2, 202):
        chosen = spread(crowd, count)
        assert (len(chosen), chosen[0], chosen[-1]) == (count, 0, 200)
        assert all(a < b for a, b in pairwise(chosen))


def test_words_of_noise_agree_with_its_pictures(run: Run) -> None:
    """`noise` names the levels that it draws: those of a strip, and the number of those of a film."""
    strip = run("noise", "-n", 20, "--dataset.n", 20, "--out", "a.png").err
    assert "levels 21, 52, 100, 210, 999, in closed form" in strip
    film = run("noise", "-n", 20, "--dataset.n", 20, "--out", "a.gif").err
    assert "60 levels from 0 to 999 in the film, in closed form" in film
    assert "levels 21" not in film
    with Image.open("a.gif") as picture:
        assert picture.n_frames == 61  # type: ignore[attr-defined]  # x_0 comes first


def test_films_of_trajectories_do_not_linger_in_noise(run: Run) -> None:
    """A film of 50 steps leaves out states that look like the one before; --writer.frames bounds the others."""
    frames = []
    for most in ((), ("--writer.frames", 5)):
        assert run("sample", *ORACLE, "-n", 20, "--out", "a.gif", "--overwrite", *most).code == 0
        with Image.open("a.gif") as picture:
            frames.append(picture.n_frames)  # type: ignore[attr-defined]
    assert 15 <= frames[0] < 40
    assert frames[1] == 5


@pytest.mark.parametrize("data", ["points", "images"])
def test_a_long_strip_is_a_page(run: Run, data: str) -> None:
    """`--strip 101` wraps into rows, and `--columns` says how many states stand side by side."""
    images = ("--oracle", "ideal", "--dataset", "gradients", "--dataset.size", 8, "--dataset.n", 10, "-n", 2)
    source = images if data == "images" else (*ORACLE, "-n", 20)
    strip = ("sample", *source, "--steps", 40, "--strip", 41, "--overwrite", "--out", "a.png")
    assert run(*strip).code == 0
    with Image.open("a.png") as picture:
        assert 0.8 < picture.width / picture.height < 2.0
    assert run(*strip, "--columns", 4).code == 0
    with Image.open("a.png") as picture:
        assert picture.height > 1.5 * picture.width


# --- words on a narrow screen, and while training --------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 60])
def test_help_keeps_names_whole(cli: Run, columns: int) -> None:
    """Help cuts no name of an option and no word, at 80 columns and at 60."""
    images = ("--backbone", "unet", "--dataset", "image-folder")
    for command in (("train", *images), ("sample", "--oracle", "ideal"), ("noise",), ()):
        text = cli(*command, "--help", env={"COLUMNS": str(columns)}).out
        assert "…" not in text
        if command[:1] == ("train",):
            assert "--checkpoint-activations " in text
    assert "--install-completion " in text


def test_tables_keep_numbers_whole(cli: Run, points_run: Path) -> None:
    """`inspect-schedule` and `runs` cut no number at 60 columns."""
    table = cli("inspect-schedule", "linear", "--out", "x.png", env={"COLUMNS": "60"}).err
    assert "4.03583e-05" in table
    table = cli("runs", points_run.parent, env={"COLUMNS": "60"}).out
    assert re.search(r"finished +30/30 +\d\.\d+ ", table)
    assert "…" not in table


def test_the_bar_says_epoch_and_held_out_loss() -> None:
    """The words of the training bar name the epoch, the held-out loss as it comes, and the order of `by t`."""
    words = BarWords(batch_size=50, items=100, steps=9)
    assert str(words) == ""
    row = {"step": 3, "loss": 0.5, "loss_quartiles": [0.9, 0.3, None, 0.1], "steps_per_second": 10.0}
    words.add(row)
    first, second = str(words).splitlines()
    assert first == "epoch 2/5  10.0 steps/s  500 samples/s"
    assert second == "loss 0.5000  by t, clean to noisy: 0.900 0.300 - 0.100"
    words.add({**row, "held_out_loss": 0.25})
    words.add({**row, "step": 9})
    assert str(words).startswith("epoch 5/5")
    assert "loss 0.5000  held out 0.2500  by t" in str(words)


def test_times_are_words() -> None:
    """Times that are left are given in units that are read at once."""
    assert [duration(s) for s in (0.2, 59, 60, 547, 7800, 3e5)] == [
        *("0 s", "59 s", "1 min 00 s", "9 min 07 s", "2 h 10 min", "3 d 11 h")
    ]


# --- first guesses, and waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("my photos",), "unexpected"),
        (("photos",), "--dataset image-folder --dataset.path photos"),
        (("--dataset", "photos"), "--dataset image-folder --dataset.path photos"),
        (("--dataset", "./photos/"), "--dataset image-folder --dataset.path ./photos/"),
        (("--dataset", "mnist"), "--dataset hf --dataset.path ylecun/mnist"),
        (("--dataset", "celeba-faces"), "--dataset image-folder --dataset.path FOLDER"),
        (("--dataset", "cifar10"), "--dataset hf --dataset.path uoft-cs/cifar10"),
        (("--dataset", "swiss-rol"), "did you mean 'swiss-roll'?"),
        (("old",), "--resume old"),
        (("my.toml",), "--config my.toml"),
        (("unet",), "--backbone unet"),
        (("two-moons",), "--dataset two-moons"),
    ],
)
def test_first_guesses_lead_to_the_command(run: Run, arguments: tuple[str, ...], advice: str) -> None:
    """`train photos`, `--dataset photos` and `--dataset mnist` name the command that learns them."""
    Path("photos").mkdir()
    Path("old").mkdir()
    Path("old/config.toml").write_text("")
    outcome = run("train", *arguments)
    assert outcome.code == 2
    assert advice in outcome.error


def test_a_comparison_with_an_oracle_is_quick_by_default(run: Run) -> None:
    """`compare --oracle ideal` takes 1,000 items and samples unless told otherwise, and counts its network calls."""
    quick = ("compare", "--oracle", "ideal", "--dataset", "two-moons", "--samplers", "ddim,heun,ddpm", "--json")
    few = ("--calls", "2,4", "--reference", 6)
    outcome = run(*quick, *few, "--dataset.n", 3000)
    assert "ideal: takes --oracle.items 1000" in outcome.err
    document = json.loads(outcome.out)
    assert (document["num_samples"], document["oracle"]["items"]) == (1000, 1000)
    given = run(*quick, *few, "--dataset.n", 300, "--oracle.items", 200, "-n", 50)
    assert "to be quick" not in given.err
    assert json.loads(given.out)["num_samples"] == 50


def test_a_comparison_knows_its_work(run: Run) -> None:
    """The bar of `compare` counts network calls, of the exact solution too, so that the time left is right."""
    source = OracleSource.of(ClosedForm(), GaussianMixture(n=100), Linear())
    settings = Sampling(num_samples=20, batch_size=8)
    comparison = Comparison(source, GaussianMixture(n=100), settings, reference_steps=10)
    samplers = [registry().of_kind(Sampler, name)() for name in ("ddim", "heun", "ddpm")]
    spacings = [registry().of_kind(Spacing, name)() for name in ("trailing", "log-snr")]
    planned = entries(source, samplers, spacings, [3, 7], settings)
    total, seen = comparison.calls_of(planned), []
    for entry in planned:
        comparison.measure(entry, lambda _: seen.append(comparison.count.done))
    assert comparison.count.done == total
    assert seen == sorted(seen)


def test_few_items_of_an_oracle_are_of_all_classes() -> None:
    """`--oracle.items` picks at random: every hundredth item of two moons would be of the upper one."""
    samples = TwoMoons(n=1000).load(DatasetContext())
    spec = OracleSpec(device=torch.device("cpu"), schedule=Linear().build(10))
    denoiser = Ideal(items=10).denoiser(samples, spec)
    assert isinstance(denoiser, MixtureDenoiser)
    again = Ideal(items=10).denoiser(samples, spec)
    assert isinstance(again, MixtureDenoiser)
    assert torch.equal(denoiser.means, again.means)
    items, _ = samples.take(range(1000))
    means = denoiser.means.double()
    places = [int((in_model_units(items, samples) - mean).norm(dim=1).argmin()) for mean in means]
    assert {place % 2 for place in places} == {0, 1}


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_libtiff_prints_nothing(cli: Run, tmp_path: Path, compression: str) -> None:
    """A damaged TIFF is one clear line; libtiff's own lines are not printed."""
    noise = Image.effect_noise((64, 64), 90)
    noise.save(tmp_path / "a.tif", compression=compression)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    for i in range(200, len(content) - 400, 37):
        content[i] ^= 0x5A
    (tmp_path / "a.tif").write_bytes(content)
    outcome = cli("noise", "a.tif", "--out", "x.png")
    if outcome.code:
        assert outcome.err == f"{outcome.error}\n"
        assert outcome.error.startswith("difftool: error: a.tif: ")
    else:
        assert all(line.startswith("a, linear") for line in outcome.err.splitlines())
