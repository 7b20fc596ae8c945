"""The laws of datasets. The data are loaded three times at most, each time with an empty cache folder."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from difftool import devices, errors
from difftool.components import Backbone, Dataset
from difftool.data.columns import COLUMNS, row_of
from difftool.data.facts import PIXEL_SCALING, DataFacts
from difftool.data.measures import DEVIATIONS
from difftool.data.samples import Augment, DatasetContext, Samples
from difftool.errors import UsageError
from difftool.options import make
from difftool.plugins.build import build_network
from difftool.plugins.registry import registry
from difftool.rng import generator
from difftool.settings import Training
from difftool.testing.laws import Failed, Skipped, require, size

MAX_ITEMS = 512
"""Items that are read, evenly spread over the dataset."""
DARKEST_MAXIMUM = 1.0
"""If no pixel is brighter than this, images have a range of 0 to 1 instead of 0 to 255."""
ALIKE = 0.5
"""The correlation that a pattern and its copy keep at least where both are moved alike."""
UNUSUAL_SEED = 987_654_321


@dataclass(frozen=True)
class Case:
    """A dataset, and what it loads."""

    dataset: Dataset

    @cached_property
    def samples(self) -> Samples:
        return self.load(global_seed=0)

    @cached_property
    def again(self) -> Samples:
        """The samples of a second load, with the global generators in another state."""
        return self.load(global_seed=1)

    def load(self, global_seed: int) -> Samples:
        """Load after seeding the global generators. Raises `Failed` if the result is not `Samples`."""
        seed_all(global_seed)
        with tempfile.TemporaryDirectory() as cache:
            samples = self.dataset.load(DatasetContext(seed=0, cache=Path(cache)))
        if not isinstance(samples, Samples):
            raise Failed(f"load() returned a {type(samples).__name__}, not Samples")
        return samples

    @property
    def indices(self) -> list[int]:
        """The items that are read."""
        n, count = len(self.samples), min(MAX_ITEMS, len(self.samples))
        return [i * n // count for i in range(count)]

    @cached_property
    def rows(self) -> dict[str, Tensor]:
        """The items that are read, and what comes with them, by name."""
        return rows_of(self.samples, self.indices)

    @property
    def items(self) -> Tensor:
        return self.rows["items"]

    def stored_images(self, count: int) -> Iterator[Tensor]:
        """Yield the first condition images, if images are stored."""
        if "image" in self.samples.columns:
            yield self.rows["image"][:count]


def rows_of(samples: Samples, indices: Sequence[int]) -> dict[str, Tensor]:
    """Return the items, the fields of their condition, and their noise, by name."""
    items, condition = samples.take(indices)
    fields = {} if condition is None else condition.tensors()
    noise = samples.take_noise(indices)
    rows = {"items": items, **fields, **({} if noise is None else {"noise": noise})}
    return {name: tensor for name, tensor in rows.items() if name != "hidden"}


def augmented(augment: Augment, batch: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return a batch of items, or of items and images, augmented. Raises `Failed` if the images are missing."""
    items, *images = batch
    result = augment(items, generator(0, "law"), *images)
    if not images:
        return [result]
    require(isinstance(result, tuple) and len(result) == 2, "augment() must return (items, images)")
    return list(result)


def loads_items_of_the_declared_shape(case: Case) -> str:
    """`load` returns `Samples`, and their items have the shape that `Samples.shape` and `item_shape` declare."""
    samples, declared = case.samples, case.dataset.item_shape()
    if declared is not None and tuple(declared) != tuple(samples.shape):
        raise Failed(f"item_shape() is {tuple(declared)}, but the samples declare {tuple(samples.shape)}")
    if tuple(case.items.shape[1:]) != tuple(samples.shape):
        raise Failed(f"items have shape {tuple(case.items.shape[1:])}, but the samples declare {tuple(samples.shape)}")
    return f"{len(samples):,} {str(case.items.dtype).removeprefix('torch.')} items of shape {size(samples.shape)}"


def is_reproducible(case: Case) -> str:
    """A second load with the same seed gives the same items, labels and fingerprint, whatever random numbers the
    program has drawn in between."""
    a, b = case.samples, case.again
    require(len(a) == len(b), f"{len(a)} items, then {len(b)}")
    again = rows_of(b, case.indices)
    require(case.rows.keys() == again.keys(), f"{', '.join(case.rows)}, then {', '.join(again)}")
    for name, rows in case.rows.items():
        if name != "label" and not equal(rows, again[name]):
            raise Failed(f"the second load has other {COLUMNS.get(name, name)}; draw from context.generator(...) alone")
    if not equal(a.labels, b.labels) or a.class_names != b.class_names:
        raise Failed("the second load has other labels")
    require(a.fingerprint == b.fingerprint, "the second load has another fingerprint, so no run could be resumed")
    return "items, labels and fingerprint are equal"


