"""What a precision keeps and what it wins: paired answers, latency in turns, and a verdict. NumPy only."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, Engine

if TYPE_CHECKING:
    from saccade.bundle import Bundle

ALLOWED_LOSS = 0.005  # of accuracy, in 0..1
ALLOWED_ERROR = 0.03  # root mean square of the difference, as a share of the answers' spread
LEAST_SPEEDUP = 1.05
_NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Flips:
    """Pictures that were wrong and are right now (`gained`), and the other way round (`lost`)."""

    pictures: int
    gained: int
    lost: int

    @property
    def change(self) -> float:
        """Of accuracy, in 0..1."""
        return (self.gained - self.lost) / self.pictures

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of `change`: Agresti and Min, Statistics in Medicine 24 (2005), the Wald interval with half a
        picture added to each cell.
        """
        count, gained, lost = self.pictures + 2, self.gained + 0.5, self.lost + 0.5
        middle = (gained - lost) / count
        half = _NORMAL_95 * math.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
        return middle - half, middle + half

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "change": self.change, "interval_95": list(self.interval)}


def flips(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Flips:
    """before, after: (n,) whether each picture's answer is right."""
    return Flips(len(before), int((~before & after).sum()), int((before & ~after).sum()))


@dataclass(frozen=True, slots=True)
class Pace:
    """One run: medians of its latency and of its processor time on all threads.

    speedup: processor time of the first engine over this one's, median over rounds, and quartiles. Other
    work on the machine disturbs it little; with one thread it is what latency is on an idle machine.
    latency_speedup: the same of latency, as it was.
    """

    latency_ms: float
    processor_ms: float
    speedup: float
    quartiles: tuple[float, float]
    latency_speedup: float


def race(engines: Mapping[str, Engine], feeds: Arrays, rounds: int) -> dict[str, Pace]:
    """Let the engines run `feeds` in turns, so that a change of the machine's speed hits all alike.

    The first engine is what the others are compared with. Two rounds of warming up are not counted.
    """
    names = list(engines)
    wall, cpu = np.empty((rounds, len(names))), np.empty((rounds, len(names)))
    for index in range(-2, rounds):
        for place in np.roll(np.arange(len(names)), index):
            started, used = time.perf_counter(), time.process_time()
            engines[names[place]].run(feeds)
            if index >= 0:
                wall[index, place] = time.perf_counter() - started
                cpu[index, place] = time.process_time() - used
    return {name: _pace(wall, cpu, place) for place, name in enumerate(names)}


def _pace(wall: NDArray[np.float64], cpu: NDArray[np.float64], place: int) -> Pace:
    low, middle, high = np.percentile(cpu[:, 0] / cpu[:, place], (25, 50, 75)).tolist()
    return Pace(
        latency_ms=1e3 * float(np.median(wall[:, place])),
        processor_ms=1e3 * float(np.median(cpu[:, place])),
        speedup=middle,
        quartiles=(low, high),
        latency_speedup=float(np.median(wall[:, 0] / wall[:, place])),
    )


def verdict(
    pace: Pace, *, error: float, expected_loss: float | None, counted: Flips | None
) -> tuple[bool, str]:
    """Whether a precision pays, and why (not), in words."""
    won = f"{pace.speedup:.2f} x as fast as float32 ({pace.quartiles[0]:.2f} to {pace.quartiles[1]:.2f})"
    if counted is not None:
        change, (low, high) = 100 * counted.change, (100 * each for each in counted.interval)
        kept, lost = (
            f"{change:+.2f} points of accuracy ({low:+.2f} to {high:+.2f})",
            -counted.change > ALLOWED_LOSS,
        )
    elif expected_loss is not None:
        kept, lost = f"{100 * expected_loss:.2f} points expected to be lost", expected_loss > ALLOWED_LOSS
    else:
        kept, lost = f"answers {error:.1%} apart", not error <= ALLOWED_ERROR
    pays = not lost and pace.quartiles[0] >= LEAST_SPEEDUP
    return pays, f"{'pays' if pays else 'does not pay'}: {won}, {kept}"


def verdict_on(bundle: Bundle, precision: str) -> tuple[bool, str] | None:
    """What the bundle's verify.json says of one precision; None where it was not measured."""
    path = bundle.path / "verify.json"
    if "verify.json" not in bundle.files:
        return None
    rows = json.loads(path.read_text(encoding="utf-8")).get("evidence", {}).get("rows", [])
    judged = (row for row in rows if row["precision"] == precision and "verdict" in row)
    return next(((row["pays"], row["verdict"]) for row in judged), None)
