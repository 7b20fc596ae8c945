"""Laws of the code base: who imports whom, what stays unimported, and that files never run code."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import difftool
import difftool_plugins

CORE = Path(difftool.__file__).parent
BUILT_INS = Path(difftool_plugins.__file__).parent
HEAVY = ("torch", "numpy", "matplotlib")


def sources(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names) of every import statement, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or "", tuple(alias.name for alias in node.names)


def test_the_core_never_mentions_the_built_ins() -> None:
    assert len(sources(CORE)) > 30
    for path in sources(CORE):
        assert "difftool_plugins" not in path.read_text(encoding="utf-8"), path


def test_built_ins_use_what_everybody_may_use() -> None:
    seen = 0
    for path in sources(BUILT_INS):
        for module, names in imports(path):
            assert not module.startswith("difftool."), f"{path} imports {module}"
            if module == "difftool":
                seen += 1
                assert names, f"{path}: import difftool as a whole"
                assert set(names) <= set(difftool.__all__), f"{path}: {names}"
    assert seen > 10


def test_every_public_name_resolves() -> None:
    assert len(set(difftool.__all__)) == len(difftool.__all__)
    for name in difftool.__all__:
        assert getattr(difftool, name) is not None
    assert dir(difftool) == sorted(difftool.__all__)
    with pytest.raises(AttributeError, match="module 'difftool' has no attribute 'nope'"):
        difftool.nope  # noqa: B018


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


SCRIPTS = CORE / "scripts.py"
"""The module that runs the scripts that a user names."""


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def test_opening_a_file_never_runs_code() -> None:
    for path in sources(CORE, BUILT_INS):
        for module, names in imports(path):
            assert module.partition(".")[0] not in FORBIDDEN_MODULES, path
            assert not (module == "torch" and "load" in names), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = _dotted(node.func)
                assert called not in FORBIDDEN_CALLS or path == SCRIPTS, f"{path}:{node.lineno}"
                assert called not in ("torch.load", "torch.hub.load", "torch.jit.load"), f"{path}:{node.lineno}"
                if called.endswith("np.load") or called == "numpy.load":
                    assert not any(k.arg == "allow_pickle" for k in node.keywords), f"{path}:{node.lineno}"


RUNS_SCRIPTS = {
    "Script": {"plugins/loading.py"},
    "load_script": {"plugins/registry.py"},
    "scripts_added": {"cli/scripts.py"},
    "loaded": {"cli/main.py"},
    "load_plugin": set(),
}
"""The names that lead to running a script, and the modules that may import them: a chain to the command line."""


def test_only_the_command_line_and_python_name_scripts() -> None:
    modules = {path.relative_to(CORE).as_posix(): path for path in sources(CORE)}
    for name, allowed in RUNS_SCRIPTS.items():
        users = {module for module, path in modules.items() if any(name in names for _, names in imports(path))}
        assert users - {"__init__.py"} == allowed, name


PROBE = """\
import json, os, sys
import difftool
def imported():
    return [n for n in ("torch", "numpy", "matplotlib", "difftool_plugins") if n in sys.modules]
found = [[0, "", "", imported(), []]]
from difftool.testing import invoke
for arguments, environment in json.load(sys.stdin):
    os.environ.update(environment)
    outcome = invoke(*arguments)
    for name in environment:
        del os.environ[name]
    found.append([outcome.code, outcome.out, outcome.err, imported(), os.listdir()])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Probed:
    """The outcome of a command, the heavy modules that were imported by then, and the files that lay there."""

    code: int
    out: str
    err: str
    imported: list[str]
    files: list[str]


