"""Train the demo segmenter, from the demo detector's backbone, on scenes painted anew for every epoch.

    python examples/08_train_segmenter.py --out /tmp/narrow.safetensors
    python examples/08_train_segmenter.py --start /tmp/narrow.safetensors --out /tmp/segmenter.safetensors

The first is of the detector's width; one of twice the width goes on from it, and is the one that is used. One
process paints, one learns. The same seed on the same machine and library versions gives the same weights.
They are written after every epoch, so that a training that is cut short leaves what it had.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from digits import nets, objects, optimization, segmentation
from digits.segmentation import NARROW, NET

SCENES_PER_EPOCH = 1000
DIGITS = (6, 11)  # more to learn from in each scene than there are to be found
SIZES_PX = (30.0, 104.0)


@dataclasses.dataclass(frozen=True)
class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batch `step` of a training: images (B, 3, H, W) and classes (B, H, W)."""

    seed: int
    layout: objects.Layout

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rows = range(step * NARROW.batch, (step + 1) * NARROW.batch)
        return segmentation.batch(
            [objects.scene("train", 1000 + self.seed, row, self.layout) for row in rows]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file for the weights")
    parser.add_argument("--epochs", type=int, help="default: as the demo's")
    parser.add_argument("--learning-rate", type=float, help="the highest; default: as the demo's")
    parser.add_argument("--scenes", type=int, default=SCENES_PER_EPOCH, help="scenes per epoch")
    parser.add_argument("--digits", type=int, nargs=2, default=DIGITS, help="fewest and most in a scene")
    parser.add_argument("--validation", type=int, default=100, help="scenes to watch the progress on")
    parser.add_argument("--held-out", type=int, default=0, help="scenes to measure the result on, at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument(
        "--bf16", action="store_true", help="multiply in bfloat16: faster where processors can"
    )
    options = parser.parse_args()
    start = time.perf_counter()
    module = train(options)
    minutes = (time.perf_counter() - start) / 60
    print(f"trained in {minutes:.1f} min")
    if options.held_out:
        iou = segmentation.mean_iou(module, objects.held_out(options.held_out))
        print(f"mean IoU of {options.held_out} held-out scenes: {iou:.2%}")


def train(options: argparse.Namespace) -> nn.Module:
    """Return the trained network in eval mode."""
    torch.manual_seed(options.seed)
    net = NET if options.start else NARROW
    module = segmentation.started(options.start) if options.start else segmentation.fresh()
    epochs, each = options.epochs or net.epochs, -(-options.scenes // net.batch)
    steps = epochs * each
    learning_rate = options.learning_rate or net.learning_rate
    optimizer, schedule = optimization.prepare(module, learning_rate, net.weight_decay, steps)
    layout = objects.Layout(objects=tuple(options.digits), side_px=SIZES_PX, varied=True)
    batches = DataLoader(
        Batches(options.seed, layout),
        batch_size=None,
        sampler=range(steps),
        num_workers=1,
        multiprocessing_context="spawn",
    )
    watched, total = objects.validation(options.validation), 0.0
    with Progress() as progress:
        task = progress.add_task(net.name, total=steps)
        for step, (images, classes) in enumerate(batches):
            module.train()
            # Half of the rows and columns, others in every step, say nearly as much for a quarter of work.
            first = step % 2, step // 2 % 2
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                coarse = module(images)
            logits = segmentation.every_other(coarse.float(), images.shape[-2:], first)
            loss = segmentation.loss(logits, classes[:, first[0] :: 2, first[1] :: 2])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
            progress.advance(task)
            if (step + 1) % each:
                continue
            nets.save(module, net, options.out)
            iou = segmentation.mean_iou(module.eval(), watched)
            done = f"epoch {(step + 1) // each}/{epochs}"
            progress.console.print(f"{done}: loss {total / each:.4f}, validation IoU {iou:.2%}")
            total = 0.0
    return module


if __name__ == "__main__":
    main()
