"""`--plugin FILE.py` and `difftool.load_plugin`: components of a script instead of a package."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import POINTS, Run, spawn

import difftool
from difftool import scripts
from difftool.errors import DifftoolError, UsageError
from difftool.plugins import registry as registries
from difftool.plugins.registry import registry
from difftool.scripts import Script, script_of

TINY = ("--steps", 2, "--batch-size", 16, "--preview-every", 0)

SAMPLER = '''
from itertools import pairwise

from difftool import Command, Sampler, option


class Mine(Sampler, name="mine"):
    """DDIM, with a factor."""

    factor: float = option(default=1.0, ge=0, le=2, help="factor of the estimate")

    def sample(self, denoise, x, levels, noise):
        from difftool import Step

        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = self.factor * s.alpha * estimate.x_0 + s.sigma * estimate.eps
            yield Step(x, s, estimate)


class Unnamed(Mine):
    """A base class, which is no component."""


class Greet(Command, name="greet"):
    """Say hello [to somebody]."""

    times: int = option(default=1, ge=1, help="how often")

    def run(self):
        print("not a result")
        return ["hello"] * self.times
'''

POINTS_OF_A_SCRIPT = '''
"""A dataset that workers read, and a network for it."""

import torch
from torch import nn

from difftool import Backbone, Dataset, Samples, option


class Source:
    def __len__(self):
        return 64

    def __getitem__(self, i):
        return torch.tensor([i / 32 - 1, (i % 8) / 4 - 1])


class Lazy(Dataset, name="lazy"):
    """Points that are read one at a time."""

    default_backbone = "small"

    def load(self, context):
        return Samples(items=Source(), shape=(2,))


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t, cond=None):
        return self.layers(torch.cat([x, t[:, None] / 1000], dim=1))


class Small(Backbone, name="small"):
    """A small network."""

    width: int = option(default=8, ge=1, help="units")

    def build(self, spec):
        return Net(self.width)
'''


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return written(tmp_path, "mine.py", SAMPLER)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path, "data.py", POINTS_OF_A_SCRIPT)


# ── on the command line ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", [("--plugin", "mine.py"), ("--plugin=mine.py",), ("--plugin", "./mine.py")])
def test_the_flag_may_stand_anywhere(run: Run, mine: Path, words: tuple[str, ...]) -> None:
    assert run(*words, "greet", "--times", 2).out == "hello\nhello\n"
    assert run("greet", *words, "--times", 2).out == "hello\nhello\n"
    assert run("greet", "--times", 2, *words).out == "hello\nhello\n"
    assert "there is no command 'greet'" in run("greet").error  # the script is gone with the command that named it


def test_every_command_knows_the_components(run: Run, mine: Path) -> None:
    shown = json.loads(run("list", "samplers", "--json", "--plugin", mine).out)["samplers"]["mine"]
    assert shown["package"] == "mine.py"
    assert shown["options"]["factor"]["default"] == 1.0
    assert "factor=1  mine.py" in " ".join(run("list", "samplers", "--plugin", mine).out.split(" ")).replace("   ", "")
    found = json.loads(run("plugins", "--json", "--plugin", mine).out)["plugins"][-1]
    assert found["plugin"] == found["distribution"] == "mine.py"
    assert found["version"] == f"sha256:{hashlib.sha256(mine.read_bytes()).hexdigest()}"
    assert found["provides"] == {"samplers": ["mine"], "commands": ["greet"]}
    assert "--sampler.factor" in run("sample", "--sampler", "mine", "--help", "--plugin", mine).out
    assert "--times" in run("greet", "--help", "--plugin", mine).out
    assert "Say hello [to somebody]. (mine.py)" in run("--plugin", mine, "--help").out
    assert "--plugin" in run("--help").out
    assert "unknown sampler 'mine'" in run("sample", "--sampler", "mine").error


@pytest.mark.slow
def test_check_takes_the_components_and_the_file(run: Run, mine: Path) -> None:
    outcome = json.loads(run("check", "mine.py", "--plugin", mine, "--json").out)
    assert outcome["verdict"] == "passed"
    assert [(one["kind"], one["name"]) for one in outcome["checked"]] == [
        ("plugin", "mine.py"),
        ("sampler", "mine"),
        ("command", "greet"),
    ]
    laws = {law["law"]: law for law in outcome["checked"][1]["laws"]}
    assert laws["imports nothing heavy"]["verdict"] == "skipped"
    assert laws["reaches the data distribution"]["verdict"] == "passed"
    assert run("check", "mine", "--plugin", mine).code == 0


def test_several_scripts(run: Run, mine: Path, data: Path) -> None:
    both = ("--plugin", mine, "--plugin", data, "--plugin", mine)
    run("train", "--dataset", "lazy", *TINY, "--out", "x", *both)
    done = run("sample", "x", "--sampler", "mine", "-n", 3, "--steps", 2, "--out", "x.npy", *both)
    assert done.out == "x.npy\n"
    assert np.load("x.npy").shape == (3, 2)


def test_the_environment_leaves_no_script_out(run: Run, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFTOOL_DISABLE_PLUGINS", "mine.py")
    assert run("--no-plugins", "greet", "--plugin", mine).out == "hello\n"


def test_hooks_work_too(run: Run, tmp_path: Path) -> None:
    text = SAMPLER.replace("class Unnamed(Mine)", 'class Other(Mine, name="other")')
    text += "\nfrom difftool import hookimpl\n\n@hookimpl\ndef difftool_samplers():\n    return [Other]\n"
    written(tmp_path, "hooks.py", text)
    found = json.loads(run("plugins", "--json", "--plugin", "hooks.py").out)["plugins"][-1]
    assert found["provides"] == {"samplers": ["other", "mine"], "commands": ["greet"]}
    assert found["problems"] == []


def test_what_a_script_prints_is_not_a_result(run: Run, tmp_path: Path) -> None:
    written(tmp_path, "loud.py", "print('loading')\n" + SAMPLER)
    done = run("greet", "--plugin", "loud.py")
    assert done.out == "hello\n"
    assert "loading" in done.err


def test_a_name_that_is_taken_is_said_and_reached_by_the_file(run: Run, tmp_path: Path) -> None:
    """As among packages: the built-in keeps its name."""
    written(tmp_path, "taken.py", SAMPLER.replace('"mine"', '"ddim"'))
    done = run("list", "samplers", "--json", "--plugin", "taken.py")
    assert "--plugin taken.py: sampler 'ddim': the name is taken by difftool; reach it as taken.py:ddim" in done.err
    names = json.loads(done.out)["samplers"]
    assert (names["ddim"]["package"], names["taken.py:ddim"]["package"]) == ("difftool", "taken.py")


def test_of_two_scripts_with_one_name_neither_gets_it(run: Run, mine: Path, tmp_path: Path) -> None:
    written(tmp_path, "two.py", SAMPLER.replace('"greet"', '"greet-2"'))
    done = run("list", "samplers", "--json", "--plugin", "mine.py", "--plugin", "two.py")
    assert "--plugin mine.py: sampler 'mine': the name is taken by two.py; reach it as mine.py:mine\n" in done.err
    assert {"mine.py:mine", "two.py:mine"} <= set(json.loads(done.out)["samplers"])


def test_a_class_that_is_wrong_leaves_the_others(run: Run, tmp_path: Path) -> None:
    text = SAMPLER + 'class Half(Sampler, name="half"):\n    """Not finished."""\n'
    written(tmp_path, "half.py", text)
    done = run("greet", "--plugin", "half.py")
    assert done.out == "hello\n"
    assert "warning: --plugin half.py: sampler 'half': sample() is not defined; mend the class" in done.err
    refused = run("sample", "--sampler", "half", "--plugin", "half.py")
    assert refused.code == 1
    assert "plugin half.py was set aside: sampler 'half': sample() is not defined" in refused.error


BAD: dict[str, tuple[str, int, str]] = {
    "syntax": ("x = 1\ndef f(:\n", 1, "bad.py, line 2: SyntaxError: invalid syntax"),
    "null bytes": ("\0", 1, "SyntaxError: source code string cannot contain null bytes"),
    "needs a package": (
        "\nimport difftool_has_no_such_dependency.part\n",
        1,
        "bad.py, line 2: needs the module 'difftool_has_no_such_dependency', which is not installed; install what "
        "brings it, perhaps: pip install difftool_has_no_such_dependency",
    ),
    "needs a name": ("from difftool import Nope\n", 1, "bad.py, line 1: ImportError: cannot import name 'Nope'"),
    "needs a neighbour": (
        "import beside\n",
        1,
        "a beside lies beside it, but only the named file is loaded: move it into bad.py, or make a package of both",
    ),
    "raises": ("def f():\n    raise KeyError('x')\n\nf()\n", 1, "bad.py, line 2: KeyError: 'x'"),
    "exits": ("import sys\nsys.exit(3)\n", 1, "bad.py, line 2: SystemExit: 3"),
    "interrupts": ("raise KeyboardInterrupt\n", 1, "bad.py, line 1: KeyboardInterrupt"),
    "is empty": (
        "",
        2,
        'defines no component, which is a class of a kind that has a name: class Mine(Sampler, name="m',
    ),
    "has no name": (
        "from difftool import Spacing\nclass Own(Spacing): pass\n",
        2,
        'defines no component, which is a class of a kind that has a name: class Own(Spacing, name="mine")',
    ),
    "is not finished": (
        'from difftool import Spacing\nclass Own(Spacing, name="own"): pass\n',
        1,
        "bad.py: spacing 'own': levels() is not defined; mend the class",
    ),
    "is for another version": ("difftool_api = 99\n" + SAMPLER, 1, "bad.py: made for version 99 of the plugin API"),
    "has a hook that does not exist": (
        SAMPLER + "\nfrom difftool import hookimpl\n\n@hookimpl\ndef difftool_sampler():\n    return [Mine]\n",
        1,
        "bad.py: there is no hook 'difftool_sampler'; did you mean difftool_samplers?",
    ),
    "trains": (
        "import difftool\ndifftool.train(steps=1)\n",
        1,
        "bad.py, line 2: difftool.train() is called while bad.py is loaded; put it below `if __name__ ==",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_loaded(run: Run, tmp_path: Path, case: str) -> None:
    text, code, message = BAD[case]
    written(tmp_path, "beside.py", "")
    written(tmp_path, "bad.py", text)
    for words in (("list",), ("train", *POINTS, "--steps", 1), ("--help",)):
        done = run(*words, "--plugin", "bad.py")
        assert (done.code, done.out) == (code, "")
        assert message in done.error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plugin", "nope.py"), "--plugin: nope.py does not exist"),
        (("--plugin", "."), "--plugin: . is not a Python file; name a FILE.py"),
        (("--plugin", "notes.txt"), "--plugin: notes.txt is not a Python file; name a FILE.py"),
        (("--plugin", "folder.py"), "--plugin: folder.py is not a Python file; name a FILE.py"),
        (("--plugin", "a b.py"), "--plugin: a b.py: models record the name of the file; use letters, digits"),
        (("--plugin", "mine.py", "--plugin", "folder/mine.py"), "have the same name; rename one of them"),
        (("--plugin",), "--plugin: name a file, such as --plugin mine.py"),
        (("--plugin", "--json"), "--plugin: name a file, such as --plugin mine.py"),
        (("--plugin=",), "--plugin: name a file, such as --plugin mine.py"),
        (("--plugin", ""), "--plugin: name a file, such as --plugin mine.py"),
        (("--plugn", "mine.py"), "there is no option --plugn"),
    ],
)
def test_what_names_no_script(run: Run, mine: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "folder").mkdir()
    for name in ("notes.txt", "a b.py", "folder/mine.py"):
        written(tmp_path, name, SAMPLER)
    done = run("list", *words)
    assert done.code == 2
    assert message in done.error


def test_a_pipe_is_not_waited_for(run: Run, tmp_path: Path) -> None:
    os = pytest.importorskip("os")
    os.mkfifo(tmp_path / "pipe.py")
    assert "--plugin: pipe.py cannot be read: not a regular file" in run("list", "--plugin", "pipe.py").error


def test_the_flag_is_reserved(run: Run, tmp_path: Path) -> None:
    written(tmp_path, "own.py", SAMPLER.replace("times:", "plugin:"))
    done = run("list", "--plugin", "own.py")
    assert "option 'plugin' has the flag --plugin, which belongs to difftool" in done.err


def test_a_word_behind_two_dashes_is_not_the_flag(run: Run, mine: Path) -> None:
    assert "there is no component or package called '--plugin'" in run("check", "--", "--plugin").error


def test_no_file_names_a_script(run: Run, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a config file, nor a variable, nor the current folder loads one."""
    Path("c.toml").write_text('plugin = "mine.py"\n')
    assert "there is no such table" in run("train", "--config", "c.toml").error
    Path("d.toml").write_text('[plugins]\n"mine.py" = "sha256:0"\n[training]\nsteps = 0\n')
    for name in ("DIFFTOOL_PLUGIN", "DIFFTOOL_PLUGINS"):
        monkeypatch.setenv(name, "mine.py")
    assert run("train", "--config", "d.toml", *POINTS, "--dry-run").code == 0
    assert "mine" not in json.loads(run("list", "samplers", "--json").out)["samplers"]


