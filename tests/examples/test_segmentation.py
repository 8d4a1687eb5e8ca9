"""The demo's segmenter: how it is measured, and what the shipped weights reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score
from torch import nn

from digits import detector, nets, objects, segmentation

WEIGHTS_LIMIT = 6 * 2**20  # bytes
CROP = objects.Layout((96, 128), (2, 3), (40.0, 60.0))


class Answers(nn.Module):
    """Logits at a quarter of the size that say what the first channel's brightness suggests."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = nn.functional.avg_pool2d(images[:, :1], 4)
        levels = torch.linspace(-1, 2, len(segmentation.LABELS)).view(1, -1, 1, 1)
        return -((grey - levels) ** 2)


def test_mean_iou_is_sklearns() -> None:
    painted = objects.render("validation", 7, 3, CROP)
    images, classes = segmentation.batch(painted)
    answers = segmentation.pixel_logits(Answers(), images).argmax(1)
    # Every class must occur, as in the demo's thousands of digits.
    seen = sorted(set(classes.flatten().tolist()) | set(answers.flatten().tolist()))
    assert len(seen) == len(segmentation.LABELS)
    expected = jaccard_score(classes.flatten(), answers.flatten(), average="macro", labels=seen)
    assert segmentation.mean_iou(Answers(), painted, size=3) == pytest.approx(expected)


def test_training_begins_with_the_detectors_backbone() -> None:
    state = segmentation.fresh().state_dict()
    for name, value in load_file(detector.NET.weights).items():
        if name.startswith("backbone.") and name in state:
            assert torch.equal(state[name], value.to(state[name].dtype)), name
    assert any(name.startswith("backbone.layers.2") for name in state)


def test_twice_the_width_begins_with_what_the_narrow_one_answers() -> None:
    torch.manual_seed(0)
    narrow = segmentation.fresh().eval()
    left_out = narrow.get_submodule("backbone.layers.3.blocks.1")
    for ending in ("attn.proj", "mlp.fc2"):  # the block adds nothing
        for parameter in left_out.get_submodule(ending).parameters():
            nn.init.zeros_(parameter)
    wide = segmentation.widened(narrow).eval()
    images, _ = segmentation.batch(objects.render("validation", 2, 3))
    with torch.inference_mode():
        torch.testing.assert_close(wide(images), narrow(images), rtol=1e-4, atol=1e-4)
    patches = wide.get_submodule("backbone.layers.0.blocks.0.mlp.fc1").weight
    assert not torch.equal(patches[:, ::2], patches[:, 1::2])  # copies are read apart, and learn apart


def test_the_loss_is_least_for_the_truth() -> None:
    _, classes = segmentation.batch(objects.render("validation", 2, 3, CROP))
    right = 20 * torch.nn.functional.one_hot(classes, len(segmentation.LABELS)).permute(0, 3, 1, 2).float()
    assert segmentation.loss(right, classes) < 1e-4
    # One class for everything: its IoU is its share, that of the others 0.
    blank = torch.zeros_like(right)
    blank[:, 0] = 20.0
    share = (classes == 0).float().mean()
    cross_entropy = 20 * (1 - share) + np.log(10)  # no digit is likelier than another
    expected = cross_entropy + 1 - share / len(classes.unique())
    torch.testing.assert_close(segmentation.loss(blank, classes), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first_yx", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_every_other_pixel_is_what_all_of_them_say(first_yx: tuple[int, int]) -> None:
    logits = torch.randn(2, 11, 6, 8, generator=torch.Generator().manual_seed(0))
    every = nn.functional.interpolate(logits, (24, 32), mode="bilinear", align_corners=False)
    expected = every[:, :, first_yx[0] :: 2, first_yx[1] :: 2]
    torch.testing.assert_close(segmentation.every_other(logits, (24, 32), first_yx), expected)


def test_the_shipped_weights_are_small_and_tell_how_to_build_their_network() -> None:
    assert segmentation.NET.weights.stat().st_size < WEIGHTS_LIMIT
    stored = nets.stored_config(segmentation.NET.weights)
    assert stored == dict(segmentation.NET.config)


def test_most_pixels_of_a_few_held_out_digits_are_right() -> None:
    painted = objects.held_out(8)
    images, classes = segmentation.batch(painted)
    with torch.inference_mode():
        answers = segmentation.pixel_logits(segmentation.trained(), images).argmax(1)
    inked = classes > 0
    assert (answers == classes)[inked].float().mean() > 0.8
    assert (answers == classes).float().mean() > 0.97
    assert np.isin(answers.unique(), np.arange(11)).all()


@pytest.mark.slow
def test_mean_iou_of_300_held_out_scenes() -> None:
    assert segmentation.mean_iou(segmentation.trained(), objects.held_out(300)) >= 0.87
