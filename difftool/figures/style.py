"""One look for every figure, text that fits, and files without dates.

Figures are laid out in pixels, so that a picture keeps its true pixels. No display is needed and no global setting of
matplotlib is changed.
"""

from __future__ import annotations

import bisect
import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]

PICTURE_DPI = 100
"""Of pictures made of samples."""
CHART_DPI = 160
"""Of curves."""
MARGIN = 14
"""Pixels around a picture."""

INK, FAINT, RULE = "#1f1f1f", "#6b6b6b", "#e4e4e4"
DATA, SAMPLES = "#b3b3b3", "#0072b2"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito (2008), which colour-blind readers can tell apart."""
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.4, 1.2, 1.4)))
"""So that curves also differ in grey print."""

TITLE, LABEL, SMALL = 12.0, 9.5, 8.5
"""Font sizes in points."""
LINE = 1.25
"""Height of a line of text in font sizes."""

_FAMILY = "DejaVu Sans"
_LOOK: Any = {
    "font.family": _FAMILY,
    "font.size": LABEL,
    "text.color": INK,
    "text.usetex": False,
    "mathtext.fontset": "dejavusans",
    "axes.edgecolor": "#9a9a9a",
    "axes.facecolor": "white",
    "axes.labelcolor": INK,
    "axes.labelsize": LABEL,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.which": "major",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": LABEL + 0.5,
    "axes.titleweight": "normal",
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-3, 4),
    "figure.facecolor": "white",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.fontsize": SMALL + 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "path.simplify": True,
    "savefig.facecolor": "white",
    "savefig.bbox": None,
    "savefig.pad_inches": 0.1,
    "xtick.color": "#9a9a9a",
    "xtick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "ytick.color": "#9a9a9a",
    "ytick.labelcolor": INK,
    "ytick.labelsize": SMALL,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "difftool",
}


@contextlib.contextmanager
def look() -> Iterator[None]:
    """difftool's look, whatever the user's own settings are; also a decorator. Never around a `yield`."""
    with matplotlib.rc_context(_LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@look()
def canvas(width: int, height: int, *, dpi: int = PICTURE_DPI) -> Figure:
    """An empty figure of exactly width x height pixels."""
    # A whisker more, since width / dpi * dpi may fall below width and is then cut to the pixel before.
    figure = Figure(figsize=((width + 1e-4) / dpi, (height + 1e-4) / dpi), dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def size_of(figure: Figure) -> tuple[int, int]:
    """(width, height) in pixels."""
    width, height = figure.bbox.size
    return int(width), int(height)


def rectangle(
    figure: Figure, left: float, top: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """Pixels from the upper left corner -> (left, bottom, width, height) in fractions of the figure."""
    total_width, total_height = size_of(figure)
    return left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height


def write(figure: Figure, x: float, y: float, text: str, **look_of_it: Any) -> Text:
    """Text at pixels (x, y) from the upper left corner; taken literally, so a `$` is a `$`."""
    width, height = size_of(figure)
    return figure.text(x / width, 1 - y / height, text, parse_math=False, linespacing=LINE, **look_of_it)


@look()
def render(figure: Figure) -> Pixels:
    """The figure as RGB pixels (height, width, 3)."""
    agg = agg_of(figure)
    agg.draw()
    return pixels_of(agg)


def agg_of(figure: Figure) -> Any:
    """The canvas (FigureCanvasAgg) on which the figure becomes pixels."""
    return figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)


def pixels_of(agg: Any) -> Pixels:
    """What was drawn last, as RGB (height, width, 3)."""
    return np.asarray(agg.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix; the same figure gives the same bytes."""
    FORMATS[path.suffix.lower()](figure, path)


def _png(figure: Figure, path: Path) -> None:
    Image.fromarray(render(figure)).save(path, format="PNG", dpi=(figure.dpi, figure.dpi))


def _jpeg(figure: Figure, path: Path) -> None:
    picture = Image.fromarray(render(figure))
    picture.save(path, format="JPEG", quality=95, subsampling=0, dpi=(round(figure.dpi), round(figure.dpi)))


@look()
def _svg(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", dpi=figure.dpi, metadata={"Date": None})


@look()
def _pdf(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="pdf", dpi=figure.dpi, metadata={"CreationDate": None})


FORMATS: dict[str, Callable[[Figure, Path], None]] = {
    ".png": _png,
    ".jpg": _jpeg,
    ".jpeg": _jpeg,
    ".svg": _svg,
    ".pdf": _pdf,
}
"""What `save` writes, by suffix."""


@lru_cache(maxsize=1)
def _ruler() -> Any:
    renderer: Any = RendererAgg
    return renderer(1, 1, PICTURE_DPI)


@lru_cache(maxsize=4096)
def text_width(text: str, size: float) -> float:
    """Width in pixels of one line of text at `PICTURE_DPI`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        width, _, _ = _ruler().get_text_width_height_descent(text, FontProperties(family=_FAMILY, size=size), False)
    return float(width)


def line_height(size: float) -> float:
    """Pixels a line of text takes at `PICTURE_DPI`."""
    return size * LINE * PICTURE_DPI / 72


def wrap(text: str, width: float, size: float) -> list[str]:
    """Lines no wider than `width` pixels: broken at spaces, and inside a word only where the word alone is wider."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if text_width(longer, size) <= width:
                line = longer
                continue
            lines += [line] if line else []
            *pieces, line = _break(word, width, size)
            lines += pieces
        lines.append(line)
    return lines


def _break(word: str, width: float, size: float) -> list[str]:
    pieces = []
    while text_width(word, size) > width and len(word) > 1:
        # The longest beginning that fits, one letter at least.
        end = bisect.bisect_right(range(2, len(word)), width, key=lambda n: text_width(word[:n], size)) + 1
        pieces.append(word[:end])
        word = word[end:]
    return [*pieces, word]


def fit(titles: Sequence[str], width: float, *, most: int = 6) -> tuple[list[str], float]:
    """Titles of one font size: smaller where one is wide, then wrapped, with an ellipsis after `most` lines."""
    paragraphs = [line for title in titles for line in title.splitlines()]
    for size in (TITLE, TITLE - 1, TITLE - 2):
        if all(text_width(paragraph, size) <= width for paragraph in paragraphs):
            break
    return ["\n".join(_cut(wrap(title, width, size), width, size, most)) for title in titles], size


def _cut(lines: list[str], width: float, size: float, most: int) -> list[str]:
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and text_width(f"{last}…", size) > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}…"]


def plain_legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], **place: Any) -> None:
    """A legend of the whole figure, its names taken literally."""
    legend = figure.legend(handles, names, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)


def quiet(axes: Axes) -> None:
    """A bare frame: no ticks, no grid."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#c4c4c4", linewidth=0.7)
