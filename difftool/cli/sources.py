"""What commands draw samples from: a run or a model file, or an oracle that needs no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from difftool.cli.command import name_option, named, names_of
from difftool.cli.console import help_text
from difftool.cli.flags import Group, make_from_flags
from difftool.components import Component, Dataset, NoiseSchedule, Oracle
from difftool.errors import UsageError
from difftool.settings import Sampling

if TYPE_CHECKING:
    import torch

    from difftool.runs.folder import RunFolder
    from difftool.sampling.source import Source

PARTS: dict[str, tuple[type[Component], str]] = {
    "oracle": (Oracle, "ideal"),
    "dataset": (Dataset, "swiss-roll"),
    "schedule": (NoiseSchedule, "linear"),
}
"""The components of an oracle's source, and those it takes by itself."""
PANEL = "Oracle, instead of RUN"

RunArgument = Annotated[
    Path | None,
    typer.Argument(help=help_text("A run folder or a model file.", "default: the newest run"), metavar="RUN"),
]
Weights = Annotated[
    Literal["ema", "raw"] | None,
    typer.Option(help=help_text("The average, or the trained weights.", "default: ema")),
]
OracleName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=names_of("oracle"),
        help="A denoiser that needs no training: ideal, closed-form.",
        rich_help_panel=PANEL,
    ),
]
DatasetName = Annotated[str | None, name_option("dataset", "The data it knows.", "swiss-roll", panel=PANEL)]
ScheduleName = Annotated[str | None, name_option("schedule", "Noise schedule.", "linear", panel=PANEL)]
Timesteps = Annotated[
    int | None,
    typer.Option(
        min=1, max=100_000, help=help_text("T, the number of noise levels.", "default: 1000"), rich_help_panel=PANEL
    ),
]


def source_groups(params: Mapping[str, Any]) -> list[Group]:
    """The options of an oracle's parts, once one of them is named."""
    if all(params.get(kind) is None for kind in PARTS):
        return []
    return [Group.of(named(base, params.get(kind), default)) for kind, (base, default) in PARTS.items()]


@dataclass(frozen=True)
class Opened:
    """A source, and where it comes from."""

    source: Source
    where: str
    """Such as `runs/swiss-roll-mlp-001` or `oracle`."""
    dataset: Dataset
    run: RunFolder | None = None
    threads: int | None = None
    """CPU threads that suit it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For --json."""


@dataclass(frozen=True)
class Asked:
    """What to draw samples from, as the command line names it: checked, and nothing loaded."""

    run: Path | None
    weights: Literal["ema", "raw"] | None
    parts: Mapping[str, Any]
    """Oracle, dataset and schedule by kind; none for a trained model."""
    timesteps: int | None

    @classmethod
    def of(cls, params: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> Asked:
        """From a command's parameters and the component options given. Raises `UsageError`."""
        if params["oracle"] is None:
            for flag in ("dataset", "schedule", "timesteps"):
                if params[flag] is not None:
                    raise UsageError(f"--{flag}: a trained model has its own; it is for --oracle")
            run = params["model"]  # older versions of Typer make a path of it only for the function
            return cls(None if run is None else Path(run), params["weights"], {}, None)
        if params["model"] is not None:
            raise UsageError(f"--oracle: give either an oracle or a run, not both ({params['model']})")
        if params["weights"] is not None:
            raise UsageError("--weights: an oracle has none")
        parts = {
            kind: make_from_flags(named(base, params[kind], default), given[kind])
            for kind, (base, default) in PARTS.items()
        }
        return cls(None, None, parts, params["timesteps"])

    def check(self, settings: Sampling) -> None:
        """Refuse settings of a network where there is none."""
        if self.parts and settings.compile:
            raise UsageError("--compile: an oracle has no network")
        if self.parts and settings.precision != "fp32":
            raise UsageError("--precision: an oracle has no network")

    def open(self, device: torch.device, *, compiled: bool = False) -> Opened:
        """Read the model, or load the oracle's data. Raises `DifftoolError`."""
        return self._oracle(device) if self.parts else self._model(device, compiled)

    def _model(self, device: torch.device, compiled: bool) -> Opened:
        from difftool.sampling.model import load_model

        model = load_model(self.run, self.weights or "ema", device=device)
        run = model.run
        if compiled:
            import torch

            model.forward = torch.compile(model.network)
        path = run.model if run else model.source
        facts = {"model": str(path), "weights": model.weights}
        where = str(run.path if run else path)
        return Opened(model, where, model.recipe.dataset, run, model.recipe.training.threads, facts)

    def _oracle(self, device: torch.device) -> Opened:
        from difftool.runs.recipe import component_document
        from difftool.sampling.oracle import TIMESTEPS, OracleSource

        timesteps = TIMESTEPS if self.timesteps is None else self.timesteps
        oracle, dataset, schedule = (self.parts[kind] for kind in PARTS)
        source = OracleSource.of(oracle, dataset, schedule, timesteps=timesteps, device=device)
        facts = {kind: component_document(part) for kind, part in self.parts.items()}
        # its work comes in pieces that fit the cache, over which threads mostly wait for each other
        return Opened(source, "an oracle", dataset, threads=1, facts={**facts, "timesteps": timesteps})
