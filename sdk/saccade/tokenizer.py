"""Text to tokens as CLIP was trained on them: byte-level byte-pair encoding of cleaned lower-case text.

Radford et al., arXiv 2103.00020, section 2.4; the merges are OpenAI's (data/LICENSE.clip_merges). Plain text
needs nothing beyond NumPy; cleaning text beyond ASCII takes ftfy and regex, the libraries that decided what
the published models saw in training.
"""

from __future__ import annotations

import functools
import gzip
import heapq
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from saccade.errors import InputError, MissingDependency, UsageError

__all__ = ["CONTEXT", "VOCABULARY", "Tokenizer"]

VOCABULARY = 49408
CONTEXT = 77
_BYTES = 256  # tokens of single bytes; as many again for bytes that end a word; then one for each merge
_SPECIAL = ("<start_of_text>", "<end_of_text>")
_CACHED_WORDS = 1 << 16
_WORDS = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|"

Words = Callable[[str], Iterable[str]]


class Tokenizer:
    """A callable: texts in, rows of tokens out. Thread-safe.

    vocabulary: token ids; fewer than CLIP's use the first merges only. context: tokens per text; the two that
    begin and end a text are among them, and have the two largest ids.

    >>> Tokenizer()("a dog")[0, :5].tolist()
    [49406, 320, 1929, 49407, 0]
    """

    def __init__(self, vocabulary: int = VOCABULARY, context: int = CONTEXT) -> None:
        least = 2 * _BYTES + len(_SPECIAL)
        if not least <= vocabulary <= VOCABULARY or context < 2:
            raise UsageError(
                f"a tokenizer has {least} to {VOCABULARY} tokens and a context of at least 2, not "
                f"{vocabulary} and {context}"
            )
        self.vocabulary = vocabulary
        self.context = context
        self._merges = _merges(vocabulary - least)
        self._start, self._end = vocabulary - 2, vocabulary - 1
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, texts: str | Sequence[str]) -> NDArray[np.int64]:
        """Tokens (n, context) of one text or several: start, tokens, end, zeros.

        A text that is too long is cut, and its last token is the end. InputError for what is no text.
        """
        rows = [texts] if isinstance(texts, str) else list(texts)
        tokens = np.zeros((len(rows), self.context), np.int64)
        for row, text in zip(tokens, rows, strict=True):
            inside = list(islice(self._tokens(text), self.context - 1))
            cut = inside[: self.context - 2]
            row[: len(cut) + 2] = self._start, *cut, self._end
        return tokens

    def encode(self, text: str) -> list[int]:
        """All tokens of `text`, without those that begin and end it."""
        return list(self._tokens(text))

    def _tokens(self, text: str) -> Iterator[int]:
        if not isinstance(text, str):
            raise InputError(f"a text must be a string, not {type(text).__name__}")
        for word in _words(text):
            yield from self._word(word)

    def _word(self, word: str) -> tuple[int, ...]:
        found = self._known.get(word)
        if found is None:
            if len(self._known) >= _CACHED_WORDS:
                self._known.clear()
            found = self._known[word] = self._encode_word(word)
        return found

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if word in _SPECIAL:  # written out in a text they stand for themselves, as in CLIP's own tokenizer
            return (self._start + _SPECIAL.index(word),)
        *inside, last = (_BYTE_TOKENS[byte] for byte in word.encode())
        return _merged([*inside, last + _BYTES], self._merges)


def _merged(tokens: list[int], merges: Mapping[tuple[int, int], int]) -> tuple[int, ...]:
    """Join the pair that was learned first, from the left, until no pair can be joined.

    A merge that uses the result of another was learned after it: so a queue by (merge, place) meets every
    pair in its turn, and a word of n bytes takes n log n steps.
    """
    after = list(range(1, len(tokens) + 1))
    before = list(range(-1, len(tokens) - 1))
    alive = [True] * len(tokens)
    queue: list[tuple[int, int, int]] = []

    def offer(left: int) -> None:
        if left >= 0 and after[left] < len(tokens):
            joined = merges.get((tokens[left], tokens[after[left]]))
            if joined is not None:
                heapq.heappush(queue, (joined, left, after[left]))

    for place in range(len(tokens)):
        offer(place)
    while queue:
        joined, left, right = heapq.heappop(queue)
        if not (alive[left] and alive[right] and merges.get((tokens[left], tokens[right])) == joined):
            continue  # one of the two has been joined with something else meanwhile
        tokens[left], alive[right] = joined, False
        after[left] = after[right]
        if after[right] < len(tokens):
            before[after[right]] = left
        offer(left)
        offer(before[left])
    return tuple(token for token, lives in zip(tokens, alive, strict=True) if lives)


# --- the learned vocabulary ----------------------------------------------------------------------------


def _byte_order() -> list[int]:
    """Bytes in the order of their tokens: those that print in Latin-1 first."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return shown + [byte for byte in range(_BYTES) if byte not in shown]


_BYTE_TOKENS = {byte: token for token, byte in enumerate(_byte_order())}


@functools.cache
def _merges(count: int) -> Mapping[tuple[int, int], int]:
    """The first `count` merges: which two tokens become which; one that was learned earlier is smaller."""
    packed = resources.files("saccade").joinpath("data", "clip_merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")[:count]
    tokens = dict(_named_bytes())
    merges = {}
    for place, line in enumerate(lines, 2 * _BYTES):
        left, right = line.split(" ")
        merges[tokens[left], tokens[right]] = tokens[left + right] = place
    return merges


def _named_bytes() -> Iterator[tuple[str, int]]:
    """The file's names of single bytes: the Latin-1 character, or one from U+0100 on where that is blank."""
    for token, byte in enumerate(_byte_order()):
        name = chr(byte if token < _SHOWN else _BYTES + token - _SHOWN)
        yield name, token
        yield name + "</w>", token + _BYTES


_SHOWN = 188  # bytes that print in Latin-1

# --- words ---------------------------------------------------------------------------------------------

# Text that cleaning only lower-cases and re-spaces: printable ASCII without what may be an HTML entity.
_PLAIN = re.compile(r"(?:[ -%'-~\t\n\r]|&(?![#0-9A-Za-z]))*")
_PLAIN_WORDS = re.compile(_WORDS + r"[a-z]+|[0-9]|[^\sa-z0-9]+")


def _words(text: str) -> Iterable[str]:
    if _PLAIN.fullmatch(text):
        return _PLAIN_WORDS.findall(" ".join(text.split()).lower())
    try:
        return _unicode_words()(text)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{text[:40]!r} has characters beyond plain ASCII; reading them as CLIP did needs {error.name}, "
            "which is not installed: pip install 'saccade[text]'"
        ) from error


@functools.cache
def _unicode_words() -> Words:
    import ftfy
    import regex

    words = regex.compile(_WORDS + r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)

    def split(text: str) -> Iterable[str]:
        cleaned = html.unescape(html.unescape(ftfy.fix_text(text)))
        found: list[str] = words.findall(" ".join(cleaned.split()).lower())
        return found

    return split
