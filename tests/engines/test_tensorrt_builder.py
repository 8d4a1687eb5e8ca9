"""Building plans: with NVIDIA's builder of TensorRT for RTX, and with a stand-in for what needs a GPU."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from tests.engines.fake_tensorrt import World
from tests.engines.faults import Faults

from saccade.engines.engine import TensorSpec
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.builder import Source, build_plan
from saccade.engines.tensorrt.compiler import Outcome, Request, compile_plan
from saccade.engines.tensorrt.flavours import FLAVOURS, load
from saccade.engines.tensorrt.gpu import Gpu, find_gpu
from saccade.engines.tensorrt.options import BatchRange, BuildOptions, SizeRange
from saccade.engines.tensorrt.plans import Record
from saccade.engines.tensorrt.progress import Phases
from saccade.engines.tensorrt.words import Refusal
from saccade.errors import EngineError, EngineMismatch, MissingDependency, SaccadeError, UsageError

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NVIDIA's builder is not installed: pip install 'saccade[tensorrt-rtx]'",
)
no_driver = pytest.mark.skipif(find_gpu() is not None, reason="says what a machine without a driver does")
HEAD = '<ir_version: 9, opset_import: ["" : 20]>\n'
CONV = """g (float[batch,3,8,8] x) => (float[batch,4,8,8] y) <float[4,3,1,1] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
    { [first] c = Conv(x, w) [second] y = Relu(c) }"""
HALF = """g (float[batch,4] x, float[4,4] w) => (float[batch,4] y)
    { xh = Cast<to=10>(x) wh = Cast<to=10>(w) yh = MatMul(xh, wh) y = Cast<to=1>(yh) }"""
FREE = "g (float[batch,3,height,width] x) => (float[batch,3,height,width] y) { y = Relu(x) }"
RTX = BuildOptions(flavour="tensorrt_rtx", target="sm80", batch=BatchRange(1, 4, 16))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def source(folder: Path, text: str) -> Source:
    path = folder / "graphs" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(onnx.parser.parse_model(HEAD + text), path)
    spec = TensorSpec("x", "float32", ("batch", 3, 8, 8))
    return Source("small", "model", path, {"graphs/model.onnx": "0" * 64}, (spec,), (spec,))


def left(folder: Path) -> list[str]:
    """Everything in the bundle but its graphs."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if "graphs" not in p.parts)


# --- with NVIDIA's builder -----------------------------------------------------------------------------


@rtx
def test_a_plan_and_what_is_recorded_of_it(tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    bundle = tmp_path / "bundle"
    folder, record = build_plan(
        source(bundle, CONV), RTX, bundle / "engines", say=lambda *step: steps.append(step)
    )
    assert left(bundle) == [
        "engines",
        *(f"engines/{record.key}{n}" for n in ("", "/engine.json", "/model.plan")),
    ]
    assert folder == bundle / "engines" / record.key
    assert record.key.startswith(f"model-tensorrt_rtx-{record.version}-sm80-fp32-")
    assert plans.read(folder) == record
    assert plans.read_plan(folder, record)[:4] == (folder / "model.plan").read_bytes()[:4]
    assert record.layers == 2
    assert record.working_types == {"FLOAT": 1}
    assert record.plan_bytes == (folder / "model.plan").stat().st_size > 1000
    assert 0 < record.build_seconds < record.wall_seconds
    fractions = [fraction for _, fraction in steps]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] <= 1