def leaves_global_generators_alone(case: Case) -> str:
    """Loading neither draws from the global random generators of torch, numpy and Python, nor seeds them."""
    seed_all(UNUSUAL_SEED)
    before = generator_states()
    case.load(UNUSUAL_SEED)
    if changed := [name for name, state in generator_states().items() if state != before[name]]:
        raise Failed(f"load() drew from or seeded the global generator of {changed[0]}; use context.generator(...)")
    return f"those of {', '.join(before)} are unchanged"


def reads_the_same_item_every_time(case: Case) -> str:
    """If items are read one at a time, every reading of an item is the same, also every draw with the same seed, and
    their source can be pickled for a worker process."""
    samples = case.samples
    if samples.in_memory:
        raise Skipped("its items are in memory")
    indices, sizes = case.indices[:16], []
    for name, source in {"items": samples.items, **samples.columns}.items():
        what = COLUMNS.get(name, name)
        for i in indices:
            if not torch.equal(row_of(source, name, i), row_of(source, name, i)):
                raise Failed(f"two readings of {what}[{i}] differ; __getitem__ must be pure, and `augment` random")
            if not torch.equal(row_of(source, name, i, 1), row_of(source, name, i, 1)):
                raise Failed(f"two draws of {what}[{i}] with the same seed differ")
        try:
            sizes.append(len(ForkingPickler.dumps(source)))
        except Exception as error:
            raise Failed(f"the source of {what} cannot be sent to a worker process: {errors.describe(error)}") from None
    return f"{len(indices)} items; their source has {sum(sizes) / 1024:.0f} KiB when pickled"


def is_scaled_for_a_network(case: Case) -> str:
    """In model units, (item - shift) / scale, the data are finite, have a standard deviation between 0.1 and 10, and
    lie within the bounds that the samples declare."""
    x = case.samples.scaling.to_model(case.items)
    require(x.isfinite().all(), "items contain NaN or infinite numbers")
    std, low, high = float(x.std(correction=0)), float(x.min()), float(x.max())
    bounds = case.samples.bounds
    if bounds is not None and not (low >= bounds[0] - 1e-5 and high <= bounds[1] + 1e-5):
        raise Failed(f"in model units they reach from {low:.3g} to {high:.3g}, beyond the bounds {bounds}")
    if len(x) > 1 and not DEVIATIONS[0] <= std <= DEVIATIONS[1]:
        raise Failed(
            f"their standard deviation is {std:.3g} in model units; {DEVIATIONS[0]} to {DEVIATIONS[1]} is required"
        )
    return f"standard deviation {std:.2f}, from {low:.2f} to {high:.2f}{'' if bounds is None else f', bounds {bounds}'}"


def stores_images_as_pixels(case: Case) -> str:
    """Items whose form is `image` hold pixels from 0 to 255, which `Samples(..., **PIXELS)` declares and scales, and
    pictures are written from. Items of other forms may hold any numbers."""
    if not case.samples.is_image:
        raise Skipped(f"its items are of form {case.samples.form!r}; Samples(..., **PIXELS) declares images")
    low, high = float(case.items.min()), float(case.items.max())
    if not (low >= 0.0 and DARKEST_MAXIMUM < high <= 255.0):
        raise Failed(f"they reach from {low:.3g} to {high:.3g}; give pixels from 0 to 255, and Samples(..., **PIXELS)")
    return f"from {low:g} to {high:g}"


def labels_items_by_class(case: Case) -> str:
    """Labels are class indices, the class names are unique, and every class has items."""
    samples = case.samples
    if samples.labels is None:
        if samples.class_names:
            raise Failed(f"it names {len(samples.class_names)} classes, but has no labels")
        raise Skipped("it has no labels")
    names = samples.class_names or tuple(map(str, range(int(samples.labels.max()) + 1)))
    if len(set(names)) < len(names):
        raise Failed("two classes have the same name")
    counts = torch.bincount(samples.labels, minlength=len(names))
    if empty := [name for name, count in zip(names, counts.tolist(), strict=True) if count == 0]:
        raise Failed(f"no item is of class {empty[0]}")
    return f"{len(names)} classes of {int(counts.min())} to {int(counts.max())} items"


