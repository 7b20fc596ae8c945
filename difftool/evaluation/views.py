"""Views of items: the rows (N, D) that metrics compare, which are features of the items, or the items themselves."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difftool.components import Features, Metric
from difftool.data.samples import Samples, fingerprint
from difftool.errors import DifftoolError, UsageError, blaming
from difftool.files import atomic
from difftool.plugins.build import cache_folder
from difftool.runs.recipe import component_table, plugins_of
from difftool.specs import FeaturesSpec
from difftool.version import __version__

FEATURES, ITEMS, MODEL = "features", "items", "model"
"""The things that metrics compare, as `Metric.needs` names them."""
BATCH, BATCH_NUMBERS = 512, 2**21
"""The largest numbers of items, and of numbers in them, whose features are computed at once."""

WORTH_KEEPING = 1.0
"""The seconds from which on the rows of data are kept in the cache."""

Watch = Callable[[int, int], object]
"""Called with the numbers of items that are done, and of all."""


class View:
    """A function that turns items in data units into rows, on the CPU."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor], device: torch.device, key: str = "") -> None:
        self.name, self.function, self.device = name, function, device
        self.facts: Mapping[str, Any] = dict(getattr(function, "facts", {}))
        """The facts that the function tells of itself, such as the digest of its weights."""
        self.key = key
        """A text that changes with the function; empty for one that is not worth a cache, or has no such text."""

    @torch.no_grad()
    def __call__(self, items: Tensor) -> Tensor:
        """Return the rows (B, D) of items (B, *shape), float32 on the CPU. Raises `DifftoolError`."""
        with blaming(self.name):
            rows = self.function(items.to(self.device))
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(items) or rows.dtype != torch.float32:
            what = f"{tuple(rows.shape)}, {rows.dtype}" if isinstance(rows, Tensor) else type(rows).__name__
            raise DifftoolError(f"{self.name}: returned {what} for {len(items)} items, not float32 rows (B, D)")
        rows = rows.cpu()
        if not bool(rows.isfinite().all()):
            raise DifftoolError(f"{self.name}: are not finite")
        return rows

    def of_data(self, samples: Samples, watch: Watch | None = None) -> Tensor:
        """Return the rows (N, D) of data, from the cache if they are there."""
        path = None if not self.key else _cache_file(self.key, samples)
        rows = None if path is None else _read(path, len(samples))
        if rows is None:
            start = time.perf_counter()
            rows = self._of_items(samples, watch)
            if path is not None and time.perf_counter() - start >= WORTH_KEEPING:
                _write(path, rows)
        return rows

    def _of_items(self, samples: Samples, watch: Watch | None) -> Tensor:
        n = len(samples)
        size = max(1, min(BATCH, BATCH_NUMBERS // math.prod(samples.shape)))
        rows = torch.empty(0)
        for first in range(0, n, size):
            part = self(samples.take_items(range(first, min(first + size, n))))
            rows = torch.empty(n, part.shape[1]) if first == 0 else rows
            rows[first : first + len(part)] = part
            if watch is not None:
                watch(first + len(part), n)
        return rows


def views_for(
    metrics: Collection[Metric],
    features: Features,
    train: Samples,
    *,
    device: torch.device,
    seed: int = 0,
    features_too: bool = False,
) -> dict[str, View]:
    """Return the views that metrics compare, by `Metric.needs`, and with `features_too` the features in any case.

    `train` are the items that features are fitted on.

    Raises `UsageError` if the data do not suit the features, and `DifftoolError` if something is missing for them.
    """
    needs, views = {metric.needs for metric in metrics}, dict[str, View]()
    if FEATURES in needs or features_too:
        views[FEATURES] = features_view(features, train, device=device, seed=seed)
    if ITEMS in needs:
        scaling = train.scaling
        views[ITEMS] = View(ITEMS, lambda items: scaling.to_model(items).flatten(1), torch.device("cpu"))
    return views


def rows_of(
    views: Mapping[str, View],
    parts: Mapping[str, Samples],
    features_of: Mapping[str, Samples],
    watch: Watch | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Return the rows of parts of the data by part and view, and of some parts the features alone.

    A part that appears twice is computed once. `watch` is called with the numbers of items that are done, and of all.
    """
    wanted = [(name, view, part) for view in views for name, part in parts.items()]
    wanted += [(name, FEATURES, part) for name, part in features_of.items()]
    counts = {(view, id(part)): len(part) for _, view, part in wanted}
    known: dict[tuple[str, int], Tensor] = {}
    found: dict[str, dict[str, Tensor]] = {name: {} for name, _, _ in wanted}
    for name, view, part in wanted:
        key = view, id(part)
        if key not in known:
            before = sum(counts[other] for other in known)
            told = None if watch is None else partial(_told, watch, before, sum(counts.values()))
            known[key] = views[view].of_data(part, told)
        found[name][view] = known[key]
    return found


def _told(watch: Watch, before: int, total: int, done: int, _count: int) -> None:
    watch(before + done, total)


def features_view(
    features: Features, train: Samples, *, device: torch.device, seed: int = 0, keep: bool = True
) -> View:
    """Return the view of features. Without `keep`, nothing is read from the cache or written into it.

    Raises `UsageError` and `DifftoolError`.
    """
    name = f"features {features.name}"
    check_requirements(features)
    data = data_key(train) if keep else None
    own = [component_table(features), plugins_of([features]), device.type, seed, train.class_names]
    key = "" if data is None else json.dumps([__version__, own, data], default=str)
    spec = FeaturesSpec(
        shape=train.shape,
        form=str(train.form),
        class_names=train.class_names,
        device=device,
        seed=seed,
        cache=None if (folder := cache_folder()) is None or not key else folder / "features" / _digest(key),
    )
    with blaming(name, refusal=UsageError):
        function = features.build(spec, train)
    if not callable(function):
        raise DifftoolError(f"{name}: build() returned a {type(function).__name__}, not a function of items")
    view = View(name, function, device)
    view.key = f"{key} {json.dumps(view.facts, default=str)}" if key else ""
    return view


def check_requirements(features: Features) -> None:
    """Raise `DifftoolError` if a module that features need is not installed."""
    from importlib.util import find_spec

    missing = [package for module, package in features.requires.items() if find_spec(module) is None]
    if missing:
        raise DifftoolError(f"features {features.name}: need what is not installed; pip install {missing[0]}")


# --- the cache --------------------------------------------------------------------------------------------------------


def data_key(samples: Samples) -> str | None:
    """Return a text that changes with the items, their classes and their scaling, or None for a source without one."""
    facts: list[Any] = [list(samples.shift), list(samples.scale), samples.form, fingerprint(samples)]
    sha = hashlib.sha256(json.dumps(facts).encode())
    if isinstance(samples.items, Tensor):
        sha.update(samples.items.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    elif not samples.fingerprint or samples.item_ids is None:
        return None
    else:
        sha.update(json.dumps(list(samples.item_ids)).encode())
    if samples.labels is not None:
        sha.update(samples.labels.numpy().data)
    return sha.hexdigest()


def _cache_file(key: str, samples: Samples) -> Path | None:
    """Return the file for the rows of data, or None if the user has no cache or the data no key."""
    folder, data = cache_folder(), data_key(samples)
    if folder is None or data is None:
        return None
    return folder / "features" / f"{_digest(f'{key} {data}')}.npy"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path, count: int) -> Tensor | None:
    """Return the rows in a file of the cache, or None if there is none that holds so many."""
    try:
        array = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(array, np.ndarray) and array.ndim == 2 and len(array) == count and array.dtype == np.float32
    return torch.from_numpy(array) if fits and bool(np.isfinite(array).all()) else None


def _write(path: Path, rows: Tensor) -> None:
    """Write rows to a file of the cache. Without room for it, they are computed again next time."""
    try:
        with atomic(path) as temporary:
            np.save(temporary, rows.numpy(), allow_pickle=False)
    except DifftoolError:
        return


Rows = Mapping[str, Tensor]
"""The rows of items by the view, such as `features`."""
