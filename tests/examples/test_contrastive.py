"""The demo's pair of towers: captions that are true, and what it knows of pictures it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saccade
from digits import captions, contrastive, scenes
from saccade.gallery import Gallery


def test_pictures_depend_on_the_seed_and_their_number_alone() -> None:
    short, long = (captions.render("train", count, 3, 64) for count in (4, 6))
    assert np.array_equal(short.images, long.images[:4])
    assert np.array_equal(short.digits, long.digits[:4])
    other = captions.render("train", 4, 4, 64)
    assert not np.array_equal(short.images, other.images)
    assert set(captions.render("train", 60, 3, 8).places.tolist()) == {0, 1}


def test_parts_share_no_digit() -> None:
    glyphs = [{each.tobytes() for each in captions.source(part).glyphs} for part in captions.PARTS]
    assert [len(each) for each in glyphs] == [1200, 200, 397]
    assert len(set.union(*glyphs)) == 1797


def test_captions_hold_of_their_pictures() -> None:
    pictures = captions.render("train", 40, 5, 8)
    rng = np.random.default_rng(0)
    for index, (digit, place) in enumerate(zip(pictures.digits, pictures.places, strict=True)):
        claim = captions.caption(int(digit), int(place), rng)
        assert claim.holds(pictures)[index]
        named = [name for name in scenes.LABELS if name in claim.text.split()]
        assert named == ([] if claim.digit < 0 else [scenes.LABELS[digit]])
    assert len({claim.text for claim in captions.all_captions()}) == 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return contrastive.export(tmp_path_factory.mktemp("contrastive") / "bundle").path


def test_held_out_pictures(bundle: Path) -> None:
    """Zero-shot top-1 and recall@1, in torch and in the exported graphs."""
    pictures = captions.held_out(1000, contrastive.NET.size_px)
    pair = contrastive.towers()
    assert contrastive.zero_shot_top1(pair, pictures) >= 0.95
    assert contrastive.recall_at_1(pair, pictures) >= 0.9
    some = captions.Captioned(pictures.images[:200], pictures.digits[:200], pictures.places[:200])
    by_torch = (
        contrastive.image_embeddings(pair, some)
        @ contrastive.text_embeddings(pair, [contrastive.PROMPT.format(name) for name in scenes.LABELS]).T
    )
    prompts = [contrastive.PROMPT.format(name) for name in scenes.LABELS]
    for engine in ("onnxruntime", "openvino"):
        with saccade.load(bundle, engine=engine) as classify:
            answers = classify(list(some.images), prompts)
        best = np.array([answer.scores.argmax() for answer in answers])
        assert np.array_equal(best, by_torch.argmax(1).numpy()), engine


def test_search_finds_what_captions_say(bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    painted = captions.held_out(60, scenes.SIZE_PX)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, image in enumerate(painted.images):
        Image.fromarray(image).save(folder / f"{index:02d}.png")
    model: Any
    with saccade.load(bundle) as model:
        gallery = Gallery.index(folder, model, tmp_path / "gallery")
        claims = [claim for claim in captions.all_captions() if claim.holds(painted).any()]
        hits = [int(gallery.search(claim.text, 1)[0].path.stem) for claim in claims]
    right = [claim.holds(painted)[hit] for claim, hit in zip(claims, hits, strict=True)]
    assert np.mean(right) >= 0.8


def test_weights_are_small() -> None:
    assert contrastive.NET.weights.stat().st_size < 4 * 2**20