@rtx
def test_building_again_replaces_and_other_options_stand_beside(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    made = source(bundle, CONV)
    first, _ = build_plan(made, RTX, bundle / "engines")
    again, _ = build_plan(made, RTX, bundle / "engines")
    both = BuildOptions(
        flavour="tensorrt_rtx", target="sm86+sm89", batch=BatchRange(2, 2, 2), precision="tf32"
    )
    other, record = build_plan(made, both, bundle / "engines")
    assert first == again != other
    assert record.serves == "sm86+sm89"
    assert sorted(path.name for path in (bundle / "engines").iterdir()) == sorted([first.name, other.name])


@rtx
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_progress_raises_cancels_and_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    bundle = tmp_path / "bundle"
    made = source(bundle, CONV)

    def stop(phase: str, fraction: float) -> None:
        raise error

    started = time.monotonic()
    with pytest.raises(error):
        build_plan(made, RTX, bundle / "engines", say=stop)
    assert time.monotonic() - started < 60
    assert left(bundle) == []


@rtx
@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        (
            "g (float[1,3,8,8] x) => (float[1,3,4,4] y) <float[4] s = {1,1,0.5,0.5}>"
            '{ [shrink] y = Resize<mode="linear", antialias=1>(x,,s) }',
            RTX,
            EngineError,
            r"cannot parse small \(model\.onnx\):\n  node 'shrink': Resize: .*[Aa]ntialias",
        ),
        (
            "g (float[batch,4] x, float[4,4] w) => (float[batch,4] y) { [product] y = MatMul(x, w) }",
            BuildOptions(flavour="tensorrt_rtx", target="sm75"),
            EngineError,
            r"cannot build small \(model\.onnx\):\n  (.|\n)*FP32 GEMM is not supported",
        ),
        (HALF, RTX, EngineError, "precision fp32 was asked for, .* run otherwise: 1 in HALF"),
        (
            CONV,
            BuildOptions(flavour="tensorrt_rtx", target="sm80", precision="fp16"),
            EngineError,
            "precision fp16 was asked for, .* run otherwise: 1 in FLOAT",
        ),
        (FREE, RTX, UsageError, r"free picture sizes: say which with size, as --size"),
        (
            CONV,
            BuildOptions(flavour="tensorrt_rtx", target="sm80", size=SizeRange((8, 8), (8, 8), (8, 8))),
            UsageError,
            "fixed picture size: build it without size",
        ),
    ],
    ids=["parser", "builder", "half", "float", "free sizes", "fixed size"],
)
def test_what_cannot_be_built_says_why_and_leaves_nothing(
    tmp_path: Path, text: str, options: BuildOptions, error: type[Exception], message: str
) -> None:
    bundle = tmp_path / "bundle"
    with pytest.raises(error, match=message):
        build_plan(source(bundle, text), options, bundle / "engines")
    assert left(bundle) == []


@rtx
@pytest.mark.parametrize(
    ("text", "changes", "types"),
    [
        (HALF, {"precision": "fp16", "target": "sm75+sm80"}, {"HALF": 1}),
        (FREE, {"size": SizeRange((8, 8), (16, 24), (32, 32))}, {}),
        (
            CONV,
            {"weight_streaming": True, "precision": "tf32", "optimization_level": 0, "workspace_mib": 64},
            {"FLOAT": 1},
        ),
    ],
    ids=["fp16 for Turing", "free sizes", "flags"],
)
def test_what_builds(tmp_path: Path, text: str, changes: dict[str, Any], types: dict[str, int]) -> None:
    bundle = tmp_path / "bundle"
    options = BuildOptions(**{"flavour": "tensorrt_rtx", "target": "sm80", **changes})
    _, record = build_plan(source(bundle, text), options, bundle / "engines")
    assert record.working_types == types
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


@rtx
@no_driver
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": None}, UsageError, r"no GPU to build for: name a target \(sm75, .*--target sm89"),
        ({"stripped": True}, EngineError, "stripped plans of tensorrt_rtx are built beside an NVIDIA driver"),
        ({"refittable": True}, EngineError, "refittable plans .* beside an NVIDIA driver"),
    ],
)
def test_what_needs_a_driver(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    bundle = tmp_path / "bundle"
    options = BuildOptions(**{"flavour": "tensorrt_rtx", "target": "sm80", **changes})
    with pytest.raises(error, match=message):
        build_plan(source(bundle, CONV), options, bundle / "engines")
    assert left(bundle) == []


def test_a_library_that_is_not_installed() -> None:
    absent = FLAVOURS["tensorrt_lean"]
    if importlib.util.find_spec("tensorrt_lean") is None:
        with pytest.raises(MissingDependency, match="pip install tensorrt-lean"):
            load(absent)


# --- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flavour": "tensorrt_gtx"}, "no flavour of TensorRT is called 'tensorrt_gtx'; there are tensorrt,"),
        ({"flavour": "tensorrt_lean"}, "runs plans and builds none; build with tensorrt or tensorrt_rtx"),
        ({"precision": "fp4"}, "precision 'fp4': choose fp32, tf32, fp16, bf16"),
        ({"binding": "magic"}, "binding 'magic': choose function, plugin, auto"),
        ({"batch": BatchRange(4, 2, 8)}, "batch 4,2,8: write least, most frequent and greatest"),
        ({"size": SizeRange((8, 8), (8, 4), (8, 8))}, "width 8,4,8: write least"),
        ({"optimization_level": 6}, "optimization_level is 6; it is 0 to 5"),
        ({"workspace_mib": 0}, "workspace_mib is 0"),
        ({"target": "sm80"}, "target='sm80' is not for tensorrt: it builds for the GPU that it runs on"),
        ({"flavour": "tensorrt_rtx", "target": "sm90"}, "target 'sm90': tensorrt_rtx builds for sm75, sm80"),
        ({"flavour": "tensorrt_rtx", "target": "80"}, "target '80': tensorrt_rtx builds for"),
        ({"flavour": "tensorrt_rtx", "binding": "plugin"}, "tensorrt_rtx takes no plugins into its plans"),
        (
            {"flavour": "tensorrt_rtx", "version_compatible": True},
            "is not for tensorrt_rtx: its plans run on",
        ),
        ({"flavour": "tensorrt_rtx", "hardware_compatible": "ampere+"}, "name several targets instead"),
    ],
)
def test_options_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BuildOptions(**changes)


