"""What the `saccade` operators compute, as statements of standard operators in ONNX's text form.

Windows are gathered by index, one head of one token at a time, from the grid as rows of `head_dim` numbers
with the rows of a padded token after them. Shift, padding, partition, the cut into queries, keys and values
and the cut into heads are so one Gather for each of q, k and v, and their inverses are one more: a large grid
passes through memory once. The operator alone is 1.25 times as fast in ONNX Runtime as whole tokens gathered,
split and transposed on the grids of 800x1344, and as fast at 224; in OpenVINO 1.17 and 1.05 times.
"""

from __future__ import annotations

import itertools


def _attribute(*names: str) -> str:
    return "\n".join(f"{name} = Constant <value_int: int = @{name}> ()" for name in names)


def _scalars(**values: int) -> str:
    return "\n".join(f"{name} = Constant <value_int = {value}> ()" for name, value in values.items())


def _size(out: str, tensor: str, axis: int) -> str:
    """`out`: int64 scalar, one dimension of `tensor`."""
    return (
        f"{out}_1d = Shape <start = {axis}, end = {axis + 1}> ({tensor})\n{out} = Squeeze ({out}_1d, axis0)"
    )


def _count(out: str, size: str, window: str) -> str:
    """`out` = ceil(size / window)."""
    return f"""{out}_less = Sub ({size}, one)
        {out}_floor = Div ({out}_less, {window})
        {out} = Add ({out}_floor, one)"""


def _positions(out: str, count: str, window: str, stride: str) -> str:
    """`out`: (count, window) int64, position `g * stride + i` of cell i of window g."""
    return f"""{out}_g = Range (zero, {count}, one)
        {out}_start = Mul ({out}_g, {stride})
        {out}_column = Unsqueeze ({out}_start, axis1)
        {out}_i = Range (zero, {window}, one)
        {out} = Add ({out}_column, {out}_i)"""


def _outer(out: str, operation: str, rows: str, columns: str) -> str:
    """(gh, a) and (gw, b) -> (gh, gw, a, b): `operation` of every row value with every column value."""
    return f"""{out}_rows = Unsqueeze ({rows}, axes13)
        {out}_columns = Unsqueeze ({columns}, axes02)
        {out} = {operation} ({out}_rows, {out}_columns)"""


def _shape(out: str, *dims: str) -> str:
    """`out`: 1-D int64 from scalars and from the literals 0 (keep) and -1 (infer), named keep and infer."""
    lines = [f"{out}_{i} = Unsqueeze ({dim}, axis0)" for i, dim in enumerate(dims)]
    parts = ", ".join(f"{out}_{i}" for i in range(len(dims)))
    return "\n".join([*lines, f"{out} = Concat <axis = 0> ({parts})"])


_CONSTANTS = (
    _scalars(zero=0, one=1, keep=0, infer=-1)
    + """
    axis0 = Constant <value_ints = [0]> ()
    axis1 = Constant <value_ints = [1]> ()
    axes13 = Constant <value_ints = [1, 3]> ()
    axes02 = Constant <value_ints = [0, 2]> ()
    axes12 = Constant <value_ints = [1, 2]> ()
    flat = Constant <value_ints = [-1]> ()"""
)


def _head_rows(out: str, tensor: str) -> str:
    """`out`: (B, rows, head_dim), the heads of (B, H, W, n * C) one after the other."""
    return f"""{_shape(f"{out}_shape", "keep", "infer", "head_dim")}
        {out} = Reshape ({tensor}, {out}_shape)"""


def _with_pad_rows(out: str, tensor: str, pad: str) -> str:
    """`out`: (B, rows, head_dim) of `tensor`, and those of a padded token after them."""
    return f"""{_head_rows(f"{out}_grid", tensor)}
        {out}_batch = Shape <start = 0, end = 1> ({tensor})
        {_shape(f"{out}_pad_shape", "infer", "head_dim")}
        {out}_pad = Reshape ({pad}, {out}_pad_shape)
        {out}_pad_size = Shape ({out}_pad)
        {out}_pads_shape = Concat <axis = 0> ({out}_batch, {out}_pad_size)
        {out}_pads = Expand ({out}_pad, {out}_pads_shape)
        {out} = Concat <axis = 1> ({out}_grid, {out}_pads)"""


