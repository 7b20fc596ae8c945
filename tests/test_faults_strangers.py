"""Files and packages of strangers: they run nothing, open nothing, and write nothing elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
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
from difftool import Backbone, Dataset, DatasetContext, Logger, RunContext, Samples, hookimpl, option
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
@pytest.mark.parametrize("logger", ["jsonl", "lines", "tensorboard"])
@pytest.mark.parametrize("path", OUTSIDE)
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
    Path("c.toml").write_text('[loggers.jsonl]\npath = "logs/all.jsonl"\n[loggers.lines]\nproject = "mine"\n')
    outcome = run("train", "--config", "c.toml", *POINTS, "--steps", 1, "--out", "r")
    assert outcome.code == 0, outcome.err
    assert "logging to jsonl: path r/logs/all.jsonl\n" in outcome.err
    assert "logging to lines: path r/rows.txt, project mine" in outcome.err
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
    for words in (("--out", "x.png"), ("--out", "x.npy"), ("--out", "x.gif"), ()):
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
    assert "weights" in alone.error
    assert "must be given" in alone.error
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
