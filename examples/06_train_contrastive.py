"""Train two small towers on digit pictures and their captions, for zero-shot classes and search.

    python examples/06_train_contrastive.py --out weights/contrastive.safetensors

A small ViT and a small transformer over text (0.87 M parameters) learn that "a handwritten seven on a flower"
is true of a picture. Settings are chosen on the validation pictures; the held-out ones are looked at once, at
the end. Some six minutes on a processor core of its own. The weights beside this file had a second round:
`--start FIRST --seed 1 --epochs 24`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn

from digits import captions, contrastive, nets, optimization
from digits.contrastive import NET
from digits.initialisation import plane_waves
from saccade.models.clip import Towers

POOL = 6000  # pictures painted beforehand; an epoch draws from them and crops at random
PICTURES_PER_EPOCH = 1600
EASE = 0.7  # of the pictures that the first epochs begin with
EASY_SHARE = 0.2  # of the epochs, in which the real pictures replace the easy ones
LARGEST_ZOOM = 1.15
LARGEST_TINT = 0.2  # by which share each colour of a picture becomes stronger or weaker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=NET.weights, help="the safetensors file to write")
    parser.add_argument("--epochs", type=int, default=NET.epochs)
    parser.add_argument("--pool", type=int, default=POOL, help="training pictures to paint")
    parser.add_argument("--validation", type=int, default=400, help="pictures to watch the training by")
    parser.add_argument("--held-out", type=int, default=2000, help="pictures to measure on at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights to go on from, without the easy beginning")
    options = parser.parse_args()
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    pair = contrastive.towers(options.start)
    if options.start is None:
        initialise(pair)
    painted_px = round(NET.size_px * LARGEST_ZOOM)
    easy = captions.render("train", max(options.pool // 4, NET.batch), 2 * options.seed + 1, painted_px, EASE)
    real = captions.render("train", options.pool, 2 * options.seed + 2, painted_px)
    watched = captions.validation(options.validation, NET.size_px)
    easy_epochs = 0 if options.start else EASY_SHARE * options.epochs
    rng = np.random.default_rng(options.seed)
    with Progress() as progress:
        for epoch in train(pair, options.epochs, easy_epochs, easy, real, rng, progress):
            if epoch % 4 == 0 or epoch == options.epochs:
                nets.save(pair, NET, options.out)
                progress.console.print(
                    f"epoch {epoch}/{options.epochs}, validation: {measured(pair, watched)}"
                )
    trained = contrastive.towers(options.out)  # as stored, in float16
    minutes = (time.perf_counter() - start) / 60
    unseen = captions.held_out(options.held_out, NET.size_px)
    print(f"held out, {len(unseen)} pictures: {measured(trained, unseen)}; {minutes:.1f} min")


def measured(pair: Towers, pictures: captions.Captioned) -> str:
    right, found = contrastive.zero_shot_top1(pair, pictures), contrastive.recall_at_1(pair, pictures)
    return f"zero-shot top-1 {right:.2%}, caption-to-image recall@1 {found:.0%}"


def train(
    pair: Towers,
    epochs: int,
    easy_epochs: float,
    easy: captions.Captioned,
    real: captions.Captioned,
    rng: np.random.Generator,
    progress: Progress,
) -> Iterator[int]:
    """Train `pair`, and yield the number of every epoch that is done. Nothing in it has a mode."""
    steps = PICTURES_PER_EPOCH // NET.batch
    optimizer, schedule = optimization.prepare(pair, NET.learning_rate, NET.weight_decay, epochs * steps)
    task = progress.add_task("training", total=epochs * steps)
    for epoch in range(epochs):
        for _ in range(steps):
            is_easy = epoch < easy_epochs and rng.random() < 1 - epoch / easy_epochs
            loss = contrastive.contrastive_loss(pair, *draw(easy if is_easy else real, rng))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.advance(task)
        yield epoch + 1


def draw(pool: captions.Captioned, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[str]]:
    """A batch: zoomed pictures (B, 3, H, W), which captions are true of which (B, n), and the captions."""
    rows = rng.choice(len(pool), NET.batch, replace=False)
    part = captions.Captioned(pool.images[rows], pool.digits[rows], pool.places[rows])
    pairs = zip(part.digits.tolist(), part.places.tolist(), strict=True)
    claims = list(dict.fromkeys(captions.caption(digit, place, rng) for digit, place in pairs))
    true = np.stack([claim.holds(part) for claim in claims], axis=1)
    gains = rng.uniform(1 - LARGEST_TINT, 1 + LARGEST_TINT, (NET.batch, 1, 1, 3))
    tinted = np.clip(part.images * gains, 0, 255).astype(np.uint8)
    images = zoom(contrastive.inputs(tinted), rng)
    return images, torch.from_numpy(true).float(), [claim.text for claim in claims]


def zoom(images: Tensor, rng: np.random.Generator) -> Tensor:
    """The same random square of all pictures, at the size that the tower takes."""
    painted_px = images.shape[-1]
    side = int(rng.integers(NET.size_px, painted_px + 1))
    top, left = rng.integers(painted_px - side + 1, size=2)
    crop = images[..., top : top + side, left : left + side]
    return F.interpolate(crop, NET.size_px, mode="bilinear", antialias=True)


def initialise(pair: Towers) -> None:
    """Linear layers by their widths, and positions as waves: see `plane_waves`."""
    for part in pair.trunk.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
    positions = pair.trunk.get_parameter("pos_embed")
    waves = plane_waves(math.isqrt(positions.shape[1]), positions.shape[2])
    positions.data[0, -len(waves) :] = waves


if __name__ == "__main__":
    main()