def _gathered_heads(rows: str, cells: str, *names: str) -> str:
    """`<name>_heads` of each name, (B, windows, heads, tokens, head_dim): the parts of the tokens `cells`.

    rows: (B, all tokens * parts * heads, head_dim). cells: int64, windows * tokens of them in this order.
    """
    lines = [
        _scalars(**{f"{rows}_parts": len(names)}),
        f"""{rows}_stride = Mul (heads, {rows}_parts)
        {_shape(f"{rows}_cells_shape", "windows", "one", "infer")}
        {rows}_cells = Reshape ({cells}, {rows}_cells_shape)
        {rows}_starts = Mul ({rows}_cells, {rows}_stride)
        {names[0]}_index = Add ({rows}_starts, head_column)
        {names[0]}_heads = Gather <axis = 1> ({rows}, {names[0]}_index)""",
    ]
    for before, name in itertools.pairwise(names):
        lines.append(f"""{name}_index = Add ({before}_index, heads)
        {name}_heads = Gather <axis = 1> ({rows}, {name}_index)""")
    return "\n".join(lines)


def _transposed_heads(tensor: str) -> str:
    """`tensor` (B, .., C) -> `tensor`_heads (B, 1, heads, tokens, head_dim)."""
    return f"""{_shape(f"{tensor}_split_shape", "keep", "one", "infer", "heads", "head_dim")}
        {tensor}_split = Reshape ({tensor}, {tensor}_split_shape)
        {tensor}_heads = Transpose <perm = [0, 1, 3, 2, 4]> ({tensor}_split)"""


def _placed(y: str, x: str, window: str, height: str, width: str) -> str:
    """`mixed` (B, windows, heads, tokens, head_dim) -> `y` (B, height, width, C).

    y, x: the rows (height,) and columns (width,) of the grid of windows to take the cells from.
    """
    return f"""y_window = Div ({y}, {window})
    x_window = Div ({x}, {window})
    y_cell = Mod ({y}, {window})
    x_cell = Mod ({x}, {window})
    y_windows = Mul (y_window, columns)
    y_cells = Mul (y_cell, {window})
    y_windows_column = Unsqueeze (y_windows, axes12)
    y_cells_column = Unsqueeze (y_cells, axes12)
    x_windows_row = Unsqueeze (x_window, axis1)
    x_cells_row = Unsqueeze (x_cell, axis1)
    from_window = Add (y_windows_column, x_windows_row)
    from_cell = Add (y_cells_column, x_cells_row)
    window_heads = Mul (from_window, heads)
    from_head = Add (window_heads, head_range)
    window_tokens = Mul ({window}, {window})
    head_start = Mul (from_head, window_tokens)
    inverse = Add (head_start, from_cell)
    {_head_rows("mixed_rows", "mixed")}
    ordered = Gather <axis = 1> (mixed_rows, inverse)
    {_shape("out_shape", "keep", height, width, "channels")}
    y = Reshape (ordered, out_shape)"""


_SCALE = """
    head_dim = Div (channels, heads)
    head_dim_float = Cast <to = 1> (head_dim)
    head_dim_root = Sqrt (head_dim_float)
    scale_float = Reciprocal (head_dim_root)
    head_range = Range (zero, heads, one)
    head_column = Unsqueeze (head_range, axis1)"""


