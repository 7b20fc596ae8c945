"""Samples in memory or on disk, and their scaling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difftool.data.columns import (
    COLUMNS,
    Column,
    ImagesOf,
    Items,
    check_column_names,
    check_row,
    column_of,
    images_at,
    labels_of,
    repeats_of,
    row_of,
    rows_of,
    source_of,
)
from difftool.data.condition import Condition
from difftool.data.forms import Form, OfForm, form_of, rate_of
from difftool.data.scaling import Scaling, moments
from difftool.data.tensors import numbers_of, tensor_of
from difftool.rng import generator


@dataclass(frozen=True, kw_only=True)
class DatasetContext:
    """The surroundings of a dataset that loads. Fields may be added."""

    seed: int = 0
    """Generated data are a function of this seed."""
    cache: Path | None = None
    """A folder for indexes, or None to keep nothing."""

    def generator(self, *parts: int | str) -> torch.Generator:
        """Return a CPU generator for (seed, "dataset", *parts)."""
        return generator(self.seed, "dataset", *parts)


Augment = Callable[..., Any]


@dataclass(frozen=True, kw_only=True, repr=False)
class Samples(OfForm):
    """The data of a dataset. Model units are (item - shift) / scale, per channel or coordinate. Fields may be added.

    Items are in data units: pixel values 0..255 for images, and any units for points.
    """

    items: Tensor | Items
    """(N, *shape) of any real dtype, a tensor or a NumPy array, or a map-style source that worker processes read."""
    shape: tuple[int, ...]
    """The shape of one item, channels (or coordinates) first."""
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    bounds: tuple[float, float] | None = None
    """The range of the data in model units, to which estimates are clipped, or None for unbounded data."""
    labels: Tensor | None = None
    """(N,) int64 class indices."""
    class_names: tuple[str, ...] = ()
    vectors: Column | None = None
    """(N, D) numbers in any units, which difftool brings to mean 0 and deviation 1. Like `items`, these and the columns
    below are a tensor, an array, or a source that is read with the item."""
    images: Column | ImagesOf | None = None
    """(N, C, H, W), as high and wide as the items: uint8 pixels, which become x/127.5 - 1, or floats in model units. Or
    a function `images(items, generator)` that computes them from a batch (B, *shape) of raw, augmented items."""
    tokens: Column | None = None
    """(N, L, D) numbers, which the network gets as they are."""
    noise: Column | None = None
    """(N, *shape) floats: the noise that belongs to each item, which training takes instead of drawing any."""
    repeats: Tensor | None = None
    """(N,) whole numbers from 1 on: an epoch of training visits each item so many times, or once by default."""
    item_ids: Sequence[str] | None = None
    """Stable names of the items, such as relative paths. They decide which items are held out, whatever the seed."""
    augment: Augment | None = None
    """`augment(items, generator) -> items`, a random change of a batch (B, *shape) of raw items, each on its own, such
    as a flip. Where `images` are stored, `augment(items, generator, images) -> (items, images)` changes both alike. It
    runs outside workers."""
    mixture: Mixture | None = None
    """The distribution that the items were drawn from, if it is a mixture of Gaussians."""
    fingerprint: str = ""
    """A text that changes with the data, for data from outside. Data that options and seed determine need none."""
    form: Form | None = None
    """What the numbers mean: `image` (which `PIXELS` declares), `film` (pixels too, `**{**PIXELS, "form": "film"}`),
    `series`, `sound`, `cloud`, `points` or `array`. It decides how samples are drawn and written. By default one axis
    makes points, and more axes an array, however many channels there are."""
    rate: float | None = None
    """The rate of sound in Hz, or of films in frames a second (10 by default); None for all other forms."""
    column_names: tuple[str, ...] = ()
    """The names of the coordinates of items with one axis, such as the columns of a table; () if they have none."""

    def __post_init__(self) -> None:
        """Bring all fields into plain types. Raises `ValueError` for what no model file could describe."""
        self._set(items=source_of(self.items, "items"))
        if (isinstance(self.items, Tensor) and self.items.ndim == 0) or len(self.items) == 0:
            raise ValueError("the dataset is empty")
        try:
            self._set(shape=tuple(map(index, self.shape)))
        except TypeError:
            raise ValueError(
                f"the shape must be whole numbers, such as (2,) or (3, 32, 32), not {self.shape!r}"
            ) from None
        if isinstance(self.items, Tensor) and tuple(self.items.shape[1:]) != self.shape:
            raise ValueError(f"items are {tuple(self.items.shape[1:])}, but the shape says {self.shape}")
        if not self.shape or min(self.shape) < 1:
            raise ValueError("items must have a shape, such as (2,) or (3, 32, 32)")
        form = form_of(self.form, self.shape)
        self._set(form=form, rate=rate_of(form, self.rate), shift=numbers_of("shift", self.shift))
        self._set(scale=numbers_of("scale", self.scale))
        if not {len(self.shift), len(self.scale)} <= {1, self.shape[0]} or min(self.scale) <= 0:
            raise ValueError(
                "shift and scale must have one entry, or one for each channel, and no scale may be 0 or less"
            )
        if self.bounds is not None:
            self._set(bounds=numbers_of("bounds", self.bounds))
            if len(self.bounds) != 2 or self.bounds[0] >= self.bounds[1]:
                raise ValueError(f"bounds must be a low and a high number, not {self.bounds}")
        if not _are_texts(self.column_names):
            raise ValueError(f"column_names must be a tuple of texts, not {self.column_names!r:.80}")
        self._set(column_names=tuple(map(str, self.column_names)))
        check_column_names(self.column_names, self.shape)
        if not _are_texts(self.class_names):
            raise ValueError(f"class_names must be a tuple of texts, not {self.class_names!r:.80}")
        if self.augment is not None and not callable(self.augment):
            raise ValueError(f"augment must be a function of items and a generator, not {self.augment!r:.80}")
        if not isinstance(self.fingerprint, str):
            raise ValueError(f"the fingerprint must be a text, not {type(self.fingerprint).__name__}")
        self._set(class_names=tuple(map(str, self.class_names)))
        if self.item_ids is not None and not _are_texts(self.item_ids):
            raise ValueError("item_ids must be texts, such as relative paths")
        if self.item_ids is not None and len(self.item_ids) != len(self.items):
            raise ValueError(f"{len(self.item_ids)} item_ids for {len(self.items)} items")
        if self.repeats is not None:
            self._set(repeats=repeats_of(self.repeats, len(self.items)))
        if self.labels is not None:
            self._set(labels=labels_of(self.labels, self.class_names, len(self.items)))
        for name, field in COLUMNS.items():
            given = getattr(self, field)
            if name != "label" and given is not None and not (name == "image" and _is_function(given)):
                self._set(**{field: column_of(given, name, self.shape, len(self.items))})

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"Samples({len(self):,} items of {'x'.join(map(str, self.shape))}, {self.form})"

    @property
    def epoch_length(self) -> int:
        """The number of items that an epoch of training visits."""
        return len(self) if self.repeats is None else int(self.repeats.sum())

    @property
    def scaling(self) -> Scaling:
        """The conversion between data units and model units."""
        return Scaling(tuple(self.shift), tuple(self.scale))

    @property
    def columns(self) -> dict[str, Column]:
        """The columns that are stored, by the name of a row: a field of `Condition`, or "noise"."""
        stored = {name: getattr(self, field) for name, field in COLUMNS.items()}
        return {name: c for name, c in stored.items() if c is not None and not (name == "image" and _is_function(c))}

    @property
    def images_function(self) -> ImagesOf | None:
        """The function that computes the condition images, or None if they are stored or there are none."""
        images: Any = self.images
        return images if images is not None and _is_function(images) else None

    @property
    def in_memory(self) -> bool:
        """True if nothing has to be read with the items."""
        return all(isinstance(column, Tensor) for column in (self.items, *self.columns.values()))

    @property
    def drawn(self) -> bool:
        """True if a source draws its rows at random while training."""
        return any(hasattr(column, "draw") for column in (self.items, *self.columns.values()))

    @property
    def conditions(self) -> tuple[str, ...]:
        """The fields of `Condition` that come with the items."""
        return tuple(name for name, field in COLUMNS.items() if name != "noise" and getattr(self, field) is not None)

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of a row of each column, and of the images, by name. The first row of a source is read for it.

        Raises `ValueError` for a row that does not fit the items, and whatever a source raises.
        """
        shapes = {}
        for name, column in self.columns.items():
            row = row_of(column, name, 0)
            if name != "label":
                check_row(name, row, self.shape)
            shapes[name] = tuple(row.shape)
        if self.images_function is not None:
            shapes["image"] = tuple(images_at(self.images_function, self.take_items([0]), [0]).shape[1:])
        return shapes

    def take_items(self, indices: Sequence[int]) -> Tensor:
        """Return raw items (B, *shape) at indices. Raises `DifftoolError` if one cannot be read."""
        return rows_of(self.items, "items", indices)

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Condition | None]:
        """Return raw items (B, *shape) and their raw condition at indices, the same ones every time.

        `DataFacts.model_condition` brings the condition into the units of the network. Raises `DifftoolError` if an
        item cannot be read.
        """
        items = self.take_items(indices)
        fields = {name: rows_of(c, name, indices) for name, c in self.columns.items() if name != "noise"}
        if self.images_function is not None:
            fields["image"] = images_at(self.images_function, items, indices)
        return items, Condition.shown(fields)

    def take_noise(self, indices: Sequence[int]) -> Tensor | None:
        """Return the noise (B, *shape) that belongs to items at indices, or None if it is to be drawn."""
        return None if self.noise is None else rows_of(self.noise, "noise", indices)

    def select(self, conditions: Collection[str]) -> Samples:
        """Return the samples with these conditions alone, of those that come with the items."""
        dropped = [name for name in self.conditions if name not in conditions]
        changes: dict[str, Any] = {COLUMNS[name]: None for name in dropped}
        if "label" in dropped:
            changes["class_names"] = ()
        if "image" in dropped and self.augment is not None and self.images_function is None:
            changes["augment"] = _WithoutImages(self.augment, self.row_shapes["image"])
        return replace(self, **changes) if dropped else self


