"""The tokenizer against open_clip's, token for token."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import numpy as np
import open_clip
import pytest
from tests import parity

from saccade.errors import InputError, UsageError
from saccade.tokenizer import Tokenizer

PIECES = (
    "a", "photo", "of", "the", "DOG's", "I'LL", "don't", "don'ſ", "cat&amp;dog", "&eacute;", "&NTILDE",
    "& so", "naïve", "schÃ¶n", "日本語", "😀👍🏽",
    "<b>", "<end_of_text>", "<start_of_text>", "1984", "३", "Ⅷ",
    "x²", "\ud800", "ŉ", "ﬁ", "Ａ", "\u200b", "\x00", "\x1b[31mred", "\t", "\r\n", "\u2028", "’", "K", "…",
)  # fmt: skip


def drawn(count: int, seed: int) -> list[str]:
    """Texts of all kinds: any code points, Latin, printable ASCII, and pieces that cleaning changes."""
    rng = random.Random(seed)
    ranges = ((0, 0x110000), (0, 0x250), (32, 127), (0, 128))
    texts = []
    for index in range(count):
        length = rng.randrange(60)
        if index % 5 == 4:
            texts.append(rng.choice((" ", "")).join(rng.choice(PIECES) for _ in range(length // 2)))
        else:
            low, high = ranges[index % 5]
            texts.append("".join(chr(rng.randrange(low, high)) for _ in range(length)))
    return texts


@pytest.mark.parametrize("reference", ["mobileclip_s2", "openclip_vit_b_16"])
def test_golden_rows(reference: str) -> None:
    """Among them an empty text, one that is not ASCII, and one that is too long."""
    config = parity.load("clip", reference).config
    assert Tokenizer()(config["texts"]).tolist() == config["tokens"]


def test_tokens_are_open_clips() -> None:
    texts = drawn(5000, seed=0)
    expected = open_clip.get_tokenizer("ViT-B-16")(texts).numpy()
    actual = Tokenizer()(texts)
    wrong = [text for text, row, other in zip(texts, actual, expected, strict=True) if (row != other).any()]
    assert wrong == []
    assert actual.dtype == np.int64


def test_merges_are_open_clips() -> None:
    whole = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode().split("\n")
    lines = whole[1 : 49408 - 514 + 1]
    shipped = resources.files("saccade").joinpath("data", "clip_merges.txt.gz").read_bytes()
    assert gzip.decompress(shipped).decode().split("\n") == lines


def test_long_texts_end_with_the_end() -> None:
    row = Tokenizer()("word " * 500)[0]
    assert row[0] == 49406
    assert row[-1] == 49407
    assert (row[1:-1] == row[1]).all()
    exact = Tokenizer()("word " * 75)[0]
    assert (exact[-1], exact[-2]) == (49407, row[1])


def test_a_word_without_end_takes_no_longer_than_it_should() -> None:
    letters = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=100_000))
    begin = time.process_time()
    Tokenizer()(letters)
    assert time.process_time() - begin < 20  # quadratic time would be an hour


def test_small_vocabularies_use_the_first_merges() -> None:
    """All of a text is there: bytes are tokens, so nothing is ever unknown."""
    small = Tokenizer(514, 20)
    assert small("abc")[0, :5].tolist() == [512, 64, 65, 322, 513]
    assert len(Tokenizer(1024).encode("a photo of a dog")) < len(Tokenizer(514).encode("a photo of a dog"))
    assert max(Tokenizer(1024).encode("a photo of a dog 😀 <end_of_text>")) == 1023


@pytest.mark.parametrize(
    ("texts", "shape"), [([], (0, 77)), ("", (1, 77)), (["", "a"], (2, 77)), (("a",) * 3, (3, 77))]
)
def test_shapes(texts: list[str], shape: tuple[int, int]) -> None:
    assert Tokenizer()(texts).shape == shape


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["nested"]])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(InputError, match="must be a string"):
        Tokenizer()([text])  # type: ignore[list-item]


@pytest.mark.parametrize(("vocabulary", "context"), [(513, 77), (49409, 77), (49408, 1)])
def test_refused_sizes(vocabulary: int, context: int) -> None:
    with pytest.raises(UsageError, match=r"514 to 49408"):
        Tokenizer(vocabulary, context)


def test_plain_text_needs_numpy_only() -> None:
    """And text beyond ASCII says what is missing, instead of being read differently."""
    program = """
import sys
sys.modules["ftfy"] = sys.modules["regex"] = sys.modules["torch"] = None
from saccade.errors import MissingDependency
from saccade.tokenizer import Tokenizer
print(Tokenizer()("a dog & a cat's 2 toys!")[0, :4].tolist())
try:
    Tokenizer()("naïve")
except MissingDependency as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    plain, missing = run.stdout.splitlines()
    assert plain == "[49406, 320, 1929, 261]"
    assert "pip install 'saccade[text]'" in missing
