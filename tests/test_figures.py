"""Figures, films and the files that samples are written to: read back, and compared exactly."""

from __future__ import annotations

import dataclasses
import itertools
import math
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageSequence
from safetensors.torch import load_file

from difftool import DrawingSpec, Writer
from difftool.data.samples import PIXELS, points
from difftool.data.scaling import Scaling
from difftool.diffusion.schedule import Schedule
from difftool.errors import DifftoolError, UsageError
from difftool.figures import films, formats, layout, loss, schedules, style
from difftool.figures.drawing import Drawing
from difftool.figures.image_tables import image_table
from difftool.figures.images import FILM, LARGEST, Mosaic, image_frames, image_grid, over_white
from difftool.figures.point_tables import scatter_table
from difftool.figures.points import point_limits, scatter, scatter_frames
from difftool.figures.terminal import terminal_plot
from difftool.plugins.loading import Plugin
from difftool.plugins.registry import Registry, registry, replaced_by
from difftool.sampling.writers import check, needed_states, write, writer_of
from difftool_plugins.writers import NPY, Film, Picture

PIXEL_SCALING = Scaling(PIXELS["shift"], PIXELS["scale"])
TITLE = "a title"


def random_images(*shape: int, seed: int = 0) -> Any:
    # Never white, so that gaps and margins cannot pass for pixels.
    return np.random.default_rng(seed).integers(0, 250, shape, dtype=np.uint8)


def saved(figure: Figure, path: Path) -> Any:
    style.save(figure, path)
    return np.asarray(Image.open(path).convert("RGB"))


