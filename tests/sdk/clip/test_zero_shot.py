"""Zero-shot classes and embeddings of an exported pair, against its torch module and open_clip's recipe."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tests.clip_pair import CONFIG
from typer.testing import CliRunner

import saccade
from saccade import bundle as bundles
from saccade.cli import app
from saccade.engines.tensorrt import parser
from saccade.errors import BundleError, CheckpointError, UsageError
from saccade.evaluation import evaluate
from saccade.export import export_bundle
from saccade.models.card import Card, Texts
from saccade.prompts import class_matrix
from saccade.tokenizer import Tokenizer

TEMPLATES = ("a picture of a {}.", "{} on a sofa", "only one {}")


@pytest.fixture(scope="module")
def classify(bundle: Path) -> Any:
    with saccade.load(bundle, prove=True) as predictor:
        yield predictor


def expected_scores(pair: Any, image: np.ndarray[Any, Any], matrix: torch.Tensor) -> list[float]:
    with torch.inference_mode():
        embedding = F.normalize(pair(torch.from_numpy(image)), dim=1)
        return (pair.scale() * embedding @ matrix).softmax(1)[0].tolist()


def open_clip_matrix(pair: Any, names: list[str], templates: tuple[str, ...]) -> torch.Tensor:
    """The columns that open_clip's own recipe gives, with our tokens."""
    tokenize = Tokenizer(CONFIG["vocabulary"], CONFIG["context"])

    class Model:
        def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
            return F.normalize(pair.encode_text(tokens), dim=-1)

    return open_clip.build_zero_shot_classifier(
        Model(),
        lambda texts: torch.from_numpy(tokenize(texts)),
        classnames=names,
        templates=list(templates),
        num_classes_per_batch=2,
    )


def test_bundle(bundle: Path, pair: Any) -> None:
    read = bundles.read(bundle)
    assert read.task == "zero_shot"
    assert set(read.graphs) == {"image", "text"}
    assert read.graphs["text"].inputs[0].shape == ("batch", 12)
    assert read.card.texts == Texts(600, 12, pytest.approx(pair.scale()), ())
    assert Card.from_json(json.loads(json.dumps(read.card.to_json()))) == read.card


def test_scores_are_those_of_the_module(classify: Any, pair: Any, noise: np.ndarray[Any, Any]) -> None:
    names = ["dog", "cat", "naïve 😀"]
    image = classify.preprocess([noise])[0].image
    found = classify(noise, names, TEMPLATES)
    assert found.labels == tuple(names)
    wanted = expected_scores(pair, image, open_clip_matrix(pair, names, TEMPLATES))
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-4)
    plain = classify([noise, noise], names)
    wanted = expected_scores(pair, image, open_clip_matrix(pair, names, ("{}",)))
    np.testing.assert_allclose(plain[1].scores, wanted, rtol=1e-4)


def test_fixed_classes(classify: Any, noise: np.ndarray[Any, Any]) -> None:
    fixed = classify.with_classes(("dog", "cat"))
    assert fixed.labels == ("dog", "cat")
    expected = classify(noise, ["dog", "cat"]).scores
    assert np.array_equal(fixed(noise).scores, expected)
    ((_, streamed),) = fixed.stream([noise], progress=False)
    assert np.array_equal(streamed.scores, expected)
    later = asyncio.run(classify.acall(noise, ["dog", "cat"]))
    assert np.array_equal(later.scores, expected)
    assert classify.labels == ()  # the predictor itself stays without


def test_texts_run_once_for_each_set(bundle: Path, noise: np.ndarray[Any, Any]) -> None:
    with saccade.load(bundle) as classify:
        text = classify.engines["text"]
        runs: list[int] = []
        original = text.run
        text.run = lambda feeds: (runs.append(len(feeds["tokens"])), original(feeds))[1]
        for _ in range(3):
            classify(noise, ["dog", "cat"])
        assert runs == [2]
        classify(noise, ["cat", "dog"])
        assert runs == [2, 2]
        for index in range(40):  # other sets push the first one out, and memory stays bounded
            classify(noise, [f"class {index}", "dog"])
        classify(noise, ["dog", "cat"])
        assert len(runs) == 43


