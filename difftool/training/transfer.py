"""Weights from elsewhere: a network that starts from those of another model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from difftool.components import Backbone, Prediction
from difftool.data.facts import DataFacts
from difftool.errors import DifftoolError, InvalidOption
from difftool.plugins.build import backbone_spec
from difftool.runs.origin import Origin
from difftool.sampling.model import Model, load_model
from difftool.training.frozen import listed

if TYPE_CHECKING:
    from difftool.settings import Training


@dataclass
class Transfer:
    """The tensors that a network took from another model."""

    source: Model
    taken: list[str] = field(default_factory=list)
    partly: list[str] = field(default_factory=list)
    """Names, each with the part that was taken."""
    fresh: list[str] = field(default_factory=list)
    """Names, each with the reason why the tensor keeps its first values."""
    unused: list[str] = field(default_factory=list)
    """Names of tensors of the source that have no place in the network."""

    @property
    def origin(self) -> Origin:
        source = self.source
        return Origin(name=source.name, weights=source.weights, step=source.step, sha256=source.digest)

    def __str__(self) -> str:
        count = len(self.taken) + len(self.partly) + len(self.fresh)
        rows = [f"took {len(self.taken)} of {count} tensors from {self.source.description} ({self.source.source})"]
        for title, names in (("in part", self.partly), ("fresh", self.fresh), ("left behind", self.unused)):
            rows += [f"{title}: {listed(names)}"] if names else []
        return "; ".join(rows)


def load_source(settings: Training, prediction: Prediction) -> Model | None:
    """Load the model that the settings name as the source of weights, and warn if it predicts something else.

    Raises `DifftoolError`.
    """
    if settings.init_from is None:
        return None
    try:
        source = load_model(settings.init_from, settings.init_weights or "ema")
    except DifftoolError as error:
        error.args = (f"--init-from: {str(error).removeprefix('--weights: ')}",)
        raise
    if (before := source.recipe[Prediction].name) != prediction.name:
        warnings.warn(
            f"--init-from: {settings.init_from} predicts {before}, and this run {prediction.name}, which its weights "
            f"must learn anew; --prediction {before} keeps what they know",
            stacklevel=2,
        )
    return source


@torch.no_grad()
def take_weights(
    network: nn.Module, source: Model, backbone: Backbone, data: DataFacts, settings: Training
) -> Transfer:
    """Copy the weights and buffers of another model into a network, by name and shape.

    Of a tensor that differs along its classes or channels alone, the common part is copied. Buffers are taken too,
    since norm statistics and random frequencies belong to the weights. Raises `InvalidOption` if no parameter fits.
    """
    transfer, there = Transfer(source), source.network.state_dict()
    own, parameters = network.state_dict(), {name for name, _ in network.named_parameters()}
    classes = common_classes(source.data.class_names, data.class_names)
    before = backbone_spec(source.recipe[Backbone], source.space, source.recipe.training)
    now = backbone_spec(backbone, data, settings)
    channels = [(before.out_channels, now.out_channels), (before.in_channels, now.in_channels)]
    for name, tensor in own.items():
        other = there.pop(name, None)
        if other is None:
            transfer.fresh.append(f"{name} (not there)")
            continue
        if classes and is_embedding(network, name) and copy_classes(tensor, other, classes, source.data, data):
            transfer.partly.append(f"{name} ({len(classes)} of {len(tensor)} rows, by class)")
        elif other.shape == tensor.shape:
            tensor.copy_(other)
            transfer.taken.append(name)
        elif name in parameters and (part := copy_channels(tensor, other, channels)):
            transfer.partly.append(f"{name} ({part})")
        else:
            transfer.fresh.append(f"{name} ({shape_of(other)} there, {shape_of(tensor)} here)")
    transfer.unused.extend(there)
    if parameters.isdisjoint(name.partition(" ")[0] for name in (*transfer.taken, *transfer.partly)):
        where = f"{source.source} holds no weight that fits this network"
        raise InvalidOption("init_from", f"{where}: {listed(transfer.fresh)}", where="--init-from")
    return transfer


def common_classes(there: Sequence[str], here: Sequence[str]) -> dict[int, int]:
    """Return the rows that two tables of class embeddings share, from old to new, the last row "no class" included.

    Return nothing if the tables are the same as they are, or if one of the models has no classes.
    """
    if not there or not here or tuple(there) == tuple(here):
        return {}
    index = {name: i for i, name in enumerate(there)}
    shared = {index[name]: i for i, name in enumerate(here) if name in index}
    if not shared and len(there) == len(here):
        return {}  # as many classes of other names: by index
    return {**shared, len(there): len(here)}


def is_embedding(network: nn.Module, name: str) -> bool:
    return isinstance(network.get_submodule(name.rpartition(".")[0]), nn.Embedding)


def copy_classes(tensor: Tensor, other: Tensor, rows: dict[int, int], there: DataFacts, here: DataFacts) -> bool:
    """Copy the rows of the classes that two tables share. Return False if they are no tables of these classes."""
    if len(other) != (there.classes or 0) + 1 or len(tensor) != (here.classes or 0) + 1:
        return False
    if other.shape[1:] != tensor.shape[1:]:
        return False
    tensor[[*rows.values()]] = other[[*rows]].to(tensor)
    return True


def copy_channels(tensor: Tensor, other: Tensor, channels: Sequence[tuple[int, int]]) -> str:
    """Copy the channels that the first or last layer of two networks share, and return the part in words.

    `channels` are those of output and input, each there and here. Input channels that are new start at zero, so that
    the network starts as the one that it came from. Return an empty text if more than the channels differ.
    """
    if other.ndim != tensor.ndim:
        return ""
    differing = [axis for axis in range(tensor.ndim) if other.shape[axis] != tensor.shape[axis]]
    if len(differing) != 1 or (axis := differing[0]) > 1 or (other.shape[axis], tensor.shape[axis]) != channels[axis]:
        return ""
    common = min(channels[axis])
    if axis == 1:
        tensor.narrow(1, common, tensor.shape[1] - common).zero_()
    tensor.narrow(axis, 0, common).copy_(other.narrow(axis, 0, common))
    return f"{common} of {tensor.shape[axis]} {'input' if axis else 'output'} channels"


def shape_of(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
