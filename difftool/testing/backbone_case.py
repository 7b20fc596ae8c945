"""A backbone with the shape of its items, which its laws build and train for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from difftool.components import Backbone
from difftool.data.condition import Condition
from difftool.specs import BackboneSpec, ConditionSpec
from difftool.testing.laws import Failed, Skipped, raised, size
from difftool.testing.toy_task import CLASSES, ToyTask, noise, predict, train

SHAPES: Sequence[tuple[int, ...]] = (
    *((2,), (3, 8, 8), (3, 16, 16), (3, 32, 32), (1, 8, 8), (1, 16, 16), (1, 28, 28), (1, 32, 32)),
    *((4, 32, 32), (3, 64, 64), (3, 128, 128)),
)
"""Shapes of items that are tried in turn."""
GOAL = 0.6
"""Loss of a network that has learned, relative to one that predicts 0."""


@dataclass(frozen=True)
class Case:
    """A backbone, and the shape of the items that it is checked with."""

    backbone: Backbone
    shape: tuple[int, ...]
    classes: int | None = CLASSES
    """Number of classes, or None for a backbone that refuses labels."""

    @property
    def spec(self) -> BackboneSpec:
        condition = ConditionSpec(classes=self.classes)
        return BackboneSpec(shape=self.shape, out_channels=self.shape[0], condition=condition)

    def build(self, spec: BackboneSpec | None = None, seed: int = 0) -> nn.Module:
        """Build the network from a seed. Raises `Failed` if it is not a module."""
        torch.manual_seed(seed)
        network = self.backbone.build(spec or self.spec)
        if not isinstance(network, nn.Module):
            raise Failed(f"build() returned a {type(network).__name__}, not a module")
        return network

    @cached_property
    def task(self) -> ToyTask:
        return ToyTask.of_shape(self.shape, self.classes)

    @cached_property
    def training(self) -> tuple[nn.Module, list[float]]:
        """The trained network, and its loss before, during and after training."""
        network = self.build()
        return network, train(network, self.task.noise_loss, GOAL)

    def labels(self, count: int) -> Condition | None:
        """Return the labels of all classes and "no class" in turn, or None for a backbone that refuses labels."""
        if self.classes is None:
            return None
        return Condition.of_labels(torch.arange(count) % (self.classes + 1), self.classes)

    def predict(self, x: Tensor, t: float | Tensor = 300.0) -> Tensor:
        """Return the output of the trained network for items of all classes and of none."""
        return predict(self.training[0], x, t, self.labels(len(x)))

    def reference(self, x: Tensor) -> Tensor:
        """Return the same output for comparisons. Raises `Skipped` if a second output differs from it."""
        output = self.predict(x)
        if not torch.equal(output, self.predict(x)):
            raise Skipped("its outputs differ from one call to the next")
        return output


def prepare(backbone: Backbone, *, shape: tuple[int, ...] | None = None) -> Case:
    """Choose the first shape that the network is built for and computes; else the first that it is built for.

    Raises `Failed` if it is built for none.
    """
    built: list[Case] = []
    reasons: list[str] = []
    for candidate in SHAPES if shape is None else (shape,):
        try:
            case = case_of(backbone, candidate)
        except Exception as error:
            reasons.append(f"{size(candidate)}: {error if isinstance(error, (ValueError, Failed)) else raised(error)}")
            continue
        built.append(case)
        try:
            predict(case.build(), noise(case.spec, 2), 500.0, case.labels(2))
        except Exception:
            continue
        return case
    if built:  # the laws will say why it computes nothing
        return built[0]
    advice = "" if shape else "; name one that fits by --shape, or check_backbone(..., shape=...)"
    raise Failed(f"it accepts none of the shapes tried ({'; '.join(reasons)}){advice}")


def case_of(backbone: Backbone, shape: tuple[int, ...]) -> Case:
    """Return a case with labels, or without if the backbone refuses labels. Raises `ValueError` for a refused shape."""
    with contextlib.suppress(ValueError):
        (case := Case(backbone, shape)).build()
        return case
    (case := Case(backbone, shape, classes=None)).build()
    return case
