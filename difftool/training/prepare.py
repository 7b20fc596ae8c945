"""The parts of a training run, built from its recipe: data, network, objective, state."""

from __future__ import annotations

import torch

from difftool import devices
from difftool.components import (
    Backbone,
    Codec,
    Dataset,
    Loss,
    NoiseSchedule,
    Optimizer,
    Prediction,
    TimestepSampling,
    Weighting,
)
from difftool.data.facts import DataFacts
from difftool.data.samples import fingerprint
from difftool.data.splitting import split
from difftool.diffusion.memory_layout import arrange
from difftool.diffusion.schedule import Schedule
from difftool.distributed import SINGLE, ProcessGroup
from difftool.errors import DifftoolError, InvalidOption
from difftool.plugins.build import (
    build_codec,
    build_network,
    build_schedule,
    check_shape,
    load_samples,
    loading,
    puts_image_beside,
)
from difftool.rng import key, seed_globally
from difftool.runs.folder import RunFolder
from difftool.runs.recipe import Recipe
from difftool.sampling.model import Model
from difftool.settings import AUTO
from difftool.specs import ObjectiveSpec
from difftool.training.auxiliary import build_auxiliary
from difftool.training.batch_size import check_processes, find_batch_size
from difftool.training.experiment import Experiment
from difftool.training.frozen import freeze
from difftool.training.latents import Feed, Watch, latent_space
from difftool.training.loss import Objective
from difftool.training.processes import check_shardable
from difftool.training.rate import check_schedule
from difftool.training.snapshots import AverageFiles, models_of
from difftool.training.state import TrainState
from difftool.training.transfer import load_source, take_weights


def prepare(
    recipe: Recipe,
    device: torch.device,
    resumed: RunFolder | None = None,
    *,
    watch: Watch | None = None,
    group: ProcessGroup = SINGLE,
) -> Experiment:
    """Load the data and build the parts of a recipe, or of the run to resume, whose state is loaded later.

    `watch(done, total)` is called as a codec encodes the items. No run is written. Raises `UsageError` and
    `DifftoolError`.
    """
    settings = recipe.training
    devices.check_precision(device, settings.precision)
    check_processes(settings)
    check_schedule(settings, recipe[Optimizer], recipe[Backbone])
    schedule = build_schedule(recipe[NoiseSchedule], settings.timesteps, recipe[Prediction])
    shape = recipe[Dataset].item_shape()
    if shape is not None and not (resumed is not None and resumed.saved_states()):  # before the data are read
        with devices.meta():
            codec = build_codec(recipe[Codec], shape)
        if codec is None:
            check_shape(recipe[Backbone], shape, settings)
    samples = load_samples(recipe[Dataset], settings.seed, settings.condition)
    try:
        train, held_out = split(samples, settings.held_out)
    except ValueError as error:
        raise InvalidOption("held_out", str(error), where="--held-out") from None
    with loading(recipe[Dataset]):
        data = DataFacts.of(samples)
    if device.type == "mps" and torch.float64 in (data.scaling.dtype, data.vector_scaling.dtype):
        raise DifftoolError("the data are so far from 0 that they need float64, which mps lacks; pass --device cpu")
    latents = latent_space(recipe, data, train, device, resumed)
    space = data if latents is None else latents.facts
    seed_globally(device, key(settings.seed, "weights"))
    network = build_network(recipe[Backbone], space, settings)
    if not group.sharded:  # else only parts of it go to the device, and these have one memory layout
        arrange(network.to(device))
    source = None if resumed is not None and resumed.saved_states() else load_source(settings, recipe[Prediction])
    transfer = None if source is None else take_weights(network, source, recipe[Backbone], space, settings)
    freeze(network, settings)
    if settings.precision == AUTO:
        fitting = devices.fitting_precision(device, sum(weight.numel() for weight in network.parameters()))
        recipe = recipe.with_training(precision=fitting)
        settings = recipe.training
    objective = build_objective(recipe, schedule, space, device)
    feed = Feed.of(train, held_out, latents, recipe[Dataset], device, watch=watch)
    auxiliary, search = build_auxiliary(network, objective, settings.seed), None
    if settings.batch_size == AUTO:
        search = find_batch_size(network, auxiliary, feed, objective, settings, recipe[Optimizer])
        recipe = recipe.with_training(batch_size=search.batch_size)
    if group.sharded:
        check_shardable(recipe, network, auxiliary)
        group.spread(network)
    train_state = TrainState.new(
        network, recipe.training, device, optimizer=recipe[Optimizer], auxiliary=auxiliary, group=group
    )
    train_state.latents = latents
    origin = None if transfer is None else transfer.origin
    raw = Model(recipe, data, schedule, group.whole(network), device=device, origin=origin, latents=latents)
    model, *others = models_of(raw, train_state.averages, group)
    return Experiment(
        recipe=recipe,
        data=data,
        train=train,
        held_out=held_out,
        feed=feed,
        objective=objective,
        state=train_state,
        model=model,
        averages=AverageFiles(others, train.epoch_length),
        device=device,
        fingerprint=fingerprint(samples),
        search=search,
        transfer=transfer,
        group=group,
    )


def build_objective(recipe: Recipe, schedule: Schedule, data: DataFacts, device: torch.device) -> Objective:
    """Build the objective of a recipe. Raises `UsageError` if its parts do not fit together."""
    settings = recipe.training
    return Objective(
        ObjectiveSpec(schedule=schedule, sigma_data=data.std),
        recipe[Prediction],
        recipe[Weighting],
        recipe[TimestepSampling],
        recipe[Loss],
        device=device,
        self_condition=settings.self_condition,
        learn_variance=settings.learn_variance,
        data=data,
        image_beside=puts_image_beside(recipe[Backbone], data),
        network=f"backbone {recipe[Backbone].name}",
    )
