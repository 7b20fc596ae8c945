"""The contract between difftool and a plugin, on one page.

A plugin is a module named by an entry point of the group ``difftool``. It implements any of the hooks below with
`difftool.hookimpl`; each returns the component classes it provides. Importing a plugin must not import torch: heavy
imports belong inside the method that makes the part, or in a module next to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from difftool.components import (
        Backbone,
        Command,
        Dataset,
        Logger,
        NoiseSchedule,
        Oracle,
        Prediction,
        Sampler,
        Spacing,
        TimestepSampling,
        Weighting,
        Writer,
    )

hookspec = pluggy.HookspecMarker("difftool")
hookimpl = pluggy.HookimplMarker("difftool")


@hookspec
def difftool_datasets() -> Iterable[type[Dataset]]:  # type: ignore[empty-body]
    """Datasets: what there is to learn (samples, their shape, labels and scaling)."""


@hookspec
def difftool_schedules() -> Iterable[type[NoiseSchedule]]:  # type: ignore[empty-body]
    """Noise schedules: how signal turns into noise, as a table of alpha and sigma."""


@hookspec
def difftool_backbones() -> Iterable[type[Backbone]]:  # type: ignore[empty-body]
    """Backbones: the network, `net(x, t, cond)`, shaped as x."""


@hookspec
def difftool_samplers() -> Iterable[type[Sampler]]:  # type: ignore[empty-body]
    """Samplers: how to walk from noise to data with a denoiser."""


@hookspec
def difftool_predictions() -> Iterable[type[Prediction]]:  # type: ignore[empty-body]
    """Prediction types: what the network is asked for (eps, x_0, v, ...)."""


@hookspec
def difftool_weightings() -> Iterable[type[Weighting]]:  # type: ignore[empty-body]
    """Loss weightings: how much each noise level counts."""


@hookspec
def difftool_spacings() -> Iterable[type[Spacing]]:  # type: ignore[empty-body]
    """Level grids: which levels a sampler visits."""


@hookspec
def difftool_timestep_samplings() -> Iterable[type[TimestepSampling]]:  # type: ignore[empty-body]
    """Timestep samplings: the distribution from which training draws noise levels."""


@hookspec
def difftool_oracles() -> Iterable[type[Oracle]]:  # type: ignore[empty-body]
    """Oracles: denoisers that need no training, for they know the data."""


@hookspec
def difftool_loggers() -> Iterable[type[Logger]]:  # type: ignore[empty-body]
    """Loggers: where the numbers of a training run go."""


@hookspec
def difftool_writers() -> Iterable[type[Writer]]:  # type: ignore[empty-body]
    """Writers: the file formats of `difftool sample --out`."""


@hookspec
def difftool_commands() -> Iterable[type[Command]]:  # type: ignore[empty-body]
    """Commands: `difftool NAME`. Each is announced by an entry point of that name in the group `difftool.commands`."""
