"""The source that commands draw samples from: a run or a model file, or an oracle that needs no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.command import given_component, given_names, named
from difftool.cli.console import help_text
from difftool.cli.flags import Group
from difftool.components import Component, Dataset, NoiseSchedule, Oracle
from difftool.errors import UsageError
from difftool.settings import AUTO, LONGEST, SHORTEST, Sampling

if TYPE_CHECKING:
    import torch

    from difftool.runs.folder import RunFolder
    from difftool.sampling.source import Source

ORACLE_PARTS: tuple[type[Component], ...] = (Oracle, Dataset, NoiseSchedule)
"""The components that an oracle's source is made of; a trained model has its own."""
PANEL = "Oracle, instead of RUN"
PANELS = {base.kind: PANEL for base in ORACLE_PARTS}

RunArgument = Annotated[
    Path | None,
    typer.Argument(help=help_text("A run folder or a model file.", "default: the newest run"), metavar="RUN"),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=help_text(
            "ema (the first average), raw (the trained weights), best (best.safetensors), or another average that info "
            "lists, such as ema-0.9999.",
            "default: ema",
        ),
    ),
]
EmaLength = Annotated[
    float | None,
    typer.Option(
        metavar=f"FLOAT {SHORTEST:g}<=x<={LONGEST:g}",
        help="Reconstruct the power-function average of this length, such as 0.07, from the snapshots of a run that "
        "was trained with --ema-lengths.",
    ),
]
Timesteps = Annotated[
    int | None,
    typer.Option(
        min=1, max=100_000, help=help_text("T, the number of noise levels.", "default: 1000"), rich_help_panel=PANEL
    ),
]


def source_groups(params: Mapping[str, Any]) -> list[Group]:
    """Return the options of an oracle's parts, if one of them is named."""
    if all(params.get(base.kind) is None for base in ORACLE_PARTS):
        return []
    return [Group.of(named(base, params)) for base in ORACLE_PARTS]


@dataclass(frozen=True)
class Opened:
    """A source, and where it comes from."""

    source: Source
    where: str
    """A name for notes: `runs/swiss-roll-mlp-001` or `an oracle`."""
    dataset: Dataset
    run: RunFolder | None = None
    threads: int | None = None
    """The number of CPU threads that suits it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Its part of the output of `--json`."""


@dataclass(frozen=True)
class SourceRequest:
    """A source as the command line names it: checked, but not loaded."""

    run: Path | None
    weights: str | None
    ema_length: float | None
    parts: tuple[Oracle, Dataset, NoiseSchedule] | None
    """The parts of an oracle's source; None for a trained model."""
    timesteps: int | None
    file: Path | None = None
    """The file of the run from which the weights of this name are taken, where an earlier state holds them; or None."""

    @classmethod
    def of(cls, ctx: typer.Context) -> SourceRequest:
        """Return the request of a command that takes one model. Raises `UsageError`."""
        return cls.named(ctx, ctx.params["model"])

    @classmethod
    def named(cls, ctx: typer.Context, run: Path | None) -> SourceRequest:
        """Return the request of a model, or of the oracle that the command line names. Raises `UsageError`."""
        weights, length, timesteps = (ctx.params[key] for key in ("weights", "ema_length", "timesteps"))
        names = given_names(ctx)
        if Oracle.kind not in names:
            flags = [base.flag for base in ORACLE_PARTS if base.kind in names]
            for flag in (*flags, *(["--timesteps"] if timesteps is not None else [])):
                raise UsageError(f"{flag}: a trained model has its own; this option is for --oracle")
            return cls(None if run is None else Path(run), weights, length, None, None)
        if run is not None:
            raise UsageError(f"--oracle: give either an oracle or a run, not both ({run})")
        for flag, value in (("--weights", weights), ("--ema-length", length)):
            if value is not None:
                raise UsageError(f"{flag}: an oracle has none")
        parts = (given_component(ctx, Oracle), given_component(ctx, Dataset), given_component(ctx, NoiseSchedule))
        return cls(None, None, None, parts, timesteps)

    def check(self, settings: Sampling) -> None:
        """Raise `UsageError` for settings of a network if there is none."""
        for flag, used in (("--compile", settings.compile), ("--precision", settings.precision not in (AUTO, "fp32"))):
            if self.parts is not None and used:
                raise UsageError(f"{flag}: an oracle has no network")

    def open(self, device: torch.device, *, compiled: bool = False) -> Opened:
        """Read the model, or load the oracle's data. Raises `DifftoolError`."""
        if self.parts is not None:
            return self._open_oracle(*self.parts, device)
        from difftool.sampling.model import load_model

        if self.file is None:
            model = load_model(self.run, self.weights or "ema", ema_length=self.ema_length, device=device)
        else:
            from difftool.sampling.checkpoints import checkpoint_in

            model = load_model(self.run, device=device)
            model = checkpoint_in(model, self.file, str(self.weights)).into(model)
        if compiled:
            from difftool.compiling import compiled_network

            model.forward = compiled_network(model.network, forward_only=True)
        path, where = (model.run.model, model.run.path) if model.run else (model.source, model.source)
        facts = {"model": str(path), "weights": model.weights}
        return Opened(model, str(where), model.recipe[Dataset], model.run, model.recipe.training.threads, facts)

    def _open_oracle(self, oracle: Oracle, dataset: Dataset, schedule: NoiseSchedule, device: torch.device) -> Opened:
        from difftool.runs.recipe import component_table
        from difftool.sampling.oracle import TIMESTEPS, OracleSource

        timesteps = self.timesteps or TIMESTEPS
        source = OracleSource.of(oracle, dataset, schedule, timesteps=timesteps, device=device)
        facts = {part.kind: component_table(part) for part in (oracle, dataset, schedule)}
        # an oracle works in pieces that fit the cache, so several threads would mostly wait for each other
        return Opened(source, "an oracle", dataset, threads=1, facts={**facts, "timesteps": timesteps})
