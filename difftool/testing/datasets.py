"""Laws of datasets. Each loads the data once or twice, with a cache folder of its own."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from difftool import errors
from difftool.components import Backbone, Dataset
from difftool.data.facts import DataFacts
from difftool.data.samples import DatasetContext, Samples, Scaling
from difftool.errors import UsageError
from difftool.options import make
from difftool.plugins.build import build_network
from difftool.plugins.registry import registry
from difftool.rng import generator
from difftool.settings import Training
from difftool.testing.laws import Broken, NotAsked

LOOKED_AT = 512
"""Items that are read, evenly spread over all."""
SMALLEST_PIXEL = 1.0
"""The brightest pixel of all is brighter than this, or they are no pixels from 0 to 255."""
UNUSUAL = 987_654_321
"""A seed that nobody sets."""
SCALES = (0.1, 10.0)
"""Between which the standard deviation of the data lies in model units."""


@dataclass(frozen=True)
class Loaded:
    """A dataset, and what it loads, twice."""

    dataset: Dataset

    @cached_property
    def samples(self) -> Samples:
        return self.load_after(0)

    @cached_property
    def again(self) -> Samples:
        """The same, while the generators that programs share stand elsewhere."""
        return self.load_after(1)

    def load_after(self, seed: int) -> Samples:
        seed_all(seed)
        return self.load()

    def load(self) -> Samples:
        with tempfile.TemporaryDirectory() as cache:
            samples = self.dataset.load(DatasetContext(seed=0, cache=Path(cache)))
        if not isinstance(samples, Samples):
            raise Broken(f"load() gave a {type(samples).__name__}, not Samples")
        return samples

    @property
    def indices(self) -> list[int]:
        n, few = len(self.samples), min(LOOKED_AT, len(self.samples))
        return [i * n // few for i in range(few)]

    @cached_property
    def items(self) -> Tensor:
        return self.samples.take(self.indices)[0]


def subject(dataset: Dataset) -> Loaded:
    return Loaded(dataset)


def loads_what_it_says(loaded: Loaded) -> str:
    """`load` gives Samples, whose items have the shape that they say, and `item_shape` says, where it says one."""
    samples, told = loaded.samples, loaded.dataset.item_shape()
    if told is not None and tuple(told) != tuple(samples.shape):
        raise Broken(f"item_shape() is {tuple(told)}, but the samples say {tuple(samples.shape)}")
    if tuple(loaded.items.shape[1:]) != tuple(samples.shape):
        raise Broken(f"items are {tuple(loaded.items.shape[1:])}, but the samples say {tuple(samples.shape)}")
    kind = str(loaded.items.dtype).removeprefix("torch.")
    return f"{len(samples):,} items of {'x'.join(map(str, samples.shape))}, {kind}"


def repeats_itself(loaded: Loaded) -> str:
    """Loaded again with the same seed, every item and label is the same, whatever else the program has drawn."""
    a, b = loaded.samples, loaded.again
    if len(a) != len(b):
        raise Broken(f"{len(a)} items, then {len(b)}")
    if not _same(loaded.items, b.take(loaded.indices)[0]):
        raise Broken("items differ when loaded again; draw from context.generator(...) alone")
    if not _same(a.labels, b.labels) or a.class_names != b.class_names:
        raise Broken("labels differ when loaded again")
    if a.fingerprint != b.fingerprint:
        raise Broken("the fingerprint differs when loaded again, so that no run could be resumed")
    return "items, labels and fingerprint are equal"


def leaves_shared_generators_alone(loaded: Loaded) -> str:
    """Loading neither draws from the generators of torch, numpy and Python that a program shares, nor seeds them."""
    seed_all(UNUSUAL)
    before = positions()
    loaded.load()
    if moved := [name for name, position in positions().items() if position != before[name]]:
        raise Broken(f"load() drew from or seeded the global generator of {moved[0]}; use context.generator(...)")
    return f"those of {', '.join(before)} stand where they stood"


def items_are_read_alike_anywhere(loaded: Loaded) -> str:
    """Items that are read one by one are the same at every reading, and their source can be sent to a worker."""
    items = loaded.samples.items
    if isinstance(items, Tensor):
        raise NotAsked("its items are in memory")
    for i in (some := loaded.indices[:16]):
        if not torch.equal(items[i], items[i]):
            raise Broken(f"item {i} differs between readings; __getitem__ must be pure, chance belongs to `augment`")
    try:
        size = len(ForkingPickler.dumps(items))
    except Exception as error:
        raise Broken(f"their source cannot be sent to a worker: {errors.describe(error)}") from None
    return f"{len(some)} items; their source takes {size / 1024:.0f} KiB to send"


def is_scaled_for_a_network(loaded: Loaded) -> str:
    """In model units, (item - shift)/scale, the data are finite, of a standard deviation of about 1, and within the
    bounds that they claim."""
    x = Scaling.of(loaded.samples).to_model(loaded.items)
    if not bool(x.isfinite().all()):
        raise Broken("items hold NaN or infinite numbers")
    std, low, high = float(x.std(correction=0)), float(x.min()), float(x.max())
    bounds = loaded.samples.bounds
    if bounds is not None and not (low >= bounds[0] - 1e-5 and high <= bounds[1] + 1e-5):
        raise Broken(f"in model units they reach from {low:.3g} to {high:.3g}, beyond the bounds {bounds}")
    if len(x) > 1 and not SCALES[0] <= std <= SCALES[1]:
        raise Broken(f"their standard deviation is {std:.3g} in model units; {SCALES[0]} to {SCALES[1]} is due")
    return f"deviation {std:.2f}, from {low:.2f} to {high:.2f}{'' if bounds is None else f', bounds {bounds}'}"


def images_are_pixels(loaded: Loaded) -> str:
    """Items of 1, 3 or 4 channels, height and width are images, whose numbers are pixels from 0 to 255: pictures are
    written from them, and `Samples(..., **PIXELS)` scales them."""
    if len(loaded.samples.shape) != 3 or loaded.samples.shape[0] not in (1, 3, 4):
        raise NotAsked("its items are no images")
    low, high = float(loaded.items.min()), float(loaded.items.max())
    if not (low >= 0.0 and SMALLEST_PIXEL < high <= 255.0):
        raise Broken(f"they reach from {low:.3g} to {high:.3g}; give pixels from 0 to 255, and Samples(..., **PIXELS)")
    return f"from {low:g} to {high:g}"


def labels_name_classes(loaded: Loaded) -> str:
    """Labels are indices of classes whose names are unique, and no class is without items."""
    samples = loaded.samples
    if samples.labels is None:
        if samples.class_names:
            raise Broken(f"it names {len(samples.class_names)} classes, but has no labels")
        raise NotAsked("it has no labels")
    names = samples.class_names or tuple(map(str, range(int(samples.labels.max()) + 1)))
    if len(set(names)) < len(names):
        raise Broken("two classes have one name")
    counts = torch.bincount(samples.labels, minlength=len(names))
    if empty := [name for name, count in zip(names, counts.tolist(), strict=True) if count == 0]:
        raise Broken(f"no item is of class {empty[0]}")
    return f"{len(names)} classes of {int(counts.min())} to {int(counts.max())} items"


def augments_by_its_generator_alone(loaded: Loaded) -> str:
    """`augment` keeps shape and dtype, changes a batch in the same way for the same key, and not the batch itself."""
    augment = loaded.samples.augment
    if augment is None:
        raise NotAsked("it has no augmentation")
    batch = loaded.items[:64]
    before = batch.clone()
    a = augment(batch, generator(0, "law"))
    if not torch.equal(batch, before):
        raise Broken("augment() changed the batch in place: the data themselves would change from epoch to epoch")
    if a.shape != batch.shape or a.dtype != batch.dtype:
        raise Broken(f"augment() made {tuple(a.shape)} {a.dtype} of {tuple(batch.shape)} {batch.dtype}")
    if not torch.equal(a, augment(batch, generator(0, "law"))):
        raise Broken("augment() made two different batches with the same generator")
    return "the same twice"


def can_be_remembered(loaded: Loaded) -> str:
    """What a model file keeps of the data comes back from it, and items that are to be held out have names of their
    own."""
    facts = DataFacts.of(loaded.samples)
    try:
        back = DataFacts.read(facts.document())
    except ValueError as error:
        raise Broken(f"a model file could not give back {facts}: {error}") from None
    if back != facts:
        raise Broken(f"{facts} came back from a model file as {back}")
    ids = loaded.samples.item_ids
    if ids is not None and len(set(ids)) < len(ids):
        raise Broken("two items have one name in item_ids")
    return f"shape, scaling, bounds and {len(facts.class_names)} class names"


def suits_its_backbone(loaded: Loaded) -> str:
    """Its `default_backbone` is installed, and can be built for its items."""
    name = loaded.dataset.default_backbone
    backbone = make(registry().of_kind(Backbone, name), {})
    facts = DataFacts.of(loaded.samples)
    try:
        with torch.device("meta"):
            network = build_network(backbone, facts, Training())
    except UsageError as error:
        raise Broken(str(error)) from None
    return f"{name}, {sum(p.numel() for p in network.parameters()):,} parameters"


LAWS = (
    loads_what_it_says,
    repeats_itself,
    leaves_shared_generators_alone,
    items_are_read_alike_anywhere,
    is_scaled_for_a_network,
    images_are_pixels,
    labels_name_classes,
    augments_by_its_generator_alone,
    can_be_remembered,
    suits_its_backbone,
)


def seed_all(seed: int) -> None:
    """Put the generators that a program shares somewhere."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def positions() -> dict[str, str]:
    """Where they stand."""
    return {
        "torch": str(torch.get_rng_state().tolist()),
        "numpy": str(np.random.get_state(legacy=False)),
        "Python": str(random.getstate()),
    }


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are the same to the last bit, NaN included, which other laws find."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
