"""Our exports beside what their users run elsewhere, on this machine's CPU in float32.

    python -m saccade.benchmarks.speed --models deit_small swin_small --out benchmarks/results

For each model and batch: our bundle in ONNX Runtime and OpenVINO, torch eager and compiled, and the plain
export in ONNX Runtime and OpenVINO take turns (`measuring.harness`), with a matrix product of the
same minutes as the ceiling. A row is done when its record is in the file: the same command measures what
is missing. Weights are random; nothing here depends on their values.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from saccade.benchmarks.measuring import harness, machine, peers
from saccade.benchmarks.measuring.records import Record
from saccade.benchmarks.reporting import png
from saccade.benchmarks.reporting.charts import Bar, Bars
from saccade.export import export_bundle

RECORD = "speed.json"
ENGINES = ("onnxruntime", "openvino")
_SPELT = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
BELOW = 0.75  # of the ceiling: where the fastest peer leaves room, more is asked of us

# An NViT whose widths no kernel likes, about as heavy as DeiT-S.
_IRREGULAR = {
    "EMB": 368,
    "head": [6, 5, 6, 6, 5, 6, 6, 6, 6, 5, 6, 6],
    "QK": [40, 48, 56, 56, 64, 56, 48, 64, 64, 56, 48, 40],
    "V": [48, 56, 56, 64, 64, 48, 64, 64, 56, 64, 64, 56],
    "MLP": [900, 1100, 1301, 1405, 1500, 1500, 1511, 1600, 1600, 1500, 1333, 1000],
}
MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "stvit_r_swin_small": ("stvit_r_swin_small", {}),
    "swin_small": ("swin_small", {}),
    "deit_small": ("deit_small", {}),
    "tiny_vit_21m_224": ("tiny_vit_21m_224", {}),
    "fastvit_mci2": ("fastvit_mci2", {}),
    "deepmad_r50": ("deepmad_r50", {}),
    "deepmad_29m_224": ("deepmad_29m_224", {}),
    "nvit irregular": ("nvit", {"dims": _IRREGULAR}),
    "deit_base": ("deit_base", {}),
    "stvit_r_swin_base": ("stvit_r_swin_base", {}),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One model at one batch.

    median_ms: by engine, peers' names as in `measuring.peers`. ours, fastest_peer: names there.
    ratio: the peer's time over ours, the median of the rounds; ratio_spread: their quartiles.
    onnxruntime_ratio: plain ONNX Runtime over our ONNX Runtime. peer_of_ceiling: FLOP/s of the fastest peer
    by those of the matrix product.
    """

    model: str
    batch: int
    median_ms: Mapping[str, float]
    ours: str
    fastest_peer: str
    ratio: float
    ratio_spread: tuple[float, float]
    onnxruntime_ratio: float | None
    peer_of_ceiling: float | None
    errors: Mapping[str, str]


def measure(model: str, batches: Sequence[int], settings: harness.Settings, threads: int) -> Iterator[Row]:
    """Export the model to a folder of its own; for each batch let all take turns and compare round by round.

    Raises KeyboardInterrupt where a sitting was cut short: the row would say what was not measured.
    """
    name, config = MODELS[model]
    with tempfile.TemporaryDirectory() as folder:
        _say(0, 0, f"exporting {model}")
        path = export_bundle(name, None, Path(folder) / name, random=True, config=dict(config)).path
        for batch in batches:
            ours = [harness.of_bundle(path, engine, batch=batch, threads=threads) for engine in ENGINES]
            theirs = peers.of_bundle(path, batches=[batch], threads=threads)
            run = harness.measure([*ours, *theirs], settings, progress=_say)
            if run.interrupted:
                raise KeyboardInterrupt
            yield row(model, batch, run.records)


def row(model: str, batch: int, records: Sequence[Record]) -> Row:
    """What the records of one sitting say. Raises ValueError unless one of ours and one peer were timed."""
    timed = {each.configuration.engine: each for each in records if each.timing and not _is_ceiling(each)}
    ours = _fastest(timed, peer=False)
    peer = _fastest(timed, peer=True)
    ratios = _ratios(timed[peer], timed[ours])
    quartiles = np.quantile(ratios, (0.25, 0.75))
    return Row(
        model=model,
        batch=batch,
        median_ms={name: round(_median_ms(each), 3) for name, each in timed.items()},
        ours=ours,
        fastest_peer=peer,
        ratio=round(float(np.median(ratios)), 3),
        ratio_spread=(round(float(quartiles[0]), 3), round(float(quartiles[1]), 3)),
        onnxruntime_ratio=_onnxruntime_ratio(timed),
        peer_of_ceiling=timed[peer].of_ceiling,
        errors={each.configuration.engine: each.error for each in records if each.error},
    )


def _is_ceiling(record: Record) -> bool:
    return record.configuration.model == harness.CEILING


