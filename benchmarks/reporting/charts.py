"""The charts of a report as data, made of records; `svg` and `png` draw them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from saccade.benchmarks.measuring.records import Profile, Record
from saccade.benchmarks.measuring.sitting import CEILING

PARTS = ("preprocess", "copy", "run", "postprocess")
_OPERATORS = 9  # bars of a chart of layers; the rest is one more


@dataclass(frozen=True, slots=True)
class Point:
    """low, high: what the rounds span. note: shown on hovering. label: written beside the point."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """colour: a number, the same for one name throughout a report. hollow: a peer. joined: with a line."""

    name: str
    points: tuple[Point, ...]
    colour: int
    hollow: bool = False
    joined: bool = True


@dataclass(frozen=True, slots=True)
class Plot:
    """Points over two axes. x_ticks: where something was measured; () for round numbers."""

    title: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    x_log: bool = False
    y_log: bool = False
    x_ticks: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of stacked pieces, as (name, value). note: written at its end."""

    label: str
    pieces: tuple[tuple[str, float], ...]
    note: str = ""
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars, one unit for all. colours: by name of the piece."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    colours: Mapping[str, int]


Chart = Plot | Bars


def measured(records: Iterable[Record]) -> list[Record]:
    """Those of models that have a time."""
    return [record for record in records if record.timing and record.configuration.model != CEILING]


def colours(records: Sequence[Record]) -> dict[str, int]:
    """A number for each label, ours first."""
    ours = [r.configuration.label for r in records if not r.configuration.peer]
    theirs = [r.configuration.label for r in records if r.configuration.peer]
    return {label: number for number, label in enumerate(dict.fromkeys([*ours, *theirs]))}


def of_model(records: Sequence[Record], colour: Mapping[str, int]) -> list[Chart]:
    """Latency and throughput of the records of one model and number of threads, and time by part."""
    batches = sorted({record.configuration.batch for record in records})
    charts: list[Chart] = []
    if len(batches) > 1:
        for title, unit, inverse in (
            ("Latency", "ms for one batch", False),
            ("Throughput", "images/s", True),
        ):
            series = tuple(_over_batch(label, found, colour, inverse) for label, found in _by_label(records))
            ticks = tuple(map(float, batches))
            charts.append(Plot(title, "pictures in a batch", unit, series, True, not inverse, ticks))
    else:
        charts.append(_latency_bars(records, batches[0], colour))
    return charts + _by_part(records)


def accuracy(records: Sequence[Record], colour: Mapping[str, int]) -> Plot | None:
    """Accuracy against latency at the smallest batch, where evidence of accuracy is in the bundles."""
    series: defaultdict[str, list[Point]] = defaultdict(list)
    named: set[str] = set()
    smallest = min((record.configuration.batch for record in records), default=1)
    for record in records:
        given, timing = record.configuration, record.timing
        if given.accuracy is not None and given.batch == smallest and timing:
            note = f"{given.model}, {given.label}: {given.accuracy:.1f} %, {timing.median_ms:.4g} ms"
            label = "" if given.model in named else given.model
            named.add(given.model)
            series[given.label].append(Point(timing.median_ms, given.accuracy, note=note, label=label))
    if not series:
        return None
    drawn = (Series(name, tuple(found), colour[name], joined=False) for name, found in series.items())
    return Plot("Accuracy against latency", f"ms, batch {smallest}", "accuracy, %", tuple(drawn), x_log=True)


def roofline(records: Sequence[Record]) -> Plot | None:
    """Where models stand under what the machine can multiply and move; of one number of threads."""
    placed = [r for r in records if r.intensity and r.gflops and not r.configuration.peer]
    ceilings = [r.ceiling_gflops for r in placed if r.ceiling_gflops]
    streams = [r.stream_gbs for r in placed if r.stream_gbs]
    if not placed or not ceilings or not streams:
        return None
    top, slope = max(ceilings), max(streams)
    xs = [record.intensity or 0.0 for record in placed]
    left, right = min(*xs, top / slope) / 2, max(*xs, top / slope) * 2
    edge = tuple(Point(x, min(top, slope * x)) for x in (left, top / slope, right))
    names = list(dict.fromkeys(record.configuration.model for record in placed))
    roof = Series(f"the machine: {top:.0f} GFLOP/s, {slope:.0f} GB/s", edge, len(names))
    models = (
        Series(
            name, tuple(_under_roof(r) for r in placed if r.configuration.model == name), number, joined=False
        )
        for number, name in enumerate(names)
    )
    title, x_title = "Under the roofline", "operations per byte that must be moved"
    return Plot(title, x_title, "GFLOP/s", (*models, roof), x_log=True, y_log=True)


