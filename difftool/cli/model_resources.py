"""Resources of commands that plugins add: a trained model or another source of samples, and the device."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.console import help_text
from difftool.cli.flags import Choice, Group, choices_of
from difftool.cli.parameters import Device
from difftool.cli.resources import CommandResource, parameter, resources_of
from difftool.cli.sources import (
    ORACLE_PARTS,
    PANELS,
    EmaLength,
    SourceRequest,
    Timesteps,
    Weights,
    source_groups,
)
from difftool.options import Options, fields
from difftool.resources import Later, resource
from difftool.runs.folder import find_model

if TYPE_CHECKING:
    import torch

    from difftool.sampling.source import Source


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
        return self._load(None)

    def accepted(self, value: object) -> object:
        if isinstance(value, Later):
            return value
        if isinstance(value, (str, os.PathLike)):
            return Later(partial(self._load, Path(value)))
        from difftool.sampling.model import Model
        from difftool.sampling.source import Source

        if not isinstance(value, Source if self.oracle else Model):
            found = type(value).__name__
            raise TypeError(f"{self.name} is a Model, as difftool.load opens it, or its path, not {found}")
        return value

    @staticmethod
    def _load(path: Path | None) -> Source:
        from difftool import devices
        from difftool.sampling.model import load_model

        return load_model(path, device=devices.choose("auto"))

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
