"""Charts to zoom and to hover over, by Bokeh, whose script comes in its wheel (the extra `report`).

The script is put into the page when it is written. It needs no network and evaluates no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftool.report.content import Chart, Line

HEIGHT = 350
"""Pixels of a chart."""
DASHES = ("solid", [7, 3], [2, 3], [8, 3, 2, 3])


@dataclass(frozen=True)
class Interactive:
    """Charts as the script of Bokeh takes them."""

    script: str
    items: dict[str, Any]
    """The JSON document of each chart by its key."""


def interactive(charts: Sequence[Chart]) -> Interactive | None:
    """Return charts for the script of Bokeh, or None where Bokeh is not installed."""
    try:
        import bokeh
        from bokeh.embed import json_item
    except ImportError:
        return None
    script = Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js"
    if not charts or not script.is_file():
        return None
    items = {chart.key: json_item(_figure(chart)) for chart in charts}
    return Interactive(script.read_text(encoding="utf-8"), items)


def _figure(chart: Chart) -> Any:
    from bokeh.models import HoverTool
    from bokeh.plotting import figure

    plot = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        y_axis_type="log" if chart.log else "linear",
        tools="box_zoom,pan,wheel_zoom,reset",
        active_drag=None,  # so that a finger scrolls the page; a mouse gets the zoom from the page's script
        active_scroll=None,
        x_axis_label=chart.x_label,
        y_axis_label=chart.y_label,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_alpha=0,
        min_border_right=12,
    )
    plot.toolbar.logo = None
    plot.xaxis.formatter.use_scientific = False
    if chart.log:
        _plain_ticks(plot)
    drawn = [renderer for line in chart.lines for renderer in _draw(plot, line)]
    tooltips = [("", "@name"), (chart.x_label, "@x{0,0.[000]}"), (chart.y_label, "@text")]
    plot.add_tools(HoverTool(renderers=drawn, tooltips=tooltips, mode="mouse"))
    return plot


def _plain_ticks(plot: Any) -> None:
    """Write the numbers of a logarithmic axis out, and more of them than powers of ten."""
    from bokeh.models import LogTicker, NumeralTickFormatter

    plot.yaxis.ticker = LogTicker(mantissas=[1, 2, 5], desired_num_ticks=5)
    plot.yaxis.formatter = NumeralTickFormatter(format="0.[000000]")


def _draw(plot: Any, line: Line) -> list[Any]:
    """Draw a line, and return what hovering over tells of."""
    from bokeh.models import ColumnDataSource, Whisker

    errors = line.errors or (None,) * len(line.y)
    texts = [f"{y:.5g}" + ("" if e is None else f" ± {e:.2g}") for y, e in zip(line.y, errors, strict=True)]
    columns = {"x": list(line.x), "y": list(line.y), "text": texts, "name": [line.name] * len(line.x)}
    if line.errors:
        columns["low"] = [y - e for y, e in zip(line.y, line.errors, strict=True)]
        columns["high"] = [y + e for y, e in zip(line.y, line.errors, strict=True)]
    source, tag = ColumnDataSource(columns), f"c{line.colour % 8}"
    if line.errors:
        plot.add_layout(Whisker(base="x", lower="low", upper="high", source=source, tags=[tag]))
    if line.marks or len(line.x) == 1:
        renderer = plot.scatter("x", "y", source=source, size=7)
    else:
        renderer = plot.line("x", "y", source=source, line_width=2, line_dash=DASHES[line.dash % 4])
    renderer.glyph.tags = [tag]
    return [renderer]
