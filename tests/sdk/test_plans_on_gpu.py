"""On a GPU: plans of TensorRT for RTX answer as the bundle does, and `saccade accept` accepts the demo.

Status: unverified. No GPU was at hand when these were written; `make test-gpu` runs them.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tests import tiny
from typer.testing import CliRunner

import saccade
from saccade.builds import BuildOptions
from saccade.cli import app
from saccade.engines.tensorrt.flavours import FLAVOURS, is_installed
from saccade.engines.tensorrt.gpu import find_gpu
from saccade.verification import verify

GPU = find_gpu()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPU is None, reason="no NVIDIA driver, or one that sees no GPU"),
    pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-python is not installed"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))


def installed(flavour: str) -> None:
    if not is_installed(FLAVOURS[flavour]):
        pytest.skip(f"{flavour} is not installed: {FLAVOURS[flavour].install}")


@pytest.mark.parametrize("named", [False, True], ids=["current", "by its number"])
def test_a_plan_that_needed_no_gpu_answers_on_this_one(named: bool, tmp_path: Path) -> None:
    installed("tensorrt_rtx")
    assert GPU is not None
    if named and GPU.capability not in FLAVOURS["tensorrt_rtx"].capabilities:
        pytest.skip(f"TensorRT for RTX builds no plans for sm{GPU.capability} by its number")
    path = tiny.write_bundle(tmp_path / "tiny").path
    target = f"sm{GPU.capability}" if named else "current"
    saccade.build(path, BuildOptions(flavour="tensorrt_rtx", target=target))
    (comparison,) = verify(path, ("tensorrt",)).comparisons
    assert comparison.agrees, comparison
    saccade.load(path, "tensorrt", prove=True).close()


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_the_demo_is_accepted(flavour: str, tmp_path: Path) -> None:
    installed(flavour)
    command = ["accept", "digits-stvit", "--precision", "fp32", "--flavour", flavour, "--batch", "1,2,4"]
    ran = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "records"), "--json"])
    (row,) = json.loads(ran.stdout)
    assert row["verdict"] == "accepted", row["steps"]
    assert ran.exit_code == 0