def test_loading_leaves_no_trace(run: Run, mine: Path, tmp_path: Path) -> None:
    before = list(sys.path)
    assert run("greet", "--plugin", mine).code == 0
    assert sys.path == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py"]  # and no __pycache__


def test_a_script_is_not_found_by_import_and_takes_no_name(run: Run, tmp_path: Path) -> None:
    """A script called like a module of Python does not take its place."""
    path = written(tmp_path, "json.py", SAMPLER)
    assert run("plugins", "--json", "--plugin", path).out.startswith("{")
    assert sys.modules["json"] is json


# ── in runs and models ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def trained(run: Run, data: Path) -> Path:
    assert run("train", "--dataset", "lazy", *TINY, "--out", "trained", "--plugin", data).code == 0
    return data


def test_a_run_records_the_script_without_its_place(trained: Path) -> None:
    digest = f"sha256:{hashlib.sha256(trained.read_bytes()).hexdigest()}"
    recorded = tomllib.loads(Path("trained/config.toml").read_text())["plugins"]
    assert recorded == {"data.py": digest, "difftool": difftool.__version__}
    model = Path("trained/model.safetensors").read_bytes()
    assert digest.encode() in model
    assert str(trained.parent).encode() not in model


def test_a_model_says_which_script_it_needs(run: Run, trained: Path) -> None:
    for words in (("sample", "trained"), ("sample", "trained/model.safetensors"), ("train", "--resume", "trained")):
        done = run(*words)
        assert done.code == (2 if "train" in words else 1)
        assert (
            "the file says that it was made with data.py, a script that is not loaded: --plugin data.py" in done.error
        )
    assert "data.py sha256:" in (shown := run("info", "trained").out)
    assert "(not loaded)" in shown
    assert "(not loaded)" not in run("info", "trained", "--plugin", "data.py").out
    for words in (("sample", "trained", "--out", "a.npy"), ("sample", "trained/model.safetensors", "--out", "b.npy")):
        assert run(*words, "-n", 2, "--steps", 2, "--plugin", "data.py").code == 0


