"""`difftool evaluate`: samples against data, beside data against data; what it says, keeps and refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome, Run
from torch import Tensor

import difftool
from difftool import DifftoolError, Features, Metric, Sampler, Samples, Score, Sets, Step, UsageError, hookimpl
from difftool.data.samples import points
from difftool.evaluation import views
from difftool.evaluation.drawing import conditions_from, draw_rows
from difftool.evaluation.evaluation import Evaluator
from difftool.evaluation.measuring import Measured, difference
from difftool.evaluation.reference import Reference, apart
from difftool.evaluation.settings import Evaluating
from difftool.evaluation.words import beside, beside_floor, with_error
from difftool.rng import generator
from difftool.runs.evaluations import append_evaluation, read_evaluations
from difftool.runs.folder import RunFolder
from difftool.testing import PluginManager

FEW = ("-n", 300, "--steps", 5, "--metric", "kid,sliced-w2")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def points_copy(points_run: Path, tmp_path: Path) -> Path:
    return copied(points_run, tmp_path)


def copied(run: Path, folder: Path) -> Path:
    """Copy a shared run, to which an evaluation would be added."""
    return Path(shutil.copytree(run, folder / "a"))


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def scores(outcome: Outcome, which: int = 0) -> dict[str, Any]:
    evaluation = json.loads(ok(outcome).out)["evaluations"][which]
    return {score["name"]: score for score in evaluation["scores"]}


def fresh(count: int, seed: int, std: float = 0.1) -> Tensor:
    """Points of the distribution of the runs' data: four Gaussians on a circle."""
    made: Any = difftool.component("dataset", "gaussian-mixture", n=count, components=4)
    samples: Samples = made.load(difftool.DatasetContext(seed=seed))
    return samples.take_items(range(count))


# --- what the command says and keeps ----------------------------------------------------------------------------------


def test_a_run_is_measured_and_the_run_keeps_the_numbers(run: Run, points_copy: Path) -> None:
    outcome = ok(run("evaluate", points_copy, *FEW))
    assert outcome.lines[0].split() == ["score", "value", "at", "floor's", "size", "floor", "beside", "data"]
    assert [line.split()[0] for line in outcome.lines[1:]] == ["kid", "sliced-w2"]
    assert all("above the floor by" in line for line in outcome.lines[1:]), "30 steps are no training"
    assert "floor: 250 items of the data, in place of samples, against 250 others" in outcome.err
    assert "sampling takes about" in outcome.err
    (kept,) = read_evaluations(RunFolder(points_copy))
    assert kept["step"] == 30
    assert (kept["n"], kept["against"], kept["reference"]) == (300, "train", 500)
    assert kept["features"]["name"] == "pixels"
    assert kept["sampling"]["sampler"] == "ddim"
    assert kept["sampling"]["steps"] == 5
    assert [score["floor_sizes"] for score in kept["scores"]] == [[250, 250]] * 2
    assert kept["model"] == difftool.load(points_copy).digest
    ok(run("evaluate", points_copy, *FEW, "--sampler.eta", 0.5))
    assert [each["sampling"].get("sampler.eta") for each in read_evaluations(RunFolder(points_copy))] == [None, 0.5]


def test_two_runs_differ_by_more_than_their_error_bars_or_not_at_all(run: Run, points_copy: Path) -> None:
    shutil.copytree(points_copy, "b")
    outcome = json.loads(ok(run("evaluate", points_copy, "b", *FEW, "--json", "--csv", "x.csv")).out)
    assert {each["verdict"] for each in outcome["differences"]} == {"no difference"}
    first = {score["name"]: score for score in outcome["evaluations"][0]["scores"]}
    for each in outcome["differences"]:
        assert each["difference"] == 0.0
        assert each["error"] == pytest.approx(math.sqrt(2) * first[each["name"]]["error"])
    rows = Path("x.csv").read_text().splitlines()
    assert rows[0].startswith("source,step,weights,n,against,reference,metric,name,value,error,floor")
    assert len(rows) == 5
    table = ok(run("evaluate", "a", "b", *FEW)).lines
    assert table[0].rstrip().endswith("beside a")
    assert sum("no difference (0" in line for line in table) == 2


