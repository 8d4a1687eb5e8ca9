"""Train the demo's detector: a small STViT-R with Mask R-CNN's heads, on scenes painted as it goes.

    python examples/05_train_detector.py
    python examples/05_train_detector.py --steps 20 --validation 8 --out /tmp/detector.safetensors

The backbone begins with the weights that the classification demo learnt. The state that is best on the
validation scenes is kept; the held-out scenes are for `--held-out`, once, in the end.
The same seed on the same machine and library versions gives the same weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rich.progress import Progress
from torch import nn

from digits import detector, nets, objects, optimization
from digits.detector import NET
from digits.precision import average_precision, detect

BATCH = NET.batch
MOST_GRADIENT = 2.0  # norm
# Most scenes are as the held-out ones. Other shapes teach the backbone the borders of maps that its windows
# do not divide, and digits beyond the sizes asked for make those at the limits ordinary.
SIZES_PX = (30.0, 104.0)
LAYOUTS = tuple(
    objects.Layout(size_hw, side_px=SIZES_PX)
    for size_hw in ((224, 224), (224, 224), (224, 224), (192, 256), (256, 192))
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=NET.weights, help="file for the weights")
    parser.add_argument("--steps", type=int, default=detector.STEPS, help=f"batches of {BATCH} scenes")
    parser.add_argument("--validate-every", type=int, default=200, help="steps")
    parser.add_argument("--validation", type=int, default=100, help="scenes to choose the best state by")
    parser.add_argument("--held-out", type=int, default=0, help="scenes to measure the result on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    train(options.steps, options.validate_every, options.validation, options.seed, options.out)
    print(f"{NET.name}: {(time.perf_counter() - start) / 60:.1f} min")
    if options.held_out:
        scenes = objects.held_out(options.held_out)
        best = nets.create(NET.model, checkpoint=options.out, **NET.config)
        print(f"{len(scenes)} held-out scenes: {average_precision(detect(best, scenes), scenes)}")


def train(steps: int, validate_every: int, validation: int, seed: int, out: Path) -> None:
    """Write the best state of a training to `out`; the last one where it is as good."""
    torch.manual_seed(seed)
    module = detector.untrained().train()
    optimizer, schedule = optimization.prepare(module, NET.learning_rate, NET.weight_decay, steps)
    judges, best = objects.validation(validation), -1.0
    with Progress() as progress:
        task = progress.add_task(NET.name, total=steps)
        sums: dict[str, float] = {}
        for step in range(steps):
            losses = detector.losses(module, *detector.batch(scenes(seed, step)))
            optimizer.zero_grad()
            sum(losses.values(), torch.zeros(())).backward()
            nn.utils.clip_grad_norm_(module.parameters(), MOST_GRADIENT)
            optimizer.step()
            schedule.step()
            sums = {name: sums.get(name, 0.0) + loss.item() for name, loss in losses.items()}
            progress.advance(task)
            if (step + 1) % validate_every and step + 1 != steps:
                continue
            precision = average_precision(detect(module.eval(), judges), judges)
            if precision.box + precision.mask >= best:
                best = precision.box + precision.mask
                nets.save(module, NET, out)
            module.train()
            seen = step % validate_every + 1
            means = ", ".join(f"{name} {total / seen:.3f}" for name, total in sums.items())
            progress.console.print(f"step {step + 1}/{steps}: {means}; {precision}")
            sums = {}


def scenes(seed: int, step: int) -> list[objects.Scene]:
    """The batch of one step, all of one shape."""
    layout = LAYOUTS[step % len(LAYOUTS)]
    return [objects.scene("train", seed, step * BATCH + row, layout) for row in range(BATCH)]


if __name__ == "__main__":
    main()
