"""Bundles in int8: what is in them, what their evidence says, and what is refused."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from tests import tiny
from typer.testing import CliRunner

import saccade
from saccade import bundle as bundles
from saccade.bundle import Bundle
from saccade.cli import app
from saccade.conversion import copy_files, float32_nodes, manifest_of
from saccade.engines.engine import Arrays, TensorSpec
from saccade.errors import InputError, UsageError
from saccade.evidence import Flips, flips, race, verdict
from saccade.quantization import evidence, quantize
from saccade.verification import verify, verify_layers


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.write_bundle(tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain colours under some noise, in one folder per class that float32 chooses."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(6)
    for index in range(24):
        colour = rng.integers(0, 200, 3) + rng.integers(0, 55, (40, 50, 3))
        target = folder / tiny.LABELS[index % 3]
        target.mkdir(exist_ok=True)
        Image.fromarray(colour.astype(np.uint8)).save(target / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def low(plain: Bundle, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return quantize(plain.path, pictures, tmp_path_factory.mktemp("low") / "tiny_int8", data=pictures)


def test_the_new_bundle_has_the_old_one_in_it(plain: Bundle, low: Bundle) -> None:
    kept = {name: entry for name, entry in plain.files.items() if name != "verify.json"}
    assert {name: low.files[name] for name in kept} == kept
    assert set(low.graphs["model"].files) - set(plain.graphs["model"].files) == {"int8", "int8.tensorrt"}
    assert low.derived["graphs/model.int8.onnx"]["passes"] == ["inline", "equalize", "quantize"]
    bundles.read(low.path)


def test_each_engine_gets_the_form_that_it_multiplies(low: Bundle) -> None:
    for variant, kind in (("int8", np.uint8), ("int8.tensorrt", np.int8)):
        graph = onnx.load(low.graphs["model"].files[variant])
        stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        points = [stored[node.input[2]] for node in graph.graph.node if node.op_type == "QuantizeLinear"]
        assert points
        assert {point.dtype for point in points} == {np.dtype(kind)}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_int8_answers_as_float32_does(low: Bundle, pictures: Path, engine: str) -> None:
    images = sorted(pictures.rglob("*.png"))
    with (
        saccade.load(low.path, engine) as exact,
        saccade.load(low.path, engine, precision="int8", prove=engine == "onnxruntime") as rounded,
    ):
        pairs = list(zip(exact(images), rounded(images), strict=True))
    assert sum(a.labels[0] == b.labels[0] for a, b in pairs) >= len(pairs) - 1
    assert any((a.scores != b.scores).any() for a, b in pairs)


def test_the_evidence_is_in_verify_json(low: Bundle) -> None:
    found = evidence(low)
    assert [row["precision"] for row in found["rows"]] == ["fp32", "int8"]
    plain, int8 = found["rows"]
    assert (plain["speedup"], plain["error"], plain["agreement"]) == (1.0, 0.0, 1.0)
    assert 0 < int8["error"] <= 0.03
    assert found["pictures"] == 12
    assert int8["flips"]["pictures"] == 24
    assert int8["accuracy"] - plain["accuracy"] == pytest.approx(int8["flips"]["change"])
    assert int8["verdict"].startswith("pays" if int8["pays"] else "does not pay")
    report = json.loads((low.path / "verify.json").read_text())["precisions"]["model.int8.onnx"]
    assert report["pictures"] == {"calibrated": 12, "held_back": 12}
    assert report["method"] in ("entropy", "percentile", "minmax")


def with_verdict(low: Bundle, out: Path, pays: bool) -> Bundle:
    def fill(folder: Path) -> dict[str, Any]:
        copy_files(low, folder)
        report = json.loads((folder / "verify.json").read_text())
        report["evidence"]["rows"][1] |= {"pays": pays, "verdict": "pays" if pays else "does not pay: 0.8 x"}
        (folder / "verify.json").write_text(json.dumps(report))
        return manifest_of(low)

    return bundles.write(out, fill)


@pytest.mark.parametrize("pays", [True, False])
def test_load_says_whether_a_precision_pays(
    low: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, pays: bool
) -> None:
    made = with_verdict(low, tmp_path / "made", pays)
    with (
        caplog.at_level(logging.WARNING, "saccade"),
        saccade.load(made.path, "onnxruntime", precision="int8"),
    ):
        pass
    assert ("in int8 does not pay: 0.8 x" in caplog.text) is not pays


def test_verify_repeats_the_sample(low: Bundle) -> None:
    report = verify(low.path, ["onnxruntime"], precision="int8")
    assert report.agrees
    with pytest.raises(UsageError, match="int8"):
        verify_layers(low.path, precision="int8")


def test_what_is_excluded_stays_float32(plain: Bundle, pictures: Path, tmp_path: Path) -> None:
    (conv, _) = layers_of(plain, pictures)
    made = quantize(plain.path, pictures, tmp_path / "out", exclude=[conv], method="minmax", limit=8)
    assert float32_nodes(made)["model.int8.onnx"] == {"measured": [], "asked": [conv]}
    graph = onnx.load(made.graphs["model"].files["int8"])
    assert "kernel@node" in {tensor.name for tensor in graph.graph.initializer}


def layers_of(bundle: Bundle, pictures: Path) -> list[str]:
    with pytest.raises(UsageError, match="no layer with weights") as refused:
        quantize(bundle.path, pictures, pictures / "x", exclude=["@"])
    return str(refused.value).partition("they are ")[2].removesuffix(", ...").split(", ")


# --- what is refused -------------------------------------------------------------------------------------


def test_pictures_that_cannot_be_used_leave_nothing(plain: Bundle, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(UsageError, match="holds 0 pictures; at least 4"):
        quantize(plain.path, folder, tmp_path / "out")
    for index in range(6):
        Image.new("RGB", (20, 20), (index, 0, 0)).save(folder / f"{index}.png")
    (folder / "3.png").write_bytes(b"\x89PNG cut short")
    with pytest.raises(InputError, match=r"3\.png"):
        quantize(plain.path, folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_labels_that_are_others_are_refused(plain: Bundle, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "unicorn").mkdir(parents=True)
    with pytest.raises(UsageError, match="unicorn"):
        quantize(plain.path, pictures, tmp_path / "out", data=tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "choose from entropy, percentile, minmax"),
        ({"exclude": ["auto", "nowhere"]}, "'nowhere' is no layer"),
    ],
)
def test_options_that_cannot_be_are_refused(
    plain: Bundle, pictures: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        quantize(plain.path, pictures, tmp_path / "out", **options)


def test_int8_is_made_once_and_from_float32(
    plain: Bundle, low: Bundle, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="has its graph in int8 already"):
        quantize(low.path, pictures, tmp_path / "out")

    def fill(folder: Path) -> dict[str, Any]:
        copy_files(plain, folder)
        source = plain.graphs["model"].files["source"].relative_to(plain.path)
        (folder / source).write_bytes(low.graphs["model"].files["int8"].read_bytes())
        (folder / source.parent / "model.int8.bin").write_bytes(
            (low.path / "graphs" / "model.int8.bin").read_bytes()
        )
        return manifest_of(plain)

    rounded = bundles.write(tmp_path / "rounded", fill)
    with pytest.raises(UsageError, match="is quantized already"):
        quantize(rounded.path, pictures, tmp_path / "out")


def test_a_full_disk_leaves_nothing(
    plain: Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in plain.path.rglob("*") if path.is_file()}
    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "model.int8.onnx":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(saccade.SaccadeError, match="No space left on device; nothing was left behind"):
        quantize(plain.path, pictures, tmp_path / "out", method="minmax", limit=8)
    assert not list(tmp_path.iterdir())
    assert {path: path.read_bytes() for path in before} == before


# --- evidence --------------------------------------------------------------------------------------------


def test_flips_are_counted_in_pairs() -> None:
    found = flips(np.array([True, True, False, False]), np.array([True, False, True, False]))
    assert found == Flips(4, gained=1, lost=1)


@pytest.mark.parametrize(
    ("counted", "interval"),
    [
        # By hand, half a picture more in b and c: ((b - c) +- 1.96 sqrt(b + c - (b - c)^2/(n + 2)))/(n + 2).
        (Flips(2000, gained=0, lost=0), (-0.000979, 0.000979)),
        (Flips(2000, gained=2, lost=12), (-0.008780, -0.001210)),
        (Flips(100, gained=10, lost=0), (0.037215, 0.158863)),
    ],
)
def test_the_interval_is_that_of_agresti_and_min(counted: Flips, interval: tuple[float, float]) -> None:
    assert counted.interval == pytest.approx(interval, abs=2e-6)


class Busy:
    """An engine that keeps the processor busy for a known number of products."""

    inputs: Mapping[str, TensorSpec] = {}
    outputs: Mapping[str, TensorSpec] = {}

    def __init__(self, times: int) -> None:
        self._times = times

    def run(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        for _ in range(self._times):
            np.sort(feeds["x"])
        return {}

    def close(self) -> None:
        pass

    def __enter__(self) -> Busy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def test_a_race_measures_what_is_twice_as_fast() -> None:
    feeds = {"x": np.random.default_rng(0).standard_normal(50_000)}
    paces = race({"slow": Busy(4), "fast": Busy(2), "same": Busy(4)}, feeds, rounds=15)
    assert paces["slow"].speedup == 1.0
    assert paces["fast"].speedup == pytest.approx(2.0, rel=0.3)
    assert paces["same"].speedup == pytest.approx(1.0, rel=0.3)
    pays, said = verdict(paces["fast"], error=0.01, expected_loss=0.001, counted=None)
    assert pays, said
    pays, said = verdict(paces["fast"], error=0.01, expected_loss=None, counted=Flips(1000, 0, 6))
    assert not pays
    assert "-0.60 points" in said
    pays, said = verdict(paces["same"], error=0.01, expected_loss=None, counted=None)
    assert not pays, said


def test_the_command(plain: Bundle, pictures: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    arguments = ["quantize", str(plain.path), "--calibration", str(pictures), "--out", str(made)]
    refused = CliRunner().invoke(app, arguments)
    assert "say --int8" in str(refused.exception)
    result = CliRunner().invoke(app, [*arguments, "--int8", "--method", "minmax", "--limit", "8", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["bundle"] == str(made)
    assert [row["precision"] for row in answer["evidence"]["rows"]] == ["fp32", "int8"]
    said = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "more"), "--int8", "--exclude", "none"])
    assert "stay float32: no layers" in said.output
    assert "as fast as float32" in said.output