def test_the_words_of_a_difference() -> None:
    a, b = (Score(name="kid", value=value, n=9, error=0.03) for value in (0.5, 0.6))
    assert difference(a, b) == (pytest.approx(0.1), pytest.approx(0.03 * math.sqrt(2)))
    assert beside(a, b) == "worse by 0.100 ± 0.042"
    assert beside(b, a) == "better by 0.100 ± 0.042"
    assert beside(a, Score(name="kid", value=0.55, n=9, error=0.03)) == "no difference (0.050 ± 0.042)"
    exact = Score(name="kid", value=0.4, n=9)
    assert beside(a, exact) == "better by 0.1"
    high = [Score(name="recall", value=value, n=9, error=0.01, better="higher") for value in (0.9, 0.5)]
    assert beside(*high) == "worse by 0.400 ± 0.014"


def test_the_words_of_a_floor() -> None:
    def at(value: float, floor: float, better: Any = "lower") -> str:
        score, data = (Score(name="x", value=each, n=9, error=0.01, better=better) for each in (value, floor))
        return beside_floor(Measured(metric="x", score=score, floor=data, sizes=(9, 9)))

    assert at(0.52, 0.5) == "at the floor"
    assert at(0.6, 0.5) == "above the floor by 0.100 ± 0.014"
    assert at(0.4, 0.5) == "below the floor by 0.100 ± 0.014, better than data"
    assert at(0.4, 0.5, "higher") == "below the floor by 0.100 ± 0.014"
    assert beside_floor(Measured(metric="x", score=Score(name="x", value=1.0, n=1))) == ""


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0123456, 0.00123, "0.0123 ± 0.0012"),
        (1234.5678, 23.4, "1235 ± 23"),
        (-0.5, 0.1, "-0.50 ± 0.10"),
        (0.5, None, "0.5"),
        (0.5, 0.0, "0.5"),
        (3e-12, 1e-13, "3.000e-12 ± 1.0e-13"),
    ],
)
def test_a_value_has_as_many_decimals_as_its_error(value: float, error: float | None, text: str) -> None:
    assert with_error(value, error) == text


# --- data against data ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture_run(shared: Callable[..., Path]) -> Path:
    """A run of four Gaussians, hardly trained, with held-out items."""
    return shared(
        "evaluated",
        *("--dataset", "gaussian-mixture", "--dataset.components", 4, "--dataset.n", 1200, "--held-out", 400),
        *("--backbone.width", 16, "--backbone.depth", 1, "--batch-size", 64, "--preview-every", 0, "--steps", 5),
    )


@pytest.mark.parametrize("against", ["train", "held-out"])
def test_other_data_are_at_the_floor_and_shifted_ones_above_it(
    run: Run, mixture_run: Path, against: str, tmp_path: Path
) -> None:
    copied(mixture_run, tmp_path)
    np.save("same.npy", fresh(400, seed=7).numpy())
    np.save("shifted.npy", fresh(400, seed=7).numpy() + 0.5)
    found = run("evaluate", "a", "same.npy", "shifted.npy", "--against", against, *FEW)
    rows = [line for line in ok(found).lines if ".npy" in line]
    assert [("at the floor" in row, "above the floor" in row) for row in rows] == [(True, False), (False, True)] * 2


def test_the_floor_shares_no_item_with_what_it_is_compared_with() -> None:
    reference, others = torch.arange(100.0)[:, None], 1000 + torch.arange(40.0)[:, None]
    for count, sizes in ((30, (30, 70)), (80, (50, 50))):
        data, rest = apart(reference, None, count)
        assert (len(data), len(rest)) == sizes
        assert sorted(torch.cat([data, rest]).flatten().tolist()) == list(range(100))
    data, rest = apart(reference, others, 35)
    assert (len(data), len(rest)) == (35, 100)
    assert float(data.min()) >= 1000
    assert len(apart(reference, others, 80)[0]) == 50, "40 others are fewer than half of the reference"


