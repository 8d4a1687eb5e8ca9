"""RoiAlign in matrix products, for engines without it (NVIDIA's parser needs a plugin for that operator).

Bilinear sampling and averaging act on rows and columns one after the other, so that a region's features are
`Ay F Ax^T`. The same numbers as `models.heads.roi_align` in its separable form, which says how the weights of
rows and columns come about; here as a rewrite, so that one source graph serves every engine.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from saccade.engines.passes.rounding import LOW
from saccade.models.operators import DOMAIN, OPSET, VERSION

NAME = "SeparableRoiAlign"
_NEAR = 5  # samples lie more than half a cell apart, so no more than this many touch one cell
_SUPPORTED = {"coordinate_transformation_mode": "half_pixel", "mode": "avg", "sampling_ratio": 0}


def _weights(out: str, start: str, end: str, cells: str) -> str:
    """`out`: (B, R, size, cells), each bin's mean of its samples. start, end: (B, R, 1), in cells."""
    return f"""{out}_span = Sub ({end}, {start})
        {out}_bin = Div ({out}_span, size_float)
        {out}_extent = Unsqueeze ({out}_bin, axis3)
        {out}_samples = Ceil ({out}_extent)
        {out}_some = Max ({out}_samples, unit)
        {out}_step = Div ({out}_extent, {out}_some)
        {out}_cells_int = Range (zero, {cells}, one)
        {out}_cells = Cast <to = 1> ({out}_cells_int)
        {out}_begin = Unsqueeze ({start}, axis3)
        {out}_offset = Mul (bins, {out}_extent)
        {out}_half_step = Mul ({out}_step, half)
        {out}_at_bin = Add ({out}_begin, {out}_offset)
        {out}_first = Add ({out}_at_bin, {out}_half_step)
        {out}_before = Sub ({out}_cells, unit)
        {out}_distance = Sub ({out}_before, {out}_first)
        {out}_step_least = Max ({out}_step, tiny)
        {out}_steps = Div ({out}_distance, {out}_step_least)
        {out}_steps_up = Ceil ({out}_steps)
        {out}_nearest = Max ({out}_steps_up, none)
        {out}_nearest_5d = Unsqueeze ({out}_nearest, axis4)
        {out}_sample = Add ({out}_nearest_5d, near)
        {out}_first_5d = Unsqueeze ({out}_first, axis4)
        {out}_step_5d = Unsqueeze ({out}_step, axis4)
        {out}_walked = Mul ({out}_sample, {out}_step_5d)
        {out}_position = Add ({out}_first_5d, {out}_walked)
        {out}_count = Cast <to = 1> ({cells})
        {out}_last = Sub ({out}_count, unit)
        {out}_above = Max ({out}_position, none)
        {out}_inside = Min ({out}_above, {out}_last)
        {out}_cell = Unsqueeze ({out}_cells, axis1)
        {out}_off = Sub ({out}_inside, {out}_cell)
        {out}_far = Abs ({out}_off)
        {out}_near = Sub (unit, {out}_far)
        {out}_hat = Max ({out}_near, none)
        {out}_samples_5d = Unsqueeze ({out}_samples, axis4)
        {out}_is_sample = Less ({out}_sample, {out}_samples_5d)
        {out}_not_before = GreaterOrEqual ({out}_position, outside)
        {out}_not_behind = LessOrEqual ({out}_position, {out}_count)
        {out}_in_map = And ({out}_not_before, {out}_not_behind)
        {out}_counted = And ({out}_is_sample, {out}_in_map)
        {out}_shares = Where ({out}_counted, {out}_hat, none)
        {out}_sum = ReduceSum <keepdims = 0> ({out}_shares, axis4)
        {out}_mean = Div ({out}_sum, {out}_some)
        {out} = CastLike ({out}_mean, features)"""