def _fastest(timed: Mapping[str, Record], *, peer: bool) -> str:
    return min(
        (name for name, each in timed.items() if each.configuration.peer == peer),
        key=lambda name: _median_ms(timed[name]),
    )


def _median_ms(record: Record) -> float:
    assert record.timing is not None
    return record.timing.median_ms


def _onnxruntime_ratio(timed: Mapping[str, Record]) -> float | None:
    if not {"onnxruntime", "plain onnxruntime"} <= timed.keys():
        return None
    return round(float(np.median(_ratios(timed["plain onnxruntime"], timed["onnxruntime"]))), 3)


def _ratios(slower: Record, faster: Record) -> list[float]:
    """Of the times in each round that both were in."""
    assert slower.timing is not None
    assert faster.timing is not None
    pairs = zip(slower.timing.rounds_ms, faster.timing.rounds_ms, strict=False)
    return [theirs / ours for theirs, ours in pairs]


def summary(rows: Sequence[Row]) -> dict[str, float | None]:
    """Geometric means: of batch 1 where the peer is below `BELOW` of the ceiling, and of each batch."""

    def mean(chosen: Sequence[float]) -> float | None:
        return round(math.exp(sum(map(math.log, chosen)) / len(chosen)), 3) if chosen else None

    roomy = [each.ratio for each in rows if each.batch == 1 and (each.peer_of_ceiling or 1) < BELOW]
    batches = sorted({each.batch for each in rows})
    return {
        f"batch 1, peer below {BELOW:.0%} of the ceiling": mean(roomy),
        **{f"batch {batch}": mean([each.ratio for each in rows if each.batch == batch]) for batch in batches},
    }


def chart(rows: Sequence[Row], batch: int) -> Bars:
    """What of the machine's ceiling each model reaches at `batch`: ours, and under it the fastest peer."""
    bars = []
    for each in rows:
        if each.batch == batch and each.peer_of_ceiling:
            reached = 100 * each.peer_of_ceiling
            bars += [
                Bar(each.model, (("ours", round(reached * each.ratio, 1)),), _SPELT[each.ours]),
                Bar(f"({each.model})", (("fastest peer", round(reached, 1)),), _spelt(each.fastest_peer)),
            ]
    title = f"float32, batch {batch}, share of the ceiling; grey: the fastest peer"
    return Bars(title, "%", tuple(bars), {"ours": 0, "fastest peer": 7})


def _spelt(peer: str) -> str:
    *plain, engine = peer.split()
    return " ".join([*plain, _SPELT.get(engine, engine)])


def _say(done: int, total: int, what: str) -> None:
    print(f"\r{done:>4} of {total}: {what:<70}", end="", file=sys.stderr)


def _write(rows: Sequence[Row], threads: int, out: Path) -> None:
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.describe(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "versions": machine.versions(),
        "summary": summary(rows),
        "rows": [asdict(each) for each in rows],
    }
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f".{RECORD}.{os.getpid()}"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(out / RECORD)


def read(path: Path) -> list[Row]:
    """The rows of a record, none where there is no file."""
    if not path.exists():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [Row(**{**each, "ratio_spread": tuple(each["ratio_spread"])}) for each in rows]


def line(row: Row) -> str:
    """One row of the table that is printed."""
    share = "" if row.peer_of_ceiling is None else f"{row.peer_of_ceiling:5.0%} of the ceiling"
    return (
        f"{row.model:<20} {row.batch:>2}  {row.ratio:5.2f}x ({row.ratio_spread[0]:.2f} to "
        f"{row.ratio_spread[1]:.2f})  {row.ours} over {row.fastest_peer}, {share}; "
        f"ONNX Runtime over plain {row.onnxruntime_ratio}x"
    )


def main() -> None:
    """Measure what is missing from the record; the table goes to stdout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each configuration, at least")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, required=True, help="folder for the record")
    parser.add_argument("--png", type=Path, help="folder for charts of the whole record, one per batch")
    given = parser.parse_args()
    settings = harness.Settings(
        seconds=given.seconds, rounds=given.rounds, iterations=given.rounds, warm_up_s=2
    )
    rows = read(given.out / RECORD)
    done = {(each.model, each.batch) for each in rows}
    try:
        for model in given.models:
            missing = [batch for batch in given.batches if (model, batch) not in done]
            for measured in measure(model, missing, settings, given.threads) if missing else ():
                rows.append(measured)
                _write(rows, given.threads, given.out)
                print(f"\r{line(measured)}", flush=True)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
    for name, ratio in summary(rows).items():
        print(f"{name}: {ratio}x")
    if given.png:
        given.png.mkdir(parents=True, exist_ok=True)
        for batch in sorted({each.batch for each in rows}):
            png.draw(chart(rows, batch), given.png / f"speed_{batch}.png", "Saccade beside its peers")


if __name__ == "__main__":
    main()
