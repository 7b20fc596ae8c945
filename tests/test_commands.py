"""Commands of plugins, `difftool new-plugin` among them, and `difftool check`."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from conftest import Run, tree
from environment import Environment

import difftool
from difftool import Command, DifftoolError, UsageError, hookimpl, option
from difftool.cli import app
from difftool.cli.console import help_text, stderr, stdout
from difftool.components import KINDS
from difftool.plugins import discovery as finding
from difftool.plugins.discovery import Announced, announced
from difftool.plugins.loading import Plugin, Problem
from difftool.plugins.registry import _set_aside_unannounced
from difftool.testing import PluginManager, check_component
from difftool_plugins.commands import difftool_commands, new_plugin

# ── commands ────────────────────────────────────────────────────────────────────────────────────


class Odd(BaseException):
    pass


def raising(error: BaseException) -> Any:
    def fail() -> None:
        raise error

    return fail


ROUND: dict[str, Any] = {}
ROUND["self"] = ROUND
STRANGE = {
    "stop": raising(StopIteration("x")),
    "odd": raising(Odd("x")),
    "exit": raising(SystemExit(0)),
    "interrupt": raising(KeyboardInterrupt()),
    "library": raising(OSError("no route")),
    "system": raising(FileNotFoundError(2, "No such file", "there")),
    "nan": lambda: {"a": float("nan")},
    "round": lambda: ROUND,
}


class Greet(Command, name="greet"):
    """Greet somebody.

    In [several] lines.
    """

    who: str = option(positional=True, help="whom to greet")
    others: tuple[str, ...] = option(default=(), help="and who else")
    kind_: Literal["plain", "json", "lines", "nothing"] = option(default="plain", help="how")
    times: int = option(default=1, ge=1, le=9, help="how often")

    def run(self) -> object:
        print("on stderr")
        if self.who == "nobody":
            raise DifftoolError("there is nobody")
        if self.who == "everybody":
            raise UsageError("WHO: too many")
        if self.who == "zero":
            return 1 / 0
        if self.who in STRANGE:
            return STRANGE[self.who]()
        text = " ".join([f"hello {self.who}"] * self.times)
        results: Mapping[str, object] = {
            "plain": text,
            "json": {"greeting": text, "others": list(self.others)},
            "lines": [text, Path("a/b")],
            "nothing": None,
        }
        return results[self.kind_]


@pytest.fixture
def greet(plugin_manager: PluginManager, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = SimpleNamespace(__name__="greetings", difftool_commands=hookimpl(lambda: [Greet]))
    assert not plugin_manager.register(plugin, "difftool-greet").problems
    known = {"greet": Announced("greet", "difftool-greet", "1.2", "Greetings for difftool")}
    promised = {"promised": Announced("promised", "difftool-greet", "1.2", "")}
    monkeypatch.setattr(app, "announced", lambda taken: {**announced(taken), **known, **promised})


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (("world",), "hello world\n"),
        (("--times", 2, "world"), "hello world hello world\n"),
        (("world", "--kind", "lines"), "hello world\na/b\n"),
        (("world", "--kind", "nothing"), ""),
    ],
)
def test_a_command_prints_its_result_alone(run: Run, greet: None, arguments: tuple[Any, ...], out: str) -> None:
    outcome = run("greet", *arguments)
    assert (outcome.code, outcome.out, outcome.err) == (0, out, "on stderr\n")


def test_a_mapping_is_json(run: Run, greet: None) -> None:
    outcome = run("greet", "you", "--kind", "json", "--others", "a,b")
    assert json.loads(outcome.out) == {"greeting": "hello you", "others": ["a", "b"]}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Missing argument 'WHO'"),
        (("a", "--times", 10), 2, "--times: must be less than or equal to 9, not 10"),
        (("a", "--tmies", 1), 2, "there is no option --tmies; did you mean --times?"),
        (("a", "b"), 2, "unexpected extra argument"),
        (("a", "--kind", "loud"), 2, "--kind: 'loud' is not one of"),
        (("nobody",), 1, "error: there is nobody"),
        (("everybody",), 2, "WHO: too many"),
        (("zero",), 1, "command greet failed: ZeroDivisionError: division by zero"),
        (("stop",), 1, "command greet failed: StopIteration: x"),
        (("odd",), 1, "command greet failed: Odd: x"),
        (("exit",), 1, "command greet failed: SystemExit: 0"),
        (("interrupt",), 1, "command greet failed: KeyboardInterrupt"),
        (("library",), 1, "command greet failed: OSError: no route"),
        (("system",), 1, "error: there: No such file"),
        (("nan",), 1, "command greet: its result cannot be written as JSON: Out of range float values"),
        (("round",), 1, "command greet: its result cannot be written as JSON: Circular reference"),
    ],
)
def test_a_command_that_cannot_be(run: Run, greet: None, arguments: tuple[Any, ...], code: int, message: str) -> None:
    outcome = run("greet", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.error


def test_what_stands_behind_two_dashes_is_no_option_of_the_program(run: Run, greet: None) -> None:
    assert run("greet", "--", "--debug").out == "hello --debug\n"
    assert run("greet", "--", "--no-plugins").out == "hello --no-plugins\n"


def test_help_shows_foreign_text_as_it_stands() -> None:
    from rich.text import Text

    text = "a :fire: b:x:c [red] \x1b[31m\n:one:two: 12:30"
    assert Text.from_markup(help_text(text, ":x:")).plain == "a :fire: b:x:c [red] \\x1b[31m\n:one:two: 12:30 [:x:]"


def test_tables_show_foreign_text_as_it_stands() -> None:
    for console in (stdout(), stderr()):
        assert console.render_str(":fire:").plain == ":fire:"


def test_a_command_that_was_set_aside_is_told_with_the_reason(run: Run, plugin_manager: PluginManager) -> None:
    unfinished = type("Unfinished", (Command,), {"__doc__": "No run."}, name="unfinished")
    plugin_manager.register(SimpleNamespace(__name__="mine", difftool_commands=hookimpl(lambda: [unfinished])))
    outcome = run("unfinished")
    assert outcome.code == 1
    assert "plugin tested:mine was set aside: command 'unfinished': run() is not defined" in outcome.error
    other = run("unheard-of")
    assert other.code == 2
    assert "there is no command 'unheard-of'; 1 plugin was set aside, see 'difftool plugins'" in other.error


def test_help_of_and_about_commands(run: Run, greet: None) -> None:
    own = run("greet", "--help").out
    assert "Greet somebody." in own
    assert "In [several] lines." in own
    assert "WHO" in own
    assert "whom to greet" in own
    assert "--times" in own
    top = run("--help").out
    assert "Commands of plugins" in top
    assert "Greetings for difftool (difftool-greet 1.2)" in top
    assert "greet" in run("list", "commands").out


def test_a_command_that_was_only_promised(run: Run, greet: None) -> None:
    outcome = run("promised")
    assert outcome.code == 1
    assert "difftool-greet 1.2 announces the command 'promised' but does not provide it" in outcome.error
    assert "From a package (difftool-greet 1.2)" in run("--help").out


def test_commands_pass_the_laws() -> None:
    findings = check_component(difftool.component("command", "new-plugin", name_="difftool-x", kind_="sampler"))
    assert {f.law: f.measured for f in findings if f.verdict != "passed"} == {
        "takes components by name": "it takes no component"
    }


def test_a_command_that_no_entry_point_announces_is_set_aside() -> None:
    plugin = Plugin("difftool-greet", "x", "1", "greetings", components=[Greet])
    _set_aside_unannounced(plugin, {("difftool-greet", "greet")})
    assert (plugin.components, plugin.problems) == ([Greet], [])
    _set_aside_unannounced(plugin, {("another", "greet")})
    assert plugin.components == []
    assert plugin.problems == [
        Problem(
            "command 'greet': no entry point announces it",
            'put greet = "greetings" under [project.entry-points."difftool.commands"] and install again',
            "command",
            "greet",
        )
    ]


def test_names_that_are_taken_are_reached_by_their_package(monkeypatch: pytest.MonkeyPatch) -> None:

    found = [
        Announced("new-plugin", "difftool", "1", ""),
        Announced("new-plugin", "theirs", "1", ""),
        Announced("train", "theirs", "1", ""),
        Announced("fid", "aa", "1", ""),
        Announced("fid", "bb", "1", ""),
        Announced("own", "bb", "1", ""),
    ]
    monkeypatch.setattr(finding, "announcements", lambda allowed, denied: found)
    named = {name: one.distribution for name, one in announced(["train"]).items()}
    assert named == {
        "new-plugin": "difftool",
        "theirs:new-plugin": "theirs",
        "theirs:train": "theirs",
        "aa:fid": "aa",
        "bb:fid": "bb",
        "own": "bb",
    }


def test_the_help_says_of_each_command_what_its_own_help_says_first() -> None:
    for name, text in app.COMMANDS.items():
        assert app._load(name).get_short_help_str(limit=1000) == text
    own = {cls.name: (cls.__doc__ or "").partition("\n")[0] for cls in difftool_commands()}
    assert own == app.BUILT_INS


# ── new-plugin ──────────────────────────────────────────────────────────────────────────────────


BESIDE = {"backbone": ("network.py",), "codec": ("transform.py",), "optimizer": ("update.py",)}
"""The modules beside the one with the options, which imports nothing heavy."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_a_whole_package(run: Run, tmp_path: Path, kind: str) -> None:
    outcome = run("new-plugin", "difftool-my-thing", "--kind", kind)
    assert (outcome.code, outcome.out) == (0, "difftool-my-thing\n"), outcome.err
    assert "pip install ./difftool-my-thing" in outcome.err
    files = tree(tmp_path / "difftool-my-thing")
    expected = {
        *(".gitignore", "README.md", "pyproject.toml"),
        str(Path(".github/workflows/test.yml")),
        *(f"src/difftool_my_thing/{name}" for name in ("__init__.py", "py.typed")),
        "tests/test_difftool_my_thing.py",
        *(f"src/difftool_my_thing/{name}" for name in BESIDE.get(kind, ())),
    }
    assert set(files) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["difftool-my-thing"]  # no temporary is left
    for name, content in files.items():
        text = content.decode()
        assert not any(mark in text for mark in ("$kind", "$module", "$Class", "${module}", "TODO")), name
        if name.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(files["pyproject.toml"].decode())
    points = {"difftool": {"my-thing": "difftool_my_thing"}}
    if kind == "command":
        points["difftool.commands"] = points["difftool"]
    assert project["project"]["entry-points"] == points
    assert "class MyThing(" in files["src/difftool_my_thing/__init__.py"].decode()
    assert "${{ matrix.python }}" in files[str(Path(".github/workflows/test.yml"))].decode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_clean(run: Run, tmp_path: Path, kind: str) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    assert run("new-plugin", "difftool-mine", "--kind", kind).code == 0
    for check in (("check",), ("format", "--check")):
        done = subprocess.run(
            [ruff, *check, "--no-cache", "."], cwd=tmp_path / "difftool-mine", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_new_plugins_are_typed(run: Run, tmp_path: Path) -> None:
    """One run of mypy checks all kinds with the settings that their packages share, for each run would read torch.

    It finds difftool as any project does that has installed it, so `py.typed` lets it see the types of both packages.
    """
    pytest.importorskip("mypy")
    packages = [tmp_path / f"difftool-{kind}" for kind in KINDS]
    for kind, package in zip(KINDS, packages, strict=True):
        assert run("new-plugin", package.name, "--kind", kind).code == 0
    projects = [tomllib.loads((package / "pyproject.toml").read_text()) for package in packages]
    assert all(project["tool"]["mypy"] == projects[0]["tool"]["mypy"] for project in projects)
    here = Environment.make(tmp_path / "here")
    (site,) = (tmp_path / "here").glob("**/site-packages")
    for module in ("difftool", "difftool_plugins"):  # an editable install is hidden from mypy
        (site / module).symlink_to(Path(sys.modules[module].__path__[0]))
    stranger = packages[0] / "stranger.py"
    stranger.write_text("from difftool_plugins.samplers.ddim import DDIM\n\nreveal_type(DDIM().eta)\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", packages[0] / "pyproject.toml"),
            *("--python-executable", here.python, "--cache-dir", tmp_path / "cache", stranger),
            *(package.name + f"/{part}" for package in packages for part in projects[0]["tool"]["mypy"]["files"]),
        ],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": os.pathsep.join(str(package / "src") for package in packages)},
        capture_output=True,
        text=True,
    )
    own = [line for line in done.stdout.splitlines() if line.startswith("difftool-")]
    assert own == [f'{packages[0].name}/stranger.py:3: note: Revealed type is "float"'], done.stdout + done.stderr
    count = sum(len([*package.rglob("*.py")]) for package in packages)
    assert f"no issues found in {count} source files" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--kind", "sampler"), 2, "Missing argument 'NAME'"),
        (("mine",), 2, "--kind: must be given"),
        (("mine", "--kind", "network"), 2, "--kind: 'network' is not one of"),
        (("My_Sampler", "--kind", "sampler"), 2, "NAME: must be lower-case words joined by '-'"),
        (("../x", "--kind", "sampler"), 2, "NAME: must be lower-case words"),
        (("difftool-2d", "--kind", "sampler"), 2, "NAME: must be lower-case words"),
        (("difftool-", "--kind", "sampler"), 2, "NAME: must be lower-case words"),
        (("random", "--kind", "sampler"), 2, "NAME: a module named random already exists"),
        (("torch", "--kind", "backbone"), 2, "NAME: a module named torch already exists"),
        (("class", "--kind", "sampler"), 2, "NAME: a module named class already exists"),
        (("difftool-none", "--kind", "sampler"), 2, "NAME: difftool-none is a reserved name"),
        (("true", "--kind", "sampler"), 2, "NAME: true is a reserved name"),
        (("con", "--kind", "sampler"), 2, "NAME: con is a reserved name"),
        (("difftool-inf", "--kind", "guidance"), 2, "NAME: difftool-inf is a reserved name"),
        (("lpt1", "--kind", "sampler"), 2, "NAME: lpt1 is a reserved name"),
        (("difftool-ddim", "--kind", "sampler"), 2, "NAME: a sampler named ddim already exists"),
        (("difftool-train", "--kind", "command"), 2, "NAME: a command named train already exists"),
        (("difftool-new-plugin", "--kind", "command"), 2, "NAME: a command named new-plugin already exists"),
        (("x" * 61, "--kind", "sampler"), 2, "NAME: must have at most 60 characters"),
        (("taken", "--kind", "sampler"), 1, "taken already exists; choose another name, or remove it"),
        (("mine", "--kind", "sampler", "--into", "taken/file"), 1, "taken/file: "),
    ],
)
def test_a_new_plugin_that_cannot_be(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    before = tree(tmp_path)
    outcome = run("new-plugin", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.error
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_names_of_all_commands_are_taken() -> None:
    assert set(new_plugin.COMMANDS) == set(app.COMMANDS)


def test_a_new_plugin_may_be_called_like_what_it_uses(run: Run, tmp_path: Path) -> None:
    assert run("new-plugin", "difftool-step", "--kind", "sampler", "--into", "deep/er").out == "deep/er/difftool-step\n"
    text = (tmp_path / "deep/er/difftool-step/src/difftool_step/__init__.py").read_text()
    assert 'class StepSampler(Sampler, name="step"):' in text


# ── check ───────────────────────────────────────────────────────────────────────────────────────


class Off(difftool.NoiseSchedule, name="off"):
    """Never gets noisy."""

    def build(self, timesteps: int) -> Any:
        import torch

        return difftool.Schedule.from_betas(torch.full((timesteps,), 1e-6, dtype=torch.float64))


@pytest.fixture
def off(plugin_manager: PluginManager) -> None:
    plugin = SimpleNamespace(__name__="off", difftool_schedules=hookimpl(lambda: [Off]))
    assert not plugin_manager.register(plugin, "difftool-off").problems


def test_check_says_how_far_each_law_holds(run: Run) -> None:
    outcome = run("check", "euler")
    assert outcome.code == 0, outcome.err
    assert f"sampler euler (difftool {difftool.__version__})" in outcome.out
    assert "has the order it claims" in outcome.out
    assert "1 claimed" in outcome.out
    assert outcome.lines[-1] == "13 passed, 0 failed, 1 skipped"


def test_check_exits_with_1_if_a_law_fails(run: Run, off: None) -> None:
    outcome = run("check", "off", "linear", "--json")
    assert outcome.code == 1
    assert "error: 1 law failed: schedule off ends in noise" in outcome.error
    found = json.loads(outcome.out)
    assert found["verdict"] == "failed"
    assert [(one["kind"], one["name"], one["package"]) for one in found["checked"]] == [
        ("schedule", "off", "difftool-off 0"),
        ("schedule", "linear", f"difftool {difftool.__version__}"),
    ]
    laws = {law["law"]: law for law in found["checked"][0]["laws"]}
    assert laws["ends in noise"]["verdict"] == "failed"
    words = "1 of the variance is signal at the last of 250 levels; at most 0.01 is allowed"
    assert words in laws["ends in noise"]["measured"]
    assert {law["verdict"] for law in found["checked"][1]["laws"]} == {"passed"}


def test_check_takes_a_package_with_all_it_brings(run: Run, off: None) -> None:
    outcome = run("check", "difftool_off", "--json")
    found = json.loads(outcome.out)["checked"]
    assert [(one["kind"], one["name"]) for one in found] == [("plugin", "difftool-off:off"), ("schedule", "off")]
    assert [law["verdict"] for law in found[0]["laws"]] == ["passed", "passed"]


def test_check_takes_options_of_what_is_named(run: Run) -> None:
    outcome = run("check", "linear", "--schedule.no-rescale", "--json")
    assert outcome.code == 1
    (case,) = json.loads(outcome.out)["checked"]
    assert {law["law"] for law in case["laws"] if law["verdict"] == "failed"} == {
        "ends in noise",
        "has the same shape at every length",
    }


def test_a_name_of_two_kinds_is_checked_in_both(run: Run) -> None:
    found = json.loads(run("check", "edm", "--json").out)["checked"]
    assert [(one["kind"], one["name"]) for one in found] == [("prediction", "edm"), ("weighting", "edm")]


def test_check_of_a_backbone_with_a_shape(run: Run) -> None:
    outcome = run("check", "mlp", "--shape", "5", "--backbone.width", 32, "--json")
    assert outcome.code == 0, outcome.err
    (case,) = json.loads(outcome.out)["checked"]
    assert "5: plain" in next(law["measured"] for law in case["laws"] if law["law"] == "returns the right shape")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument"),
        (("nothing-such",), "there is no component or package called 'nothing-such'"),
        (("dimm",), "did you mean 'ddim'"),
        (("image-folder",), "--dataset.path: must be given"),
        (("ddim", "--sampler.eta", "2"), "--sampler.eta: must be less than or equal to 1"),
        (("ddim", "--schedule.p", "2"), "there is no option --schedule.p"),
        (("mlp", "--shape", "3,x"), "--shape: must be whole numbers joined by commas"),
        (("mlp", "--shape", "0"), "--shape: must be greater than or equal to 1"),
        (("mlp", "--shape", "1,1,1,1,1"), "--shape: must be one to four numbers"),
    ],
)
def test_what_cannot_be_checked(run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = run("check", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_help_of_check_shows_the_options(run: Run) -> None:
    shown = run("check", "lms", "--help").out
    assert "Sampler: lms" in shown
    assert "--sampler.order" in shown