def test_a_changed_script_is_said_once(run: Run, trained: Path) -> None:
    trained.write_text(trained.read_text() + "\n# a comment\n")
    note = "warning: data.py has changed since the run was trained (sha256:"
    resumed = run("train", "--resume", "trained", "--steps", 4, "--plugin", trained)
    assert resumed.code == 0
    assert resumed.err.count(note) == 1
    assert note not in run("train", "--resume", "trained", "--steps", 5, "--plugin", trained).err  # it is recorded now
    trained.write_text(trained.read_text() + "\n# another\n")
    assert run("sample", "trained", "-n", 2, "--steps", 2, "--plugin", trained, "--out", "a.npy").err.count(note) == 1


def test_a_script_that_no_longer_fits_is_said(run: Run, trained: Path) -> None:
    trained.write_text(trained.read_text().replace("width", "units"))
    error = run("sample", "trained", "--plugin", trained).error
    assert "width: there is no such option" in error
    assert "made with data.py, of which another version is loaded (sha256:" in error


def test_a_run_resumed_with_a_script_is_the_run_that_was_never_stopped(run: Run, data: Path) -> None:
    words = ("train", "--dataset", "lazy", *TINY, "--plugin", data)
    run(*words, "--steps", 4, "--out", "whole")
    run(*words, "--steps", 2, "--out", "part")
    assert run("train", "--resume", "part", "--steps", 4, "--plugin", data).code == 0
    assert Path("whole/model.safetensors").read_bytes() == Path("part/model.safetensors").read_bytes()


