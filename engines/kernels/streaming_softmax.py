"""Device code that every attention kernel shares: softmax over keys that arrive tile by tile.

Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867. Sums are float32
whatever the operands are; products of float32 operands are IEEE float32, never TF32.
"""

# mypy: disable-error-code="no-untyped-def"
# Device code: Triton infers the types.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saccade.engines.kernels.language import jit, tl


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The reference: all keys at once, on the last axis."""
    weights: NDArray[np.float64] = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@jit
def start(TILE: tl.constexpr, D: tl.constexpr):
    """The state before any key: largest logit, sum of weights, weighted sum of values."""
    largest = tl.full((TILE,), float("-inf"), tl.float32)
    return largest, tl.zeros((TILE,), tl.float32), tl.zeros((TILE, D), tl.float32)


@jit
def attend(q, k, v, bias, seen, largest, total, mixed, D: tl.constexpr, WIDEN: tl.constexpr):
    """One tile of keys. q (TILE, D), k and v (KEYS, D), bias (TILE or 1, KEYS), seen (KEYS,).

    The first tile must hold at least one seen key. WIDEN is for the interpreter, whose bfloat16 products
    are wrong.
    """
    if WIDEN:
        q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
    log2e = 1.4426950408889634
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * (log2e * D**-0.5) + bias * log2e
    logits = tl.where(seen[None, :], logits, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(logits, 1))
    kept = tl.exp2(largest - new_largest)
    weights = tl.exp2(logits - new_largest[:, None])
    total = total * kept + tl.sum(weights, 1)
    mixed = mixed * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return new_largest, total, mixed
