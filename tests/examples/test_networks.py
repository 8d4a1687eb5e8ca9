"""The accuracy gate: every demo network on held-out pictures, in every engine."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import saccade
from digits import bundles, nets, scenes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LEAST_RIGHT = 0.97
MOST_DIFFERING = 0.002
NAMES = list(nets.NETS)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_is_small_and_describes_itself(name: str) -> None:
    chosen = nets.net(name)
    assert chosen.weights.stat().st_size <= 4_000_000
    assert {tensor.dtype for tensor in load_file(chosen.weights).values()} == {torch.float16}
    assert nets.stored_config(chosen.weights) == chosen.config


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_in_torch(name: str) -> None:
    pictures = scenes.held_out(200).at(nets.net(name).size_px)
    assert nets.accuracy(nets.trained(name), pictures) >= LEAST_RIGHT


def test_shipped_bundle() -> None:
    pictures = scenes.held_out(300)
    expected = nets.predictions(nets.trained("stvit"), pictures)
    for engine in ("onnxruntime", "openvino"):
        answers = bundles.scores("digits-stvit", pictures, engine).argmax(1)
        assert (answers == pictures.labels).mean() >= LEAST_RIGHT, engine
        assert (answers != expected).mean() <= MOST_DIFFERING, engine


def test_shipped_bundle_names_the_digits() -> None:
    pictures = scenes.held_out(2)
    with saccade.load("digits-stvit") as classify:
        assert classify.labels == scenes.LABELS
        best = [answer.top(1)[0].label for answer in classify(list(pictures.images))]
    assert best == [scenes.LABELS[label] for label in pictures.labels]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_engines_agree_on_all_held_out_pictures(name: str) -> None:
    compare = runpy.run_path(str(EXAMPLES / "03_compare_engines.py"))["compare"]
    rows = compare(nets.net(name), scenes.held_out(2000))
    assert [row.engine for row in rows] == ["torch", "onnxruntime", "openvino"]
    for row in rows:
        assert row.right >= LEAST_RIGHT, row
        assert row.differing <= MOST_DIFFERING, row
