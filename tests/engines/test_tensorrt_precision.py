"""Converted graphs before NVIDIA's parser and builder: what is float32 in them, and what is refused where."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnx
import pytest
from tests.engines.test_tensorrt_exports import SMALL

from saccade.engines import readiness
from saccade.engines.export import export_graph
from saccade.engines.inputs import picture
from saccade.engines.passes.inline import inline
from saccade.engines.precision import convert
from saccade.engines.tensorrt.options import Precision
from saccade.engines.tensorrt.parser import judge
from saccade.models import create
from saccade.models.deploy import merge

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NVIDIA's parser is not installed: pip install 'saccade[tensorrt-rtx]'",
)

QUICK = ("nvit", "deepmad_r18")


def exported(name: str) -> onnx.ModelProto:
    config, size = SMALL[name]
    return export_graph(merge(create(name, **config)), [picture((size, size))], name=name)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
def test_every_family_builds(name: str, precision: Precision, tmp_path: Path) -> None:
    """With `saccade` nodes, which are inlined when it is parsed, and in standard operators."""
    source = exported(name)
    low = convert(source, precision).model
    plain = judge(saved(inline(source), tmp_path), build=False)
    for model in [low, inline(low)] if low.functions else [low]:
        report = readiness.check(model)
        assert report.ok, "\n".join(report.text())
        verdict = judge(saved(model, tmp_path), precision=precision)
        assert verdict.ok, verdict.errors
    # Casts, a few for each softmax; a node that falls apart in the new type would cost more.
    assert verdict.layers <= 1.25 * plain.layers + 20


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_family_builds_in_fp16_for_turing(name: str, tmp_path: Path) -> None:
    """Turing takes no float32 matrix products: none of the islands that are always there is one."""
    verdict = judge(
        saved(convert(exported(name), "fp16").model, tmp_path), precision="fp16", compute_capabilities=("75",)
    )
    assert verdict.ok, verdict.errors


def test_turing_refuses_a_measured_island_with_a_matrix_product(tmp_path: Path) -> None:
    source = exported("nvit")
    product = next(node.name for node in source.graph.node if node.op_type == "MatMul")
    path = saved(convert(source, "fp16", [product]).model, tmp_path)
    verdicts: dict[str, Any] = {
        target: judge(path, precision="fp16", compute_capabilities=(target,)) for target in ("75", "80")
    }
    assert verdicts["80"].ok
    assert not verdicts["75"].ok
    assert any("FP32" in refusal.message or "Turing" in refusal.message for refusal in verdicts["75"].errors)
