"""Train the demo networks from nothing, on pictures that are painted anew for every epoch.

    python examples/02_train_digits.py stvit deepmad
    python examples/02_train_digits.py --all --out /tmp/weights

The same seed on the same machine and library versions gives the same weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn

from digits import nets, optimization, scenes
from digits.distillation import Distillation
from digits.initialisation import plane_waves

PICTURES_PER_EPOCH = 1400
LABEL_SMOOTHING = 0.1
# The first pictures are easy and become the real ones over this share of the epochs. Begun with the real
# ones, all four networks stay at chance for hundreds of steps: nothing tells them that there is a digit.
EASY_SHARE = 0.3
LAYER_SCALE = 0.5  # the released 1e-5 is for 300 epochs; a short training never opens such a branch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(nets.NETS)}")
    parser.add_argument("--all", action="store_true", help="train every demo network")
    parser.add_argument("--out", type=Path, default=nets.WEIGHTS, help="folder for NAME.safetensors")
    parser.add_argument("--epochs", type=int, help="fewer epochs than the recipe's, for a trial")
    parser.add_argument("--pictures", type=int, default=PICTURES_PER_EPOCH, help="pictures per epoch")
    parser.add_argument("--held-out", type=int, default=2000, help="pictures to measure accuracy on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights to go on from, without the easy beginning")
    options = parser.parse_args()
    if not options.names and not options.all:
        parser.error("name a network, or give --all")
    for name in list(nets.NETS) if options.all else options.names:
        chosen = nets.net(name)
        start = time.perf_counter()
        epochs = options.epochs or chosen.epochs
        module = train(chosen, epochs, options.pictures, options.seed, options.start)
        nets.save(module, chosen, options.out / chosen.weights.name)
        minutes = (time.perf_counter() - start) / 60
        right = nets.accuracy(module, scenes.held_out(options.held_out).at(chosen.size_px))
        print(f"{name}: {right:.2%} of held-out pictures, {minutes:.1f} min")


def train(chosen: nets.Net, epochs: int, pictures: int, seed: int, start: Path | None) -> nn.Module:
    """Return the trained network in eval mode."""
    torch.manual_seed(seed)
    module = nets.create(chosen.model, checkpoint=start, **chosen.config).train()
    if start is None:
        initialise(module)
    lesson = Distillation(module, nets.trained(chosen.teacher)) if chosen.teacher else Labelled(module)
    steps = epochs * -(-pictures // chosen.batch)
    optimizer, schedule = optimization.prepare(lesson, chosen.learning_rate, chosen.weight_decay, steps)
    with Progress() as progress:
        task = progress.add_task(chosen.name, total=steps)
        for epoch in range(epochs):
            seen = hits = 0
            ease = max(0.0, 1 - epoch / (EASY_SHARE * epochs)) if start is None else 0.0
            painted = scenes.render("train", pictures, 1000 * (seed + 1) + epoch, ease).at(chosen.size_px)
            for images, labels in batches(painted, chosen.batch):
                logits, loss = lesson(images, labels, LABEL_SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(lesson.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                seen, hits = seen + len(labels), hits + int((logits.argmax(1) == labels).sum())
                progress.advance(task)
            done = f"{chosen.name} epoch {epoch + 1}/{epochs}"
            progress.console.print(f"{done}: {hits / seen:.1%} of training pictures, ease {ease:.2f}")
    return module.eval()


class Labelled(nn.Module):
    """Logits and loss of a network that learns from the labels alone."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
        logits = self.student(images)
        return logits, F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def batches(painted: scenes.Pictures, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images (B, 3, H, W) and labels (B,), in order."""
    for start in range(0, len(painted), batch):
        part = slice(start, start + batch)
        yield nets.inputs(painted.images[part]), torch.from_numpy(painted.labels[part])


def initialise(module: nn.Module) -> None:
    """Linear layers by their widths (the usual 0.02 silences layers this narrow), and open layer scales."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters():
        if "layer_scale" in name:
            nn.init.constant_(parameter, LAYER_SCALE)
        elif name == "pos_embed":
            side = math.isqrt(parameter.shape[1])
            waves = plane_waves(side, parameter.shape[2])
            parameter.data[0, -len(waves) :] = waves


if __name__ == "__main__":
    main()
