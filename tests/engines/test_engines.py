"""Every engine keeps the same contract: what it computes, what it refuses, how it is shared and closed."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests import tiny

from saccade.engines.engine import (
    AUTO_ORDER,
    ENGINES,
    Engine,
    EngineOptions,
    TensorSpec,
    check_feeds,
    open_engine,
    resolve_engine,
)
from saccade.engines.onnx_metadata import read_metadata
from saccade.errors import BundleError, ClosedError, EngineError, InputError, MissingDependency, UsageError

ROOT = Path(__file__).resolve().parents[2]
Graphs = dict[str, Path]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return tiny.write_graphs(tmp_path_factory.mktemp("graphs"))


# Engines that open graphs; test_tensorrt_runtime.py holds the one that opens plans.
@pytest.fixture(params=[name for name, backend in ENGINES.items() if not backend.built])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(name: str, graphs: Graphs) -> Any:
    with open_engine(graphs, name, EngineOptions(threads=1)) as opened:
        yield opened


def image(batch: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((batch, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_computes_what_the_reference_evaluator_does(engine: Engine, batch: int) -> None:
    outputs = engine.run({"image": image(batch)})
    assert list(outputs) == ["logits"]
    assert outputs["logits"].dtype == np.float32
    np.testing.assert_allclose(outputs["logits"], tiny.logits(image(batch)), rtol=1e-5, atol=1e-5)


def test_describes_its_tensors(engine: Engine) -> None:
    (image_spec,), (logits_spec,) = engine.inputs.values(), engine.outputs.values()
    assert (image_spec.name, image_spec.dtype, image_spec.shape[1:]) == ("image", "float32", (3, 32, 32))
    assert (logits_spec.name, logits_spec.dtype, logits_spec.shape[1]) == ("logits", "float32", 10)
    assert isinstance(image_spec.shape[0], str)


def test_takes_arrays_that_are_not_contiguous(engine: Engine) -> None:
    channels_last = np.ascontiguousarray(image(2).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not channels_last.flags.c_contiguous
    actual = engine.run({"image": channels_last})["logits"]
    np.testing.assert_array_equal(actual, engine.run({"image": image(2)})["logits"])


def test_onnxruntime_takes_arrays_by_dlpack(graphs: Graphs) -> None:
    torch = pytest.importorskip("torch")
    with open_engine(graphs, "onnxruntime", EngineOptions(threads=1)) as engine:
        actual = engine.run({"image": torch.from_numpy(image(2))})["logits"]
        np.testing.assert_array_equal(actual, engine.run({"image": image(2)})["logits"])
        with pytest.raises(InputError, match="'image', a Tensor, cannot be read"):
            engine.run({"image": torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)})


def test_the_caller_owns_what_run_returns(engine: Engine) -> None:
    first = engine.run({"image": image(1)})["logits"]
    kept = first.copy()
    first += 1
    np.testing.assert_array_equal(engine.run({"image": image(1)})["logits"], kept)
    np.testing.assert_array_equal(first, kept + 1)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, r"missing \['image'\]"),
        ({"image": image(1), "mask": image(1)}, r"unknown \['mask'\]"),
        ({"image": image(1).astype(np.float64)}, "dtype float64, the graph takes float32"),
        ({"image": image(1)[0]}, r"shape \(3, 32, 32\)"),
        ({"image": image(1)[:, :2]}, r"shape \(1, 2, 32, 32\)"),
        ({"image": image(1)[:0]}, r"shape \(0, 3, 32, 32\)"),
        ({"image": [[1.0]]}, "list, not a NumPy array"),
    ],
)
def test_refuses_feeds_that_do_not_fit(engine: Engine, feeds: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        engine.run(feeds)


def test_dimensions_of_one_name_must_agree() -> None:
    specs = {name: TensorSpec(name, "float32", ("n", 2)) for name in ("a", "b")}
    check_feeds({"a": np.zeros((4, 2), np.float32), "b": np.zeros((4, 2), np.float32)}, specs)
    with pytest.raises(InputError, match=r"'b' has shape \(3, 2\)"):
        check_feeds({"a": np.zeros((4, 2), np.float32), "b": np.zeros((3, 2), np.float32)}, specs)


def test_many_threads_get_their_own_answers(engine: Engine) -> None:
    images = [image(1 + seed % 3, seed) for seed in range(48)]
    expected = [engine.run({"image": each})["logits"] for each in images]
    with ThreadPoolExecutor(16) as pool:
        actual = list(pool.map(lambda each: engine.run({"image": each})["logits"], images))
    for got, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_threads_may_begin_with_batches_of_many_sizes(name: str, graphs: Graphs) -> None:
    images = [image(batch, batch) for batch in (1, 2, 3, 1, 2, 3)]
    with open_engine(graphs, name) as engine, ThreadPoolExecutor(len(images)) as pool:
        actual = list(pool.map(lambda each: engine.run({"image": each})["logits"], images))
    for got, given in zip(actual, images, strict=True):
        np.testing.assert_allclose(got, tiny.logits(given), rtol=1e-5, atol=1e-5)


def test_closing_twice_is_fine_and_use_after_it_is_not(name: str, graphs: Graphs) -> None:
    engine = open_engine(graphs, name)
    engine.close()
    engine.close()
    with pytest.raises(ClosedError, match="closed: load it again"):
        engine.run({"image": image(1)})


def test_closing_while_others_run_lets_them_finish(name: str, graphs: Graphs) -> None:
    engine = open_engine(graphs, name)
    outcomes = set()

    def use(_: int) -> None:
        try:
            outcomes.add(engine.run({"image": image(1)})["logits"].shape)
        except ClosedError:
            outcomes.add("closed")

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(use, index) for index in range(60)]
        running[5].result()
        engine.close()
    assert all(future.exception() is None for future in running)
    assert outcomes <= {(1, 10), "closed"}
    assert (1, 10) in outcomes


FORK = """
import os, sys, warnings
import numpy as np
from pathlib import Path
from saccade.engines.engine import open_engine
from saccade.errors import ClosedError
warnings.simplefilter("ignore")  # Python 3.12 warns of forking a process with threads; that is the point
engine = open_engine({"source": Path(sys.argv[2])}, sys.argv[1])
feeds = {"image": np.zeros((1, 3, 32, 32), np.float32)}
engine.run(feeds)
child = os.fork()
if child == 0:
    try:
        engine.run(feeds)
    except ClosedError as error:
        engine.close()
        del engine, error
        os._exit(33)
    os._exit(1)