@dataclass(frozen=True)
class _WithoutImages:
    """An augmentation of items and images that is given black images, where the images were left out."""

    augment: Augment
    shape: tuple[int, ...]

    def __call__(self, items: Tensor, random: torch.Generator) -> Any:
        return self.augment(items, random, items.new_zeros(len(items), *self.shape, dtype=torch.uint8))[0]


def _is_function(images: object) -> bool:
    return callable(images) and not hasattr(images, "__getitem__")


def _are_texts(values: object) -> bool:
    """Return whether a value is a sequence of texts, and not a text itself."""
    return isinstance(values, Sequence) and not isinstance(values, str) and all(isinstance(v, str) for v in values)


def fingerprint(samples: Samples) -> str:
    """Return a text by which a run recognises its data, such as `1,797 items, 1x8x8, 5b3f...`.

    Floats are left out, since another machine may round them differently.
    """
    sha = hashlib.sha256(json.dumps([samples.fingerprint, samples.class_names]).encode())
    if samples.repeats is not None:
        sha.update(samples.repeats.numpy().data)
    for name, column in {"items": samples.items, **samples.columns}.items():
        if name not in ("items", "label"):
            sha.update(name.encode())
        if isinstance(column, Tensor) and not column.is_floating_point():
            sha.update(column.contiguous().cpu().numpy().data)
    return f"{len(samples):,} items, {'x'.join(map(str, samples.shape))}, {sha.hexdigest()[:16]}"


