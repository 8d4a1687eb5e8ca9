"""Make a folder of pictures searchable, and find some of them by what they show.

    python examples/07_search_a_folder.py "a handwritten seven on a flower" --out found.png

The pictures are painted for the purpose, and the model is the demo's small pair of towers: it knows digits,
flowers and temples, nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import saccade
from digits import captions, contrastive, folders, scenes
from saccade.gallery.sheet import contact_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="a handwritten seven on a flower")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--out", type=Path, help="a file for a sheet of what was found")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        painted = captions.held_out(options.pictures, scenes.SIZE_PX)
        folder = folders.write_captioned(painted, Path(scratch) / "pictures")
        bundle = contrastive.export(Path(scratch) / "bundle")
        with saccade.load(bundle.path) as model:
            gallery = saccade.Gallery.index(folder, model, Path(scratch) / "gallery")
            hits = gallery.search(options.text, options.top)
        for hit in hits:
            print(f"{hit.similarity:.3f} {hit.path.name}")
        if options.out is not None:
            contact_sheet(hits, options.text).save(options.out)


if __name__ == "__main__":
    main()
