"""Replace nodes of domain `saccade` by their definitions, folded for the sizes at hand."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx.inliner
import onnx_ir as ir
import onnx_ir.passes.common

from saccade.engines.export import fold_constants
from saccade.engines.passes.pad_rows import drop_unused_pad_rows
from saccade.engines.passes.window_bias import share_window_bias
from saccade.models.operators import DOMAIN

REWRITES: tuple[Callable[[ir.Model], int], ...] = (drop_unused_pad_rows, share_window_bias)
NAMES = ("inline", *(rewrite.__name__ for rewrite in REWRITES))


def inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in standard operators only; index arithmetic on fixed sizes becomes constants."""
    inlined = ir.from_proto(onnx.inliner.inline_local_functions(model))
    inlined.opset_imports.pop(DOMAIN, None)
    fold_constants(inlined)
    for rewrite in REWRITES:
        rewrite(inlined)
    onnx_ir.passes.common.RemoveUnusedNodesPass()(inlined)
    result = ir.to_proto(inlined)
    onnx.checker.check_model(result, full_check=True)
    return result