LOSS = '''
import copy

import torch

from difftool import Loss, option


class Mine(Loss, name="mine"):
    """The plain loss, with a pull towards a slow copy of the network."""

    pull: float = option(default=0.1, ge=0, help="strength of the pull")

    def build(self, spec):
        return copy.deepcopy(spec.network).eval().requires_grad_(False)

    def loss(self, predict, batch, auxiliary):
        prediction = predict(batch.x_t, batch.t, batch.cond)
        with torch.no_grad():
            slow = predict(batch.x_t, batch.t, batch.cond, network=auxiliary)
        return ((prediction - batch.target).square() + self.pull * (prediction - slow).square()).flatten(1).mean(1)

    def after_step(self, network, auxiliary):
        for slow, weight in zip(auxiliary.parameters(), network.parameters(), strict=True):
            slow.lerp_(weight, 0.1)
'''


def test_a_loss_of_a_script(run: Run, tmp_path: Path) -> None:
    """Its options are in the help, its state resumes exactly, and its models are sampled without the script."""
    path = written(tmp_path, "mine.py", LOSS)
    assert "--loss.pull" in run("train", "--plugin", path, "--loss", "mine", "--help").out
    words = ("train", "--plugin", path, "--loss", "mine", *POINTS)
    assert run(*words, "--steps", 4, "--out", "whole").code == 0
    run(*words, "--steps", 2, "--out", "part")
    assert run("train", "--resume", "part", "--steps", 4, "--plugin", path).code == 0
    assert Path("whole/model.safetensors").read_bytes() == Path("part/model.safetensors").read_bytes()
    assert run("sample", "part", "-n", 2, "--steps", 2, "--out", "x.npy").code == 0
    error = run("train", "--resume", "part", "--steps", 6).error
    assert "unknown loss 'mine'" in error
    assert "--plugin mine.py, if you trust it" in error


