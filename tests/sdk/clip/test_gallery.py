"""Galleries: what is found, what changes, and what survives being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import saccade
from saccade.cli import app
from saccade.errors import BundleError, UsageError
from saccade.gallery import Gallery, nearest

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(bundle: Path) -> Any:
    with saccade.load(bundle, threads=1) as predictor:
        yield predictor


def paint(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).resize((40, 40), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(11):
        paint(tmp_path / "pictures" / ("below" if index % 2 else ".") / f"{index:02d}.png", index)
    return tmp_path / "pictures"


def embedded(model: Any, gallery: Gallery) -> np.ndarray[Any, Any]:
    return model.embed.images(list(gallery.paths)).vectors


def test_search_finds_what_is_nearest(model: Any, folder: Path, tmp_path: Path) -> None:
    gallery = Gallery.index(folder, model, tmp_path / "g", batch_size=4)
    assert gallery.changes is not None
    assert (gallery.changes.new, len(gallery), dict(gallery.changes.skipped)) == (11, 11, {})
    np.testing.assert_allclose(gallery.vectors, embedded(model, gallery), atol=1e-6)
    (best, *_) = gallery.search(folder / "below" / "07.png", 3)
    assert best.path.name == "07.png"
    assert best.similarity == pytest.approx(1, abs=1e-6)
    cosines = (gallery.vectors @ model.embed.texts(["a dog"]).vectors.T)[:, 0]
    hits = gallery.search("a dog", 4)
    assert [hit.path for hit in hits] == [gallery.paths[i] for i in np.argsort(-cosines)[:4]]
    assert len(gallery.search("a dog", 100)) == 11
    assert gallery.search(np.asarray(Image.open(best.path)), 1)[0].path == best.path
    assert Gallery(tmp_path / "g", model.embed).paths == gallery.paths
    for wrong in ({"k": 0}, {"query": np.zeros((2, 2), np.uint8)}):
        with pytest.raises(saccade.SaccadeError):
            gallery.search(**{"query": "a", **wrong})  # type: ignore[arg-type]


def test_only_what_changed_is_read(model: Any, folder: Path, tmp_path: Path) -> None:
    Gallery.index(folder, model, tmp_path / "g", batch_size=4)
    (folder / "02.png").unlink()
    paint(folder / "04.png", 77)
    os.utime(folder / "04.png", ns=(1, 1))  # a changed file may be as large as before
    paint(folder / "new.png", 78)
    read: list[int] = []
    image = model.engines["image"]
    original = image.run
    image.run = lambda feeds: (read.append(len(feeds["image"])), original(feeds))[1]
    try:
        gallery = Gallery.index(folder, model, tmp_path / "g", batch_size=4)
    finally:
        image.run = original
    changes = gallery.changes
    assert changes is not None
    assert (changes.new, changes.changed, changes.removed, changes.unchanged) == (1, 1, 1, 9)
    assert sorted(read) == [2, 4, 4]  # the two pictures, and the four probes before and after
    assert "02.png" not in {path.name for path in gallery.paths}
    np.testing.assert_allclose(gallery.vectors, embedded(model, gallery), atol=1e-6)
    again = Gallery.index(folder, model, tmp_path / "g")
    assert again.changes is not None
    assert (again.changes.new, again.changes.changed, again.changes.removed) == (0, 0, 0)
    assert len([file for file in (tmp_path / "g").iterdir() if file.suffix == ".npy"]) == 1


def test_unreadable_files_are_skipped_with_a_reason(model: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    whole = (folder / "00.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "notes.txt").write_text("not even named like one")
    gallery = Gallery.index(folder, model, tmp_path / "g", batch_size=5)
    assert gallery.changes is not None
    skipped = dict(gallery.changes.skipped)
    assert set(skipped) == {"empty.png", "text.jpg", "cut.png", "dangling.png"}
    assert "is empty" in skipped["empty.png"]
    assert "does not exist" in skipped["dangling.png"]
    assert len(gallery) == 11
    np.testing.assert_allclose(gallery.vectors, embedded(model, gallery), atol=1e-6)
    paint(folder / "text.jpg", 5)  # mended
    mended = Gallery.index(folder, model, tmp_path / "g")
    assert mended.changes is not None
    assert (len(mended), len(mended.changes.skipped), mended.changes.changed) == (12, 3, 1)


def test_an_empty_folder_is_an_empty_gallery(model: Any, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    gallery = Gallery.index(tmp_path / "none", model, tmp_path / "g")
    assert (len(gallery), gallery.search("a dog")) == (0, [])


def test_refusals(model: Any, folder: Path, tmp_path: Path, weights: Path) -> None:
    gallery = tmp_path / "g"
    Gallery.index(folder, model, gallery)
    (tmp_path / "other").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    cases = (
        (lambda: Gallery(tmp_path / "nowhere", model), "is no gallery"),
        (lambda: Gallery.index(tmp_path / "nowhere", model, tmp_path / "g2"), "is not a folder"),
        (lambda: Gallery.index(tmp_path / "other", model, gallery), "is the gallery of"),
        (lambda: Gallery.index(folder, model, tmp_path / "full"), "is no gallery"),
        (lambda: Gallery.index(folder, model, gallery, batch_size=0), "at least 1"),
        (lambda: Gallery(gallery, model).nearest(np.zeros((1, 5), np.float32)), r"queries are \(q, 24\)"),
    )
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_an_index_of_another_model_is_refused(
    model: Any, folder: Path, tmp_path: Path, weights: Path, bundle: Path
) -> None:
    """Of the same name and width: what it says of the same pictures tells."""
    from safetensors.torch import load_file, save_file
    from tests.clip_pair import CONFIG

    from saccade.export import export_bundle

    Gallery.index(folder, model, tmp_path / "g")
    state = load_file(weights)
    state["trunk.patch_embed.proj.weight"] = state["trunk.patch_embed.proj.weight"].flip(0).contiguous()
    save_file(state, tmp_path / "other.safetensors")
    other = export_bundle("clip_vit_b_16", tmp_path / "other.safetensors", tmp_path / "o", config=CONFIG)
    with saccade.load(other.path) as foreign:
        for call in (
            lambda: Gallery(tmp_path / "g", foreign),
            lambda: Gallery.index(folder, foreign, tmp_path / "g"),
        ):
            with pytest.raises(UsageError, match="another model"):
                call()
    with saccade.load(bundle, engine="openvino") as same:  # another engine is the same model
        assert len(Gallery(tmp_path / "g", same)) == 11


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda g: (g / "manifest.json").write_text("{"), "is damaged"),
        (lambda g: (g / "manifest.json").write_text('{"schema": 99}'), "has schema 99"),
        (lambda g: next(g.glob("0*.npy")).write_bytes(b"x" * 100), "is damaged"),
        (lambda g: next(g.glob("0*.npy")).unlink(), "is damaged"),
        (lambda g: next(g.glob("0*.json")).write_text('{"entries": [], "skipped": []}'), "is damaged"),
    ],
)
def test_damaged_galleries_say_so(
    model: Any, folder: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    Gallery.index(folder, model, tmp_path / "g")
    damage(tmp_path / "g")
    if message == "is damaged" and next((tmp_path / "g").glob("0*.json")).read_text().startswith(
        '{"entries": []'
    ):
        # Fewer entries than vectors were written down: the vectors are not read at all.
        assert len(Gallery(tmp_path / "g", model)) == 0
        return
    with pytest.raises(BundleError, match=message):
        Gallery(tmp_path / "g", model)


INDEXER = """
import sys, time
import saccade
from saccade.gallery import Gallery
bundle, folder, path, pause = sys.argv[1:]
def say(done, total):
    print(done, flush=True)
    time.sleep(float(pause))
