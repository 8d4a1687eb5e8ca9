"""A report of records: one HTML file that needs nothing but itself, and its charts as PNG files beside it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path

from saccade.benchmarks.measuring.compare import Difference, differ
from saccade.benchmarks.measuring.records import Profile, Record
from saccade.benchmarks.measuring.sitting import CEILING
from saccade.benchmarks.reporting import charts, svg
from saccade.benchmarks.reporting.charts import Chart
from saccade.benchmarks.reporting.style import STYLE

PAGE = "report.html"
_LAYERS = 12  # rows of the table of single layers


def write(records: Sequence[Record], profiles: Sequence[Profile], folder: Path) -> Path:
    """Write the report into `folder`, which is made where it is missing; returns the page.

    The PNG files are left out where matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = list(_sections(records, profiles))
    page = folder / PAGE
    temporary = page.with_name(f".{PAGE}-{secrets.token_hex(4)}")
    temporary.write_text(_page(records, sections, profiles), encoding="utf-8")
    temporary.rename(page)
    if find_spec("matplotlib") is not None:
        from saccade.benchmarks.reporting.png import draw

        for section in sections:
            for chart in section.charts:
                draw(chart, folder / f"{_file_name(section.title, chart.title)}.png", section.title)
    return page


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, its charts, and the records that stand in a table below them."""

    title: str
    charts: list[Chart]
    records: Sequence[Record] = ()


def _sections(records: Sequence[Record], profiles: Sequence[Profile]) -> Iterator[Section]:
    """What the page shows, in its order."""
    timed = charts.measured(records)
    colour = charts.colours(timed)
    overview = [chart for chart in (charts.accuracy(timed, colour), charts.roofline(timed)) if chart]
    if overview:
        yield Section("All models", list(overview))
    of_models = [record for record in records if record.configuration.model != CEILING]
    for model, threads in dict.fromkeys((r.configuration.model, r.configuration.threads) for r in of_models):
        found = [r for r in of_models if (r.configuration.model, r.configuration.threads) == (model, threads)]
        drawn = charts.of_model(charts.measured(found), colour) if charts.measured(found) else []
        yield Section(f"{model}, {_threads(threads)}", drawn, found)
    for model in dict.fromkeys(profile.configuration.model for profile in profiles):
        of_it = [profile for profile in profiles if profile.configuration.model == model and profile.layers]
        yield Section(f"{model}: time by layer", [charts.layers(profile) for profile in of_it])


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _file_name(*words: str) -> str:
    kept = "".join(letter if letter.isalnum() else " " for letter in " ".join(words))
    return "_".join(kept.lower().split())


def _page(records: Sequence[Record], sections: Sequence[Section], profiles: Sequence[Profile]) -> str:
    drawn = "".join(map(_section, sections))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>saccade bench</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>saccade bench</h1>{_conditions(records)}</header>"
        f"{_warnings(records)}{drawn}{_single_layers(profiles)}{_versions(records)}</main></body></html>\n"
    )


def _section(section: Section) -> str:
    drawn = "".join(map(svg.draw, section.charts))
    shown = f'<div class="charts">{drawn}</div>' if drawn else ""
    table = _table(section.records) if section.records else ""
    return f"<section><h2>{escape(section.title)}</h2>{shown}{table}</section>"


def _conditions(records: Sequence[Record]) -> str:
    if not records:
        return "<p>Nothing was measured.</p>"
    here = records[0].conditions
    ceilings = [
        f"{r.gflops:.0f} GFLOP/s on {_threads(r.configuration.threads)}"
        for r in {r.configuration.threads: r for r in records if r.configuration.model == CEILING}.values()
        if r.gflops
    ]
    ceiling = f" · matrix product {', '.join(ceilings)}" if ceilings else ""
    load = max(record.conditions.load_average for record in records)
    return (
        f"<p>{escape(here.machine)} · {here.cpus} cores{ceiling}</p>"
        f"<p>{escape(here.date)} · load average up to {load:g} when the rounds began</p>"
    )


def _warnings(records: Sequence[Record]) -> str:
    noisy = sum(1 for record in records if record.noisy)
    partial = any(not record.complete for record in records if not record.error)
    lines = []
    if noisy:
        lines.append(
            f"<strong>Noisy:</strong> {noisy} of {len(records)} records. Repeat them on a quiet machine "
            "before you rely on a few percent; the remarks say why."
        )
    if partial:
        lines.append("<strong>Stopped early:</strong> these are the records of what was measured.")
    return "".join(f'<p class="warning">{line}</p>' for line in lines)


# --- tables ----------------------------------------------------------------------------------------------

_TEXTS = ("engine", "remark", "layer", "operator")


def _table(records: Sequence[Record]) -> str:
    """Records of one model and number of threads. Columns that nothing stands in are left out."""
    rows = [_row(record, records) for record in records]
    headings = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [
        (_marks(record), [row[name] for name in headings]) for record, row in zip(records, rows, strict=True)
    ]
    return _as_table(headings, lines)


def _row(record: Record, beside: Sequence[Record]) -> dict[str, str]:
    """Cells by heading."""
    given, timing, used = record.configuration, record.timing, record.resources
    return {
        "engine": given.label,
        "batch": str(given.batch),
        "median ms": _short(timing.median_ms) if timing else "",
        "p90": _short(timing.p90_ms) if timing else "",
        "p99": _short(timing.p99_ms) if timing else "",
        "rounds ±": f"{timing.spread:.1%}" if timing else "",
        "images/s": _short(record.images_per_s),
        "GFLOP/s": _short(record.gflops, 3),
        "of ceiling": f"{record.of_ceiling:.0%}" if record.of_ceiling else "",
        "to our fastest": _beside_ours(record, beside),
        "MiB": f"{used.peak_rss_mib:.0f}" if used else "",
        "device MiB": _short(used.device_memory_mib) if used else "",
        "J/image": _short(used.energy_j, 3) if used else "",
        "agreement": f"{record.agreement:.0e}" if record.agreement is not None else "",
        "remark": f"failed: {record.error}" if record.error else record.noisy,
    }


def _marks(record: Record) -> str:
    marks = {"peer": record.configuration.peer, "noisy": bool(record.noisy), "failed": bool(record.error)}
    return " ".join(name for name, true in marks.items() if true)


def _beside_ours(record: Record, records: Sequence[Record]) -> str:
    """A peer's time over that of our fastest engine in the same sitting and precision."""
    ours = [
        other
        for other in records
        if other.timing
        and not other.configuration.peer
        and other.configuration.precision == record.configuration.precision
        and (other.conditions.run, other.conditions.sitting)
        == (record.conditions.run, record.conditions.sitting)
    ]
    if not record.configuration.peer or not ours or record.timing is None:
        return ""
    fastest = min(ours, key=lambda other: other.timing.median_ms if other.timing else 0.0)
    return _verdict(differ(fastest, record))


