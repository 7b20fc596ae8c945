"""The laws of features, checked with a few items of the first common shape that the features take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from difftool.components import Features
from difftool.data.forms import Form
from difftool.data.samples import PIXELS, Samples
from difftool.errors import DifftoolError, UsageError, one_line
from difftool.evaluation.views import View, features_view
from difftool.rng import generator
from difftool.testing.laws import Failed, Skipped, gap, largest, require, size

SHAPES: tuple[tuple[tuple[int, ...], Form], ...] = (
    ((2,), "points"),
    ((1, 8, 8), "image"),
    ((3, 8, 8), "image"),
    ((3, 32, 32), "image"),
    ((3, 64, 64), "image"),
    ((1, 64), "series"),
    ((3, 4, 8, 8), "film"),
    ((3, 16), "cloud"),
)
COUNT, CLASSES = 48, 3
ROUNDING = 1e-3
"""Rounding error of float32, relative to the largest feature."""


@dataclass(frozen=True)
class Case:
    """Features built for a few items."""

    component: Features
    samples: Samples
    view: View

    @classmethod
    def of(cls, component: Features) -> Case:
        """Build the features for the first shape that they take. Raises `Failed`, and `Skipped` without what they need.

        A lack, such as of weights, is told by a `DifftoolError`, and data that do not fit by a `ValueError`.
        """
        reason = ""
        for shape, form in SHAPES:
            samples = some_samples(shape, form)
            try:
                return cls(component, samples, built(component, samples))
            except UsageError as error:
                reason = one_line(error)
            except DifftoolError as error:
                if error.__cause__ is not None:  # an exception of the features' own code
                    raise Failed(one_line(error)) from None
                raise Skipped(one_line(error)) from None
        raise Failed(f"it takes no items of a common shape ({reason})")

    @property
    def items(self) -> Tensor:
        return self.samples.take_items(range(COUNT))

    @property
    def rows(self) -> Tensor:
        return self.view(self.items)


def built(component: Features, samples: Samples) -> View:
    """Return the view of features that are built anew."""
    return features_view(component, samples, device=torch.device("cpu"), keep=False)


def some_samples(shape: tuple[int, ...], form: Form) -> Samples:
    """Return labelled items of which each is a pattern of its class, and noise."""
    labels = torch.arange(COUNT) % CLASSES
    patterns = torch.randn(CLASSES, *shape, generator=generator(0, "law"))
    x = patterns[labels] + 0.3 * torch.randn(COUNT, *shape, generator=generator(1, "law"))
    facts: dict[str, Any] = {"shape": shape, "labels": labels, "class_names": ("a", "b", "c")}
    if form in ("image", "film"):
        pixels = (x * 40 + 127.5).round().clamp(0, 255).to(torch.uint8)
        return Samples(items=pixels, **{**PIXELS, "form": form}, **facts)
    return Samples(items=3.0 * x + 1.0, shift=(1.0,), scale=(3.0,), form=form, **facts)


def gives_a_finite_row_for_each_item(case: Case) -> str:
    """For B items it returns float32 rows (B, D) of finite numbers, with the same D for every B."""
    rows = case.rows  # a view checks the shape, the type and the numbers
    one = case.view(case.items[:1])
    require(rows.shape[1] >= 1, "its rows hold no numbers")
    require(one.shape == (1, rows.shape[1]), f"one item gives {tuple(one.shape)}, and {COUNT} {tuple(rows.shape)}")
    return f"{rows.shape[1]:,} numbers of an item of {size(case.samples.shape)}"


def treats_each_item_by_itself(case: Case) -> str:
    """The row of an item is the same, but for rounding, whichever items come with it and in whatever order."""
    rows, order = case.rows, torch.randperm(COUNT, generator=generator(2, "law"))
    parts = [case.view(case.items[part]) for part in (order[:1], order[1:8], order[8:])]
    error = gap(torch.cat(parts), rows[order]) / max(largest(rows), 1e-30)
    require(error <= ROUNDING, f"rows change by {error:.2g} of the largest number with the other items of the batch")
    return f"{error:.1g} off"


def is_the_same_each_time(case: Case) -> str:
    """Built again for the same data, it gives the same rows, whatever the global random state is."""
    rows = case.rows
    torch.manual_seed(1)
    again = built(case.component, case.samples)
    torch.manual_seed(2)
    require(
        bool((again(case.items) == rows).all()), f"the second time, rows are {gap(again(case.items), rows):.2g} off"
    )
    return "equal"


def tells_items_apart(case: Case) -> str:
    """Items that differ have rows that differ."""
    rows = case.rows
    distances = torch.cdist(rows, rows) + torch.diag(torch.full((COUNT,), float("inf")))
    equal = int((distances.min(dim=1).values == 0).sum())
    require(equal < COUNT // 2, f"{equal} of {COUNT} different items have the row of another one")
    return f"{COUNT - equal} of {COUNT} rows"


def takes_pixels_of_any_type(case: Case) -> str:
    """Items as uint8 and as float32 in the same units have the same rows, since data and samples differ in type."""
    if case.items.is_floating_point():
        raise Skipped("its items are no pixels")
    rows = case.rows
    error = gap(case.view(case.items.float()), rows) / max(largest(rows), 1e-30)
    require(error <= ROUNDING, f"the rows of float32 items are {error:.2g} of the largest number off those of uint8")
    return f"{error:.1g} off"


Law = Callable[[Case], str]
LAWS: tuple[Law, ...] = (
    gives_a_finite_row_for_each_item,
    treats_each_item_by_itself,
    is_the_same_each_time,
    tells_items_apart,
    takes_pixels_of_any_type,
)
