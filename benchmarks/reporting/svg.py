"""Charts as SVG elements that a page's own styles colour, so that they follow its light and dark forms.

Colours are the classes s0 to s7 of a mark; text and lines of the axes have classes of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from saccade.benchmarks.reporting.charts import Bar, Bars, Chart, Plot, Point, Series

COLOURS = 8
WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 68, 14, 12, 44
_ROW, _LABEL = 26, 158  # of bars
_CHARACTER = 7.0  # width of a letter, about


def draw(chart: Chart) -> str:
    """One <figure>: title, legend and drawing."""
    body, names = (
        (_plot(chart), [(s.name, s.colour, s.hollow) for s in chart.series])
        if isinstance(chart, Plot)
        else (_bars(chart), _pieces(chart))
    )
    legend = "".join(
        f'<li><span class="key s{number % COLOURS}{" hollow" if hollow else ""}"></span>{escape(name)}</li>'
        for name, number, hollow in names
    )
    keys = f'<ul class="legend">{legend}</ul>' if len(names) > 1 else ""
    return f"<figure><figcaption>{escape(chart.title)}</figcaption>{keys}{body}</figure>"


def _svg(height: float, label: str, content: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(content)}</svg>"
    )


# --- plots -----------------------------------------------------------------------------------------------


def _plot(plot: Plot) -> str:
    points = [point for series in plot.series for point in series.points]
    x_low, x_high = _range([p.x for p in points], plot.x_log)
    tall = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
    y_low, y_high = _range(tall, plot.y_log)
    x = _scale(x_low, x_high, LEFT, WIDTH - RIGHT, plot.x_log)
    y = _scale(y_low, y_high, HEIGHT - BOTTOM, TOP, plot.y_log)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [*_y_axis(plot, y, y_low, y_high), *_x_axis(plot, x, x_low, x_high)]
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 8}">{escape(plot.x_title)}</text>')
    height = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="axis" transform="translate(13 {height}) rotate(-90)">{escape(plot.y_title)}</text>'
    )
    for series in plot.series:
        parts += _drawn(series, x, y)
    parts += _labels(plot, x, y)
    return _svg(HEIGHT, plot.title, parts)


Scale = Callable[[float], float]


def _scale(low: float, high: float, start: float, end: float, log: bool) -> Scale:
    if log:
        low, high = math.log(low), math.log(high)
    size = (end - start) / (high - low)
    return lambda value: round(start + ((math.log(value) if log else value) - low) * size, 1)


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    """From below the smallest to above the largest; a linear axis of positive values begins at 0 unless they
    are close together.
    """
    low, high = min(values), max(values)
    if log:
        return low / 1.25, high * 1.25
    room = 0.08 * ((high - low) or abs(high) or 1.0)
    return (0.0 if 0 <= low < 0.6 * high else low - room), high + room


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers between `low` and `high`: about six, or 1, 2 and 5 times powers of ten."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
        return found if len(found) >= 2 else ticks(low, high, False)
    rough = (high - low) / 6
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def number(value: float) -> str:
    """As short as it can be read: 1200000 as 1.2M, 0.05 as 0.05."""
    for size, suffix in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e6 if suffix == 'M' else 1e3):.3g}{suffix}"
    return f"{value:.4g}"


def _y_axis(plot: Plot, y: Scale, low: float, high: float) -> list[str]:
    parts = []
    for tick in ticks(low, high, plot.y_log):
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at}" x2="{WIDTH - RIGHT}" y2="{at}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{at + 4}">{number(tick)}</text>')
    return parts


def _x_axis(plot: Plot, x: Scale, low: float, high: float) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [f'<line class="base" x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>']
    for tick in plot.x_ticks or ticks(low, high, plot.x_log):
        at = x(tick)
        parts.append(f'<line class="base" x1="{at}" y1="{bottom}" x2="{at}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{at}" y="{bottom + 17}">{number(tick)}</text>')
    return parts


def _drawn(series: Series, x: Scale, y: Scale) -> list[str]:
    colour = f"s{series.colour % COLOURS}"
    hollow = " hollow" if series.hollow else ""
    parts = []
    if series.joined and len(series.points) > 1:
        path = " ".join(f"{x(p.x)},{y(p.y)}" for p in series.points)
        parts.append(f'<polyline class="{colour}{hollow}" points="{path}"/>')
    for point in series.points:
        if point.low is not None and point.high is not None:
            at = x(point.x)
            span = f'y1="{y(point.low)}" x2="{at}" y2="{y(point.high)}"'
            parts.append(f'<line class="span {colour}" x1="{at}" {span}/>')
    parts += [_dot(point, colour + hollow, x, y) for point in series.points if point.note]
    return parts


def _dot(point: Point, classes: str, x: Scale, y: Scale) -> str:
    title = f"<title>{escape(point.note)}</title>"
    return f'<circle class="{classes}" cx="{x(point.x)}" cy="{y(point.y)}" r="4">{title}</circle>'


def _labels(plot: Plot, x: Scale, y: Scale) -> list[str]:
    """Names above points, inside of the drawing."""
    parts = []
    for point in (point for series in plot.series for point in series.points if point.label):
        half = _CHARACTER * len(point.label) / 2
        middle = min(max(x(point.x), LEFT + half), WIDTH - RIGHT - half)
        parts.append(f'<text class="name" x="{middle:.1f}" y="{y(point.y) - 9}">{escape(point.label)}</text>')
    return parts


# --- bars ------------------------------------------------------------------------------------------------


def _pieces(chart: Bars) -> list[tuple[str, int, bool]]:
    """The legend of stacked pieces; a chart whose bars have their names beside them needs none."""
    names = dict.fromkeys(name for bar in chart.bars for name, _ in bar.pieces)
    if all(len(bar.pieces) == 1 for bar in chart.bars):
        return []
    return [(name, chart.colours[name], False) for name in names]


def _bars(chart: Bars) -> str:
    longest = max(sum(value for _, value in bar.pieces) for bar in chart.bars) or 1.0
    room = max(len(_text(chart, bar)) for bar in chart.bars) * _CHARACTER + 12
    size = (WIDTH - _LABEL - room) / longest
    parts = [part for row, bar in enumerate(chart.bars) for part in _bar(chart, bar, row * _ROW, size)]
    return _svg(len(chart.bars) * _ROW + 4, chart.title, parts)


def _text(chart: Bars, bar: Bar) -> str:
    """What stands at the end of a bar: its length, and its note."""
    shown = f"{sum(value for _, value in bar.pieces):.4g} {chart.unit}"
    return f"{shown} · {bar.note}" if bar.note else shown


def _bar(chart: Bars, bar: Bar, top: float, size: float) -> list[str]:
    limit = int((_LABEL - 8) / _CHARACTER)
    label = bar.label if len(bar.label) <= limit else f"{bar.label[: limit - 1]}…"
    title = f"<title>{escape(bar.label)}</title>"
    parts = [f'<text class="tick end" x="{_LABEL - 8}" y="{top + 17}">{escape(label)}{title}</text>']
    start = float(_LABEL)
    for name, value in bar.pieces:
        classes = f"s{chart.colours[name] % COLOURS}{' hollow' if bar.hollow else ''}"
        note = escape(f"{bar.label}, {name}: {value:.4g} {chart.unit}")
        wide = max(value * size, 0.5)
        box = f'x="{start:.1f}" y="{top + 4:g}" width="{wide:.1f}" height="18" rx="2"'
        parts.append(f'<rect class="{classes}" {box}><title>{note}</title></rect>')
        start += wide
    end = f'x="{start + 6:.1f}" y="{top + 17}"'
    parts.append(f'<text class="tick start" {end}>{escape(_text(chart, bar))}</text>')
    return parts
