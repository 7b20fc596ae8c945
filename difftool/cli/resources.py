"""The resources of commands that plugins add, and the first of them: components with their options.

A field of a command declares one. It brings the flags that difftool's own commands have for it, and its value.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from difftool.cli.command import given_names, given_values
from difftool.cli.flags import Choice, Group, choices_of, make_from_flags
from difftool.cli.guidance import class_of, guidance_of
from difftool.components import KINDS, Component, Guidance
from difftool.errors import UsageError
from difftool.options import Options, alternatives, dashed, hints, make
from difftool.plugins.registry import given, given_guidance, registry
from difftool.resources import Resource, resource, resources
from difftool.runs.recipe import suitable

if TYPE_CHECKING:
    pass


class CommandResource(Resource):
    """A resource, and how it appears on the command line."""

    what: ClassVar[str]
    """The word for it in a list of options: `model`."""

    def __init__(self, help: str = "") -> None:
        self.help = help

    @property
    def flag(self) -> str:
        """The name of the field on the command line."""
        return dashed(self.name)

    @property
    def flags(self) -> frozenset[str]:
        """The names, without dashes, of all flags that it adds to a command."""
        return frozenset((self.flag,))

    @property
    def default_name(self) -> str | None:
        """The name of the default, if it has one."""
        return None

    def problem(self, record: type[Options]) -> str | None:
        """Return why the command cannot have this field, or None."""
        return None

    def choices(self, record: type[Options]) -> Sequence[Choice]:
        """Return the components of the command that are chosen by name for it."""
        return ()

    def groups(self, record: type[Options], names: Mapping[str, Any]) -> Sequence[Group]:
        """Return the options of the components that are named. Raises `UsageError`."""
        return ()

    def parameters(self, record: type[Options]) -> Mapping[str, inspect.Parameter]:
        """Return the arguments and options that it adds to the command, by name. Resources may share some."""
        return {}

    def value(self, record: type[Options], ctx: typer.Context) -> object:
        """Return the value that the command line gives it. Raises `UsageError`."""
        raise NotImplementedError

    def check(self, record: type[Options], ctx: typer.Context) -> None:
        """Raise `DifftoolError`, before any work, for a file that cannot be read or written."""

    def example(self, record: type[Options]) -> Sequence[str]:
        """Return the arguments that it needs on every command line."""
        return ()


def resources_of(record: type[Options]) -> Sequence[CommandResource]:
    """Return the resources of a command."""
    return list(resources(record).values())


def parameter(name: str, annotation: Any, *default: object) -> inspect.Parameter:
    """Return a parameter of a command, which is required unless it has a default."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, **({"default": default[0]} if default else {}))


# --- components -------------------------------------------------------------------------------------------------------


class ComponentResource(CommandResource):
    """A component: `--sampler NAME --sampler.eta 0.5` for a field `sampler`."""

    def __init__(self, default: str | None, help: str) -> None:
        super().__init__(help)
        self.named = default

    @property
    def annotation(self) -> Any:
        """The type of the field. Raises `NameError` if it is imported for type checkers alone."""
        return hints(self.owner, {self.name})[self.name]

    @property
    def what(self) -> str:  # type: ignore[override]
        return self.base.kind

    @property
    def default_name(self) -> str | None:
        return self.named

    @property
    def base(self) -> type[Component]:
        """The kind of component, by the annotation of the field."""
        found: type[Component] = next(kind for kind in alternatives(self.annotation) if kind is not type(None))
        return found

    @property
    def optional(self) -> bool:
        """True if the field can be None."""
        return type(None) in alternatives(self.annotation)

    def problem(self, record: type[Options]) -> str | None:
        try:
            kinds = [kind for kind in alternatives(self.annotation) if kind is not type(None)]
        except Exception as error:
            return f"has an annotation that does not resolve ({error})"
        chosen = [base for base in KINDS.values() if base.flag and not base.several]
        if len(kinds) != 1 or kinds[0] not in chosen:
            return f"is to be annotated with one of {', '.join(base.__name__ for base in chosen)}, or that | None"
        return None

    def default(self, record: Any) -> object:
        others = [] if self.named else [type(getattr(record, one.name)) for one in self._others(type(record))]
        cls = self._class(self.named, others)
        return None if cls is None else self.accepted(self.named) if self.named else make(cls, {})

    def accepted(self, value: object) -> object:
        if value is None and self.optional:
            return None
        choice: Any = value
        return given_guidance(choice) if issubclass(self.base, Guidance) else given(self.base, choice)

    def choices(self, record: type[Options]) -> Sequence[Choice]:
        if self.named is None and self.optional:
            note = "default: none"
        elif self.named is None:
            others = {one.flag: one.base for one in (*self._others(record), self)}
            note = next(choice.note for choice in choices_of(others) if choice.key == self.flag)
        else:
            note = f"default: {self.named}"
        return [Choice(self.flag, self.base, note or "required", self.help)]

    def groups(self, record: type[Options], names: Mapping[str, Any]) -> Sequence[Group]:
        cls = self._chosen(record, names)
        return [] if cls is None else [Group.of(cls, key=self.flag)]

    def value(self, record: type[Options], ctx: typer.Context) -> object:
        groups, values = self.groups(record, given_names(ctx)), given_values(ctx)
        if not groups:
            return None
        name = given_names(ctx).get(self.flag, self.named)
        if issubclass(self.base, Guidance) and name is not None:
            return guidance_of(name, values[self.flag])
        return make_from_flags(groups[0].records[0], values[self.flag], groups[0])

    def _chosen(self, record: type[Options], names: Mapping[str, Any]) -> type[Component] | None:
        """Return the class that the command line names, or the default. Raises `UsageError`."""
        others = [one._chosen(record, names) for one in self._others(record)] if self.named is None else []
        return self._class(names.get(self.flag, self.named), others)

    def _class(self, name: str | None, others: Sequence[type[object] | None]) -> type[Component] | None:
        """Return the class of a name, or without one the class that suits the others. Raises `UsageError`."""
        if name is not None:
            return class_of(name) if issubclass(self.base, Guidance) else registry().of_kind(self.base, name)
        if self.optional:
            return None
        if not self.base.default:
            raise UsageError(f"--{self.flag}: must be given")
        return suitable(self.base, [cls for cls in others if cls is not None and issubclass(cls, Component)])

    def _others(self, record: type[Options]) -> Sequence[ComponentResource]:
        """Return the component fields before this one, which may suggest its default."""
        found = [one for one in resources_of(record) if isinstance(one, ComponentResource)]
        return found[: [one.name for one in found].index(self.name)]


def component_option(*, default: str | None = None, help: str = "") -> Any:
    """Declare a field of a command that is a component, of the kind that its annotation says.

    `sampler: Sampler = component_option(default="heun")` gives the command `--sampler NAME` with the options of the
    sampler, `--sampler.eta 0.5`. Without a `default` it is the default of the kind, or what an earlier field suggests,
    as a dataset suggests a backbone; for a field that may be None (`Guidance | None`) it is None. Python code gives a
    component or its name.
    """
    return resource(ComponentResource(default, help))
