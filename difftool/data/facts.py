"""What a model must remember of its data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from difftool.data.samples import Samples, Scaling

LARGEST_UNIT = 1e30
"""Shift, scale and bounds in a file stay below this, or float32 would overflow."""
LARGEST_ITEM = 2**26
"""Numbers in an item: an image of 4096 x 4096 in four channels."""
MEASURED, DECODED = 1_000, 256
"""Items that the standard deviation of the data is measured from: of those in memory, and where each must be read."""
MOST_CLASSES, LONGEST_NAME = 10**5, 1_000


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a model must remember of its data. It travels with the weights."""

    shape: tuple[int, ...]
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    bounds: tuple[float, float] | None = None
    class_names: tuple[str, ...] = ()
    std: float = 1.0
    """Standard deviation in model units."""

    @classmethod
    def of(cls, samples: Samples) -> DataFacts:
        names = samples.class_names
        if samples.labels is not None and not names:
            names = tuple(str(i) for i in range(int(samples.labels.max()) + 1))
        _check_names(names)
        few, n = min(MEASURED if isinstance(samples.items, Tensor) else DECODED, len(samples)), len(samples)
        items, _ = samples.take([i * n // few for i in range(few)])
        if tuple(items.shape[1:]) != tuple(samples.shape):  # a source is asked here first
            raise ValueError(f"items are {tuple(items.shape[1:])}, but the shape says {tuple(samples.shape)}")
        std = float(Scaling.of(samples).to_model(items).std(correction=0))
        if not math.isfinite(std):
            raise ValueError("items hold NaN or infinite numbers")
        return cls(
            shape=tuple(samples.shape),
            shift=tuple(samples.shift),
            scale=tuple(samples.scale),
            bounds=samples.bounds,
            class_names=names if samples.labels is not None else (),
            std=round(std, 6) or 1.0,
        )

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def scaling(self) -> Scaling:
        return Scaling(self.shift, self.scale, self.is_image)

    @property
    def classes(self) -> int | None:
        return len(self.class_names) or None

    def document(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "shift": list(self.shift),
            "scale": list(self.scale),
            "bounds": None if self.bounds is None else list(self.bounds),
            "class_names": list(self.class_names),
            "std": self.std,
        }

    @classmethod
    def read(cls, document: Any) -> DataFacts:
        """From untrusted metadata. Raises `ValueError`."""
        import json
        from typing import Annotated

        import pydantic

        number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
        size = Annotated[int, pydantic.Field(ge=1, le=65_536)]
        model = pydantic.create_model(
            "DataFacts",
            __config__=pydantic.ConfigDict(strict=True, extra="ignore"),
            shape=(Annotated[tuple[size, ...], pydantic.Field(min_length=1, max_length=4)], ...),
            shift=(Annotated[tuple[number, ...], pydantic.Field(min_length=1, max_length=65_536)], ...),
            scale=(Annotated[tuple[number, ...], pydantic.Field(min_length=1, max_length=65_536)], ...),
            bounds=(tuple[number, number] | None, None),
            std=(Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)], 1.0),
            class_names=(
                Annotated[
                    tuple[Annotated[str, pydantic.Field(max_length=LONGEST_NAME)], ...],
                    pydantic.Field(max_length=MOST_CLASSES),
                ],
                (),
            ),
        )
        facts = cls(**model.model_validate_json(json.dumps(document)).model_dump())
        if not {len(facts.shift), len(facts.scale)} <= {1, facts.shape[0]}:
            raise ValueError("shift and scale must have one entry, or one for each channel")
        if math.prod(facts.shape) > LARGEST_ITEM:
            raise ValueError("an item has too many numbers")
        if (
            not all(1 / LARGEST_UNIT < scale < LARGEST_UNIT for scale in facts.scale)
            or max(map(abs, facts.shift)) > LARGEST_UNIT
        ):
            raise ValueError("shift and scale must be ordinary numbers, scale above 0")
        if facts.bounds is not None and not -LARGEST_UNIT < facts.bounds[0] < facts.bounds[1] < LARGEST_UNIT:
            raise ValueError("bounds must be a low and a high number")
        return facts


def _check_names(names: tuple[str, ...]) -> None:
    """Refuse names of classes that a file could not give back, before anything is trained. Raises `ValueError`."""
    if len(names) > MOST_CLASSES:
        raise ValueError(f"there are {len(names):,} classes; a model remembers at most {MOST_CLASSES:,}")
    for number, name in enumerate(names):
        if len(name) > LONGEST_NAME or any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(f"class {number} has a name that a model cannot remember")
