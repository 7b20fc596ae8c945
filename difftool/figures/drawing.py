"""The samples of a run of a sampler in every form that a file may need: figure, frames of a film, arrays, pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from difftool.data.facts import PIXEL_SCALING
from difftool.data.forms import Form, form_of
from difftool.data.scaling import Scaling
from difftool.diffusion.visible import spread, thinned
from difftool.figures import image_tables, point_tables, style
from difftool.figures.films import film
from difftool.figures.formats import undrawable
from difftool.figures.groups import Groups
from difftool.figures.images import image_frames, image_grid, rgb
from difftool.figures.points import histogram_frames, point_limits, scatter, scatter_frames
from difftool.figures.style import Floats, Pixels

FILM_IMAGES, FILM_POINTS = 36, 5000
"""The largest numbers of samples of a film."""
STRIP_ROWS, GROUPED_ROWS = 6, 16
"""The number of images whose states a strip shows, and the largest number of rows of one that shows each group."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Samples, and how they are to be shown. May grow fields."""

    x: Tensor
    """(N, *shape) float32 on the CPU, in model units."""
    scaling: Scaling
    """The map to data units."""
    title: str
    noun: str = "samples"
    """The name of the points in a legend."""
    states: Tensor | None = None
    """(K, N, *shape) states of the trajectories in model units: x_T first, the result last."""
    state_labels: Sequence[str] = ()
    """K labels, such as "t = 999"."""
    state_steps: Sequence[int] = ()
    """The steps after which the states were kept; if empty, all of them."""
    state_hidden: Sequence[float] = ()
    """The share of the data that noise hides in each state; if empty, the steps count as even."""
    labels: Tensor | None = None
    """(N,) class indices."""
    class_names: Sequence[str] = ()
    """The names of the classes, or () if they have none."""
    column_names: Sequence[str] = ()
    """The names of the coordinates of points, or () if they have none."""
    names: Sequence[str] = ()
    """The names of samples that belong together, such as the N names of their condition images; or ()."""
    guidances: Sequence[str] = ()
    """The names of G guidances that each drew the same N/G samples, the first ones by the first; or ()."""
    reference: Tensor | None = None
    """(M, D) data points in data units, to draw under the samples."""
    columns: int | None = None
    """Columns of the grid of images, or of a strip."""
    given: Tensor | None = None
    """(G, *shape) in model units: images that the samples were made from, drawn ahead of them."""
    condition_images: Tensor | None = None
    """(N, C, H, W), pixels of type uint8 or floats in model units: each is drawn left of its sample."""
    originals: Tensor | None = None
    """(N, *shape) in model units: the items that the conditions belong to, each drawn right of its sample."""
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    """The other conditions of the samples for arrays, (N, ...) by name, as the user gave them."""
    joined: bool = False
    """True if the samples lie on a path: points are joined in their order."""
    strip: int | None = None
    """The number of states of the trajectory to draw; None draws the result alone."""
    strip_rows: int = STRIP_ROWS
    """The largest number of images whose states a strip shows."""
    raw: bool = False
    """True if arrays hold floats (N, *shape) in model units instead of pixels or data units."""
    trajectory: bool = False
    """True if arrays also hold the states of the trajectory."""
    form: Form | None = None
    """The form of a sample: `image`, `points` or `array`; by default, one axis makes points and more axes an array."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "form", form_of(self.form, self.x.shape[1:]))

    @property
    def is_image(self) -> bool:
        """True if samples are drawn and written as pixels."""
        return self.form == "image"

    @property
    def units(self) -> str:
        """The units of the numbers of `arrays`."""
        if self.raw:
            return "model units, channels first"
        return "pixels 0..255, channels last" if self.is_image else "data units"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return `samples`, with a trajectory `states`, and the conditions `labels`, `vectors`, `images` and `tokens`.

        With several guidances, `guidances` holds the index of that of each sample. See `index_names`.

        Conditions are as the user gave them, but for images of pixels, which are as those of the samples. Images are
        pixels uint8 (N, H, W, C). Everything else is float32 (N, *shape) in data units, or float64 where float32 would
        lose digits. If raw, all are float32 (N, *shape) in model units. States have one more dimension in front.
        """
        arrays = {"samples": self._numbers(self.x)}
        if self.trajectory:
            arrays["states"] = self._numbers(self._states())
        if self.labels is not None:
            arrays["labels"] = self.labels.to(torch.int64).numpy()
        if len(self.guidances) > 1:
            each = len(self.x) // len(self.guidances)
            arrays["guidances"] = np.repeat(np.arange(len(self.guidances), dtype=np.int64), each)
        for name, rows in self.conditions.items():
            pixels = name == "images" and rows.dtype == torch.uint8 and not self.raw
            arrays[name] = (rows.movedim(1, -1).contiguous() if pixels else rows).numpy()
        return arrays

    def index_names(self) -> dict[str, list[str]]:
        """Return the names of what `arrays` counts: `class_names`, `guidance_names`, and `column_names` of points."""
        names = {}
        if self.labels is not None and self.class_names:
            names["class_names"] = [*self.class_names]
        if len(self.guidances) > 1:
            names["guidance_names"] = [*self.guidances]
        if self.column_names:
            names["column_names"] = [*self.column_names]
        return names

    def pixels(self, x: Tensor | None = None) -> Pixels:
        """Return the images, or those given as (..., C, H, W) in model units, as uint8 (..., H, W, C).

        Values beyond the range of pixels are clamped. Raises `ValueError` for points and arrays.
        """
        if not self.is_image:
            raise ValueError(f"samples of form {self.form!r} have no pixels; refuse them in the writer's `check`")
        x = self.x if x is None else x
        flat = torch.nan_to_num(x.reshape(-1, *x.shape[-3:]))
        images: Pixels = self.scaling.to_pixels(flat).movedim(1, -1).contiguous().numpy()
        return images.reshape(*x.shape[:-3], *x.shape[-2:], x.shape[-3])

    def figure(self) -> Figure:
        """Draw a grid of the images or a scatter plot of the points; with `strip`, states of their trajectories.

        Raises `ValueError` for arrays, which no picture shows.
        """
        if reason := undrawable(self.form, self.x.shape[1:]):
            raise ValueError(reason)
        if self.strip is not None:
            return self._strip(self.strip)
        if (groups := self._groups()) is not None:
            return self._table(groups)
        if self.is_image:
            return image_grid(self._cells(self.x), title=self.title, columns=self.columns)
        return scatter(
            self._points(self.x), reference=self._reference(), title=self.title, joined=self.joined, noun=self.noun
        )

    def save_figure(self, path: Path) -> None:
        """Write the figure in the format of the path's suffix: .png, .jpg, .jpeg, .svg or .pdf."""
        style.save(self.figure(), path)

    def frames(self, most: int) -> Iterator[Pixels]:
        """Return the trajectory as RGB frames (H, W, 3), x_T first: at most `most`, and none that add nothing."""
        states, chosen = self._states(), thinned(self._places(), most)
        limit = FILM_IMAGES if self.is_image else FILM_POINTS
        title = self.title if self.is_image else self._plane()
        if (groups := self._groups()) is not None:
            return self._table_frames(groups.limited(limit), chosen)
        if states.shape[1] > limit:
            title = f"{title} (first {limit:,} of {states.shape[1]:,})"
        titles = [f"{title}\n{self._label(k)}" for k in chosen]
        states_shown = (states[k, :limit] for k in chosen)
        if self.is_image:
            return image_frames((self._cells(x) for x in states_shown), titles, self.columns)
        reference = self._reference()
        points = (self._points(x)[:, :2] for x in states_shown)
        limits = point_limits(self._ends(), reference)
        if self.x.shape[1] == 1:
            return histogram_frames(points, titles, limits, reference)
        return scatter_frames(points, titles, limits, reference, joined=self.joined, noun=self.noun)

    def save_film(self, path: Path, *, most: int, fps: float, hold: float) -> None:
        """Write the frames as an endless GIF whose last frame stays for `hold` seconds."""
        film(self.frames(most), path, fps=fps, hold=hold)

    def chosen(self, most: int) -> list[int]:
        """Return the indices of at most `most` states: even in what can be seen, both ends among them."""
        return spread(self._places(), most)

    def _places(self) -> Sequence[float]:
        """Return where each state lies on the way."""
        return self.state_hidden or self.state_steps or range(len(self._states()))

    def _states(self) -> Tensor:
        if self.states is None:
            raise ValueError("the states of the trajectory were not kept; let the writer's `states` name their steps")
        return self.states

    def _numbers(self, x: Tensor) -> NDArray[Any]:
        if self.raw:
            return x.to(torch.float32).numpy()
        return self.pixels(x) if self.is_image else self._points(x)

    def _points(self, x: Tensor) -> Floats:
        """Return (..., *shape) in model units as numbers in data units."""
        flat = x.to(torch.float32).reshape(-1, *self.x.shape[1:])
        points: Floats = self.scaling.to_data(flat).reshape(x.shape).numpy()
        return points

    def _ends(self) -> Floats:
        """Return the points of the first and the last state."""
        states = self._states()
        return np.concatenate([self._points(states[0]), self._points(states[-1])])

    def _reference(self) -> Floats | None:
        return None if self.reference is None else self.reference.to(self.scaling.dtype).numpy()

    @property
    def _given(self) -> int:
        return 0 if self.given is None else len(self.given)

    def _cells(self, x: Tensor, numbers: Sequence[int] = ()) -> Pixels:
        """Return the images to draw for x (n, *shape), the samples of these numbers or else the first ones.

        Those given come first. A condition image stands left of its sample, and the original right of it.
        """
        chosen = list(numbers) or list(range(len(x)))
        images = self.pixels(x if self.given is None else torch.cat([self.given, x]))
        left = self._condition_pixels(chosen)
        right = None if self.originals is None else rgb(self.pixels(self.originals[chosen]))
        if left is None and right is None:
            return images
        images, blank = rgb(images), ((len(images) - len(x), 0), (0, 0), (0, 0), (0, 0))  # those given have none
        sides = [None if side is None else np.pad(side, blank, constant_values=255) for side in (left, right)]
        before, after = ([] if side is None else [side] for side in sides)
        return np.concatenate([*before, images, *after], axis=2)

    def _condition_pixels(self, numbers: list[int]) -> Pixels | None:
        """Return the condition images of samples as pixels (n, H, W, 3), or None without any."""
        if self.condition_images is None:
            return None
        images = self.condition_images[numbers]
        if images.dtype != torch.uint8:
            images = PIXEL_SCALING.to_pixels(images)
        return rgb(images.movedim(1, -1).contiguous().numpy())

    def _label(self, state: int) -> str:
        return self.state_labels[state] if self.state_labels else f"state {state}"

    def _groups(self) -> Groups | None:
        """Return the classes, the names and the guidances of the samples in rows and columns; None for one of each."""
        count = len(self.x) // max(1, len(self.guidances))
        labels = [] if self.labels is None else [self._name(label) for label in self.labels[:count].tolist()]
        columns = {"class": labels, "image": self.names[:count]}
        varied = {axis: names for axis, names in columns.items() if len(set(names)) > 1}
        keys = [", ".join(names) for names in zip(*varied.values(), strict=True)]
        return Groups.of(keys, ", ".join(varied), self.guidances, count, apart=self.is_image)

    def _table(self, groups: Groups) -> Figure:
        """Draw the samples in rows and columns."""
        if self.is_image:
            cells, title = groups.with_first(self._given), _with_note(self.title, groups.omitted)
            return image_tables.image_groups(self._cells(self.x), cells, title=title, columns=self.columns)
        return point_tables.scatter_groups(
            self._points(self.x),
            groups,
            title=_with_note(self._plane(), groups.omitted),
            reference=self._reference(),
            joined=self.joined,
            across=self.columns,
        )

    def _table_frames(self, groups: Groups, chosen: Sequence[int]) -> Iterator[Pixels]:
        """Return the states as frames, each in rows and columns."""
        states, numbers, cells = self._states(), groups.numbers, groups.renumbered()
        note = f"{len(numbers):,} of {states.shape[1]:,}" if len(numbers) < states.shape[1] else ""
        title = _with_note(self.title if self.is_image else self._plane(), groups.omitted or note)
        titles = [f"{title}\n{self._label(k)}" for k in chosen]
        if self.is_image:
            images = (self._cells(states[k, numbers], numbers) for k in chosen)
            return image_tables.group_frames(images, cells.with_first(self._given), titles, self.columns)
        reference, points = self._reference(), (self._points(states[k, numbers]) for k in chosen)
        limits = point_limits(self._ends(), reference)
        return point_tables.group_frames(
            points, cells, titles, limits, reference, joined=self.joined, across=self.columns
        )

    def _strip(self, count: int) -> Figure:
        states, chosen, groups = self._states(), self.chosen(count), self._groups()
        columns = [self._label(k) for k in chosen]
        if not self.is_image:
            numbers = [range(len(self.x))] if groups is None else [cell for row in groups.cells for cell in row]
            note = f"first {GROUPED_ROWS} of {len(numbers):,} rows" if len(numbers) > GROUPED_ROWS else ""
            numbers = numbers[:GROUPED_ROWS]
            points = [self._points(states[k])[:, :2] for k in chosen]
            return point_tables.scatter_table(
                [[state[list(row)] for state in points] for row in numbers],
                columns=columns,
                rows=() if groups is None else [self._words(row[0]) for row in numbers],
                title=_with_note(self._plane(), note),
                reference=self._reference(),
                joined=self.joined,
                across=self.columns,
            )
        first = list(range(min(self.strip_rows, len(self.x))))
        if groups is not None:
            first = groups.limited(self.strip_rows).numbers[:GROUPED_ROWS]
        rows = states[chosen][:, first].transpose(0, 1)
        if self.given is not None:
            rows = torch.cat([self.given.expand(len(rows), *self.given.shape), rows], dim=1)
            columns = [*(["given"] * self._given), *columns]
        images, left = self.pixels(rows), self._condition_pixels(first)
        if left is not None:
            images, columns = np.concatenate([left[:, None], rgb(images)], axis=1), ["condition", *columns]
        words = [self._words(number) for number in first]
        return image_tables.image_table(
            images, columns=columns, rows=words if any(words) else (), title=self.title, across=self.columns
        )

    def _words(self, number: int) -> str:
        """Return the class, the name and the guidance of a sample in words."""
        words = [] if self.labels is None else [self._class(int(self.labels[number]))]
        words += [self.names[number]] if self.names else []
        if len(self.guidances) > 1:
            words.append(f"guidance {self.guidances[number * len(self.guidances) // len(self.x)]}")
        return ", ".join(words)

    def _name(self, label: int) -> str:
        return self.class_names[label] if self.class_names else str(label)

    def _class(self, label: int) -> str:
        return f"class {self._name(label)}"

    def _plane(self) -> str:
        """Return the title, which names the coordinates if not all can be drawn."""
        dimensions = self.x.shape[1]
        return self.title if dimensions <= 2 else f"{self.title} (coordinates 0 and 1 of {dimensions})"


def _with_note(title: str, note: str) -> str:
    return f"{title} ({note})" if note else title
