"""The facts about its data that a model needs, which travel with the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from difftool.data.samples import Samples, Scaling
from difftool.errors import printable, shortened

LARGEST_UNIT = 1e30
"""The limit for shift, scale and bounds in a file, so that float32 does not overflow."""
LARGEST_ITEM = 2**26
"""The largest number of values in an item: an image of 4096 x 4096 in four channels."""
MEASURED, DECODED = 1_000, 256
"""The number of items from which the standard deviation is measured: in memory, and if each must be decoded."""
MOST_CLASSES, LONGEST_NAME = 10**5, 1_000
LISTED, LONGEST_LISTED = 4, 40
"""The number of classes that a message names, and the characters of a name."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The facts about its data that a model needs."""

    shape: tuple[int, ...]
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    bounds: tuple[float, float] | None = None
    class_names: tuple[str, ...] = ()
    std: float = 1.0
    """The standard deviation in model units."""

    @classmethod
    def of(cls, samples: Samples) -> DataFacts:
        """Measure the facts of samples. Raises `ValueError` for items or names that cannot be used."""
        names = samples.class_names
        if samples.labels is not None and not names:
            names = tuple(str(i) for i in range(int(samples.labels.max()) + 1))
        _check_names(names)
        n = len(samples)
        measured = min(n, MEASURED if isinstance(samples.items, Tensor) else DECODED)
        items, _ = samples.take([i * n // measured for i in range(measured)])
        if tuple(items.shape[1:]) != tuple(samples.shape):  # the first items of a source that are read
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

    @property
    def classes_text(self) -> str:
        """The classes in words, such as `10 classes: 0, 1, 2, ... 9`; an empty text if there are none."""
        return classes_text(self.class_names)

    def document(self) -> dict[str, Any]:
        """Return the facts as plain values, which `read` takes."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def read(cls, document: Any) -> DataFacts:
        """Check facts from untrusted metadata. Raises `ValueError`."""
        import json
        from typing import Annotated

        from pydantic import ConfigDict, Field, FiniteFloat, create_model

        name = Annotated[str, Field(max_length=LONGEST_NAME)]
        units = Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=65_536)]
        model = create_model(
            "DataFacts",
            __config__=ConfigDict(strict=True, extra="ignore"),
            shape=Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(min_length=1, max_length=4)],
            shift=units,
            scale=units,
            bounds=(tuple[FiniteFloat, FiniteFloat] | None, None),
            std=(Annotated[FiniteFloat, Field(gt=0)], 1.0),
            class_names=(Annotated[tuple[name, ...], Field(max_length=MOST_CLASSES)], ()),
        )
        facts = cls(**model.model_validate_json(json.dumps(document)).model_dump())
        if not {len(facts.shift), len(facts.scale)} <= {1, facts.shape[0]}:
            raise ValueError("shift and scale must have one entry, or one for each channel")
        if math.prod(facts.shape) > LARGEST_ITEM:
            raise ValueError("an item has too many numbers")
        ordinary = all(1 / LARGEST_UNIT < scale < LARGEST_UNIT for scale in facts.scale)
        if not ordinary or max(map(abs, facts.shift)) > LARGEST_UNIT:
            raise ValueError("shift and scale must be ordinary numbers, scale above 0")
        if facts.bounds is not None and not -LARGEST_UNIT < facts.bounds[0] < facts.bounds[1] < LARGEST_UNIT:
            raise ValueError("bounds must be a low and a high number")
        return facts


def classes_text(names: Sequence[str], most: int = LISTED) -> str:
    """Return classes in words: their number, and at most this many names, of which one is the last."""
    if not names:
        return ""
    listed = [shortened(printable(name), LONGEST_LISTED) for name in (*names[: most - 1], *names[most - 1 :][-1:])]
    if len(names) > most:
        listed[-1] = f"... {listed[-1]}"
    return f"{len(names):,} {'class' if len(names) == 1 else 'classes'}: {', '.join(listed)}"


def _check_names(names: tuple[str, ...]) -> None:
    """Refuse class names that `DataFacts.read` would refuse, before anything is trained. Raises `ValueError`."""
    if len(names) > MOST_CLASSES:
        raise ValueError(f"there are {len(names):,} classes; a model file holds at most {MOST_CLASSES:,}")
    for number, name in enumerate(names):
        if len(name) > LONGEST_NAME or any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(f"class {number} has a name that a model file cannot hold")