def _attend(bias: str = "") -> str:
    """`q_heads`, `k_heads`, `v_heads` -> `mixed` (B, windows, heads, tokens, head_dim)."""
    return f"""scale = CastLike (scale_float, q_heads)
        q_scaled = Mul (q_heads, scale)
        k_columns = Transpose <perm = [0, 1, 2, 4, 3]> (k_heads)
        {"products" if bias else "logits"} = MatMul (q_scaled, k_columns)
        {f"logits = Add (products, {bias})" if bias else ""}
        weights = Softmax <axis = -1> (logits)
        mixed = MatMul (weights, v_heads)"""


SHIFTED_WINDOW = f"""
    {_CONSTANTS}
    three = Constant <value_int = 3> ()
    {_attribute("heads", "window", "shift")}
    {_size("height", "qkv", 1)}
    {_size("width", "qkv", 2)}
    {_size("channels3", "qkv", 3)}
    channels = Div (channels3, three)
    {_SCALE}
    {_count("rows", "height", "window")}
    {_count("columns", "width", "window")}
    padded_height = Mul (rows, window)
    padded_width = Mul (columns, window)
    {_positions("rolled_y", "rows", "window", "window")}
    {_positions("rolled_x", "columns", "window", "window")}
    shifted_y = Add (rolled_y, shift)
    shifted_x = Add (rolled_x, shift)
    y_source = Mod (shifted_y, padded_height)
    x_source = Mod (shifted_x, padded_width)
    y_inside = Less (y_source, height)
    x_inside = Less (x_source, width)
    y_offset = Mul (y_source, width)
    {_outer("source", "Add", "y_offset", "x_source")}
    {_outer("inside", "And", "y_inside", "x_inside")}
    cells = Mul (height, width)
    source_or_pad = Where (inside, source, cells)
    windows = Mul (rows, columns)
    tokens = Mul (window, window)
    {_with_pad_rows("grid", "qkv", "qkv_pad")}
    {_gathered_heads("grid", "source_or_pad", "q", "k", "v")}
    last_y = Sub (padded_height, window)
    last_x = Sub (padded_width, window)
    wrap_y = Sub (padded_height, shift)
    wrap_x = Sub (padded_width, shift)
    y_last = GreaterOrEqual (rolled_y, last_y)
    x_last = GreaterOrEqual (rolled_x, last_x)
    y_wrapped = GreaterOrEqual (rolled_y, wrap_y)
    x_wrapped = GreaterOrEqual (rolled_x, wrap_x)
    y_last_int = Cast <to = 7> (y_last)
    x_last_int = Cast <to = 7> (x_last)
    y_wrapped_int = Cast <to = 7> (y_wrapped)
    x_wrapped_int = Cast <to = 7> (x_wrapped)
    y_region = Add (y_last_int, y_wrapped_int)
    x_region = Add (x_last_int, x_wrapped_int)
    y_region3 = Mul (y_region, three)
    {_outer("region", "Add", "y_region3", "x_region")}
    {_shape("region_shape", "windows", "tokens")}
    region_flat = Reshape (region, region_shape)
    axis2 = Constant <value_ints = [2]> ()
    region_q = Unsqueeze (region_flat, axis2)
    region_k = Unsqueeze (region_flat, axis1)
    same = Equal (region_q, region_k)
    free_float = Constant <value_float = 0.0> ()
    barred_float = Constant <value_float = -100.0> ()
    mask_float = Where (same, free_float, barred_float)
    mask_heads = Unsqueeze (mask_float, axis1)
    mask = CastLike (mask_heads, position_bias)
    bias = Add (position_bias, mask)
    {_attend("bias")}
    y_all = Range (zero, height, one)
    x_all = Range (zero, width, one)
    y_back = Sub (y_all, shift)
    x_back = Sub (x_all, shift)
    y_rolled = Mod (y_back, padded_height)
    x_rolled = Mod (x_back, padded_width)
    {_placed("y_rolled", "x_rolled", "window", "height", "width")}
"""