def layers(profile: Profile) -> Bars:
    """Time by operator in one engine, the largest first, the small ones together."""
    totals: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, int] = defaultdict(int)
    for layer in profile.layers:
        totals[layer.operator] += layer.ms
        counts[layer.operator] += 1
    ordered = sorted(totals, key=lambda name: -totals[name])
    whole = sum(totals.values()) or 1.0
    shown = [
        Bar(f"{name} ×{counts[name]}", (("time", totals[name]),), f"{totals[name] / whole:.0%}")
        for name in ordered[:_OPERATORS]
    ]
    if rest := ordered[_OPERATORS:]:
        time = sum(totals[name] for name in rest)
        shown.append(Bar(f"{len(rest)} others", (("time", time),), f"{time / whole:.0%}"))
    given = profile.configuration
    return Bars(f"{given.label}, batch {given.batch}", "ms", tuple(shown), {"time": 0})


def _by_label(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    ordered = sorted(records, key=lambda record: (record.configuration.peer, record.configuration.label))
    return [(name, list(found)) for name, found in groupby(ordered, key=lambda r: r.configuration.label)]


def _over_batch(label: str, records: Sequence[Record], colour: Mapping[str, int], inverse: bool) -> Series:
    points = []
    for record in sorted(records, key=lambda record: record.configuration.batch):
        timing, batch = record.timing, record.configuration.batch
        assert timing is not None  # `measured`
        span = min(timing.rounds_ms), timing.median_ms, max(timing.rounds_ms)
        values = sorted(1e3 * batch / ms for ms in span) if inverse else span
        unit = "images/s" if inverse else "ms"
        noisy = f" (noisy: {record.noisy})" if record.noisy else ""
        low, middle, high = values
        note = f"{label}, batch {batch}: {middle:.4g} {unit}, rounds {low:.4g} to {high:.4g}{noisy}"
        points.append(Point(batch, middle, low, high, note))
    return Series(label, tuple(points), colour[label], hollow=records[0].configuration.peer)


def _latency_bars(records: Sequence[Record], batch: int, colour: Mapping[str, int]) -> Bars:
    ordered = sorted(records, key=lambda record: record.timing.median_ms if record.timing else 0.0)
    bars = [
        Bar(
            record.configuration.label,
            ((record.configuration.label, record.timing.median_ms),),
            f"{record.images_per_s:.4g}/s{' · noisy' if record.noisy else ''}",
            record.configuration.peer,
        )
        for record in ordered
        if record.timing
    ]
    return Bars(f"Latency, batch {batch}", "ms", tuple(bars), colour)


def _by_part(records: Sequence[Record]) -> list[Chart]:
    """For each of our engines and the smallest batch, what comes before and after a run."""
    smallest = min(record.configuration.batch for record in records)
    bars = []
    for record in records:
        given, timing = record.configuration, record.timing
        if given.batch != smallest or given.peer or timing is None or not timing.parts_ms:
            continue
        parts = {"run": timing.median_ms, **timing.parts_ms}
        pieces = tuple((name, parts[name]) for name in PARTS if name in parts)
        bars.append(Bar(given.label, pieces))
    if not bars:
        return []
    # Far from the colours of engines, which stand beside them.
    return [
        Bars(f"Time by part, batch {smallest}", "ms", tuple(bars), {p: 4 + i for i, p in enumerate(PARTS)})
    ]


def _under_roof(record: Record) -> Point:
    given = record.configuration
    assert record.intensity is not None  # `roofline`
    assert record.gflops is not None
    share = f", {record.of_ceiling:.0%} of the ceiling" if record.of_ceiling else ""
    note = f"{given.model}, {given.label}, batch {given.batch}: {record.gflops:.4g} GFLOP/s{share}"
    return Point(record.intensity, record.gflops, note=note)
