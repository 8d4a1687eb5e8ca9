"""Bundles of lower precision: what is in them, what is refused, and that they are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from tests import tiny
from typer.testing import CliRunner

import saccade
from saccade import bundle as bundles
from saccade.bundle import Bundle
from saccade.cli import app
from saccade.conversion import convert, float32_nodes
from saccade.engines.graphs import write_graphs
from saccade.errors import BundleError, EngineError, ExportError, UsageError
from saccade.verification import verify, verify_layers


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.write_bundle(tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture(scope="module")
def low(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return convert(plain.path, ["fp16", "bf16"], tmp_path_factory.mktemp("low") / "tiny_low")


def pixels(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(6)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


def test_the_new_bundle_has_the_old_one_in_it(plain: Bundle, low: Bundle) -> None:
    assert {name: low.files[name] for name in plain.files if name != "verify.json"} == {
        name: entry for name, entry in plain.files.items() if name != "verify.json"
    }
    assert (low.name, low.card, low.provenance) == (plain.name, plain.card, plain.provenance)
    assert set(low.graphs["model"].files) >= {*plain.graphs["model"].files, "fp16", "bf16", "fp16.openvino"}
    bundles.read(low.path)


def test_a_derived_graph_says_what_it_is_made_of(low: Bundle) -> None:
    record = low.derived["graphs/model.fp16.onnx"]
    assert record["source_sha256"] == bundles.sha256(low.graphs["model"].files["source"])
    assert record["precision"] == "fp16"
    assert record["passes"] == ["convert", "keep_softmax_float32"]
    assert low.derived["graphs/model.fp16.inlined.onnx"]["passes"][:3] == [*record["passes"], "inline"]
    kinds = {
        tensor.data_type
        for tensor in onnx.load(low.graphs["model"].files["fp16"]).graph.initializer
        if tensor.name.startswith(("kernel", "matrix"))
    }
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert low.files["graphs/model.fp16.bin"]["bytes"] < 0.6 * low.files["graphs/source.bin"]["bytes"]


def test_the_evidence_is_in_verify_json(low: Bundle) -> None:
    report = json.loads((low.path / "verify.json").read_text())
    assert set(report["precisions"]) == {"model.fp16.onnx", "model.bf16.onnx"}
    for name, evidence in report["precisions"].items():
        assert all(row["agrees"] and row["difference"] <= row["tolerance"] for row in evidence["comparisons"])
        assert evidence["measured"] == []
        runs = [(row["file"].count("inlined"), row["arithmetic"]) for row in evidence["comparisons"]]
        executed = [(0, "onnxruntime"), (1, "onnxruntime")] if "fp16" in name else []
        assert sorted(runs) == sorted([(0, "emulated"), (1, "emulated"), *executed])
    nodes = float32_nodes(low)["model.fp16.onnx"]
    assert [len(names) for names in nodes.values()] == [1, 1]
    assert set(nodes) == {"statistics", "Scaled has no fp16"}


def test_loading_a_precision(low: Bundle) -> None:
    image = np.random.default_rng(2).integers(0, 256, (40, 40, 3), np.uint8)
    with saccade.load(low.path) as exact, saccade.load(low.path, precision="fp16", prove=True) as half:
        answers = [predictor(image).scores for predictor in (exact, half)]
        assert half.engine.inputs == exact.engine.inputs
    assert 0 < np.abs(answers[0] - answers[1]).max() < 1e-2


def test_no_cpu_engine_has_bfloat16_kernels(low: Bundle) -> None:
    with pytest.raises(EngineError, match="an implementation for"):
        saccade.load(low.path, engine="onnxruntime", precision="bf16")


def test_a_precision_that_is_not_there_is_refused_with_the_command(plain: Bundle) -> None:
    with pytest.raises(UsageError, match=r"saccade convert .* --precision fp16 --out DIR"):
        saccade.load(plain.path, precision="fp16")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_verifying_a_precision(low: Bundle, engine: str) -> None:
    verification = verify(low.path, [engine], precision="fp16")
    assert verification.agrees
    exact = verify(low.path, [engine])
    assert verification.comparisons[0].tolerance > exact.comparisons[0].tolerance


REFUSED: list[tuple[list[str], type[Exception], str]] = [
    ([], UsageError, "at least one"),
    (["fp8"], UsageError, "choose from fp16, bf16"),
    (["bf16", "fp16"], UsageError, "in bf16 already"),
]


@pytest.mark.parametrize(("precisions", "error", "said"), REFUSED)
def test_what_cannot_be_converted(
    low: Bundle, tmp_path: Path, precisions: list[str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        convert(low.path, precisions, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_a_sample_is_refused(tmp_path: Path) -> None:
    def drop(folder: Path) -> None:
        (folder / "conformance.npz").unlink()

    bare = tiny.write_bundle(tmp_path / "bare", also=drop)
    with pytest.raises(BundleError, match="no sample"):
        convert(bare.path, ["fp16"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_where_the_sample_is_of_another_graph(tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        with np.load(folder / "conformance.npz") as arrays:
            values = dict(arrays)
        values["output:logits"] = values["output:logits"] + 1
        np.savez(folder / "conformance.npz", **values)

    spoilt = tiny.write_bundle(tmp_path / "spoilt", also=spoil)
    with pytest.raises(ExportError, match="every node in float32"):
        convert(spoilt.path, ["fp16"], tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["spoilt"]


def test_pictures_are_compared_too(plain: Bundle, tmp_path: Path) -> None:
    made = convert(plain.path, ["fp16"], tmp_path / "out", pictures=pixels(tmp_path / "pictures"))
    (evidence,) = json.loads((made.path / "verify.json").read_text())["precisions"].values()
    assert evidence["pictures"] == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures"):
        convert(plain.path, ["fp16"], tmp_path / "more", pictures=tmp_path / "empty")


# --- layer by layer -----------------------------------------------------------------------------------


def with_fault(low: Bundle, out: Path) -> Bundle:
    """A copy of `low` in whose fp16 graph one number of the last product's weights is wrong."""

    def fill(folder: Path) -> dict[str, Any]:
        from saccade.conversion import copy_files, manifest_of

        copy_files(low, folder)
        model = onnx.load(low.graphs["model"].files["fp16"])
        tensor = next(each for each in model.graph.initializer if each.name.startswith("matrix"))
        values = numpy_helper.to_array(tensor).copy()
        values[3, 4] += 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        write_graphs({"model.fp16": model}, folder / "graphs", "model.fp16.bin")
        return manifest_of(low)

    return bundles.write(out, fill)