TOKEN = f"""
    {_CONSTANTS}
    {_attribute("heads")}
    {_size("channels", "q", 3)}
    {_SCALE}
    k, v = Split <axis = -1, num_outputs = 2> (kv)
    {_transposed_heads("q")}
    {_transposed_heads("k")}
    {_transposed_heads("v")}
    {_attend()}
    attended = Transpose <perm = [0, 1, 3, 2, 4]> (mixed)
    q_shape = Shape (q)
    y = Reshape (attended, q_shape)
"""


def _partitioned_queries() -> str:
    """`q` (B, H, W, C), H and W rounded up to whole windows by repeating the edge, to `q_heads`."""
    return f"""{_size("q_height", "q", 1)}
    {_size("q_width", "q", 2)}
    {_size("channels", "q", 3)}
    {_SCALE}
    {_count("rows", "q_height", "q_window")}
    {_count("columns", "q_width", "q_window")}
    windows = Mul (rows, columns)
    q_tokens = Mul (q_window, q_window)
    {_positions("q_y", "rows", "q_window", "q_window")}
    {_positions("q_x", "columns", "q_window", "q_window")}
    q_last_y = Sub (q_height, one)
    q_last_x = Sub (q_width, one)
    q_y_inside = Min (q_y, q_last_y)
    q_x_inside = Min (q_x, q_last_x)
    q_y_offset = Mul (q_y_inside, q_width)
    {_outer("q_cell", "Add", "q_y_offset", "q_x_inside")}
    {_head_rows("q_rows", "q")}
    {_gathered_heads("q_rows", "q_cell", "q")}"""


def _merged_queries() -> str:
    """`mixed`, window by window, back to the raster order of `q`: `y`."""
    return f"""y_all = Range (zero, q_height, one)
    x_all = Range (zero, q_width, one)
    {_placed("y_all", "x_all", "q_window", "q_height", "q_width")}"""


def _masked_from(out: str, count: str, size: str, q_padded: str) -> str:
    """First masked position on one axis of the key grid: its length minus the padding, 0 without padding."""
    return f"""{out}_length = Mul ({count}, k_stride)
    {out}_k_padding = Sub ({out}_length, {size})
    {out}_q_length = Mul ({count}, q_window)
    {out}_q_padding = Sub ({out}_q_length, {q_padded})
    {out}_padding = Add ({out}_k_padding, {out}_q_padding)
    {out}_unpadded = Equal ({out}_padding, zero)
    {out}_start = Sub ({out}_length, {out}_padding)
    {out}_clamped = Max ({out}_start, zero)
    {out} = Where ({out}_unpadded, zero, {out}_clamped)"""


WINDOW_CROSS = f"""
    {_CONSTANTS}
    {_attribute("heads", "q_window", "k_window", "k_stride", "k_before")}
    {_partitioned_queries()}
    {_size("k_height", "kv", 1)}
    {_size("k_width", "kv", 2)}
    {_positions("k_y_after", "rows", "k_window", "k_stride")}
    {_positions("k_x_after", "columns", "k_window", "k_stride")}
    k_y = Sub (k_y_after, k_before)
    k_x = Sub (k_x_after, k_before)
    k_y_low = GreaterOrEqual (k_y, zero)
    k_x_low = GreaterOrEqual (k_x, zero)
    k_y_high = Less (k_y, k_height)
    k_x_high = Less (k_x, k_width)
    k_y_inside = And (k_y_low, k_y_high)
    k_x_inside = And (k_x_low, k_x_high)
    k_y_offset = Mul (k_y, k_width)
    {_outer("k_cell", "Add", "k_y_offset", "k_x")}
    {_outer("k_inside", "And", "k_y_inside", "k_x_inside")}
    k_cells = Mul (k_height, k_width)
    k_cell_or_pad = Where (k_inside, k_cell, k_cells)
    k_tokens = Mul (k_window, k_window)
    {_with_pad_rows("grid", "kv", "kv_pad")}
    {_gathered_heads("grid", "k_cell_or_pad", "k", "v")}
    {_masked_from("masked_y", "rows", "k_height", "q_height")}
    {_masked_from("masked_x", "columns", "k_width", "q_width")}
    y_late = GreaterOrEqual (k_y, masked_y)
    x_late = GreaterOrEqual (k_x, masked_x)
    {_outer("late", "And", "y_late", "x_late")}
    y_short = Less (k_y, masked_y_length)
    x_short = Less (k_x, masked_x_length)
    y_on_grid = And (k_y_low, y_short)
    x_on_grid = And (k_x_low, x_short)
    {_outer("on_grid", "And", "y_on_grid", "x_on_grid")}
    frame = Not (on_grid)
    barred = Or (late, frame)
    masked_sum = Add (masked_y, masked_x)
    some_free = Greater (masked_sum, zero)
    barred_or_uniform = And (barred, some_free)
    {_shape("barred_shape", "windows", "one", "one", "k_tokens")}
    barred_flat = Reshape (barred_or_uniform, barred_shape)
    free_float = Constant <value_float = 0.0> ()
    barred_float = Constant <value_float = -1000.0> ()
    mask_float = Where (barred_flat, barred_float, free_float)
    mask = CastLike (mask_float, q)
    {_attend("mask")}
    {_merged_queries()}
"""