def brings_its_conditions(case: Case) -> str:
    """Vectors, images and tokens have one shape for all items and hold finite numbers, vectors are not all the same,
    and images that are computed are a function of the batch and the generator that does not change the batch."""
    samples = case.samples
    shapes = {name: shape for name, shape in samples.row_shapes.items() if name != "label"}
    if not shapes:
        raise Skipped("it has no conditions beside labels")
    for name, shape in shapes.items():
        rows, what = case.rows[name], COLUMNS[name]
        require(tuple(rows.shape[1:]) == shape, f"{what} are {tuple(rows.shape[1:])}, but the first one is {shape}")
        require(rows.isfinite().all(), f"{what} contain NaN or infinite numbers")
    vectors = case.rows.get("vector")
    if vectors is not None and len(vectors) > 1 and bool((vectors == vectors[0]).all()):
        raise Failed("all vectors are the same, so a network can learn nothing from them")
    if samples.images_function is not None:
        batch = case.items[:64]
        before = batch.clone()
        images = [samples.images_function(batch, generator(0, "law")) for _ in range(2)]
        require(torch.equal(batch, before), "images() changed the batch in place, so the data would change")
        require(equal(*images), "images() made two different batches with the same generator")
    return ", ".join(f"{COLUMNS[name]} of {size(shape)}" for name, shape in shapes.items())


def augments_reproducibly(case: Case) -> str:
    """`augment` keeps shape and dtype, gives the same result for the same generator, and does not change the batch that
    it receives. The same holds for condition images that it receives with the batch."""
    augment = case.samples.augment
    if augment is None:
        raise Skipped("it has no augmentation")
    batch = [case.items[:64], *case.stored_images(64)]
    before = [rows.clone() for rows in batch]
    a = augmented(augment, batch)
    if not all(map(torch.equal, batch, before)):
        raise Failed("augment() changed the batch in place, so the data would change from epoch to epoch")
    for new, old in zip(a, batch, strict=True):
        if new.shape != old.shape or new.dtype != old.dtype:
            raise Failed(f"augment() made {tuple(new.shape)} {new.dtype} of {tuple(old.shape)} {old.dtype}")
    if not all(map(torch.equal, a, augmented(augment, batch))):
        raise Failed("augment() made two different batches with the same generator")
    return "two equal batches with the same generator"


def augments_items_and_images_alike(case: Case) -> str:
    """`augment` moves a condition image as it moves its item: if both are one pattern, they are still alike."""
    augment, images = case.samples.augment, [*case.stored_images(64)]
    if augment is None or not images:
        raise Skipped("it has no augmentation, or no condition images that are stored")
    pattern = torch.randint(0, 256, (len(images[0]), 1, *images[0].shape[2:]), generator=generator(0, "pattern"))
    in_model_units = PIXEL_SCALING.to_model(pattern)
    items = case.samples.scaling.to_data(in_model_units.expand(case.items[:64].shape)).to(case.items.dtype)
    values = pattern if images[0].dtype == torch.uint8 else in_model_units
    batch = (items, values.expand(images[0].shape).to(images[0].dtype))
    pairs = zip(*(rows.float().mean(1).flatten(1) for rows in augmented(augment, batch)), strict=True)
    likeness = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
    if not bool((likeness > ALIKE).all()):
        raise Failed(
            f"augment() moved an item, but not its condition image: their correlation fell from 1 to "
            f"{float(likeness.min()):.2f}; change both alike"
        )
    return f"a correlation of {float(likeness.min()):.2f} or more"


def can_be_stored_in_a_model_file(case: Case) -> str:
    """The facts of the data in a model file are unchanged after they were written and read, and `item_ids`, by which
    items are held out, are unique."""
    facts = DataFacts.of(case.samples)
    try:
        result = DataFacts.read(facts.document())
    except ValueError as error:
        raise Failed(f"a model file could not give back {facts}: {error}") from None
    require(result == facts, f"{facts} came back from a model file as {result}")
    ids = case.samples.item_ids
    if ids is not None and len(set(ids)) < len(ids):
        raise Failed("two items have the same name in item_ids")
    return f"shape, scaling, bounds and {len(facts.class_names)} class names"


def fits_its_default_backbone(case: Case) -> str:
    """The dataset's `default_backbone` is installed and can be built for its items."""
    name = case.dataset.default_backbone
    backbone = make(registry().of_kind(Backbone, name), {})
    facts = DataFacts.of(case.samples)
    try:
        with devices.meta():
            network = build_network(backbone, facts, Training())
    except UsageError as error:
        raise Failed(str(error)) from None
    return f"{name}, {sum(p.numel() for p in network.parameters()):,} parameters"


LAWS = (
    loads_items_of_the_declared_shape,
    is_reproducible,
    leaves_global_generators_alone,
    reads_the_same_item_every_time,
    is_scaled_for_a_network,
    stores_images_as_pixels,
    labels_items_by_class,
    brings_its_conditions,
    augments_reproducibly,
    augments_items_and_images_alike,
    can_be_stored_in_a_model_file,
    fits_its_default_backbone,
)


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def generator_states() -> dict[str, str]:
    """Return the states of the global generators."""
    return {
        "torch": str(torch.get_rng_state().tolist()),
        "numpy": str(np.random.get_state(legacy=False)),
        "Python": str(random.getstate()),
    }


def equal(a: Tensor | None, b: Tensor | None) -> bool:
    """Compare to the last bit. Two NaN count as equal, since another law reports them."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
