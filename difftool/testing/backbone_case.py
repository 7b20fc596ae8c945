"""A backbone with the shape of its items, which its laws build and train for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from difftool.components import Backbone
from difftool.data.condition import Condition
from difftool.specs import BackboneSpec, ConditionSpec
from difftool.testing.laws import Failed, Skipped, raised, size
from difftool.testing.toy_task import CLASSES, ToyTask, condition_of, noise, predict, train

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
    condition: ConditionSpec
    """The conditions that it declares and takes."""

    @property
    def spec(self) -> BackboneSpec:
        return BackboneSpec(shape=self.shape, out_channels=self.shape[0], condition=self.condition)

    def build(self, spec: BackboneSpec | None = None, seed: int = 0) -> nn.Module:
        """Build the network from a seed. Raises `Failed` if it is not a module."""
        torch.manual_seed(seed)
        network = self.backbone.build(spec or self.spec)
        if not isinstance(network, nn.Module):
            raise Failed(f"build() returned a {type(network).__name__}, not a module")
        return network

    @cached_property
    def task(self) -> ToyTask:
        return ToyTask.of_shape(self.shape, self.condition)

    @cached_property
    def training(self) -> tuple[nn.Module, list[float]]:
        """The trained network, and its loss before, during and after training."""
        network = self.build()
        return network, train(network, self.task.noise_loss, GOAL)

    def learned(self, field: str) -> tuple[nn.Module, ConditionSpec]:
        """Return a network that was trained to use a field, and the conditions that it takes: it alone, if it can be.

        Raises `Skipped` if the backbone does not take the field.
        """
        if field not in self.condition.shapes:
            raise Skipped(f"it declares no {field}")
        if field not in self._learned:
            try:
                network = self.build(replace(self.spec, condition=(condition := self.condition.only([field]))))
            except ValueError:  # it needs others too
                network = self.build(replace(self.spec, condition=(condition := self.condition)))
            goal = 0.3 * float(self.task.patterns.var(0, correction=0).mean())
            train(network, partial(self.task.pattern_loss, condition=condition, field=field), goal)
            self._learned[field] = network, condition
        return self._learned[field]

    @cached_property
    def _learned(self) -> dict[str, tuple[nn.Module, ConditionSpec]]:
        return {}

    def conditions(self, count: int) -> Condition | None:
        """Return the conditions of all classes and hidden ones in turn, or None for a backbone that takes none."""
        return condition_of(self.condition, torch.arange(count) % (CLASSES + 1))

    def predict(self, x: Tensor, t: float | Tensor = 300.0) -> Tensor:
        """Return the output of the trained network for items of all classes and of none."""
        return predict(self.training[0], x, t, self.conditions(len(x)))

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
            predict(case.build(), noise(case.spec, 2), 500.0, case.conditions(2))
        except Exception:
            continue
        return case
    if built:  # the laws will say why it computes nothing
        return built[0]
    advice = "" if shape else "; name one that fits by --shape, or check_backbone(..., shape=...)"
    raise Failed(f"it accepts none of the shapes tried ({'; '.join(reasons)}){advice}")


def case_of(backbone: Backbone, shape: tuple[int, ...]) -> Case:
    """Return a case with the conditions that the backbone declares, but for those that its options rule out.

    Raises `ValueError` for a refused shape.
    """
    whole = some_conditions(shape).only(backbone.conditions)
    with contextlib.suppress(ValueError):
        (case := Case(backbone, shape, whole)).build()
        return case
    taken = []
    for name in whole.shapes:
        with contextlib.suppress(ValueError):
            Case(backbone, shape, whole.only([name])).build()
            taken.append(name)
    (case := Case(backbone, shape, whole.only(taken))).build()
    return case


def some_conditions(shape: tuple[int, ...]) -> ConditionSpec:
    """Return conditions of every kind that items of this shape can have."""
    image = (2, shape[1], shape[2]) if len(shape) == 3 else None
    return ConditionSpec(classes=CLASSES, vector=2, image=image, tokens=(4, 3))
