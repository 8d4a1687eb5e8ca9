"""Frames on the device become the inputs that the CPU makes of them, within one grey level."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from saccade import preprocess
from saccade.engines.kernels import resize_frames
from saccade.engines.kernels.resize_frames import Plan
from saccade.errors import UsageError
from saccade.models.card import Preprocessing

ROOT = Path(__file__).resolve().parents[3]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def card(resampler: Any, resize: Any) -> Preprocessing:
    sizes: dict[str, Any] = {"resize_hw": (40, 40), "input_size_hw": (32, 32)}
    if resize == "stretch":
        sizes = {"resize_hw": (40, 36), "input_size_hw": (40, 36)}
    if resize == "fit":
        sizes = {"resize_hw": (30, 48), "input_size_hw": (32, 48), "pad_multiple": 16}
    return Preprocessing(resize=resize, resampler=resampler, **sizes)


CASES = [
    (resampler, resize, frame_hw)
    for resampler in ("opencv-bilinear", "pillow-bilinear", "pillow-bicubic")
    for resize, frame_hw in [
        ("shorter", (67, 90)),
        ("shorter", (20, 31)),
        ("fit", (75, 50)),
        ("fit", (21, 30)),
        ("stretch", (60, 31)),
        ("stretch", (80, 80)),
        # Much taller or wider than what they become: Pillow 13 changes the order of its passes among these.
        ("shorter", (100, 39)),
        ("shorter", (400, 37)),
        ("shorter", (37, 400)),
        ("fit", (600, 40)),
        ("fit", (20, 500)),
        ("stretch", (500, 12)),
        ("stretch", (12, 500)),
        ("stretch", (41, 9)),
        ("stretch", (1, 1)),
    ]
]


def picture(frame_hw: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*frame_hw, 3), dtype=np.uint8)


def plan_of(spec: Preprocessing, frame_hw: tuple[int, int], size_hw: tuple[int, int]) -> Plan:
    """The plan, with the geometry that the CPU form uses."""
    resized_hw = preprocess.resized_size(frame_hw, spec)
    offset_hw = (0, 0)
    if spec.resize != "fit":
        spans = [preprocess.crop(*sides) for sides in zip(resized_hw, spec.input_size_hw, strict=True)]
        offset_hw = (
            spans[0].source.start - spans[0].target.start,
            spans[1].source.start - spans[1].target.start,
        )
    return resize_frames.plan(spec, frame_hw, resized_hw, size_hw, offset_hw)


def on_cpu(spec: Preprocessing, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    (batch,) = preprocess.batches([frame], spec)
    return batch.image


def levels_apart(a: NDArray[Any], b: NDArray[Any], spec: Preprocessing) -> NDArray[Any]:
    std = np.array(spec.std_rgb)[:, None, None]
    return np.abs(a - b) * std * spec.value_range


@pytest.mark.parametrize(("resampler", "resize", "frame_hw"), CASES)
def test_the_reference_is_the_cpu_form(resampler: str, resize: str, frame_hw: tuple[int, int]) -> None:
    spec, frame = card(resampler, resize), picture(frame_hw)
    expected = on_cpu(spec, frame)
    size_hw = (expected.shape[2], expected.shape[3])
    actual = resize_frames.reference(frame[None], plan_of(spec, frame_hw, size_hw))
    assert levels_apart(actual, expected, spec).max() < 1.001


def test_a_crop_larger_than_the_frame_has_black_borders() -> None:
    spec = Preprocessing(resize="shorter", resize_hw=(24, 24), input_size_hw=(32, 32))
    frame = picture((40, 40))
    expected = on_cpu(spec, frame)
    actual = resize_frames.reference(frame[None], plan_of(spec, (40, 40), (32, 32)))
    assert levels_apart(actual, expected, spec).max() < 1.001
    np.testing.assert_allclose(actual[0, :, 0, 0], -np.array(MEAN) / STD, rtol=1e-6)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("10.3.0", False), ("12.2.0", False), ("13.0.0", True), ("14.1.0.dev0", True)],
)
def test_the_order_of_passes_is_that_of_the_pillow_at_hand(
    version: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.__version__", version)
    spec = card("pillow-bicubic", "stretch")
    assert plan_of(spec, (500, 12), (40, 36)).columns_first is expected
    assert not plan_of(spec, (12, 500), (40, 36)).columns_first
    assert not plan_of(card("opencv-bilinear", "stretch"), (500, 12), (40, 36)).columns_first


@pytest.mark.parametrize(
    ("frame_hw", "size_hw", "words"),
    [
        ((0, 10), (8, 8), "must be positive"),
        ((30000, 30000), (8, 8), "up to 2700000000 values; offsets of 32 bits reach 2147483647"),
    ],
)
def test_sizes_that_cannot_be_served(frame_hw: tuple[int, int], size_hw: tuple[int, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resize_frames.plan(Preprocessing(), frame_hw, (8, 8), size_hw)


@pytest.mark.parametrize("frames", [0, 65536])
def test_frames_of_one_launch_are_limited(frames: int) -> None:
    plan = resize_frames.plan(Preprocessing(), (8, 8), (4, 4), (4, 4))
    with pytest.raises(UsageError, match=f"{frames} frames in one launch: give 1 to 65535"):
        plan.grid(frames)


INTERPRET = """
import os, sys
os.environ["TRITON_INTERPRET"] = "1"
import numpy as np, torch
from saccade.engines.kernels import resize_frames
from tests.engines.kernels.test_resize_frames import card, picture, plan_of
torch.set_num_threads(1)
results = []
for resampler, resize, frame_hw, size_hw in [
    ("opencv-bilinear", "fit", (45, 30), (32, 32)),
    ("pillow-bilinear", "shorter", (20, 31), (32, 32)),
    ("pillow-bicubic", "shorter", (44, 40), (32, 32)),
    ("pillow-bicubic", "stretch", (130, 12), (40, 36)),
    ("pillow-bilinear", "fit", (12, 130), (16, 48)),
]:
    plan = plan_of(card(resampler, resize), frame_hw, size_hw)
    frames = np.stack([picture(frame_hw), picture(frame_hw)[::-1]])
    y = torch.full((2, 3, *plan.size_hw), torch.nan)
    arrays = map(torch.from_numpy, plan.arrays())
    resize_frames.resize_frames[plan.grid(2)](
        torch.from_numpy(frames), *arrays, *plan.scalars(), y, BLOCK=resize_frames.BLOCK
    )
    results += [y.numpy(), resize_frames.reference(frames, plan)]
np.savez(sys.argv[1], *results)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (CPU builds of torch lack it)"
)
def test_the_kernel_is_the_reference(tmp_path: Path) -> None:
    """Triton's interpreter, in a process of its own; ties that float32 rounds elsewhere are rare."""
    out = tmp_path / "frames.npz"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", INTERPRET, str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    with np.load(out, allow_pickle=False) as stored:
        results = [stored[name] for name in stored.files]
    assert len(results) == 10
    for actual, expected in zip(results[::2], results[1::2], strict=True):
        apart = levels_apart(actual, expected, Preprocessing())
        assert apart.max() < 1.001
        assert (apart > 0.5).mean() < 0.01
