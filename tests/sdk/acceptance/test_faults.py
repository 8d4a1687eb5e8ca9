"""Every kind of call of the stand-ins fails once in each step of a row, and is named in the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engines.faults import Faults
from tests.sdk.acceptance.bundles import write_bundle
from tests.sdk.acceptance.machine import GraphWorld
from tests.sdk.acceptance.rows import accuracy_of, published, request_for, steps

from saccade import acceptance
from saccade.acceptance import AcceptanceRecord, Request
from saccade.errors import EngineError

pytestmark = pytest.mark.usefixtures("quick")

# Calls whose failure stops nothing: a run that cannot be recorded goes on without a CUDA graph, and a build
# without timings of earlier ones.
RECORDING = ("cudaStream", "cudaGraph", "execute_async_v3", "cuCtxPushCurrent", "set_device_memory")
TIMINGS = ("create_timing_cache", "set_timing_cache", "get_timing_cache", "serialize")
# Calls that open a plan where it was built, to read its types. A plan for other GPUs cannot be opened there:
# it is not the build that fails then, but the step that wants the types.
READ_BACK = ("deserialize_cuda_engine", "create_engine_inspector")


class Rows:
    """Repeats one row on machines of which one call fails."""

    def __init__(self, request: Request, patch: pytest.MonkeyPatch) -> None:
        self._request = request
        self._patch = patch

    def run(self, faults: Faults) -> tuple[AcceptanceRecord, list[tuple[int, str]]]:
        """The row, and how many calls there had been when each of its steps began."""
        begun: list[tuple[int, str]] = []
        GraphWorld(faults).enter(self._patch)

        def note(step: str) -> None:
            begun.append((len(faults.calls), step.partition(": ")[2]))

        (record,) = acceptance.accept(self._request, progress=note)
        return record, begun

    def calls(self) -> Iterator[tuple[int, str, str]]:
        """Number and name of each call of a row in which nothing fails, and the step that makes it."""
        counting = Faults()
        record, begun = self.run(counting)
        assert record.verdict == "accepted", record.steps
        for at, name in enumerate(counting.calls):
            yield at, name, next((step for first, step in reversed(begun) if first <= at), "")

    def check(self, at: int, name: str, step: str, *, raises: bool) -> bool:
        """One call fails. Whether its step failed with it."""
        faults = Faults(at, raises)
        if not step:  # before there are rows: looking for the driver
            with pytest.raises(EngineError):
                self.run(faults)
            return True
        record, _ = self.run(faults)
        assert faults.struck == name
        if record.verdict == "accepted":
            unread = READ_BACK if step.startswith("layers") else ()
            assert name.startswith((*RECORDING, *TIMINGS, *unread)), (name, step)
            return False
        if record.failed_call == step:
            words = steps(record)[step].message
            known = (name, "nullptr", "refuses the profile", "no NVIDIA driver", "CUDA")
            assert any(each in words for each in known), (name, words)
        else:
            assert (name in READ_BACK, record.failed_call) == (True, step.replace("build", "inspect")), name
        return True


def first(rows: Rows, *kinds: str) -> Iterator[tuple[int, str, str]]:
    """Of each kind of call the first in each step that begins with one of `kinds`."""
    seen: set[tuple[str, str]] = set()
    for at, name, step in list(rows.calls()):
        if step.startswith(kinds) and (name, step) not in seen:
            seen.add((name, step))
            yield at, name, step


def test_what_fails_before_there_are_rows_is_our_error(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(request_for(two, tmp_path / "records"), monkeypatch)
    names = [name for _, name, step in rows.calls() if not step]
    assert names[0] == "cuInit"
    for at, name in enumerate(names):
        rows.check(at, name, "", raises=False)


# Running and timing open plans with the same calls: test_accept.py has each of them fail.
FAST = ("build plugin", "layers function")


def test_every_kind_of_call_fails_once(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(request_for(two, tmp_path / "records"), monkeypatch)
    fatal = {step for at, name, step in first(rows, *FAST) if rows.check(at, name, step, raises=False)}
    assert fatal == set(FAST)


@pytest.mark.slow
@pytest.mark.parametrize("raises", [False, True])
def test_every_kind_of_call_fails_once_in_each_step(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    """By its API's sign of failure, or by what the bindings raise."""
    rows = Rows(request_for(two, tmp_path / "records"), monkeypatch)
    fatal = {step for at, name, step in first(rows, "") if step and rows.check(at, name, step, raises=raises)}
    calls = ("build", "run", "layers", "time")
    assert fatal == {f"{call} {binding}" for call in calls for binding in ("function", "plugin")}


def test_every_kind_of_call_fails_once_while_accuracy_is_measured(
    tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(tmp_path / "tiny").path
    published(path, accuracy_of(path, labelled).top1)
    rows = Rows(request_for(path, tmp_path / "records", "fp32", imagenet=labelled), monkeypatch)
    ours = {name: at for at, name, step in reversed(list(rows.calls())) if step == "measure accuracy"}
    assert {"deserialize_cuda_engine", "cudaMemcpyAsync", "cuInit", "execute_async_v3"} <= set(ours)
    for name, at in ours.items():
        rows.check(at, name, "measure accuracy", raises=False)
