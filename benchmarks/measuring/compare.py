"""Is one thing faster than another? A verdict that knows how far rounds differ among themselves.

Records of one sitting took turns, so their rounds are paired: each ratio compares the same moment, and the
interval is that of Wilcoxon's signed-rank test. Records of two runs are not: the interval is that of the
rank-sum test, and the machine itself may have changed, for which the ratio of the two ceilings is allowed.
Both intervals are exact for small samples, assume no distribution, and shrug at single outliers.

Hodges and Lehmann, "Estimates of Location Based on Rank Tests", Annals of Mathematical Statistics 34 (1963).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from saccade.benchmarks.measuring.records import Record, Timing
from saccade.errors import UsageError

Verdict = Literal["faster", "slower", "no difference seen", "not measured"]
Clock = Literal["wall", "processor"]

ERROR = 0.01  # how often an interval may miss what it is an interval of
MARGIN = 0.02  # two processes of the same program differ by as much, by where their memory lies


@dataclass(frozen=True, slots=True)
class Difference:
    """ratio: the new time over the old one, with its interval at 99 %; 1.05 is 5 % slower.

    paired: the two took turns. remark: what the verdict depends on.
    """

    verdict: Verdict
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    paired: bool = False
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration in two files."""

    old: Record
    new: Record
    difference: Difference


def compare(old: Sequence[Record], new: Sequence[Record], clock: Clock = "wall") -> list[Row]:
    """Every configuration that is in both, in the order of `new`; the last record of each counts.

    UsageError where they have nothing in common.
    """
    before = {record.configuration.key: record for record in old}
    after = {record.configuration.key: record for record in new}
    rows = [
        Row(before[key], record, differ(before[key], record, clock))
        for key, record in after.items()
        if key in before
    ]
    if not rows:
        raise UsageError(
            "the two files have no configuration in common: the same model, engine, precision, batch, "
            "threads and device"
        )
    return rows


def differ(old: Record, new: Record, clock: Clock = "wall") -> Difference:
    """How the time of `new` stands to that of `old`.

    clock: all time that passed, or the processor time of the measured process, which others disturb less.
    """
    if old.timing is None or new.timing is None:
        return Difference("not measured", remark=new.error or old.error)
    before, after = _logarithms(old.timing, clock), _logarithms(new.timing, clock)
    paired = _took_turns(old, new) and len(before) == len(after)
    if paired:
        interval = signed_rank_interval([b - a for a, b in zip(before, after, strict=True)])
        margin, remarks = MARGIN, []
    else:
        interval = rank_sum_interval(before, after)
        drift = _drift(old, new)
        margin, remarks = MARGIN + drift, [f"the ceilings differ by {drift:.0%}"] if drift > MARGIN else []
    remarks += [f"{which} is noisy" for which, record in (("old", old), ("new", new)) if record.noisy]
    low, middle, high = interval
    if math.isinf(low):
        remarks.insert(0, f"{len(before)} and {len(after)} rounds are too few for a verdict")
    verdict: Verdict = "slower" if low > margin else "faster" if high < -margin else "no difference seen"
    return Difference(
        verdict,
        round(math.exp(middle), 4),
        None if math.isinf(low) else round(math.exp(low), 4),
        None if math.isinf(high) else round(math.exp(high), 4),
        paired,
        "; ".join(remarks),
    )


def _logarithms(timing: Timing, clock: Clock) -> list[float]:
    return [math.log(ms) for ms in (timing.rounds_ms if clock == "wall" else timing.processor_ms)]


def _took_turns(old: Record, new: Record) -> bool:
    one, other = old.conditions, new.conditions
    return (one.run, one.sitting) == (other.run, other.sitting)


def _drift(old: Record, new: Record) -> float:
    """By how much the machine itself was faster or slower; 0 where nothing tells."""
    if not old.ceiling_gflops or not new.ceiling_gflops:
        return 0.0
    return abs(math.log(new.ceiling_gflops / old.ceiling_gflops))


# --- intervals -------------------------------------------------------------------------------------------


def signed_rank_interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """(low, median, high) of the centre of `differences`: of their Walsh averages. Infinite for too few."""
    count = len(differences)
    averages = sorted((differences[i] + differences[j]) / 2 for i in range(count) for j in range(i, count))
    return _interval(averages, _signed_ranks(count))


def rank_sum_interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """(low, median, high) of how far `other` lies above `one`. Infinite for too few."""
    shifts = sorted(b - a for a in one for b in other)
    return _interval(shifts, _rank_sums(len(one), len(other)))


def _interval(ordered: Sequence[float], ways: Sequence[int]) -> tuple[float, float, float]:
    """Leave out at each end as many values as the statistic, with `ways` to reach 0, 1, ..., allows."""
    total, below, left_out = sum(ways), 0, 0
    for reached in ways:
        below += reached
        if 2 * below > ERROR * total:
            break
        left_out += 1
    if left_out == 0:
        return -math.inf, statistics.median(ordered), math.inf
    return ordered[left_out - 1], statistics.median(ordered), ordered[-left_out]


def _signed_ranks(count: int) -> list[int]:
    """How many of the 2^count sets of ranks 1..count have the sum 0, 1, ..."""
    ways = [1]
    for rank in range(1, count + 1):
        longer = ways + [0] * rank
        for total, number in enumerate(ways):
            longer[total + rank] += number
        ways = longer
    return ways


def _rank_sums(one: int, other: int) -> list[int]:
    """In how many orders of `one` and `other` values 0, 1, ... pairs are out of order (Mann and Whitney)."""
    # table[i] holds the ways for i of the first kind and j of the second, j growing: the last value in
    # order is of the second kind (nothing is after it) or of the first (all j are out of order with it).
    table = [[1] for _ in range(one + 1)]
    for j in range(1, other + 1):
        for i in range(1, one + 1):
            shifted = [0] * j + table[i - 1]
            longer = table[i] + [0] * (len(shifted) - len(table[i]))
            table[i] = [a + b for a, b in zip(longer, shifted, strict=True)]
    return table[one]
