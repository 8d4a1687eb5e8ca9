"""The range of every tensor that int8 is to hold, seen on calibration pictures.

Memory stays bounded: the ends of the ranges are found inside the graph, and histograms are gathered for as
many tensors at a time as `PIECE` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from saccade.engines.engine import Arrays
from saccade.engines.passes.outputs import with_outputs, with_types
from saccade.engines.scratch import opened
from saccade.errors import ExportError

Ranges: TypeAlias = Mapping[str, tuple[float, float]]
Feeds: TypeAlias = Iterable[Arrays]  # gone through several times
Say: TypeAlias = Callable[[str], None]

METHODS = ("entropy", "percentile", "minmax")
PERCENTILE = 0.9999  # of the magnitudes
BINS, LEVELS = 2048, 128
PIECE = 256 * 2**20  # bytes of results that are kept at once


def calibrate(
    model: onnx.ModelProto, names: Sequence[str], feeds: Feeds, methods: Sequence[str], say: Say
) -> dict[str, Ranges]:
    """For every method, the range of every tensor in `names`.

    The pictures are gone through once for the ends of the ranges, and once more for each `PIECE` of tensors
    where a method needs their histogram.
    """
    model = with_types(model)
    ends, sizes = _ends(model, names, feeds, say)
    found: dict[str, dict[str, tuple[float, float]]] = {method: {} for method in methods}
    if "minmax" in found:
        found["minmax"] = dict(ends)
    if searched := [method for method in methods if method != "minmax"]:
        for piece in _pieces(sizes):
            for name, counts in _histograms(model, piece, ends, feeds, say).items():
                low, high = ends[name]
                for method in searched:
                    limit = _LIMITS[method](counts) / BINS * max(-low, high)
                    found[method][name] = max(low, -limit), min(high, limit)
    return dict(found)


def _ends(
    model: onnx.ModelProto, names: Sequence[str], feeds: Feeds, say: Say
) -> tuple[dict[str, tuple[float, float]], dict[str, int]]:
    """The least and largest number in each tensor, 0 included, and its bytes in the largest batch."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in names:
        for operator, kind in (
            ("ReduceMin", TensorProto.FLOAT),
            ("ReduceMax", TensorProto.FLOAT),
            ("Size", TensorProto.INT64),
        ):
            attributes = {} if operator == "Size" else {"keepdims": 0}
            result = f"{operator}@{name}"
            probe.graph.node.append(helper.make_node(operator, [name], [result], result, **attributes))
            probe.graph.output.append(helper.make_tensor_value_info(result, kind, []))
    lows, highs, sizes = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    with opened(probe) as engine:
        for feed in _said(feeds, "ranges", say):
            seen = engine.run(feed)
            for name in names:
                lows[name] = float(np.minimum(lows[name], seen[f"ReduceMin@{name}"]))
                highs[name] = float(np.maximum(highs[name], seen[f"ReduceMax@{name}"]))
                sizes[name] = max(sizes[name], 4 * int(seen[f"Size@{name}"]))
    for name in names:
        if not np.isfinite([lows[name], highs[name]]).all():
            raise ExportError(
                f"{name!r} holds numbers that are not finite: these weights cannot be quantized"
            )
    return {name: (lows[name], highs[name]) for name in names}, sizes


def _pieces(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    piece: list[str] = []
    held = 0
    for name, size in sizes.items():
        if piece and held + size > PIECE:
            yield piece
            piece, held = [], 0
        piece.append(name)
        held += size
    if piece:
        yield piece


def _histograms(
    model: onnx.ModelProto, names: Sequence[str], ends: Ranges, feeds: Feeds, say: Say
) -> dict[str, NDArray[np.int64]]:
    """Of the magnitudes in each tensor: counts in `BINS` equal steps up to the largest."""
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    inputs = {value.name for value in model.graph.input}
    with opened(with_outputs(model, [name for name in names if name not in inputs])) as engine:
        for feed in _said(feeds, f"histograms of {len(names)} tensors", say):
            results = {**feed, **engine.run({name: feed[name] for name in engine.inputs})}
            for name in names:
                scale = BINS / max(-ends[name][0], ends[name][1], 1e-30)
                places = np.minimum(np.abs(results[name].ravel()) * np.float32(scale), BINS - 1).astype(
                    np.int32
                )
                counts[name] += np.bincount(places, minlength=BINS)
    return counts


def _said(feeds: Feeds, what: str, say: Say) -> Iterator[Arrays]:
    done = 0
    for feed in feeds:
        done += len(feed["image"])
        say(f"{what}, picture {done}")
        yield feed


def _percentile(counts: NDArray[np.int64]) -> int:
    """How many bins hold `PERCENTILE` of the magnitudes."""
    return int(np.searchsorted(np.cumsum(counts), PERCENTILE * counts.sum())) + 1


def _entropy(counts: NDArray[np.int64]) -> int:
    """How many bins lose least information when cut off there and rounded to `LEVELS` levels.

    Kullback-Leibler divergence, as in Migacz, "8-bit inference with TensorRT", GTC 2017. Zeros do not count:
    they are exact whatever the scale.
    """
    counts = counts.copy()
    counts[0] = 0
    sums = np.concatenate([[0], np.cumsum(counts)])
    best, least_lost = BINS, np.inf
    for kept in range(LEVELS, BINS + 1, LEVELS // 8):
        held = counts[:kept].astype(np.float64)
        edges = np.arange(LEVELS) * kept // LEVELS
        filled = np.add.reduceat(held > 0, edges, dtype=np.float64)
        level = np.add.reduceat(held, edges) / np.maximum(filled, 1)
        rounded = np.repeat(level, np.diff([*edges, kept])) * (held > 0)
        held[-1] += sums[-1] - sums[kept]
        some = held > 0
        p, q = held[some] / max(held.sum(), 1), rounded[some] / max(rounded.sum(), 1)
        lost = float((p * np.log(p / np.maximum(q, 1e-9))).sum())
        if lost < least_lost:
            best, least_lost = kept, lost
    return best


_LIMITS: Mapping[str, Callable[[NDArray[np.int64]], int]] = {"percentile": _percentile, "entropy": _entropy}
