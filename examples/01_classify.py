"""Classify a picture with the bundle that comes with Saccade: no checkpoint, no torch.

python examples/01_classify.py [PICTURE]
"""

from __future__ import annotations

import sys

import saccade


def main() -> None:
    if len(sys.argv) > 1:
        picture = sys.argv[1]
    else:
        from digits import scenes

        picture = scenes.held_out(1).images[0]
    with saccade.load("digits-stvit") as classify:
        print(classify(picture).top(3))


if __name__ == "__main__":
    main()