def probe(folder: Path, *rows: tuple[Sequence[str], dict[str, str]]) -> list[Probed]:
    """Run command lines, each with environment variables of its own, one after the other in one new process.

    Return one result for `import difftool` alone, and one for each command line.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input=json.dumps(rows), capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return [Probed(*found) for found in json.loads(done.stdout)]


def test_the_top_level_loads_no_plugin_at_all(tmp_path: Path) -> None:
    alone, *found = probe(tmp_path, (["--help"], {}), (["--version"], {}), (["traim"], {}))
    assert alone.imported == []
    assert [(one.code, one.imported) for one in found] == [(0, []), (0, []), (2, [])]


LIGHT = [
    (["train", "--help"], 0),
    (["train", "--backbone", "unet", "--help"], 0),
    (["sample", "--help"], 0),
    (["sample", "--sampler", "ddpm", "--help"], 0),
    (["noise", "--help"], 0),
    (["inspect-schedule", "--help"], 0),
    (["list", "--help"], 0),
    (["plugins", "--help"], 0),
    (["info", "--help"], 0),
    (["list"], 0),
    (["list", "samplers", "--json"], 0),
    (["list", "smaplers"], 2),
    (["plugins"], 0),
    (["plugins", "--json"], 0),
    (["train", "--stesp", "3"], 2),
    (["train", "--backbone", "nope"], 2),
    (["train", "--backbone.width", "0"], 2),
    (["train", "--lr", "nan"], 2),
    (["train", "--steps", "abc"], 2),
    (["train", "--config", "missing.toml"], 2),
    (["sample", "--out", "x.bmp"], 2),
    (["sample", "--steps", "0"], 2),
    (["sample", "--oracle", "ideal", "--help"], 0),
    (["sample", "--dataset", "swiss-roll"], 2),
    (["sample", "--oracle", "ideal", "--weights", "ema"], 2),
    (["sample", "--interpolate", "1"], 2),
    (["sample", "--strength", "0.5"], 2),
    (["sample", "--inpaint", "x.png"], 2),
    (["sample", "--threshold", "0.9", "--no-clip"], 2),
    (["compare", "--help"], 0),
    (["compare", "--oracle", "closed-form", "--help"], 0),
    (["compare", "--samplers", "nope"], 2),
    (["reconstruct", "--help"], 0),
    (["reconstruct", "x", "--at", "-1"], 2),
    (["reconstruct", "x", "--out", "x.gif"], 2),
    (["sample", "--sampler.eta", "2"], 2),
    (["noise", "--at", "1000"], 2),
    (["noise", "--out", "x.npy"], 2),
    (["inspect-schedule", "nope"], 2),
    (["inspect-schedule", "--out", "x.gif"], 2),
    (["--no-plugins", "list", "loggers"], 0),
    (["plugins", "--strict"], 0),
    (["check", "--help"], 0),
    (["check", "unet", "--help"], 0),
    (["check", "nope"], 2),
    (["check", "unet", "--backbone.dim", "0"], 2),
    (["new-plugin", "--help"], 0),
    (["new-plugin", "x_y", "--kind", "sampler"], 2),
    (["train", "--logger", "tensorboard", "--help"], 0),
    (["train", "--logger", "nope"], 2),
    (["train", "--logger", "jsonl", "--logger.pth", "x"], 2),
    (["sample", "--out", "x.gif", "--help"], 0),
    (["sample", "--out", "x.gif", "--writer.fps", "0"], 2),
    (["sample", "--writer.fps", "3"], 2),
    (["sample", "--out", "x.npy", "--writer.fps", "3"], 2),
]


def completion(line: str) -> dict[str, str]:
    """Return what a shell sets to complete a line."""
    words = str(len(line.split()) - 1)
    return {"_DIFFTOOL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": words}


COMPLETED = {
    "difftool tra": "train",
    "difftool train --backbone u": "unet",
    "difftool train --backbone unet --backbone.d": "--backbone.dim",
}


def test_help_lists_usage_errors_and_completion_import_nothing_heavy(tmp_path: Path) -> None:
    """The last command does import torch, so that the probe is known to see it."""
    rows = [(arguments, {}) for arguments, _ in LIGHT] + [([], completion(line)) for line in COMPLETED]
    _, *found, real = probe(tmp_path, *rows, (["inspect-schedule", "linear", "--json"], {}))
    for (arguments, environment), one in zip(rows, found, strict=True):
        assert set(one.imported) & set(HEAVY) == set(), arguments or environment
        assert one.files == [], arguments or environment
    for (arguments, code), one in zip(LIGHT, found, strict=False):
        assert one.code == code, f"{arguments}: {one.err}"
    completed = found[len(LIGHT) :]
    assert [one.out.split()[0] for one in completed] == list(COMPLETED.values())
    assert real.code == 0
    assert "torch" in real.imported