status = os.waitpid(child, 0)[1]
engine.run(feeds)
print(os.waitstatus_to_exitcode(status), flush=True)
os._exit(0)
"""


def test_a_forked_child_is_refused_and_its_parent_unharmed(name: str, graphs: Graphs) -> None:
    command = [sys.executable, "-c", FORK, name, str(graphs["openvino"])]
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert child.stdout == "33\n", child.stderr


def _open_and_run(name: str, path: str) -> Any:
    with open_engine({"source": Path(path)}, name) as engine:
        return engine.run({"image": image(1)})["logits"]


def test_a_spawned_process_opens_its_own(graphs: Graphs) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        logits = pool.apply(_open_and_run, ("onnxruntime", str(graphs["source"])))
    np.testing.assert_allclose(logits, tiny.logits(image(1)), rtol=1e-5, atol=1e-5)


def test_a_file_that_is_no_graph_is_an_engine_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph at all")
    with pytest.raises(EngineError, match=r"cannot open .*broken\.onnx"):
        open_engine({"source": path}, name)


def test_missing_weights_are_an_engine_error(name: str, graphs: Graphs, tmp_path: Path) -> None:
    lonely = shutil.copy(graphs["openvino"], tmp_path / "lonely.onnx")
    with pytest.raises(EngineError, match=r"lonely\.onnx"):
        open_engine({"source": lonely}, name)


def test_a_failing_run_is_an_engine_error_and_prints_nothing(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "reshape.onnx"
    text = """<ir_version: 9, opset_import: ["": 20]>
    g (float[n, 4] image, int64[2] shape) => (float[a, b] logits) { logits = Reshape (image, shape) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    with open_engine({"source": path}, name) as engine:
        with pytest.raises(EngineError, match=r"failed on reshape\.onnx"):
            engine.run({"image": np.zeros((1, 4), np.float32), "shape": np.array([3, 3])})
        assert "".join(capfd.readouterr()) == ""
        ones = {"image": np.ones((1, 4), np.float32), "shape": np.array([2, 2])}
        np.testing.assert_array_equal(engine.run(ones)["logits"], np.ones((2, 2)))


def test_weights_outside_the_folder_are_refused(graphs: Graphs, tmp_path: Path) -> None:
    model = onnx.load(graphs["source"], load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../" + entry.value
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "climbing.onnx").write_bytes(model.SerializeToString())
    shutil.copy(graphs["source"].with_suffix(".bin"), tmp_path)
    with pytest.raises(EngineError, match="climbing"):
        open_engine({"source": folder / "climbing.onnx"}, "onnxruntime")


def test_an_engine_takes_the_graph_derived_for_it(graphs: Graphs, tmp_path: Path) -> None:
    absent = tmp_path / "absent.onnx"
    with open_engine({"source": absent, "onnxruntime": graphs["source"]}, "onnxruntime") as engine:
        assert engine.run({"image": image(1)})
    with pytest.raises(EngineError, match="absent"):
        open_engine({"source": absent, "openvino": graphs["openvino"]}, "onnxruntime")


def test_auto_takes_the_documented_order(graphs: Graphs) -> None:
    assert AUTO_ORDER == ("onnxruntime", "openvino")
    assert resolve_engine("auto") == "onnxruntime"
    assert resolve_engine("auto", EngineOptions(device="cuda:1")) == "onnxruntime"


WITHOUT = """
import sys

sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # None: not installed
from saccade.engines.engine import resolve_engine
from saccade.errors import MissingDependency
try:
    print(resolve_engine(sys.argv[2]))
except MissingDependency as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("absent", "wanted", "said"),
    [
        ("onnxruntime", "auto", "openvino"),
        ("onnxruntime,openvino", "auto", "pip install 'saccade[cpu]'"),
        ("onnxruntime", "onnxruntime", "pip install 'saccade[cpu]'"),
        ("openvino", "openvino", "pip install 'saccade[openvino]'"),
        ("onnx", "reference", "pip install 'saccade[export]'"),
    ],
)
def test_a_missing_runtime_gives_the_install_line(absent: str, wanted: str, said: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT, absent, wanted], capture_output=True, text=True, check=True
    )
    assert child.stdout.strip().endswith(said), child.stdout + child.stderr


@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        ("onnxrutnime", {}, "did you mean 'onnxruntime'"),
        ("openvino", {"device": "cuda"}, "runs on the CPU only"),
        ("auto", {"device": "gpu"}, "write cpu, cuda or cuda:N"),
        ("auto", {"device": "cuda:x"}, "write cpu, cuda or cuda:N"),
        ("auto", {"threads": 0}, "at least 1"),
        ("tensorrt", {"contexts": 0}, "contexts is 0; it must be at least 1"),
        ("onnxruntime", {"provider": "tensorrt"}, "is for CUDA devices, not for 'cpu'"),
        ("onnxruntime", {"device": "cuda", "provider": "rocm"}, "choose cuda or tensorrt"),
        ("auto", {"memory_limit_mib": 512}, "CUDA devices only"),
        ("openvino", {"memory_limit_mib": 512}, "with engine 'openvino' on 'cpu'"),
        ("auto", {"device": "cuda", "memory_limit_mib": 0}, "positive"),
    ],
)
def test_options_that_cannot_work_are_refused(engine: str, options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve_engine(engine, EngineOptions(**options))


def test_cuda_without_a_gpu_build_says_what_to_install(graphs: Graphs) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is built for CUDA")
    with pytest.raises(MissingDependency, match=r"saccade\[gpu\]"):
        open_engine(graphs, "onnxruntime", EngineOptions(device="cuda"))


def test_metadata_is_read_without_onnx(tmp_path: Path) -> None:
    metadata = {"saccade.card": '{"name": "näme"}', "empty": "", "long": "x" * 70_000}
    path = tmp_path / "model.onnx"
    onnx.save(tiny.model(metadata), path)
    assert read_metadata(path) == metadata
    onnx.save(tiny.model(), path)
    assert read_metadata(path) == {}


@pytest.mark.parametrize(
    "content", [b"\x00", b"\xff" * 20, b"PK\x03\x04" + bytes(50), b"\x72\xff\xff\xff\x7f"]
)
def test_metadata_of_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"other\.onnx is not an ONNX file"):
        read_metadata(path)


def test_metadata_of_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    content = tiny.model({"key": "value" * 100}).SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[:-50])
    with pytest.raises(BundleError, match="damaged"):
        read_metadata(path)
