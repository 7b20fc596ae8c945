"""Files and packages of strangers: they run nothing, open nothing, and write nothing elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import tomli_w
import torch
from conftest import POINTS, Run, tree
from PIL import Image

import difftool
from difftool import Backbone, Dataset, DatasetContext, Logger, RunContext, Samples, Weighting, hookimpl, option
from difftool.children import SAFE_PATH
from difftool.components import Component
from difftool.runs import checkpoint
from difftool.runs.folder import RunFolder
from difftool.testing import PluginManager


def plugin(*components: type[Component]) -> SimpleNamespace:
    """Return a plugin of these components, which are of one kind."""
    hook = hookimpl(specname=components[0].hook)(lambda: list(components))
    return SimpleNamespace(__name__="stranger", **{components[0].hook: hook})


def edit_config(folder: Path, **tables: Mapping[str, Any]) -> None:
    """Lay tables over those of a run's config file."""
    document = tomllib.loads((folder / "config.toml").read_text())
    for name, table in tables.items():
        document[name] = {**document.get(name, {}), **table}
    (folder / "config.toml").write_text(tomli_w.dumps(document))


def edit_metadata(source: Path, target: Path, **changes: Any) -> Path:
    """Write a file of weights anew, with changed metadata and the digest that fits them."""
    tensors, document = checkpoint.load(source)
    checkpoint.save(target, tensors, {**document, **changes})
    return target


# --- paths that files name for writing -------------------------------------------------------------------------------


class Lines(Logger, name="lines"):
    """A stranger's logger, which declares nothing of its options."""

    path: Path = option(default=Path("rows.txt"), help="the file")
    address: str | None = option(default=None, help="another place")
    others: tuple[str, ...] = option(default=(), help="further places")
    project: str | None = option(default=None, help="a name")

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[object], None]]:
        for place in (self.path, self.address, *self.others):
            if place is not None:
                Path(place).parent.mkdir(exist_ok=True)
                with open(place, "a") as file:
                    file.write("a row\n")
        yield lambda _: None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a file that nothing may touch."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / ".bashrc").write_text("# mine\n")
    monkeypatch.setenv("HOME", str(folder))
    return folder


OUTSIDE = ("~/.bashrc", "{home}/.bashrc", "../home/.bashrc", "logs/../../home/.bashrc", "link/.bashrc", "bashrc")


@pytest.mark.parametrize("how", ["--resume", "--config"])
@pytest.mark.parametrize(
    ("path", "logger"), [*((path, "jsonl") for path in OUTSIDE), (OUTSIDE[0], "lines"), (OUTSIDE[0], "tensorboard")]
)
def test_a_path_in_a_file_stays_in_the_run_folder(
    run: Run, plugin_manager: PluginManager, points_run: Path, home: Path, path: str, logger: str, how: str
) -> None:
    """A path that a file names for writing stays in its run folder, on --resume and --config, for every logger."""
    plugin_manager.register(plugin(Lines))
    shutil.copytree(points_run, "r")
    Path("r/link").symlink_to(home)
    Path("r/bashrc").symlink_to(home / ".bashrc")
    edit_config(Path("r"), loggers={logger: {"dir" if logger == "tensorboard" else "path": path.format(home=home)}})
    if how == "--resume":
        outcome = run("train", "--resume", "r", "--steps", 31)
        assert outcome.code in (1, 2)
        assert "run folder" in outcome.error
    else:
        linked = path in ("link/.bashrc", "bashrc")  # an ordinary path in the new run folder
        assert run("train", "--config", "r/config.toml", "--steps", 1, "--out", "s").code == (0 if linked else 2)
    assert tree(home) == {".bashrc": b"# mine\n"}


