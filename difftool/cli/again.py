"""`difftool sample --again FILE`: the request that a file of samples records, under what the command line gives."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from difftool.cli.command import given_component, given_names, given_values
from difftool.cli.console import note
from difftool.cli.flags import make_from_flags
from difftool.cli.sources import ORACLE_PARTS, SourceRequest
from difftool.components import KINDS, Component, Dataset, Guidance, Oracle, Sampler, Spacing, Writer
from difftool.errors import BadFile, DifftoolError, InvalidOption, UnknownComponent, UsageError, counted, printable
from difftool.files import temporary_folder
from difftool.options import Options, fields, make, option, options_of
from difftool.paths import without_paths
from difftool.plugins.registry import registry
from difftool.runs.folder import RunFolder, all_runs
from difftool.runs.recorded import made_with
from difftool.sampling.writers import writer_of

if TYPE_CHECKING:
    from difftool.figures.drawing import Drawing
    from difftool.figures.formats import DrawingSpec
    from difftool.sampling.record import Record

AGAIN = "difftool.again"
SHORT = 12
"""The digits of a digest that messages show."""

C = TypeVar("C", bound=Component)
NAMED = (Sampler, Spacing, Guidance)
"""The kinds of which a record has a list."""


@dataclass(frozen=True)
class Again:
    """A file of samples, and the record of how it was made."""

    file: Path
    record: Record

    @classmethod
    def of(cls, ctx: typer.Context, path: Path | None) -> Again | None:
        """Return what `--again` names, which is read once. Raises `BadFile`."""
        if path is None:
            return None
        if AGAIN not in ctx.meta:
            from difftool.sampling.record import read_record

            ctx.meta[AGAIN] = cls(Path(path), read_record(Path(path)))
        found: Again = ctx.meta[AGAIN]
        return found

    @property
    def shown(self) -> str:
        """The path as messages show it."""
        return printable(str(self.file))

    def names(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of a command with the components that the record names, where it names none."""
        tables: dict[str, Sequence[Mapping[str, Any]]] = {base.kind: self._tables(base) for base in NAMED}
        if self.record.oracle is not None:
            tables |= {base.kind: [self.record.oracle[base.kind]] for base in ORACLE_PARTS}
        for kind, found in tables.items():
            for name in (table["name"] for table in found if params.get(kind) is None):
                self._class(KINDS[kind], name)
        recorded = {kind: ",".join(table["name"] for table in found) for kind, found in tables.items() if found}
        return {**recorded, **{name: value for name, value in params.items() if value is not None}}

    def settings(self, *records: type[Options]) -> dict[str, Any]:
        """Return the recorded values of options of these records. Raises `BadFile` if they are refused."""
        recorded = {**self.record.settings, **self.record.display}
        found: dict[str, Any] = {}
        for record in records:
            values = options_of(record, recorded)
            files = options_of(record, dict.fromkeys(self.record.inputs, "."))
            try:
                make(record, {**files, **{name: value for name, value in values.items() if name not in found}})
            except InvalidOption as error:
                raise self._refused(error) from None
            found = {**values, **found}
        return found

    def components(self, base: type[C], values: Mapping[str, Any], words: Sequence[str] = ()) -> list[C]:
        """Return the recorded components of a kind, or those of other names, with the command line's options.

        A component of the same name as a recorded one keeps the recorded options.
        """
        recorded = {table["name"]: table for table in self._tables(base)}
        tables = [recorded.get(word, {"name": word}) for word in words] or self._tables(base)
        return [self.component(base, table, values) for table in tables]

    def component(self, base: type[C], table: Mapping[str, Any], values: Mapping[str, Any]) -> C:
        """Return a recorded component. Raises `BadFile`, and `UsageError` for a path that is to be given again."""
        cls = self._class(base, table["name"])
        own = without_paths(cls, {name: value for name, value in table.items() if name != "name"})
        typed = options_of(cls, values)
        for f in fields(cls):
            if f.required and f.use_in(cls) and f.name not in typed:
                raise UsageError(f"--{base.kind}.{f.flag}: {self.shown} names no path; give it again")
        try:
            made: C = make_from_flags(cls, {**own, **typed})
        except InvalidOption as error:
            if error.field in typed:
                raise
            raise self._refused(error) from None
        return made

    def writer_options(self, cls: type[Writer]) -> dict[str, Any]:
        """Return the recorded options of a writer, if it wrote the file."""
        table = self.record.writer or {}
        if table.get("name") != registry().reference(cls):
            return {}
        return {name: value for name, value in without_paths(cls, table).items() if name != "name"}

    def is_single(self, path: Path) -> bool:
        """Return whether a path is to hold the sample of the file, which belonged to a folder of them."""
        return self.record.index is not None and path.suffix.lower() == self.file.suffix.lower()

    def device(self, named: str) -> str:
        """Return the device that is named, or for `auto` the kind on which the file was made, if it is here."""
        from difftool import devices

        kind = self.record.machine.get("device")
        return str(kind) if named == "auto" and kind in ("cpu", "mps") and kind in devices.available() else named

    def request(self, ctx: typer.Context) -> SourceRequest:
        """Return the source that the file was drawn from, or another that is named. Raises `DifftoolError`."""
        names, params = given_names(ctx), ctx.params
        if Oracle.kind in names or (self.record.oracle is None and any(b.kind in names for b in ORACLE_PARTS)):
            return SourceRequest.of(ctx)
        if self.record.oracle is not None:
            for flag, name in (("RUN", "model"), ("--weights", "weights"), ("--ema-length", "ema_length")):
                if params[name] is not None:
                    raise UsageError(f"{flag}: {self.shown} was drawn from an oracle; leave {flag} out")
            parts: Any = [self._part(ctx, base, self.record.oracle[base.kind]) for base in ORACLE_PARTS]
            return SourceRequest(None, None, None, tuple(parts), params["timesteps"] or self.record.oracle["timesteps"])
        if params["timesteps"] is not None:
            raise UsageError("--timesteps: a trained model has its own; this option is for --oracle")
        return self._model(params["model"], params["weights"], params["ema_length"])

    def _part(self, ctx: typer.Context, base: type[C], table: Mapping[str, Any]) -> C:
        """Return a part of an oracle's source. Data that are not generated are named by the user alone."""
        names, values = given_names(ctx), given_values(ctx).get(base.kind, {})
        if base.kind in names and names[base.kind] != table["name"]:
            return given_component(ctx, base)
        cls = self._class(base, table["name"])
        if base.kind not in names and issubclass(cls, Dataset) and not cls.generated:
            raise UsageError(
                f"--dataset: {self.shown} was drawn from an oracle with the data of {cls.name}, which it does not open "
                f"by itself; name them again by --dataset {cls.name} and its options"
            )
        return self.component(base, table, values)

    def _model(self, run: Path | None, weights: str | None, length: float | None) -> SourceRequest:
        """Return the request of a trained model, which its digest finds among the runs. Raises `DifftoolError`."""
        from difftool.sampling.checkpoints import find

        assert self.record.model is not None
        model, path = self.record.model, None if run is None else Path(run)
        where = all_runs() if path is None else [RunFolder(path)] if path.is_dir() else []
        found = find(model["digest"], where)
        if path is None and found is None:
            what = f"{printable(model['name'])}, step {model['step']}, {printable(model['weights'])} weights"
            raise DifftoolError(
                f"no run here holds the model of {self.shown} ({what}, digest {model['digest'][:SHORT]}); name its "
                f"run or its file: difftool sample RUN --again {self.shown}"
            )
        path = found[0].path if path is None and found is not None else path
        if weights is not None or length is not None:
            return SourceRequest(path, weights, length, None, None)
        if model.get("ema_length") is not None:
            return SourceRequest(path, None, model["ema_length"], None, None)
        if found is None or found[1] == found[0].model:
            return SourceRequest(path, "raw" if found is None and model["weights"] == "raw" else None, None, None, None)
        return SourceRequest(path, model["weights"], None, None, None, found[1])

    def check_inputs(self, given: Mapping[str, Any]) -> None:
        """Raise `UsageError` for a file that the samples were made from and that is not given again."""
        for name, about in self.record.inputs.items():
            if name not in given:
                what = printable(about.get("name", "a text"))
                raise UsageError(
                    f"--{name}: {self.shown} was made from {what} (SHA-256 {about['sha256'][:SHORT]}...), which it "
                    f"only names; give it again by --{name}"
                )

    def say_differences(self, found: Mapping[Path, Sequence[str]]) -> None:
        """Say on stderr why files may not be the same as this one."""
        for rows in dict.fromkeys(map(tuple, found.values())):
            if rows:
                note(f"not the same as {self.shown}: {'; '.join(rows)}")

    def say_whether_same(self, path: Path, *, expected: bool) -> None:
        """Say on stderr whether a new file is the old one, bit for bit."""
        from filecmp import cmp

        if not (self.file.is_file() and path.is_file()) or path.suffix.lower() != self.file.suffix.lower():
            return
        if cmp(self.file, path, shallow=False):
            note(f"{path} is the same as {self.shown}, bit for bit")
        elif expected:
            note(f"{path} differs from {self.shown}, which was changed since, or made on another kind of processor")

    def _tables(self, base: type[Component]) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = getattr(self.record, base.kind)
        return found

    def _class(self, base: type[C], name: str) -> type[C]:
        try:
            return registry().of_kind(base, name)
        except UnknownComponent as error:
            raise BadFile(f"{self.shown}: {error}{made_with(self.record.plugins)}") from None

    def _refused(self, error: DifftoolError) -> BadFile:
        return BadFile(f"{self.shown}: its record is refused: {error}{made_with(self.record.plugins)}")


class Single(Writer, name="single"):
    """One sample of a folder, as a file of its own."""

    index: int = option(default=0, ge=0, le=10**9, help="number of the sample")

    @property
    def folder(self) -> Writer:
        """The writer of the folder."""
        return writer_of(Path("folder"))()

    def check(self, spec: DrawingSpec) -> None:
        self.folder.check(spec)

    def states(self, spec: DrawingSpec) -> Collection[int]:
        return self.folder.states(spec)

    def write(self, drawing: Drawing, path: Path) -> None:
        with temporary_folder(path.parent) as folder:
            self.folder.write(drawing, folder)
            files = sorted(folder.iterdir())
            if self.index >= len(files):
                raise ValueError(f"there are {counted(len(files), 'sample')}, and the file is number {self.index}")
            os.replace(files[self.index], path)