def test_held_out_items_are_compared_with_as_many_training_items(mixture_run: Path) -> None:
    model = difftool.load(mixture_run)
    found = model.evaluate(300, metrics=["kid"], against="held-out", steps=2)
    (measured,) = found.measured
    assert measured.sizes == (300, 400)
    assert measured.alike is None, "the sizes are those of the samples already"
    assert (found.against, found.reference) == ("held-out", 400)


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_in_files_score_as_those_that_are_drawn(run: Run, images_run: Path, tmp_path: Path) -> None:
    copied(images_run, tmp_path)
    drawing = ("--steps", 2, "--seed", 3)
    ok(run("sample", "a", "-n", 24, *drawing, "--out", "x.npz", "--out", "x.npy", "--out", "pngs"))
    measuring = ("--metric", "sliced-w2", "--json", "--no-copies")
    drawn = scores(run("evaluate", "a", "-n", 24, *drawing, *measuring))
    for name in ("x.npz", "x.npy", "pngs"):
        stored = scores(run("evaluate", name, "--against", "a", *measuring, "--seed", 3))
        assert stored["sliced-w2"]["value"] == pytest.approx(drawn["sliced-w2"]["value"], rel=1e-6), name


def test_the_batch_size_changes_nothing(points_run: Path) -> None:
    model = difftool.load(points_run)
    whole, parts = (
        model.evaluate(100, metrics=["sliced-w2"], steps=3, batch_size=size)["sliced-w2"].value for size in (100, 7)
    )
    assert parts == pytest.approx(whole, rel=1e-4)


def test_python_and_the_command_line_measure_the_same(run: Run, points_copy: Path) -> None:
    found = difftool.load(points_copy).evaluate(300, metrics=["kid", "sliced-w2"], steps=5)
    assert list(found) == ["kid", "sliced-w2"]
    assert "kid" in repr(found)
    assert scores(run("evaluate", points_copy, *FEW, "--json"))["kid"]["value"] == pytest.approx(found["kid"].value)
    with pytest.raises(KeyError, match="there are kid, sliced-w2"):
        found["fid"]
    with pytest.raises(TypeError, match="metrics as a list"):
        difftool.load(points_copy).evaluate(metrics="kid")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="against is train, held-out, a path or Samples"):
        difftool.load(points_copy).evaluate(against=3)  # type: ignore[arg-type]


def test_classes_come_as_often_as_in_the_data(labels_run: Path) -> None:
    model = difftool.load(labels_run)
    data = model.load_samples()
    assert data.labels is not None
    rare = torch.cat([(data.labels == 0).nonzero()[:5], (data.labels == 1).nonzero()[:45]]).flatten()
    reference = points(data.take_items(rare.tolist()), labels=data.labels[rare], class_names=data.class_names)
    counts = torch.bincount(conditions_from(reference, model, 50)["label"], minlength=4)
    assert counts.tolist() == [5, 45, 0, 0]


def test_one_class_is_compared_with_its_own_items(run: Run, labels_run: Path, tmp_path: Path) -> None:
    own = scores(run("evaluate", copied(labels_run, tmp_path), *FEW, "--steps", 20, "--label", 1, "--json"))
    np.save("others.npy", difftool.load(labels_run).sample(300, label="0", steps=20).numpy())
    other = scores(run("evaluate", "others.npy", "--against", labels_run, *FEW, "--label", 1, "--json"))
    assert own["sliced-w2"]["value"] < 0.3 * other["sliced-w2"]["value"]


def test_many_samples_are_kept_as_features_alone(points_run: Path) -> None:
    model = difftool.load(points_run)
    settings = Evaluating(num_samples=2_000, steps=1, batch_size=100)
    reference = Reference.of(model)
    metrics: list[Any] = [difftool.component("metric", "sliced-w2")]
    features: Any = Width()
    evaluator = Evaluator(reference, metrics, features, settings, device=CPU)
    drawn = draw_rows(model, evaluator.plan(model), evaluator.views)
    assert {name: tuple(rows.shape) for name, rows in drawn.rows.items()} == {"features": (2_000, 1)}
    assert drawn.items is None
    assert evaluator.bytes == 4 * (500 + 2_000)


def test_of_many_items_some_are_compared_with_and_others_make_the_floor(points_run: Path) -> None:
    whole = Reference.of(difftool.load(points_run))
    found = whole.at_most(200)
    assert found.others is not None
    kept, rest = ({tuple(row) for row in part.items.tolist()} for part in (found.samples, found.others))
    assert (len(kept), len(rest), kept & rest) == (200, 200, set())
    assert kept | rest < {tuple(row) for row in whole.samples.items.tolist()}
    assert torch.equal(found.samples.items, whole.at_most(200).samples.items)
    assert whole.at_most(500) is whole


class Width(Features, name="width"):
    """The first coordinate."""

    def build(self, spec: Any, data: Samples) -> Callable[[Tensor], Tensor]:
        built.append(len(data))
        return lambda items: seen.append(len(items)) or items[:, :1].float()  # type: ignore[func-returns-value]


