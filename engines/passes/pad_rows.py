"""Drop the row for padded tokens where no window gathers it."""

from __future__ import annotations

import onnx_ir as ir

from saccade.engines.passes.constants import axis_of, constant, static_size


def drop_unused_pad_rows(model: ir.Model) -> int:
    """Gather(Concat(grid, row), index) -> Gather(grid, index) where every index is below the grid's size.

    So it is wherever the grid is a whole number of windows. Returns the number of nodes changed.
    """
    changed = 0
    for gather in model.graph:
        if gather.op_type != "Gather" or gather.inputs[0] is None:
            continue
        concat = gather.inputs[0].producer()
        if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
            continue
        if axis_of(gather) != 1 or axis_of(concat) != 1:
            continue
        grid, index = concat.inputs[0], constant(gather.inputs[1])
        rows = static_size(grid, 1)
        if index is not None and rows is not None and ((index >= 0) & (index < rows)).all():
            gather.replace_input_with(0, grid)
            changed += 1
    return changed
