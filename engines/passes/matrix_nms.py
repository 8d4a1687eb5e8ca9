"""BatchedNMS in matrix products, for engines without NonMaxSuppression (TensorRT for RTX has none).

Sorted by score, a box survives if no survivor before it overlaps it. Starting from all boxes, that rule is
applied to all of them at once until nothing changes: its only fixed point is the greedy result, reached after
as many steps as the longest chain of boxes that overlap in turn, and every step is one product with the
matrix of overlaps. Same results as the operator's own body while the fewer than 3840 boxes that TensorRT's
TopK gives are enough: that is, where no more exceed the score, or where all `kept` places are filled.
"""

from __future__ import annotations

import dataclasses
from string import Template

import onnx

from saccade.models.operators import BATCHED_NMS, DOMAIN

_STATEMENTS = Template("""
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    four = Constant <value_ints = [4]> ()
    flat = Constant <value_ints = [-1]> ()
    most = Constant <value_ints = [3839]> ()
    none = Constant <value_float = 0.0> ()
    half = Constant <value_float = 0.5> ()
    kept_scalar = Constant <value_int: int = @kept> ()
    kept_1d = Unsqueeze (kept_scalar, zero)
    iou = Constant <value_float: float = @iou_threshold> ()
    least = Constant <value_float: float = @score_threshold> ()
    batch = Shape <start = 0, end = 1> (scores)
    groups = Shape <start = 1, end = 2> (scores)
    count = Shape <start = 2, end = 3> (scores)
    total = Mul (groups, count)
    limit = Min (total, most)
    score_shape = Concat <axis = 0> (batch, flat)
    score_rows = Reshape (scores, score_shape)
    best, index = TopK (score_rows, limit)
    box_shape = Concat <axis = 0> (batch, flat, four)
    box_rows = Reshape (boxes, box_shape)
    index_column = Unsqueeze (index, two)
    index_shape = Concat <axis = 0> (batch, limit, four)
    box_index = Expand (index_column, index_shape)
    sorted_boxes = GatherElements <axis = 1> (box_rows, box_index)
    left, top, right, bottom = Split <axis = 2, num_outputs = 4> (sorted_boxes)
    left_row = Transpose <perm = [0, 2, 1]> (left)
    top_row = Transpose <perm = [0, 2, 1]> (top)
    right_row = Transpose <perm = [0, 2, 1]> (right)
    bottom_row = Transpose <perm = [0, 2, 1]> (bottom)
    width = Sub (right, left)
    height = Sub (bottom, top)
    area = Mul (width, height)
    area_row = Transpose <perm = [0, 2, 1]> (area)
    left_most = Max (left, left_row)
    top_most = Max (top, top_row)
    right_least = Min (right, right_row)
    bottom_least = Min (bottom, bottom_row)
    common_width = Sub (right_least, left_most)
    common_height = Sub (bottom_least, top_most)
    positive_width = Max (common_width, none)
    positive_height = Max (common_height, none)
    common = Mul (positive_width, positive_height)
    areas = Add (area, area_row)
    union = Sub (areas, common)
    allowed = Mul (union, iou)
    overlap = Greater (common, allowed)
    group = Div (index, count)
    group_column = Unsqueeze (group, two)
    group_row = Unsqueeze (group, one)
    same = Equal (group_column, group_row)
    rivals = And (overlap, same)
    rivals_float = Cast <to = 1> (rivals)
    one_scalar = Squeeze (one)
    later_rivals = Trilu <upper = 1> (rivals_float, one_scalar)
    suppresses = Cast <to = $product> (later_rivals)
    above = Greater (best, least)
    above_float = Cast <to = 1> (above)
    alive = Unsqueeze (above_float, one)
    trips = Squeeze (limit)
    go = Constant <value = bool {1}> ()
    survivor = Loop (trips, go, alive) <
        body = step (int64 i, bool going, float[batch, 1, n] now) => (bool again, float[batch, 1, n] next) {
            factors = Cast <to = $product> (now)
            products = MatMul (factors, suppresses)
            hits = Cast <to = 1> (products)
            free = Less (hits, half)
            next = Where (free, alive, none)
            difference = Sub (next, now)
            change = Abs (difference)
            most_change = ReduceMax <keepdims = 0> (change)
            again = Greater (most_change, none)
        }
    >
    survivor_row = Squeeze (survivor, one)
    survives = Greater (survivor_row, half)
    surviving = Where (survives, best, least)
    fill_shape = Concat <axis = 0> (batch, kept_1d)
    fill = Expand (least, fill_shape)
    filled = Concat <axis = 1> (surviving, fill)
    fill_index = Expand (flat, fill_shape)
    filled_index = Concat <axis = 1> (index, fill_index)
    kept_scores, place = TopK (filled, kept_1d)
    chosen = GatherElements <axis = 1> (filled_index, place)
    found = Greater (kept_scores, least)
    y = Where (found, chosen, flat)
""")


def use_matrix_nms(model: onnx.ModelProto, product: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    """A copy of `model` whose BatchedNMS nodes, if it has any, are defined without NonMaxSuppression.

    product: the number type of the products, whose operands are zeros and ones and whose results are only
    compared with zero: any is exact. Turing takes no float32 products in TensorRT for RTX.
    """
    statements = _STATEMENTS.substitute(product=product)
    operator = dataclasses.replace(BATCHED_NMS, statements=statements)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for function in changed.functions:
        if function.domain == DOMAIN and function.name == BATCHED_NMS.name:
            opsets = list(function.opset_import)
            function.CopyFrom(onnx.parser.parse_function(operator.body))
            del function.opset_import[:]
            function.opset_import.extend(opsets)  # of the graph, into which the body is inlined
    return changed
