"""The exported graph: its form, and that a graph which computes something else is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from saccade.engines import verify
from saccade.engines.engine import open_engine
from saccade.engines.export import export_graph
from saccade.engines.graphs import write_graphs
from saccade.engines.inputs import picture
from saccade.errors import ExportError
from saccade.models import create
from saccade.models.deploy import merge

STVIT: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8), "num_classes": 7}


@pytest.fixture(scope="module")
def stvit() -> nn.Module:
    torch.manual_seed(0)
    return create("stvit_r_swin_tiny", **STVIT)


@pytest.fixture(scope="module")
def graph(stvit: nn.Module) -> onnx.ModelProto:
    return export_graph(stvit, [picture((224, 224))], name="stvit")


def test_form_of_the_source_graph(graph: onnx.ModelProto) -> None:
    ops = Counter(node.op_type for node in graph.graph.node)
    assert ops["LayerNormalization"] == 29  # one node each, as Gelu
    assert ops["Gelu"] == 12
    assert not {"BatchNormalization", "Erf", "Shape", "ConstantOfShape", "Range"} & set(ops)
    assert {f.name for f in graph.functions} == {n.op_type for n in graph.graph.node if n.domain == "saccade"}
    assert graph.ir_version == 9
    assert {o.domain: o.version for o in graph.opset_import} == {"": 20, "saccade": 1}
    for value in (*graph.graph.input, *graph.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_semantic_nodes_carry_what_tensorrt_binds_by(graph: onnx.ModelProto) -> None:
    nodes = [node for node in graph.graph.node if node.domain == "saccade"]
    assert len(nodes) == 12
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_namespace"] == b"saccade"
        assert attributes["plugin_version"] == b"1"
        assert attributes["aot"] == 1
        assert "layers." in node.name


def test_graph_names_no_files(graph: onnx.ModelProto) -> None:
    content = graph.SerializeToString()
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content


def test_weights_are_stored_once(graph: onnx.ModelProto, tmp_path: Path) -> None:
    files = write_graphs({"model": graph}, tmp_path)["model"]
    assert set(files) == {"source", "inlined"}
    weights = sum(p.numel() * 4 for p in create("stvit_r_swin_tiny", **STVIT).parameters())
    # Masks and gather indices take the rest; a second copy would make it twice as large.
    assert (tmp_path / "weights.bin").stat().st_size < 1.5 * weights
    for file in files.values():
        model = onnx.load(file.path)
        onnx.checker.check_model(model, full_check=True)


def test_every_variant_agrees(stvit: nn.Module, graph: onnx.ModelProto, tmp_path: Path) -> None:
    expected = verify.expectations(stvit, [picture((224, 224))], ("logits",))
    assert [len(e.feeds["image"]) for e in expected] == [1, 2, 5]
    for variant, file in write_graphs({"model": graph}, tmp_path)["model"].items():
        for engine_name in ("onnxruntime", "openvino") if variant == "inlined" else ("onnxruntime",):
            with open_engine({"source": file.path}, engine_name) as engine:
                rows = verify.compare(engine, expected, graph=variant, engine_name=engine_name)
            verify.require_agreement(rows, "stvit")


def test_a_small_fault_fails(stvit: nn.Module, graph: onnx.ModelProto, tmp_path: Path) -> None:
    """A bias off by a thousandth: far above float32 noise, invisible to a glance at the top class."""
    faulty = onnx.ModelProto()
    faulty.CopyFrom(graph)
    (bias,) = (t for t in faulty.graph.initializer if t.name == "head.bias")
    values = onnx.numpy_helper.to_array(bias) + np.float32([0, 0, 1e-3, 0, 0, 0, 0])
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    file = write_graphs({"model": faulty}, tmp_path)["model"]["source"]
    expected = verify.expectations(stvit, [picture((224, 224))], ("logits",), batches=(1,))
    with open_engine({"source": file.path}, "onnxruntime") as engine:
        rows = verify.compare(engine, expected, graph="source", engine_name="onnxruntime")
    with pytest.raises(ExportError, match=r"'logits'.*differs from the torch module by 0\.001"):
        verify.require_agreement(rows, "stvit")


def test_every_batch_is_held_to_the_same_noise() -> None:
    """One number from one picture may be exact by chance, which is no reason to ask that of an engine."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1))
    expected = verify.expectations(module, [picture((32, 32))], ("logits",))
    assert len({each.noise_floors["logits"] for each in expected}) == 1
    assert expected[0].noise_floors["logits"] > 0


def test_not_a_number_never_agrees() -> None:
    row = verify.Comparison("g", "e", "logits", 1, float("nan"), 1e-6, 1e-5)
    assert not row.agrees


class _Unexportable(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[image > 0] if image.sum().item() > 0 else image


def test_unexportable_module_says_why() -> None:
    with pytest.raises(
        ExportError, match=r"odd could not be exported with inputs \[\(2, 3, 32, 32\)\]: Failed"
    ):
        export_graph(_Unexportable(), [picture((32, 32))], name="odd")


SMALL: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    (
        "nvit",
        {"dims": {"EMB": 64, "head": [2, 4, 2], "QK": [16, 8, 24], "V": [24, 16, 32], "MLP": [96, 64, 128]}},
        (224, 224),
    ),
    (
        "tiny_vit_5m_224",
        {"embed_dims": (16, 32, 64, 96), "num_heads": (1, 2, 2, 3), "depths": (1, 1, 2, 1)},
        (224, 224),
    ),
    ("fastvit_mci0", {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)}, (128, 128)),
    ("swin_tiny", {"embed_dim": 24, "num_heads": (1, 2, 4, 8), "num_classes": 9}, (224, 224)),
]


@pytest.mark.parametrize(("name", "config", "size"), SMALL)
def test_every_family_agrees(
    name: str, config: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = create(name, **config)
    expected = verify.expectations(module, [picture(size)], ("logits",))
    file = write_graphs({"model": export_graph(merge(module), [picture(size)], name=name)}, tmp_path)[
        "model"
    ]["source"]
    with open_engine({"source": file.path}, "onnxruntime") as engine:
        verify.require_agreement(
            verify.compare(engine, expected, graph=name, engine_name="onnxruntime"), name
        )
