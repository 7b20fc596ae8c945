"""Fields of commands that hold a component, a model, a device or a file to write, and the bar and note of commands."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import POINTS, Run

import difftool
from difftool import (
    Backbone,
    Command,
    Dataset,
    DifftoolError,
    Guidance,
    NoiseSchedule,
    Output,
    Prediction,
    Sampler,
    Spacing,
    UsageError,
    component_option,
    device_option,
    hookimpl,
    model_option,
    note,
    option,
    output_option,
    progress,
)
from difftool.plugins.validation import problem
from difftool.testing import LawsFailed, PluginManager, check_component, invoke

if TYPE_CHECKING:
    import torch

    from difftool import Model, Source


class Measure(Command, name="measure"):
    """Measure samples of a model."""

    model: Model = model_option()
    sampler: Sampler = component_option(default="euler", help="how to sample")
    spacing: Spacing = component_option()
    low: int = option(default=1, ge=0, short="-l", help="the first seed")
    high: int = option(default=2, ge=0, help="the last seed")
    fails: bool = option(default=False, help="fail at the end")
    out: Output = output_option(suffixes=(".json", ".txt"), help="The numbers.")

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low: must not be above high")

    def run(self) -> dict[str, object]:
        spreads = []
        with progress("measuring", self.high - self.low) as bar:
            for seed in range(self.low, self.high):
                x = self.model.sample(8, sampler=self.sampler, spacing=self.spacing, steps=2, seed=seed)
                spreads.append(float(x.std()))
                bar.update(seed - self.low + 1, f"spread {spreads[-1]:.1f}")
        note("measured")
        with self.out.writing() as path:
            path.write_text(json.dumps(spreads))
            if self.fails:
                raise ValueError("it was to fail")
        return {"spreads": spreads, "weights": self.model.weights}


class Compose(Command, name="compose"):
    """Name the parts of a model."""

    dataset: Dataset = component_option(default="swiss-roll")
    backbone: Backbone = component_option()
    schedule: NoiseSchedule = component_option(default="flow")
    prediction: Prediction = component_option()
    teacher: Backbone = component_option(default="mlp")
    corrector: Sampler | None = component_option()
    guidance: Guidance | None = component_option()

    def run(self) -> list[str]:
        return [str(getattr(self, f.name)) for f in dataclasses.fields(self)]


class Known(Command, name="known"):
    """Describe a source, and the files that it is written to."""

    source: Source = model_option(oracle=True)
    device: torch.device = device_option()
    first: Output = output_option(suffixes=(".txt",), default="first.txt", help="The first.")
    second: Output = output_option(suffixes=(".txt",), help="The second.")
    writes: str = option(default="", help="the outputs to write")

    def run(self) -> str | None:
        for name in self.writes.split():
            with getattr(self, name).writing() as path:
                path.write_text(name)
        return None if self.writes else f"{self.source.description} on {self.source.device}, {self.device}"


class Rename(Command, name="rename"):
    """Name a model anew."""

    model: Model = model_option()
    new: str = option(positional=True, help="new name")

    def run(self) -> str:
        return f"{self.model.name} {self.new}"


@pytest.fixture(autouse=True)
def commands(plugin_manager: PluginManager) -> None:
    plugin = SimpleNamespace(__name__="theirs", difftool_commands=hookimpl(lambda: [Measure, Compose, Known, Rename]))
    assert not plugin_manager.register(plugin).problems


# ── components ──────────────────────────────────────────────────────────────────────────────────


def test_components_suit_each_other_as_in_train(run: Run) -> None:
    """A schedule suggests a prediction and images a U-Net; a field may have any name, and may be None."""
    names = (("backbone", "mlp"), ("backbone", "unet"), ("schedule", "flow"), ("prediction", "flow"))
    mlp, unet, schedule, prediction = (str(difftool.component(*words)) for words in names)
    assert run("compose").lines[1:] == [mlp, schedule, prediction, mlp, "None", "None"]
    images = run("compose", "--dataset", "gradients", "--teacher", "unet", "--schedule", "linear").lines
    assert images[1] == images[4] == unet
    assert images[3] == str(difftool.component("prediction", "eps"))


def test_components_take_their_options(run: Run) -> None:
    words = ("--teacher", "mlp", "--teacher.width", 7, "--corrector", "ddim", "--corrector.eta", 0.5)
    lines = run("compose", *words, "--backbone.width", 9, "--dataset.n", 5).lines
    assert lines[0] == str(difftool.component("dataset", "swiss-roll", n=5))
    assert lines[1] == str(difftool.component("backbone", "mlp", width=9))
    assert lines[4] == str(difftool.component("backbone", "mlp", width=7))
    assert lines[5] == str(difftool.component("sampler", "ddim", eta=0.5))


def test_a_guidance_may_be_a_scale(run: Run) -> None:
    scale, named = (run("compose", "--guidance", *words).lines[6] for words in ((2,), ("cfg", "--guidance.scale", 2)))
    assert scale == named == str(difftool.component("guidance", "cfg", scale=2.0))
    assert Compose(guidance=2.0).guidance == difftool.component("guidance", "cfg", scale=2.0)  # type: ignore[arg-type]
    outcome = run("compose", "--guidance", "1,2")
    assert (outcome.code, outcome.out) == (2, "")
    assert "unknown guidance '1,2'" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compose", "--backbone", "nope"), "unknown backbone 'nope'"),
        (("compose", "--teacher", "uent"), "unknown backbone 'uent'; did you mean 'unet'?"),
        (
            ("compose", "--teacher.dim", 8),
            "--teacher.dim is an option of the backbone unet; choose it with --teacher u",
        ),
        (("compose", "--teacher.width", 0), "--teacher.width: must be greater than or equal to 1, not 0"),
        (("compose", "--teacher.width", "x"), "--teacher.width: must be a whole number, not 'x'"),
        (("compose", "--corrector.eta", 1), "choose it with --corrector ddim"),
        (("compose", "--corrector", "ddim", "--corrector.eta", 2), "--corrector.eta: must be less than or equal to 1"),
        (("compose", "--techer", "mlp"), "there is no option --techer; did you mean --teacher"),
        (("compose", "--dataset", "image-folder"), "--dataset.path: must be given"),
    ],
)
def test_components_that_cannot_be(run: Run, arguments: tuple[Any, ...], message: str) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.error


def test_a_component_is_named_once() -> None:
    assert "--teacher: given 2 times, but it takes one" in invoke("compose", "--teacher", "mlp", "--teacher", "x").err


def test_help_shows_the_components_and_their_options(run: Run) -> None:
    own, bare = run("compose", "--corrector", "ddim", "--help").out, run("compose", "--help").out
    for words in ("Components", "[default: swiss-roll]", "suits the dataset", "suits the schedule", "Teacher: mlp"):
        assert words in own
    assert "--corrector.eta" in own
    assert "Corrector: ddim" in own
    assert "--corrector.eta" not in bare
    assert "how to sample" in run("measure", "--help").out


def test_completion_knows_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for line, word in (
        ("compose --teacher u", "unet"),
        ("compose --teacher unet --teacher.dim-", "--teacher.dim-mults"),
    ):
        monkeypatch.setenv("_DIFFTOOL_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"difftool {line}")
        monkeypatch.setenv("COMP_CWORD", str(len(line.split())))
        assert word in run().out.split()


def test_python_gives_components_or_their_names() -> None:
    unet: Any = "unet"
    command = Compose(backbone=difftool.component("backbone", "mlp", width=3), teacher=unet)  # type: ignore[arg-type]
    assert command.backbone.width == 3  # type: ignore[attr-defined]
    assert command.teacher == difftool.component("backbone", "unet")
    assert command.corrector is None
    assert difftool.component("command", "compose", teacher="unet") == Compose(teacher=unet)
    assert Compose() != Compose(teacher=unet)
    linear: Any = "linear"
    assert Compose(schedule=linear).prediction == difftool.component("prediction", "eps")
    assert dataclasses.replace(command, schedule=linear).backbone is command.backbone
    for value, error, message in (
        ("nope", UsageError, "unknown backbone 'nope'"),
        (3, TypeError, "a backbone is given by its name or as a Backbone, not as int"),
        (difftool.component("sampler", "ddim"), TypeError, "not as DDIM"),
        (type(command.backbone), TypeError, "write MLP()"),
        (None, TypeError, "not as NoneType"),
    ):
        with pytest.raises(error, match=message.replace("(", r"\(").replace(")", r"\)")):
            Compose(teacher=value)  # type: ignore[arg-type]


# ── models ──────────────────────────────────────────────────────────────────────────────────────


def test_a_model_is_the_newest_run_or_the_one_that_is_named(run: Run, points_run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    train = ("train", *POINTS, "--steps", 2, "--ema", "0.9,0.5")
    first, second = (run(*train).out.strip() for _ in range(2))
    found = json.loads(run("measure", "--json").out)
    assert found["weights"] == "ema-0.9"
    assert found["files"] == [f"{second}/results/measure-001.json"]
    found = json.loads(run("measure", first, "--weights", "ema-0.5", "--device", "cpu", "--json").out)
    assert found["weights"] == "ema-0.5"
    assert found["files"] == [f"{first}/results/measure-001.json"]
    file = points_run / "model.safetensors"
    assert run("measure", file, "--sampler", "heun").lines == ["measure-001.json"]
    assert run("rename", file, "swirl").out == f"{difftool.load(file).name} swirl\n"
    model = difftool.load(file, device="cpu")
    expected = model.sample(8, sampler="heun", spacing="trailing", steps=2, seed=1).std()
    assert json.loads((tmp_path / "measure-001.json").read_text()) == [float(expected)]


def test_an_oracle_is_a_source(run: Run) -> None:
    assert "on cpu, cpu" in run("known", "--oracle", "ideal", "--dataset.n", 50, "--device", "cpu").out
    assert "Oracle, instead of RUN" in run("known", "--help").out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("measure",), 1, "there is no trained run under"),
        (("measure", "nowhere"), 1, "nowhere does not exist: it names neither a run folder nor a model file"),
        (("measure", "RUN", "--weights", "ema-0.5"), 2, "--weights: unknown weights 'ema-0.5'"),
        (("measure", "RUN", "--ema-length", 0.1, "--weights", "raw"), 2, "--ema-length: names an average by itself"),
        (("measure", "RUN", "--ema-length", 5), 2, "--ema-length: must be"),
        (("measure", "RUN", "--device", "abacus"), 2, "--device: unknown device 'abacus'"),
        (("measure", "RUN", "RUN"), 2, "unexpected extra argument"),
        (("measure", "nowhere", "--low", 3), 2, "--low: must not be above high"),
        (("rename", "new"), 2, "Missing argument 'NEW'"),
        (("known", "RUN", "--oracle", "ideal"), 2, "--oracle: give either an oracle or a run, not both"),
        (("known", "--timesteps", 5), 2, "--timesteps: a trained model has its own"),
    ],
)
def test_models_that_cannot_be(run: Run, points_run: Path, arguments: tuple[Any, ...], code: int, message: str) -> None:
    outcome = run(*(points_run if word == "RUN" else word for word in arguments))
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.error


def test_a_model_is_opened_at_its_first_use(points_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from difftool.sampling import model as models

    opened = []
    load = models.load_model
    monkeypatch.setattr(models, "load_model", lambda *a, **k: opened.append(a) or load(*a, **k))
    path: Any = str(points_run)
    command = Measure(model=path)
    assert (repr(command), command == Measure(model=path), opened) == (repr(Measure()), True, [])
    assert command.model is command.model
    assert len(opened) == 1
    model = difftool.load(points_run, device="cpu")
    assert Measure(model=model).model is model
    for value in (3, None, difftool.component("sampler", "ddim")):
        with pytest.raises(TypeError, match="model is a Model, as difftool"):
            Measure(model=value)  # type: ignore[arg-type]


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_files_are_checked_before_any_work(run: Run, points_run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken.txt").write_text("mine")
    for words, code, message in (  # before RUN is opened
        (("--out", "taken.txt"), 1, "--out: taken.txt exists already; give another name, or --overwrite"),
        (("--out", "x.png"), 2, "--out: x.png: cannot write .png files; known are .json .txt"),
        (("--out", "taken.txt/x.txt"), 1, "--out: taken.txt/x.txt: "),
    ):
        outcome = run("measure", points_run, *words)
        assert (outcome.code, outcome.out, "measuring" in outcome.err) == (code, "", False)
        assert message in outcome.error
    assert (tmp_path / "taken.txt").read_text() == "mine"
    assert run("measure", points_run, "--out", "taken.txt", "--overwrite").out == "taken.txt\n"
    assert json.loads((tmp_path / "taken.txt").read_text())
    same = run("known", points_run, "--second", "./first.txt")
    assert (same.code, same.out) == (2, "")
    assert "--second: first.txt is also the file of --first" in same.error
    assert not (tmp_path / "first.txt").exists()


def test_a_file_is_written_whole_or_not_at_all(run: Run, points_run: Path, tmp_path: Path) -> None:
    outcome = run("measure", points_run, "--out", "x.txt", "--fails")
    assert (outcome.code, outcome.out) == (2, "")
    assert "command measure: it was to fail" in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_the_files_that_were_written_are_printed(run: Run) -> None:
    oracle = ("--oracle", "ideal", "--dataset.n", 50, "--device", "cpu")
    assert run("known", *oracle, "--writes", "second first").lines == ["first.txt", "known-second-001.txt"]
    taken = run("known", *oracle, "--writes", "second").error
    assert "--first: first.txt exists already; give another name, or --overwrite" in taken
    assert run("known", *oracle, "--writes", "second", "--overwrite").lines == ["known-second-002.txt"]
    found = json.loads(run("known", *oracle, "--json", "--first", "other.txt").out)
    assert found["files"] == []
    assert found["result"].endswith("on cpu, cpu")


def test_results_in_a_run_go_with_it(run: Run) -> None:
    train = ("train", *POINTS, "--steps", 2, "--out", "here")
    run(*train)
    assert run("measure", "here").out == "here/results/measure-001.json\n"
    assert run("measure", "here").out == "here/results/measure-002.json\n"
    Path("here/results/measure-002.json").write_text("edited")
    assert run(*train, "--overwrite").code == 0
    assert [path.name for path in Path("here/results").iterdir()] == ["measure-002.json"]


def test_no_link_leads_results_out_of_the_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run("train", *POINTS, "--steps", 2, "--out", "here")
    Path("here/results").symlink_to(tmp_path / "elsewhere")
    outcome = run("measure", "here")
    assert "here/results leads out of the run folder here; remove the link" in outcome.error
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_python_gives_outputs_or_paths(points_run: Path, tmp_path: Path) -> None:
    path: Any = tmp_path / "x.json"
    Measure(model=difftool.load(points_run, device="cpu"), out=path).run()
    again = Measure(model=difftool.load(points_run, device="cpu"), out=path)
    with pytest.raises(DifftoolError, match="exists already"):
        again.run()
    dataclasses.replace(again, out=Output(path, overwrite=True)).run()
    with pytest.raises(TypeError, match="out is an Output or a path, not int"):
        Measure(out=3)  # type: ignore[arg-type]


# ── the bar and notes ───────────────────────────────────────────────────────────────────────────


def test_bar_and_note_stay_off_stdout(run: Run, points_run: Path) -> None:
    outcome = run("measure", points_run, "--out", "x.json")
    assert outcome.out == "x.json\n"
    assert outcome.err.splitlines()[-2].startswith("measuring 1/1  spread ")
    assert outcome.err.splitlines()[-1] == "measured"


# ── what is refused, and what help costs ────────────────────────────────────────────────────────


def command_with(**fields: tuple[object, Any]) -> type[Command]:
    """A command of these fields, each with its annotation."""
    body = {name: value for name, (_, value) in fields.items() if value is not None}
    annotations = {name: annotation for name, (annotation, _) in fields.items()}
    rest = {"__doc__": "One.", "__annotations__": annotations, "run": lambda self: None, "__module__": __name__}
    return type("Refused", (Command,), {**body, **rest}, name="refused")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": (Sampler, None)}, "has a type that options cannot have: .*a command declares a component by ="),
        ({"x": (difftool.Logger, component_option())}, "'x' is to be annotated with one of Dataset, NoiseSchedule"),
        ({"x": (int, component_option())}, "'x' is to be annotated with one of"),
        ({"x": ("Sampler | Spacing", component_option())}, "'x' is to be annotated with one of"),
        ({"x": ("Nowhere", component_option())}, "'x' has an annotation that does not resolve"),
        ({"a": (object, model_option()), "b": (object, model_option())}, "'a' brings the flag --ema-length, which"),
        ({"a": (object, model_option()), "weights": (str, option(default=""))}, "'a' brings the flag --weights"),
        ({"a": (object, model_option(oracle=True)), "dataset": (Dataset, component_option())}, "the flag --dataset"),
        ({"a": (Output, output_option(suffixes=(".x",))), "json": (bool, option(default=False))}, "the flag --json"),
        ({"a": (Output, output_option(suffixes=("x",)))}, "has suffixes that are not such as"),
        ({"debug": (Sampler, component_option())}, "brings the flag --debug"),
        ({"command": (Sampler, component_option())}, "'command' hides Command.command"),
        ({"hook": (Sampler, component_option())}, "'hook' hides Command.hook"),
    ],
)
def test_fields_that_a_command_cannot_have(fields: dict[str, tuple[object, Any]], message: str) -> None:
    found = problem(command_with(**fields))
    assert found is not None
    assert re.search(message, found), found


def test_only_commands_have_such_fields() -> None:
    class Nested(Sampler, name="nested"):
        """One."""

        other: Sampler = component_option(default="ddim")

        def sample(self, *_: Any) -> Any: ...

    assert "option 'other' holds a component, a model, a device or a file to write, which only" in str(problem(Nested))


def test_a_default_that_is_not_installed_is_named(run: Run, plugin_manager: PluginManager) -> None:
    cls = command_with(sampler=("Sampler", component_option(default="gone")))
    plugin_manager.register(SimpleNamespace(__name__="gone", difftool_commands=hookimpl(lambda: [cls])))
    assert "unknown sampler 'gone'" in run("refused").error
    with pytest.raises(LawsFailed, match="unknown sampler 'gone'"):
        check_component(cls)


def test_the_laws_of_commands() -> None:
    for cls in (Measure, Compose, Known, Rename(new="x")):
        findings = {f.law: f.verdict for f in check_component(cls)}
        expected = "passed" if cls in (Measure, Compose) else "skipped"
        assert findings["takes components by name"] == expected
        assert findings["shows its arguments"] == "passed"


def test_the_list_of_commands_shows_them(run: Run) -> None:
    assert "model, sampler=euler, spacing, out, low=1" in run("list", "commands").out
    options = json.loads(run("list", "commands", "--json").out)["commands"]["measure"]["options"]
    assert options["sampler"] == {
        "type": "sampler", "default": "euler", "otherwise": None, "required": False, "range": None,
        "help": "how to sample",
    }  # fmt: skip
    assert options["model"]["type"] == "model"
    assert options["low"]["default"] == 1


SCRIPT = '''
from __future__ import annotations
from typing import TYPE_CHECKING
from difftool import Command, Output, Sampler, component_option, model_option, note, output_option, progress
if TYPE_CHECKING:
    from difftool import Model

class Light(Command, name="light"):
    """Cost nothing until it runs."""
    model: Model = model_option()
    sampler: Sampler = component_option(default="heun")
    out: Output = output_option(suffixes=(".txt",), help="The file.")

    def run(self):
        with self.out.writing() as path:
            path.write_text(str(self.model.sample(2, sampler=self.sampler, steps=1).shape))
'''
PROBE = """
import sys
from difftool.testing import invoke
lines = ("--help", "light --help", "light nowhere", "light --sampler nope", "light --weihgts x", "list commands")
for words in lines:
    done = invoke(*words.split(), "--plugin", "light.py")
    print(done.code)
    assert not {"torch", "numpy", "matplotlib"} & set(sys.modules), words
done = invoke("light", sys.argv[1], "--plugin", "light.py", "--out", "x.txt")
print(done.code, done.out)
assert "torch" in sys.modules
"""


def test_help_and_wrong_input_of_a_script_import_no_torch(points_run: Path, tmp_path: Path) -> None:
    (tmp_path / "light.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, points_run], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0", "1", "2", "2", "0", "0", "x.txt"]
    assert (tmp_path / "x.txt").read_text() == "torch.Size([2, 2])"
