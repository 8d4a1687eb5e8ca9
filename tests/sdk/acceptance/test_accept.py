"""Acceptance rehearsed: against NVIDIA's builder as far as it goes without a GPU, and against a stand-in of
what a GPU's machine has, in which every single call of the device half fails once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.engines.fake_tensorrt import IN_A_CHILD, World
from tests.engines.faults import Faults
from tests.sdk.acceptance.bundles import write_bundle
from typer.testing import CliRunner

from saccade import acceptance, bundle
from saccade.acceptance import AcceptanceRecord, Request, accuracy, baselines, device, records
from saccade.acceptance.device import Findings
from saccade.acceptance.row import Row
from saccade.builds import Built
from saccade.cli import app
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.gpu import find_gpu
from saccade.engines.tensorrt.options import BatchRange, SizeRange
from saccade.errors import EngineError, UsageError

VERSION = "10.16.1.11"
RECORDING = ("cudaStream", "cudaGraph", "execute", "cuCtx", "set_device_memory")  # calls of a CUDA graph's
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NVIDIA's builder is not installed: pip install 'saccade[tensorrt-rtx]'",
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SACCADE_CACHE", str(folder))
        yield folder


def found_by(request: Request) -> list[AcceptanceRecord]:
    return list(acceptance.accept(request))


# --- NVIDIA's builder ----------------------------------------------------------------------------------


@needs_rtx
def test_rehearsal_builds_and_accepts_nothing(tmp_path: Path) -> None:
    tiny.write_bundle(tmp_path / "tiny")
    out = tmp_path / "records"
    command = ["accept", str(tmp_path / "tiny"), "absent", "--precision", "fp32", "--flavour", "tensorrt_rtx"]
    ran = CliRunner().invoke(app, [*command, "--target", "sm86+sm89", "--out", str(out), "--json"])
    built, absent = json.loads(ran.stdout)
    assert ran.exit_code == 7  # of the row that failed; the other one was done
    assert (built["model"], built["verdict"]) == ("tiny", "incomplete")
    outcomes = {step["call"]: step["outcome"] for step in built["steps"]}
    assert outcomes == {
        "bundle": "passed",
        "read graphs": "passed",
        "build function": "passed",
        "inspect function": "passed",
        "run function": "skipped",
        "time function": "skipped",
    }
    (plan,) = (tmp_path / "tiny" / "engines").glob("*")
    assert built["plan_sha256"] == {"function/model": plans.read(plan).plan_sha256}
    assert (absent["verdict"], absent["failed_call"]) == ("failed", "bundle")
    assert "there is no bundle 'absent'" in absent["steps"][0]["message"]
    assert sorted(path.name for path in out.iterdir()) == [
        "absent-fp32-none-tensorrt_rtx.json",
        "tiny-fp32-none-tensorrt_rtx.json",
    ]
    assert not records.folders()[1].exists()  # a rehearsal decides no binding


@needs_rtx
def test_a_refusal_of_the_builder_is_the_verdict(tmp_path: Path) -> None:
    tiny.write_bundle(tmp_path / "tiny")
    request = Request(
        (str(tmp_path / "tiny"),), tmp_path / "out", ("fp32",), flavour="tensorrt_rtx", target="sm75"
    )
    (record,) = found_by(request)
    assert (record.verdict, record.failed_call) == ("failed", "build function")
    assert "FP32 GEMM is not supported" in record.steps[-1].message


@needs_rtx
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        found_by(Request(("digits-stvit",), tmp_path, flavour="tensorrt_rtx"))


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one model"):
        Request((), tmp_path)
    with pytest.raises(UsageError, match="absent is not a folder"):
        Request(("tiny",), tmp_path, imagenet=tmp_path / "absent")
    with pytest.raises(UsageError, match="precision 'fp8': choose"):
        Request(("tiny",), tmp_path, ("fp8",))  # type: ignore[arg-type]


# --- a stand-in for the rest ---------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the child that builds finds the stand-in; runs are as short as they may be."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "tensorrt.py").write_text(IN_A_CHILD.format(version=VERSION))
    monkeypatch.setenv("PYTHONPATH", str(library))
    monkeypatch.setattr(baselines, "_SECONDS", 0.0)
    monkeypatch.setattr(baselines, "_LEAST", 1)
    return library


@pytest.fixture
def request_(tmp_path: Path, machine: Path) -> Request:
    path = write_bundle(tmp_path / "tiny").path
    return Request((str(path),), tmp_path / "records", ("fp32",), batch=BatchRange(1, 2, 4))


def test_a_row_is_accepted_kept_and_not_repeated(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    World(version=VERSION).enter(monkeypatch)
    (record,) = found_by(request_)
    assert record.verdict == "accepted", record.steps
    outcomes = {step.call: step.outcome for step in record.steps}
    assert outcomes.pop("time onnxruntime-cuda") == outcomes.pop("time torch.compile") == "skipped"
    assert list(outcomes) == [
        "bundle",
        "read graphs",
        "build function",
        "inspect function",
        "run function",
        "time function",
    ]
    assert set(outcomes.values()) == {"passed"}
    assert record.latency_ms["function"] > 0
    assert record.engine_types == {"function/model": {"FLOAT": 1}}
    assert records.read(request_.out / record.file_name) == record
    assert record in list(records.known())
    assert found_by(request_) == []  # accepted before
    World(version=VERSION).enter(monkeypatch)
    (again,) = found_by(dataclasses.replace(request_, again=True))
    assert again.verdict == "accepted"


def test_another_bundle_or_more_to_prove_is_another_row(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was accepted is known by its graphs, its profile and its data; not by a name alone."""
    World(version=VERSION).enter(monkeypatch)
    (first,) = found_by(request_)
    assert first.verdict == "accepted"
    other = write_bundle(tmp_path / "elsewhere" / "tiny", factor=4.0).path
    for changes in (
        {"models": (str(other),)},
        {"batch": BatchRange(1, 1, 1)},
        {"batch": BatchRange(1, 1, 1), "imagenet": tmp_path},
    ):
        asked = dataclasses.replace(request_, **changes)
        (record,) = found_by(asked)
        assert (record.file_name, record.batch) == (first.file_name, tuple(asked.batch))
        if "models" not in changes:
            assert record.verdict == "accepted", record.steps
            assert found_by(asked) == []