def _verdict(found: Difference) -> str:
    return f"{found.ratio:.2f} {'' if found.verdict == 'no difference seen' else found.verdict}".strip()


def _single_layers(profiles: Sequence[Profile]) -> str:
    tables = []
    for profile in profiles:
        whole = sum(layer.ms for layer in profile.layers) or 1.0
        lines = [
            ("", [each.name, each.operator, f"{each.ms:.4g}", f"{each.ms / whole:.1%}"])
            for each in profile.layers[:_LAYERS]
        ]
        given = profile.configuration
        title = f"{given.model}, {given.label}: the {len(lines)} slowest of {len(profile.layers)} layers"
        table = _as_table(("layer", "operator", "ms", "share"), lines)
        tables.append(f"<details><summary>{escape(title)}</summary>{table}</details>")
    return f"<section><h2>Single layers</h2>{''.join(tables)}</section>" if tables else ""


def _versions(records: Sequence[Record]) -> str:
    found: dict[str, str] = {}
    for record in records:
        found |= record.conditions.versions
    listed = ", ".join(f"{escape(name)} {escape(version)}" for name, version in found.items())
    return f"<footer><p>{listed}</p></footer>" if listed else ""


def _as_table(headings: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """lines: the classes of a row, and its cells."""
    head = "".join(_cell("th", name, name) for name in headings)
    body = "".join(
        f'<tr class="{marks}">'
        + "".join(_cell("td", name, cell) for name, cell in zip(headings, cells, strict=True))
        + "</tr>"
        for marks, cells in lines
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(tag: str, heading: str, text: str) -> str:
    side = f' class="text {heading}"' if heading in _TEXTS else ""
    return f"<{tag}{side}>{escape(text)}</{tag}>"


def _short(value: float | None, digits: int = 4) -> str:
    """`value` with so many digits, never as a power of ten."""
    if value is None:
        return ""
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
