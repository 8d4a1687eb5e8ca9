"""Exports of every family before NVIDIA's parser and builder: accepted, in no more layers than before."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from saccade.engines import readiness
from saccade.engines.export import export_graph
from saccade.engines.inputs import picture
from saccade.engines.tensorrt.binding import Creator, Parser, bind
from saccade.engines.tensorrt.operators import operator_table
from saccade.engines.tensorrt.parser import ShapeRange, judge
from saccade.models import create
from saccade.models.deploy import merge
from saccade.models.operators import DOMAIN, OPERATORS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NVIDIA's parser is not installed: pip install 'saccade[tensorrt-rtx]'",
)

SWIN: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8)}
DEEPMAD = [
    {"type": "conv", "in": 3, "out": 16, "k": 3, "stride": 2},
    {"type": "SuperResK1KXK1", "in": 16, "out": 24, "mid": 8, "k": 5, "stride": 2, "layers": 2},
    {"type": "SuperResK1DWSEK1", "in": 24, "out": 24, "mid": 48, "k": 3, "stride": 2, "layers": 1},
    {"type": "SuperResK1DWK1", "in": 24, "out": 32, "mid": 48, "k": 3, "stride": 2, "layers": 1},
    {"type": "conv", "in": 32, "out": 40, "k": 1, "stride": 1},
]
MAPS = tuple(f"feature_{level}" for level in range(4))

SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "stvit_r_swin_tiny": (SWIN, 224),
    "swin_tiny": (SWIN, 224),
    "nvit": (
        {"dims": {"EMB": 24, "head": [1, 2], "QK": [5, 8], "V": [7, 4], "MLP": [40, 16]}, "img_size": 64},
        64,
    ),
    "deepmad_r18": ({"structure": DEEPMAD}, 96),
    "tiny_vit_5m_224": (
        {"embed_dims": (16, 32, 64, 96), "num_heads": (1, 2, 2, 3), "depths": (1, 1, 2, 1)},
        224,
    ),
    "fastvit_mci0": ({"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)}, 128),
}
# Layers of the network that is parsed, the bodies of our operators inlined; a rise is a regression. Those of
# full-size models, bodies folded, are in benchmarks/results (tests/sdk/test_builds.py holds builds to them).
LAYERS = {
    "stvit_r_swin_tiny": 3880,
    "swin_tiny": 4312,
    "nvit": 189,
    "deepmad_r18": 50,
    "tiny_vit_5m_224": 335,
    "fastvit_mci0": 114,
}
# The models with nodes of ours.
PLUGGED: dict[str, tuple[dict[str, Any], int]] = {
    "stvit_r_swin_tiny": SMALL["stvit_r_swin_tiny"],
    "swin_tiny": SMALL["swin_tiny"],
    "stvit_deit_tiny": ({"embed_dim": 48}, 224),
}


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", SMALL)
def test_a_small_export_of_every_family_builds(name: str, tmp_path: Path) -> None:
    config, size = SMALL[name]
    module = merge(create(name, **config))
    model = export_graph(module, [picture((size, size))], name=name)
    report = readiness.check(model)
    assert report.ok, "\n".join(report.text())
    verdict = judge(save(model, tmp_path))
    assert verdict.ok, verdict.errors
    assert verdict.layers <= LAYERS[name]


@pytest.mark.parametrize("name", ["stvit_r_swin_tiny", pytest.param("swin_tiny", marks=pytest.mark.slow)])
def test_backbones_of_free_size_build(name: str, tmp_path: Path) -> None:
    module = create(name, features=True, **SWIN)
    model = export_graph(module, [picture((224, 224), dynamic_size=True)], outputs=MAPS, name=name)
    report = readiness.check(model)
    assert report.ok, "\n".join(report.text())
    shapes = ShapeRange((1, 3, 64, 64), (1, 3, 224, 320), (2, 3, 448, 448))
    verdict = judge(save(model, tmp_path), profile={"image": shapes})
    assert verdict.ok, verdict.errors


ASKED_FOR = """
import json, sys
import onnx
import tensorrt_rtx_libs
import tensorrt_rtx_bindings as trt


class Creator(trt.IPluginCreatorV3One):
    def __init__(self, name):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = name, "1", "saccade"
        self.field_names = trt.PluginFieldCollection([])

    def create_plugin(self, name, fields, phase):
        asked.append(name)
        return None  # the parser ends here; with a real one the process can abort


logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
creators = [Creator(name) for name in sys.argv[2:]]
for creator in creators:
    assert trt.get_plugin_registry().register_creator(creator, "saccade")
model, order = onnx.load(sys.argv[1]), []
while True:
    asked = []
    network = trt.Builder(logger).create_network(0)
    parsed = trt.OnnxParser(network, logger).parse(model.SerializeToString())
    if not asked:
        break
    order += asked
    node = next(node for node in model.graph.node if node.name == asked[0])
    kept = [each for each in node.attribute if not each.name.startswith("plugin_")]
    del node.attribute[:]
    node.attribute.extend(kept)
print(json.dumps([parsed, order]))
sys.stdout.flush()
import os
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGGED)
def test_plugins_bind_where_the_simulator_says_and_nowhere_else(name: str, tmp_path: Path) -> None:
    """NVIDIA's parser is asked again and again, each time with one node less that names a plugin: in the end
    it has inlined them all."""
    config, size = PLUGGED[name]
    model = export_graph(create(name, **config), [picture((size, size))], name=name)
    creators = frozenset(Creator(operator, "1", DOMAIN) for operator in OPERATORS)
    parser = Parser(operator_table().types, {function.name for function in model.functions}, creators)
    said = [node.name for node in model.graph.node if bind(node, parser).kind == "plugin"]
    assert said
    command = [sys.executable, "-c", ASKED_FOR, save(model, tmp_path), *OPERATORS]
    child = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert child.returncode == 0, child.stderr
    parsed, asked = json.loads(child.stdout.splitlines()[-1])
    assert parsed
    assert sorted(asked) == sorted(said)
