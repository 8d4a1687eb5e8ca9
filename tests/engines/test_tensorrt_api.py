"""Every name of TensorRT that this package uses exists in the bindings of 10.16, 11.4 and TensorRT for RTX.

mypy holds the code to the protocols of `saccade.engines.tensorrt.bindings`; here these are held to what was
read from NVIDIA's wheels (tests/data/tensorrt/api_surface.json) and to the bindings that are installed. The
stand-in of the other tests may not know more than they do either.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.engines import fake_cuda, fake_tensorrt, tensorrt_stubs

from saccade.engines.cuda import DEFAULT_STREAM
from saccade.engines.tensorrt import bindings, flavours

ROOT = Path(__file__).resolve().parents[2]
SURFACE = ROOT / "tests" / "data" / "tensorrt" / "api_surface.json"
VERSIONS = ("10.16.1", "11.4.0")
# Classes of TensorRT for RTX alone, and what they are called there.
OF_RTX = {"RtxBuilderConfig": "IBuilderConfig", "RtxExecutionContext": "IExecutionContext"}
PROTOCOLS = [
    name
    for name, value in vars(bindings).items()
    if inspect.isclass(value)
    and getattr(value, "_is_protocol", False)
    and name not in ("Protocol", "Bindings")
]
rtx = pytest.mark.skipif(
    not flavours.is_installed(flavours.FLAVOURS["tensorrt_rtx"]),
    reason="the bindings are not installed: pip install 'saccade[tensorrt-rtx]'",
)


@cache
def surface(version: str) -> dict[str, Any]:
    return json.loads(SURFACE.read_text(encoding="utf-8"))[version]


def members(protocol: type) -> set[str]:
    """Names that the class itself declares."""
    declared = {*vars(protocol), *vars(protocol).get("__annotations__", ())}
    return {name for name in declared if not name.startswith("_")}


def enumerators() -> Iterator[tuple[str, str]]:
    """(enumeration, member) wherever the package writes `trt.Enumeration.MEMBER`, or asks for one by name."""
    for path in sorted((ROOT / "engines" / "tensorrt").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Attribute)
                and isinstance(node.value.value, ast.Name)
                and node.value.value.id == "trt"
            ):
                yield node.value.attr, node.attr
    from saccade.engines.tensorrt import network

    yield from (("LayerType", name) for name in network.WORKING_LAYERS)
    yield from (("DataType", name) for name in {*network.OPERANDS.values(), *network.NUMPY})
    flags = ("TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL", "REFIT", "WEIGHT_STREAMING")
    yield from (("BuilderFlag", name) for name in flags)
    yield from (("HardwareCompatibilityLevel", name) for name in ("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"))
    yield from (("TensorIOMode", name) for name in ("INPUT", "OUTPUT"))


ENUMERATORS = sorted({pair for pair in enumerators() if pair[0] != "ILogger"})


def test_the_search_finds_what_is_used() -> None:
    assert {"Builder", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "Runtime"} <= set(PROTOCOLS)
    assert ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED") in ENUMERATORS
    assert ("LayerInformationFormat", "JSON") in ENUMERATORS
    assert "execute_async_v3" in members(bindings.IExecutionContext)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name not in OF_RTX])
def test_classes_and_members_exist(name: str, version: str) -> None:
    facts = surface(version)
    assert name in facts["all_class_names"]
    if name in facts["classes"]:
        assert members(getattr(bindings, name)) <= set(facts["classes"][name])
    else:
        assert name == "ParserError", "the surface was not read for this class: read it"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("enumeration", "member"), ENUMERATORS)
def test_enumerators_exist(enumeration: str, member: str, version: str) -> None:
    if enumeration != "ComputeCapability":  # of TensorRT for RTX
        assert member in surface(version)["enums"][enumeration]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_module_has_the_names_of_its_protocol(version: str) -> None:
    facts = surface(version)
    known = {*facts["all_class_names"], *facts["enums"]}
    assert members(bindings.Bindings) - {"ComputeCapability"} <= known


@rtx
@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_installed_bindings_have_the_classes(name: str) -> None:
    library = flavours.load(flavours.FLAVOURS["tensorrt_rtx"])
    real = getattr(library, OF_RTX.get(name, name))
    assert members(getattr(bindings, name)) <= set(dir(real))


@rtx
@pytest.mark.parametrize(("enumeration", "member"), ENUMERATORS)
def test_the_installed_bindings_have_the_enumerators(enumeration: str, member: str) -> None:
    library = flavours.load(flavours.FLAVOURS["tensorrt_rtx"])
    assert hasattr(getattr(library, enumeration), member)


@rtx
def test_the_targets_of_the_table_are_those_of_the_library() -> None:
    chosen = flavours.FLAVOURS["tensorrt_rtx"]
    known = flavours.load(chosen).ComputeCapability.__members__
    assert {f"SM{number}" for number in chosen.capabilities} == set(known) - {"NONE", "CURRENT"}


STAND_INS = {
    "_Builder": "Builder",
    "_Config": "IBuilderConfig",
    "_Context": "IExecutionContext",
    "_Engine": "ICudaEngine",
    "_Inspector": "EngineInspector",
    "_Layer": "ILayer",
    "_Network": "INetworkDefinition",
    "_OnnxParserRefitter": "OnnxParserRefitter",
    "_Parser": "OnnxParser",
    "_Profile": "IOptimizationProfile",
    "_Refitter": "Refitter",
    "_Runtime": "Runtime",
    "_Tensor": "ITensor",
    "_TimingCache": "ITimingCache",
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("stand_in", "name"), STAND_INS.items())
def test_the_stand_in_knows_no_more_than_tensorrt(stand_in: str, name: str, version: str) -> None:
    inherited = {"parse_from_file"} if stand_in == "_OnnxParserRefitter" else set()
    known = {*surface(version)["classes"][name], *inherited}
    assert {n for n in vars(getattr(fake_tensorrt, stand_in)) if not n.startswith("_")} <= known


@pytest.mark.parametrize(
    ("module", "stand_in", "prefix"),
    [("runtime", fake_cuda.Cuda, "cuda"), ("driver", fake_cuda.DriverApi, "cu")],
)
def test_the_stand_in_of_cuda_has_real_names(module: str, stand_in: type, prefix: str) -> None:
    real = pytest.importorskip(f"cuda.bindings.{module}", reason="cuda-python is not installed")
    names = {n for n in vars(stand_in) if n.startswith(prefix) and n != "current"}
    assert len(names) > 7
    assert {name for name in names if not hasattr(real, name)} == set()


def test_cuda_has_what_is_asked_of_its_objects() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    for kind in ("HostToDevice", "DeviceToHost", "DeviceToDevice"):
        assert hasattr(real.cudaMemcpyKind, f"cudaMemcpy{kind}")
    assert hasattr(real.cudaPointerAttributes, "device")
    assert int(real.cudaStreamLegacy) == DEFAULT_STREAM


@pytest.mark.slow
@pytest.mark.parametrize("version", tensorrt_stubs.VERSIONS)
def test_the_real_bindings_have_the_names(version: str) -> None:
    """In a child process that has NVIDIA's own bindings, over libraries that do nothing."""
    try:
        stubs = tensorrt_stubs.bindings(version)
    except tensorrt_stubs.Unavailable as error:
        pytest.skip(str(error))
    classes = [name for name in PROTOCOLS if name not in OF_RTX]
    names = {f"tensorrt.{name}.{member}" for name in classes for member in members(getattr(bindings, name))}
    names |= {f"tensorrt.{a}.{b}" for a, b in ENUMERATORS if a != "ComputeCapability"}
    assert len(names) > 90
    assert stubs.missing(names) == []