@pytest.mark.parametrize(
    "options",
    [
        {"address": "~/.bashrc"},
        {"address": "/etc/x"},
        {"address": "../x"},
        {"address": "sqlite:////tmp/x.db"},
        {"address": "file:///tmp/x"},
        {"address": "a-file-here"},
        {"address": "new/rows"},
        {"address": ".profile"},
        {"address": "rows.txt"},
        {"others": ["ok", "~/.bashrc"]},
        {"address": "C:\\x"},
    ],
)
def test_a_text_that_leads_out_counts_as_a_path(
    run: Run, plugin_manager: PluginManager, options: dict[str, Any]
) -> None:
    """A text option of a logger that leads out of the run folder is refused where a file names it."""
    plugin_manager.register(plugin(Lines))
    Path("a-file-here").write_text("mine")
    Path("c.toml").write_text(tomli_w.dumps({"loggers": {"lines": options}}))
    outcome = run("train", "--config", "c.toml", *POINTS, "--steps", 1)
    assert outcome.code == 2
    assert f"c.toml, line 2: loggers.lines.{next(iter(options))}: " in outcome.error
    assert "pass --logger." in outcome.error
    assert sorted(p.name for p in Path().iterdir()) == ["a-file-here", "c.toml"]


def test_a_relative_path_in_a_file_lies_in_the_run_folder(run: Run, plugin_manager: PluginManager) -> None:
    """A relative path in a config file, or a logger's default, is one in the run folder, and moves with it."""
    plugin_manager.register(plugin(Lines))
    Path("c.toml").write_text('[loggers.jsonl]\npath = "logs/all.jsonl"\n[loggers.lines]\nproject = "v1.0"\n')
    outcome = run("train", "--config", "c.toml", *POINTS, "--steps", 1, "--out", "r")
    assert outcome.code == 0, outcome.err
    assert "logging to jsonl: path r/logs/all.jsonl\n" in outcome.err
    assert "logging to lines: path r/rows.txt, project v1.0" in outcome.err
    assert Path("r/rows.txt").read_text() == "a row\n"
    assert tomllib.loads(Path("r/config.toml").read_text())["loggers"]["jsonl"] == {"path": "logs/all.jsonl"}
    Path("r").rename("moved")
    again = run("train", "--resume", "moved", "--steps", 2)
    assert again.code == 0, again.err
    assert len(Path("moved/logs/all.jsonl").read_text().splitlines()) == 2


def test_a_path_outside_is_typed_again_to_resume(run: Run, tmp_path: Path) -> None:
    """A logger's path that the user typed may be anywhere, and is typed again to resume; one line says so."""
    jsonl = ("--logger.path", "all.jsonl")
    assert run("train", *POINTS, "--steps", 1, "--out", "r", "--logger", "jsonl", *jsonl).code == 0
    refused = run("train", "--resume", "r", "--steps", 2)
    assert refused.code == 2
    assert re.search(r"error: r/config.toml, line \d+: loggers.jsonl.path: ", refused.error)
    assert "pass --logger.path yourself" in refused.error
    assert run("train", "--resume", "r", "--steps", 2, *jsonl).code == 0
    assert len(Path("all.jsonl").read_text().splitlines()) == 2
    assert run("train", "--resume", "r", "--steps", 3, "--logger", "none").code == 0
    assert (
        run("train", *POINTS, "--steps", 1, "--out", "s", "--logger", "jsonl", "--logger.path", "s/x.jsonl").code == 0
    )
    assert run("train", "--resume", "s", "--steps", 2).code == 0
    assert len(Path("s/x.jsonl").read_text().splitlines()) == 2