def test_hints_name_the_script_that_is_needed(run: Run, data: Path, mine: Path) -> None:
    done = run("train", "--dataset", "lazy", *TINY, "--out", "x", "--plugin", "data.py", "--plugin", "mine.py")
    assert f"sample it with: difftool sample x --plugin {data}\n" in done.err


@pytest.mark.slow
def test_workers_know_what_a_script_defines(data: Path, tmp_path: Path) -> None:
    """A process that starts from nothing gets the script with the data, also if the file is gone by then."""
    program = (
        "import multiprocessing, pathlib, sys\n"
        "from difftool.cli import training\n"
        "from difftool.cli.main import main\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    fit = training.fit\n"
        "    import difftool.cli.train as command\n"
        "    command.fit = lambda *arguments: (pathlib.Path('data.py').unlink(), fit(*arguments))\n"
        "    main(sys.argv[1:])\n"
    )
    words = ("train", "--dataset", "lazy", *TINY, "--workers", 1, "--out", "x", "--plugin", "data.py")
    path = written(tmp_path, "program.py", program)
    done = subprocess.run(
        [sys.executable, path, *map(str, words)], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert not data.exists()
    assert (tmp_path / "x" / "model.safetensors").exists()


@pytest.mark.slow
def test_processes_of_torchrun_load_it(data: Path, tmp_path: Path) -> None:
    words = ("train", "--dataset", "lazy", *TINY, "--out", "x", "--plugin", "data.py")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*torchrun, "-m", "difftool", *map(str, words)], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x" / "model.safetensors").exists()


