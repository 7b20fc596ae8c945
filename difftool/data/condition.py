"""Conditions: what a network may know of an item beside its noisy self."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from difftool.specs import ConditionSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """The conditions of a batch of items. Fields may be added; each is None where the data have none."""

    label: Tensor | None = None
    """The class of each item (B,), int64, from 0 on."""
    vector: Tensor | None = None
    """Numbers (B, D), float32, of mean 0 and deviation 1 over the training data."""
    image: Tensor | None = None
    """Images (B, C, H, W), float32 in model units, aligned with the items."""
    tokens: Tensor | None = None
    """Tokens (B, L, D), float32."""
    hidden: Tensor
    """The items whose condition the network must not use (B,), bool: all other fields are 0 there."""

    @classmethod
    def of_labels(cls, labels: Tensor, classes: int) -> Condition:
        """Return the condition of labels (B,), where `classes` itself stands for a hidden label."""
        hidden = labels == classes
        return cls(label=labels.masked_fill(hidden, 0), hidden=hidden)

    @classmethod
    def shown(cls, fields: Mapping[str, Tensor]) -> Condition | None:
        """Return the condition of fields by name, hidden for no item; None without any field."""
        if not fields:
            return None
        first = next(iter(fields.values()))
        return cls(**fields, hidden=torch.zeros(len(first), dtype=torch.bool, device=first.device))

    @classmethod
    def nothing(cls, count: int, spec: ConditionSpec, device: torch.device) -> Condition:
        """Return the condition of `count` items that are all hidden."""
        zeros = {name: torch.zeros(count, *shape, device=device) for name, shape in spec.shapes.items()}
        if "label" in zeros:
            zeros["label"] = zeros["label"].long()
        return cls(**zeros, hidden=torch.ones(count, dtype=torch.bool, device=device))

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        """Return the condition of some of the items."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Condition:
        """Return the condition on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def split(self, size: int) -> Iterator[Condition]:
        """Yield the conditions of so many items each; the last may be of fewer."""
        names, columns = zip(
            *((name, torch.split(tensor, size)) for name, tensor in self.tensors().items()), strict=True
        )
        for parts in zip(*columns, strict=True):
            yield Condition(**dict(zip(names, parts, strict=True)))

    def hide(self, items: Tensor) -> Condition:
        """Return the condition with these items (B,), bool, hidden as well."""
        zeroed = {name: t.masked_fill(items.view(-1, *(1,) * (t.ndim - 1)), 0) for name, t in self.fields().items()}
        return replace(self, **zeroed, hidden=self.hidden | items)

    def without(self, name: str) -> Condition | None:
        """Return the condition without a field; None if no other is there."""
        rest = {field: tensor for field, tensor in self.tensors().items() if field != name}
        return Condition(**rest) if len(rest) > 1 else None

    def class_index(self, classes: int) -> Tensor:
        """Return the labels (B,), with `classes` where they are hidden: the row of a table of classes + 1 embeddings.

        Raises `ValueError` if there are no labels.
        """
        if self.label is None:
            raise ValueError("this network was built with classes and needs labels")
        return torch.where(self.hidden, classes, self.label)

    def fields(self) -> dict[str, Tensor]:
        """Return the conditions that are there, by name, without `hidden`."""
        return {name: tensor for name, tensor in self.tensors().items() if name != "hidden"}

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are there, by name."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in values if value is not None}

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        return Condition(**{name: change(tensor) for name, tensor in self.tensors().items()})