def test_paths_from_python_are_the_users(run: Run, tmp_path: Path) -> None:
    """A logger's path in a script is relative to the current folder, as the user means it."""
    logger = difftool.component("logger", "jsonl", path="all.jsonl")
    mlp = difftool.component("backbone", "mlp", width=16, depth=1)
    difftool.train(dataset=difftool.component("dataset", "swiss-roll", n=100), backbone=mlp, loggers=[logger], steps=1)
    assert Path("all.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("name", ["logs", "state", "previews", "samples", "logs/deep"])
def test_links_lead_nowhere(run: Run, points_run: Path, home: Path, name: str) -> None:
    """A link in a run folder that leads out of it is not followed to write."""
    shutil.copytree(points_run, "r")
    place = Path("r", name)
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(home)
    outcome = run("train", "--resume", "r", "--steps", 31, "--logger", "csv")
    assert outcome.code == 1
    assert f"{place} leads out of the run folder r; remove the link" in outcome.error
    if name == "samples":
        assert run("sample", "r", "-n", 4).code == 1
    assert tree(home) == {".bashrc": b"# mine\n"}


@pytest.mark.parametrize("started", ["$(touch pwned)", "\x1b]0;x\x07", "x" * 100_000, 7, [1], "٢٠٢٦-01-01"])
def test_started_is_a_time(run: Run, points_run: Path, started: Any) -> None:
    """The start of a run that is not a time reaches neither a file nor the terminal."""
    shutil.copytree(points_run, "r")
    edit_config(Path("r"), run={"started": started}, loggers={"jsonl": {"path": "all.jsonl"}})
    assert RunFolder(Path("r")).started == ""
    outcome = run("train", "--resume", "r", "--steps", 31)
    assert outcome.code == 0, outcome.err
    (row,) = map(json.loads, Path("r/all.jsonl").read_text().splitlines())
    assert row["started"] == tomllib.loads(Path("r/config.toml").read_text())["run"]["started"] > "2026"


def test_the_time_of_a_run_stays(run: Run, points_run: Path) -> None:
    """The start of a run is kept to the last digit when it is resumed."""
    shutil.copytree(points_run, "r")
    before = tomllib.loads(Path("r/config.toml").read_text())["run"]["started"]
    assert run("train", "--resume", "r", "--steps", 31).code == 0
    assert tomllib.loads(Path("r/config.toml").read_text())["run"]["started"] == before == RunFolder(Path("r")).started


def test_toml_steers_no_terminal(run: Run, plugin_manager: PluginManager) -> None:
    """Text of a config file is printed and written without characters that steer a terminal."""

    class Named(Dataset, name="named"):
        """Points with a name."""

        text: str = option(help="a text")

        def load(self, context: DatasetContext) -> Samples:
            return difftool.points(torch.randn(64, 2, generator=context.generator("x")))

    plugin_manager.register(plugin(Named))
    text = "a\x9b31m\u202e\x1b[0m\x7f\u2028"
    Path("c.toml").write_text(tomli_w.dumps({"dataset": {"name": "named", "text": text}}))
    outcome = run("train", "--config", "c.toml", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert all(c == "\n" or c.isprintable() for c in outcome.out)
    assert tomllib.loads(outcome.out)["dataset"]["text"] == text


# --- paths that files name for reading -------------------------------------------------------------------------------


class Table(Dataset, name="table"):
    """A stranger's dataset, which declares nothing of its options."""

    file: str = option(default="", help="the file")

    def load(self, context: DatasetContext) -> Samples:
        return difftool.points(torch.randn(64, 2, generator=context.generator("x")))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, plugin_manager: PluginManager) -> list[str]:
    """The folders and files that datasets have opened."""
    from difftool_plugins.datasets.image_folder import ImageFolder

    found: list[str] = []

    def record(self: Any, *_: object) -> None:
        found.append(self.name)
        raise ValueError("opened")

    monkeypatch.setattr(ImageFolder, "load", record)
    monkeypatch.setattr(Table, "load", record)
    plugin_manager.register(plugin(Table))
    return found


DATASETS = (
    {"name": "image-folder", "path": "/"},
    {"name": "image-folder", "path": "/", "size": [2, 1], "channels": 1},
    {"name": "table", "file": "/etc/passwd"},
    {"name": "table"},
    {"name": "tested:table", "file": "x"},
)


@pytest.mark.parametrize("dataset", DATASETS, ids=str)
def test_sampling_a_model_file_reads_no_data(
    run: Run, points_run: Path, opened: list[str], dataset: dict[str, Any]
) -> None:
    """Commands on a model file open none of the data that its metadata name."""
    edit_metadata(points_run / "model.safetensors", Path("m.safetensors"), dataset=dataset)
    for words in (("--out", "x.npy"), ()):  # the latter draws points over the data, where it has them
        outcome = run("sample", "m.safetensors", "-n", 8, "--steps", 2, *words)
        assert outcome.code == 0, outcome.err
    compared = run("compare", "m.safetensors", "-n", 8, "--calls", "2,4", "--reference", 8)
    assert compared.code == 0, compared.err
    refused = run("reconstruct", "m.safetensors")
    assert refused.code != 0
    reason = "its plugin is not installed" if ":" in dataset["name"] else "a model file does not bring its data"
    assert reason in refused.error
    assert run("info", "m.safetensors").code == 0
    model = difftool.load("m.safetensors")
    assert model.sample(4, steps=2).shape == (4, 2)
    model.save(Path("again.safetensors"))
    with pytest.raises(difftool.DifftoolError, match=reason):
        model.load_samples()
    assert opened == []


def test_data_of_another_shape_are_not_opened(run: Run, points_run: Path, opened: list[str]) -> None:
    """A run of points whose config file names a folder of images opens no image when it is sampled."""
    shutil.copytree(points_run, "r")
    edit_metadata(Path("r/model.safetensors"), Path("r/model.safetensors"), dataset={"name": "image-folder"})
    config = tomllib.loads(Path("r/config.toml").read_text())
    Path("r/config.toml").write_text(tomli_w.dumps({**config, "dataset": {"name": "image-folder", "path": "/"}}))
    assert run("sample", "r", "-n", 8, "--steps", 2).code == 0
    assert opened == []


def test_a_run_folder_has_its_own_data(run: Run, tmp_path: Path) -> None:
    """A run folder finds its data by its own config file, also after they moved; a model file alone does not."""
    photos(tmp_path / "photos")
    assert run("train", *TINY, "--dataset.path", "photos", "--out", "r").code == 0
    assert run("reconstruct", "r", "--out", "a.png").code == 0
    Path("photos").rename("elsewhere")
    assert run("reconstruct", "r", "--out", "b.png").code == 1
    edit_config(Path("r"), dataset={"path": "elsewhere"})
    assert run("reconstruct", "r", "--out", "c.png").code == 0
    assert Path("a.png").read_bytes() == Path("c.png").read_bytes()
    assert run("train", "--resume", "r", "--steps", 3).code == 0
    assert run("reconstruct", "r/model.safetensors", "--out", "d.png").code == 1


def test_a_generated_dataset_comes_with_the_file(run: Run, points_run: Path) -> None:
    """A model file draws and compares with data that are computed from its options and the seed alone."""
    shutil.copy(points_run / "model.safetensors", "m.safetensors")
    assert difftool.load("m.safetensors").load_samples().items.shape == (500, 2)
    assert run("reconstruct", "m.safetensors").code == 0


class Pretrained(Backbone, name="pretrained"):
    """A stranger's network, which begins from a file."""

    weights: Path = option(help="the file")
    more: str = option(default="", help="another file")
    opened: ClassVar[list[str]] = []

    def build(self, spec: Any) -> torch.nn.Module:
        self.opened.extend([str(self.weights), self.more])
        return difftool.component("backbone", "mlp", width=8, depth=1).build(spec)  # type: ignore[attr-defined,no-any-return]


class Weighed(Weighting, name="weighed"):
    """A stranger's weighting, from a file."""

    table: Path = option(help="the file")

    def weight(self, native: torch.Tensor, spec: Any) -> torch.Tensor:
        return native


def test_a_model_is_sampled_without_the_files_of_its_training(run: Run, plugin_manager: PluginManager) -> None:
    """A model file whose weighting needed a file can be sampled without it, and its run resumes."""
    plugin_manager.register(plugin(Weighed))
    own = ("--weighting", "weighed", "--weighting.table", "w.csv")
    assert run("train", *POINTS, "--steps", 2, *own, "--out", "r").code == 0
    shutil.copy("r/model.safetensors", "m.safetensors")
    assert run("sample", "m.safetensors", "-n", 4, "--steps", 2).code == 0
    assert run("train", "--resume", "r", "--steps", 3).code == 0


def test_a_network_of_a_file_opens_nothing(run: Run, plugin_manager: PluginManager, tmp_path: Path) -> None:
    """The paths of a network are taken from the run's config file, and never from a model file or a state."""
    plugin_manager.register(plugin(Pretrained))
    own = ("--backbone", "pretrained", "--backbone.weights", "w.bin", "--backbone.more", str(tmp_path / "more.bin"))
    assert run("train", "--dataset.n", 100, "--preview-every", 0, "--steps", 2, *own, "--out", "r").code == 0
    for path in (Path("r/model.safetensors"), *Path("r/state").iterdir()):
        assert b"w.bin" not in path.read_bytes()
        table = {"name": "pretrained", "weights": "/etc/passwd", "more": "/etc/shadow"}
        edit_metadata(path, path, backbone=table)
    Pretrained.opened.clear()
    assert run("sample", "r", "-n", 4, "--steps", 2).code == 0
    assert run("train", "--resume", "r", "--steps", 3).code == 0
    assert set(Pretrained.opened) == {str(tmp_path / "w.bin"), str(tmp_path / "more.bin")}
    shutil.copy("r/model.safetensors", "m.safetensors")
    Pretrained.opened.clear()
    alone = run("sample", "m.safetensors", "-n", 4)
    assert alone.code == 1
    assert "the backbone pretrained needs weights, a path, which a model file does not hold" in alone.error
    assert Pretrained.opened == []


# --- what a shared file tells ----------------------------------------------------------------------------------------

TINY = (
    *("--dataset", "image-folder", "--dataset.size", 8, "--backbone.dim", 8, "--backbone.dim-mults", "1,2"),
    *("--backbone.groups", 4, "--batch-size", 4, "--steps", 2, "--threads", 1),
)


def photos(folder: Path) -> None:
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(folder / f"{i}.png")


def test_shared_files_hold_no_path_of_the_machine(run: Run, tmp_path: Path) -> None:
    """Models, states, pictures and arrays name no folder of the machine on which they were made, and no user."""
    photos(tmp_path / "secret-photos")
    loggers = ("--logger", "jsonl", "--logger.path", tmp_path / "secret-log.jsonl")
    trained = run("train", *TINY, "--dataset.path", "secret-photos", *loggers, "--out", "secret-run")
    assert trained.code == 0, trained.err
    for suffix in ("png", "jpg", "svg", "pdf", "gif", "npy", "npz", "safetensors", "csv"):
        photo = "secret-photos/1.png"
        drawn = run("sample", "secret-run", "-n", 2, "--steps", 2, "--init", photo, "--out", f"x.{suffix}")
        assert drawn.code == 0, drawn.err
    assert run("noise", "secret-photos/1.png", "--out", "noise.png").code == 0
    assert run("reconstruct", "secret-run", "--out", "reconstruct.svg").code == 0
    run_folder = RunFolder(Path("secret-run"))
    files = [run_folder.model, run_folder.loss, *run_folder.saved_states(), *run_folder.previews.iterdir()]
    files += [path for path in Path().iterdir() if path.is_file() and path.name != "secret-log.jsonl"]
    assert len(files) > 12
    for path in files:
        content = path.read_bytes()
        for word in ("secret", str(tmp_path), os.path.expanduser("~")):
            assert word.encode() not in content, (path, word)


# --- modules in the current folder -----------------------------------------------------------------------------------

DECOYS = (
    *("typing", "random", "torch", "numpy", "sitecustomize", "usercustomize", "difftool_plugins", "copy", "re", "json"),
    *("struct", "socket", "pickle", "dataclasses", "enum", "contextlib", "PIL", "matplotlib", "pluggy", "typer"),
)
"""Modules that a child process might take from the current folder; `python -m` takes its very first there."""
PROGRAM = (str(Path(sys.executable).with_name("difftool")),)
AS_MODULE = (sys.executable, "-m", "difftool")
SPAWNING = """
import difftool, multiprocessing
if __name__ == "__main__":
    multiprocessing.set_start_method("{method}")
    data = difftool.component("dataset", "image-folder", path="../photos", size=8, memory=0.0)
    unet = difftool.component("backbone", "unet", dim=8, dim_mults=(1, 2), groups=4)
    difftool.train(dataset=data, backbone=unet, batch_size=4, steps=1, workers=1, preview_every="0", out="../r")
"""


def call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder of decoys, none of which may be imported."""
    here = folder / "here"
    here.mkdir()
    for name in (*DECOYS, *(() if command[1:3] == ("-m", "difftool") else ("difftool",))):
        (here / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write({name!r})\nraise SystemExit(9)\n")
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert not (folder / "ran").exists(), (folder / "ran").read_text()
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (PROGRAM, ("check", "none")),
        (PROGRAM, ("new-plugin", "difftool-abc", "--kind", "sampler")),
        (PROGRAM, ("plugins",)),
        (AS_MODULE, ("plugins",)),
    ],
    ids=["check", "new-plugin", "plugins", "module"],
)
def test_no_command_runs_a_module_of_the_current_folder(
    tmp_path: Path, program: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """No command, and no process that it starts, takes a module from the current folder."""
    assert call(tmp_path, *program, *words).stdout


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_no_worker_runs_a_module_of_the_current_folder(tmp_path: Path, method: str) -> None:
    """A process that reads data takes no module from the current folder, however it is started."""
    photos(tmp_path / "photos")
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "main.py").write_text(SPAWNING.format(method=method))
    call(tmp_path, sys.executable, str(tmp_path / "script" / "main.py"))
    assert (tmp_path / "r" / "model.safetensors").exists()


@pytest.mark.slow
def test_no_compiler_runs_a_module_of_the_current_folder(tmp_path: Path) -> None:
    """The processes of torch.compile take no module from the current folder."""
    call(tmp_path, *PROGRAM, "train", *map(str, POINTS), "--steps", "2", "--compile", "--out", "../r")


def test_children_inherit_a_safe_path_only_while_a_command_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that runs in the process of a script leaves its environment as it was."""
    monkeypatch.delenv(SAFE_PATH, raising=False)
    run("list")
    assert SAFE_PATH not in os.environ
    monkeypatch.setenv(SAFE_PATH, "yes")
    run("list")
    assert os.environ[SAFE_PATH] == "yes"


def test_a_package_in_the_current_folder_can_be_checked(tmp_path: Path) -> None:
    """The tests of a package that lies in the current folder find it there, and nothing else."""
    (tmp_path / "mine.py").write_text(
        "import helper\nfrom difftool import Logger\n\n\nclass Mine(Logger, name='mine'):\n"
        "    'Logs nothing.'\n\n    def open(self, run):\n        import contextlib\n"
        "        return contextlib.nullcontext(print)\n"
    )
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "random.py").write_text("raise SystemExit(9)\n")
    code = (
        "import random, sys; sys.path.insert(0, ''); import mine; from difftool.testing import check_component as c; "
    )
    code += "print(*[(f.law, f.verdict) for f in c(mine.Mine)], sep='\\n')"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "('imports nothing heavy', 'passed')" in done.stdout, done.stdout + done.stderr


