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
        Callback,
        Codec,
        Command,
        Dataset,
        Features,
        Guidance,
        Logger,
        Loss,
        Metric,
        NoiseSchedule,
        Optimizer,
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
    """Return datasets: samples to learn, with their shape, labels and scaling."""


@hookspec
def difftool_schedules() -> Iterable[type[NoiseSchedule]]:  # type: ignore[empty-body]
    """Return noise schedules: tables of alpha and sigma, from signal to noise."""


@hookspec
def difftool_backbones() -> Iterable[type[Backbone]]:  # type: ignore[empty-body]
    """Return backbones: networks `net(x, t, cond)` whose output has the shape of x."""


@hookspec
def difftool_codecs() -> Iterable[type[Codec]]:  # type: ignore[empty-body]
    """Return codecs: maps of items to latents, in which a network works, and back."""


@hookspec
def difftool_samplers() -> Iterable[type[Sampler]]:  # type: ignore[empty-body]
    """Return samplers: methods that go from noise to data by calls of a denoiser."""


@hookspec
def difftool_predictions() -> Iterable[type[Prediction]]:  # type: ignore[empty-body]
    """Return predictions: quantities that a network predicts, such as eps, x_0 or v."""


@hookspec
def difftool_losses() -> Iterable[type[Loss]]:  # type: ignore[empty-body]
    """Return losses: functions of a network and a batch that training minimises."""


@hookspec
def difftool_weightings() -> Iterable[type[Weighting]]:  # type: ignore[empty-body]
    """Return weightings: the weight of each noise level in the loss."""


@hookspec
def difftool_spacings() -> Iterable[type[Spacing]]:  # type: ignore[empty-body]
    """Return spacings: choices of the levels that a sampler visits."""


@hookspec
def difftool_guidances() -> Iterable[type[Guidance]]:  # type: ignore[empty-body]
    """Return guidances: denoisers around the denoisers of a model, such as classifier-free guidance."""


@hookspec
def difftool_timestep_samplings() -> Iterable[type[TimestepSampling]]:  # type: ignore[empty-body]
    """Return timestep samplings: distributions from which training draws its noise levels."""


@hookspec
def difftool_optimizers() -> Iterable[type[Optimizer]]:  # type: ignore[empty-body]
    """Return optimizers: how gradients move the weights, any of `torch.optim` or one like it."""


@hookspec
def difftool_oracles() -> Iterable[type[Oracle]]:  # type: ignore[empty-body]
    """Return oracles: denoisers that need no training, since they know the data."""


@hookspec
def difftool_loggers() -> Iterable[type[Logger]]:  # type: ignore[empty-body]
    """Return loggers: places to log the metrics of a training run."""


@hookspec
def difftool_callbacks() -> Iterable[type[Callback]]:  # type: ignore[empty-body]
    """Return callbacks: what watches a training run, measures it, and may stop it."""


@hookspec
def difftool_writers() -> Iterable[type[Writer]]:  # type: ignore[empty-body]
    """Return writers: file formats of `difftool sample --out`."""


@hookspec
def difftool_features() -> Iterable[type[Features]]:  # type: ignore[empty-body]
    """Return features: functions of items, such as a network's, in which samples are compared with data."""


@hookspec
def difftool_metrics() -> Iterable[type[Metric]]:  # type: ignore[empty-body]
    """Return metrics: numbers with error bars that tell how good samples or a model are."""


@hookspec
def difftool_commands() -> Iterable[type[Command]]:  # type: ignore[empty-body]
    """Return commands of `difftool`. An entry point of the group `difftool.commands` announces each by its name."""