with saccade.load(bundle, threads=1) as model:
    Gallery.index(folder, model, path, batch_size=2, progress=say)
"""


def test_killing_the_indexer_loses_the_current_batch_at_most(
    bundle: Path, model: Any, folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", INDEXER, str(bundle), str(folder), str(tmp_path / "g")]
    indexer = subprocess.Popen([*command, "30"], stdout=subprocess.PIPE, text=True)
    assert indexer.stdout is not None
    assert indexer.stdout.readline() == "2\n"
    with pytest.raises(UsageError, match="by another process"):
        Gallery.index(folder, model, tmp_path / "g")
    indexer.send_signal(signal.SIGKILL)
    indexer.communicate()
    (tmp_path / "g" / "000002.npy.partial").write_bytes(b"what a killed writer leaves")
    assert len(Gallery(tmp_path / "g", model)) == 2
    gallery = Gallery.index(folder, model, tmp_path / "g", batch_size=2)
    assert gallery.changes is not None
    assert (gallery.changes.new, gallery.changes.unchanged, len(gallery)) == (9, 2, 11)
    assert not list((tmp_path / "g").glob("*.partial"))


def test_killing_it_at_any_time_leaves_a_gallery(
    bundle: Path, model: Any, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "g"
    command = [sys.executable, "-c", INDEXER, str(bundle), str(folder), str(path), "0"]
    for batches in (1, 2, 3):
        indexer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert indexer.stdout is not None
        for _ in range(batches):
            indexer.stdout.readline()
        time.sleep(0.002 * batches)
        indexer.send_signal(signal.SIGKILL)
        indexer.communicate()
        gallery = Gallery(path, model)
        assert len(gallery) >= min(2 * batches, 11)
        np.testing.assert_allclose(gallery.vectors, embedded(model, gallery), atol=1e-6)
        paint(folder / f"more{batches}.png", 100 + batches)
    assert len(Gallery.index(folder, model, path)) == 14


# --- nearest rows ----------------------------------------------------------------------------------------


def unit(count: int, width: int) -> np.ndarray[Any, Any]:
    rows = RNG.standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("count", "k"), [(1, 1), (5, 10), (40_000, 10), (40_000, 500), (16_384, 3)])
def test_nearest_are_those_of_a_full_sort(count: int, k: int) -> None:
    vectors, queries = unit(count, 24), unit(3, 24)
    vectors[count // 2 :: 7] = vectors[0]  # many equal rows, some of them best
    queries[0] = vectors[0]
    exact = queries.astype(np.float64)[:, None] * vectors.astype(np.float64)[None]
    expected = np.argsort(-exact.sum(axis=2), axis=1, kind="stable")[:, :k]
    places, cosines = nearest.exact(vectors, queries, k)
    assert np.array_equal(places, expected)
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_faiss_offers_nearly_all(model: Any, folder: Path, tmp_path: Path) -> None:
    vectors, queries = unit(5000, 24), unit(20, 24)
    exact, _ = nearest.exact(vectors, queries, 10)
    offered, cosines = nearest.Approximate(vectors)(queries, 10)
    found = np.mean([len(set(a) & set(b)) for a, b in zip(exact.tolist(), offered.tolist(), strict=True)])
    assert found > 9.5
    assert (np.diff(cosines, axis=1) <= 0).all()
    gallery = Gallery.index(folder, model, tmp_path / "g")
    assert gallery.search("a dog", 3, approximate=True) == gallery.search("a dog", 3)


# --- the command line ------------------------------------------------------------------------------------


def test_commands(bundle: Path, tiny_bundle: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "empty.png").write_bytes(b"")
    gallery, run = str(tmp_path / "g"), CliRunner()
    printed = run.invoke(app, ["index", str(bundle), str(folder), gallery])
    assert printed.exit_code == 0, printed.output
    assert "11 pictures; 12 new" in printed.stdout
    assert "skipped empty.png" in printed.stdout
    again = json.loads(run.invoke(app, ["index", str(bundle), str(folder), gallery, "--json"]).stdout)
    assert (again["pictures"], again["new"], list(again["skipped"])) == (11, 0, ["empty.png"])

    sheet = tmp_path / "found.png"
    command = ["search", str(bundle), gallery, "--image", str(folder / "02.png"), "--top", "7"]
    found = json.loads(run.invoke(app, [*command, "--json", "--out", str(sheet)]).stdout)
    assert found["hits"][0]["picture"] == str((folder / "02.png").resolve())
    assert len(found["hits"]) == 7
    with Image.open(sheet) as image:
        assert image.width > 900
    (folder / "02.png").unlink()  # gone since: its place stays empty
    assert run.invoke(app, [*command[:3], "a dog", "--out", str(tmp_path / "other.png")]).exit_code == 0
    for arguments, message in (
        (command[:3], "say what to look for"),
        ([*command, "a dog"], "say what to look for"),
        ([*command[:3], "a dog", "--out", str(sheet)], "exists already"),
        (["search", str(tiny_bundle.path), gallery, "a dog"], "needs a CLIP model"),
    ):
        refused = run.invoke(app, arguments)
        assert message in str(refused.exception)
