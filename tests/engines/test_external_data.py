"""A graph whose weights lie outside its folder opens in no engine, whatever its checksums say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from saccade.engines.engine import open_engine
from saccade.errors import EngineError

ELEMENTS = 4096


def _graph(folder: Path, location: str) -> Path:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[ELEMENTS])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * ELEMENTS))):
        weights.external_data.add(key=key, value=value)
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ELEMENTS]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", tensors[:1], tensors[1:], [weights]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "reference"])
@pytest.mark.parametrize("where", ["parent", "absolute", "link"])
def test_weights_outside_the_folder(engine: str, where: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    np.arange(ELEMENTS, dtype=np.float32).tofile(outside)
    folder = tmp_path / "graphs"
    folder.mkdir()
    (folder / "link.bin").symlink_to(outside)
    location = {"parent": "../outside.bin", "absolute": str(outside), "link": "link.bin"}[where]
    with pytest.raises(EngineError, match=r"model\.onnx"):
        open_engine({"source": _graph(folder, location)}, engine)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "reference"])
def test_weights_beside_the_graph(engine: str, tmp_path: Path) -> None:
    np.arange(ELEMENTS, dtype=np.float32).tofile(tmp_path / "w.bin")
    with open_engine({"source": _graph(tmp_path, "w.bin")}, engine) as opened:
        answer = opened.run({"x": np.ones(ELEMENTS, np.float32)})["y"]
    np.testing.assert_array_equal(answer, np.arange(1, ELEMENTS + 1, dtype=np.float32))
