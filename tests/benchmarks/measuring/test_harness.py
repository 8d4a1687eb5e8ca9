"""The harness: known times are measured right, and nothing that happens loses what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saccade.benchmarks.measuring import harness, records
from saccade.benchmarks.measuring.compare import differ
from saccade.benchmarks.measuring.harness import CEILING, Settings, measure
from saccade.benchmarks.measuring.records import Configuration, Record
from saccade.benchmarks.measuring.sitting import percentile, spread
from saccade.errors import UsageError

SHORT = Settings(seconds=0.0, iterations=20, rounds=10, warm_up_s=0.1, ceiling=False, patience_s=60)
SUBJECTS = "saccade.benchmarks.measuring.subjects"
SLEEP = f"{SUBJECTS}:sleep"


def sleeping(engine: str, seconds: float, **arguments: Any) -> Configuration:
    return Configuration(
        "sleep", engine, threads=1, opener=SLEEP, arguments={"seconds": seconds, **arguments}
    )


def by_engine(found: tuple[Record, ...]) -> dict[str, Record]:
    return {record.configuration.engine: record for record in found}


def test_a_sleep_is_measured_right_and_five_percent_more_is_found() -> None:
    run = measure([sleeping("one", 0.08), sleeping("same", 0.08), sleeping("more", 0.084)], SHORT)
    found = by_engine(run.records)
    timing = found["one"].timing
    assert timing is not None
    assert 80 <= timing.median_ms <= 83
    assert timing.median_ms <= timing.p90_ms <= timing.p99_ms
    assert (timing.iterations, len(timing.rounds_ms)) == (20, 10)
    assert 40 <= timing.parts_ms["half"] <= 42
    assert max(timing.processor_ms) < 10  # it slept
    more = differ(found["one"], found["more"])
    assert (more.verdict, more.paired) == ("slower", True)
    assert more.ratio == pytest.approx(1.05, abs=0.015)
    assert differ(found["more"], found["one"]).verdict == "faster"
    assert differ(found["one"], found["same"]).verdict == "no difference seen"


def test_a_child_that_dies_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    nowhere = Configuration("sleep", "nowhere", threads=1, opener=f"{SUBJECTS}:none")
    given = [
        sleeping("dies", 0.001, dies_after=30),
        sleeping("lives", 0.001),
        Configuration("sleep", "fails", threads=1, opener=SLEEP),
        nowhere,
    ]
    run = measure(given, SHORT, out=tmp_path / "run.jsonl")
    assert [record.configuration for record in run.records] == given
    found = by_engine(run.records)
    assert found["lives"].timing is not None
    assert not found["lives"].error
    assert found["dies"].timing is None
    assert "exit code 3" in found["dies"].error
    assert "KeyError: 'seconds'" in found["fails"].error
    assert "has no attribute 'none'" in found["nowhere"].error
    assert {r.configuration.engine for r in records.read_records(tmp_path / "run.jsonl")} == set(found)


def test_a_child_that_keeps_silent_is_given_up() -> None:
    settings = Settings(0.0, 1, 1, warm_up_s=0.0, ceiling=False, patience_s=1.0)
    (record,) = measure([sleeping("asleep", 60.0)], settings).records
    assert "no answer within 1 s" in record.error


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    def press(done: int, total: int, what: str) -> None:
        if what.startswith("round 4"):
            raise KeyboardInterrupt

    out = tmp_path / "run.jsonl"
    other = Configuration("wait", "one", threads=1, opener=SLEEP, arguments={"seconds": 0.001})
    run = measure([sleeping("one", 0.001), sleeping("two", 0.001), other], SHORT, out=out, progress=press)
    assert run.interrupted
    assert [record.configuration.engine for record in run.records] == ["one", "two"]
    for record in run.records:
        assert record.timing is not None
        assert len(record.timing.rounds_ms) == 3
        assert record.timing.median_ms >= 1
        assert not record.complete
    assert records.read(out) == list(run.records)


def test_the_ceiling_takes_turns() -> None:
    settings = Settings(0.0, 2, 2, warm_up_s=0.0)
    steps: list[str] = []
    run = measure([sleeping("one", 0.001)], settings, progress=lambda done, total, what: steps.append(what))
    one, ceiling = run.records
    assert ceiling.configuration.model == CEILING
    assert ceiling.gflops == one.ceiling_gflops
    assert one.stream_gbs is not None
    assert one.stream_gbs > 0.1
    assert [step for step in steps if step.startswith("round")] == [
        "round 1 of 2: sleep, one, batch 1",
        "round 1 of 2: matrix product, numpy, batch 1",
        "round 2 of 2: matrix product, numpy, batch 1",
        "round 2 of 2: sleep, one, batch 1",
    ]


def test_a_bundle_is_measured_with_its_work_and_its_answers() -> None:
    given = harness.of_bundle("digits-stvit", "onnxruntime", batch=2, threads=1)
    settings = Settings(0.0, 2, 2, warm_up_s=0.0, ceiling=False)
    (record,) = measure([given], settings).records
    assert record.error == ""
    assert record.timing is not None
    assert record.resources is not None
    assert set(record.timing.parts_ms) == {"preprocess", "postprocess"}
    assert record.agreement is not None
    assert record.agreement < 1e-5
    assert 50 < record.resources.peak_rss_mib < 400
    assert record.conditions.versions["onnxruntime"]
    assert record.gflops is not None


def test_sittings_hold_what_belongs_together(tmp_path: Path) -> None:
    given = [
        Configuration(model, engine, batch, threads=1, opener=SLEEP, arguments={"seconds": 0.001})
        for model in ("a", "b")
        for engine in ("one", "two")
        for batch in (1, 8)
    ]
    settings = Settings(0.0, 1, 1, warm_up_s=0.0, ceiling=False)
    run = measure(given, settings)
    assert [record.configuration for record in run.records] == given
    seats = {(r.configuration.model, r.configuration.batch): r.conditions.sitting for r in run.records}
    assert sorted(seats.values()) == [0, 1, 2, 3]
    assert len({record.conditions.run for record in run.records}) == 1


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(UsageError, match="same model"):
        measure([sleeping("one", 0.1), sleeping("one", 0.2)], SHORT)
    with pytest.raises(UsageError, match="at least one"):
        Settings(rounds=0)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), ([1.0, 2.0, 3.0, 4.0], 0.9, 4.0), ([5.0], 0.99, 5.0)],
)
def test_percentiles_are_measured_values(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_spread_is_the_distance_of_quartiles() -> None:
    assert spread([10.0, 11.0, 12.0, 13.0, 14.0]) == pytest.approx(2 / 12)
    assert spread([3.0]) == 0.0


@pytest.mark.slow
def test_the_same_program_twice_is_no_difference() -> None:
    """A real engine in two processes, on a machine that does other things: processor time tells."""
    graph = harness.of_bundle("digits-stvit", "onnxruntime", threads=1)
    from dataclasses import replace

    from saccade import bundle as bundles

    bundle = bundles.read(bundles.resolve("digits-stvit"), check=False)
    arguments = {"path": str(bundle.graphs["model"].files["onnxruntime"])}
    pair = [
        replace(graph, engine=name, opener=f"{SUBJECTS}:graph", arguments=arguments)
        for name in ("onnxruntime a", "onnxruntime b")
    ]
    one, other = measure(pair, Settings(seconds=4, ceiling=False)).records
    assert differ(one, other, "processor").verdict == "no difference seen"