@pytest.mark.parametrize(
    ("precision", "engines"),
    [("fp32", ()), ("fp32", ("openvino", "onnxruntime")), ("fp16", ()), ("bf16", ())],
)
def test_layers_of_a_good_bundle_agree(low: Bundle, precision: str, engines: tuple[str, ...]) -> None:
    report = verify_layers(low.path, engines, precision=precision)
    assert report.agrees
    assert {"maps", "active", "flat", "small"} <= {layer.tensor for layer in report.layers["model"]}


def test_the_command_names_the_faulty_layer(low: Bundle, tmp_path: Path) -> None:
    faulty = with_fault(low, tmp_path / "faulty")
    arguments = ["verify", str(faulty.path), "--layers", "--precision", "fp16"]
    said = CliRunner().invoke(app, [*arguments, "--json"])
    assert said.exit_code == 7
    start = json.loads(said.output)["starts"]["model"]
    assert (start["operator"], start["tensor"]) == ("Gemm", "small")
    shown = CliRunner().invoke(app, arguments)
    assert f"the error starts at {start['node']}" in shown.output


def test_the_command_converts(plain: Bundle, tmp_path: Path) -> None:
    arguments = ["convert", str(plain.path), "--precision", "bf16", "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(app, [*arguments, "--json"])
    assert said.exit_code == 0, said.output
    assert set(json.loads(said.output)["float32_nodes"]) == {"model.bf16.onnx"}


def test_three_engines_are_no_pair(low: Bundle) -> None:
    with pytest.raises(UsageError, match="two engines, not 3"):
        verify_layers(low.path, ["onnxruntime", "openvino", "reference"])