# rois: (B * R, 4) float32, those of each picture together, in the order of the pictures.
BODY = f"""<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{NAME} <size, scale> (features, rois) => (pooled)
{{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    flat = Constant <value_ints = [-1]> ()
    four = Constant <value_ints = [4]> ()
    axis1 = Constant <value_ints = [1]> ()
    axis3 = Constant <value_ints = [3]> ()
    axis4 = Constant <value_ints = [4]> ()
    unit = Constant <value_float = 1.0> ()
    outside = Constant <value_float = -1.0> ()
    none = Constant <value_float = 0.0> ()
    half = Constant <value_float = 0.5> ()
    tiny = Constant <value_float = 0.000001> ()
    near = Constant <value_floats = [{", ".join(f"{n}.0" for n in range(_NEAR))}]> ()
    size = Constant <value_int: int = @size> ()
    size_float = Cast <to = 1> (size)
    scale = Constant <value_float: float = @scale> ()
    batch_1d = Shape <start = 0, end = 1> (features)
    channels_1d = Shape <start = 1, end = 2> (features)
    height_1d = Shape <start = 2, end = 3> (features)
    width_1d = Shape <start = 3, end = 4> (features)
    height = Squeeze (height_1d)
    width = Squeeze (width_1d)
    zeros = Constant <value_ints = [0]> ()
    size_1d = Unsqueeze (size, zeros)
    bins_int = Range (zero, size, one)
    bins_float = Cast <to = 1> (bins_int)
    bins = Unsqueeze (bins_float, axis1)
    per_picture = Concat <axis = 0> (batch_1d, flat, four)
    boxes = Reshape (rois, per_picture)
    scaled = Mul (boxes, scale)
    in_cells = Sub (scaled, half)
    x1, y1, x2, y2 = Split <axis = 2, num_outputs = 4> (in_cells)
    {_weights("rows", "y1", "y2", "height")}
    {_weights("columns", "x1", "x2", "width")}
    rows_shape = Concat <axis = 0> (batch_1d, flat, height_1d)
    row_weights = Reshape (rows, rows_shape)
    columns_shape = Concat <axis = 0> (flat, axis1, size_1d, width_1d)
    column_weights = Reshape (columns, columns_shape)
    pixels = Transpose <perm = [0, 2, 3, 1]> (features)
    by_row_shape = Concat <axis = 0> (batch_1d, height_1d, flat)
    by_row = Reshape (pixels, by_row_shape)
    mixed = MatMul (row_weights, by_row)
    banded_shape = Concat <axis = 0> (flat, size_1d, width_1d, channels_1d)
    banded = Reshape (mixed, banded_shape)
    binned = MatMul (column_weights, banded)
    turned = Transpose <perm = [0, 3, 1, 2]> (binned)
    pooled = CastLike (turned, rois)
}}"""


def use_separable_regions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose RoiAlign nodes, if it has any, are nodes of `NAME`, with its definition.

    Where a node's features were widened for it from a lower precision, the products are in that precision.
    A RoiAlign of another form than our exports' stays as it is.
    """
    read = ir.from_proto(model)
    replaced = sum([_replace(read.graph, node) for node in list(read.graph) if _is_ours(node)])
    if not replaced:
        return model
    read.opset_imports[DOMAIN] = VERSION
    changed = ir.to_proto(read)
    function = onnx.parser.parse_function(BODY)
    function.opset_import[0].version = read.opset_imports[""]  # of the graph, into which it is inlined
    changed.functions.append(function)
    return changed


def _is_ours(node: ir.Node) -> bool:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return (
        (node.domain, node.op_type) == ("", "RoiAlign")
        and all(attributes.get(name) == value for name, value in _SUPPORTED.items())
        and attributes.get("output_height") == attributes.get("output_width")
    )


def _replace(graph: ir.Graph, node: ir.Node) -> int:
    features, rois, _ = node.inputs
    assert features is not None
    size, scale = node.attributes["output_height"].value, node.attributes["spatial_scale"].value
    made = ir.node(
        NAME,
        [_before_widening(features), rois],
        {"size": size, "scale": scale},
        domain=DOMAIN,
        name=f"{node.name}/{NAME}",
    )
    (result,), (old,) = made.outputs, node.outputs
    result.shape, result.type, name = old.shape, old.type, old.name
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.insert_before(node, made)
    graph.remove(node, safe=True)
    result.name = name
    return 1


def _before_widening(features: ir.Value) -> ir.Value:
    cast = features.producer()
    if cast is None or cast.op_type != "Cast" or cast.inputs[0] is None:
        return features
    return cast.inputs[0] if cast.inputs[0].dtype in LOW else features
