"""The resources of commands that plugins add: components with their options, models and devices.

A field of a command declares one. It brings the flags that difftool's own commands have for it, and its value.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from difftool.cli.command import given_names, given_values
from difftool.cli.console import help_text
from difftool.cli.flags import Choice, Group, choices_of, make_from_flags
from difftool.cli.parameters import Device
from difftool.cli.sources import (
    ORACLE_PARTS,
    PANELS,
    EmaLength,
    SourceRequest,
    Timesteps,
    Weights,
    source_groups,
)
from difftool.components import KINDS, Component
from difftool.errors import UsageError
from difftool.options import Options, alternatives, dashed, fields, hints, make
from difftool.plugins.registry import given, registry
from difftool.resources import Later, Resource, resource, resources
from difftool.runs.folder import find_model
from difftool.runs.recipe import suitable

if TYPE_CHECKING:
    import torch

    from difftool.sampling.source import Source


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
        return None if cls is None else make(cls, {})

    def accepted(self, value: object) -> object:
        return value if value is None and self.optional else given(self.base, value)

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
        return make_from_flags(groups[0].records[0], values[self.flag], groups[0]) if groups else None

    def _chosen(self, record: type[Options], names: Mapping[str, Any]) -> type[Component] | None:
        """Return the class that the command line names, or the default. Raises `UsageError`."""
        others = [one._chosen(record, names) for one in self._others(record)] if self.named is None else []
        return self._class(names.get(self.flag, self.named), others)

    def _class(self, name: str | None, others: Sequence[type[object] | None]) -> type[Component] | None:
        """Return the class of a name, or without one the class that suits the others. Raises `UsageError`."""
        if name is not None:
            return registry().of_kind(self.base, name)
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


# --- models -----------------------------------------------------------------------------------------------------------


class ModelResource(CommandResource):
    """A trained model, or with `oracle` any source of samples: RUN, --weights, --ema-length and --device."""

    what = "model"

    def __init__(self, help: str, *, oracle: bool) -> None:
        super().__init__(help)
        self.oracle = oracle

    @property
    def flags(self) -> frozenset[str]:
        kinds = [*(base.kind for base in ORACLE_PARTS), "timesteps"] if self.oracle else []
        return frozenset(("weights", "ema-length", "device", *kinds))

    def problem(self, record: type[Options]) -> str | None:
        if sum(isinstance(one, ModelResource) for one in resources_of(record)) > 1:
            return "is a second model; open others by difftool.load, from a path that an option names"
        return None

    def default(self, record: Any) -> object:
        from difftool.sampling.model import load_model

        return load_model(None)

    def accepted(self, value: object) -> object:
        from difftool.sampling.model import Model, load_model
        from difftool.sampling.source import Source

        if isinstance(value, Later):
            return value
        if isinstance(value, (str, os.PathLike)):
            return Later(partial(load_model, Path(value)))
        if not isinstance(value, Source if self.oracle else Model):
            raise TypeError(
                f"{self.name} is a Model, as difftool.load opens it, or its path, not {type(value).__name__}"
            )
        return value

    def choices(self, record: type[Options]) -> Sequence[Choice]:
        return choices_of({base.kind: base for base in ORACLE_PARTS}, PANELS) if self.oracle else ()

    def groups(self, record: type[Options], names: Mapping[str, Any]) -> Sequence[Group]:
        return source_groups(names) if self.oracle else ()

    def parameters(self, record: type[Options]) -> Mapping[str, inspect.Parameter]:
        text = self.help or "A run folder or a model file."
        positional = self._beside_others(record)
        required = Annotated[Path, typer.Argument(help=help_text(text), metavar="RUN")]
        optional = Annotated[
            Path | None, typer.Argument(help=help_text(text, "default: the newest run"), metavar="RUN")
        ]
        found = {
            "model": parameter("model", required) if positional else parameter("model", optional, None),
            "weights": parameter("weights", Weights, None),
            "ema_length": parameter("ema_length", EmaLength, None),
            "device": parameter("device", Device, "auto"),
        }
        return found | ({"timesteps": parameter("timesteps", Timesteps, None)} if self.oracle else {})

    @staticmethod
    def _beside_others(record: type[Options]) -> bool:
        """Return whether the command has other arguments, one of which a lone word could be."""
        return any(f.details.positional for f in fields(record))

    def example(self, record: type[Options]) -> Sequence[str]:
        return ("RUN",) if self._beside_others(record) else ()

    def value(self, record: type[Options], ctx: typer.Context) -> object:
        request = self._request(ctx)
        return Later(lambda: self._open(ctx, request))

    def check(self, record: type[Options], ctx: typer.Context) -> None:
        request = self._request(ctx)
        if request.parts is None:
            find_model(request.run)

    def _request(self, ctx: typer.Context) -> SourceRequest:
        if self.oracle:
            return SourceRequest.of(ctx)
        run, weights, length = (ctx.params[name] for name in ("model", "weights", "ema_length"))
        return SourceRequest(None if run is None else Path(run), weights, length, None, None)

    def _open(self, ctx: typer.Context, request: SourceRequest) -> Source:
        from difftool import devices

        opened = request.open(devices.choose(ctx.params["device"]))
        ctx.with_resource(devices.threads(None, opened.threads))
        return opened.source


def model_option(*, oracle: bool = False, help: str = "") -> Any:
    """Declare a field of a command that is a trained `Model`.

    `model: Model = model_option()` gives the command the argument RUN, by default the newest run, and the options
    `--weights`, `--ema-length` and `--device`. With `oracle=True` the field is a `Source`: a model, or an oracle that
    `--oracle`, `--dataset`, `--schedule` and `--timesteps` describe. The file is opened when the field is first read.
    Python code gives a model that `difftool.load` opened, or its path.
    """
    return resource(ModelResource(help, oracle=oracle), opened=True)


# --- devices ----------------------------------------------------------------------------------------------------------


class DeviceResource(CommandResource):
    """A `torch.device`: --device."""

    what = "device"

    def default(self, record: Any) -> object:
        return self._choose("auto")

    def accepted(self, value: object) -> object:
        return value if isinstance(value, Later) else self._choose(value)

    def parameters(self, record: type[Options]) -> Mapping[str, inspect.Parameter]:
        return {"device": parameter("device", Device, "auto")}

    @property
    def flags(self) -> frozenset[str]:
        return frozenset(("device",))

    def value(self, record: type[Options], ctx: typer.Context) -> object:
        return Later(lambda: self._choose(ctx.params["device"]))

    def _choose(self, name: Any) -> torch.device:
        from difftool import devices

        return devices.choose(name)


def device_option() -> Any:
    """Declare a field of a command that is the `torch.device` of `--device`. A model is opened on the same one."""
    return resource(DeviceResource(), opened=True)


def parameter(name: str, annotation: Any, *default: object) -> inspect.Parameter:
    """Return a parameter of a command, which is required unless it has a default."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, **({"default": default[0]} if default else {}))