def content(picture: Any) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the images in a figure without text and margin."""
    rows, columns = np.nonzero((picture != 255).any(-1))
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def texts_inside(figure: Figure) -> None:
    """Every visible text lies within the figure."""
    style.render(figure)
    renderer = style.agg_of(figure).get_renderer()
    width, height = style.size_of(figure)
    texts = [*figure.texts, *(text for legend in figure.legends for text in (legend.get_title(), *legend.get_texts()))]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    boxes += [axes.get_tightbbox(renderer) for axes in figure.axes]  # with its ticks and labels
    for box in boxes:
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1


def vp_schedule(timesteps: int = 100) -> Schedule:
    return Schedule.from_betas(torch.linspace(1e-4, 0.05, timesteps, dtype=torch.float64))


def zero_snr(timesteps: int = 100) -> Schedule:
    u = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
    return Schedule(1 - u, u)


# ── grids and tables ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 13, 3), (28, 20, 1), (32, 32, 3)])
def test_a_grid_shows_every_pixel_as_a_square_of_its_own_colour(
    tmp_path: Path, count: int, shape: tuple[int, int, int]
) -> None:
    images = random_images(count, *shape)
    picture = saved(image_grid(images, title=""), tmp_path / "grid.png")
    top, left, bottom, right = content(picture)
    mosaic = Mosaic.of(count, *shape[:2])
    assert (bottom - top, right - left) == (mosaic.height, mosaic.width)
    factor, gap = mosaic.factor, mosaic.gap
    for i, image in enumerate(images):
        row, column = divmod(i, mosaic.columns)
        y, x = top + row * (shape[0] * factor + gap), left + column * (shape[1] * factor + gap)
        expected = np.broadcast_to(image, (*shape[:2], 3)).repeat(factor, 0).repeat(factor, 1)
        np.testing.assert_array_equal(picture[y : y + shape[0] * factor, x : x + shape[1] * factor], expected)


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (7, 2, 4), (16, 4, 4), (10, 2, 5), (64, 8, 8)])
def test_grid_layout(count: int, rows: int, columns: int) -> None:
    mosaic = Mosaic.of(count, 8, 8)
    assert (mosaic.rows, mosaic.columns) == (rows, columns)


def test_asked_columns_and_sizes() -> None:
    assert Mosaic.of(16, 8, 8, columns=5).rows == 4
    assert Mosaic.of(3, 8, 8, columns=9).columns == 3
    assert 600 <= Mosaic.of(16, 28, 28).width <= 1000
    assert Mosaic.of(4, 700, 700).factor == 1
    tall = Mosaic.of(40, 28, 28, columns=1)
    assert tall.factor == 1


def test_a_huge_grid_is_reduced_and_says_so() -> None:
    mosaic = Mosaic.of(40000, 64, 64)
    assert max(mosaic.width, mosaic.height) <= LARGEST
    assert "1/2 of their size" in mosaic.caption(TITLE)
    assert Mosaic.of(4, 64, 64).caption(TITLE) == TITLE


def test_reduced_images_are_averages() -> None:
    mosaic = Mosaic(1, 1, (4, 4), 1, 2, 1)
    image = np.zeros((1, 4, 4, 1), dtype=np.uint8)
    image[0, :2, :2, 0] = [[0, 100], [100, 200]]
    np.testing.assert_array_equal(mosaic.compose(image)[..., 0], [[100, 0], [0, 0]])


def test_transparent_pixels_are_shown_over_white(tmp_path: Path) -> None:
    image = np.zeros((1, 2, 2, 4), dtype=np.uint8)
    image[0, 0, 0] = (10, 20, 30, 255)
    image[0, 0, 1] = (10, 20, 30, 0)
    image[0, 1, :] = (0, 0, 0, 51)
    assert over_white(image[0]).tolist() == [
        [[10, 20, 30], [255, 255, 255]],
        [[204, 204, 204], [204, 204, 204]],
    ]
    picture = saved(image_grid(image, title=""), tmp_path / "alpha.png")
    assert {tuple(p) for p in picture.reshape(-1, 3)} == {(10, 20, 30), (255, 255, 255), (204, 204, 204)}


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        image_grid(random_images(0, 8, 8, 1), title=TITLE)


LONG = "a very long title " * 12 + "/an/unbreakable/path/" + "x" * 300


@pytest.mark.parametrize(
    "title", [TITLE, LONG, "costs $5 and $6 \\alpha_{", "two\nlines", "unknown glyph \U0001f9ea 猫", ""]
)
def test_titles_are_never_cut_off(title: str, recwarn: pytest.WarningsRecorder) -> None:
    texts_inside(image_grid(random_images(1, 8, 8, 1), title=title))
    texts_inside(image_grid(random_images(30, 8, 8, 1), title=title, columns=1))
    texts_inside(scatter(np.random.default_rng(0).normal(size=(50, 2)), title=title))
    texts_inside(loss.loss_figure([{"step": 1, "loss": 0.5}], title=title))
    texts_inside(schedules.schedule_figure({"linear": vp_schedule()}, title=title))
    assert not recwarn.list


def test_wrapped_text_keeps_every_word() -> None:
    lines = layout.wrap(LONG, 300, style.LABEL)
    assert "".join(lines).replace(" ", "") == LONG.replace(" ", "")
    assert max(layout.text_width(line, style.LABEL) for line in lines) <= 300


@pytest.mark.parametrize("shape", [(3, 5, 8, 8, 1), (1, 12, 6, 10, 3), (2, 2, 40, 40, 1)])
def test_a_table_is_exact_and_its_labels_stay_outside(tmp_path: Path, shape: tuple[int, ...]) -> None:
    cells = random_images(*shape)
    columns = [f"t = {k * 90}" for k in range(shape[1])]
    rows = [f"row {r}" for r in range(shape[0])]
    figure = image_table(cells, columns=columns, rows=rows, title=TITLE)
    texts_inside(figure)
    renderer = style.agg_of(figure).get_renderer()
    box = figure.axes[0].get_window_extent(renderer)
    labels = [t for t in figure.texts if t.get_text() in columns]
    extents = [t.get_window_extent(renderer) for t in labels]
    assert len(labels) == len(columns)
    assert all(e.y0 >= box.y1 for e in extents)
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(extents))
    assert all(t.get_window_extent(renderer).x1 <= box.x0 for t in figure.texts if t.get_text() in rows)

    picture = saved(figure, tmp_path / "table.png")
    left, top = round(box.x0), round(style.size_of(figure)[1] - box.y1)
    factor = round((box.width + 6) / shape[1]) // shape[3]
    gap = round((box.width - shape[1] * shape[3] * factor) / (shape[1] - 1))
    for r in range(shape[0]):
        for k in range(shape[1]):
            y, x = top + r * (shape[2] * factor + gap), left + k * (shape[3] * factor + gap)
            expected = np.broadcast_to(cells[r, k], (*shape[2:4], 3)).repeat(factor, 0).repeat(factor, 1)
            np.testing.assert_array_equal(picture[y : y + len(expected), x : x + expected.shape[1]], expected)


def test_labels_wider_than_the_cells_enlarge_them() -> None:
    columns = ["original", "noisy", "true noise", "predicted noise", "reconstruction"] * 5
    figure = image_table(random_images(1, 25, 4, 4, 1), columns=columns, title=TITLE)
    texts_inside(figure)
    renderer = style.agg_of(figure).get_renderer()
    boxes = [t.get_window_extent(renderer) for t in figure.texts[1:]]
    assert all(a.x1 < b.x0 or b.y1 < a.y0 for a, b in itertools.pairwise(boxes))
    assert "reconstruction" in [t.get_text() for t in figure.texts]


# ── points ──────────────────────────────────────────────────────────────────────────────────────


def test_scatter_has_equal_axes_and_says_what_lies_outside() -> None:
    random = np.random.default_rng(0)
    data = random.uniform((-3, -1), (3, 1), (2000, 2))
    drawn = random.uniform((-3, -1), (3, 1), (1000, 2))
    drawn[:5] = 1e6
    figure = scatter(drawn, reference=data, title=TITLE)
    texts_inside(figure)
    axes = figure.axes[0]
    box = axes.get_window_extent()
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    assert box.width / (x1 - x0) == pytest.approx(box.height / (y1 - y0), rel=0.01)
    assert -4 < x0 <= data[:, 0].min()
    assert data[:, 0].max() <= x1 < 4
    words = [text.get_text() for text in figure.texts]
    assert "5 of 1,000 samples lie outside" in words
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["data", "samples"]
    assert [len(c.get_offsets()) for c in axes.collections] == [2000, 1000]


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_scatter_of_any_number(count: int) -> None:
    style.render(scatter(np.full((count, 2), 3.0), title=TITLE))


def test_not_finite_points_lie_outside() -> None:
    values = np.zeros((4, 2))
    values[0, 0], values[1, 1] = math.nan, math.inf
    figure = scatter(values, title=TITLE)
    style.render(figure)
    assert "2 of 4 samples lie outside" in [text.get_text() for text in figure.texts]


def test_other_dimensions() -> None:
    random = np.random.default_rng(0)
    deep = scatter(random.normal(size=(100, 5)), title=TITLE)
    assert "coordinates 0 and 1 of 5" in [text.get_text() for text in deep.texts]
    values = random.normal(size=(1000, 1))
    values[:3] = 1e5
    flat = scatter(values, reference=random.normal(size=(1000, 1)), title=TITLE)
    texts_inside(flat)
    assert "3 of 1,000 samples lie outside" in [text.get_text() for text in flat.texts]
    assert [t.get_text() for t in flat.legends[0].get_texts()] == ["data", "samples"]


def test_scatter_table_shares_one_scale() -> None:
    random = np.random.default_rng(0)
    cells = [[random.normal(size=(50, 2)) * k for k in (1, 2, 3)] for _ in range(2)]
    figure = scatter_table(
        cells, columns=["t = 0", "t = 5", "t = 9"], rows=["a", "b"], title=TITLE, reference=cells[0][0]
    )
    texts_inside(figure)
    assert len(figure.axes) == 6
    assert len({axes.get_xlim() + axes.get_ylim() for axes in figure.axes}) == 1
    for axes in figure.axes:
        box, (x0, x1), (y0, y1) = axes.get_window_extent(), axes.get_xlim(), axes.get_ylim()
        assert box.width / (x1 - x0) == pytest.approx(box.height / (y1 - y0), rel=0.02)
        assert len(axes.collections) == 2


# ── files of figures ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", formats.PICTURES)
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        style.save(schedules.schedule_figure({"linear": vp_schedule()}), tmp_path / f"{name}{suffix}")
    first = (tmp_path / f"a{suffix}").read_bytes()
    assert first == (tmp_path / f"b{suffix}").read_bytes()
    magic = {".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".jpeg": b"\xff\xd8", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert first.startswith(magic[suffix])


def test_settings_of_matplotlib_are_neither_used_nor_changed(tmp_path: Path) -> None:
    images = random_images(4, 8, 8, 1)
    expected = saved(image_grid(images, title=TITLE), tmp_path / "a.png")
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "savefig.bbox": "tight", "font.family": "serif"}):
        before = dict(matplotlib.rcParams)
        np.testing.assert_array_equal(saved(image_grid(images, title=TITLE), tmp_path / "b.png"), expected)
        assert dict(matplotlib.rcParams) == before


def test_no_window_system_is_touched() -> None:
    code = (
        "import sys, difftool.figures.drawing, difftool.figures.loss, difftool.figures.schedules;"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


# ── films ───────────────────────────────────────────────────────────────────────────────────────


def frames_of(path: Path) -> list[Any]:
    return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(path))]


def test_film_of_a_generator(tmp_path: Path) -> None:
    shades = [10, 200, 90, 255]

    def frames() -> Iterator[Any]:
        for shade in shades:
            yield np.full((20, 30, 3), shade, dtype=np.uint8)

    films.film(frames(), tmp_path / "f.gif", fps=20, hold=1.5)
    film = Image.open(tmp_path / "f.gif")
    assert film.size == (30, 20)
    assert film.n_frames == 4
    assert film.info["loop"] == 0
    assert [frame.info["duration"] for frame in ImageSequence.Iterator(film)] == [50, 50, 50, 1500]
    assert [int(frame[0, 0, 0]) for frame in frames_of(tmp_path / "f.gif")] == shades


def test_equal_frames_keep_their_time(tmp_path: Path) -> None:
    films.film([np.zeros((4, 4, 3), np.uint8)] * 3, tmp_path / "f.gif", fps=10, hold=1)
    film = Image.open(tmp_path / "f.gif")
    assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(film)) == 1200


def test_films_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        films.film([], tmp_path / "f.gif")
    with pytest.raises(ValueError, match="frame of 5 x 4"):
        films.film([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)] * 2, tmp_path / "f.gif")


@pytest.mark.parametrize("shape", [(4, 8, 8, 1), (1, 4, 6, 3)])
def test_frames_of_images_survive_the_film(tmp_path: Path, shape: tuple[int, ...]) -> None:
    states = [random_images(*shape, seed=k) for k in range(3)]
    titles = ["x\nt = 9", "x\nt = 5", f"x\n{'result ' * 20}"]
    frames = list(image_frames(iter(states), titles))
    assert len({frame.shape for frame in frames}) == 1
    mosaic = Mosaic.of(*shape[:3], size=FILM)
    for state, frame in zip(states, frames, strict=True):
        wanted = mosaic.compose(state)
        bottom, left = frame.shape[0] - layout.MARGIN, (frame.shape[1] - mosaic.width) // 2
        np.testing.assert_array_equal(frame[bottom - mosaic.height : bottom, left : left + mosaic.width], wanted)
    films.film(frames, tmp_path / "f.gif")
    for film_frame, frame in zip(frames_of(tmp_path / "f.gif"), frames, strict=True):
        np.testing.assert_array_equal(film_frame, frame)  # few colours: the palette is exact


def test_colourful_frames_come_close_and_keep_their_background(tmp_path: Path) -> None:
    frames = list(image_frames([random_images(4, 24, 24, 3, seed=k) for k in range(3)], ["a", "b", "c"]))
    films.film(frames, tmp_path / "f.gif")
    for film_frame, frame in zip(frames_of(tmp_path / "f.gif"), frames, strict=True):
        assert film_frame[0, 0].tolist() == [255, 255, 255]
        assert np.abs(film_frame.astype(int) - frame).mean() < 12


def test_frames_of_points_show_the_same_as_a_figure() -> None:
    random = np.random.default_rng(0)
    states = [random.normal(size=(300, 2)) for _ in range(3)]
    data = random.uniform(-5, 5, (300, 2))  # so wide that the limits depend on the data alone
    frames = list(scatter_frames(iter(states), ["t"] * 3, point_limits(states[0], data), data))
    for state, frame in zip(states, frames, strict=True):
        np.testing.assert_array_equal(frame, style.render(scatter(state, reference=data, title="t")))
    assert not np.array_equal(frames[0], frames[1])


# ── loss ────────────────────────────────────────────────────────────────────────────────────────


def record(step: int) -> dict[str, Any]:
    value = 1 / (1 + step)
    return {"step": step, "loss": value, "loss_quartiles": [value, value, None, 2 * value], "held_out_loss": value}


@pytest.mark.parametrize("count", [0, 1, 2, 30, 5000])
def test_loss_of_any_number_of_steps(count: int) -> None:
    figure = loss.loss_figure([record(step) for step in range(count)], title="digits-unet-001")
    texts_inside(figure)
    axes = figure.axes[0]
    if count == 0:
        assert "no step" in axes.texts[0].get_text()
    else:
        assert axes.get_yscale() == "log"
        names = [t.get_text() for t in figure.legends[0].get_texts()]
        assert {"loss", "held out", "cleanest quarter of t", "noisiest"} <= set(names)
        assert "third" not in names  # never measured
        assert max(len(line.get_xdata()) for line in axes.lines) <= 2 * loss.POINTS


def test_losses_of_callbacks_are_drawn_beside_the_held_out_loss() -> None:
    """Two of them at most; other numbers of callbacks are no losses."""
    extra = {"fid_loss": 0.2, "_a$b_{loss": 0.3, "third_loss": 0.4, "spread": 5.0}
    figure = loss.loss_figure([record(step) | extra for step in range(40)], title=TITLE)
    texts_inside(figure)
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert [name for name in names if "loss" in name] == ["loss", "fid_loss", "a$b_{loss"]
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata(), 0.3)


def test_loss_of_a_constant_is_drawn_at_that_constant() -> None:
    figure = loss.loss_figure([{"step": s, "loss": 0.25} for s in range(10000)], title=TITLE)
    (smooth,) = figure.axes[0].lines
    np.testing.assert_allclose(smooth.get_ydata(), 0.25)
    assert (min(smooth.get_xdata()), max(smooth.get_xdata())) == (0, 9999)


def test_bad_losses_are_left_out() -> None:
    odd = [math.nan, math.inf, 0.0, -1.0, None]
    rows: list[dict[str, Any]] = [{"step": i, "loss": v} for i, v in enumerate(odd)]
    assert "no step" in loss.loss_figure(rows, title=TITLE).axes[0].texts[0].get_text()
    rows += [{"step": 9, "loss": 0.5}, {"step": 8, "loss": 0.25}, {"step": 10}]
    smooth = loss.loss_figure(rows, title=TITLE).axes[0].lines[-1]
    assert smooth.get_xdata().tolist() == [8, 9]


# ── schedules ───────────────────────────────────────────────────────────────────────────────────


def test_schedule_figure_with_infinite_ends(recwarn: pytest.WarningsRecorder) -> None:
    clean_start = Schedule.from_alpha_bars(torch.linspace(1, 0, 50, dtype=torch.float64))
    figure = schedules.schedule_figure({"vp": vp_schedule(), "flow": zero_snr(), "both ends": clean_start}, title=TITLE)
    texts_inside(figure)
    alpha_bar, beta, snr = figure.axes
    assert not recwarn.list
    assert all(math.isfinite(v) for axes in figure.axes for v in (*axes.get_xlim(), *axes.get_ylim()))
    curve = snr.lines[0]  # the rule at 0 dB comes last
    np.testing.assert_allclose(curve.get_ydata(), 10 * np.log10(vp_schedule().snr.numpy()))
    assert math.isnan(snr.lines[1].get_ydata()[-1])
    assert alpha_bar.lines[1].get_ydata()[-1] == 0
    assert beta.get_yscale() == "log"
    assert alpha_bar.get_xlabel() == r"$t\,/\,T$"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["vp", "flow", "both ends"]


@pytest.mark.parametrize("count", [1, 5, 9, 12, 25])
def test_schedule_curves_can_be_told_apart(count: int) -> None:
    figure = schedules.schedule_figure({f"schedule-number-{i}": vp_schedule(50 + 0 * i) for i in range(count)})
    texts_inside(figure)
    looks = {(line.get_color(), str(line._dash_pattern)) for line in figure.axes[0].lines}
    assert len(looks) == count
    assert figure.axes[0].get_xlabel() == "$t$"
    renderer = style.agg_of(figure).get_renderer()
    legend = figure.legends[0].get_window_extent(renderer)
    assert all(legend.y0 >= axes.title.get_window_extent(renderer).y1 for axes in figure.axes)


def test_up_to_nine_schedules_have_colours_of_their_own() -> None:
    figure = schedules.schedule_figure({f"n{i}": vp_schedule() for i in range(9)})
    assert len({line.get_color() for line in figure.axes[0].lines}) == 9


def test_a_schedule_of_one_level_is_a_dot() -> None:
    figure = schedules.schedule_figure({"one": Schedule.from_betas(torch.tensor([0.5], dtype=torch.float64))})
    assert figure.axes[0].lines[0].get_marker() == "o"


# ── plots of text ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("width", "height"), [(80, 12), (40, 5), (24, 2), (9, 1)])
def test_terminal_plot_keeps_its_size(plain: bool, width: int, height: int) -> None:
    curves = {
        name: np.linspace(1, 0, 1000) ** k for k, name in enumerate(["linear", "cosine", "sigmoid-alpha-bar"], start=1)
    }
    text = terminal_plot(curves, width=width, height=height, ascii=plain, y_label="alpha-bar")
    assert max(map(len, text.splitlines())) <= width
    assert text.isascii() == plain
    floor = "--" if plain else "──"
    assert [floor in line for line in text.splitlines()].index(True) == height + 1  # below the label and the rows


def test_terminal_plot_in_ascii_puts_each_curve_where_it_is() -> None:
    text = terminal_plot({"up": [0, 0.5, 1], "down": [1, 0.5, 0]}, width=11, height=3, ascii=True, y_label="share")
    lines = text.splitlines()
    assert lines[0] == "share"
    assert lines[1].startswith("1.0 +o")
    assert lines[1].endswith("*")
    assert lines[3].startswith("0.0 +*")
    assert lines[3].endswith("o")
    assert any("* up" in line for line in lines)
    assert any("o down" in line for line in lines)


def test_terminal_plot_of_odd_values() -> None:
    flat = terminal_plot({"a": [5.0] * 9}, width=40, height=4, ascii=True)
    assert flat.startswith("6.0 +")
    holes = terminal_plot({"a": [1.0, math.nan, math.inf, 0.0]}, width=40, height=4, ascii=True)
    assert "*" in holes
    assert terminal_plot({}, width=40, height=4)
    many = terminal_plot({f"n{i}": [0, 1] for i in range(20)}, width=60, height=8)
    marks = {line[i - 2] for line in many.splitlines() for i in range(2, len(line)) if line[i : i + 1] == "n"}
    assert len(marks) == 20


# ── --out ───────────────────────────────────────────────────────────────────────────────────────


def put(drawing: Drawing, path: Path, *, overwrite: bool = False) -> Path:
    """Write it as `difftool sample --out` does."""
    write(writer_of(path)(), drawing, path, overwrite=overwrite)
    return path


SUFFIXES = [suffix for writer in registry().all_of(Writer) for suffix in writer.suffixes if suffix]
OTHERS = (".mp4", ".wav")
"""The suffixes that not all samples, or not all machines, can be written to; tests/test_forms.py has theirs."""
ARRAYS = (".csv", ".npy", ".npz", ".safetensors")


def images_drawing(**changes: Any) -> Drawing:
    x = torch.from_numpy(random_images(6, 3, 5, 4)).float() / 127.5 - 1
    states = torch.stack([torch.randn(x.shape, generator=torch.Generator().manual_seed(k)) for k in range(4)] + [x])
    given: dict[str, Any] = {
        "x": x,
        "scaling": PIXEL_SCALING,
        "form": "image",
        "title": TITLE,
        "states": states,
        "state_labels": [f"t = {t}" for t in (999, 700, 400, 100)] + ["result"],
        "labels": torch.arange(6),
    }
    return Drawing(**{**given, **changes})


def points_drawing(dimensions: int = 2, **changes: Any) -> Drawing:
    data = torch.randn(200, dimensions, generator=torch.Generator().manual_seed(0)) * 3 + 5
    scaling = points(data).scaling
    x = scaling.to_model(data)
    given: dict[str, Any] = {
        "x": x[:50],
        "scaling": scaling,
        "title": TITLE,
        "states": torch.stack([x[150:], x[100:150], x[:50]]),
        "state_labels": ["t = 9", "t = 5", "result"],
        "reference": data,
    }
    return Drawing(**{**given, **changes})


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in OTHERS])
@pytest.mark.parametrize("drawing", [images_drawing(), points_drawing()], ids=["images", "points"])
def test_every_suffix_writes_a_file(tmp_path: Path, suffix: str, drawing: Drawing) -> None:
    for name in (f"a{suffix}", f"sub/b{suffix.upper()}"):
        path = put(drawing, tmp_path / name, overwrite=False)
        assert path == tmp_path / name
        assert path.stat().st_size > 50
        assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a{suffix}", "sub"]
    before = path.read_bytes()
    with pytest.raises(DifftoolError, match=r"exists already.*--overwrite"):
        put(drawing, path, overwrite=False)
    assert path.read_bytes() == before
    put(drawing, path, overwrite=True)
    assert path.read_bytes() == before


def test_arrays_of_images(tmp_path: Path) -> None:
    drawing = images_drawing()
    assert drawing.states is not None
    expected = drawing.scaling.to_pixels(drawing.x).permute(0, 2, 3, 1).numpy()
    put(drawing, tmp_path / "a.npy", overwrite=False)
    array = np.load(tmp_path / "a.npy")
    assert (array.dtype, array.shape) == (np.uint8, (6, 5, 4, 3))
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(array, random_images(6, 3, 5, 4).transpose(0, 2, 3, 1))

    states = np.stack([drawing.scaling.to_pixels(x).permute(0, 2, 3, 1).numpy() for x in drawing.states])
    put(images_drawing(trajectory=True), tmp_path / "b.npz", overwrite=False)
    with np.load(tmp_path / "b.npz", allow_pickle=False) as archive:
        assert sorted(archive) == ["labels", "samples", "states"]
        np.testing.assert_array_equal(archive["samples"], expected)
        np.testing.assert_array_equal(archive["states"], states)
        np.testing.assert_array_equal(archive["labels"], np.arange(6))

    put(drawing, tmp_path / "c.safetensors", overwrite=False)
    tensors = load_file(tmp_path / "c.safetensors")
    assert sorted(tensors) == ["labels", "samples"]
    np.testing.assert_array_equal(tensors["samples"].numpy(), expected)

    put(drawing, tmp_path / "d.csv", overwrite=False)
    lines = (tmp_path / "d.csv").read_text().splitlines()
    assert lines[0] == ",".join(f"x{i}" for i in range(60)) + ",label"
    table = np.array([[int(v) for v in line.split(",")] for line in lines[1:]])
    np.testing.assert_array_equal(table[:, :-1].reshape(expected.shape), expected)
    np.testing.assert_array_equal(table[:, -1], np.arange(6))


def test_raw_arrays_hold_the_floats(tmp_path: Path) -> None:
    drawing = images_drawing(raw=True, x=images_drawing().x * 3)
    for suffix in (".npy", ".npz", ".safetensors"):
        put(drawing, tmp_path / f"a{suffix}", overwrite=False)
    with np.load(tmp_path / "a.npz") as archive:
        arrays = [archive["samples"], np.load(tmp_path / "a.npy")]
    arrays.append(load_file(tmp_path / "a.safetensors")["samples"].numpy())
    for array in arrays:
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, drawing.x.numpy())


def test_unbounded_images_are_clamped_only_as_pixels(tmp_path: Path) -> None:
    x = torch.tensor([-7.0, -1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 1, 5)
    put(Drawing(x=x, scaling=PIXEL_SCALING, title=TITLE, form="image"), tmp_path / "a.npy", overwrite=False)
    assert np.load(tmp_path / "a.npy").ravel().tolist() == [0, 0, 128, 255, 255]


def test_pixels_that_were_standardised_come_back(tmp_path: Path) -> None:
    scaling = Scaling((33.0, 120.0), (78.0, 50.0))
    raw = torch.arange(256, dtype=torch.uint8).repeat(1, 2, 1, 1).reshape(1, 2, 16, 16)
    drawing = Drawing(x=scaling.to_model(raw), scaling=scaling, title=TITLE, form="image")
    put(drawing, tmp_path / "a.npy", overwrite=False)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), raw.permute(0, 2, 3, 1).numpy())


def test_arrays_of_points_are_in_data_units(tmp_path: Path) -> None:
    drawing = points_drawing(trajectory=True)
    assert drawing.states is not None
    expected = drawing.scaling.to_data(drawing.x).numpy()
    assert drawing.reference is not None
    np.testing.assert_allclose(expected, drawing.reference[:50].numpy(), rtol=1e-5, atol=1e-5)

    put(drawing, tmp_path / "a.npy", overwrite=False)
    states = np.load(tmp_path / "a.npy")
    assert (states.dtype, states.shape) == (np.float32, (3, 50, 2))
    np.testing.assert_array_equal(states[-1], expected)
    put(drawing, tmp_path / "a.safetensors", overwrite=False)
    tensors = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(tensors["samples"].numpy(), expected)
    np.testing.assert_array_equal(tensors["states"].numpy(), states)

    put(points_drawing(), tmp_path / "a.csv", overwrite=False)
    assert (tmp_path / "a.csv").read_text().startswith("x0,x1\n")
    table = np.loadtxt(tmp_path / "a.csv", delimiter=",", skiprows=1, dtype=np.float32)
    np.testing.assert_array_equal(table, expected)
    put(drawing, tmp_path / "b.csv", overwrite=False)
    long = np.loadtxt(tmp_path / "b.csv", delimiter=",", skiprows=1)
    assert (tmp_path / "b.csv").read_text().startswith("state,sample,x0,x1\n")
    assert long[:, 0].tolist() == [k for k in range(3) for _ in range(50)]
    np.testing.assert_array_equal(long[:, 2:].astype(np.float32).reshape(states.shape), states)


def test_films_of_trajectories(tmp_path: Path) -> None:
    for name, drawing in (("a", images_drawing()), ("b", points_drawing()), ("c", points_drawing(5))):
        put(drawing, tmp_path / f"{name}.gif", overwrite=False)
        film = Image.open(tmp_path / f"{name}.gif")
        assert drawing.states is not None
        assert film.n_frames == len(drawing.states)
        assert film.info["loop"] == 0


def test_long_trajectories_are_thinned_to_their_ends() -> None:
    x = torch.zeros(1, 2)
    drawing = Drawing(x=x, scaling=Scaling((0.0,), (1.0,)), title=TITLE, states=torch.zeros(1000, 1, 2))
    chosen = drawing.chosen(90)
    assert (len(chosen), chosen[0], chosen[-1]) == (90, 0, 999)
    assert np.diff(chosen).min() >= 11
    assert drawing.chosen(1) == [999]
    assert dataclasses.replace(drawing, states=torch.zeros(3, 1, 2)).chosen(8) == [0, 1, 2]


def test_states_kept_for_several_files_are_evenly_chosen_for_each() -> None:
    """A film of 5 and a strip of 4 of a trajectory of 100 steps: together seven states, of which each finds its own."""
    spec = DrawingSpec(shape=(2,), steps=100, strip=4)
    steps = needed_states([Film(frames=5), Picture(), NPY()], spec)
    assert steps == [0, 25, 33, 50, 67, 75, 100]
    states = torch.zeros(len(steps), 1, 2)
    scaling = Scaling((0.0,), (1.0,))
    drawing = Drawing(x=states[-1], scaling=scaling, title=TITLE, states=states, state_steps=steps)
    assert [steps[k] for k in drawing.chosen(5)] == [0, 25, 50, 75, 100]
    assert [steps[k] for k in drawing.chosen(4)] == [0, 33, 67, 100]


def test_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, path, **_: (figures.append(figure), path.touch()))
    put(images_drawing(strip=3), tmp_path / "a.png", overwrite=False)
    put(points_drawing(strip=2), tmp_path / "b.png", overwrite=False)
    words = [[text.get_text() for text in figure.texts] for figure in figures]
    assert words[0] == [TITLE, "t = 999", "t = 400", "result", *(f"class {k}" for k in range(6))]
    assert words[1] == [TITLE, "t = 9", "result"]


def test_folder_of_images(tmp_path: Path) -> None:
    drawing, folder = images_drawing(), tmp_path / "images"
    assert put(drawing, folder, overwrite=False) == folder
    expected = drawing.scaling.to_pixels(drawing.x).permute(0, 2, 3, 1).numpy()
    assert sorted(p.name for p in folder.glob("[!.]*")) == [f"{i:04d}.png" for i in range(6)]
    for i in range(6):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"{i:04d}.png")), expected[i])
    with pytest.raises(DifftoolError, match="exists already"):
        put(drawing, folder, overwrite=False)

    (folder / "notes.txt").touch()
    gray = images_drawing(x=drawing.x[:2, :1])
    put(gray, folder, overwrite=True)
    assert sorted(p.name for p in folder.glob("[!.]*")) == ["0000.png", "0001.png", "notes.txt"]
    assert Image.open(folder / "0001.png").mode == "L"
    (tmp_path / "empty").mkdir()
    put(gray, tmp_path / "empty", overwrite=False)
    (tmp_path / "file").touch()
    with pytest.raises(DifftoolError, match="file"):
        put(gray, tmp_path / "file", overwrite=True)


def test_transparent_samples_as_jpeg(tmp_path: Path) -> None:
    x = torch.zeros(2, 4, 8, 8)
    for suffix in (".jpg", ".png", ".gif"):
        drawing = images_drawing(x=x, states=torch.stack([x, x + 0.5]), state_labels=["a", "b"], labels=None)
        put(drawing, tmp_path / f"a{suffix}", overwrite=False)
    assert Image.open(tmp_path / "a.jpg").mode == "RGB"
    put(Drawing(x=x, scaling=PIXEL_SCALING, title=TITLE, form="image"), tmp_path / "folder", overwrite=False)
    assert Image.open(tmp_path / "folder" / "0000.png").mode == "RGBA"


def test_every_format_has_one_writer() -> None:
    assert len(SUFFIXES) == len(set(SUFFIXES))
    assert {*formats.PICTURES, *formats.FILMS, *ARRAYS, *OTHERS} == set(SUFFIXES)
    assert Picture.suffixes == formats.PICTURES


@pytest.mark.parametrize("name", ["a.bmp", "a.png.tiff", "run.v2", ".png"])
def test_unknown_suffixes(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        writer_of(Path(name))
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    assert name == ".png" or all(suffix in message for suffix in SUFFIXES)


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("a.png", "picture"),
        ("a.PNG", "picture"),
        ("a.b.npz", "npz"),
        ("folder", "folder"),
        ("runs/x/samples", "folder"),
    ],
)
def test_known_suffixes(name: str, writer: str) -> None:
    assert writer_of(Path(name)).name == writer


@pytest.mark.parametrize(
    ("name", "shape", "strip"),
    [
        ("folder", (2,), None),
        ("a.png", (3, 8, 8), None),
        ("a.gif", (5, 8, 8), None),
        ("folder", (3, 8, 8), None),
        ("a.png", (4, 7), None),
        ("a.png", (4, 7), 3),
    ],
)
def test_shapes_that_cannot_be_shown(name: str, shape: tuple[int, ...], strip: int | None) -> None:
    spec = DrawingSpec(shape=shape, steps=10, strip=strip)
    with pytest.raises(UsageError, match=r"\.npy"):
        check(writer_of(Path(name))(), Path(name), spec)
    for suffix in ARRAYS:
        path = Path(f"a{suffix}")
        check(writer_of(path)(), path, spec)


def test_odd_shapes_as_arrays(tmp_path: Path) -> None:
    x = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    drawing = Drawing(x=x, scaling=Scaling((0.0,), (2.0,)), title=TITLE, trajectory=True, states=x[None])
    for suffix in ARRAYS:
        put(drawing, tmp_path / f"a{suffix}", overwrite=False)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy")[0], 2 * x.numpy())


@pytest.mark.parametrize(
    ("name", "strip", "trajectory", "needed"),
    [
        ("a.gif", None, False, list(range(8))),
        ("a.png", None, True, []),
        ("a.png", 3, False, [0, 4, 7]),
        ("a.npy", 5, False, []),
        ("a.CSV", None, True, list(range(8))),
        ("folder", 5, True, []),
    ],
)
def test_who_needs_the_states(name: str, strip: int | None, trajectory: bool, needed: list[int]) -> None:
    spec = DrawingSpec(shape=(3, 8, 8), steps=7, strip=strip, trajectory=trajectory)
    assert needed_states([writer_of(Path(name))()], spec) == needed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["a.png", "a.npy", "folder"])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, bad: float, name: str) -> None:
    x = images_drawing().x.clone()
    x[0, 0, 0, 0] = bad
    with pytest.raises(DifftoolError, match="NaN"):
        put(images_drawing(x=x), tmp_path / name, overwrite=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "disk full"), "could not be written: disk full"),
        (ValueError("too many colours"), "was not written: too many colours"),
        (KeyError("x"), "writer half failed: KeyError: 'x'"),
    ],
)
@pytest.mark.parametrize("name", ["a.half", "folder"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, error: Exception, message: str, name: str) -> None:
    class Half(Writer, name="half"):
        suffixes = (".half", "")

        def write(self, drawing: Drawing, path: Path) -> None:
            (path / "0000.png" if path.is_dir() else path).write_text("half")
            raise error

    with pytest.raises(DifftoolError, match=message):
        write(Half(), images_drawing(), tmp_path / name, overwrite=False)
    assert not list(tmp_path.iterdir())


def test_a_suffix_of_two_strangers_is_nobodys() -> None:
    def writing(called: str, *suffixes: str) -> type[Writer]:
        return type("Made", (Writer,), {"suffixes": suffixes, "write": lambda *_: None}, name=called)

    ours, a, b, c = writing("ours", ".png"), writing("a", ".png", ".mp4"), writing("b", ".mp4"), writing("c", ".webm")
    plugins = [Plugin("difftool", "x", "1", components=[ours])]
    plugins += [Plugin(f"p-{one.name}", "x", "1", components=[one]) for one in (a, b, c)]
    with replaced_by(Registry(plugins)):
        assert writer_of(Path("x.png")) is ours
        assert writer_of(Path("x.webm")) is c
        with pytest.raises(UsageError, match=r"both a and b write \.mp4; leave one out by .*=p-a$"):
            writer_of(Path("x.mp4"))