def test_a_bundle_is_named_by_its_folder(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's bundle calls itself as the model of the zoo that it is a small form of."""
    World(version=VERSION).enter(monkeypatch)
    write_bundle(tmp_path / "digits", name="swin_tiny")
    (record,) = found_by(dataclasses.replace(request_, models=(str(tmp_path / "digits"),)))
    assert (record.model, record.verdict) == ("digits", "accepted")


@pytest.mark.parametrize("batch", [BatchRange(4, 4, 4), BatchRange(1, 1, 1), BatchRange(3, 4, 8)])
def test_the_sample_takes_the_profiles_batch(
    request_: Request, monkeypatch: pytest.MonkeyPatch, batch: BatchRange
) -> None:
    """The sample has two pictures."""
    World(version=VERSION).enter(monkeypatch)
    (record,) = found_by(dataclasses.replace(request_, batch=batch))
    assert record.verdict == "accepted", record.steps


def test_sizes_without_the_samples_are_refused_before_anything_is_built(
    tmp_path: Path, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    World(version=VERSION).enter(monkeypatch)
    path = write_bundle(tmp_path / "tiny", shape=["batch", 3, "height", "width"]).path
    size = SizeRange((8, 8), (8, 8), (16, 16))
    (record,) = found_by(Request((str(path),), tmp_path / "records", ("fp32",), size=size))
    assert (record.verdict, record.failed_call) == ("failed", "fit sample")
    assert "known answers for pictures of 4x4" in record.steps[-1].message
    assert "--size 4x4,8x8,16x16" in record.steps[-1].message


def test_accuracy_that_nothing_was_published_of_is_skipped_with_the_reason(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    World(version=VERSION).enter(monkeypatch)
    (record,) = found_by(dataclasses.replace(request_, imagenet=tmp_path))
    (step,) = (step for step in record.steps if step.call == "measure accuracy")
    assert (step.outcome, step.message) == ("skipped", "nothing was published of these weights")
    assert (record.verdict, record.data) == ("accepted", "imagenet")


def test_random_weights_have_no_published_accuracy(tmp_path: Path) -> None:
    made = write_bundle(tmp_path / "tiny")
    made = dataclasses.replace(made, card=dataclasses.replace(made.card, top1=81.3))
    assert accuracy.published(made) == {"top1": 81.3}
    assert accuracy.published(dataclasses.replace(made, untrained=True)) == {}


def test_a_baseline_that_fails_is_skipped_with_its_words(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal of torch or ONNX Runtime says nothing of the plan."""
    World(version=VERSION).enter(monkeypatch)

    def refuses() -> bool:
        raise RuntimeError("cuDNN is missing")

    monkeypatch.setattr("torch.cuda.is_available", refuses)
    (record,) = found_by(request_)
    step = next(step for step in record.steps if step.call == "time torch.compile")
    assert (step.outcome, step.message) == ("skipped", "RuntimeError: cuDNN is missing")
    assert record.verdict == "accepted"


def test_every_failing_call_of_the_device_is_named(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row counts the calls; then each of them fails once, on the plan that this row built."""
    World(version=VERSION).enter(monkeypatch)
    assert found_by(request_)[0].verdict == "accepted"
    made = bundle.read(request_.models[0])
    plan = tuple(Built(folder, record) for folder, record in plans.records(made.path))

    def outcome(faults: Faults) -> Row:
        World(faults, VERSION).enter(monkeypatch)
        row = Row(lambda step: None)
        device.run_and_compare(row, made, plan, plan[0].record.options, Findings(), ())
        return row

    counting = Faults()
    assert outcome(counting).failed_call == ""
    found: dict[str, set[str]] = {}
    for at, name in enumerate(counting.calls):
        row = outcome(Faults(at))
        found.setdefault(row.failed_call, set()).add(name)
        if row.failed_call:
            words = next(step.message for step in row.steps if step.outcome == "failed")
            assert name in words or "nullptr" in words or "no NVIDIA driver" in words, (name, words)
            assert [step.call for step in row.steps][-1] == "time function"  # the rest went on
    assert set(found) == {"run function", "time function", ""}
    assert {"Runtime", "deserialize_cuda_engine", "execute_async_v3", "cudaMalloc"} <= found["run function"]
    # A run that cannot be recorded as a CUDA graph goes on without.
    assert all(name.startswith(RECORDING) for name in found[""]), found[""]


@pytest.mark.parametrize("name", ["Builder", "parse_from_file", "build_serialized_network"])
def test_a_failing_call_of_the_builder_is_named(
    request_: Request, machine: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (machine / "tensorrt.py").write_text(
        IN_A_CHILD.format(version=VERSION)
        .replace("World(version", "faults = Faults()\nWorld(faults, version")
        .replace("import World", "import Faults, World")
        + f"\nstrikes = faults.strikes\n"
        f"def strike(called, **more):\n"
        f"    if called == {name!r}:\n"
        f"        faults.at = len(faults.calls)\n"
        f"    return strikes(called, **more)\n"
        f"faults.strikes = strike\n"
    )
    World(version=VERSION).enter(monkeypatch)
    (record,) = found_by(request_)
    assert (record.verdict, record.failed_call) == ("failed", "build function")
    message = next(step.message for step in record.steps if step.outcome == "failed")
    assert name in message or "factory function returned nullptr" in message


def test_ctrl_c_keeps_the_rows_that_are_done(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    World(version=VERSION).enter(monkeypatch)
    (path,) = request_.models
    both = dataclasses.replace(request_, models=(path, "second"))

    def interrupted(step: str) -> None:
        if step.startswith("second"):
            raise KeyboardInterrupt

    rows = acceptance.accept(both, progress=interrupted)
    first = next(rows)
    assert first.verdict == "accepted", first.steps
    with pytest.raises(KeyboardInterrupt):
        next(rows)
    (kept,) = request_.out.iterdir()
    assert records.read(kept).verdict == "accepted"


def test_what_is_timed_has_the_profiles_middle() -> None:
    feeds = {"image": np.ones((2, 3, 4, 5), np.float32), "size_hw": np.full((2, 2), 4, np.float32)}
    made = baselines.batched(feeds, 3, (8, 6))
    assert {name: values.shape for name, values in made.items()} == {"image": (3, 3, 8, 6), "size_hw": (3, 2)}
    assert made["size_hw"].tolist() == [[8, 6]] * 3
    assert baselines.batched(feeds, 1)["image"].shape == (1, 3, 4, 5)


def test_published_accuracy_is_held_within_its_limits() -> None:
    assert accuracy.check({"top1": 81.24}, {"top1": 81.3}) == "top1 81.24, published 81.3"
    for measured in ({"top1": 81.1}, {"top1": float("nan")}, {}):
        with pytest.raises(EngineError, match=r"published 81\.3; at most 0\.1 apart"):
            accuracy.check(measured, {"top1": 81.3})
    published = {"box_ap": 51.8, "mask_ap": 44.7}
    assert "mask_ap 44.60" in accuracy.check({"box_ap": 51.95, "mask_ap": 44.6}, published)
    with pytest.raises(EngineError, match=r"mask_ap is 44\.4, published 44\.7"):
        accuracy.check({"box_ap": 51.8, "mask_ap": 44.4}, published)