built: list[int] = []
seen: list[int] = []


def test_features_of_data_are_computed_once(points_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "WORTH_KEEPING", 0.0)
    model, features = difftool.load(points_run), Width()

    def rows(samples: Samples) -> tuple[int, Tensor]:
        seen.clear()
        view = views.features_view(features, model.load_samples(), device=CPU)
        found = view.of_data(samples)
        return sum(seen), found

    data = model.load_samples()
    first, again = rows(data), rows(data)
    assert (first[0], again[0]) == (500, 0)
    assert torch.equal(first[1], again[1])
    changed = points(data.take_items(range(500)) + 1.0)
    assert rows(changed)[0] == 500, "other data have features of their own"


def test_samples_that_are_not_finite_are_refused(run: Run, points_copy: Path, plugin_manager: PluginManager) -> None:
    class Explodes(Sampler, name="explodes"):
        """A sampler that goes astray."""

        def sample(self, denoise: Any, x: Tensor, levels: Any, noise: Any) -> Any:
            for level in levels[1:]:
                yield Step(x * float("nan"), level, None)

    plugin_manager.register(SimpleNamespace(difftool_samplers=hookimpl(lambda: [Explodes])))
    outcome = run("evaluate", points_copy, *FEW, "--sampler", "explodes")
    assert (outcome.code, "are not finite; the model diverged" in outcome.error) == (1, True)


# --- copies -----------------------------------------------------------------------------------------------------------


def test_images_are_compared_with_training_images_one_by_one(run: Run, images_run: Path, tmp_path: Path) -> None:
    copy = copied(images_run, tmp_path)
    outcome = ok(run("evaluate", copy, "-n", 60, "--steps", 2, "--metric", "sliced-w2", "--device", "cpu"))
    assert "samples are nearer to one of the training images" in outcome.lines[-1]
    (kept,) = read_evaluations(RunFolder(copy))
    assert kept["copies"]["n"] == 60
    assert 2 <= len(kept["copies"]["nearest"]) <= 12  # of different items
    (picture,) = kept["pictures"]
    assert picture == "evaluations/step-000004-pixels-nearest.png"
    assert (copy / picture).read_bytes()[:4] == b"\x89PNG"
    ok(run("train", "--out", copy, "--overwrite", "--steps", 1, "--dataset.n", 50, "--preview-every", 0))
    assert not (copy / "evaluations").exists()
    assert not (copy / "evaluations.jsonl").exists()


# --- the file ---------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "step": 5,
    "n": 9,
    "against": "train",
    "scores": [{"metric": "kid", "name": "kid", "value": 1.0, "error": None, "n": 9, "better": "lower", "unit": ""}],
}


def test_a_line_that_holds_no_evaluation_is_skipped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    append_evaluation(folder, GOOD)
    with open(folder.evaluations, "a", encoding="utf-8") as file:
        file.write('{"step": 3, "sco')  # as a killed process leaves it
    append_evaluation(folder, GOOD)
    bad = (
        {**GOOD, "step": -1},
        {**GOOD, "scores": "none"},
        {**GOOD, "scores": [{**GOOD["scores"][0], "value": "high"}]},
        {**GOOD, "scores": [{**GOOD["scores"][0], "better": "both"}]},
        {**GOOD, "pictures": ["../../secret.png"]},
        {**GOOD, "pictures": ["/etc/passwd"]},
        {**GOOD, "against": 3},
        {**GOOD, "copies": []},
        [GOOD],
    )
    with open(folder.evaluations, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in bad)
        file.write('{"step": 1e400}\n\n\x00\n')
    assert read_evaluations(folder) == [GOOD, GOOD]


