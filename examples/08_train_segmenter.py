"""Train the demo segmenter, from the demo detector's backbone, on scenes painted anew for every epoch.

    python examples/08_train_segmenter.py --out /tmp/segmenter.safetensors

The same seed on the same machine and library versions gives the same weights. They are written after every
epoch, so that a training that is cut short leaves what it had.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rich.progress import Progress
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from digits import nets, objects, optimization, segmentation
from digits.segmentation import NET

SCENES_PER_EPOCH = 1000
# More digits to learn from in each scene than there are to be found.
CROWDED = objects.Layout(objects=(6, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=NET.weights, help="file for the weights")
    parser.add_argument("--epochs", type=int, default=NET.epochs)
    parser.add_argument("--learning-rate", type=float, default=NET.learning_rate, help="the highest")
    parser.add_argument("--scenes", type=int, default=SCENES_PER_EPOCH, help="scenes per epoch")
    parser.add_argument("--validation", type=int, default=100, help="scenes to watch the progress on")
    parser.add_argument("--held-out", type=int, default=0, help="scenes to measure the result on, at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--average", type=float, metavar="DECAY", help="keep the running mean of the weights")
    parser.add_argument("--start", type=Path, help="weights of a segmenter to go on from")
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
    module = segmentation.trained(options.start) if options.start else segmentation.fresh()
    batches = -(-options.scenes // NET.batch)
    optimizer, schedule = optimization.prepare(
        module, options.learning_rate, NET.weight_decay, options.epochs * batches
    )
    kept = averaged(module, options.average) if options.average else None
    watched = objects.validation(options.validation)
    with Progress() as progress:
        task = progress.add_task(NET.name, total=options.epochs * batches)
        for epoch in range(options.epochs):
            module.train()
            total = 0.0
            for number in range(batches):
                seed, first = 1000 * (options.seed + 1) + epoch, number * NET.batch
                painted = [objects.scene("train", seed, first + i, CROWDED) for i in range(NET.batch)]
                images, classes = segmentation.batch(painted)
                loss = segmentation.loss(segmentation.pixel_logits(module, images), classes)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                if kept is not None:
                    kept.update_parameters(module)
                total += loss.item()
                progress.advance(task)
            result = (module if kept is None else kept.module).eval()
            nets.save(result, NET, options.out)
            iou = segmentation.mean_iou(result, watched)
            done = f"epoch {epoch + 1}/{options.epochs}"
            progress.console.print(f"{done}: loss {total / batches:.4f}, validation IoU {iou:.2%}")
    return result


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of `module` whose weights follow it, each step by 1 - `decay` of the way.

    Its batch norms, two in the stem, keep the statistics that they begin with: for a second round.
    """
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))


if __name__ == "__main__":
    main()
