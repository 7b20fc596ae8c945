"""The look that all figures share, and their files, which hold no dates.

Figures are laid out in pixels, so that a picture keeps its true pixels. They need no display and change no global
setting of matplotlib.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from difftool.figures import metadata

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]

PICTURE_DPI, CHART_DPI = 100, 160
"""Resolutions of pictures of samples, and of curves."""

INK, FAINT, RULE = "#1f1f1f", "#6b6b6b", "#e4e4e4"
DATA, SAMPLES = "#b3b3b3", "#0072b2"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito (2008), which colour-blind readers can tell apart."""
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.4, 1.2, 1.4)))
"""Dashes of lines, so that curves also differ in grey print."""

TITLE, LABEL, SMALL = 12.0, 9.5, 8.5
"""Font sizes in points."""
LINE = 1.25
"""The height of a line of text in font sizes."""

FAMILY = "DejaVu Sans"
MISSING_GLYPH = "Glyph .* missing from"
_LOOK: Any = {
    "font.family": FAMILY,
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
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
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
    """Use difftool's look, whatever the user's own settings are; also a decorator. Never put it around a `yield`."""
    with matplotlib.rc_context(_LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=MISSING_GLYPH)
        yield


@look()
def canvas(width: int, height: int, *, dpi: int = PICTURE_DPI, layout: Literal["constrained"] | None = None) -> Figure:
    """Return an empty figure of exactly width x height pixels. `layout` is matplotlib's."""
    figure = Figure(figsize=(inches(width, dpi), inches(height, dpi)), dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def inches(pixels: int, dpi: int) -> float:
    """Return a length in inches: a whisker more, since pixels / dpi * dpi may fall below a pixel and is then cut."""
    return (pixels + 1e-4) / dpi


def size_of(figure: Figure) -> tuple[int, int]:
    """Return (width, height) in pixels."""
    width, height = figure.bbox.size
    return int(width), int(height)


def rectangle(
    figure: Figure, left: float, top: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """Turn pixels from the upper left corner into (left, bottom, width, height) in fractions of the figure.

    Width and height are a whisker less, since matplotlib before 3.11 fills each pixel that they touch.
    """
    total_width, total_height = figure.bbox.size
    bottom = size_of(figure)[1] - top - height
    width, height = width - 1e-3, height - 1e-3
    return left / total_width, bottom / total_height, width / total_width, height / total_height


def write(figure: Figure, x: float, y: float, text: str, **look_of_it: Any) -> Text:
    """Write text at pixels (x, y) from the upper left corner. It is taken literally, so a `$` is a `$`."""
    width, height = size_of(figure)
    return figure.text(x / width, 1 - y / height, text, parse_math=False, linespacing=LINE, **look_of_it)


def quiet(axes: Axes) -> None:
    """Leave only a thin frame: no ticks and no grid."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#c4c4c4", linewidth=0.7)


@look()
def render(figure: Figure) -> Pixels:
    """Return the figure as RGB pixels (height, width, 3)."""
    agg = agg_of(figure)
    agg.draw()
    return pixels_of(agg)


def agg_of(figure: Figure) -> Any:
    """Return the canvas (FigureCanvasAgg) on which the figure becomes pixels."""
    return figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)


def pixels_of(agg: Any) -> Pixels:
    """Return what was drawn last, as RGB (height, width, 3)."""
    return np.asarray(agg.buffer_rgba())[..., :3].copy()


VECTORS = (".svg", ".pdf")


@look()
def save(figure: Figure, path: Path, *, text: str = "") -> None:
    """Write a figure in the format of the path's suffix, one of `PICTURES`, with a text about it in ASCII.

    The same figure gives the same bytes.
    """
    suffix, dpi = path.suffix.lower(), round(figure.dpi)
    if suffix in VECTORS:
        figure.savefig(path, format=suffix[1:], dpi=dpi, metadata=metadata.of_vectors(path, text))
    else:
        # the last two before the text are for JPEG
        about = metadata.of_picture(path, text)
        Image.fromarray(render(figure)).save(path, dpi=(dpi, dpi), quality=95, subsampling=0, **about)
