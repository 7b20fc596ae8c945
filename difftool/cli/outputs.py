"""The files that commands write: the check of --out before any work, the writing, and the report at the end."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool import manifest
from difftool.cli.console import help_text, result, result_json
from difftool.cli.model_resources import ModelResource
from difftool.cli.parameters import AsJson, Overwrite
from difftool.cli.resources import CommandResource, parameter, resources_of
from difftool.components import Component
from difftool.errors import DifftoolError, UsageError, printable
from difftool.figures.formats import check_suffix
from difftool.files import atomic, check_output, numbered
from difftool.options import Options
from difftool.paths import check_inside
from difftool.resources import Later, resource
from difftool.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def naming_out(flag: str = "out") -> Iterator[None]:
    """Put the flag before the message of an error in this block."""
    try:
        yield
    except DifftoolError as error:
        raise type(error)(f"--{flag}: {error}") from None


def check_out(path: Path, *, overwrite: bool, suffixes: Sequence[str], flag: str = "out") -> None:
    """Raise `UsageError` for a suffix that the command cannot write, and `DifftoolError` for an unsuitable path."""
    with naming_out(flag):
        check_suffix(path, suffixes)
        check_output(path, overwrite=overwrite)


def check_outs(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Raise `UsageError` for paths that cannot all be written, because two are the same or one lies within another.

    A path without a suffix is a folder.
    """
    known: list[Path] = []
    for path in paths:
        with naming_out():
            check_output(path, overwrite=overwrite, folder=not path.suffix)
        place = path.resolve()
        if place in known:
            raise UsageError(f"--out: {path} is given twice")
        if any(place in other.parents or other in place.parents for other in known):
            raise UsageError(f"--out: {path} lies within another --out, or another within it")
        known.append(place)


def save_figure(figure: Figure, path: Path, *, overwrite: bool) -> None:
    """Write a figure, whole or not at all."""
    from difftool.figures.style import save

    with atomic(path, overwrite=overwrite) as temporary:
        save(figure, temporary)


def report(paths: Sequence[Path], facts: dict[str, Any], *, as_json: bool) -> None:
    """Print the files written, one a line, or one JSON object with the files and all facts."""
    if as_json:
        result_json({"files": [str(path) for path in paths], **facts})
        return
    for path in paths:
        result(str(path))


# --- files of commands that plugins add ---------------------------------------------------------------------------


@dataclass
class Output:
    """A file that a command writes."""

    path: Path
    overwrite: bool = False
    """True if a file that exists is replaced. Otherwise it is refused."""
    listed: bool = False
    """True if the manifest of its folder is to list it, so that `train --overwrite` deletes it with its run."""
    written: bool = field(default=False, compare=False)
    """True once the file is complete."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield a temporary path, whose file takes its place if the block succeeds, and is removed if it does not.

        Raises `DifftoolError`.
        """
        with atomic(self.path, overwrite=self.overwrite) as temporary:
            yield temporary
        self.written = True
        if self.listed:
            manifest.record(self.path.parent, [manifest.entry(self.path)])


class OutputResource(CommandResource):
    """A file to write: --out FILE for a field `out`, --overwrite and --json."""

    what = "file"

    def __init__(self, suffixes: Sequence[str], default: str | None, help: str) -> None:
        super().__init__(help)
        self.suffixes, self.fixed = tuple(suffixes), default

    @property
    def default_name(self) -> str | None:
        return self.fixed

    @property
    def flags(self) -> frozenset[str]:
        return frozenset((self.flag, "overwrite", "json"))

    def problem(self, record: type[Options]) -> str | None:
        if not self.suffixes or not all(suffix[:1] == "." and suffix == suffix.lower() for suffix in self.suffixes):
            return f"has suffixes that are not such as ('.png', '.svg'): {self.suffixes}"
        return None

    def default(self, record: Any) -> object:
        if self.fixed is not None:
            return Output(Path(self.fixed))
        stem, model = self._stem(type(record)), self._model(type(record))
        run: RunFolder | None = None if model is None else getattr(getattr(record, model.name), "run", None)
        if run is None:
            return Output(numbered(Path(), stem, self.suffixes[0]))
        check_inside(run.results, run.path)
        return Output(numbered(run.results, stem, self.suffixes[0]), listed=True)

    def accepted(self, value: object) -> object:
        if isinstance(value, (str, os.PathLike)):
            value = Output(Path(value))
        if not isinstance(value, (Output, Later)):
            raise TypeError(f"{self.name} is an Output or a path, not {type(value).__name__}")
        return value

    def parameters(self, record: type[Options]) -> Mapping[str, inspect.Parameter]:
        place = f"a new {self._stem(record)}-NNN{self.suffixes[0]}"
        if self._model(record) is not None:
            place += " in the run"
        note, name = help_text(self.help, f"default: {self.fixed or place}"), f"{self.name}__"
        option = typer.Option(f"--{self.flag}", metavar="FILE", help=note, show_default=False)
        return {
            name: parameter(name, Annotated[Path | None, option], None),
            "overwrite": parameter("overwrite", Overwrite, False),
            "json": parameter("json", AsJson, False),
        }

    def value(self, record: type[Options], ctx: typer.Context) -> object:
        named = ctx.params[f"{self.name}__"]  # a text with Typer before 0.29
        if named is None and self.fixed is None:
            return self
        return Output(Path(named or str(self.fixed)), ctx.params["overwrite"])

    def check(self, record: type[Options], ctx: typer.Context) -> None:
        output = self.value(record, ctx)
        if isinstance(output, Output):
            with naming_out(self.flag):
                check_suffix(output.path, self.suffixes)
                check_output(output.path, overwrite=output.overwrite)

    def _stem(self, record: type[Options]) -> str:
        """Return the beginning of the names of new files: the command's, and the field's if it has several outputs."""
        command = record.name if issubclass(record, Component) else ""
        several = sum(isinstance(one, OutputResource) for one in resources_of(record)) > 1
        return f"{command}-{self.flag}" if several else command

    @staticmethod
    def _model(record: type[Options]) -> ModelResource | None:
        """Return the field with the model in whose run new files lie."""
        return next((one for one in resources_of(record) if isinstance(one, ModelResource)), None)


def output_option(*, suffixes: Sequence[str], default: str | None = None, help: str = "") -> Any:
    """Declare a field of a command that is a file to write, an `Output`.

    `out: Output = output_option(suffixes=(".png", ".svg"))` gives the command the options `--out FILE`, `--overwrite`
    and `--json`. The file is checked before the command runs, and `with self.out.writing() as path:` writes it whole or
    not at all. Without a `default` it is a new file of the first suffix, in the folder `results` of the run that the
    command opened, or else in the current folder. A mapping that `run` returns is then printed with `--json` alone,
    together with the files, and otherwise the paths of the files are. Python code gives an `Output` or a path.
    """
    return resource(OutputResource(suffixes, default, help), opened=True)


def check_different(outputs: Mapping[str, Output]) -> None:
    """Raise `UsageError` if two outputs, by their flags, are one file."""
    known: dict[Path, str] = {}
    for flag, output in outputs.items():
        place = output.path.resolve()
        if place in known:
            raise UsageError(f"{flag}: {printable(str(output.path))} is also the file of {known[place]}")
        known[place] = flag