# --- packages of strangers -------------------------------------------------------------------------------------------

STRANGER = '''
import os, subprocess, sys
from difftool import Command, Dataset, Sampler, hookimpl


def shout(where):
    os.write(1, f"by-descriptor at {where}\\n".encode())
    subprocess.run([sys.executable, "-S", "-c", "print('by-child')"], check=True)
    print("by-print", file=sys.__stdout__, flush=True)
    print("by-print")


shout("import")


class Loud(Sampler, name="loud"):
    """Shouts while it samples."""

    def sample(self, denoise, x, levels, noise):
        from difftool import component

        shout("sampling")
        yield from component("sampler", "ddim").sample(denoise, x, levels, noise)


class Tell(Command, name="tell"):
    """Shouts while it runs."""

    def run(self):
        shout("run")
        return {"result": 1}


@hookimpl
def difftool_samplers():
    return [Loud]


@hookimpl
def difftool_commands():
    return [Tell]
'''


def distribution(folder: Path, name: str, points: str, *, info: str = "") -> None:
    """Write a package's metadata into a folder of the module path."""
    place = folder / f"{info or name}-9.9.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    (place / "entry_points.txt").write_text(points)


@pytest.mark.parametrize(
    ("name", "info"), [("difftool", ""), ("Difftool", ""), ("difftool", "other"), ("difftool-plugins", "")]
)
def test_no_package_passes_for_the_built_ins(cli: Run, tmp_path: Path, name: str, info: str) -> None:
    """A package on the module path that calls itself difftool is set aside, and hides no built-in."""
    path = tmp_path / "path"
    distribution(path, name, "[difftool]\nx = evil\n[difftool.commands]\ntell = evil\nnew-plugin = evil\n", info=info)
    (path / "evil.py").write_text(STRANGER.replace("loud", "ddim"))
    (path / "difftool_plugins").mkdir()
    (path / "difftool_plugins" / "__init__.py").write_text("raise SystemExit(9)\n")
    env = {"PYTHONPATH": str(path), "DIFFTOOL_PLUGINS": "difftool-plugins,difftool"}
    listed = json.loads(cli("list", "samplers", "--json", env=env).out)
    listing = json.loads(cli("plugins", "--json", env=env).out)["plugins"]
    assert "ddim" in json.dumps(listed)
    ours = [p for p in listing if p["distribution"] == "difftool"]
    assert {p["version"] for p in ours} == {difftool.__version__}
    assert any("ddim" in p["provides"].get("samplers", ()) for p in ours)
    (theirs,) = [p for p in listing if p["distribution"] != "difftool"]
    if name.lower() == "difftool":
        assert theirs["distribution"] == f"difftool in {path}"
        assert "calls itself difftool" in theirs["problems"][0]["reason"]
        assert "tell" not in cli("--help", env=env).out
        assert "by-" not in cli("list", env=env).err
    else:
        assert "the name is taken by difftool" in json.dumps(theirs["problems"])
        assert "tell" in cli("--help", env=env).out
    assert cli("new-plugin", "difftool-abc", "--kind", "sampler", env=env).code == 0