def test_options_survive_json() -> None:
    options = BuildOptions(
        size=SizeRange((8, 8), (16, 24), (32, 32)), batch=BatchRange(2, 3, 4), stripped=True
    )
    assert BuildOptions.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_progress_rises_through_nested_phases() -> None:
    phases = Phases()
    seen = []
    phases.start("build", None, 2)
    seen.append(phases.fraction())
    phases.start("optimise", "build", 4)
    for step in range(4):
        phases.step("optimise", step)
        seen.append(phases.fraction())
    phases.finish("optimise")
    phases.step("build", 0)
    seen.append(phases.fraction())
    phases.start("time", "build", 0)
    phases.step("unknown", 3)
    phases.finish("time")
    phases.step("build", 1)
    seen.append(phases.fraction())
    assert seen == [0, 0.125, 0.25, 0.375, 0.5, 0.5, 1]


# --- with the stand-in: a GPU, timings, the inspector --------------------------------------------------

Compile = Callable[..., Outcome]


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compile:
    """Compile the stand-in's network, of operands of `kind`, with options."""

    def run(world: World, kind: str = "FLOAT", **options: Any) -> Outcome:
        world.enter(monkeypatch)
        graph = tmp_path / "model.onnx"
        graph.write_text(kind)
        request = Request(
            graph, BuildOptions(**options), tmp_path / "model.plan", timing_cache=tmp_path / "timings"
        )
        return compile_plan(world.trt, request)  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_the_plan_is_read_back(compiled: Compile, tmp_path: Path, version: str) -> None:
    """The inspector's report has another form in TensorRT 11."""
    outcome = compiled(World(version=version), "HALF", precision="fp16")
    assert outcome.built
    assert outcome.engine_types == {"HALF": 1}
    assert outcome.device_bytes == 1 << 20
    assert outcome.gpu is not None
    assert (outcome.gpu.capability, outcome.gpu.driver) == ("90", "13.1")
    assert (tmp_path / "model.plan").stat().st_size == outcome.plan_bytes


def test_a_plan_that_runs_otherwise_than_asked_is_an_error(
    compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    monkeypatch.setattr(
        "tests.engines.fake_tensorrt._Inspector.get_engine_information", lambda *_: FP16_REPORT
    )
    with pytest.raises(
        EngineError, match="fp32 was asked for, and the plan runs otherwise: 1 tensors in HALF"
    ):
        compiled(world)


FP16_REPORT = json.dumps({"Layers": [{"Outputs": [{"Format/Datatype": "Channel major FP16 format"}]}]})


@pytest.mark.parametrize("report", ['{"Layers": ["conv1"]}', '{"Layers": []}'])
def test_an_inspector_that_names_no_types_decides_nothing(
    compiled: Compile, monkeypatch: pytest.MonkeyPatch, report: str
) -> None:
    monkeypatch.setattr("tests.engines.fake_tensorrt._Inspector.get_engine_information", lambda *_: report)
    assert compiled(World()).engine_types == {}


def test_timings_are_kept_per_version_and_gpu_and_used_again(compiled: Compile, tmp_path: Path) -> None:
    compiled(World())
    compiled(World())
    compiled(World(version="11.4.0"))
    found = {path.name: path.read_bytes() for path in (tmp_path / "timings").iterdir()}
    assert found == {
        "tensorrt-10.16.1.11-NVIDIA-H100-80GB-HBM3-sm90-driver13.1.timing": b"++",
        "tensorrt-11.4.0-NVIDIA-H100-80GB-HBM3-sm90-driver13.1.timing": b"+",
    }


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, set()),
        ({"precision": "tf32"}, {"TF32"}),
        ({"stripped": True}, {"STRIP_PLAN", "REFIT_IDENTICAL"}),
        ({"stripped": True, "refittable": True}, {"STRIP_PLAN", "REFIT"}),
        ({"version_compatible": True, "weight_streaming": True}, {"VERSION_COMPATIBLE", "WEIGHT_STREAMING"}),
    ],
)
def test_options_become_flags(compiled: Compile, options: dict[str, Any], flags: set[str]) -> None:
    world = World()
    compiled(world, **options)
    assert world.config is not None
    assert world.config.flags == flags


