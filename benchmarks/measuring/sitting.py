"""Configurations that take turns, each in its process, and the records that come of it."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from saccade.benchmarks.measuring import machine
from saccade.benchmarks.measuring.process import Child, ChildError
from saccade.benchmarks.measuring.records import Conditions, Configuration, Record, Resources, Timing, cores
from saccade.errors import UsageError

CEILING = "matrix product"  # what the ceiling's records call their model
SPREAD_LIMIT = 0.05  # of a run that is not noisy, see `Timing`
OTHERS_LIMIT = 0.1  # of the machine's processor time
_LEAST_WALL_S = 0.2  # the kernel counts processor time in hundredths of seconds


@dataclass(frozen=True, slots=True)
class Settings:
    """How long is measured. seconds, iterations: of each configuration, at least, over all rounds.

    warm_up_s: the most that is spent on reaching steady times. together: the most processes at once, each
    with its model in memory. patience_s: for one answer of a child.
    """

    seconds: float = 5.0
    iterations: int = 20
    rounds: int = 10
    warm_up_s: float = 10.0
    together: int = 12
    ceiling: bool = True
    patience_s: float = 900.0

    def __post_init__(self) -> None:
        if self.seconds < 0 or self.rounds < 1 or self.iterations < 1 or self.together < 1:
            raise UsageError(
                f"{self.rounds} rounds, {self.iterations} iterations, {self.together} processes and "
                f"{self.seconds} seconds: at least one of each, and no less than 0 seconds"
            )


@dataclass(slots=True)
class _Seat:
    """One configuration of a sitting: its process and what that has said."""

    configuration: Configuration
    child: Child | None = None
    opened: dict[str, Any] = field(default_factory=dict)
    slices: list[dict[str, Any]] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def ask(self, **request: Any) -> dict[str, Any]:
        """The child's answer; {} from now on, once it has failed."""
        if self.child is None:
            return {}
        try:
            return self.child.ask(request)
        except ChildError as error:
            self.error = str(error)
            self.close()
            return {}

    def close(self) -> None:
        child, self.child = self.child, None
        if child is not None:
            child.close()


class Sitting:
    """One round of opening, many rounds of slices, parts; what `records` gives grows meanwhile."""

    def __init__(
        self, configurations: Sequence[Configuration], settings: Settings, run: str, number: int
    ) -> None:
        self._seats = [_Seat(each) for each in configurations]
        self._settings = settings
        self._run, self._number = run, number
        self._load = os.getloadavg()[0]

    def steps(self) -> Iterator[str]:
        """Do the work; yields what comes next before each step: opening, rounds, parts."""
        for seat in self._seats:
            yield f"opening {_name(seat.configuration)}"
            self._open(seat)
        each = self._settings.seconds / self._settings.rounds
        iterations = math.ceil(self._settings.iterations / self._settings.rounds)
        for round_ in range(self._settings.rounds):
            # There and back, so that nobody always follows the same neighbour.
            for seat in self._seats[:: -1 if round_ % 2 else 1]:
                yield f"round {round_ + 1} of {self._settings.rounds}: {_name(seat.configuration)}"
                if answer := seat.ask(do="slice", seconds=each, iterations=iterations):
                    seat.slices.append(answer)
        for seat in self._seats:
            yield f"parts of {_name(seat.configuration)}"
            seat.parts = seat.ask(do="parts", seconds=each).get("parts_s", {})
            self._end(seat)

    def records(self, *, complete: bool) -> list[Record]:
        """One for each configuration that was measured or failed."""
        for seat in self._seats:
            self._end(seat)
        made = [self._record(seat, complete) for seat in self._seats if seat.slices or seat.error]
        ceiling = next((record for record in made if record.configuration.model == CEILING), None)
        gflops = ceiling.gflops if ceiling else None
        stream = _stream_gbs(ceiling)
        return [replace(record, ceiling_gflops=gflops, stream_gbs=stream) for record in made]

    def close(self) -> None:
        for seat in self._seats:
            seat.close()

    def _open(self, seat: _Seat) -> None:
        seat.child = Child(seat.configuration, self._settings.patience_s)
        seat.opened = seat.ask()
        seat.opened |= seat.ask(do="warm_up", seconds=self._settings.warm_up_s)

    def _end(self, seat: _Seat) -> None:
        if seat.child is not None and seat.slices:
            seat.summary = seat.ask(do="end")
            seat.close()

    def _record(self, seat: _Seat, complete: bool) -> Record:
        conditions = Conditions(
            run=self._run,
            sitting=self._number,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine.describe(),
            cpus=cores(),
            load_average=round(self._load, 2),
            others_share=_others_share(seat.slices),
            versions=seat.summary.get("versions", {}),
        )
        if seat.error or not seat.summary:
            error = seat.error or "ended before it could say what it used"
            return Record(seat.configuration, None, None, conditions, error=error, complete=False)
        timing = _timing(seat)
        joules = [each["joules"] for each in seat.slices if each["joules"] is not None]
        pictures = timing.iterations * seat.configuration.batch
        resources = Resources(
            peak_rss_mib=round(seat.summary["peak_rss_mib"], 1),
            device_memory_mib=seat.summary["device_memory_mib"],
            energy_j=float(f"{sum(joules) / pictures:.4g}") if joules else None,
        )
        return Record(
            seat.configuration,
            timing,
            resources,
            conditions,
            agreement=seat.opened.get("agreement"),
            noisy=_noise(timing, conditions.others_share, complete),
            complete=complete,
        )


