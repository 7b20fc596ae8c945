"""`difftool new-plugin`: a package to start from. The files are in `templates`, those of every kind in `package`."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Literal

from difftool import API_VERSION, Command, DifftoolError, UsageError, __version__, option

TEMPLATE = ".in"
"""Ends the names of templates, so that no tool takes them for the files that they become."""
PREFIX = "difftool-"
LONGEST = 60
RESERVED = ("aux", "con", "nul", "prn", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)))
"""Names that no file can have on Windows."""
TAKEN = (
    *("Backbone", "BackboneSpec", "Dataset", "DatasetContext", "Denoise", "Estimate", "Layer", "Level", "Network"),
    *("NoiseSchedule", "PluginManager", "Sampler", "Samples", "Schedule", "Step", "Tensor"),
)
"""What the templates call other things."""


class NewPlugin(Command, name="new-plugin"):
    """Write a package with one component, tests that prove it right, a README and a CI file; it works as it stands.

    Make the component your own, install the package, and its name and options appear in every command.
    """

    name_: str = option(positional=True, help="what the package is called, such as difftool-wavelets")
    kind_: Literal["sampler", "schedule", "backbone", "dataset"] = option(help="what it brings")
    into: Path = option(default=Path(), help="the folder that it is written into")

    def run(self) -> Path:
        words = self.words()
        folder = self.into / self.name_
        if folder.exists() or folder.is_symlink():
            raise DifftoolError(f"{folder} exists already; give another name, or remove it")
        write(folder, dict(rendered(self.kind_, words)))
        place = folder if folder.is_absolute() else f"./{folder}"  # or pip would look for it elsewhere
        print(f"next: pip install {place}  and then  pytest {folder}  and  difftool check {self.name_}")
        return folder

    def words(self) -> dict[str, str]:
        """What the templates are filled with. Raises `UsageError` for names that a package cannot have."""
        from difftool import names

        module, component = self.name_.replace("-", "_"), self.name_.removeprefix(PREFIX)
        if not all(re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) for name in (self.name_, component)):
            example = f"such as {PREFIX}wavelets, not {self.name_!r}"
            raise UsageError(f"NAME: must be lower-case words joined by '-', {example}")
        if len(self.name_) > LONGEST:
            raise UsageError(f"NAME: must have at most {LONGEST} letters, not {len(self.name_)}")
        if keyword.iskeyword(module) or module in sys.stdlib_module_names or find_spec(module) is not None:
            raise UsageError(f"NAME: a module called {module} is there already; take another name")
        if component in names(self.kind_):
            raise UsageError(f"NAME: there is a {self.kind_} called {component} already; take another name")
        Class = "".join(word.capitalize() for word in component.split("-"))
        if self.name_ in RESERVED or keyword.iskeyword(Class):
            raise UsageError(f"NAME: nothing can be called {self.name_}; take another name")
        return {
            "distribution": self.name_,
            "module": module,
            "component": component,
            "Class": f"{Class}{self.kind_.capitalize()}" if Class in TAKEN else Class,
            "kind": self.kind_,
            "version": __version__,
            "api": str(API_VERSION),
        }


def rendered(kind: str, words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(path in the package, text) of every file."""
    for part in ("package", kind):
        yield from _rendered(files("difftool_plugins.commands") / "templates" / part, "", words)


def _rendered(folder: Traversable, place: str, words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        path = place + Template(entry.name).substitute(words)
        if entry.is_dir():
            yield from _rendered(entry, f"{path}/", words)
        else:
            yield path.removesuffix(TEMPLATE), Template(entry.read_text(encoding="utf-8")).substitute(words)


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write the files, all or none of them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, text in texts.items():
            path = temporary / "package" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        os.rename(temporary / "package", folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
