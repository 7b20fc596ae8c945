"""Charts to zoom and to hover over, by Bokeh, whose script comes in its wheel (the extra `report`).

The script is put into the page when it is written. It needs no network and evaluates no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftool.report.content import Chart, Line
from difftool.report.svg import Axis

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
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    _axes(plot, chart)
    drawn = [renderer for line in chart.lines for renderer in _draw(plot, line)]
    tooltips = [("", "@name"), (chart.x_label, "@x{0,0.[000]}"), (chart.y_label, "@text")]
    plot.add_tools(HoverTool(renderers=drawn, tooltips=tooltips, mode="mouse", visible=False))
    return plot


def _axes(plot: Any, chart: Chart) -> None:
    """Write the numbers of the axes out. The page's script keeps the ticks of a logarithmic axis to what is shown."""
    from bokeh.models import FixedTicker, NumeralTickFormatter

    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_font = plot.axis.major_label_text_font = "system-ui, sans-serif"
    plot.axis.axis_label_text_font_size = plot.axis.major_label_text_font_size = "12.5px"
    plot.axis.minor_tick_line_alpha = 0
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    plot.xaxis.ticker.desired_num_ticks = 5
    if chart.log:
        values = [value for line in chart.lines for value in line.y]
        ticker = FixedTicker(ticks=Axis.over(values, 0, 1, log=True).ticks(7), tags=["log-ticks"])
        plot.yaxis.ticker = plot.ygrid.ticker = ticker
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