@pytest.mark.parametrize(
    ("level", "name"), [("ampere+", "AMPERE_PLUS"), ("same_capability", "SAME_COMPUTE_CAPABILITY")]
)
def test_options_become_settings(compiled: Compile, level: str, name: str) -> None:
    world = World()
    compiled(world, hardware_compatible=level, workspace_mib=64, optimization_level=5)
    assert world.config is not None
    assert world.config.hardware_compatibility_level.name == name
    assert world.config.pools == {"WORKSPACE": 64 << 20}
    assert world.config.builder_optimization_level == 5
    assert world.config.profiles[0].shapes == {"image": [(1, 3, 4, 4), (4, 3, 4, 4), (16, 3, 4, 4)]}


def test_plugins_need_a_newer_tensorrt(compiled: Compile) -> None:
    outcome = compiled(World(version="10.3.0.30"), binding="plugin")
    assert outcome.binding == "function"
    assert outcome.warnings[0].startswith(
        "TensorRT 10.3.0.30 is older than 10.15: nodes run from function bodies"
    )


def test_no_driver_is_said_before_anything_is_touched(compiled: Compile, tmp_path: Path) -> None:
    world = World(Faults(at=0))  # cuInit
    with pytest.raises(EngineError, match="no NVIDIA driver: build on the target machine, or with flavour"):
        compiled(world)
    assert world.faults.calls == ["cuInit"]


def test_refusals_name_the_node_of_the_source(compiled: Compile) -> None:
    whole = World()
    compiled(whole)
    refused = compiled(World(Faults(whole.faults.calls.index("parse_from_file"))))
    assert refused.refusals == (Refusal("conv1", "Conv: injected into parse_from_file"),)
    failed = compiled(World(Faults(whole.faults.calls.index("build_serialized_network"))))
    assert failed.refusals == (Refusal("conv1", "[conv1_kernel] injected into build_serialized_network"),)


def test_cancelling_stops_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World().enter(monkeypatch)
    graph = tmp_path / "model.onnx"
    graph.write_text("FLOAT")
    plan = tmp_path / "model.plan"
    outcome = compile_plan(world.trt, Request(graph, BuildOptions(), plan), cancelled=lambda: True)  # type: ignore[arg-type]
    assert outcome.built is False
    assert outcome.refusals[0].message == "[conv1_kernel] cancelled"
    assert not plan.exists()


# A build goes on without timings, and without what the plan would say of itself.
HARMLESS = {
    "create_timing_cache",
    "set_timing_cache",
    "get_timing_cache",
    "serialize",
    "deserialize_cuda_engine",
    "create_engine_inspector",
}


@pytest.mark.parametrize("raises", [False, True], ids=["by its sign", "by raising"])
def test_every_failing_call_is_ours_or_a_refusal(compiled: Compile, tmp_path: Path, raises: bool) -> None:
    whole = World()
    compiled(whole)
    harmless = set()
    for at, name in enumerate(whole.faults.calls):
        world = World(Faults(at, raises))
        plan = tmp_path / "model.plan"
        plan.unlink(missing_ok=True)
        try:
            outcome = compiled(world)
        except SaccadeError:
            pass
        else:
            if outcome.built:
                harmless.add(name)
                assert plan.exists()
            else:
                assert outcome.refusals
                assert not plan.exists()
        assert world.faults.struck == name
    assert harmless == (set() if raises else HARMLESS)


# --- finding a plan ------------------------------------------------------------------------------------


@rtx
def test_the_plan_for_this_machine_is_found_by_what_it_is(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    made = source(bundle, CONV)
    folder, record = build_plan(made, RTX, bundle / "engines")

    def find(capability: str = "80", version: str | None = record.version, **changes: Any) -> Path:
        gpu = Gpu("Test", capability, "13.1")
        given = {"files": made.files, "version_of": lambda name: version, **changes}
        return plans.find(bundle, "model", gpu=gpu, **given)

    assert find() == folder
    for arguments, reason in (
        ({"capability": "89"}, r"it was built for sm80, here is Test \(sm89\)"),
        ({"version": "1.8.0"}, r"it was built by tensorrt_rtx 1\.7\S*, here is 1\.8\.0"),
        ({"version": None}, r"tensorrt_rtx is not installed: pip install 'saccade\[tensorrt-rtx\]'"),
        ({"precision": "fp16"}, "has no fp16 plan .* saccade build .* --precision fp16"),
        ({"files": {"graphs/model.onnx": "1" * 64}}, "it was built from another graph"),
    ):
        with pytest.raises(EngineMismatch, match=reason):
            find(**arguments)  # type: ignore[arg-type]