def _name(configuration: Configuration) -> str:
    return f"{configuration.model}, {configuration.label}, batch {configuration.batch}"


def _timing(seat: _Seat) -> Timing:
    pooled = sorted(1e3 * sample for each in seat.slices for sample in each["samples_s"])
    rounds = [1e3 * statistics.median(each["samples_s"]) for each in seat.slices]
    return Timing(
        median_ms=_digits(statistics.median(pooled)),
        p90_ms=_digits(percentile(pooled, 0.90)),
        p99_ms=_digits(percentile(pooled, 0.99)),
        iterations=len(pooled),
        rounds_ms=tuple(map(_digits, rounds)),
        processor_ms=tuple(
            _digits(1e3 * each["processor_s"] / len(each["samples_s"])) for each in seat.slices
        ),
        spread=round(spread(rounds), 4),
        includes=tuple(seat.summary["includes"]),
        parts_ms={name: _digits(1e3 * seconds) for name, seconds in seat.parts.items()},
        open_s=round(seat.opened["open_s"], 3),
        warm_up_s=round(seat.opened["warm_up_s"], 3),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the sorted values do not exceed: the next larger one, never between two."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def spread(values: Sequence[float]) -> float:
    """How far the quartiles are apart, as a share of the median; 0 for one value."""
    if len(values) < 2:
        return 0.0
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / middle


def _noise(timing: Timing, others_share: float, complete: bool) -> str:
    reasons = []
    if timing.spread > SPREAD_LIMIT:
        reasons.append(f"rounds differ by {timing.spread:.0%}")
    if others_share > OTHERS_LIMIT:
        reasons.append(f"other processes took {others_share:.0%} of the processors")
    if not complete and len(timing.rounds_ms) < 3:
        reasons.append(f"stopped in round {len(timing.rounds_ms) + 1}")
    return "; ".join(reasons)


def _others_share(slices: Sequence[dict[str, Any]]) -> float:
    counted = [each for each in slices if each["others_s"] is not None]
    wall = sum(each["wall_s"] for each in counted)
    others = sum(each["others_s"] for each in counted)
    return round(others / (wall * (os.cpu_count() or 1)), 3) if wall >= _LEAST_WALL_S else 0.0


def _stream_gbs(ceiling: Record | None) -> float | None:
    """10^9 bytes per second, read and written, of the copy."""
    from saccade.benchmarks.measuring.subjects import STREAM

    if ceiling is None or ceiling.timing is None or "stream" not in ceiling.timing.parts_ms:
        return None
    return _digits(2 * STREAM / ceiling.timing.parts_ms["stream"] / 1e6)


def _digits(value: float) -> float:
    """Five significant digits: more is not measured."""
    return float(f"{value:.5g}")
