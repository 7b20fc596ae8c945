"""The facts about its data that a model needs, which travel with the weights."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from difftool.data.forms import Form, form_of
from difftool.data.samples import Samples, Scaling
from difftool.data.tensors import check_finite
from difftool.errors import printable, shortened
from difftool.files import parse_json
from difftool.specs import ConditionSpec

LARGEST_UNIT = 1e30
"""The limit for shift, scale and bounds in a file, so that float32 does not overflow."""
LARGEST_ITEM = 2**26
"""The largest number of values in an item: an image of 4096 x 4096 in four channels."""
MEASURED, DECODED = 1_000, 256
"""The number of items from which the standard deviation is measured: in memory, and if each must be decoded."""
MEASURED_NUMBERS = 2**25
"""The largest number of values from which the standard deviation is measured, unless one item has more."""
MOST_AXES, MOST_UNITS = 16, 2**19
"""The largest numbers of axes of an item, and of entries of shift and scale."""
MOST_CLASSES, LONGEST_NAME = 10**5, 1_000
LONGEST_TEXT = 8 * 2**20
"""The largest size of the facts in the header of a model file, which holds at most twice as much."""
DEVIATIONS = (0.1, 10.0)
"""The range of the standard deviation in model units that suits networks."""
SMALLEST_BOUNDED = 0.01
"""The smallest standard deviation of data with bounds: that of pixels from 0 to 1 taken for 0 to 255 is far smaller."""
LARGEST_MEAN = 10.0
"""The largest mean in model units, in either direction, that suits networks."""
DIGITS = 8
"""Data deviate from their mean by at least this many steps of their floating-point type, or have lost their shape."""
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
    form: Form | None = None
    """The meaning of the numbers; by default, one axis makes points and more axes an array."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "form", form_of(self.form, self.shape))

    @classmethod
    def of(cls, samples: Samples) -> DataFacts:
        """Measure the facts of samples, and warn of a scaling that no network learns from.

        Raises `ValueError` for data that cannot be used, and for what a model file could not hold.
        """
        names, labels = samples.class_names, samples.labels
        count = len(names) or (0 if labels is None else int(labels.max()) + 1)
        if count > MOST_CLASSES:
            raise ValueError(f"there are {count:,} classes; a model file holds at most {MOST_CLASSES:,}")
        names = names or tuple(map(str, range(count)))
        _check_names(names)
        n = len(samples)
        most = MEASURED if isinstance(samples.items, Tensor) else DECODED
        measured = max(1, min(n, most, MEASURED_NUMBERS // math.prod(samples.shape)))
        items, _ = samples.take([i * n // measured for i in range(measured)])
        if tuple(items.shape[1:]) != samples.shape:  # the first items of a source that are read
            raise ValueError(f"items are {tuple(items.shape[1:])}, but the shape says {samples.shape}")
        check_finite(samples.items if isinstance(samples.items, Tensor) else items)
        _check_digits(items)
        x = Scaling.of(samples).to_model(items)
        std, mean = (float(moment) for moment in torch.std_mean(x, correction=0))
        if not math.isfinite(std):
            raise ValueError("items hold numbers too large for float32; give scale=")
        _check_scaling(mean, std, len(x), bounded=samples.bounds is not None)
        _check_bounds(x, samples.bounds)
        if samples.is_image and samples.shape[0] > 4 >= samples.shape[2]:
            what = f"images of shape {samples.shape} have {samples.shape[0]} channels"
            warnings.warn(f"{what}, since channels come first; permute(0, 3, 1, 2) puts them there", stacklevel=2)
        facts = cls(
            shape=samples.shape,
            shift=samples.shift,
            scale=samples.scale,
            bounds=samples.bounds,
            class_names=() if labels is None else names,
            std=round(std, 6) or 1.0,
            form=samples.form,
        )
        try:
            return cls.read(parse_json(facts._text()))
        except ValueError as error:
            raise ValueError(f"no model file could describe these data: {error}") from None

    @property
    def is_points(self) -> bool:
        return self.form == "points"

    @property
    def is_image(self) -> bool:
        return self.form == "image"

    @property
    def words(self) -> str:
        """The data in words: `images of 3x32x32`, `points of 2`, `arrays of 2x8x8`."""
        noun = {"image": "images", "array": "arrays"}.get(str(self.form), self.form)
        return f"{noun} of {'x'.join(map(str, self.shape))}"

    @property
    def scaling(self) -> Scaling:
        return Scaling(self.shift, self.scale)

    @property
    def classes(self) -> int | None:
        return len(self.class_names) or None

    @property
    def condition(self) -> ConditionSpec:
        """The conditions that come with every item."""
        return ConditionSpec(classes=self.classes)

    @property
    def classes_text(self) -> str:
        """The classes in words, such as `10 classes: 0, 1, 2, ... 9`; an empty text if there are none."""
        return classes_text(self.class_names)

    def document(self) -> dict[str, Any]:
        """Return the facts as plain values, which `read` takes."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    def _text(self) -> str:
        """Return the facts as JSON. Raises `ValueError` if they are too long for a file."""
        text = json.dumps(self.document())
        if len(json.dumps(json.dumps(text))) > LONGEST_TEXT:  # a header quotes the text twice
            raise ValueError("shift, scale and class names are too long for a model file")
        return text

    @classmethod
    def read(cls, document: Any) -> DataFacts:
        """Check facts from untrusted metadata. Raises `ValueError`."""
        from typing import Annotated

        from pydantic import ConfigDict, Field, FiniteFloat, ValidationError, create_model

        name = Annotated[str, Field(max_length=LONGEST_NAME)]
        units = Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=MOST_UNITS)]
        side = Annotated[int, Field(ge=1, le=LARGEST_ITEM)]
        model = create_model(
            "DataFacts",
            __config__=ConfigDict(strict=True, extra="ignore"),
            shape=Annotated[tuple[side, ...], Field(min_length=1, max_length=MOST_AXES)],
            shift=units,
            scale=units,
            bounds=(tuple[FiniteFloat, FiniteFloat] | None, None),
            std=(Annotated[FiniteFloat, Field(gt=0)], 1.0),
            class_names=(Annotated[tuple[name, ...], Field(max_length=MOST_CLASSES)], ()),
            form=(Form, ...),
        )
        try:
            facts = cls(**model.model_validate_json(json.dumps(document)).model_dump())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
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
    if len(set(names)) < len(names):
        raise ValueError("two classes have the same name")
    for number, name in enumerate(names):
        if len(name) > LONGEST_NAME or any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(f"class {number} has a name that a model file cannot hold")


def _check_digits(items: Tensor) -> None:
    """Raise `ValueError` for floats (n, C, ...) so far from 0 that their type cannot tell them apart."""
    if not items.is_floating_point() or len(items) < 2:
        return
    eps = torch.finfo(items.dtype).eps
    axes = [axis for axis in range(items.ndim) if axis != 1]
    std, mean = torch.std_mean(items.to(torch.float64), dim=axes, correction=0)
    lost = (std > 0) & (std < DIGITS * eps * mean.abs())
    if bool(lost.any()):
        channel, dtype = int(lost.int().argmax()), str(items.dtype).removeprefix("torch.")
        cure = "subtract their mean first" if items.dtype == torch.float64 else "give them as float64"
        raise ValueError(
            f"channel {channel} of the items deviates by {std[channel]:.2g} from its mean {mean[channel]:.6g}, "
            f"less than {dtype} can hold; {cure}"
        )


def _check_scaling(mean: float, std: float, count: int, *, bounded: bool) -> None:
    """Warn of data whose mean and deviation in model units no network learns from. Images may well be dark."""
    low, high = DEVIATIONS
    low = SMALLEST_BOUNDED if bounded else low
    if abs(mean) <= LARGEST_MEAN and (low <= std <= high or count == 1 or std == 0.0):
        return
    warnings.warn(
        f"in model units, (item - shift) / scale, the data have mean {mean:.3g} and standard deviation {std:.3g}, but "
        "networks learn from about 0 and 1; scale them by difftool.points(), or by shift= and scale= of Samples",
        stacklevel=3,
    )


def _check_bounds(x: Tensor, bounds: tuple[float, float] | None) -> None:
    """Warn of data beyond their bounds, which no samples will reach."""
    if bounds is None:
        return
    low, high, room = float(x.min()), float(x.max()), (bounds[1] - bounds[0]) / 100
    if low < bounds[0] - room or high > bounds[1] + room:
        warnings.warn(
            f"in model units, the data reach from {low:.3g} to {high:.3g}, beyond their bounds {bounds}, to which "
            "samples are clipped",
            stacklevel=3,
        )
