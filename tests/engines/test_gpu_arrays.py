"""On a GPU: CUDA through cuda-python, and arrays shared with PyTorch.

Status: unverified. No GPU was at hand when these were written; `make test-gpu` runs them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests import tiny

from saccade.engines.arrays import DeviceArray, locate
from saccade.engines.cuda import Context, Memory, Stream, call
from saccade.engines.engine import EngineOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
]


class DlpackOnly:
    """A tensor without its `__cuda_array_interface__`."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.__dlpack__ = tensor.__dlpack__
        self.__dlpack_device__ = tensor.__dlpack_device__


@pytest.mark.parametrize("wrap", [lambda tensor: tensor, DlpackOnly], ids=["interface", "DLPack"])
def test_tensors_are_found_where_they_lie(wrap: type) -> None:
    pytest.importorskip("cuda.bindings.runtime")
    part = torch.arange(10.0, device="cuda")[4:]
    feed = locate("x", wrap(part))
    assert (feed.address, feed.shape, feed.dtype, feed.on_device) == (part.data_ptr(), (6,), np.float32, True)
    feed.require_device("x", 0)


def test_work_on_another_stream_comes_first_and_arrays_go_back() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    theirs = torch.cuda.Stream()
    with torch.cuda.stream(theirs):
        torch.cuda._sleep(100_000_000)
        made = torch.full((1000,), 3.0, device="cuda")
    context = Context(0)
    before = int(call("cuCtxGetCurrent"))
    with context:
        ours, memory = Stream(), Memory(4000)
        ours.follow(theirs.cuda_stream)
        ours.copy(memory.address, made.data_ptr(), 4000, "DeviceToDevice")
        ours.wait()
    assert int(call("cuCtxGetCurrent")) == before
    array = DeviceArray(memory, memory.address, (1000,), np.dtype(np.float32))
    assert torch.equal(torch.as_tensor(array, device="cuda"), made)


def test_what_was_captured_is_replayed() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    source, target = torch.ones(8, device="cuda"), torch.zeros(8, device="cuda")
    torch.cuda.synchronize()
    with Context(0):
        stream = Stream()
        graph = stream.capture(
            lambda: stream.copy(target.data_ptr(), source.data_ptr(), 32, "DeviceToDevice")
        )
        assert target.sum().item() == 0
        graph.launch(stream)
        stream.wait()
    assert torch.equal(target, source)


def test_onnxruntime_takes_and_gives_device_arrays(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        pytest.skip("this ONNX Runtime is not built for CUDA")
    from saccade.engines.onnxruntime import OnnxRuntimeEngine

    onnx.save(tiny.model(), tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with OnnxRuntimeEngine(tmp_path / "model.onnx", EngineOptions("cuda")) as engine:
        out = engine.run_on_device({"image": torch.from_numpy(pixels).cuda()})["logits"]
    found = torch.as_tensor(out, device="cuda").cpu().numpy()
    np.testing.assert_allclose(found, tiny.logits(pixels), rtol=1e-4, atol=1e-4)