def test_stdout_holds_results_alone(cli: Run, tmp_path: Path, points_run: Path) -> None:
    """What a plugin, or a child of it, writes to descriptor 1 at any moment goes to stderr, and never into results."""
    distribution(tmp_path / "path", "loud", "[difftool]\nx = loud\n[difftool.commands]\ntell = loud\n")
    (tmp_path / "path" / "loud.py").write_text(STRANGER)
    env = {"PYTHONPATH": str(tmp_path / "path"), "DIFFTOOL_PLUGINS": "loud"}
    told = cli("tell", env=env)
    assert json.loads(told.out) == {"result": 1}
    assert told.err.count("by-descriptor at run") == told.err.count("by-descriptor at import") == 1
    assert told.err.count("by-child") == 2
    assert told.err.count("by-print") == 4
    sampled = cli("sample", points_run, "--sampler", "loud", "-n", 4, "--steps", 2, "--out", "x.npy", "--json", env=env)
    assert json.loads(sampled.out)["files"] == ["x.npy"]
    assert "by-descriptor at sampling" in sampled.err
    for words in (("list", "--json"), ("plugins", "--json"), ("info", str(points_run), "--json")):
        json.loads(cli(*words, env=env).out)
    assert "by-" not in cli("--help", env=env).out


def test_results_reach_a_file_and_a_closed_pipe(tmp_path: Path, points_run: Path) -> None:
    """Results reach files and pipes as before, and a reader that leaves is no error."""
    program = f"{sys.executable} -m difftool"
    script = f"{program} info {points_run} --json > info.json; {program} list | head -1; echo ${{PIPESTATUS[0]}}; "
    script += f"{program} --version >&-; echo $?; {program} list > /dev/full; echo $?"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads((tmp_path / "info.json").read_text())["run"] == str(points_run)
    assert done.stdout.splitlines()[1:] in (["141", "0", "1"], ["0", "0", "1"])
    assert "Traceback" not in done.stderr
    assert done.stderr.count("difftool: error") == 1


def test_two_functions_may_serve_one_hook(plugin_manager: PluginManager) -> None:
    """A module may have several functions for one hook, and all of their components count."""
    first, second = (hookimpl(specname="difftool_loggers")(lambda one=one: [one]) for one in (Lines, Other))
    found = plugin_manager.register(SimpleNamespace(__name__="two", first=first, second=second))
    assert found.problems == []
    assert {c.name for c in found.components} == {"lines", "other"}


class Other(Lines, name="other"):
    """Another logger."""
