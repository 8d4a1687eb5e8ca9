"""Verdicts: real differences are found, noise is not called one."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from tests.benchmarks.records import record

from saccade.benchmarks.measuring import compare
from saccade.benchmarks.measuring.compare import differ, rank_sum_interval, signed_rank_interval
from saccade.errors import UsageError

TRIALS = 300
Noise = Callable[[random.Random, int], list[float]]


def independent(sd: float) -> Noise:
    return lambda rng, count: [math.exp(rng.gauss(0, sd)) for _ in range(count)]


def with_outliers(rng: random.Random, count: int) -> list[float]:
    return [1 + abs(rng.gauss(0, 0.01)) + (rng.random() < 0.15) * rng.random() for _ in range(count)]


def verdicts(noise: Noise, slower: float, *, paired: bool, rounds: int = 10) -> Counter[str]:
    """How often each verdict falls over seeded trials in which the new thing takes `slower` times as long."""
    rng = random.Random(5)
    found: Counter[str] = Counter()
    for _ in range(TRIALS):
        old = record([10 * each for each in noise(rng, rounds)])
        new = record([10 * slower * each for each in noise(rng, rounds)], run="one" if paired else "other")
        found[differ(old, new).verdict] += 1
    return found


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(
    "noise", [independent(0.003), independent(0.03), independent(0.2), with_outliers],
    ids=["quiet", "noisy", "very noisy", "outliers"],
)  # fmt: skip
def test_noise_is_not_called_a_win(noise: Noise, paired: bool) -> None:
    found = verdicts(noise, 1.0, paired=paired)
    assert found["no difference seen"] >= 0.98 * TRIALS


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("slower", "verdict"), [(1.05, "slower"), (1 / 1.05, "faster")])
def test_five_percent_is_found(slower: float, verdict: str, paired: bool) -> None:
    assert verdicts(independent(0.01), slower, paired=paired)[verdict] >= 0.95 * TRIALS


def test_drift_that_hits_both_hides_no_difference() -> None:
    """The machine slows down by half during the run; rounds are compared one by one."""
    rng = random.Random(1)
    drift = [1 + 0.05 * turn for turn in range(10)]
    old = record([10 * each * math.exp(rng.gauss(0, 0.005)) for each in drift])
    new = record([10.6 * each * math.exp(rng.gauss(0, 0.005)) for each in drift])
    found = differ(old, new)
    assert (found.verdict, found.paired) == ("slower", True)
    assert found.ratio == pytest.approx(1.06, abs=0.01)
    apart = differ(old, record(new.timing.rounds_ms if new.timing else [], run="other"))
    assert apart.verdict == "no difference seen"


def test_a_slower_machine_is_no_slower_program() -> None:
    old = record([10.0 + 0.01 * n for n in range(10)])
    slow = [11.0 + 0.01 * n for n in range(10)]
    assert differ(old, record(slow, run="other")).verdict == "slower"
    found = differ(old, record(slow, run="other", ceiling_gflops=272.0))
    assert found.verdict == "no difference seen"
    assert "ceilings differ by 10%" in found.remark


def test_few_rounds_give_no_verdict() -> None:
    found = differ(record([10.0] * 3), record([20.0] * 3))
    assert (found.verdict, found.ratio, found.low) == ("no difference seen", 2.0, None)
    assert "too few" in found.remark


def test_processor_time_can_be_compared() -> None:
    old, new = record([10.0 + 0.01 * n for n in range(10)]), record([30.0 + 0.01 * n for n in range(10)])
    assert new.timing is not None
    assert old.timing is not None
    from dataclasses import replace

    same = replace(new, timing=replace(new.timing, processor_ms=old.timing.processor_ms))
    assert differ(old, same).verdict == "slower"
    assert differ(old, same, "processor").verdict == "no difference seen"


def test_files_are_paired_by_configuration() -> None:
    ten, eleven = [10.0 + 0.001 * n for n in range(10)], [11.0 + 0.001 * n for n in range(10)]
    old = [record(ten), record(ten, given={"batch": 8}), record(ten, given={"engine": "gone"})]
    failed = record(ten, run="b", given={"batch": 8}, timing=None, error="killed")
    rows = compare.compare(old, [record(eleven, run="b"), failed])
    assert [row.difference.verdict for row in rows] == ["slower", "not measured"]
    assert rows[1].difference.remark == "killed"
    with pytest.raises(UsageError, match="no configuration in common"):
        compare.compare(old[:1], old[2:])


def test_intervals_hold_what_enumeration_says() -> None:
    """How likely an interval misses 0 when all signs, or all orders, are equally likely."""
    values = [0.9, 1.1, 1.7, 2.3, 3.2, 4.1, 5.7, 8.9]
    signs = itertools.product((1, -1), repeat=len(values))
    intervals = [signed_rank_interval([s * v for s, v in zip(sign, values, strict=True)]) for sign in signs]
    missed = sum(not low <= 0 <= high for low, _, high in intervals)
    assert missed == 2  # of 256: all of one sign; one more pair would be over 1 %
    chosen = list(itertools.combinations(range(10), 5))
    apart = 0
    for one in chosen:
        other = [place for place in range(10) if place not in one]
        low, _, high = rank_sum_interval([float(i) for i in one], [float(i) for i in other])
        apart += not low <= 0 <= high
    assert apart / len(chosen) <= compare.ERROR
    assert apart == 2  # of 252
