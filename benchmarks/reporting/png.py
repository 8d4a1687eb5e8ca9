"""Charts as PNG files, drawn by matplotlib (extra `bench`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saccade.benchmarks.reporting.charts import Bars, Chart, Plot
from saccade.benchmarks.reporting.svg import number

_COLOURS = ("#1f6feb", "#d1541f", "#158462", "#8b44c9", "#b58900", "#0e8fa8", "#d13a7d", "#6b7280")


def draw(chart: Chart, path: Path, heading: str) -> None:
    """Write `chart` to `path`, under the heading of its section."""
    # Not pyplot: it would keep the figure, and ask for a display.
    from matplotlib.figure import Figure

    high = 4.2 if isinstance(chart, Plot) else 1.3 + 0.34 * len(chart.bars)
    figure = Figure(figsize=(6.6, high), dpi=150, layout="constrained")
    axes: Any = figure.add_subplot()
    axes.set_title(f"{heading}\n{chart.title}", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if isinstance(chart, Plot):
        _plot(axes, chart)
    else:
        _bars(axes, chart)
    figure.savefig(path)


def _plot(axes: Any, plot: Plot) -> None:
    for series in plot.series:
        colour = _COLOURS[series.colour % len(_COLOURS)]
        line = ("--" if series.hollow else "-") if series.joined else ""
        fill = "white" if series.hollow else colour
        xs, ys = [p.x for p in series.points], [p.y for p in series.points]
        marker = "o" if any(p.note for p in series.points) else ""
        axes.plot(xs, ys, line, marker=marker, color=colour, mfc=fill, ms=5, label=series.name)
        for point in series.points:
            if point.low is not None and point.high is not None:
                axes.plot([point.x, point.x], [point.low, point.high], color=colour, alpha=0.5, lw=1)
            if point.label:
                place = {"xytext": (5, 3), "textcoords": "offset points"}
                axes.annotate(point.label, (point.x, point.y), fontsize=7, **place)
    axes.set_xlabel(plot.x_title, fontsize=9)
    axes.set_ylabel(plot.y_title, fontsize=9)
    if plot.x_log:
        axes.set_xscale("log")
    if plot.y_log:
        axes.set_yscale("log")
    if plot.x_ticks:
        axes.set_xticks(plot.x_ticks, [number(tick) for tick in plot.x_ticks])
        axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False)


def _bars(axes: Any, chart: Bars) -> None:
    names = dict.fromkeys(name for bar in chart.bars for name, _ in bar.pieces)
    starts = [0.0] * len(chart.bars)
    for name in names:
        widths = [dict(bar.pieces).get(name, 0.0) for bar in chart.bars]
        colour = _COLOURS[chart.colours[name] % len(_COLOURS)]
        axes.barh(
            [bar.label for bar in chart.bars], widths, left=starts, color=colour, height=0.62, label=name
        )
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for row, (bar, end) in enumerate(zip(chart.bars, starts, strict=True)):
        text = f" {end:.4g} {chart.unit}{f' · {bar.note}' if bar.note else ''}"
        axes.text(end, row, text, va="center", fontsize=7)
    axes.set_xlim(0, max(starts) * 1.4)
    axes.invert_yaxis()
    axes.set_xlabel(chart.unit, fontsize=9)
    if any(len(bar.pieces) > 1 for bar in chart.bars):
        axes.legend(fontsize=7, frameon=False)
