"""The demo's detector: what it learns from, that it learns, and what the shipped weights find."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from digits import detector, nets, objects, precision
from digits.detector import ANCHORS, BACKGROUND, IGNORED, NET, OBJECT, REGIONS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRUE_BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 30]])
TINY = objects.Layout((96, 96), (2, 2), (36.0, 48.0))


def box(*corners: float) -> Tensor:
    return torch.tensor([corners], dtype=torch.float32)


@pytest.mark.parametrize(
    ("candidate", "kind", "nearest"),
    [
        (box(0, 0, 10, 8), OBJECT, 0),  # IoU 0.8
        (box(0, 0, 10, 5), IGNORED, 0),  # 0.5
        (box(0, 0, 5, 5), BACKGROUND, 0),  # 0.25
        (box(20, 20, 40, 31), OBJECT, 1),
        (box(60, 60, 70, 70), BACKGROUND, 0),
    ],
)
def test_anchors_by_overlap(candidate: Tensor, kind: int, nearest: int) -> None:
    others = TRUE_BOXES  # their own best boxes, so that none of the candidates is rescued
    kinds, whose = detector.assign(torch.cat((others, candidate)), TRUE_BOXES, ANCHORS)
    assert kinds.tolist() == [OBJECT, OBJECT, kind]
    assert whose.tolist() == [0, 1, nearest]


def test_best_anchor_of_every_object_is_taken() -> None:
    anchors = torch.cat((box(0, 0, 10, 5), box(0, 0, 10, 4), box(60, 60, 70, 70)))
    assert detector.assign(anchors, TRUE_BOXES, ANCHORS)[0].tolist() == [OBJECT, IGNORED, BACKGROUND]
    strict = dataclasses.replace(ANCHORS, rescue=False)
    assert detector.assign(anchors, TRUE_BOXES, strict)[0].tolist() == [IGNORED, IGNORED, BACKGROUND]


@pytest.mark.parametrize("seed", range(5))
def test_assignment_is_torchvisions(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(400, 2, generator=random) * 100
    boxes = torch.cat((corners, corners + 5 + torch.rand(400, 2, generator=random) * 40), dim=1)
    truth = boxes[:6] + torch.randn(6, 4, generator=random)
    for rule in (ANCHORS, REGIONS):
        match = Matcher(rule.object_iou, rule.background_iou, rule.rescue)(box_iou(truth, boxes))
        expected = torch.where(match >= 0, OBJECT, torch.where(match == -1, BACKGROUND, IGNORED))
        kinds, nearest = detector.assign(boxes, truth, rule)
        assert torch.equal(kinds, expected)
        sure = box_iou(boxes, truth).amax(1) >= rule.object_iou
        assert torch.equal(nearest[sure], match[sure])


@pytest.mark.parametrize(
    ("objects_there", "background_there", "expected"),
    [(100, 100, (24, 40)), (3, 100, (3, 61)), (3, 5, (3, 5)), (0, 100, (0, 64))],
)
def test_draw_takes_shares(objects_there: int, background_there: int, expected: tuple[int, int]) -> None:
    kind = torch.tensor([OBJECT] * objects_there + [BACKGROUND] * background_there + [IGNORED] * 7)
    drawn, background = detector.draw(kind, REGIONS)
    assert (len(drawn), len(background)) == expected
    assert (kind[drawn] == OBJECT).all()
    assert (kind[background] == BACKGROUND).all()
    assert len(set(drawn.tolist())) == len(drawn)


def test_regions_of_a_picture() -> None:
    truth = detector.Truth(TRUE_BOXES, torch.tensor([7, 3]), torch.zeros(2, 64, 64))
    proposals = torch.cat((box(0, 0, 10, 9), box(50, 50, 60, 60), box(5, 5, 5, 9)))
    boxes, labels, shown = detector.regions_of(proposals, truth, classes=10)
    assert boxes.shape == (REGIONS.drawn, 4)
    assert sorted(labels[:3].tolist()) == [3, 7, 7]
    assert labels[3] == 10
    assert (labels[4:] == IGNORED).all()  # the empty proposal is not drawn
    assert (boxes[4:] == 0).all()
    assert (truth.labels[shown[:3]] == labels[:3]).all()


def test_mask_targets_cut_and_resize() -> None:
    whole = torch.rand(1, 64, 64).round()
    same = detector.mask_targets(whole, box(8, 4, 36, 32), 28)
    assert torch.equal(same[0], whole[0, 4:32, 8:36])
    half = torch.zeros(1, 64, 64)
    half[:, :, 20:] = 1
    target = detector.mask_targets(half, box(0, 0, 40, 40), 28)[0]
    assert torch.equal(target, (torch.arange(28) >= 14).float().expand(28, 28))


def test_training_learns_a_scene() -> None:
    """What is where falls when the same small scene is shown again and again.

    The loss of the boxes begins at nothing: only true boxes count at first, and those are not to be moved.
    """
    torch.manual_seed(0)
    scene = objects.scene("train", 0, 1, TINY)
    images, truths = detector.batch([scene])
    module = detector.untrained().train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    history = []
    for _ in range(16):
        losses = detector.losses(module, images, truths)
        history.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
    for name in ("proposal_class", "box_class", "mask"):
        assert history[-1][name] <= 0.7 * history[0][name], (name, history[0], history[-1])


def test_checkpoint_is_small_and_describes_itself() -> None:
    assert NET.weights.stat().st_size <= 8_000_000
    assert {tensor.dtype for tensor in load_file(NET.weights).values()} == {torch.float16}
    assert nets.stored_config(NET.weights) == NET.config


def test_shipped_weights_find_and_outline_digits() -> None:
    scenes = objects.held_out(30)
    found = precision.detect(detector.trained(), scenes)
    reached = precision.average_precision(found, scenes)
    assert reached.box_50 >= 0.88, reached
    assert reached.box >= 0.65, reached
    assert reached.mask_50 >= 0.85, reached
    assert reached.mask >= 0.55, reached


def test_precision_of_the_truth_is_perfect() -> None:
    scenes = objects.held_out(6)
    assert precision.average_precision([precision.truth(scene) for scene in scenes], scenes) == (
        precision.Precision(1.0, 1.0, 1.0, 1.0)
    )
    nothing = [precision.truth(scene)[:0] for scene in scenes]
    assert precision.average_precision(nothing, scenes) == precision.Precision(0.0, 0.0, 0.0, 0.0)
    shifted = [
        dataclasses.replace(precision.truth(scene), boxes_xyxy=scene.boxes_xyxy + np.float32(3))
        for scene in scenes
    ]
    reached = precision.average_precision(shifted, scenes)
    assert 0.2 < reached.box < 0.9
    assert reached.mask == 1.0


@pytest.mark.slow
def test_engines_reach_the_same_on_held_out_scenes() -> None:
    compare = runpy.run_path(str(EXAMPLES / "03_compare_engines.py"))["compare_detector"]
    reached = compare(objects.held_out(500))
    assert list(reached) == ["torch", "onnxruntime", "openvino"]
    for engine, figures in reached.items():
        assert figures.box_50 >= 0.90, (engine, figures)
        assert figures.box >= 0.65, (engine, figures)
        assert figures.mask_50 >= 0.85, (engine, figures)
        assert figures.mask >= 0.50, (engine, figures)
        for field in dataclasses.fields(figures):
            expected = getattr(reached["torch"], field.name)
            assert getattr(figures, field.name) == pytest.approx(expected, abs=0.005), (engine, field.name)
