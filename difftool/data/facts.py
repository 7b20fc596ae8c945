"""The facts about its data that a model needs, which travel with the weights."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from difftool.data.columns import check_column_names, check_columns_finite
from difftool.data.condition import Condition
from difftool.data.forms import LARGEST_RATE, NOUNS, UNITS_OF_RATE, Form, OfForm, form_of, rate_of
from difftool.data.measures import (
    DECODED,
    MEASURED,
    MEASURED_NUMBERS,
    check_bounds,
    check_digits,
    check_scaling,
    vector_moments,
)
from difftool.data.samples import PIXELS, Samples
from difftool.data.scaling import Scaling
from difftool.data.tensors import check_finite
from difftool.errors import printable, shortened
from difftool.files import parse_json
from difftool.specs import ConditionSpec

LARGEST_UNIT = 1e30
"""The limit for shift, scale and bounds in a file, so that float32 does not overflow."""
LARGEST_ITEM = 2**26
"""The largest number of values in an item: an image of 4096 x 4096 in four channels."""
MOST_AXES, MOST_UNITS = 16, 2**19
"""The largest numbers of axes of an item, and of entries of shift and scale."""
MOST_CLASSES, LONGEST_NAME = 10**5, 1_000
MOST_CHANNELS, LONGEST_VECTOR, MOST_TOKENS = 2**10, 2**14, 2**16
"""The largest numbers of channels of a condition image, of numbers in a vector or a token, and of tokens."""
LONGEST_TEXT = 8 * 2**20
"""The largest size of the facts in the header of a model file, which holds at most twice as much."""
UNCONDITIONAL = ConditionSpec()
LISTED, LONGEST_LISTED = 4, 40
"""The number of classes that a message names, and the characters of a name."""


@dataclass(frozen=True, kw_only=True)
class DataFacts(OfForm):
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
    rate: float | None = None
    """The rate of sound in Hz, or of films in frames a second; None for all other forms."""
    condition: ConditionSpec = UNCONDITIONAL
    """The conditions that come with every item. The class names give the number of classes."""
    vector_shift: tuple[float, ...] = ()
    """The mean of each number of the vector; empty for zeros."""
    vector_scale: tuple[float, ...] = ()
    """The standard deviation of each number of the vector; empty for ones."""
    column_names: tuple[str, ...] = ()
    """The names of the coordinates of points; empty if they have none."""

    def __post_init__(self) -> None:
        form = form_of(self.form, self.shape)
        object.__setattr__(self, "form", form)
        object.__setattr__(self, "rate", rate_of(form, self.rate))
        object.__setattr__(self, "condition", replace(self.condition, classes=self.classes))

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
        _check_names(names, "class")
        _check_names(samples.column_names, "column")
        n = len(samples)
        most = MEASURED if isinstance(samples.items, Tensor) else DECODED
        measured = max(1, min(n, most, MEASURED_NUMBERS // math.prod(samples.shape)))
        items = samples.take_items([i * n // measured for i in range(measured)])
        if tuple(items.shape[1:]) != samples.shape:  # the first items of a source that are read
            raise ValueError(f"items are {tuple(items.shape[1:])}, but the shape says {samples.shape}")
        check_finite(samples.items if isinstance(samples.items, Tensor) else items)
        check_digits(items)
        x = samples.scaling.to_model(items)
        std, mean = (float(moment) for moment in torch.std_mean(x, correction=0))
        if not math.isfinite(std):
            raise ValueError("items hold numbers too large for float32; give scale=")
        check_scaling(mean, std, len(x), bounded=samples.bounds is not None)
        check_bounds(x, samples.bounds)
        if samples.is_image and samples.shape[0] > 4 >= samples.shape[2]:
            what = f"images of shape {samples.shape} have {samples.shape[0]} channels"
            warnings.warn(f"{what}, since channels come first; permute(0, 3, 1, 2) puts them there", stacklevel=2)
        check_columns_finite(samples.columns)
        condition, (vector_shift, vector_scale) = _condition_of(samples), vector_moments(samples)
        facts = cls(
            shape=samples.shape,
            shift=samples.shift,
            scale=samples.scale,
            bounds=samples.bounds,
            class_names=() if labels is None else names,
            std=round(std, 6) or 1.0,
            form=samples.form,
            rate=samples.rate,
            condition=condition,
            vector_shift=vector_shift,
            vector_scale=vector_scale,
            column_names=samples.column_names,
        )
        try:
            return cls.read(parse_json(facts._text()))
        except ValueError as error:
            raise ValueError(f"no model file could describe these data: {error}") from None

    @property
    def words(self) -> str:
        """The data in words: `images of 3x32x32`, `points of 2`, `sounds of 1x8192 at 16000 Hz`."""
        form = form_of(self.form, self.shape)
        rate = "" if self.rate is None else f" at {self.rate:g} {UNITS_OF_RATE[form]}"
        return f"{NOUNS.get(form, form)} of {'x'.join(map(str, self.shape))}{rate}"

    @property
    def scaling(self) -> Scaling:
        return Scaling(self.shift, self.scale)

    @property
    def classes(self) -> int | None:
        return len(self.class_names) or None

    @property
    def vector_scaling(self) -> Scaling:
        """The conversion of vectors between their own units and those of the network."""
        return Scaling(self.vector_shift or (0.0,), self.vector_scale or (1.0,))

    def model_condition(self, raw: Condition | None) -> Condition | None:
        """Return a raw condition, as `Samples.take` and batches have it, in the units of the network.

        Vectors get mean 0 and deviation 1, uint8 images become x/127.5 - 1, and all fields but labels float32. Hide
        items afterwards.
        """
        if raw is None or (raw.vector is raw.image is raw.tokens):  # all are None
            return raw
        image = raw.image
        if image is not None:
            image = PIXEL_SCALING.to_model(image) if image.dtype == torch.uint8 else image.to(torch.float32)
        return replace(
            raw,
            vector=None if raw.vector is None else self.vector_scaling.to_model(raw.vector),
            image=image,
            tokens=None if raw.tokens is None else raw.tokens.to(torch.float32),
        )

    @property
    def classes_text(self) -> str:
        """The classes in words, such as `10 classes: 0, 1, 2, ... 9`; an empty text if there are none."""
        return classes_text(self.class_names)

    @property
    def conditions_text(self) -> str:
        """The conditions in words, such as `3 classes: a, b, c, a vector of 2`; an empty text if there are none."""
        others = replace(self.condition, classes=None)
        return ", ".join(filter(None, (self.classes_text, str(others))))

    def document(self) -> dict[str, Any]:
        """Return the facts as plain values, which `read` takes."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        shapes = {key: value for key, value in vars(self.condition).items() if value is not None and key != "classes"}
        return {**plain, "condition": shapes}

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
        numbers = Annotated[tuple[FiniteFloat, ...], Field(max_length=LONGEST_VECTOR)]
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
            rate=(Annotated[FiniteFloat, Field(gt=0, le=LARGEST_RATE)] | None, None),
            condition=(_condition_model(), None),
            vector_shift=(numbers, ()),
            vector_scale=(numbers, ()),
            column_names=(Annotated[tuple[name, ...], Field(max_length=MOST_UNITS)], ()),
        )
        try:
            values = model.model_validate_json(json.dumps(document)).model_dump()
            facts = cls(**{**values, "condition": ConditionSpec(**(values["condition"] or {}))})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if not {len(facts.shift), len(facts.scale)} <= {1, facts.shape[0]}:
            raise ValueError("shift and scale must have one entry, or one for each channel")
        if math.prod(facts.shape) > LARGEST_ITEM:
            raise ValueError("an item has too many numbers")
        if not _are_ordinary(facts.shift, facts.scale):
            raise ValueError("shift and scale must be ordinary numbers, scale above 0")
        facts._check_condition()
        check_column_names(facts.column_names, facts.shape)
        if facts.bounds is not None and not -LARGEST_UNIT < facts.bounds[0] < facts.bounds[1] < LARGEST_UNIT:
            raise ValueError("bounds must be a low and a high number")
        return facts

    def _check_condition(self) -> None:
        """Refuse shapes of a file's conditions that do not go together. Raises `ValueError`."""
        image, tokens, vector = self.condition.image, self.condition.tokens, self.condition.vector
        if image is not None and (len(self.shape) != 3 or image[1:] != self.shape[1:]):
            raise ValueError("condition.image must be as high and wide as an item")
        if max(math.prod(image or ()), math.prod(tokens or ())) > LARGEST_ITEM:
            raise ValueError("a condition has too many numbers")
        if {len(self.vector_shift), len(self.vector_scale)} != {vector or 0}:
            raise ValueError("vector_shift and vector_scale must have an entry for each number of condition.vector")
        if not _are_ordinary(self.vector_shift, self.vector_scale):
            raise ValueError("vector_shift and vector_scale must be ordinary numbers, vector_scale above 0")