# ── from Python ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def restored() -> Any:
    """Scripts that a test loads for good are gone after it."""
    before = len(registries._replacements)
    yield
    del registries._replacements[before:]


def test_load_plugin(data: Path, restored: None, tmp_path: Path) -> None:
    module = difftool.load_plugin(data)
    assert difftool.component("backbone", "small", width=4) == module.Small(width=4)
    model = difftool.train(dataset="lazy", steps=1, batch_size=8, out=tmp_path / "x", progress=False)
    assert model.run is not None
    assert difftool.load(model.run.path).sample(2, steps=2).shape == (2, 2)
    assert difftool.load_plugin(data) is module
    data.write_text(data.read_text().replace('"small"', '"tiny"'))
    assert difftool.load_plugin(data) is not module
    assert "small" not in difftool.names("backbone")
    with pytest.raises(UsageError, match="does not exist"):
        difftool.load_plugin("nope.py")
    with pytest.raises(TypeError, match="by its path"):
        difftool.load_plugin(3)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_program_that_passes_its_own_components_is_recorded(data: Path, tmp_path: Path) -> None:
    """What a program trains with instances of its classes is resumed and sampled with `--plugin`."""
    call = "difftool.train(dataset=Lazy(), backbone=Small(width=4), steps=2, batch_size=8, out='x', progress=False)"
    data.write_text(f'{data.read_text()}\n\nif __name__ == "__main__":\n    import difftool\n\n    {call}\n')
    done = subprocess.run([sys.executable, "data.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    recorded = tomllib.loads((tmp_path / "x" / "config.toml").read_text())["plugins"]
    assert recorded["data.py"] == Script.read(data).digest
    assert "--plugin data.py, if you trust it" in spawn("sample", "x", cwd=tmp_path).error
    assert spawn("train", "--resume", "x", "--steps", 3, "--plugin", "data.py", cwd=tmp_path).errors == []
    done = spawn("sample", "x", "-n", 2, "--steps", 2, "--out", "a.npy", "--plugin", "data.py", cwd=tmp_path)
    assert (done.out, done.errors) == ("a.npy\n", [])


def test_classes_of_packages_and_libraries_belong_to_no_script() -> None:
    assert script_of(difftool.Sampler) is None
    assert script_of(type("Nowhere", (), {"__module__": "difftool_has_no_such_module"})) is None
    assert script_of(Made) == Script.read(Path(__file__))


class Made:
    """A class of this very file."""


def test_a_script_that_failed_is_tried_again(tmp_path: Path) -> None:
    path = written(tmp_path, "later.py", "import sys\nif not hasattr(sys, 'difftool_ready'):\n    raise ValueError\n")
    script = Script.read(path)
    with pytest.raises(DifftoolError, match="line 3: ValueError"):
        script.load()
    sys.difftool_ready = True  # type: ignore[attr-defined]
    try:
        assert script.load().__file__ == str(path)
    finally:
        del sys.difftool_ready  # type: ignore[attr-defined]
    assert scripts._loading == []


def test_without_the_flag_nothing_of_it_is_imported(cli: Run, tmp_path: Path) -> None:
    code = "import sys; from difftool.cli.main import main\ntry: main(['--version'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "difftool.cli.scripts" not in done.stdout
    assert "difftool.plugins.registry" not in done.stdout


def test_the_registry_is_as_before(run: Run, mine: Path) -> None:
    before = registry()
    run("greet", "--plugin", mine)
    assert registry() is before