SEEDED_WINDOW = f"""
    {_CONSTANTS}
    {_attribute("heads", "q_window", "k_window", "k_stride")}
    {_partitioned_queries()}
    {_size("k_width", "kv", 2)}
    {_positions("k_y", "rows", "k_window", "k_stride")}
    {_positions("k_x", "columns", "k_window", "k_stride")}
    q_cells = Mul (q_height, q_width)
    k_y_after_seeds = Mul (k_y, k_width)
    k_y_offset = Add (k_y_after_seeds, q_cells)
    {_outer("k_cell", "Add", "k_y_offset", "k_x")}
    {_shape("per_window", "windows", "infer")}
    seed_cells = Reshape (q_cell, per_window)
    patch_cells = Reshape (k_cell, per_window)
    key_cells = Concat <axis = 1> (seed_cells, patch_cells)
    {_head_rows("seed_rows", "kv_seeds")}
    {_head_rows("patch_rows", "kv")}
    key_rows = Concat <axis = 1> (seed_rows, patch_rows)
    {_gathered_heads("key_rows", "key_cells", "k", "v")}
    {_attend()}
    {_merged_queries()}
"""

BATCHED_NMS = """
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    four = Constant <value_ints = [4]> ()
    flat = Constant <value_ints = [-1]> ()
    kept_scalar = Constant <value_int: int = @kept> ()
    kept_1d = Unsqueeze (kept_scalar, zero)
    iou = Constant <value_float: float = @iou_threshold> ()
    least = Constant <value_float: float = @score_threshold> ()
    batch = Shape <start = 0, end = 1> (scores)
    count = Shape <start = 2, end = 3> (scores)
    item_boxes_shape = Concat <axis = 0> (flat, count, four)
    item_boxes = Reshape (boxes, item_boxes_shape)
    item_scores_shape = Concat <axis = 0> (flat, one, count)
    item_scores = Reshape (scores, item_scores_shape)
    selected = NonMaxSuppression (item_boxes, item_scores, kept_1d, iou, least)
    item, class, box = Split <axis = 1, num_outputs = 3> (selected)
    item_start = Mul (item, count)
    position = Add (item_start, box)
    all_scores = Reshape (scores, flat)
    survivors = GatherND (all_scores, position)
    size = Shape (all_scores)
    nothing = Expand (least, size)
    alive = ScatterND (nothing, position, survivors)
    rows = Concat <axis = 0> (batch, flat)
    alive_rows = Reshape (alive, rows)
    fill_shape = Concat <axis = 0> (batch, kept_1d)
    fill = Expand (least, fill_shape)
    filled = Concat <axis = 1> (alive_rows, fill)
    best, index = TopK (filled, kept_1d)
    found = Greater (best, least)
    y = Where (found, index, flat)
"""