PIXEL_SCALING = Scaling(PIXELS["shift"], PIXELS["scale"])
"""The scaling of pixels, those of condition images too."""


def _condition_model() -> Any:
    """Return the pydantic model of a condition in a file."""
    from typing import Annotated

    from pydantic import ConfigDict, Field, create_model

    def number(most: int) -> Any:
        return Annotated[int, Field(ge=1, le=most)]

    model: Any = create_model(
        "Condition",
        __config__=ConfigDict(strict=True, extra="ignore"),
        vector=(number(LONGEST_VECTOR) | None, None),
        image=(tuple[number(MOST_CHANNELS), number(LARGEST_ITEM), number(LARGEST_ITEM)] | None, None),  # type: ignore
        tokens=(tuple[number(MOST_TOKENS), number(LONGEST_VECTOR)] | None, None),  # type: ignore
    )
    return model | None


def _are_ordinary(shift: Sequence[float], scale: Sequence[float]) -> bool:
    """Return whether shifts and scales overflow no float32, and no scale is 0 or less."""
    ordinary = all(1 / LARGEST_UNIT < number < LARGEST_UNIT for number in scale)
    return ordinary and all(abs(number) <= LARGEST_UNIT for number in shift)


def _condition_of(samples: Samples) -> ConditionSpec:
    """Return the shapes of the conditions, without the classes. Raises `ValueError` for what no network could take."""
    shapes = {name: shape for name, shape in samples.row_shapes.items() if name not in ("label", "noise")}
    limits = {"vector": (LONGEST_VECTOR,), "image": (MOST_CHANNELS,), "tokens": (MOST_TOKENS, LONGEST_VECTOR)}
    for name, shape in shapes.items():
        if any(size > most for size, most in zip(shape, limits[name], strict=False)):
            most = "x".join(map(str, limits[name]))
            raise ValueError(f"a row of {name} is {shape}, larger than {most}, the most that a model file may hold")
    vector = shapes.get("vector")
    image: Any = shapes.get("image")
    tokens: Any = shapes.get("tokens")
    return ConditionSpec(vector=vector[0] if vector else None, image=image, tokens=tokens)


def classes_text(names: Sequence[str], most: int = LISTED) -> str:
    """Return classes in words: their number, and at most this many names, of which one is the last."""
    if not names:
        return ""
    listed = [shortened(printable(name), LONGEST_LISTED) for name in (*names[: most - 1], *names[most - 1 :][-1:])]
    if len(names) > most:
        listed[-1] = f"... {listed[-1]}"
    return f"{len(names):,} {'class' if len(names) == 1 else 'classes'}: {', '.join(listed)}"


def _check_names(names: tuple[str, ...], what: str) -> None:
    """Refuse names of classes or columns that `read` would refuse, before anything is trained. Raises `ValueError`."""
    if len(set(names)) < len(names):
        raise ValueError(f"two {'classes' if what == 'class' else 'columns'} have the same name")
    for number, name in enumerate(names):
        if len(name) > LONGEST_NAME or any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(f"{what} {number} has a name that a model file cannot hold")