def test_a_link_out_of_the_run_is_not_written_to(run: Run, points_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (points_copy / "evaluations.jsonl").symlink_to(tmp_path / "mine.txt")
    outcome = ok(run("evaluate", points_copy, *FEW))
    assert "the evaluation is not kept" in outcome.err
    assert (tmp_path / "mine.txt").read_text() == "mine"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--metric", "kdi"], 2, "did you mean 'kid'?"),
        (["--metric", "kid,"], 2, "--metric: must be names joined by commas"),
        (["--features", "inceptions"], 2, "unknown features 'inceptions'"),
        (["--against", "held-out"], 2, "has no held-out items; train with --held-out N"),
        (["--against", "nowhere"], 2, "nowhere does not exist"),
        (["-n", "1"], 2, "--num-samples"),
        (["--label", "cat"], 2, "has no classes"),
        (["--guidance", "1,2"], 2, "--guidance: evaluate takes one"),
        (["--csv", "full.csv"], 1, "--csv: full.csv exists already"),
        (["--kid.degree", "3"], 2, "there is no option --kid.degree"),
        (["full.npy"], 2, None),
        (["--against", "full.npy"], 1, "full.npy holds 5x3, not 2 or more samples of 2"),
        (["--against", "bad.npz"], 1, "bad.npz holds no numbers, or is damaged"),
        (["--against", "nan.npy"], 1, "nan.npy holds NaN or infinite numbers"),
        (["--against", "empty"], 1, "empty is a folder, and the items are points of 2"),
    ],
)
def test_bad_input_is_one_line(run: Run, points_copy: Path, arguments: list[str], code: int, words: str | None) -> None:
    Path("full.csv").write_text("mine")
    np.save("full.npy", np.zeros((5, 3)))
    np.save("nan.npy", np.full((5, 2), np.nan))
    Path("bad.npz").write_bytes(b"PK\x03\x04 nothing")
    Path("empty").mkdir()
    outcome = run("evaluate", *([] if arguments == ["full.npy"] else [points_copy]), *arguments)
    assert outcome.code == code, outcome.err
    assert (words or "--against: full.npy holds samples; name the run") in outcome.error
    assert not (points_copy / "evaluations.jsonl").exists()


def test_a_metric_of_models_is_refused_for_files(run: Run, points_run: Path) -> None:
    np.save("x.npy", np.zeros((5, 2)))
    outcome = run("evaluate", "x.npy", "--against", points_run, "--metric", "likelihood")
    assert (outcome.code, "likelihood measures models, and x.npy holds samples" in outcome.error) == (2, True)


class Wrong(Metric, name="wrong"):
    """A metric that breaks its contract."""

    def measure(self, sets: Sets) -> Any:
        return answers[0](sets)


answers: list[Callable[[Sets], Any]] = []


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (lambda _: [], DifftoolError, "metric wrong: returned no scores"),
        (lambda _: [1.0], DifftoolError, "metric wrong: returned no scores"),
        (lambda s: [Score(name="x", value=math.nan, n=1)], DifftoolError, "metric wrong: x is nan"),
        (lambda s: [][1], DifftoolError, "metric wrong failed: IndexError"),
    ],
)
def test_a_broken_metric_is_named(
    points_run: Path, answer: Callable[[Sets], Any], error: type[Exception], words: str
) -> None:
    answers[:] = [answer]
    with pytest.raises(error, match=words):
        difftool.load(points_run).evaluate(10, metrics=[Wrong()], steps=1)


def test_what_suits_no_metric_is_refused_before_samples_are_drawn(points_run: Path) -> None:
    model = difftool.load(points_run)

    def refuse(sets: Sets) -> Any:
        raise ValueError("needs more")

    answers[:] = [refuse]
    evaluator = Evaluator(Reference.of(model), [Wrong()], Width(), Evaluating(num_samples=10, steps=1), device=CPU)
    drawn: list[Step] = []
    with pytest.raises(UsageError, match="metric wrong: needs more"):
        evaluator.evaluate(model, evaluator.plan(model), watch=drawn.append)
    assert drawn == []


def test_runs_of_other_items_are_not_put_into_one_table(run: Run, points_run: Path, images_run: Path) -> None:
    outcome = run("evaluate", points_run, images_run, *FEW)
    assert (outcome.code, "evaluate each by itself" in outcome.error) == (2, True)


def test_seeds_change_the_samples_and_nothing_else(points_run: Path) -> None:
    model = difftool.load(points_run)
    a, b, c = (model.evaluate(200, metrics=["kid"], steps=3, seed=seed)["kid"] for seed in (0, 0, 1))
    assert (a.value, a.floor) == (b.value, b.floor)
    assert a.value != c.value
    assert a.floor == c.floor


def test_random_numbers_of_the_program_are_left_alone(points_run: Path) -> None:
    model = difftool.load(points_run)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    model.evaluate(20, metrics=["sliced-w2"], steps=1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(torch.rand(1, generator=generator(0)), torch.rand(1, generator=generator(0)))