def test_embeddings(classify: Any, pair: Any, noise: np.ndarray[Any, Any]) -> None:
    embed = classify.embed
    texts = ["a dog", "", "word " * 100, "\x00\x1b[0m 👩‍👩‍👧"]
    found = embed.texts(texts)
    tokens = torch.from_numpy(embed.tokenizer(texts))
    with torch.inference_mode():
        expected = F.normalize(pair.encode_text(tokens), dim=1).numpy()
        images = F.normalize(pair(torch.from_numpy(classify.preprocess([noise])[0].image)), dim=1).numpy()
    np.testing.assert_allclose(found.vectors, expected, atol=1e-6)
    np.testing.assert_allclose(
        embed.images([noise] * 3, batch_size=2).vectors, images.repeat(3, 0), atol=1e-6
    )
    np.testing.assert_allclose(embed(noise).vectors, images, atol=1e-6)
    np.testing.assert_allclose(found.similarity(embed(noise)), expected @ images.T, atol=1e-6)
    assert (len(embed.texts([])), embed.images([]).width) == (0, 24)
    assert found.vectors.dtype == np.float32
    assert len(found[1:].to_json()["embeddings"]) == 3
    assert found.summary().startswith("24 numbers: ")


def test_ten_thousand_prompts(classify: Any, noise: np.ndarray[Any, Any]) -> None:
    prompts = [f"thing {index}" for index in range(10_000)]
    found = classify(noise, prompts)
    assert len(found) == 10_000
    assert found.scores.sum() == pytest.approx(1, abs=1e-3)
    alone = classify(noise, prompts[:2]).scores
    assert found.scores[0] / found.scores[1] == pytest.approx(alone[0] / alone[1], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no classes of its own"),
        ({"prompts": []}, "there are no classes"),
        ({"prompts": "a dog"}, "give texts, in a list"),
        ({"prompts": ["a dog", 3]}, "give texts, in a list"),
        ({"prompts": ["a"], "templates": ["no place for it"]}, "exactly one {}"),
        ({"prompts": ["a"], "templates": "a {}"}, "give a list"),
        ({"templates": ["a {}"]}, "there are no classes"),
    ],
)
def test_refused(classify: Any, noise: np.ndarray[Any, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        classify(noise, **arguments)
    assert message in str(refused.value)


def test_class_matrix_batches_across_classes() -> None:
    """More sentences than one batch holds, and a template with braces of its own."""
    seen: list[str] = []

    def embed(texts: Any) -> np.ndarray[Any, Any]:
        seen.extend(texts)
        return np.stack([[len(text), 1.0] for text in texts]).astype(np.float32)

    names = [f"n{index}" for index in range(50)]
    matrix = class_matrix(embed, names, ("{x} {}", "{}", "a {}"))
    assert seen[:4] == ["{x} n0", "n0", "a n0", "{x} n1"]
    assert matrix.shape == (2, 50)
    lengths = [np.mean([len(f"{{x}} {name}"), len(name), len(f"a {name}")]) for name in names]
    np.testing.assert_allclose(matrix[0] / matrix[1], lengths, rtol=1e-6)


def test_classes_baked_into_the_bundle(
    weights: Path, pair: Any, noise: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    """The text tower runs once, at export; QuickGELU counts in both towers."""
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
    options: dict[str, Any] = {"config": CONFIG, "classes": tmp_path / "classes.txt"}
    for name, templates in (
        ("ours", TEMPLATES),
        ("openai", tuple(each("{}") for each in open_clip.OPENAI_IMAGENET_TEMPLATES)),
    ):
        more = {"templates": tmp_path / "templates.txt"} if name == "ours" else {}
        export_bundle("clip_vit_b_16", weights, tmp_path / name, **options, **more)
        with saccade.load(tmp_path / name) as classify:
            assert (classify.card.task, set(classify.engines)) == ("classification", {"model"})
            found = classify(noise)
            image = classify.preprocess([noise])[0].image
        matrix = open_clip_matrix(pair, ["dog", "cat"], templates)
        with torch.inference_mode():  # evaluation takes the scale 100 outright
            similar = 100 * F.normalize(pair(torch.from_numpy(image)), dim=1) @ matrix
        assert found.labels == ("dog", "cat")
        np.testing.assert_allclose(found.scores, similar.softmax(1)[0], rtol=2e-3, atol=1e-5)


def test_an_image_tower_alone_embeds(pair: Any, noise: np.ndarray[Any, Any], tmp_path: Path) -> None:
    trunk = {name: value for name, value in pair.state_dict().items() if name.startswith("trunk.")}
    save_file(trunk, tmp_path / "trunk.safetensors")
    export_bundle("clip_vit_b_16", tmp_path / "trunk.safetensors", tmp_path / "out", config=CONFIG)
    with saccade.load(tmp_path / "out") as embed:
        assert isinstance(embed, saccade.Embedder)
        with torch.inference_mode():
            expected = F.normalize(pair(torch.from_numpy(embed.preprocess([noise])[0].image)), dim=1)
        np.testing.assert_allclose(embed(noise).vectors, expected, atol=1e-6)
        with pytest.raises(UsageError, match="has no text tower"):
            embed.texts(["a dog"])
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(CheckpointError, match="no text tower that can encode"):
        export_bundle(
            "clip_vit_b_16",
            tmp_path / "trunk.safetensors",
            tmp_path / "other",
            config=CONFIG,
            classes=tmp_path / "classes.txt",
        )


def test_one_graph_of_two_is_no_zero_shot_classifier(bundle: Path) -> None:
    with pytest.raises(BundleError, match="need the text graph"):
        saccade.load(bundle / "graphs" / "image.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index, name in enumerate(("red_dog", "cat", "red_dog")):
        path = tmp_path / "data" / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return tmp_path / "data"


def test_folders_name_the_classes(classify: Any, folder: Path) -> None:
    report: Any = evaluate(classify, folder)
    right = sum(
        classify(path, ["cat", "red dog"]).top(1).labels[0] == path.parent.name.replace("_", " ")
        for path in folder.rglob("*.png")
    )
    assert report.pictures == 3
    assert report.top1 == pytest.approx(100 * right / 3)
    fixed: Any = evaluate(classify.with_classes(["cat", "red dog", "bird"]), folder)
    assert {each.label for each in fixed.classes} == {"cat", "red dog"}


def test_predict_takes_prompts(bundle: Path, tiny_bundle: Any, folder: Path) -> None:
    picture = str(folder / "cat" / "1.png")
    command = ["predict", str(bundle), picture, "--json", "--prompt", "a dog", "--prompt", "a cat"]
    printed = CliRunner().invoke(app, command)
    assert printed.exit_code == 0, printed.output
    row = json.loads(printed.stdout)
    assert {each["label"] for each in row["predictions"]} == {"a dog", "a cat"}
    for arguments, message in (
        (["predict", str(bundle), picture], "--prompt 'a dog'"),
        (["predict", str(tiny_bundle.path), picture, "--prompt", "a dog"], "has its own classes"),
    ):
        refused = CliRunner().invoke(app, arguments)
        assert message in str(refused.exception)


def test_nvidia_parses_both_graphs(bundle: Path) -> None:
    for graph in ("image", "text"):
        verdict = parser.judge(bundle / "graphs" / f"{graph}.onnx", build=False)
        assert verdict.parsed, verdict.errors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobileclip_s2", "clip_vit_b_16"])
def test_full_size_bundles(name: str, tmp_path: Path, noise: np.ndarray[Any, Any]) -> None:
    """Both towers at full size: exported, compared with the module, parsed by NVIDIA, loaded."""
    exported = export_bundle(name, None, tmp_path / "out", random=True, config={"text": True})
    assert exported.graphs["text"].inputs[0].shape == ("batch", 77)
    for graph in ("image", "text"):
        verdict = parser.judge(exported.graphs[graph].files["source"], build=False)
        assert verdict.parsed, verdict.errors
    with saccade.load(exported.path, prove=True) as classify:
        assert classify(noise, ["a dog", "a cat"]).untrained
