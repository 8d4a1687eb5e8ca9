"""What a detector must give for pictures on which its answer does not hang on a rounding.

Detections are selected three times: the best candidates, those that do not overlap, the best of all classes.
Near a limit, float32 decides by chance. So each reference is computed in float64, and then in float32 from
pictures with a little noise: rows that survive all of that are sure, and an engine must give them. Pictures
are noise of several grains, of which the best is taken; where a detector sees nothing in any, the picture is
changed by gradient ascent until it does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from saccade.engines.detections import differences, partners
from saccade.engines.verify import MARGIN, Expectation
from saccade.errors import ExportError
from saccade.models.detection import Detector

__all__ = ["expectations"]

LEAST_SURE = 3  # rows per picture, below which a picture proves little
_GRAINS_PX = (32, 8, 1)
_PADDED_PX = (7, 13)  # below and to the right of what is a picture
_NOISE = 1e-4  # of a picture's deviation: a hundred times what float32 rounds off
_TRIALS = 3
_NEAR = 0.002  # as `detections.NEAR`: how little a sure box moves
_STEPS, _STEP, _LIMIT = 40, 0.25, 3.0  # of the ascent; the picture stays within these many deviations
_REGIONS = 64  # that the ascent makes more certain

Rows = dict[str, NDArray[Any]]


def expectations(
    module: Detector, outputs: Sequence[str], batches: Sequence[tuple[int, tuple[int, int]]], name: str
) -> list[Expectation]:
    """A reference for each of `batches`: a number of pictures, and the size that they are padded to.

    Raises ExportError where fewer than LEAST_SURE rows of a picture are sure.
    """
    judge = _Judge(module, tuple(outputs))
    rng = np.random.default_rng()
    found = []
    for count, size_hw in batches:
        pictures = [_picture(judge, rng, size_hw, name) for _ in range(count)]
        feeds = {key: np.concatenate([feed[key] for feed, _, _ in pictures]) for key in ("image", "size_hw")}
        reference = {key: np.stack([rows[key] for _, rows, _ in pictures]) for key in outputs}
        found.append((feeds, reference, differences(reference, judge.rounded(feeds))))
    floors = {key: max(each[key] for *_, each in found) for key in outputs}
    # Of rows that hang on a rounding, an engine may have some that the reference has not.
    unsure = max(int(((rows["scores"] > 0).sum(1) - rows["count"]).max()) for _, rows, _ in found)
    floors["count"] = max(floors["count"], unsure / MARGIN)
    return [Expectation(feeds, reference, floors) for feeds, reference, _ in found]


class _Judge:
    """One detector in two precisions."""

    def __init__(self, module: Detector, outputs: tuple[str, ...]) -> None:
        self.module, self.outputs = module, outputs
        # The round trip through train() drops what timm caches in the dtype of an earlier run.
        self._exact = copy.deepcopy(module).double().train().eval()

    def rounded(self, feeds: Mapping[str, NDArray[Any]]) -> Rows:
        """What float32 gives."""
        return self._run(self.module, *map(torch.from_numpy, feeds.values()))

    def reference(self, feeds: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> Rows:
        """What float64 gives for one picture, sure rows first; `count` is how many these are."""
        exact = self._run(self._exact, *(torch.from_numpy(each).double() for each in feeds.values()))
        rows = {key: values[0] for key, values in exact.items()}
        sure = rows["scores"] > 0
        for amount in (0.0, *[_NOISE] * _TRIALS):
            noise = amount * rng.standard_normal(feeds["image"].shape)
            noisy = feeds["image"] + (noise * (feeds["image"] != 0)).astype(np.float32)
            trial = self.rounded({**feeds, "image": noisy})
            sure &= partners(rows, {key: values[0] for key, values in trial.items()}, _NEAR) >= 0
        order = np.argsort(~sure, kind="stable")
        sorted_rows = {key: values[order] for key, values in rows.items() if key != "count"}
        return {**sorted_rows, "count": np.array(sure.sum())}

    def _run(self, module: Detector, image: Tensor, size_hw: Tensor) -> Rows:
        with torch.inference_mode():
            found = module(image, size_hw)
        return {key: value.numpy() for key, value in zip(self.outputs, found, strict=True)}


def _picture(
    judge: _Judge, rng: np.random.Generator, size_hw: tuple[int, int], name: str
) -> tuple[Rows, Rows, int]:
    """Feeds of one picture, the reference for it, and how many of its rows are sure."""
    best: tuple[Rows, Rows, int] | None = None
    for feeds in _candidates(judge.module, rng, size_hw):
        if judge.rounded(feeds)["count"][0] < LEAST_SURE:
            continue
        rows = judge.reference(feeds, rng)
        if best is None or int(rows["count"]) > best[2]:
            best = feeds, rows, int(rows["count"])
        if best[2] >= LEAST_SURE:
            return best
    raise ExportError(
        f"{name} finds {best[2] if best else 'hardly any'} objects in noise that a rounding does not change; "
        f"to see whether a graph computes the same takes {LEAST_SURE}. Are these the weights of this model?"
    )


def _candidates(module: Detector, rng: np.random.Generator, size_hw: tuple[int, int]) -> Iterator[Rows]:
    """Pictures in which a detector may see something, the likeliest first."""
    plain = [_noise(rng, size_hw, grain) for grain in _GRAINS_PX]
    yield from plain
    for feeds in plain:
        yield _provoking(module, feeds)


def _noise(rng: np.random.Generator, size_hw: tuple[int, int], grain_px: int) -> Rows:
    """Normal noise of patches, smooth between them, and zeros where a picture would be padded.

    On a grid of sixteenths: it compresses well and any format holds it exactly.
    """
    height, width = size_hw
    coarse = torch.from_numpy(rng.standard_normal((1, 3, -(-height // grain_px), -(-width // grain_px))))
    image = F.interpolate(coarse, size=size_hw, mode="nearest" if grain_px == 1 else "bilinear")
    unpadded = height - _PADDED_PX[0], width - _PADDED_PX[1]
    image[..., unpadded[0] :, :] = image[..., unpadded[1] :] = 0
    return {"image": _on_grid(1.5 * image), "size_hw": np.array([unpadded], np.float32)}


def _on_grid(image: Tensor) -> NDArray[np.float32]:
    return (image * 16).round().div(16).float().detach().numpy()


def _provoking(module: Detector, feeds: Rows) -> Rows:
    """The picture changed so that the detector is more certain of what it sees in its best regions."""
    image, size_hw = (torch.from_numpy(values) for values in feeds.values())
    inside = image != 0
    for _ in range(_STEPS):
        image = image.detach().requires_grad_()
        pyramid = module.pyramid(image)
        with torch.no_grad():
            regions = module.rpn_head.proposals(pyramid, size_hw)[0][:, :_REGIONS]
        _, scores = module.roi_head.classify(pyramid, regions, size_hw)
        certainty = scores.amax(-1).clamp(min=1e-12).log().mean()
        (slope,) = torch.autograd.grad(certainty, image)
        step = _STEP * slope / slope.std().clamp(min=1e-20)
        image = torch.where(inside, image + step, 0.0).clamp(-_LIMIT, _LIMIT)
    return {"image": _on_grid(image), "size_hw": feeds["size_hw"]}
