"""The request of `difftool train`: a config file or a run to resume, with the command line laid over it.

The file is read once, as the command line is parsed. Every value remembers where it came from, so that an error can
name the flag, or the file and the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difftool.cli.flags import Group, flag_of
from difftool.components import Component, Features, Metric
from difftool.errors import InvalidOption, UnknownComponent, UsageError
from difftool.options import Options, dashed, make, options_of
from difftool.paths import absolute, check_named_by_file
from difftool.plugins.registry import registry
from difftool.runs.config import find_config, line_of, read_toml
from difftool.runs.recipe import (
    Recipe,
    build_recipe,
    check_tables,
    companion_kinds,
    merge,
    options_in,
    recipe_kinds,
    resolve,
    training_values,
)
from difftool.runs.recorded import made_with
from difftool.settings import Training

Values = Mapping[str, Mapping[str, Any]]
"""Option values given on the command line, by kind, and those of the training settings."""


@dataclass(frozen=True)
class Request:
    """Components by name, the tables of a file, and where errors in them are to be reported."""

    names: Mapping[str, Any]
    """The names given on the command line, by kind."""
    tables: Mapping[str, Any]
    """The tables of the file as they stand there."""
    file: Path | None
    values: Values = field(default_factory=dict)
    """The options given on the command line, once it is parsed."""
    run: Path | None = None
    """The run folder to resume, whose file it is."""

    @classmethod
    def read(cls, names: Mapping[str, Any], *, config: Path | None, resume: Path | None) -> Request:
        """Read the config file, or that of the run to resume. Raises `UsageError`."""
        if resume is not None:
            if config is not None:
                raise UsageError("--config: a resumed run has its own; leave it out")
            from difftool.runs.folder import open_run

            config = open_run(resume).config
        elif config is not None:
            config = find_config(config)
        if config is None:
            return cls(names, {}, None)
        request = cls(names, read_toml(config), config, run=resume)
        try:
            check_tables(request.tables)
        except InvalidOption as error:
            raise request._located(error, error.field, "") from None
        return request

    @property
    def document(self) -> dict[str, Any]:
        """The tables of the file, with the names given on the command line laid over them."""
        chosen = {kind: {"name": name} for kind, name in self.names.items() if kind in recipe_kinds()}
        return merge({k: t for k, t in self.tables.items() if k not in companion_kinds()}, chosen)

    def ignored_options(self) -> list[str]:
        """Return a note for each component in the file that the command line replaces, along with its options."""
        notes = []
        for kind in recipe_kinds():
            table = self.tables.get(kind, {})
            options = [key for key in table if key != "name"]
            if options and self.names.get(kind) not in (None, table.get("name")):
                what = f"the {table.get('name')}'s {', '.join(options)}"
                notes.append(f"--{kind} {self.names[kind]}: ignores {what} in the config file")
        return notes

    def groups(self) -> list[Group]:
        """Return the options that the command line takes, with the file's values as defaults. Raises `UsageError`."""
        document = self.document
        try:
            classes = resolve(document)
        except UnknownComponent as error:
            if self.file is None or error.kind in self.names:
                raise
            reason = f"{error}{made_with(document.get('plugins'))}"
            raise self._located(InvalidOption("name", reason), error.kind, "name") from None
        groups = [Group.of(cls, defaults=options_in(document, kind)) for kind, cls in classes.items()]
        groups += [Group.of(*chosen.values()) for chosen in self._companion_classes().values() if chosen]
        defaults = training_values(classes["backbone"], document.get("training", {}))
        return [*groups, Group("training", (Training,), "Training", defaults=defaults)]

    def recipe(self) -> Recipe:
        """Return the recipe with the options given on the command line. Raises `UsageError`."""
        own = {key: table for key, table in self.values.items() if key in (*recipe_kinds(), "training")}
        return build_recipe(merge(self.document, own), make=self.make)

    def companions(self) -> list[Component]:
        """Return the components that accompany the run: loggers, callbacks, metrics, features. Raises `UsageError`."""
        made = [
            self.make(
                cls, {**self.tables.get(plural, {}).get(name, {}), **options_of(cls, self.values.get(cls.kind, {}))}
            )
            for plural, classes in self._companion_classes().items()
            for name, cls in classes.items()
        ]
        typed = [Features.flag] if Features.kind in self.names else []
        typed += [f"--{dashed(name)}" for name in self.values.get("training", {}) if name.startswith("evaluate_")]
        if typed and not any(isinstance(one, Metric) for one in made):
            raise UsageError(f"{typed[0]}: nothing is measured; add --evaluate METRIC")
        return made

    def make(self, record: type[Any], table: Mapping[str, object]) -> Any:
        """Make a record; an error names the flag, or the file and line, that the value came from.

        The user may name any path to write. The file may only name those in the run folder.
        """
        component = issubclass(record, Component)
        key, moves = (record.kind, record.several) if component else ("training", False)
        typed = self.values.get(key, {})
        try:
            checked = {
                name: value if name in typed else check_named_by_file(record, name, value, self.run, moves=moves)
                for name, value in table.items()
            }
            return absolute(make(record, checked), typed)
        except InvalidOption as error:
            if self.file is not None and error.field in table and error.field not in typed:
                raise self._located(error, self._table_of(record), error.field) from None
            raise InvalidOption(error.field, error.reason, where=flag_of(record, error.field)) from None

    def locate(self, error: InvalidOption) -> UsageError:
        """Return an error about a training setting that the data or the device do not allow, with its place."""
        if self.file is None or error.field in self.values.get("training", {}):
            return error
        return self._located(error, "training", error.field)

    def _companion_classes(self) -> dict[str, dict[str, type[Component]]]:
        """Return the accompanying components by kind and name, from the command line or else from the file."""
        classes: dict[str, dict[str, type[Component]]] = {}
        for plural, base in companion_kinds().items():
            given: str | Sequence[str] = self.names.get(base.kind, list(self.tables.get(plural, {})))
            names = [given] if isinstance(given, str) else given
            try:
                classes[plural] = {name: registry().of_kind(base, name) for name in dict.fromkeys(names)}
            except UnknownComponent as error:
                if base.kind in self.names:
                    raise
                made = made_with(self.tables.get("plugins"))
                raise UsageError(f"{self.file}: {plural}: {error}{made}") from None
        return classes

    @staticmethod
    def _table_of(record: type[Options]) -> str:
        """Return the name of the table of a file that holds a record's values."""
        if not issubclass(record, Component):
            return "training"
        return f"{record.plural()}.{record.name}" if record.plural() in companion_kinds() else record.kind

    def _located(self, error: InvalidOption, table: str, key: str) -> UsageError:
        assert self.file is not None
        line = line_of(self.file, table, key)
        where = f"{self.file}, line {line}" if line else str(self.file)
        return UsageError(f"{where}: {table}{'.' + key if key else ''}: {error.reason}")
