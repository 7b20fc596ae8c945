"""The samples of a run of a sampler in every form that a file may need: figure, frames of a film, arrays, pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from difftool.data.facts import PIXEL_SCALING
from difftool.data.forms import FILM_RATE
from difftool.diffusion.visible import spread, thinned
from difftool.figures import image_tables, panels, point_tables, style
from difftool.figures.axes import places_of
from difftool.figures.content import Content
from difftool.figures.films import film
from difftool.figures.formats import undrawable
from difftool.figures.groups import Groups
from difftool.figures.images import image_frames, image_grid, rgb, side_by_side, side_by_side_frames
from difftool.figures.points import histogram_frames, point_limits, scatter, scatter_frames
from difftool.figures.style import Floats, Pixels

FILM_IMAGES, FILM_POINTS = 36, 5000
"""The largest numbers of samples of a film."""
STRIP_ROWS, GROUPED_ROWS = 6, 16
"""The number of images whose states a strip shows, and the largest number of rows of one that shows each group."""
FRAMES, STRIP_FRAMES = 8, 4
"""The largest numbers of frames side by side of a film, and of one of its states."""


@dataclass(frozen=True, kw_only=True)
class Drawing(Content):
    """Samples, and how they are to be shown. May grow fields."""

    noun: str = "samples"
    """The name of the points in a legend."""
    state_labels: Sequence[str] = ()
    """K labels, such as "t = 999"."""
    state_steps: Sequence[int] = ()
    """The steps after which the states were kept; if empty, all of them."""
    state_hidden: Sequence[float] = ()
    """The share of the data that noise hides in each state; if empty, the steps count as even."""
    names: Sequence[str] = ()
    """The names of samples that belong together, such as the N names of their condition images; or ()."""
    reference: Tensor | None = None
    """(M, D) data points in data units, to draw under the samples."""
    columns: int | None = None
    """Columns of the grid of samples, or of a strip."""
    given: Tensor | None = None
    """(G, *shape) in model units: images that the samples were made from, drawn ahead of them."""
    condition_images: Tensor | None = None
    """(N, C, H, W), pixels of type uint8 or floats in model units: each is drawn left of its sample."""
    originals: Tensor | None = None
    """(N, *shape) in model units: the items that the conditions belong to, each drawn right of its sample."""
    joined: bool = False
    """True if the samples lie on a path: points are joined in their order."""
    strip: int | None = None
    """The number of states of the trajectory to draw; None draws the result alone."""
    strip_rows: int = STRIP_ROWS
    """The largest number of images whose states a strip shows."""

    def figure(self) -> Figure:
        """Draw the samples by their form; with `strip`, states of their trajectories.

        Images and films are drawn as grids, points as a scatter plot, and series, sound and clouds in a panel each.
        Raises `ValueError` for arrays, which no picture shows.
        """
        if reason := undrawable(self.form, self.x.shape[1:]):
            raise ValueError(reason)
        if self.strip is not None:
            return self._strip(self.strip)
        if self.form in panels.VIEWS:
            return self._panels()
        if (groups := self._groups()) is not None:
            return self._table(groups)
        if self.has_pixels:
            return image_grid(self._cells(self.x), title=self._heading(), columns=self.columns or self._one_column)
        return scatter(
            self.numbers(), reference=self._reference(), title=self.title, joined=self.joined, noun=self.noun
        )

    def save_figure(self, path: Path) -> None:
        """Write the figure in the format of the path's suffix: .png, .jpg, .jpeg, .svg or .pdf."""
        style.save(self.figure(), path, text=self.record)

    def frames(self, most: int) -> Iterator[Pixels]:
        """Return the trajectory as RGB frames (H, W, 3), x_T first: at most `most`, and none that add nothing.

        Films themselves move, and all their frames are returned.
        """
        if self.form == "film":
            return self._moving()
        states, chosen = self._states(), thinned(self._places(), most)
        if self.form in panels.VIEWS:
            return self._panel_frames(chosen)
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
        points = (self.numbers(x)[:, :2] for x in states_shown)
        limits = point_limits(self._ends(), reference)
        if self.x.shape[1] == 1:
            return histogram_frames(points, titles, limits, reference)
        return scatter_frames(points, titles, limits, reference, joined=self.joined, noun=self.noun)

    def save_film(self, path: Path, *, most: int, fps: float, hold: float) -> None:
        """Write the frames in the format of the path's suffix. The last frame of a trajectory stays for `hold` seconds.

        Films themselves move at their own rate, over and over again.
        """
        if self.form == "film":
            film(self.frames(most), path, fps=self.rate or FILM_RATE, hold=0, text=self.record)
        else:
            film(self.frames(most), path, fps=fps, hold=hold, text=self.record)

    def chosen(self, most: int) -> list[int]:
        """Return the indices of at most `most` states: even in what can be seen, both ends among them."""
        return spread(self._places(), most)

    def _places(self) -> Sequence[float]:
        """Return where each state lies on the way."""
        return self.state_hidden or self.state_steps or range(len(self._states()))

    def _ends(self) -> Floats:
        """Return the points of the first and the last state."""
        states = self._states()
        return np.concatenate([self.numbers(states[0]), self.numbers(states[-1])])

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
        images = self._pictures(x if self.given is None else torch.cat([self.given, x]))
        left = self._condition_pixels(chosen)
        right = None if self.originals is None else rgb(self.pixels(self.originals[chosen]))
        if left is None and right is None:
            return images
        images, blank = rgb(images), ((len(images) - len(x), 0), (0, 0), (0, 0), (0, 0))  # those given have none
        sides = [None if side is None else np.pad(side, blank, constant_values=255) for side in (left, right)]
        before, after = ([] if side is None else [side] for side in sides)
        return np.concatenate([*before, images, *after], axis=2)

    def _pictures(self, x: Tensor, frames: int = FRAMES) -> Pixels:
        """Return images (..., *shape) in model units as pixels (..., H, W, C), films as frames side by side."""
        pixels = self.pixels(x)
        return side_by_side_frames(pixels, frames) if self.form == "film" else pixels

    @property
    def _one_column(self) -> int | None:
        """Return 1 for films whose frames make a row, and else None."""
        return 1 if self.form == "film" and len(self.x) <= FILM_IMAGES else None

    def _moving(self) -> Iterator[Pixels]:
        """Return the frames of films, laid out as images are."""
        groups = self._groups()
        groups = None if groups is None else groups.limited(FILM_IMAGES)
        numbers = list(range(min(len(self.x), FILM_IMAGES))) if groups is None else groups.numbers
        films = side_by_side(self.pixels(self.x[numbers]))
        note = f"first {len(numbers):,} of {len(self.x):,}" if len(numbers) < len(self.x) else ""
        count = films.shape[1]
        titles = [f"{_with_note(self.title, note)}\nframe {k + 1} of {count}" for k in range(count)]
        frames = (films[:, k] for k in range(count))
        if groups is None:
            return image_frames(frames, titles, self.columns)
        return image_tables.group_frames(frames, groups.renumbered(), titles, self.columns)

    def _panels(self) -> Figure:
        """Draw each sample in a panel."""
        table = self._panel_table(panels.MOST)
        x, places = self.x[table.numbers], table.renumbered()
        return panels.panel_figure(
            self._view(x), self.numbers(x), places, title=_with_note(self.title, table.note), across=self.columns
        )

    def _panel_frames(self, chosen: Sequence[int]) -> Iterator[Pixels]:
        """Return the states as frames, each sample in a panel."""
        table = self._panel_table(panels.MOST_MOVING)
        states = self._states()[:, table.numbers]
        titles = [f"{_with_note(self.title, table.note)}\n{self._label(k)}" for k in chosen]
        view, moving = self._view(states[[0, -1]].flatten(0, 1)), (self.numbers(states[k]) for k in chosen)
        return panels.panel_frames(view, moving, table.renumbered(), titles=titles)

    def _panel_table(self, most: int) -> panels.Table:
        """Return the places of about `most` samples."""
        groups = self._groups()
        if groups is None:
            return panels.Table.grid(len(self.x), self._view(self.x[:1]).proportion, self.columns, most)
        return panels.Table.of(groups, most)

    def _view(self, some: Tensor) -> panels.View:
        """Return the look of samples of this form, with axes for some of them."""
        assert self.form is not None
        return panels.VIEWS[self.form](self.numbers(some), self.rate)

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
        """Return the samples in rows and columns, by class, by name and by the axes; None for a single group.

        Two axes leave no room for classes, which then lie side by side in each cell.
        """
        count = self.set_size
        labels = [] if self.labels is None else [self._name(label) for label in self.labels[:count].tolist()]
        columns = {"class": labels, "image": self.names[:count]}
        varied = {axis: names for axis, names in columns.items() if len(set(names)) > 1 and len(self.axes) < 2}
        keys = [", ".join(names) for names in zip(*varied.values(), strict=True)]
        return Groups.of(keys, ", ".join(varied), self.axes, count, apart=self.form != "points")

    def _table(self, groups: Groups) -> Figure:
        """Draw the samples in rows and columns."""
        if self.has_pixels:
            cells, title = groups.with_first(self._given), _with_note(self._heading(), groups.omitted)
            return image_tables.image_groups(self._cells(self.x), cells, title=title, columns=self.columns)
        return point_tables.scatter_groups(
            self.numbers(self.x),
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
        reference, points = self._reference(), (self.numbers(states[k, numbers]) for k in chosen)
        limits = point_limits(self._ends(), reference)
        return point_tables.group_frames(
            points, cells, titles, limits, reference, joined=self.joined, across=self.columns
        )

    def _strip(self, count: int) -> Figure:
        states, chosen, groups = self._states(), self.chosen(count), self._groups()
        columns = [self._label(k) for k in chosen]
        if self.form == "points":
            numbers = [range(len(self.x))] if groups is None else [cell for row in groups.cells for cell in row]
            note = f"first {GROUPED_ROWS} of {len(numbers):,} rows" if len(numbers) > GROUPED_ROWS else ""
            numbers = numbers[:GROUPED_ROWS]
            points = [self.numbers(states[k])[:, :2] for k in chosen]
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
        words = [self._words(number) for number in first]
        if self.form in panels.VIEWS:
            view, labels = self._view(states[[0, -1]][:, first].flatten(0, 1)), words if any(words) else ()
            return panels.panel_table(view, self.numbers(rows), columns=columns, rows=labels, title=self.title)
        if self.given is not None:
            rows = torch.cat([self.given.expand(len(rows), *self.given.shape), rows], dim=1)
            columns = [*(["given"] * self._given), *columns]
        images, left = self._pictures(rows, STRIP_FRAMES), self._condition_pixels(first)
        if left is not None:
            images, columns = np.concatenate([left[:, None], rgb(images)], axis=1), ["condition", *columns]
        return image_tables.image_table(
            images,
            columns=columns,
            rows=words if any(words) else (),
            title=self._heading(STRIP_FRAMES),
            across=self.columns,
        )

    def _heading(self, frames: int = FRAMES) -> str:
        """Return the title, which says how many frames of a film are drawn."""
        count = self.x.shape[2] if self.form == "film" else 0
        return _with_note(self.title, f"{frames} of {count} frames" if count > frames else "")

    def _words(self, number: int) -> str:
        """Return the class, the name and the values on the axes of a sample in words."""
        words = [] if self.labels is None else [self._class(int(self.labels[number]))]
        words += [self.names[number]] if self.names else []
        place = places_of(self.axes)[number // self.set_size]
        words += [f"{axis.name} {axis.values[i]}" for axis, i in zip(self.axes, place, strict=True)]
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
