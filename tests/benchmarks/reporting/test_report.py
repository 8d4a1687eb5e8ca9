"""The report: whole, safe, and in need of nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.benchmarks.records import CONDITIONS, configuration, record

from saccade.benchmarks.measuring.records import Layer, Profile, Record
from saccade.benchmarks.measuring.sitting import CEILING
from saccade.benchmarks.reporting import charts, report, svg

ROUNDS = [10.0 + 0.01 * n for n in range(10)]


def sample() -> list[Record]:
    """Two models, ours and a peer, two batches, a failure, a noisy one and the ceiling."""
    work = {"weight_bytes": 4e6, "activation_bytes": 1e6}
    found = []
    for model, faster, accuracy in (("tiny", 1.0, 80.0), ("<big> & slow", 3.0, 82.5)):
        for batch in (1, 8):
            times = [faster * batch * each for each in ROUNDS]
            given = {"model": model, "batch": batch, **work}
            found.append(record(times, given={**given, "accuracy": accuracy}))
            slower = [1.3 * each for each in times]
            found.append(record(slower, given={**given, "engine": "torch", "peer": True}))
    found.append(record(ROUNDS, given={"engine": "openvino", **work}, noisy="rounds differ by 9%"))
    failed = configuration(engine="torch.compile", peer=True)
    found.append(Record(failed, None, None, CONDITIONS, error="killed by <SIGKILL>", complete=False))
    found.append(record(ROUNDS, given={"model": CEILING, "engine": "numpy", "flop": 3e9}))
    return found


PROFILES = [
    Profile(configuration(), tuple(Layer(f"node {n}", f"Op{n % 12}", float(n)) for n in range(30, 0, -1)))
]


class Tags(HTMLParser):
    """Checks that what opens closes, in order."""

    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open[-1] in self.VOID:
            self.open.pop()
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("report")
    report.write(sample(), PROFILES, made)
    return made


def test_the_page_needs_no_network_and_runs_nothing(folder: Path) -> None:
    page = (folder / report.PAGE).read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|src=|href=|url\(|@import|<script", page)
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert tags.seen.count("figure") == 2 + 2 * 3 + 1  # all models; latency, throughput, parts; layers
    assert tags.seen.count("svg") == tags.seen.count("figure")


def test_the_page_says_what_happened(folder: Path) -> None:
    page = (folder / report.PAGE).read_text(encoding="utf-8")
    assert "&lt;big&gt; &amp; slow" in page
    assert "<big>" not in page
    assert "failed: killed by &lt;SIGKILL&gt;" in page
    assert "<strong>Noisy:</strong> 1 of" in page
    assert "rounds differ by 9%" in page
    assert "Stopped early" not in page
    assert ">1.30 slower<" in page  # torch beside our fastest
    assert "saccade 0.1.0, numpy 2.0" in page
    assert "prefers-color-scheme: dark" in page


def test_charts_are_also_pictures(folder: Path) -> None:
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert "tiny_2_threads_latency.png" in pictures
    assert "all_models_under_the_roofline.png" in pictures
    assert "tiny_time_by_layer_onnxruntime_batch_1.png" in pictures
    assert all(path.stat().st_size > 5000 for path in folder.glob("*.png"))


def test_a_run_without_a_time_still_gives_a_page(tmp_path: Path) -> None:
    failed = Record(configuration(), None, None, CONDITIONS, error="killed", complete=False)
    assert "failed: killed" in report.write([failed], [], tmp_path).read_text(encoding="utf-8")
    assert "Nothing was measured" in report.write([], [], tmp_path / "none").read_text(encoding="utf-8")


def test_one_batch_is_drawn_as_bars_fastest_first() -> None:
    found = [r for r in charts.measured(sample()) if r.configuration.batch == 1]
    tiny = [r for r in found if r.configuration.model == "tiny"]
    latency, parts = charts.of_model(tiny, charts.colours(tiny))
    assert isinstance(latency, charts.Bars)
    assert isinstance(parts, charts.Bars)
    assert [bar.label for bar in latency.bars] == ["onnxruntime", "openvino", "torch"]
    assert [name for name, _ in parts.bars[0].pieces] == ["preprocess", "run", "postprocess"]


def test_small_layers_are_put_together() -> None:
    drawn = charts.layers(PROFILES[0])
    assert len(drawn.bars) == 10
    assert drawn.bars[-1].label == "3 others"
    assert sum(value for bar in drawn.bars for _, value in bar.pieces) == pytest.approx(sum(range(31)))


def test_without_evidence_there_is_no_chart_of_accuracy() -> None:
    plain = [record(ROUNDS)]
    assert charts.accuracy(plain, charts.colours(plain)) is None
    assert charts.roofline(plain) is None


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0.0, 10.0, False, [0, 2, 4, 6, 8, 10]),
        (0.0, 0.037, False, [0, 0.01, 0.02, 0.03]),
        (0.8, 120.0, True, [1, 2, 5, 10, 20, 50, 100]),
        (210.0, 330.0, True, [220, 240, 260, 280, 300, 320]),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, expected: list[float]) -> None:
    assert svg.ticks(low, high, log) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (1234.0, "1234"), (25000.0, "25k"), (1.25e6, "1.25M"), (0.0, "0")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert svg.number(value) == text