PIXELS: dict[str, Any] = {"shift": (127.5,), "scale": (127.5,), "bounds": (-1.0, 1.0), "form": "image"}
"""The arguments of `Samples` for images of pixels from 0 to 255, which scale them to x/127.5 - 1."""


def points(
    items: Tensor,
    *,
    labels: Tensor | None = None,
    class_names: tuple[str, ...] = (),
    vectors: Tensor | None = None,
    means: Tensor | None = None,
    mean_labels: Tensor | None = None,
    std: float = 0.0,
) -> Samples:
    """Return samples of points (N, D), scaled to mean 0 and standard deviation 1 in each coordinate.

    Items stay float64 where float32 would lose digits. For points from a mixture of equally weighted Gaussians,
    `means` (K, D), `mean_labels` (K,) and `std` describe it, in the units of the points. Raises `ValueError`.
    """
    items = tensor_of(items)
    if not isinstance(items, Tensor) or items.ndim != 2 or items.numel() == 0:
        raise ValueError("points must be a tensor or a NumPy array of shape (N, D)")
    shift, scale = moments(items)
    return Samples(
        items=items.to(Scaling(shift, scale).dtype) if items.dtype == torch.float64 else items,
        shape=tuple(items.shape[1:]),
        shift=shift,
        scale=scale,
        labels=labels,
        class_names=class_names,
        vectors=vectors,
        mixture=None if means is None else Mixture(means=means.to(torch.float64), std=std, labels=mean_labels),
    )


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of Gaussians with equal weights and one standard deviation for all coordinates, in data units."""

    means: Tensor
    """(K, *shape), float64."""
    std: float
    """The standard deviation of each coordinate; 0 for points exactly at the means."""
    labels: Tensor | None = None
    """The class of each component, (K,) int64."""

    def __post_init__(self) -> None:
        if len(self.means) == 0 or self.std < 0:
            raise ValueError("a mixture needs a component, and a standard deviation that is not negative")
        if self.labels is not None and (self.labels.dtype != torch.int64 or len(self.labels) != len(self.means)):
            raise ValueError(f"a mixture of {len(self.means)} components needs as many int64 labels")
