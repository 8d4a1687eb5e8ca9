"""Write the generated tables of README.md and docs from the zoo and the records of benchmarks.

    python docs/tables.py

A status is one of the four words of the README, per model, for the full-size graph: *executed* on CPU where
exports.json has a verified export, *built by TensorRT for RTX* where tensorrt_rtx_builds.json has a build,
*unverified* where neither is so. Rows that `saccade accept` wrote on a GPU are counted from
benchmarks/accepted. A test holds the files to this.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from saccade.acceptance import records
from saccade.models.card import Card
from saccade.models.zoo import ENTRIES

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("executed", "built by TensorRT for RTX", "API-checked", "unverified")
LEAST_SIGNAL = 20  # tolerances between the outputs of two pictures
RESULTS = ROOT / "benchmarks" / "results"
ACCEPTED = ROOT / "benchmarks" / "accepted"
SUPPORT = ROOT / "docs" / "tensorrt_support.md"
_SHOWN = 7  # names of a family in the README


def main() -> None:
    for path, marker, table in tables():
        text = path.read_text(encoding="utf-8")
        path.write_text(filled(text, marker, table), encoding="utf-8")


def tables() -> tuple[tuple[Path, str, str], ...]:
    """(file, marker, Markdown) of every generated table."""
    cards = [entry.card for entry in ENTRIES.values()]
    return (
        (ROOT / "README.md", "speed", "\n".join(_speed())),
        (ROOT / "README.md", "families", "\n".join(_families(cards))),
        (ROOT / "docs" / "models.md", "models", "\n".join(_models(cards))),
        (SUPPORT, "builds", "\n".join(_builds(cards))),
    )


def filled(text: str, marker: str, table: str) -> str:
    """`text` with `table` between ``<!-- marker -->`` and the ``<!-- end -->`` that follows it."""
    before, opening, rest = text.partition(f"<!-- {marker} -->\n")
    _, closing, after = rest.partition("<!-- end -->")
    assert opening, f"<!-- {marker} --> is missing"
    assert closing, f"<!-- end --> is missing after {marker}"
    return f"{before}{opening}{table}\n{closing}{after}"


def _speed() -> Iterator[str]:
    """Milliseconds by model and batch; whoever is fastest is bold."""
    engines = ("onnxruntime", "openvino", "torch", "torch.compile", "plain onnxruntime", "plain openvino")
    ours = "Saccade, ONNX Runtime | Saccade, OpenVINO"
    yield f"| model | batch | {ours} | torch | torch.compile | plain, ONNX Runtime | plain, OpenVINO |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for row in _record("speed.json", "rows"):
        times = row["median_ms"]
        cells = [f"{times[each]:.0f}" if each in times else "failed" for each in engines]
        fastest = f"{min(times.values()):.0f}"
        shown = [f"**{cell}**" if cell == fastest else cell for cell in cells]
        yield f"| `{row['model']}` | {row['batch']} | {' | '.join(shown)} |"


def _families(cards: Sequence[Card]) -> Iterator[str]:
    yield "| family | models | on CPU | TensorRT | accepted on GPUs |"
    yield "|---|---|---|---|---|"
    for family in dict.fromkeys(card.family for card in cards):
        group = [card for card in cards if card.family == family]
        names = [f"`{card.name}`" for card in group[:_SHOWN]]
        names += [f"{len(group) - _SHOWN} more"] if len(group) > _SHOWN else []
        words = (_summary(group, "cpu"), _summary(group, "tensorrt"), accepted(group))
        yield f"| {family} | {', '.join(names)} | {' | '.join(words)} |"


def _summary(cards: Sequence[Card], where: str) -> str:
    """The status word, with how many of the models it holds for where they differ."""
    counts = Counter(_status(card.name, where) for card in cards)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{word} ({counts[word]} of {len(cards)})" for word in WORDS if counts[word])


def _models(cards: Sequence[Card]) -> Iterator[str]:
    yield "| model | task | input | parameters, M | GMACs | top-1, % | weights licence | on CPU | TensorRT |"
    yield "|---|---|---|--:|--:|--:|---|---|---|"
    for card in cards:
        height, width = card.preprocessing.input_size_hw
        cells = (
            f"`{card.name}`",
            card.task,
            f"{height}x{width}",
            "" if card.parameters is None else f"{card.parameters / 1e6:.1f}",
            "" if card.multiply_accumulates is None else f"{card.multiply_accumulates / 1e9:.1f}",
            "" if card.top1 is None else f"{card.top1:.1f}",
            card.licence,
            _status(card.name, "cpu"),
            _status(card.name, "tensorrt"),
        )
        yield f"| {' | '.join(cells)} |"


def accepted(cards: Sequence[Card]) -> str:
    """How many rows of these models `saccade accept` proved on a GPU, and the newest date; or "none yet"."""
    names = {card.name for card in cards}
    found = [records.read(path) for path in sorted(ACCEPTED.glob("*.json"))]
    dates = [each.date[:10] for each in found if each.model in names and each.verdict == "accepted"]
    return f"{len(dates)}, newest {max(dates)}" if dates else "none yet"


def _builds(cards: Sequence[Card]) -> Iterator[str]:
    """Every graph that was built in fp32 or fp16 by family; then what was refused, and what is left."""
    rows = [
        row for row in _record("tensorrt_rtx_builds.json", "rows") if row["precision"] in ("fp32", "fp16")
    ]
    plain = {row["model"]: row for row in _record("tensorrt_rtx_plain_layers.json") if row["layers"]}
    heading = "layers plain | fp32 | fp16 | MiB plain | fp32 | fp16 | fp32 for sm | fp16 for sm"
    yield f"| family | model | {heading} |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|---|---|"
    for card in cards:
        graphs = dict.fromkeys(row["graph"] for row in rows if row["model"] == card.name and row["layers"])
        for graph in graphs:
            own = [
                row for row in rows if (row["model"], row["graph"]) == (card.name, graph) and row["layers"]
            ]
            name = f"`{card.name}`" + ("" if graph == "model" else f" ({graph})")
            cells = [[row for row in own if row["precision"] == each] for each in ("fp32", "fp16")]
            layers = [_layers(each) for each in cells]
            sizes = [_mib(max(row["plan_bytes"] for row in each)) if each else "" for each in cells]
            beside = plain.get(card.name) if graph in ("model", "image") else None
            first, second = (f"{beside['layers']:,}", _mib(beside["plan_bytes"])) if beside else ("", "")
            yield (
                f"| {card.family} | {name} | {first} | {' | '.join(layers)} "
                f"| {second} | {' | '.join([*sizes, *map(_targets, cells)])} |"
            )
    yield ""
    refused = [row for row in rows if row["message"]]
    for row in refused:
        yield f"- {row['model']}, {row['precision']}, {row['target']}, refused: {_first_line(row['message'])}"
    built = {row["model"] for row in rows if row["layers"]}
    left = Counter(card.family for card in cards if card.name not in built)
    missing = ", ".join(f"{count} of {family}" for family, count in left.items()) or "none"
    yield ""
    yield f"{len(built)} of {len(cards)} models built; {len(refused)} plans refused. Not built: {missing}."


def _layers(rows: Sequence[dict[str, Any]]) -> str:
    """Of the newest plan; of those of one day, the one for most GPUs."""
    newest = max(rows, key=lambda row: (row["date"], row["target"].count("sm")), default=None)
    return f"{newest['layers']:,}" if newest else ""


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f}"


def _targets(rows: Sequence[dict[str, Any]]) -> str:
    """Compute capabilities that the plans of `rows` name, rising."""
    named = {int(each.removeprefix("sm")) for row in rows for each in row["target"].split("+")}
    return " ".join(map(str, sorted(named)))


def _first_line(message: str) -> str:
    """NVIDIA's own words: the second line of ours."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]


def _status(name: str, where: str) -> str:
    return _recorded()[where].get(name, "unverified")


@cache
def _recorded() -> dict[str, dict[str, str]]:
    """Status by model, by column."""
    # An export whose outputs do not depend on the picture agrees with anything.
    exports = _record("exports.json")
    executed = [row["model"] for row in exports if not row["error"] and row["signal"] >= LEAST_SIGNAL]
    built = [row["model"] for row in _record("tensorrt_rtx_builds.json", "rows") if row["layers"]]
    return {"cpu": dict.fromkeys(executed, WORDS[0]), "tensorrt": dict.fromkeys(built, WORDS[1])}


def _record(name: str, key: str = "models") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / name).read_text(encoding="utf-8"))[key]
    return rows


if __name__ == "__main__":
    main()
