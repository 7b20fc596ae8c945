"""`difftool new-plugin` writes a package to start from.

Its files are made from `templates/package` and from the templates of the chosen kind.
"""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Literal

from difftool import API_VERSION, Command, DifftoolError, UsageError, __version__, option
from difftool_plugins.commands.whole_folders import whole_folder

TEMPLATE = ".in"
"""Suffix of the templates, which keeps other tools from reading them as Python or TOML."""
PREFIX = "difftool-"
MAX_LENGTH = 60
RESERVED = ("aux", "con", "nul", "prn", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)))
"""Names that files cannot have on Windows."""
NUMBERS = ("inf", "infinity", "nan")
"""Names that Python reads as numbers, as a component must not have."""
COMMANDS = (
    *(
        "train",
        "sample",
        "compare",
        "evaluate",
        "noise",
        "reconstruct",
        "inspect-schedule",
        "report",
        "sweep",
        "runs",
        "info",
        "list",
        "plugins",
    ),
    *("check", "schema"),
)
"""The commands of difftool itself, whose names are taken."""
USES = {
    "dataset": "difftool train --dataset $component",
    "schedule": "difftool inspect-schedule $component linear",
    "sampler": "difftool sample --oracle ideal --sampler $component",
    "spacing": "difftool sample --oracle ideal --spacing $component",
    "codec": "difftool train --dataset gradients --codec $component",
    "guidance": "difftool sample --label 0 --guidance $component",
    "oracle": "difftool sample --oracle $component",
    "writer": "difftool sample --oracle ideal --out samples.jsonl",
    "features": "difftool evaluate --features $component",
    "metric": "difftool evaluate --metric $component",
    "command": "difftool $component --help",
}
"""A command that uses a component of a kind; those of the other kinds are for training."""
PLURALS = {"loss": "losses", "features": "features"}
"""The plurals of kinds that no `s` makes."""
ANNOUNCEMENT = """
# The help of difftool lists commands without importing the package, so it finds their names here.
[project.entry-points."difftool.commands"]
$component = "$module"
"""


class NewPlugin(Command, name="new-plugin"):
    """Write a package with one working component, its tests, a README and a CI file.

    Change the component as you like and install the package. Its name and options then appear in every command.
    """

    name_: str = option(positional=True, help="name of the package, such as difftool-wavelets")
    kind_: Literal[
        "dataset",
        "schedule",
        "backbone",
        "codec",
        "sampler",
        "spacing",
        "guidance",
        "prediction",
        "loss",
        "weighting",
        "timestep-sampling",
        "optimizer",
        "callback",
        "oracle",
        "logger",
        "writer",
        "features",
        "metric",
        "command",
    ] = option(help="kind of the component")
    into: Path = option(default=Path(), help="folder in which the package is created")

    def run(self) -> Path:
        words = self.words()
        folder = self.into / self.name_
        if folder.exists() or folder.is_symlink():
            raise DifftoolError(f"{folder} already exists; choose another name, or remove it")
        write(folder, dict(render(self.kind_, words)))
        place = folder if folder.is_absolute() else f"./{folder}"  # without ./ pip would look for it in an index
        print(f"next: pip install {place} && pytest {folder} && difftool check {self.name_}")
        return folder

    def words(self) -> dict[str, str]:
        """Return the values of the placeholders in the templates. Raises `UsageError` for an invalid name."""
        from difftool import names

        module, component = self.name_.replace("-", "_"), self.name_.removeprefix(PREFIX)
        if not all(re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) for name in (self.name_, component)):
            example = f"such as {PREFIX}wavelets, not {self.name_!r}"
            raise UsageError(f"NAME: must be lower-case words joined by '-', {example}")
        if len(self.name_) > MAX_LENGTH:
            raise UsageError(f"NAME: must have at most {MAX_LENGTH} characters, not {len(self.name_)}")
        if keyword.iskeyword(module) or module in sys.stdlib_module_names or find_spec(module) is not None:
            raise UsageError(f"NAME: a module named {module} already exists; choose another name")
        if component in names(self.kind_) or (self.kind_ == Command.kind and component in COMMANDS):
            raise UsageError(f"NAME: a {self.kind_} named {component} already exists; choose another name")
        Class = _joined(component)
        if self.name_ in RESERVED or component in NUMBERS or keyword.iskeyword(Class):
            raise UsageError(f"NAME: {self.name_} is a reserved name; choose another name")
        if any(re.search(rf"\b{Class}\b", text) for _, text in templates(self.kind_)):  # it stands for another thing
            Class += _joined(self.kind_)
        words = {
            "distribution": self.name_,
            "module": module,
            "component": component,
            "Class": Class,
            "kind": self.kind_.replace("-", " "),
            "plural": PLURALS.get(self.kind_, f"{self.kind_}s"),
            "version": __version__,
            "api": str(API_VERSION),
        }
        use = USES.get(self.kind_, f"difftool train --{self.kind_} $component")
        announcement = ANNOUNCEMENT if self.kind_ == Command.kind else ""
        return words | {
            "use": Template(use).substitute(words),
            "announcement": Template(announcement).substitute(words),
        }


def _joined(name: str) -> str:
    """Return a name as that of a class: `gradient-estimation` becomes `GradientEstimation`."""
    return "".join(word.capitalize() for word in name.split("-"))


def templates(kind: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every template of a package with a component of this kind."""
    for part in ("package", kind):
        folder = Path(__file__).with_name("templates") / part
        for file in sorted(folder.rglob(f"*{TEMPLATE}")):
            yield file.relative_to(folder).as_posix().removesuffix(TEMPLATE), file.read_text(encoding="utf-8")


def render(kind: str, words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every file of the package."""
    for path, text in templates(kind):
        yield Template(path).substitute(words), Template(text).substitute(words)


def write(out: Path, texts: Mapping[str, str]) -> None:
    """Write all of the files, or none if something fails."""
    with whole_folder(out) as folder:
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
