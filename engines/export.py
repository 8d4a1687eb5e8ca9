"""A torch module becomes one ONNX graph: the source from which every other graph is derived.

Semantic-token layers stay single nodes of domain `saccade`; the graph carries their definitions as local
functions. Batch norms, biases and masks arrive folded to constants, LayerNormalization and Gelu as one node
each, timm's attention without the exporter's detours. The batch is dynamic; so are height and width where
asked for.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer
from torch import nn

from saccade.engines.inputs import Input
from saccade.engines.passes.channel_scales import fold_channel_scales
from saccade.engines.passes.key_transposes import join_key_transposes
from saccade.engines.passes.one_scale import scale_one_factor
from saccade.engines.passes.pad_channels import pad_channels
from saccade.engines.passes.split_qkv import split_qkv
from saccade.errors import ExportError
from saccade.models.operators import DOMAIN, OPERATORS, OPSET, VERSION

IR_VERSION = 9  # the lowest that opset 20 allows, so that old runtimes read the file
FOLD_LIMIT = 1 << 28  # elements; constants are folded whatever their size
REWRITES = (split_qkv, join_key_transposes, scale_one_factor, fold_channel_scales, pad_channels)


def export_graph(
    module: nn.Module,
    inputs: Sequence[Input],
    *,
    outputs: Sequence[str] = ("logits",),
    name: str = "saccade",
) -> onnx.ModelProto:
    """Export `module`, called with `inputs` in their order, giving `outputs` in theirs.

    Traced at a batch of two, at the inputs' own sizes. Raises ExportError with the exporter's reason.
    """
    rng = np.random.default_rng(0)
    samples = tuple(torch.from_numpy(each.sample(rng, 2)) for each in inputs)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                samples,
                dynamo=True,
                opset_version=OPSET,
                input_names=[each.name for each in inputs],
                output_names=list(outputs),
                dynamic_shapes=tuple(dict.fromkeys(each.free(), torch.export.Dim.DYNAMIC) for each in inputs),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's own errors have no common root
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"{name} could not be exported with inputs {[tuple(each.shape) for each in samples]}: "
            f"{reason[0] if reason else repr(error)}"
        ) from error
    if program is None:
        raise ExportError(f"{name} could not be exported: the exporter returned nothing")
    fold_constants(program.model)
    for rewrite in REWRITES:
        rewrite(program.model)
    RemoveUnusedNodesPass()(program.model)
    _name_nodes(program.model)
    model = ir.to_proto(program.model)
    _name_dimensions(model, inputs)
    return _finished(model, name)


def fold_constants(model: ir.Model) -> None:
    """Evaluate what depends on constants and static shapes only, whatever its size."""
    with _quiet():
        optimizer.optimize(
            model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, onnx_shape_inference=True
        )


def _finished(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Attach the local functions, drop the exporter's traces (they name source files), check."""
    used = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    model.functions.extend(onnx.parser.parse_function(OPERATORS[op].body) for op in used)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    if used:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "saccade", ""
    model.graph.name = name
    for holder in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        del holder.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def _name_nodes(model: ir.Model) -> None:
    """Name every node after the module it comes from, so that runtimes' messages can be traced back."""
    seen: Counter[str] = Counter()
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
        scope = scopes[-2] if len(scopes) > 1 else ""
        label = f"{scope}/{node.op_type}" if scope else node.op_type
        seen[label] += 1
        node.name = label if seen[label] == 1 else f"{label}_{seen[label]}"


def _name_dimensions(model: onnx.ModelProto, inputs: Sequence[Input]) -> None:
    """Call the free dimensions of the inputs by their names, also in what is computed from them."""
    names = {
        value.type.tensor_type.shape.dim[axis].dim_param: label
        for value, given in zip(model.graph.input, inputs, strict=True)
        for axis, label in given.free().items()
    }
    symbols = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in names))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbols.sub(lambda match: names[match[0]], dim.dim_param)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns and logs about its own internals; what matters to a user is compared afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
