"""Latents: items as a codec encodes them, in which network and sampler work instead of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from difftool.data.condition import Condition
from difftool.data.facts import DataFacts
from difftool.errors import DifftoolError, UsageError, blaming

if TYPE_CHECKING:
    from difftool.components.model import Codec

CHUNK = 2**22
"""The largest number of values, of items or latents, that pass through a codec at once."""


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """A codec at work, and the facts of its latents.

    Raw latents are what the codec gives. In model units they have mean 0 in each channel and deviation 1 over all,
    unless the codec keeps the range of the data.
    """

    codec: nn.Module
    """It has `encode` and `decode`, of data in model units."""
    data: DataFacts
    facts: DataFacts
    """The facts of the latents, which network and sampler see in place of the data's."""
    name: str
    """The name of the codec in errors, such as `codec pca`."""

    @torch.no_grad()
    def raw(self, x: Tensor) -> Tensor:
        """Return the raw latents (B, *latent shape) of items (B, *shape) in model units. Raises `DifftoolError`."""
        return encode(self.codec, x, self.name, self.facts.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents (B, *latent shape) of items (B, *shape), both in model units. Raises `DifftoolError`."""
        return self.facts.scaling.to_model(self.raw(x))

    def decode(self, z: Tensor) -> Tensor:
        """Return the items (B, *shape) of latents (B, *latent shape), both in model units. Raises `DifftoolError`.

        It can be differentiated.
        """
        raw = self.facts.scaling.to_data(z).float()
        return _in_chunks(_method(self.codec, "decode"), raw, self.name, self.data.shape)

    def condition(self, condition: Condition | None) -> Condition | None:
        """Return a condition in model units with its image encoded, if it has one."""
        if condition is None or condition.image is None:
            return condition
        return replace(condition, image=self.encode(condition.image))


def encode(codec: nn.Module, x: Tensor, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return the raw latents of items, of this shape if one is given. Raises `DifftoolError` for another one."""
    return _in_chunks(_method(codec, "encode"), x, name, shape)


def check_latents(z: Tensor, name: str) -> None:
    """Raise `DifftoolError` if latents are not finite. It waits for the device, so no step of training calls it."""
    if not bool(z.isfinite().all()):
        raise DifftoolError(f"{name}: its latents hold NaN or infinite numbers")


def _method(codec: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    method: Callable[[Tensor], Tensor] = getattr(codec, name)
    return method


def _in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, name: str, shape: tuple[int, ...] | None) -> Tensor:
    """Apply a function to items (B, ...), some at a time. Raises `DifftoolError` for results of another shape."""
    results: list[Tensor] = []
    for part in torch.split(x, max(1, CHUNK // max(math.prod(x.shape[1:]), math.prod(shape or ())))):
        with blaming(name):
            result = function(part)
        wanted = (len(part), *(shape or ())) if shape else None
        if not isinstance(result, Tensor) or not result.is_floating_point() or len(result) != len(part):
            raise DifftoolError(f"{name}: it must return float tensors with an entry for each item")
        if wanted is not None and tuple(result.shape) != wanted:
            raise DifftoolError(f"{name}: it returned {tuple(result.shape)}, not {wanted}")
        results.append(result.float())
    return results[0] if len(results) == 1 else torch.cat(results)


def latent_facts(component: Codec, codec: nn.Module, data: DataFacts, items: Tensor) -> DataFacts:
    """Return the facts of the latents of a codec, measured on items (N, *shape) in model units.

    Raises `UsageError` for a condition image that cannot be encoded, and `DifftoolError` for unsuitable latents.
    """
    name = f"codec {component.name}"
    with torch.no_grad():
        z = encode(codec, items, name)
    check_latents(z, name)
    if z.ndim < 2:
        raise DifftoolError(f"{name}: its latents have no shape, such as (4, 8, 8)")
    shape, channels = tuple(z.shape[1:]), z.double().transpose(0, 1).flatten(1)
    shift, scale = (0.0,), (1.0,)
    if not component.keeps_range:
        shift = tuple(channels.mean(dim=1).tolist())
        scale = (_deviation(channels - channels.mean(dim=1, keepdim=True)),)
    std = _deviation((channels - torch.tensor(shift, device=z.device).view(-1, 1)) / scale[0])
    return latents_of(
        data, shape=shape, shift=shift, scale=scale, std=round(std, 6), keeps_range=component.keeps_range, name=name
    )


def latents_of(
    data: DataFacts,
    *,
    shape: tuple[int, ...],
    shift: tuple[float, ...],
    scale: tuple[float, ...],
    std: float,
    keeps_range: bool,
    name: str,
) -> DataFacts:
    """Return the facts of latents from those of their data. Raises `UsageError` and `ValueError`."""
    condition = data.condition
    if condition.image is not None:
        if condition.image != data.shape or len(shape) != 3:
            raise UsageError(
                f"{name}: cannot encode condition images of {'x'.join(map(str, condition.image))}, since the items "
                f"are {data.words}; leave them out by --condition none, or choose --codec none"
            )
        condition = replace(condition, image=shape)
    bounds = data.bounds if keeps_range else None
    facts = replace(
        data,
        shape=shape,
        shift=shift,
        scale=scale,
        std=std,
        bounds=bounds,
        form="array",
        rate=None,
        condition=condition,
    )
    return DataFacts.read(facts.document())


def _deviation(values: Tensor) -> float:
    """Return the standard deviation of all values around their mean; 1 if all are equal."""
    return float(values.std(correction=0)) or 1.0
